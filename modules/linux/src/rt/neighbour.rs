//! Neighbours and forwarding entries (`linux/neighbour.h`): the kernel keeps both as neighbours.

use std::net::IpAddr;

use homelab_model::ours;

use super::link::mac_text;
use crate::netlink::{
    AF_BRIDGE, Attributes, Message, NetlinkError, Socket, family, flag, ip, ne_u16, ne_u32, rtm,
};

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

/// A neighbour, or a forwarding entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NeighbourInfo {
    pub(crate) index: u32,
    /// The neighbour's address; of a forwarding entry the VTEP that the frames go to.
    pub(crate) address: Option<IpAddr>,
    /// MAC address, lower-case; empty where it is unknown.
    pub(crate) mac: String,
    pub(crate) permanent: bool,
    /// A forwarding entry with a UDP port, VNI or link of its own.
    pub(crate) special: bool,
}

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; NDMSG] {
    let mut header = [0; NDMSG];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn read(body: &[u8]) -> Option<NeighbourInfo> {
    let mut entry = NeighbourInfo {
        index: body.get(4..).and_then(ne_u32)?,
        address: None,
        mac: String::new(),
        permanent: body.get(8..).and_then(ne_u16)? & NUD_PERMANENT != 0,
        special: false,
    };
    for (kind, value) in Attributes::after(body, NDMSG) {
        match kind {
            NDA_DST => entry.address = ip(value),
            NDA_LLADDR => entry.mac = mac_text(value),
            NDA_PORT | NDA_VNI | NDA_IFINDEX => entry.special = true,
            _ => {}
        }
    }
    Some(entry)
}

/// Neighbours of the link `index`, both families.
pub(crate) fn neighbours(socket: &mut Socket, index: u32) -> Result<Vec<NeighbourInfo>, NetlinkError> {
    let mut message = Message::new(rtm::GETNEIGH, 0, &header(0, 0, 0, 0));
    message.u32(NDA_IFINDEX, index);
    socket.dump(message, read)
}

/// Forwarding entries of the VXLAN link `index`.
pub(crate) fn fdb(socket: &mut Socket, index: u32) -> Result<Vec<NeighbourInfo>, NetlinkError> {
    socket.dump(Message::new(rtm::GETNEIGH, 0, &header(AF_BRIDGE, index, 0, 0)), read)
}

/// Writes a permanent neighbour.
pub(crate) fn add_neighbour(
    socket: &mut Socket,
    index: u32,
    address: IpAddr,
    mac: [u8; 6],
) -> Result<(), NetlinkError> {
    let header = header(family(address), index, NUD_PERMANENT, 0);
    let mut message = Message::new(rtm::NEWNEIGH, flag::CREATE | flag::REPLACE, &header);
    message.ip(NDA_DST, address).bytes(NDA_LLADDR, &mac).u8(NDA_PROTOCOL, ours::ROUTE_PROTOCOL);
    socket.request(message)
}

/// Deletes a neighbour.
pub(crate) fn delete_neighbour(socket: &mut Socket, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
    socket.request(delete_neighbour_message(index, address))
}

/// The request of [`delete_neighbour`].
pub(crate) fn delete_neighbour_message(index: u32, address: IpAddr) -> Message {
    let mut message = Message::new(rtm::DELNEIGH, 0, &header(family(address), index, 0, 0));
    message.ip(NDA_DST, address);
    message
}

/// Writes a permanent forwarding entry of a VXLAN link.
pub(crate) fn add_fdb(
    socket: &mut Socket,
    index: u32,
    mac: [u8; 6],
    remote: IpAddr,
) -> Result<(), NetlinkError> {
    // Frames to a group go to several VTEPs, frames to one station to exactly one.
    let group = mac[0] & 1 != 0 || mac == [0; 6];
    let how = if group { flag::APPEND } else { flag::REPLACE };
    let header = header(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
    let mut message = Message::new(rtm::NEWNEIGH, flag::CREATE | how, &header);
    // NDA_PROTOCOL is not for forwarding entries (the kernel refuses it): they are known by their link.
    message.bytes(NDA_LLADDR, &mac).ip(NDA_DST, remote);
    socket.request(message)
}

/// Deletes a forwarding entry of a VXLAN link.
pub(crate) fn delete_fdb(
    socket: &mut Socket,
    index: u32,
    mac: [u8; 6],
    remote: IpAddr,
) -> Result<(), NetlinkError> {
    let mut message = Message::new(rtm::DELNEIGH, 0, &header(AF_BRIDGE, index, 0, NTF_SELF));
    message.bytes(NDA_LLADDR, &mac).ip(NDA_DST, remote);
    socket.request(message)
}
