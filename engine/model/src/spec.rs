//! What one node needs to know of the cluster: the input of every module's rendering.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::service::Service;

/// Everything that decides what a node holds. The laptop computes it, the node keeps it as
/// [`crate::ours::NODE_SPEC`], and both render the same objects from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Version of this format, [`NodeSpec::FORMAT`].
    pub format_version: u32,
    /// Cluster name.
    pub cluster: String,
    /// Node name.
    pub node: String,
    /// The node's address on the LAN: the VTEP's local address.
    pub address: IpAddr,
    /// The link that holds `address`.
    pub interface: String,
    /// The node's own part of the pod range: one per address family.
    pub pod_cidrs: Vec<IpNet>,
    /// The whole pod ranges: one per address family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges.
    pub service_cidrs: Vec<IpNet>,
    /// The tunnel.
    pub vtep: VtepSpec,
    /// MTU of pods' interfaces and of the bridge, bytes.
    pub pod_mtu: u32,
    /// Name of the pods' bridge.
    pub bridge: String,
    /// What of pods' traffic it lets pass.
    #[serde(default, skip_serializing_if = "PodOptions::is_default")]
    pub pods: PodOptions,
    /// The kernel has no IPv6 and none of its parameters (`ipv6.disable=1`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6_disabled: bool,
    /// Foreign links on which the kernel itself takes router advertisements, and is to do so although it forwards
    /// IPv6 (`accept_ra` 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router_advertisements: Vec<String>,
    /// Directories in which the node's runtimes look for CNI plugins.
    pub cni_bin_dirs: Vec<String>,
    /// Directories in which the node's runtimes look for CNI configuration.
    pub cni_conf_dirs: Vec<String>,
    /// What the proxy is told of this node.
    #[serde(default)]
    pub proxy: ProxySpec,
    /// What the speaker is told; None: no addresses are announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<crate::SpeakerSpec>,
    /// What the agent is told of Kubernetes; None: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<crate::KubernetesSpec>,
    /// Packages that homelab installs here, because the node has none of them by itself. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// SHA-256 of the node binary, lower-case hex.
    pub binary_sha256: String,
    /// The other nodes, by name.
    pub peers: Vec<PeerSpec>,
    /// The services of the cluster with their endpoints, by namespace and name. The same on every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Which of their endpoints are containers. The agents follow these by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<crate::ServiceContainer>,
}

impl NodeSpec {
    /// The format version that this build reads and writes.
    pub const FORMAT: u32 = 1;

    /// The spec as it stands in [`crate::ours::NODE_SPEC`]: pretty JSON, one final newline.
    pub fn to_file(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// SHA-256 of [`NodeSpec::to_file`], lower-case hex: how the agent says which file it has loaded.
    pub fn digest(&self) -> String {
        crate::sha256_hex(self.to_file().as_bytes())
    }
}

/// What [`crate::ours::KUBERNETES_PEERS`] holds: the agent's peers, beyond those of the file or in their place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LivePeers {
    /// Name of the tunnel's link.
    pub device: String,
    /// The peers. While entries are being replaced, their old ones are here, too.
    pub peers: Vec<PeerSpec>,
}

/// What the bridge lets pass of what pods send, for all pods of the cluster that start from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodOptions {
    /// Pods of one node exchange no frames.
    pub port_isolation: bool,
    /// Pods send by their own MAC and IP addresses only.
    pub spoof_protection: bool,
}

impl PodOptions {
    /// Whether all is let through.
    pub fn is_default(&self) -> bool {
        *self == PodOptions::default()
    }
}

/// The VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VtepSpec {
    /// Link name.
    pub device: String,
    /// VXLAN network identifier, 1..2^24.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Link MTU, bytes.
    pub mtu: u32,
    /// MAC address, `02:..` lower-case.
    pub mac: String,
    /// Whether the link leaves checksums to the network card (`tx-checksum-ip-generic`).
    pub checksum_offload: bool,
}

/// What the proxy of services is told of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxySpec {
    /// The node's addresses that take node ports.
    pub node_port_addresses: Vec<IpAddr>,
    /// Zone that the node is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Masquerades all that goes to cluster addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masquerade_all: bool,
    /// Where the agent answers /healthz, /livez and /metrics, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<std::net::SocketAddr>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerSpec {
    /// Node name.
    pub name: String,
    /// Its LAN address: where its VTEP listens.
    pub address: IpAddr,
    /// Its VTEP's MAC address.
    pub mac: String,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
}
