//! Services as they are written. Names and defaults are those of Kubernetes' `core/v1` Service.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};

use super::{Cidr, Container, Interface, Ip, Label, LabelKey, ServiceName, Zone};
use crate::spanned::{Spanned, Texts};

/// An address family.
struct IpFamily;

impl JsonSchema for IpFamily {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "IpFamily".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": ["IPv4", "IPv6"] })
    }
}

/// A service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Service {
    /// Name of the service.
    #[schemars(required, with = "ServiceName", extend("examples" = ["web"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Namespace; a name stands once in each.
    #[schemars(with = "Option<Label>", extend("default" = "default"))]
    pub(crate) namespace: Option<Spanned<String>>,
    /// Labels, for the selectors of pools and advertisements.
    pub(crate) labels: Option<Texts>,
    /// MetalLB's `metallb.io/loadBalancerIPs`, `metallb.io/address-pool` and `metallb.io/allow-shared-ip` count; others
    /// are ignored.
    pub(crate) annotations: Option<Texts>,
    /// Who reaches it: pods and nodes (ClusterIP), also by a port of every node (NodePort), also by an address on the
    /// LAN (LoadBalancer).
    #[schemars(extend("enum" = ["ClusterIP", "NodePort", "LoadBalancer"], "default" = "ClusterIP"))]
    pub(crate) r#type: Option<Spanned<String>>,
    /// Address inside `network.serviceCIDR`. Default: a free one.
    #[serde(rename = "clusterIP")]
    #[schemars(with = "Option<Ip>", extend("examples" = ["10.96.0.80"]))]
    pub(crate) cluster_ip: Option<Spanned<String>>,
    /// The same, one per address family. Default: free ones.
    #[serde(rename = "clusterIPs")]
    #[schemars(with = "Option<Vec<Ip>>", length(min = 1, max = 2))]
    pub(crate) cluster_ips: Option<Vec<Spanned<String>>>,
    /// Address families in order of preference. Default: the first of `network.serviceCIDR`.
    #[schemars(with = "Option<Vec<IpFamily>>", length(min = 1, max = 2))]
    pub(crate) ip_families: Option<Vec<Spanned<String>>>,
    /// Whether it has addresses of one family, of two where the cluster has two, or of two always.
    #[schemars(extend("enum" = ["SingleStack", "PreferDualStack", "RequireDualStack"], "default" = "SingleStack"))]
    pub(crate) ip_family_policy: Option<Spanned<String>>,
    /// Ports of the service.
    #[schemars(required, with = "Vec<Port>", length(min = 1, max = 100))]
    pub(crate) ports: Option<Vec<Spanned<Port>>>,
    /// What answers: addresses, or blocks that say more.
    #[schemars(length(max = 1000))]
    pub(crate) endpoints: Option<Vec<Spanned<Endpoint>>>,
    /// Further addresses whose packets reach the nodes, by a route of your own.
    #[serde(rename = "externalIPs")]
    #[schemars(with = "Option<Vec<Ip>>", length(max = 100))]
    pub(crate) external_ips: Option<Vec<Spanned<String>>>,
    /// Address of one of the pools, for LoadBalancer. Default: a free one.
    #[serde(rename = "loadBalancerIP")]
    #[schemars(with = "Option<Ip>", extend("examples" = ["192.168.50.200"]))]
    pub(crate) load_balancer_ip: Option<Spanned<String>>,
    /// Who gives a LoadBalancer service its address. Any other is not homelab: then it gets none here.
    #[schemars(with = "Option<LabelKey>", extend("examples" = ["homelab"], "default" = "homelab"))]
    pub(crate) load_balancer_class: Option<Spanned<String>>,
    /// Clients that may use the load-balancer address. Default: all.
    #[schemars(with = "Option<Vec<Cidr>>", length(max = 100))]
    pub(crate) load_balancer_source_ranges: Option<Vec<Spanned<String>>>,
    /// Whether a node gives traffic from outside to endpoints of all nodes, or only to its own, with the client's
    /// address kept (Local).
    #[schemars(extend("enum" = ["Cluster", "Local"], "default" = "Cluster"))]
    pub(crate) external_traffic_policy: Option<Spanned<String>>,
    /// Whether traffic to the cluster address goes to endpoints of all nodes, or only to those of the same node (Local).
    #[schemars(extend("enum" = ["Cluster", "Local"], "default" = "Cluster"))]
    pub(crate) internal_traffic_policy: Option<Spanned<String>>,
    /// Whether a client stays with its endpoint (ClientIP).
    #[schemars(extend("enum" = ["None", "ClientIP"], "default" = "None"))]
    pub(crate) session_affinity: Option<Spanned<String>>,
    /// More on `sessionAffinity`.
    #[schemars(with = "Option<AffinityConfig>")]
    pub(crate) session_affinity_config: Option<Spanned<AffinityConfig>>,
    /// Port that tells a load balancer whether a node has endpoints, for LoadBalancer with `externalTrafficPolicy:
    /// Local`. Default: a free one.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [31000]))]
    pub(crate) health_check_node_port: Option<Spanned<u16>>,
    /// Whether a LoadBalancer service has node ports too.
    #[schemars(extend("default" = true))]
    pub(crate) allocate_load_balancer_node_ports: Option<Spanned<bool>>,
    /// Endpoints to prefer: those of the client's zone or node. PreferClose is PreferSameZone.
    #[schemars(extend("enum" = ["PreferClose", "PreferSameZone", "PreferSameNode"]))]
    pub(crate) traffic_distribution: Option<Spanned<String>>,
}

/// More on `sessionAffinity`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct AffinityConfig {
    /// For ClientIP.
    #[serde(rename = "clientIP")]
    pub(crate) client_ip: Option<ClientIpConfig>,
}

/// For ClientIP.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct ClientIpConfig {
    /// Seconds after a client's last new connection until its endpoint is forgotten.
    #[schemars(range(min = 1, max = 86400), extend("default" = 10800))]
    pub(crate) timeout_seconds: Option<Spanned<u32>>,
}

/// A port of a service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Port {
    /// Name of the port; needed where there are several.
    #[schemars(with = "Option<Label>", extend("examples" = ["http"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Protocol.
    #[schemars(extend("enum" = ["TCP", "UDP", "SCTP"], "default" = "TCP"))]
    pub(crate) protocol: Option<Spanned<String>>,
    /// Port of the service's addresses.
    #[schemars(required, range(min = 1, max = 65535), extend("examples" = [80]))]
    pub(crate) port: Option<Spanned<u16>>,
    /// Port of the endpoints. Default: the same as `port`.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [8080]))]
    pub(crate) target_port: Option<Spanned<u16>>,
    /// Port of every node inside `network.nodePortRange`, for NodePort and LoadBalancer. Default: a free one.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [30080]))]
    pub(crate) node_port: Option<Spanned<u16>>,
}

/// An endpoint: an address, or a block.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// Its address.
    Address(String),
    /// More.
    Block(Box<EndpointBlock>),
}

/// Something that answers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct EndpointBlock {
    /// Address of a pod or of a machine.
    #[schemars(with = "Option<Ip>")]
    pub(crate) address: Option<Spanned<String>>,
    /// Node that it runs on. Default: the node with that address or with that address in its `podCIDR`.
    #[schemars(with = "Option<Label>", extend("examples" = ["node1"]))]
    pub(crate) node: Option<Spanned<String>>,
    /// Instead of an address: container on the node, by its id or its `K8S_POD_NAME`. The nodes follow it.
    #[schemars(with = "Option<Container>")]
    pub(crate) container: Option<Spanned<String>>,
    /// Interface inside the container.
    #[schemars(with = "Option<Interface>", extend("default" = "eth0"))]
    pub(crate) interface: Option<Spanned<String>>,
    /// Zone that it is in. Default: its node's.
    #[schemars(with = "Option<Zone>")]
    pub(crate) zone: Option<Spanned<String>>,
    /// Whether it takes new connections. Default: unless it is terminating.
    pub(crate) ready: Option<Spanned<bool>>,
    /// Whether it answers, even if it is going away.
    #[schemars(extend("default" = true))]
    pub(crate) serving: Option<Spanned<bool>>,
    /// Whether it is going away: it serves only while no endpoint is ready.
    #[schemars(extend("default" = false))]
    pub(crate) terminating: Option<Spanned<bool>>,
}

impl JsonSchema for Endpoint {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (address, block) = (Ip::json_schema(generator), EndpointBlock::json_schema(generator));
        json_schema!({ "anyOf": [address, block] })
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Endpoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or a block of keys")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Endpoint, E> {
                Ok(Endpoint::Address(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
                let block = EndpointBlock::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Endpoint::Block(Box::new(block)))
            }
        }
        deserializer.deserialize_any(Read)
    }
}
