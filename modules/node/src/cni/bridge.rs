//! The bridge among what else is on the node.

use homelab_cni::{CniError, Code, Network, gateway_net};
use homelab_linux::LinkInfo;
use homelab_linux::pod::PodSocket;
use homelab_model::ours;
use ipnet::IpNet;

use super::attach::kernel;

/// The link, if it is a bridge of ours and no part of somebody else's.
pub(super) fn own(host: &mut PodSocket, link: LinkInfo) -> Result<LinkInfo, CniError> {
    if link.kind != "bridge" || link.alias != ours::LINK_ALIAS {
        let kind = if link.kind.is_empty() { "hardware" } else { &link.kind };
        return Err(CniError::with(
            Code::ForeignLink,
            format!("link {0} is in the way: homelab did not make it; remove or rename it", link.name),
            format!("{kind}, alias {:?}", link.alias),
        ));
    }
    let Some(master) = link.master else { return Ok(link) };
    let links = host.links().map_err(kernel)?;
    let master = links.iter().find(|l| l.index == master).map_or("another link", |l| l.name.as_str());
    Err(CniError::with(
        Code::ForeignLink,
        format!("the bridge {} was made a port of {master}", link.name),
        format!("take it out: ip link set {} nomaster", link.name),
    ))
}

/// Gives the bridge the gateways that it lacks (cni#306: its list has another range than when it was made). Those of
/// an earlier range stay for the pods that still use them, until an apply.
pub(super) fn give_gateways(host: &mut PodSocket, bridge: u32, network: &Network) -> Result<(), CniError> {
    let held = host.addresses_at(bridge).map_err(kernel)?;
    let gateways = network.ranges.iter().filter_map(|range| gateway_net(*range));
    let missing: Vec<IpNet> = gateways.filter(|gateway| !held.contains(gateway)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let ranges: Vec<IpNet> = missing.iter().map(IpNet::trunc).collect();
    nothing_in_the_way(host, &ranges)?;
    host.add_addresses(bridge, &missing).map_err(kernel)
}

/// Refuses ranges of which somebody else's link has an address: the node would find pods on one of the two only.
pub(super) fn nothing_in_the_way(host: &mut PodSocket, ranges: &[IpNet]) -> Result<(), CniError> {
    let overlap = |address: &IpNet| {
        ranges.iter().find(|range| range.contains(&address.addr()) || address.trunc().contains(*range))
    };
    let addresses = host.linked_addresses().map_err(kernel)?;
    if addresses.iter().all(|(_, address)| overlap(address).is_none()) {
        return Ok(());
    }
    let links = host.links().map_err(kernel)?;
    for (index, address) in addresses {
        let link = links.iter().find(|link| link.index == index && link.alias != ours::LINK_ALIAS);
        if let (Some(link), Some(range)) = (link, overlap(&address)) {
            return Err(CniError::with(
                Code::ForeignLink,
                format!("the pod range {range} is in use: link {} has the address {address}", link.name),
                format!(
                    "homelab plan says what to do; or remove it: ip address del {address} dev {}",
                    link.name
                ),
            ));
        }
    }
    Ok(())
}
