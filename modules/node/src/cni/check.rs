//! CHECK against kernel and store.

use homelab_cni::ipam;
use homelab_cni::{
    Attachment, Base, CniError, Code, Network, PrevResult, Rate, Sandbox, Wiring, gateway_net,
};
use homelab_linux::mac_text;
use homelab_linux::pod::PodSocket;
use homelab_model::PodMarks;

use super::attach::{kernel, open};
use super::bridge;
use super::guard;
use super::hostport::Claims;
use super::store::Store;

/// CHECK: what ADD made is there, on both sides and in the store.
pub(crate) fn check(
    base: &Base,
    network: &Network,
    attachment: &Attachment,
    sandbox: &Sandbox,
    prev: &PrevResult,
) -> Result<(), CniError> {
    let mismatch = |message: String| Err(CniError::new(Code::Mismatch, message));
    let netns = open(sandbox)?;
    let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
    let entry = Store::of(base)?.entries()?.into_iter().find(|entry| entry.owner == owner);
    let Some(entry) = entry else {
        return Err(CniError::with(
            Code::UnknownContainer,
            format!("nothing is reserved for interface {} of this container", attachment.ifname),
            &attachment.container,
        ));
    };
    let mut host = PodSocket::open().map_err(kernel)?;
    let Some(bridge) = host.link(&network.bridge).map_err(kernel)? else {
        return mismatch(format!("bridge {} is missing", network.bridge));
    };
    let bridge = bridge::own(&mut host, bridge)?;
    let gateways = host.addresses(&network.bridge).map_err(kernel)?;
    let wanted = network.ranges.iter().filter_map(|range| gateway_net(*range));
    if let Some(gateway) = wanted.into_iter().find(|gateway| !gateways.contains(gateway)) {
        return mismatch(format!("bridge {} has no address {gateway}", network.bridge));
    }
    let wiring = Wiring::new(base, network, attachment, &entry, homelab_linux::parse_mac(&prev.mac));
    let Some(port) = host.link(&wiring.host).map_err(kernel)? else {
        return mismatch(format!("link {} on the node is missing", wiring.host));
    };
    // Which runtime asked ADD is not CHECK's to know.
    let wiring = wiring.for_runtime(attachment, PodMarks::of_alias(&port.alias).runtime);
    for (right, what) in [
        (port.alias == wiring.alias, "has another alias"),
        (port.master == Some(bridge.index), "is no port of the bridge"),
        (port.hairpin, "does not send back (hairpin)"),
        (port.isolated == wiring.marks.isolated, "is isolated where it should not be, or the reverse"),
        (port.up, "is down"),
    ] {
        if !right {
            return mismatch(format!("link {} {what}", wiring.host));
        }
    }
    for address in &prev.addresses {
        if !entry.addresses.contains(&address.addr()) {
            return mismatch(format!("{address} is not reserved for this container"));
        }
    }
    if let Some(own) = &wiring.marks.own
        && let Some(what) = guard::missing(&wiring.host, own)?
    {
        return mismatch(format!("the pod may send by addresses that are not its own: {what} is missing"));
    }
    check_ports(base, network, &owner)?;
    check_rate(&mut host, &wiring.host, network.bandwidth.ingress)?;
    netns.enter().map_err(kernel)?;
    check_pod(&wiring, port.mtu, prev)?;
    check_rate(&mut PodSocket::open().map_err(kernel)?, &wiring.ifname, network.bandwidth.egress)
}

/// A link has the limit that the runtime asked for. Where it asks for none, another plugin of the chain may have set one.
fn check_rate(socket: &mut PodSocket, link: &str, rate: Option<Rate>) -> Result<(), CniError> {
    let Some(rate) = rate else { return Ok(()) };
    match socket.limit_of(link).map_err(kernel)? {
        Some(held) if held == rate.bytes_per_second => Ok(()),
        held => Err(CniError::with(
            Code::Mismatch,
            format!("link {link} is not limited to {} bytes per second", rate.bytes_per_second),
            held.map_or("no limit".to_owned(), |held| format!("but to {held}")),
        )),
    }
}

/// The node's ports that lead to the pod: those that the runtime names, and all of them in the kernel.
fn check_ports(base: &Base, network: &Network, owner: &str) -> Result<(), CniError> {
    let mismatch = |message: String| Err(CniError::new(Code::Mismatch, message));
    let claim = Claims::of(&base.data_dir)?.get(owner)?;
    let held = claim.as_ref().map(|claim| &claim.ports[..]).unwrap_or_default();
    if let Some(port) = network.port_mappings.iter().find(|port| !held.contains(port)) {
        return mismatch(format!(
            "{} port {} of the node is not the pod's",
            port.protocol.as_str(),
            port.host_port
        ));
    }
    match claim.map_or(Ok(None), |claim| Claims::missing(&claim))? {
        Some(what) => mismatch(format!("a port of the node leads nowhere: {what} is missing")),
        None => Ok(()),
    }
}

/// The pod's side, as far as it is this plugin's and as the result has it: plugins that came later in the chain may have
/// given the interface another MAC address or MTU (`tuning`) or its routes another table (`sbr`). Without an MTU in
/// the result, which 1.1.0 brought, any will do that the node's end takes: a pod keeps the MTU with which it was
/// started, and a smaller one is some plugin's choice.
fn check_pod(wiring: &Wiring, mtu: u32, prev: &PrevResult) -> Result<(), CniError> {
    let mismatch = |what: String| {
        Err(CniError::new(Code::Mismatch, format!("interface {} of the container {what}", wiring.ifname)))
    };
    let mut pod = PodSocket::open().map_err(kernel)?;
    let Some(link) = pod.link(&wiring.ifname).map_err(kernel)? else {
        return mismatch("is missing".to_owned());
    };
    let mac = if prev.mac.is_empty() { mac_text(&wiring.mac) } else { prev.mac.clone() };
    if link.mac != mac {
        return mismatch(format!("has MAC address {} instead of {mac}", link.mac));
    }
    if !link.up {
        return mismatch("is down".to_owned());
    }
    if link.mtu > mtu {
        return mismatch(format!("has MTU {}, and its end on the node {mtu}", link.mtu));
    }
    if let Some(wanted) = prev.mtu.filter(|wanted| *wanted != link.mtu) {
        return mismatch(format!("has MTU {} instead of {wanted}", link.mtu));
    }
    let held = pod.addresses(&wiring.ifname).map_err(kernel)?;
    let own = wiring.addresses.iter().map(|pod| pod.address);
    for address in own.chain(prev.addresses.iter().copied()) {
        if !held.contains(&address) {
            return mismatch(format!("has no address {address}"));
        }
    }
    let routes = pod.routes(&wiring.ifname).map_err(kernel)?;
    let defaults: Vec<_> =
        routes.iter().filter(|(to, _)| to.prefix_len() == 0).map(|(_, via)| *via).collect();
    for gateway in &prev.gateways {
        // Routes over other interfaces belong to other plugins of the chain.
        let ours = wiring.addresses.iter().any(|pod| pod.gateway == *gateway);
        if ours && !defaults.contains(&Some(*gateway)) {
            return mismatch(format!("has no default route via {gateway}"));
        }
    }
    Ok(())
}
