//! Routes of the main table (`linux/rtnetlink.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;

use crate::netlink::{
    AF_INET, AF_INET6, Attributes, Message, NetlinkError, Socket, family, flag, ip, ne_u32, rtm,
};

const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const TABLE_MAIN: u8 = 254;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const ONLINK: u32 = 4;
const CLONED: u32 = 0x200;
const UNICAST: u8 = 1;
const TYPES: [(u8, &str); 5] =
    [(UNICAST, "unicast"), (6, "blackhole"), (7, "unreachable"), (8, "prohibit"), (9, "throw")];

/// A route as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteInfo {
    pub(crate) destination: IpNet,
    pub(crate) metric: u32,
    pub(crate) via: Option<IpAddr>,
    /// Index of the outgoing link.
    pub(crate) link: Option<u32>,
    pub(crate) onlink: bool,
    pub(crate) source: Option<IpAddr>,
    /// `rtm_type` in words; `multipath` where there are several next hops.
    pub(crate) kind: &'static str,
    pub(crate) protocol: u8,
}

fn header(destination: IpNet, protocol: u8, scope: u8, kind: u8, flags: u32) -> [u8; RTMSG] {
    let mut header = [0; RTMSG];
    header[0] = family(destination.addr());
    header[1] = destination.prefix_len();
    header[4] = TABLE_MAIN;
    header[5] = protocol;
    header[6] = scope;
    header[7] = kind;
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn read(body: &[u8], any_table: bool) -> Option<RouteInfo> {
    let &[family, prefix, _, _, table, protocol, _, kind, ..] = body else { return None };
    let flags = body.get(8..).and_then(ne_u32)?;
    let mut address: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    if flags & CLONED != 0 || table != TABLE_MAIN && !any_table {
        return None;
    }
    let mut route = RouteInfo {
        destination: IpNet::from(address),
        metric: 0,
        via: None,
        link: None,
        onlink: flags & ONLINK != 0,
        source: None,
        kind: TYPES.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)?,
        protocol,
    };
    for (kind, value) in Attributes::after(body, RTMSG) {
        match kind {
            RTA_DST => address = ip(value)?,
            RTA_OIF => route.link = ne_u32(value),
            RTA_GATEWAY => route.via = ip(value),
            // An IPv6 next hop of an IPv4 route: two bytes of family in front.
            RTA_VIA => route.via = value.get(2..).and_then(ip),
            RTA_PRIORITY => route.metric = ne_u32(value)?,
            RTA_PREFSRC => route.source = ip(value),
            RTA_MULTIPATH => route.kind = "multipath",
            _ => {}
        }
    }
    // Unreachable IPv6 routes show the loopback link, which nobody chose.
    if !matches!(route.kind, "unicast" | "multipath") {
        route.link = None;
    }
    route.destination = IpNet::new(address, prefix).ok()?;
    Some(route)
}

/// What to read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RouteFilter {
    /// Only routes with this `rtm_protocol`.
    pub(crate) protocol: Option<u8>,
    /// Only routes through the link with this index.
    pub(crate) link: Option<u32>,
    /// Also routes of other tables than the main one.
    pub(crate) any_table: bool,
}

/// Routes of the main table, or of all, both families.
pub(crate) fn routes(socket: &mut Socket, filter: RouteFilter) -> Result<Vec<RouteInfo>, NetlinkError> {
    let mut found = Vec::new();
    for everything in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
        let mut header = header(everything, filter.protocol.unwrap_or(0), 0, 0, 0);
        if filter.any_table {
            header[4] = 0;
        }
        let mut message = Message::new(rtm::GETROUTE, 0, &header);
        if !filter.any_table {
            message.u32(RTA_TABLE, u32::from(TABLE_MAIN));
        }
        if let Some(link) = filter.link {
            message.u32(RTA_OIF, link);
        }
        match socket.dump(message, |body| read(body, filter.any_table)) {
            Ok(routes) => found.extend(routes),
            // A namespace that never had a route has no main table.
            Err(error) if error.is(Errno::ENOENT) || error.is(Errno::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A route to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRoute<'a> {
    pub(crate) destination: IpNet,
    pub(crate) metric: u32,
    pub(crate) via: Option<IpAddr>,
    pub(crate) link: Option<u32>,
    pub(crate) onlink: bool,
    pub(crate) source: Option<IpAddr>,
    /// `unicast`, `unreachable` or `blackhole`.
    pub(crate) kind: &'a str,
    pub(crate) protocol: u8,
}

/// Writes a route: in the place of the one with its destination and metric if `replace`, else only where there is
/// none (`EEXIST`).
pub(crate) fn add_route(
    socket: &mut Socket,
    route: &NewRoute<'_>,
    replace: bool,
) -> Result<(), NetlinkError> {
    socket.request(add_message(route, replace)?)
}

/// The request of [`add_route`].
pub(crate) fn add_message(route: &NewRoute<'_>, replace: bool) -> Result<Message, NetlinkError> {
    let kind =
        TYPES.iter().find(|(_, name)| *name == route.kind).map(|(number, _)| *number).ok_or_else(|| {
            NetlinkError::Refused { code: Errno::EINVAL, message: format!("no route type {}", route.kind) }
        })?;
    let scope = if kind == UNICAST && route.via.is_none() { SCOPE_LINK } else { 0 };
    let flags = if route.onlink { ONLINK } else { 0 };
    let header = header(route.destination, route.protocol, scope, kind, flags);
    let how = if replace { flag::REPLACE } else { flag::EXCL };
    let mut message = Message::new(rtm::NEWROUTE, flag::CREATE | how, &header);
    message.ip(RTA_DST, route.destination.addr());
    if route.metric != 0 {
        message.u32(RTA_PRIORITY, route.metric);
    }
    if let Some(via) = route.via {
        if via.is_ipv4() == route.destination.addr().is_ipv4() {
            message.ip(RTA_GATEWAY, via);
        } else {
            let mut value = u16::from(family(via)).to_ne_bytes().to_vec();
            value.extend(crate::netlink::ip_bytes(via));
            message.bytes(RTA_VIA, &value);
        }
    }
    if let Some(link) = route.link {
        message.u32(RTA_OIF, link);
    }
    if let Some(source) = route.source {
        message.ip(RTA_PREFSRC, source);
    }
    Ok(message)
}

/// Deletes the route with this destination, metric and protocol number.
pub(crate) fn delete_route(
    socket: &mut Socket,
    destination: IpNet,
    metric: u32,
    protocol: u8,
) -> Result<(), NetlinkError> {
    let header = header(destination, protocol, SCOPE_NOWHERE, 0, 0);
    let mut message = Message::new(rtm::DELROUTE, 0, &header);
    message.ip(RTA_DST, destination.addr());
    if metric != 0 {
        message.u32(RTA_PRIORITY, metric);
    }
    socket.request(message)
}
