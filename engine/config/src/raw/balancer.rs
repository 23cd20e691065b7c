//! Load-balancer pools and advertisements as they are written: names are those of MetalLB's resources
//! (`metallb.io/v1beta1` IPAddressPool and L2Advertisement) and of Kubernetes' label selectors.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Bgp, Interface, Label, LabelKey, LabelValue, PoolEntry};
use crate::spanned::{Spanned, Texts};

/// Addresses on the LAN for services.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct LoadBalancer {
    /// Pools of addresses.
    #[schemars(with = "Option<Vec<Pool>>", length(max = 100))]
    pub(crate) pools: Option<Vec<Spanned<Pool>>>,
    /// Where addresses are announced on the LAN (ARP, NDP). Default without `bgp`: those of all pools, by all nodes.
    #[schemars(with = "Option<Vec<L2Advertisement>>", length(max = 100))]
    pub(crate) l2_advertisements: Option<Vec<Spanned<L2Advertisement>>>,
    /// UDP port on which the nodes agree on who announces what, and tell each other where containers are.
    #[schemars(range(min = 1, max = 65535), extend("default" = 7946))]
    pub(crate) port: Option<Spanned<u16>>,
    /// Routers that are told of the addresses by BGP, which FRR speaks on the nodes.
    pub(crate) bgp: Option<Bgp>,
}

/// A pool of addresses.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Pool {
    /// Name of the pool.
    #[schemars(required, with = "Label", extend("examples" = ["default"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Addresses, CIDRs and `first-last` ranges. Leave them out of your router's DHCP range.
    #[schemars(required, with = "Vec<PoolEntry>", length(min = 1, max = 100))]
    pub(crate) addresses: Option<Vec<Spanned<String>>>,
    /// Whether services that ask for no address get one of this pool.
    #[schemars(extend("default" = true))]
    pub(crate) auto_assign: Option<Spanned<bool>>,
    /// Leaves out IPv4 addresses that end in .0 and .255.
    #[serde(rename = "avoidBuggyIPs")]
    #[schemars(extend("default" = false))]
    pub(crate) avoid_buggy_ips: Option<Spanned<bool>>,
    /// Services that it is for: they ask it first, and no others get of it. Default: all.
    pub(crate) service_allocation: Option<ServiceAllocation>,
}

/// Services that a pool is for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct ServiceAllocation {
    /// Of several pools the one with the lowest number is asked first. 0: last.
    #[schemars(range(min = 0, max = 1000000), extend("default" = 0))]
    pub(crate) priority: Option<Spanned<u32>>,
    /// Namespaces that it is for. Default: all.
    #[schemars(with = "Option<Vec<Label>>", length(max = 1000))]
    pub(crate) namespaces: Option<Vec<Spanned<String>>>,
    /// Services that it is for, by their labels: those that any of the selectors chooses. Default: all.
    #[schemars(with = "Option<Vec<Selector>>", length(max = 100))]
    pub(crate) service_selectors: Option<Vec<Spanned<Selector>>>,
}

/// Where addresses are announced on the LAN.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct L2Advertisement {
    /// Name of the advertisement.
    #[schemars(required, with = "Label", extend("examples" = ["default"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Names of the pools that it is for. Default: all.
    #[schemars(with = "Option<Vec<Label>>", length(max = 100), extend("examples" = [["default"]]))]
    pub(crate) ip_address_pools: Option<Vec<Spanned<String>>>,
    /// Nodes that may announce, by their labels: those that any of the selectors chooses. Default: all.
    #[schemars(with = "Option<Vec<Selector>>", length(max = 100))]
    pub(crate) node_selectors: Option<Vec<Spanned<Selector>>>,
    /// Nodes that are preferred among those: the highest sum of the weights that fit wins.
    #[schemars(with = "Option<Vec<PreferredNode>>", length(max = 100))]
    pub(crate) preferred_node_selectors: Option<Vec<Spanned<PreferredNode>>>,
    /// Services that it is for, by their labels: those that any of the selectors chooses. Default: all.
    #[schemars(with = "Option<Vec<Selector>>", length(max = 100))]
    pub(crate) service_selectors: Option<Vec<Spanned<Selector>>>,
    /// Interfaces to announce on. Default: those with a network that holds the address, else the LAN interface.
    #[schemars(with = "Option<Vec<Interface>>", length(max = 100))]
    pub(crate) interfaces: Option<Vec<Spanned<String>>>,
}

/// Nodes that are preferred.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct PreferredNode {
    /// How much.
    #[schemars(required, range(min = 1, max = 100), extend("examples" = [100]))]
    pub(crate) weight: Option<Spanned<u8>>,
    /// Which nodes.
    #[schemars(required, with = "Selector")]
    pub(crate) preference: Option<Spanned<Selector>>,
}

/// Labels that are asked for: all of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Selector {
    /// Labels with exactly these values.
    pub(crate) match_labels: Option<Texts>,
    /// Further requirements.
    #[schemars(with = "Option<Vec<Requirement>>", length(max = 100))]
    pub(crate) match_expressions: Option<Vec<Spanned<Requirement>>>,
}

/// What is asked of a label.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Requirement {
    /// Key of the label.
    #[schemars(required, with = "LabelKey")]
    pub(crate) key: Option<Spanned<String>>,
    /// What is asked: a value of `values`, none of them or no such label, the label, no such label.
    #[schemars(required, with = "String", extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"]))]
    pub(crate) operator: Option<Spanned<String>>,
    /// For In and NotIn.
    #[schemars(with = "Option<Vec<LabelValue>>", length(max = 100))]
    pub(crate) values: Option<Vec<Spanned<String>>>,
}
