//! The cluster as the user describes it, after defaults. `homelab-config` makes it from `homelab.yaml`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Declared;

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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// Pools in the order of the file.
    pub pools: Vec<Pool>,
    /// L2 announcements.
    pub l2: L2Settings,
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

/// L2 announcements.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct L2Settings {
    /// Interfaces to announce on; empty: the LAN interface of each node.
    pub interfaces: Vec<String>,
    /// Names of nodes that may announce; empty: all.
    pub nodes: Vec<String>,
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
