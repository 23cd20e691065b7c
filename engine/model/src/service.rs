//! Services and their endpoints as the proxy sees them, whatever their source: Kubernetes' own names and defaults
//! (`core/v1` Service, `discovery.k8s.io/v1` EndpointSlice), flattened to what decides where a packet goes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A service with its endpoints. Headless and ExternalName services have no addresses and are none of the proxy's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels, for the selectors of announcements.
    #[serde(default, skip_serializing_if = "is_default")]
    pub labels: crate::Labels,
    /// Who reaches it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub r#type: Type,
    /// Cluster addresses, one or one per family.
    #[serde(default, skip_serializing_if = "is_default", rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that somebody else routes to the nodes.
    #[serde(default, skip_serializing_if = "is_default", rename = "externalIPs")]
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub load_balancer: Vec<Ingress>,
    /// Sources that may use the load-balancer addresses; empty: all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// Policy for node ports, load-balancer addresses and external addresses.
    #[serde(default, skip_serializing_if = "is_default")]
    pub external_traffic_policy: Policy,
    /// Policy for cluster addresses.
    #[serde(default, skip_serializing_if = "is_default")]
    pub internal_traffic_policy: Policy,
    /// Whether a client stays with its endpoint.
    #[serde(default, skip_serializing_if = "is_default")]
    pub session_affinity: Affinity,
    /// How long after its last new connection, seconds, 1..=86400.
    #[serde(default = "default_affinity_timeout", skip_serializing_if = "is_default_timeout")]
    pub session_affinity_timeout_seconds: u32,
    /// As written; what decides are the hints of the endpoints.
    #[serde(default, skip_serializing_if = "is_default")]
    pub traffic_distribution: Option<String>,
    /// Port of the health check for load balancers, with an external policy of Local.
    #[serde(default, skip_serializing_if = "is_default")]
    pub health_check_node_port: Option<u16>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Endpoints.
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Type {
    /// By its cluster addresses.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Also by a port of every node.
    NodePort,
    /// Also by addresses on the LAN.
    LoadBalancer,
}

/// Traffic policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Policy {
    /// Endpoints of all nodes.
    #[default]
    Cluster,
    /// Endpoints of the node that handles the packet.
    Local,
}

/// `spec.sessionAffinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Affinity {
    /// Every connection is on its own.
    #[default]
    None,
    /// By the client's address.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

/// A load-balancer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ingress {
    /// Address.
    pub ip: IpAddr,
    /// Whether nodes take its packets, or a proxy in front of them does (KEP-1860).
    #[serde(default, skip_serializing_if = "is_default")]
    pub ip_mode: IpMode,
}

/// `ipMode` of a load-balancer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IpMode {
    /// Packets arrive at nodes with this destination.
    #[default]
    #[serde(rename = "VIP")]
    Vip,
    /// Something in front of the nodes ends connections: nodes do not handle the address.
    Proxy,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Name; empty where there is only one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub name: String,
    /// Protocol.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Port of the service's addresses.
    pub port: u16,
    /// Port of every node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub node_port: Option<u16>,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// Number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Lower-case name, as in nft.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// Something that answers for a service: one address of one EndpointSlice endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Node that it runs on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub node: Option<String>,
    /// Zone that it runs in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub zone: Option<String>,
    /// Takes new connections, and is not going away.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub ready: bool,
    /// Answers, even if it is going away.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub serving: bool,
    /// Is going away.
    #[serde(default, skip_serializing_if = "is_default")]
    pub terminating: bool,
    /// `hints.forZones`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub for_zones: Vec<String>,
    /// `hints.forNodes`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub for_nodes: Vec<String>,
    /// Port numbers by the service's port names.
    pub ports: Numbers,
}

/// Port numbers by name. There are as many of them as endpoints, and nearly all hold one or two: a map of its own for
/// each would take ten times as much memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u16>", into = "BTreeMap<String, u16>")]
pub struct Numbers(Arc<[(Box<str>, u16)]>);

impl Numbers {
    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// The number of a name.
    pub fn get(&self, name: &str) -> Option<u16> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, number)| *number)
    }
}

impl<T: Into<Box<str>>> FromIterator<(T, u16)> for Numbers {
    /// In this order; of one name the first counts.
    fn from_iter<I: IntoIterator<Item = (T, u16)>>(numbers: I) -> Numbers {
        Numbers(numbers.into_iter().map(|(name, number)| (name.into(), number)).collect())
    }
}

impl From<BTreeMap<String, u16>> for Numbers {
    fn from(numbers: BTreeMap<String, u16>) -> Numbers {
        numbers.into_iter().collect()
    }
}

impl From<Numbers> for BTreeMap<String, u16> {
    fn from(numbers: Numbers) -> BTreeMap<String, u16> {
        numbers.0.iter().map(|(name, number)| (name.to_string(), *number)).collect()
    }
}

impl Endpoint {
    /// Gives it the hints that the EndpointSlice controller would, for a service with this `trafficDistribution`
    /// (KEP-4444, KEP-3015): only while it is ready, and only where its node is known. Hints that it has stay.
    pub fn hint(&mut self, distribution: Option<&str>) {
        let hinted = !self.for_zones.is_empty() || !self.for_nodes.is_empty();
        if distribution.is_none() || hinted || !self.ready || self.node.is_none() {
            return;
        }
        self.for_zones.extend(self.zone.clone());
        if distribution == Some("PreferSameNode") {
            self.for_nodes.extend(self.node.clone());
        }
    }
}

fn default_affinity_timeout() -> u32 {
    10800
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_default_timeout(value: &u32) -> bool {
    *value == default_affinity_timeout()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
