//! What a node says of load-balancer addresses and of the other nodes' agents.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Holder;

/// What a node answers when it is asked about load-balancer addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbNode {
    /// The node's clock, milliseconds since 1970: ages of what its agent says are told by it.
    pub time_unix_ms: u64,
    /// Who cordoned it, if it is cordoned. Without an agent this holds from its next start.
    pub cordoned: Option<Holder>,
    /// Its configuration tells it to announce addresses.
    pub told: bool,
    /// Its agent runs.
    pub agent: bool,
    /// What its running agent says; None: nothing, or nothing yet.
    pub report: Option<LbReport>,
}

impl LbNode {
    /// Whether the agent shows that the node is cordoned, or that it is not. None if it says nothing about it.
    pub fn shows_cordoned(&self) -> Option<bool> {
        let report = self.report.as_ref()?;
        report.member(&report.node).map(|own| own.cordoned)
    }
}

/// How one node sees load-balancer addresses. Times are milliseconds since 1970 by its clock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbReport {
    /// Node name.
    pub node: String,
    /// When it was made.
    pub time_unix_ms: u64,
    /// Whether the node takes part in elections yet: it has heard of the others, or waited for them.
    pub settled: bool,
    /// All nodes, this one among them, by name.
    pub members: Vec<LbMember>,
    /// All addresses, sorted.
    pub addresses: Vec<LbAddress>,
    /// Sessions with routers; None: no BGP on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<crate::LbBgp>,
}

impl LbReport {
    /// The node of this name, as the reporting one sees it.
    pub fn member(&self, name: &str) -> Option<&LbMember> {
        self.members.iter().find(|member| member.name == name)
    }
}

/// A node of the cluster, as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbMember {
    /// Node name.
    pub name: String,
    /// How it stands.
    pub standing: LbStanding,
    /// Since when; None for the node itself.
    pub since_unix_ms: Option<u64>,
    /// Its services are in place.
    pub ready: bool,
    /// It is to have no addresses.
    pub cordoned: bool,
    /// Interfaces that it can announce on, with their MAC addresses.
    pub interfaces: Vec<(String, String)>,
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LbStanding {
    /// The node that reports.
    Itself,
    /// Never a member since the reporting agent's start.
    Unknown,
    /// Member.
    Alive,
    /// Silent for a moment.
    Suspect,
    /// Dead, or out of reach.
    Down,
    /// Left in order.
    Left,
}

impl LbStanding {
    /// Lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            LbStanding::Itself => "itself",
            LbStanding::Unknown => "unknown",
            LbStanding::Alive => "alive",
            LbStanding::Suspect => "suspect",
            LbStanding::Down => "down",
            LbStanding::Left => "left",
        }
    }

    /// Whether it is a member.
    pub fn is_member(self) -> bool {
        matches!(self, LbStanding::Itself | LbStanding::Alive | LbStanding::Suspect)
    }
}

/// A load-balancer address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbAddress {
    /// Address.
    pub address: IpAddr,
    /// The services that share it, `namespace/name`.
    pub services: Vec<String>,
    /// Its pool; None: no pool holds it.
    pub pool: Option<String>,
    /// Node that has it by this node's election.
    pub owner: Option<String>,
    /// Since when, as far as this node knows.
    pub since_unix_ms: Option<u64>,
    /// How often its owner changed since the reporting agent's start.
    pub moves: u64,
    /// Who has it instead, by the owner's word: the MAC address of a foreign machine.
    pub conflict: Option<String>,
    /// Where it stands on the reporting node's own interfaces, if it is the owner.
    pub interfaces: Vec<LbInterface>,
    /// Nodes that do not have it and cannot, and why.
    pub unfit: Vec<(String, LbUnfit)>,
}

impl LbAddress {
    /// Where it stands, in one word: the best of the reporting node's interfaces if it is the owner.
    pub fn state(&self) -> LbWhere {
        let on = |state| self.interfaces.iter().any(|interface| interface.state == state);
        match (&self.owner, &self.conflict) {
            (None, _) => LbWhere::Nobody,
            (Some(_), Some(_)) => LbWhere::Conflict,
            _ if on(LbState::Announced) => LbWhere::Announced,
            _ if on(LbState::Probing) => LbWhere::Probing,
            _ if on(LbState::Conflict) => LbWhere::Conflict,
            _ if on(LbState::Down) => LbWhere::Down,
            _ => LbWhere::Elsewhere,
        }
    }
}

/// Where a load-balancer address is, as one node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LbWhere {
    /// Announced by this node.
    Announced,
    /// Being probed by this node.
    Probing,
    /// Its owner, this node or another, says that a foreign machine has it.
    Conflict,
    /// This node's, which has no interface for it now.
    Down,
    /// Another node's.
    Elsewhere,
    /// No node can have it.
    Nobody,
}

impl LbWhere {
    /// Lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            LbWhere::Announced => "announced",
            LbWhere::Probing => "probing",
            LbWhere::Conflict => "conflict",
            LbWhere::Down => "down",
            LbWhere::Elsewhere => "elsewhere",
            LbWhere::Nobody => "nobody",
        }
    }
}

/// An address on an interface of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbInterface {
    /// Interface.
    pub name: String,
    /// Its MAC address, if it is there.
    pub mac: Option<String>,
    /// Where the address stands.
    pub state: LbState,
    /// Since when.
    pub since_unix_ms: u64,
    /// Requests and solicitations answered.
    pub answered: u64,
    /// Announcements sent.
    pub announcements: u64,
    /// Foreign claims.
    pub claims: u64,
}

/// Where an address stands on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LbState {
    /// The interface is not there, or has no carrier.
    Down,
    /// It is asked whether anybody has it.
    Probing,
    /// Announced.
    Announced,
    /// A foreign machine has it.
    Conflict,
}

/// Why a node cannot have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LbUnfit {
    /// No advertisement is for the address's pool and its services.
    NoAdvertisement,
    /// The node has the label [`crate::LABEL_EXCLUDE`].
    ExcludeLabel,
    /// Advertisements are for other nodes.
    NotSelected,
    /// A service has `externalTrafficPolicy: Local` and no endpoint there.
    NoLocalEndpoint,
    /// Services that share the address are to be announced on different interfaces.
    NoCommonInterface,
    /// It is no member now, or has not said anything of itself yet.
    Away,
    /// Its services are not in place.
    NotReady,
    /// It is cordoned or about to stop.
    Cordoned,
    /// It has no interface for the address.
    NoInterface,
}

/// A machine that answers for an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scanned {
    /// Address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: String,
    /// The interface on which the asking node heard it.
    pub interface: String,
}
