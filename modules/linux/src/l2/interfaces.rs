//! Interfaces on which load-balancer addresses can be announced.

use homelab_model::ours;
use ipnet::IpNet;

use crate::error::{Error, netlink};
use crate::kernel::is_link_local;
use crate::netlink::Socket;
use crate::rt::{self, LinkInfo, parse_mac};

/// An interface of a LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Up, with a carrier.
    pub operational: bool,
    /// It has an address that the kernel still searches duplicates of (RFC 4862), and does not use yet.
    pub tentative: bool,
    /// Networks that it is on, link-local ones left out: its addresses with their prefix lengths.
    pub networks: Vec<IpNet>,
}

/// The interfaces of the caller's network namespace that ARP and neighbour discovery can be spoken on: Ethernet, neither
/// ours, nor a pod's, nor a port of a bridge or bond (which speaks for its ports).
///
/// # Errors
/// Netlink fails.
pub fn interfaces(socket: &mut Socket) -> Result<Vec<Interface>, Error> {
    let links = netlink("reading links", rt::links(socket))?;
    let addresses = netlink("reading addresses", rt::addresses_with_state(socket))?;
    let usable = |link: &LinkInfo| {
        let mine = link.alias == ours::LINK_ALIAS || link.alias.starts_with(ours::POD_ALIAS);
        (link.resolves && link.master.is_none() && !mine).then(|| parse_mac(&link.mac)).flatten()
    };
    let found = links.iter().filter_map(|link| Some((link, usable(link)?)));
    let interfaces = found.map(|(link, mac)| Interface {
        index: link.index,
        name: link.name.clone(),
        mac,
        operational: link.operational,
        tentative: addresses.iter().any(|(index, _, tentative)| *index == link.index && *tentative),
        networks: addresses
            .iter()
            .filter(|(index, address, _)| *index == link.index && !is_link_local(address))
            .map(|(_, address, _)| *address)
            .collect(),
    });
    Ok(interfaces.collect())
}
