//! The cluster as the user describes it, after defaults. `homelab-config` makes it from `homelab.yaml`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::lb::effective_labels;
use crate::service::Service;
use crate::{
    BgpSpec, Declared, Family, KubernetesSettings, L2Advertisement, Labels, PodOptions, Selector, SpeakerSpec,
};

/// A whole cluster network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Cluster name: a DNS label.
    pub name: String,
    /// Nodes in the order of the file.
    pub nodes: Vec<Node>,
    /// Pod and service ranges and the tunnel.
    pub network: Network,
    /// Load-balancer pools.
    pub load_balancer: LoadBalancer,
    /// Services of the file.
    pub services: Vec<Declared>,
    /// Kubernetes manifests with further services: paths as the file writes them.
    pub manifests: Vec<String>,
    /// The agent of every node.
    pub agent: AgentSettings,
    /// The Kubernetes cluster; None: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesSettings>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Name: a DNS label.
    pub name: String,
    /// Its address on the LAN, IPv4 or IPv6: where its VTEP listens, and where SSH connects unless `ssh.host`
    /// says otherwise.
    pub address: IpAddr,
    /// Its second LAN address, of the other family, in a dual-stack cluster.
    pub address6: Option<IpAddr>,
    /// How to reach it; the file's defaults and the node's own block, merged.
    pub ssh: SshSettings,
    /// Pod ranges that the file fixes for this node (empty: allocate), at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// LAN interface that the file fixes (None: the one that holds `address`).
    pub interface: Option<String>,
    /// Free label, e.g. `control-plane`.
    pub role: Option<String>,
    /// Zone that it is in (`topology.kubernetes.io/zone`).
    pub zone: Option<String>,
    /// Labels of the file; see [`Node::effective_labels`].
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl Node {
    /// The labels that selectors see: those of the file, and those that Kubernetes gives every node.
    pub fn effective_labels(&self) -> Labels {
        effective_labels(&self.labels, &self.name, self.zone.as_deref())
    }
}

/// How to reach a node. What is None is left to the user's `~/.ssh/config` and then to SSH's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SshSettings {
    /// Host name, address or `Host` alias; None: the node's address.
    pub host: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// TCP port.
    pub port: Option<u16>,
    /// Private key file; a leading `~/` is the home directory.
    pub identity: Option<String>,
    /// ProxyJump: `[user@]host[:port][,...]`.
    pub jump: Option<String>,
    /// Whether to become root by `sudo` (None: when the user is not root).
    pub r#become: Option<bool>,
}

/// Ranges and tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Pod ranges: one, or one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Prefix length of a node's part, per entry of `pod_cidrs`.
    pub node_prefixes: Vec<u8>,
    /// Service ranges: one, or one per family.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_port_range: (u16, u16),
    /// Addresses of nodes that answer on node ports.
    pub node_port_addresses: Vec<IpNet>,
    /// Whether all traffic to cluster addresses is masqueraded, that of pods too.
    pub masquerade_all: bool,
    /// What bridges let pass of what pods send.
    #[serde(skip_serializing_if = "PodOptions::is_default")]
    pub pods: PodOptions,
    /// The tunnel.
    pub vxlan: Vxlan,
}

/// The tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Vxlan {
    /// VXLAN network identifier, 1..=16777215.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Link MTU.
    pub mtu: Mtu,
    /// Link name, at most 15 bytes.
    pub device: String,
    /// Transmit checksum offload of the tunnel link: None decides by the kernel's and the driver's known faults.
    pub checksum_offload: Option<bool>,
}

/// An MTU as the file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mtu {
    /// The smallest MTU of all nodes' LAN interfaces less the encapsulation.
    Auto,
    /// Bytes.
    Bytes(u32),
}

/// Load-balancer settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// Pools in the order of the file.
    pub pools: Vec<Pool>,
    /// Where addresses of the pools are announced.
    pub l2_advertisements: Vec<L2Advertisement>,
    /// UDP port on which the speakers of the nodes talk with each other.
    pub port: u16,
    /// Routers that are told of the addresses; None: no BGP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpSettings>,
    /// Addresses that services outside of the file have, with who has them: those of a Kubernetes API. No part of the file.
    #[serde(skip)]
    pub taken: BTreeMap<IpAddr, String>,
}

/// What the file says of BGP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpSettings {
    /// What all agents are told.
    #[serde(flatten)]
    pub spec: BgpSpec,
    /// Files with the passwords of peers, by the peers' names: as the file says them, relative to it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub password_files: BTreeMap<String, String>,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        LoadBalancer {
            pools: Vec::new(),
            l2_advertisements: Vec::new(),
            port: SpeakerSpec::PORT,
            bgp: None,
            taken: BTreeMap::new(),
        }
    }
}

/// A pool of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<PoolRange>,
    /// Whether services that ask for no pool get addresses of this one.
    pub auto_assign: bool,
    /// Leaves out .0 and .255 of IPv4 ranges.
    pub avoid_buggy_ips: bool,
    /// Services that it is for; None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Services that a pool is for, and its rank among the pools (MetalLB's `serviceAllocation`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// The lowest number is asked first; 0 is no number, and comes last.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// Namespaces that it is for; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Services that it is for: those that any of the selectors matches; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_selectors: Vec<Selector>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Pool {
    /// Whether it can give this address.
    pub fn holds(&self, ip: IpAddr) -> bool {
        let inside = |range: &PoolRange| {
            Family::of(range.first) == Family::of(ip) && range.first <= ip && ip <= range.last
        };
        !(self.avoid_buggy_ips && is_buggy(ip)) && self.addresses.iter().any(inside)
    }

    /// Whether it is for certain services only. They then ask it before the pools that are for all.
    pub fn is_pinned(&self) -> bool {
        self.service_allocation
            .as_ref()
            .is_some_and(|to| !to.namespaces.is_empty() || !to.service_selectors.is_empty())
    }

    /// Whether it is for this service.
    pub fn is_for(&self, service: &Service) -> bool {
        self.service_allocation.as_ref().is_none_or(|to| {
            (to.namespaces.is_empty() || to.namespaces.contains(&service.namespace))
                && Selector::any(&to.service_selectors, &service.labels)
        })
    }
}

/// Addresses that some old routers take for those of a network or of a broadcast.
pub(crate) fn is_buggy(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolRange {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
}

impl PoolRange {
    /// Number of its addresses; 0 if the last comes before the first or is of another family. `u128::MAX` stands for all of
    /// IPv6, too.
    pub fn count(&self) -> u128 {
        let offset = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                u128::from(u32::from(last)).checked_sub(u32::from(first).into())
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => u128::from(last).checked_sub(first.into()),
            _ => None,
        };
        offset.map_or(0, |offset| offset.saturating_add(1))
    }

    /// Its addresses in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let first = self.first;
        (0..self.count()).filter_map(move |offset| crate::assign::at(first, offset))
    }
}

/// Where the agent of every node answers `/healthz`, `/livez` and `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSettings {
    /// Address.
    pub address: IpAddr,
    /// TCP port; 0: nowhere.
    pub port: u16,
}

impl Default for AgentSettings {
    fn default() -> Self {
        // The port of kube-proxy's health check.
        AgentSettings { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 10256 }
    }
}

impl Network {
    /// First and last node port, unless the file says otherwise.
    pub const NODE_PORTS: (u16, u16) = (30000, 32767);
}
