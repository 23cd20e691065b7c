//! What every member tells the others of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// The state of one member. Whoever carries it may use any format of serde, one without names of fields too: no field is
/// ever left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberState {
    /// Its proxy is in place: packets to load-balancer addresses find their way.
    pub ready: bool,
    /// Is to have no addresses (`homelab cordon`), or is about to stop.
    pub cordoned: bool,
    /// Interfaces that it can announce on: up, with carrier, and none of homelab's own or of pods.
    pub interfaces: Vec<Interface>,
    /// Addresses that it should announce.
    pub holds: Vec<Hold>,
}

/// An interface of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// MAC address.
    pub mac: Mac,
    /// Its addresses with their prefix lengths: `192.168.50.11/24`, not `192.168.50.0/24`.
    pub networks: Vec<IpNet>,
}

/// An address that a member should announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hold {
    /// Address.
    pub address: IpAddr,
    /// Since when it announces it, by its clock: milliseconds since 1970. None while it does not.
    pub since_unix_ms: Option<u64>,
    /// Who has it instead, if a foreign machine does.
    pub conflict: Option<Mac>,
}

/// Members by node name.
pub type Members = BTreeMap<String, MemberState>;
