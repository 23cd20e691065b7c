//! Links (`linux/if_link.h`).

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::netlink::{
    AF_INET6, Attributes, Message, NetlinkError, Socket, flag, ip, ne_u16, ne_u32, rtm, text,
};

const IFINFOMSG: usize = 16;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 1 << 7;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINK: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_EUI64: u8 = 0;
const ADDR_GEN_NONE: u8 = 1;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const BR_FORWARD_DELAY: u16 = 1;
const BR_STP_STATE: u16 = 5;
const VETH_PEER: u16 = 1;
const BRPORT_MODE: u16 = 4;
const BRPORT_ISOLATED: u16 = 33;
/// `RTEXT_FILTER_SKIP_STATS`
const SKIP_STATS: u32 = 8;
/// `IF_OPER_UNKNOWN` (drivers that do not say) and `IF_OPER_UP`.
const OPERATIONAL: [u8; 2] = [0, 6];

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkInfo {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND`, empty for hardware.
    pub kind: String,
    /// `IFLA_IFALIAS`, empty if none.
    pub alias: String,
    /// MAC address, lower-case; empty for links without one.
    pub mac: String,
    /// MTU, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Operational.
    pub operational: bool,
    /// `lo`.
    pub loopback: bool,
    /// Ethernet whose neighbours are found by ARP and neighbour discovery.
    pub resolves: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Index of the other end of a pair, in its namespace (`IFLA_LINK`); of a link above another one that one's.
    pub other: Option<u32>,
    /// This namespace's number for the other end's, where that is elsewhere (`IFLA_LINK_NETNSID`).
    pub other_netns: Option<u32>,
    /// Whether a bridge sends frames back out of this port.
    pub hairpin: bool,
    /// Whether a bridge exchanges no frames between this port and other isolated ones.
    pub isolated: bool,
    /// Attributes of a VXLAN link.
    pub vxlan: Option<VxlanInfo>,
    /// Whether a bridge runs the spanning tree protocol.
    pub stp: Option<bool>,
}

/// Attributes of a VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VxlanInfo {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Local address.
    pub local: Option<IpAddr>,
    /// Whether it learns FDB entries from traffic.
    pub learning: bool,
}

/// A MAC address as text, lower-case.
pub fn mac_text(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// The six bytes of a MAC address.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn header(family: u8, index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn read(body: &[u8]) -> Option<LinkInfo> {
    let (hardware, flags) = (body.get(2..).and_then(ne_u16)?, body.get(8..).and_then(ne_u32)?);
    let mut link = LinkInfo {
        index: body.get(4..).and_then(ne_u32)?,
        up: flags & IFF_UP != 0,
        loopback: hardware == ARPHRD_LOOPBACK,
        resolves: hardware == ARPHRD_ETHER && flags & IFF_NOARP == 0,
        ..LinkInfo::default()
    };
    for (kind, value) in Attributes::after(body, IFINFOMSG) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_ADDRESS => link.mac = mac_text(value),
            IFLA_MTU => link.mtu = ne_u32(value)?,
            IFLA_MASTER => link.master = ne_u32(value),
            IFLA_LINK => link.other = ne_u32(value).filter(|index| *index > 0),
            IFLA_LINK_NETNSID => link.other_netns = ne_u32(value),
            IFLA_OPERSTATE => link.operational = value.first().is_some_and(|s| OPERATIONAL.contains(s)),
            IFLA_LINKINFO => read_info(value, &mut link),
            _ => {}
        }
    }
    link.operational &= link.up;
    Some(link)
}

fn read_info(info: &[u8], link: &mut LinkInfo) {
    let mut bridge_port = false;
    for (kind, value) in Attributes::after(info, 0) {
        match kind {
            INFO_KIND => link.kind = text(value),
            // The kind comes first.
            INFO_DATA if link.kind == "vxlan" => {
                let mut vxlan = VxlanInfo::default();
                for (kind, value) in Attributes::after(value, 0) {
                    match kind {
                        VXLAN_ID => vxlan.vni = ne_u32(value).unwrap_or_default(),
                        VXLAN_PORT => vxlan.port = ne_u16(value).unwrap_or_default().to_be(),
                        VXLAN_LOCAL | VXLAN_LOCAL6 => vxlan.local = ip(value),
                        VXLAN_LEARNING => vxlan.learning = value.first() == Some(&1),
                        _ => {}
                    }
                }
                link.vxlan = Some(vxlan);
            }
            INFO_SLAVE_DATA if bridge_port => {
                let is =
                    |flag| Attributes::after(value, 0).any(|(kind, v)| kind == flag && v.first() == Some(&1));
                (link.hairpin, link.isolated) = (is(BRPORT_MODE), is(BRPORT_ISOLATED));
            }
            INFO_SLAVE_KIND => bridge_port = text(value) == "bridge",
            INFO_DATA if link.kind == "bridge" => {
                let mut data = Attributes::after(value, 0);
                link.stp = data.find(|(kind, _)| *kind == BR_STP_STATE).map(|(_, v)| ne_u32(v) != Some(0));
            }
            _ => {}
        }
    }
}

/// All links.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<LinkInfo>, NetlinkError> {
    let mut message = Message::new(rtm::GETLINK, 0, &header(0, 0, 0, 0));
    message.u32(IFLA_EXT_MASK, SKIP_STATS);
    socket.dump(message, read)
}

/// The link with this name, if there is one.
pub(crate) fn link_by_name(socket: &mut Socket, name: &str) -> Result<Option<LinkInfo>, NetlinkError> {
    let mut message = Message::new(rtm::GETLINK, 0, &header(0, 0, 0, 0));
    message.text(IFLA_IFNAME, name).u32(IFLA_EXT_MASK, SKIP_STATS);
    match socket.query(message) {
        Ok(answers) => Ok(answers.iter().find_map(|body| read(body))),
        Err(error) if error.is(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What kind of link to make.
#[derive(Debug, Clone)]
pub(crate) enum NewKind {
    Vxlan(VxlanInfo),
    Bridge { stp: bool },
}

/// A link to make. It stays down.
#[derive(Debug, Clone)]
pub(crate) struct NewLink<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
    /// Bytes.
    pub(crate) mtu: u32,
    pub(crate) alias: &'a str,
    pub(crate) kind: NewKind,
}

/// Makes a link. Fails with `EEXIST` where its name is taken, and then has touched nothing. If it fails later the
/// link is gone again.
pub(crate) fn create_link(socket: &mut Socket, new: &NewLink<'_>) -> Result<(), NetlinkError> {
    socket.request(create_message(new))?;
    let finished = finish_link(socket, new);
    if finished.is_err()
        && let Ok(Some(made)) = link_by_name(socket, new.name)
    {
        let _ = delete_link(socket, made.index);
    }
    finished
}

/// What [`create_link`] does when the link is there.
pub(crate) fn finish_link(socket: &mut Socket, new: &NewLink<'_>) -> Result<(), NetlinkError> {
    let results = socket.batch(finish_messages(new))?;
    let last = results.len().saturating_sub(1);
    for (at, result) in results.into_iter().enumerate() {
        match result {
            // IPv6 is switched off: no address will be made up.
            Err(error) if at == last && error.is(Errno::EAFNOSUPPORT) => {}
            other => other?,
        }
    }
    Ok(())
}

fn create_message(new: &NewLink<'_>) -> Message {
    let mut create = Message::new(rtm::NEWLINK, flag::CREATE | flag::EXCL, &header(0, 0, 0, 0));
    create.text(IFLA_IFNAME, new.name).bytes(IFLA_ADDRESS, &new.mac);
    create.nest(IFLA_LINKINFO, |m| match &new.kind {
        NewKind::Vxlan(vxlan) => {
            m.text(INFO_KIND, "vxlan").nest(INFO_DATA, |m| {
                m.u32(VXLAN_ID, vxlan.vni).be16(VXLAN_PORT, vxlan.port);
                m.u8(VXLAN_LEARNING, u8::from(vxlan.learning));
                match vxlan.local {
                    Some(local @ IpAddr::V4(_)) => m.ip(VXLAN_LOCAL, local),
                    Some(local @ IpAddr::V6(_)) => m.ip(VXLAN_LOCAL6, local),
                    None => m,
                };
            });
        }
        NewKind::Bridge { stp } => {
            m.text(INFO_KIND, "bridge").nest(INFO_DATA, |m| {
                m.u32(BR_FORWARD_DELAY, 0).u32(BR_STP_STATE, u32::from(*stp));
            });
        }
    });
    create
}

/// What the kernel does not take while it makes a link. The last one fails where IPv6 is switched off.
fn finish_messages(new: &NewLink<'_>) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut set = |fill: &dyn Fn(&mut Message)| {
        let mut message = Message::new(rtm::NEWLINK, 0, &header(0, 0, 0, 0));
        message.text(IFLA_IFNAME, new.name);
        fill(&mut message);
        messages.push(message);
    };
    if !new.alias.is_empty() {
        set(&|m| {
            m.text(IFLA_IFALIAS, new.alias);
        });
    }
    if matches!(new.kind, NewKind::Bridge { .. }) {
        // Only an MTU that changes counts as set by the user; any other follows the smallest port.
        set(&|m| {
            m.u32(IFLA_MTU, new.mtu.saturating_sub(1).max(68));
        });
    }
    set(&|m| {
        m.u32(IFLA_MTU, new.mtu);
    });
    set(&|m| {
        m.nest(IFLA_AF_SPEC, |m| {
            m.nest(u16::from(AF_INET6), |m| {
                // A bridge solicits pods from its link-local address when it forwards to them. Nobody is ever solicited
                // on the tunnel.
                let bridge = matches!(new.kind, NewKind::Bridge { .. });
                m.u8(IFLA_INET6_ADDR_GEN_MODE, if bridge { ADDR_GEN_EUI64 } else { ADDR_GEN_NONE });
            });
        });
    });
    messages
}

/// Attributes of an existing link to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LinkChange {
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: Option<u32>,
    pub(crate) up: Option<bool>,
    pub(crate) stp: Option<bool>,
    /// Index of the bridge to become a port of.
    pub(crate) master: Option<u32>,
}

/// Changes an existing link in place.
pub(crate) fn set_link(socket: &mut Socket, index: u32, change: LinkChange) -> Result<(), NetlinkError> {
    socket.request(set_message(index, change))
}

/// The request of [`set_link`].
pub(crate) fn set_message(index: u32, change: LinkChange) -> Message {
    let flags = if change.up == Some(true) { IFF_UP } else { 0 };
    let mask = if change.up.is_some() { IFF_UP } else { 0 };
    let mut message = Message::new(rtm::NEWLINK, 0, &header(0, index, flags, mask));
    if let Some(mac) = change.mac {
        message.bytes(IFLA_ADDRESS, &mac);
    }
    if let Some(mtu) = change.mtu {
        message.u32(IFLA_MTU, mtu);
    }
    if let Some(master) = change.master {
        message.u32(IFLA_MASTER, master);
    }
    if let Some(stp) = change.stp {
        message.nest(IFLA_LINKINFO, |m| {
            m.text(INFO_KIND, "bridge").nest(INFO_DATA, |m| {
                m.u32(BR_STP_STATE, u32::from(stp));
            });
        });
    }
    message
}

/// A bridge whose new ports forward at once. The kernel refuses it while the bridge runs the spanning tree protocol,
/// and sets a delay of its own when that begins.
pub(crate) fn no_forward_delay(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    let mut message = Message::new(rtm::NEWLINK, 0, &header(0, index, 0, 0));
    message.nest(IFLA_LINKINFO, |m| {
        m.text(INFO_KIND, "bridge").nest(INFO_DATA, |m| {
            m.u32(BR_FORWARD_DELAY, 0);
        });
    });
    socket.request(message)
}

/// Deletes a link.
pub(crate) fn delete_link(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    socket.request(Message::new(rtm::DELLINK, 0, &header(0, index, 0, 0)))
}

/// One end of a pair of virtual cables.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// MAC address; None: the kernel's choice.
    pub mac: Option<[u8; 6]>,
}

/// The request that makes a veth pair: `host` here and up, as a port of `master` if given; `peer` in the namespace
/// `netns`, down.
pub(crate) fn veth_message(
    host: VethEnd<'_>,
    peer: VethEnd<'_>,
    netns: BorrowedFd<'_>,
    mtu: u32,
    master: Option<u32>,
) -> Message {
    let mut message = Message::new(rtm::NEWLINK, flag::CREATE | flag::EXCL, &header(0, 0, IFF_UP, IFF_UP));
    let end = |m: &mut Message, end: VethEnd<'_>| {
        m.text(IFLA_IFNAME, end.name).u32(IFLA_MTU, mtu);
        if let Some(mac) = end.mac {
            m.bytes(IFLA_ADDRESS, &mac);
        }
    };
    end(&mut message, host);
    if let Some(master) = master {
        message.u32(IFLA_MASTER, master);
    }
    message.nest(IFLA_LINKINFO, |m| {
        m.text(INFO_KIND, "veth").nest(INFO_DATA, |m| {
            m.nest(VETH_PEER, |m| {
                m.raw(&header(0, 0, 0, 0));
                end(m, peer);
                m.u32(IFLA_NET_NS_FD, netns.as_raw_fd().cast_unsigned());
            });
        });
    });
    message
}

/// Writes the alias of a link.
pub(crate) fn set_alias(socket: &mut Socket, index: u32, alias: &str) -> Result<(), NetlinkError> {
    let mut message = Message::new(rtm::NEWLINK, 0, &header(0, index, 0, 0));
    message.text(IFLA_IFALIAS, alias);
    socket.request(message)
}

/// Makes the node's end of a running pod a port of a bridge again, as its alias says what kind of one.
pub(crate) fn take_pod_back(socket: &mut Socket, pod: &LinkInfo, bridge: u32) -> Result<(), NetlinkError> {
    set_link(socket, pod.index, LinkChange { master: Some(bridge), ..LinkChange::default() })?;
    let isolated = homelab_model::PodMarks::of_alias(&pod.alias).isolated;
    socket.request(port_message(&pod.name, &pod.alias, true, isolated))
}

/// The request that writes the alias and the flags of the bridge port `name`.
pub(crate) fn port_message(name: &str, alias: &str, hairpin: bool, isolated: bool) -> Message {
    let mut message = Message::new(rtm::NEWLINK, 0, &header(0, 0, 0, 0));
    message.text(IFLA_IFNAME, name).text(IFLA_IFALIAS, alias);
    if hairpin || isolated {
        message.nest(IFLA_LINKINFO, |m| {
            m.text(INFO_SLAVE_KIND, "bridge").nest(INFO_SLAVE_DATA, |m| {
                m.u8(BRPORT_MODE, u8::from(hairpin)).u8(BRPORT_ISOLATED, u8::from(isolated));
            });
        });
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_as_written() {
        let mac = parse_mac("02:00:ab:cd:ef:01").unwrap();
        assert_eq!(mac_text(&mac), "02:00:ab:cd:ef:01");
        for wrong in
            ["", "02:00", "02:00:ab:cd:ef:01:02", "2:0:ab:cd:ef:1", "02:00:ab:cd:ef:zz", "+2:00:ab:cd:ef:01"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
