//! Which nodes announce load-balancer addresses, and what every agent is told of it. Names follow MetalLB's resources
//! (`metallb.io/v1beta1`) and Kubernetes' label selectors (`meta/v1`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::Pool;

/// Label of a node's name.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
/// Label of a node's zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// A node with this label announces nothing, whatever the label's value.
pub const LABEL_EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Labels of a node or a service.
pub type Labels = BTreeMap<String, String>;

/// A label selector: all of its requirements hold. Without requirements it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    /// Further requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement of a [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What is required of it.
    pub operator: Operator,
    /// Values for `In` and `NotIn`; empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Operator of a [`Requirement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label's value is among the values.
    In,
    /// There is no such label, or its value is not among the values.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is no such label.
    DoesNotExist,
}

impl Selector {
    /// Whether something with these labels is chosen.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }

    /// Whether any of some selectors chooses something with these labels. Where there are none, all is chosen.
    pub fn any(selectors: &[Selector], labels: &Labels) -> bool {
        selectors.is_empty() || selectors.iter().any(|selector| selector.matches(labels))
    }
}

/// The labels of a node that selectors see: those of the file, and those that Kubernetes gives every node.
pub fn effective_labels(own: &Labels, name: &str, zone: Option<&str>) -> Labels {
    let mut labels = own.clone();
    labels.insert(LABEL_HOSTNAME.to_owned(), name.to_owned());
    labels.extend(zone.map(|zone| (LABEL_ZONE.to_owned(), zone.to_owned())));
    labels
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Where addresses of some pools are announced by ARP and NDP (MetalLB's L2Advertisement).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct L2Advertisement {
    /// Name.
    pub name: String,
    /// Names of the pools; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_address_pools: Vec<String>,
    /// Nodes that may announce: those that any of the selectors matches; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_selectors: Vec<Selector>,
    /// Nodes that are preferred among them: the highest sum of the weights that match wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferred_node_selectors: Vec<PreferredNode>,
    /// Services that it is for: those that any of the selectors matches; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_selectors: Vec<Selector>,
    /// Interfaces to announce on; empty: the node's interfaces with a network that the address is of, else its LAN
    /// interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

/// Nodes that are preferred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreferredNode {
    /// Weight, 1..=100.
    pub weight: u8,
    /// Which nodes.
    pub preference: Selector,
}

/// What the speaker of every node is told. The same on all nodes, so that all come to the same owners.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerSpec {
    /// UDP port of the membership.
    pub port: u16,
    /// All nodes of the cluster, by name.
    pub nodes: Vec<SpeakerNode>,
    /// The pools.
    pub pools: Vec<Pool>,
    /// Where their addresses are announced.
    pub advertisements: Vec<L2Advertisement>,
    /// Which routers are told of them; None: no BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<crate::BgpSpec>,
}

impl SpeakerSpec {
    /// UDP port of the membership unless the file says otherwise: that of MetalLB's memberlist.
    pub const PORT: u16 = 7946;
}

/// A node as the speakers know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerNode {
    /// Node name.
    pub name: String,
    /// Its LAN address.
    pub address: IpAddr,
    /// Its labels, [`LABEL_HOSTNAME`] and [`LABEL_ZONE`] among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selectors_choose_as_kubernetes_does() {
        let rack = |operator, values: &[&str]| Selector {
            match_labels: Labels::new(),
            match_expressions: vec![Requirement {
                key: "rack".into(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
        };
        let (a, b, none) = (labels(&[("rack", "a"), ("x", "y")]), labels(&[("rack", "b")]), Labels::new());
        for (selector, expected) in [
            (Selector::default(), [true, true, true]),
            (
                Selector { match_labels: labels(&[("rack", "a")]), ..Selector::default() },
                [true, false, false],
            ),
            (rack(Operator::In, &["a", "c"]), [true, false, false]),
            (rack(Operator::NotIn, &["a", "c"]), [false, true, true]),
            (rack(Operator::Exists, &[]), [true, true, false]),
            (rack(Operator::DoesNotExist, &[]), [false, false, true]),
        ] {
            assert_eq!([&a, &b, &none].map(|l| selector.matches(l)), expected, "{selector:?}");
        }
        let both = Selector { match_labels: labels(&[("x", "y")]), ..rack(Operator::In, &["a", "b"]) };
        assert_eq!([&a, &b, &none].map(|l| both.matches(l)), [true, false, false]);
    }
}
