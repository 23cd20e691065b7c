//! The only crate with effects on a Linux node.

pub mod netlink;
pub mod pod;
mod rt;

pub use rt::{LinkInfo, VethEnd, VxlanInfo, mac_text, parse_mac};
