//! Services as a source declares them: what it leaves open is still open.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Labels;
use crate::service::{Ingress, Service};

/// A service of homelab.yaml or of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declared {
    /// What the source says. Its `cluster_ips` and its `load_balancer` (`loadBalancerIP`) are those that are fixed; its
    /// ports' `node_port` and its `health_check_node_port` are None where they are to be chosen (or not to be had); its
    /// `endpoints` are those whose address is known.
    pub service: Service,
    /// Address families that it is to have cluster addresses of, in order (`ipFamilies`); empty: the first family of
    /// the service ranges.
    pub families: Vec<Family>,
    /// Whether its ports are to have node ports (`allocateLoadBalancerNodePorts`, true for NodePort).
    pub node_ports: bool,
    /// Containers whose addresses are endpoints.
    pub containers: Vec<ContainerEndpoint>,
    /// What it asks of the pools beside addresses.
    #[serde(default, skip_serializing_if = "Request::is_empty")]
    pub request: Request,
}

/// What a service asks of the load-balancer pools beside the addresses that it fixes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Pool that its addresses are to be of (`metallb.io/address-pool`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Services with the same key may share an address (`metallb.io/allow-shared-ip`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing_key: Option<String>,
    /// `spec.selector`: with `externalTrafficPolicy: Local` only services with the same one share an address.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub selector: Labels,
    /// `ipFamilyPolicy: RequireDualStack`: addresses of both families, or none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_dual_stack: bool,
    /// Addresses that its status has: remembered, where the nodes remember none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Ingress>,
}

impl Request {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Request::default()
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::IPv4 } else { Family::IPv6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::IPv4 => "IPv4",
            Family::IPv6 => "IPv6",
        })
    }
}

/// An endpoint that is known by its node and container: all addresses of its interface that the CNI plugin made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerEndpoint {
    /// Node name.
    pub node: String,
    /// Container id, or the name that the runtime gave as `K8S_POD_NAME`.
    pub container: String,
    /// Interface inside the container.
    pub interface: String,
    /// The endpoint as it will be: everything but its address is right.
    pub endpoint: crate::service::Endpoint,
}
