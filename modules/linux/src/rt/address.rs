//! Addresses of links (`linux/if_addr.h`).

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::netlink::{AF_INET6, Attributes, Message, NetlinkError, Socket, family, flag, ip, ne_u32, rtm};

const IFADDRMSG: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_TARGET_NETNSID: u16 = 10;
/// `IFA_F_TENTATIVE`: duplicates are still searched for, and the address cannot be used.
const TENTATIVE: u32 = 0x40;
/// `IFA_F_NODAD`: an address that we gave out ourselves needs no search for duplicates.
const NODAD: u32 = 2;

fn header(address: IpNet, index: u32) -> [u8; IFADDRMSG] {
    let mut header = [0; IFADDRMSG];
    header[0] = family(address.addr());
    header[1] = address.prefix_len();
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn read(body: &[u8]) -> Option<(u32, IpNet)> {
    let (prefix, index) = (*body.get(1)?, body.get(4..).and_then(ne_u32)?);
    let mut found: Option<IpAddr> = None;
    for (kind, value) in Attributes::after(body, IFADDRMSG) {
        match kind {
            // On a point-to-point link IFA_ADDRESS is the other end.
            IFA_LOCAL => found = ip(value),
            IFA_ADDRESS if found.is_none() => found = ip(value),
            _ => {}
        }
    }
    // IFA_ADDRESS stands in front of IFA_LOCAL, and only IPv4 and point-to-point links have the latter.
    Some((index, IpNet::new(found?, prefix).ok()?))
}

/// All addresses (of the link with this index, if given) and the index of the link that holds each.
pub(crate) fn addresses(socket: &mut Socket, index: Option<u32>) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
    let mut header = [0; IFADDRMSG];
    header[4..8].copy_from_slice(&index.unwrap_or(0).to_ne_bytes());
    socket.dump(Message::new(rtm::GETADDR, 0, &header), read)
}

/// Addresses of the link with this index in the namespace that has this number here. Nothing, if there is no such namespace or link.
pub(crate) fn addresses_elsewhere(
    socket: &mut Socket,
    netns: u32,
    index: u32,
) -> Result<Vec<IpNet>, NetlinkError> {
    let mut header = [0; IFADDRMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(rtm::GETADDR, 0, &header);
    message.u32(IFA_TARGET_NETNSID, netns);
    match socket.dump(message, read) {
        Ok(found) => Ok(found.into_iter().map(|(_, address)| address).collect()),
        // rtnl_get_net_ns_capable: the namespace is gone; inet_dump_addr: the link is.
        Err(error) if error.is(Errno::EINVAL) || error.is(Errno::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// All addresses, each with the index of its link and whether it cannot be used yet.
pub(crate) fn addresses_with_state(socket: &mut Socket) -> Result<Vec<(u32, IpNet, bool)>, NetlinkError> {
    let read = |body: &[u8]| {
        let (index, address) = read(body)?;
        let flags = Attributes::after(body, IFADDRMSG).find(|(kind, _)| *kind == IFA_FLAGS);
        let flags = flags.and_then(|(_, value)| ne_u32(value)).unwrap_or_default();
        Some((index, address, flags & TENTATIVE != 0))
    };
    socket.dump(Message::new(rtm::GETADDR, 0, &[0; IFADDRMSG]), read)
}

/// Gives a link an address. One that it has already stays.
pub(crate) fn add_address(socket: &mut Socket, index: u32, address: IpNet) -> Result<(), NetlinkError> {
    socket.request(add_message(index, address))
}

/// The request of [`add_address`].
pub(crate) fn add_message(index: u32, address: IpNet) -> Message {
    let header = header(address, index);
    let mut message = Message::new(rtm::NEWADDR, flag::CREATE | flag::REPLACE, &header);
    message.ip(IFA_LOCAL, address.addr()).ip(IFA_ADDRESS, address.addr());
    if header[0] == AF_INET6 {
        message.u32(IFA_FLAGS, NODAD);
    }
    message
}

/// Takes an address from a link.
pub(crate) fn delete_address(socket: &mut Socket, index: u32, address: IpNet) -> Result<(), NetlinkError> {
    let mut message = Message::new(rtm::DELADDR, 0, &header(address, index));
    message.ip(IFA_LOCAL, address.addr()).ip(IFA_ADDRESS, address.addr());
    socket.request(message)
}
