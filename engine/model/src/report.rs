//! What a node says of its services: what it holds of each, and what it does with a packet.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::service::{Affinity, Policy, Protocol, Type};

/// A service as one node has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReport {
    /// `namespace/name`; empty for elements that name no service.
    pub name: String,
    /// What the node was told of it, as [`crate::ours::NODE_SPEC`] says; None: nothing.
    pub told: Option<ToldService>,
    /// Where its packets go, as the kernel has it, sorted.
    pub frontends: Vec<FrontendReport>,
    /// Its containers that are no endpoints now.
    #[serde(default)]
    pub absent: Vec<AbsentContainer>,
    /// Elements that the kernel should hold and does not.
    pub missing: Vec<String>,
    /// Elements that the kernel holds and should not.
    pub extra: Vec<String>,
}

impl ServiceReport {
    /// Whether the kernel holds what the node was told.
    pub fn agrees(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty()
    }
}

/// A container that is no endpoint of its service now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AbsentContainer {
    /// Node that it is to run on.
    pub node: String,
    /// Container, as the service names it.
    pub container: String,
    /// Why.
    pub why: crate::Absence,
}

/// What a node was told of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldService {
    /// Who reaches it.
    pub r#type: Type,
    /// Policy for cluster addresses.
    pub internal_traffic_policy: Policy,
    /// Policy for node ports, load-balancer addresses and external addresses.
    pub external_traffic_policy: Policy,
    /// Whether a client stays with its endpoint.
    pub session_affinity: Affinity,
    /// Ports.
    pub ports: Vec<ToldPort>,
    /// Endpoint addresses of the service's families that take new connections.
    pub ready: usize,
    /// All endpoint addresses of these families.
    pub total: usize,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldPort {
    /// Name; empty where there is only one.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the service's addresses.
    pub port: u16,
    /// Port of every node.
    pub node_port: Option<u16>,
}

/// An address, protocol and port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendReport {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// What kind of address it is; None: the node was told of no such address.
    pub kind: Option<FrontendKind>,
    /// What becomes of its packets.
    pub state: FrontendState,
    /// Its traffic policy.
    pub policy: Policy,
    /// How long a client stays with its endpoint, seconds; None: it does not.
    pub affinity: Option<u32>,
    /// Endpoints, sorted.
    pub endpoints: Vec<EndpointReport>,
}

/// What an address of a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// A cluster address.
    Cluster,
    /// The node's own address, at a node port.
    NodePort,
    /// One of `externalIPs`.
    External,
    /// A load-balancer address.
    LoadBalancer,
}

/// What becomes of the packets of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendState {
    /// They go to an endpoint.
    Served,
    /// There are no endpoints: they are refused.
    Refused,
    /// There are no endpoints on this node, and the policy wants them: they are dropped. Under an external policy,
    /// those of pods and of the node itself go to an endpoint nevertheless.
    Dropped,
    /// The kernel knows nothing of it.
    Absent,
}

/// An endpoint of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    /// Address and port.
    pub address: SocketAddr,
    /// Only packets of pods and of the node itself go there.
    pub internal: bool,
    /// Connections by this address that the node's kernel keeps track of.
    pub connections: u64,
}

/// The first packet of a connection, to be traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TracePacket {
    /// Who sends it.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// What a node does with a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceReport {
    /// The service whose address and port it is sent to.
    pub service: Option<String>,
    /// What becomes of it.
    pub outcome: TraceOutcome,
    /// The endpoint that the kernel remembers for this client.
    pub remembered: Option<SocketAddr>,
    /// Rules that the packet meets, in order; after a choice among endpoints, as it goes on to the first.
    pub steps: Vec<TraceStep>,
    /// What makes this less than certain.
    pub warnings: Vec<String>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is")]
pub enum TraceOutcome {
    /// No rule of ours changes it.
    Untouched,
    /// Dropped without a word.
    Dropped,
    /// The sender is told that nobody answers.
    Refused,
    /// Goes to one of these endpoints.
    Translated {
        /// The endpoints, sorted.
        endpoints: Vec<TraceEndpoint>,
    },
}

/// An endpoint that a packet may go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceEndpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether the node's own address becomes the source.
    pub masqueraded: bool,
}

/// A rule that a packet meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceStep {
    /// Chain.
    pub chain: String,
    /// The rule as nft writes it.
    pub rule: String,
    /// Whether it matches.
    pub matched: bool,
    /// Why it is there.
    pub why: String,
}
