//! The file as it is written. The JSON Schema is made from these types, and their comments are its descriptions.

mod balancer;
mod bgp;
mod kubernetes;
mod service;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::spanned::{OneOrMany, Spanned, Texts};
pub(crate) use balancer::{L2Advertisement, LoadBalancer, Selector, ServiceAllocation};
pub(crate) use bgp::{BfdProfile, Bgp, BgpAdvertisement, BgpPeer};
pub(crate) use kubernetes::Kubernetes;
pub(crate) use service::{Endpoint, EndpointBlock, Service};

/// A text with a pattern and an example for the schema; `check` gives the exact words.
macro_rules! text {
    ($($(#[doc = $doc:literal])* $name:ident, $pattern:expr, [$($example:expr),*];)*) => {$(
        $(#[doc = $doc])*
        pub(crate) struct $name;
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$($example),*] })
            }
        }
    )*};
}

text! {
    /// DNS label.
    Label, "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", ["home"];
    /// IP address.
    Ip, "^[0-9A-Fa-f.:]+$", ["192.168.50.11", "fd00:50::11"];
    /// Range as CIDR.
    Cidr, "^[0-9A-Fa-f.:]+/[0-9]{1,3}$", ["10.244.0.0/16", "fd00:10:244::/48"];
    /// Pool entry.
    PoolEntry, "^[0-9A-Fa-f.:]+( *- *[0-9A-Fa-f.:]+|/[0-9]{1,3})?$", ["192.168.50.200-192.168.50.220", "192.168.60.0/28"];
    /// Name of a service (RFC 1035).
    ServiceName, "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", ["web"];
    /// Zone.
    Zone, "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$", ["attic"];
    /// Ports.
    PortRange, "^[0-9]+-[0-9]+$", ["30000-32767"];
    /// Name or id of a container.
    Container, "^[^\\s/]+$", ["web"];
    /// File of manifests.
    ManifestPath, "\\S", ["services/web.yaml"];
    /// Network interface.
    Interface, "^[^\\s/:]{1,15}$", ["eth0"];
    /// Anything with a character in it.
    Filled, "\\S", [];
    /// Key of a label.
    LabelKey, "^([-a-z0-9.]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$", ["kubernetes.io/hostname"];
    /// Value of a label.
    LabelValue, "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$", ["node1"];
    /// Time in whole seconds.
    Duration, "^(0|([0-9]+h)?([0-9]+m)?([0-9]+s)?)$", ["90s"];
    /// BGP community, or its name.
    Community, "^[^\\s]+$", ["64512:100"];
    /// Name of a BGP community.
    CommunityName, "^[A-Za-z]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$", ["vip"];
    /// Jump hosts.
    Jump, "^[^\\s,]+(,[^\\s,]+)*$", ["admin@router.home:22"];
}

/// One value or a list of at most two: one per address family.
pub(crate) struct OneOrTwo<T>(std::marker::PhantomData<T>);

impl<T: JsonSchema> JsonSchema for OneOrTwo<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrTwo".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = T::json_schema(generator);
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": 2 }] })
    }
}

/// `auto` or a number.
pub(crate) struct MtuSchema;

impl JsonSchema for MtuSchema {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mtu".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "enum": ["auto"] }, { "type": "integer", "minimum": 576, "maximum": 65485 }] })
    }
}

/// Length of a prefix.
pub(crate) struct PrefixLength;

impl JsonSchema for PrefixLength {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PrefixLength".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 8, "maximum": 120 })
    }
}

/// The network of a cluster of home servers: homelab.yaml, version 1.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields, title = "homelab.yaml")]
pub(crate) struct File {
    /// Version of this format.
    #[expect(dead_code, reason = "the schema allows one value only")]
    #[schemars(extend("enum" = [1], "default" = 1))]
    pub(crate) version: Option<Spanned<u64>>,
    /// Name of the cluster. The tunnel's MAC addresses are made from it: a new name means new ones.
    #[schemars(required, with = "Label")]
    pub(crate) name: Option<Spanned<String>>,
    /// How to reach the nodes, unless a node's own `ssh` says otherwise. What is left out comes from
    /// `~/.ssh/config`.
    pub(crate) ssh: Option<Ssh>,
    /// The servers.
    #[schemars(required, with = "Vec<Node>", length(min = 1, max = 1000))]
    pub(crate) nodes: Option<Vec<Spanned<Node>>>,
    /// Ranges and tunnel of the pod network.
    pub(crate) network: Option<Network>,
    /// Addresses on the LAN for services.
    pub(crate) load_balancer: Option<LoadBalancer>,
    /// The agent that runs on every node.
    pub(crate) agent: Option<Agent>,
    /// The Kubernetes cluster whose network this is. Default: there is none.
    pub(crate) kubernetes: Option<Kubernetes>,
    /// Services without Kubernetes. Keys have Kubernetes' own names and defaults.
    #[schemars(with = "Option<Vec<Service>>", length(max = 10000))]
    pub(crate) services: Option<Vec<Spanned<Service>>>,
    /// Files with Kubernetes manifests whose services are added: paths relative to this file.
    #[schemars(with = "Option<Vec<ManifestPath>>", length(max = 1000))]
    pub(crate) manifests: Option<Vec<Spanned<String>>>,
}

/// How to reach the nodes by SSH.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Ssh {
    /// User name. Not root: homelab uses sudo.
    #[schemars(with = "Option<Filled>", extend("examples" = ["root", "debian"]))]
    pub(crate) user: Option<Spanned<String>>,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [22]))]
    pub(crate) port: Option<Spanned<u16>>,
    /// Private key file. A leading `~/` is your home directory.
    #[schemars(with = "Option<Filled>", extend("examples" = ["~/.ssh/id_ed25519"]))]
    pub(crate) identity: Option<Spanned<String>>,
    /// Host to go through: `[user@]host[:port]`, several separated by commas.
    #[schemars(with = "Option<Jump>")]
    pub(crate) jump: Option<Spanned<String>>,
    /// Whether to become root by sudo. Default: when the user is not root.
    pub(crate) r#become: Option<Spanned<bool>>,
}

/// How to reach this node by SSH.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct NodeSsh {
    /// Host name, address or a `Host` of `~/.ssh/config`. Default: the node's address.
    #[schemars(with = "Option<Filled>", extend("examples" = ["node1.home"]))]
    pub(crate) host: Option<Spanned<String>>,
    /// User name. Not root: homelab uses sudo.
    #[schemars(with = "Option<Filled>", extend("examples" = ["root", "debian"]))]
    pub(crate) user: Option<Spanned<String>>,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [22]))]
    pub(crate) port: Option<Spanned<u16>>,
    /// Private key file. A leading `~/` is your home directory.
    #[schemars(with = "Option<Filled>", extend("examples" = ["~/.ssh/id_ed25519"]))]
    pub(crate) identity: Option<Spanned<String>>,
    /// Host to go through: `[user@]host[:port]`, several separated by commas.
    #[schemars(with = "Option<Jump>")]
    pub(crate) jump: Option<Spanned<String>>,
    /// Whether to become root by sudo. Default: when the user is not root.
    pub(crate) r#become: Option<Spanned<bool>>,
}

/// A server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Node {
    /// Name of the node.
    #[schemars(required, with = "Label", extend("examples" = ["node1"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Address on the LAN; for dual stack a list of an IPv4 and an IPv6 address, the tunnel's first.
    #[schemars(required, with = "OneOrTwo<Ip>")]
    pub(crate) address: Option<OneOrMany<Spanned<String>>>,
    /// A label of your own.
    #[schemars(with = "Option<Filled>", extend("examples" = ["control-plane", "worker"]))]
    pub(crate) role: Option<Spanned<String>>,
    /// Zone that the node is in, for `trafficDistribution` (`topology.kubernetes.io/zone`).
    #[schemars(with = "Option<Zone>")]
    pub(crate) zone: Option<Spanned<String>>,
    /// Labels, for selectors; `kubernetes.io/hostname` and `topology.kubernetes.io/zone` are there already.
    pub(crate) labels: Option<Texts>,
    /// Part of `network.podCIDR` that is this node's, one per address family. Default: the next free one, kept once given.
    #[serde(rename = "podCIDR")]
    #[schemars(with = "Option<OneOrTwo<Cidr>>")]
    pub(crate) pod_cidr: Option<OneOrMany<Spanned<String>>>,
    /// LAN interface. Default: the one that holds the address.
    #[schemars(with = "Option<Interface>")]
    pub(crate) interface: Option<Spanned<String>>,
    /// How to reach this node, on top of the file's own `ssh`.
    pub(crate) ssh: Option<NodeSsh>,
}

/// Ranges and tunnel.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Network {
    /// Range of all pods; for dual stack a list of an IPv4 and an IPv6 range.
    #[serde(rename = "podCIDR")]
    #[schemars(with = "Option<OneOrTwo<Cidr>>", extend("default" = "10.244.0.0/16"))]
    pub(crate) pod_cidr: Option<OneOrMany<Spanned<String>>>,
    /// Prefix length of each node's part of `podCIDR`, one per range. Default: 24 for IPv4, 64 for IPv6.
    #[schemars(with = "Option<OneOrTwo<PrefixLength>>", extend("default" = 24))]
    pub(crate) node_prefix: Option<OneOrMany<Spanned<u8>>>,
    /// Range of service addresses, one per address family of `podCIDR`.
    #[serde(rename = "serviceCIDR")]
    #[schemars(with = "Option<OneOrTwo<Cidr>>", extend("default" = "10.96.0.0/12"))]
    pub(crate) service_cidr: Option<OneOrMany<Spanned<String>>>,
    /// Node ports: `first-last`.
    #[schemars(with = "Option<PortRange>", extend("default" = "30000-32767"))]
    pub(crate) node_port_range: Option<Spanned<String>>,
    /// Ranges of node addresses that answer on node ports. Default: the addresses of `nodes`.
    #[schemars(with = "Option<Vec<Cidr>>", length(min = 1, max = 100))]
    pub(crate) node_port_addresses: Option<Vec<Spanned<String>>>,
    /// Whether all traffic to cluster addresses is masqueraded, that of pods too.
    #[schemars(extend("default" = false))]
    pub(crate) masquerade_all: Option<Spanned<bool>>,
    /// What bridges let pass of what pods send. Counts for pods that start from then on.
    pub(crate) pods: Option<PodOptions>,
    /// The tunnel between the nodes.
    pub(crate) vxlan: Option<Vxlan>,
}

/// What bridges let pass of what pods send.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct PodOptions {
    /// Pods of one node exchange no frames (`portIsolation` of CNI's bridge plugin). Services do not lead from one to
    /// the other either.
    #[schemars(extend("default" = false))]
    pub(crate) port_isolation: Option<Spanned<bool>>,
    /// Pods send by their own MAC and IP addresses only, in ARP and neighbour discovery too (more than `macspoofchk` of
    /// CNI's bridge plugin).
    #[schemars(extend("default" = false))]
    pub(crate) spoof_protection: Option<Spanned<bool>>,
}

/// The agent that runs on every node.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Agent {
    /// Where it answers `/healthz`, `/livez` and `/metrics`; `0.0.0.0` is every address of the node.
    #[schemars(with = "Option<Ip>", extend("default" = "127.0.0.1"))]
    pub(crate) address: Option<Spanned<String>>,
    /// TCP port; 0: it answers nowhere.
    #[schemars(range(min = 0, max = 65535), extend("default" = 10256))]
    pub(crate) port: Option<Spanned<u16>>,
}

/// The tunnel between the nodes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Vxlan {
    /// VXLAN network identifier.
    #[schemars(range(min = 1, max = 16777215), extend("default" = 1))]
    pub(crate) vni: Option<Spanned<u32>>,
    /// UDP port.
    #[schemars(range(min = 1, max = 65535), extend("default" = 8472))]
    pub(crate) port: Option<Spanned<u16>>,
    /// MTU of the tunnel in bytes. `auto`: the smallest MTU of the LAN interfaces less the tunnel's own bytes.
    #[schemars(with = "Option<MtuSchema>", extend("default" = "auto"))]
    pub(crate) mtu: Option<Spanned<serde_json::Value>>,
    /// Name of the tunnel's link. Default: `homelab.` and the VNI.
    #[schemars(with = "Option<Interface>", extend("examples" = ["homelab.1"]))]
    pub(crate) device: Option<Spanned<String>>,
    /// Whether the network card computes checksums of what the tunnel sends. `auto`: unless it is known to be faulty.
    #[schemars(extend("enum" = ["auto", true, false], "default" = "auto"))]
    pub(crate) checksum_offload: Option<Spanned<serde_json::Value>>,
}
