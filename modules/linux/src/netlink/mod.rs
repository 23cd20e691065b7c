//! A small synchronous netlink: messages written and read attribute by attribute, and nothing decoded that is
//! not asked for, so that an attribute of a newer kernel cannot make a whole dump unreadable.

mod codec;
mod events;
mod forward;
mod genl;
mod socket;
mod transaction;

pub use codec::{Attributes, Message};
pub(crate) use codec::{ip, ip_bytes, ne_u16, ne_u32, text};
pub use events::{Events, Happened};
pub(crate) use forward::{Foreign, foreign};
pub(crate) use genl::Ethtool;
pub(crate) use socket::{NFT, nfnetlink, nft_generation, nft_table};
pub use socket::{NetlinkError, Socket};
pub(crate) use transaction::Refusal;

/// Message types of rtnetlink (`linux/rtnetlink.h`).
pub(crate) mod rtm {
    pub(crate) const NEWLINK: u16 = 16;
    pub(crate) const DELLINK: u16 = 17;
    pub(crate) const GETLINK: u16 = 18;
    pub(crate) const SETLINK: u16 = 19;
    pub(crate) const NEWADDR: u16 = 20;
    pub(crate) const DELADDR: u16 = 21;
    pub(crate) const GETADDR: u16 = 22;
    pub(crate) const NEWROUTE: u16 = 24;
    pub(crate) const DELROUTE: u16 = 25;
    pub(crate) const GETROUTE: u16 = 26;
    pub(crate) const NEWNEIGH: u16 = 28;
    pub(crate) const DELNEIGH: u16 = 29;
    pub(crate) const GETNEIGH: u16 = 30;
    pub(crate) const NEWQDISC: u16 = 36;
    pub(crate) const GETQDISC: u16 = 38;
    pub(crate) const NEWNETCONF: u16 = 80;
}

/// Flags of a netlink header (`linux/netlink.h`).
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const ACK: u16 = 4;
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const ACK_TLVS: u16 = 0x200;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Address families.
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_BRIDGE: u8 = 7;
pub(crate) const AF_INET6: u8 = 10;

/// The family of an address.
pub(crate) fn family(address: std::net::IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}
