//! What other CNI plugins have left on a node, or still have there: bridges with pods, ranges, addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Cluster, Facts, Problem, ours};

/// An address that the IPAM plugin host-local holds for a container whose interface is still there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldAddress {
    /// Name of the network; flannel's is `cbr0`.
    pub network: String,
    /// Container id.
    pub container: String,
    /// The address.
    pub address: IpAddr,
}

/// Bridges by the name that their makers give them.
const BRIDGES: [(&str, &str); 7] = [
    ("cni0", "flannel, k3s or another user of the plugin bridge"),
    ("cbr0", "kubenet"),
    ("cni-podman", "podman"),
    ("podman", "podman"),
    ("docker", "Docker"),
    ("br-", "Docker"),
    ("virbr", "libvirt"),
];

/// Who makes bridges of this name, if that is known.
fn maker(bridge: &str) -> Option<&'static str> {
    BRIDGES.iter().find(|(name, _)| bridge.starts_with(name)).map(|(_, maker)| *maker)
}

impl Facts {
    /// Interfaces of containers that are ports of this bridge, ours left out.
    pub fn foreign_ports(&self, bridge: &str) -> usize {
        let of_others = |l: &&crate::LinkFact| l.kind == "veth" && !l.alias.starts_with(ours::POD_ALIAS);
        self.links.iter().filter(of_others).filter(|l| l.master.as_deref() == Some(bridge)).count()
    }

    /// Ranges that flannel gave the node ([`Facts::flannel_subnets`]), where the cluster's pod range has them, too.
    pub fn flannel_ranges(&self, cluster: &Cluster) -> Vec<IpNet> {
        let network = &cluster.network;
        let fits = |subnet: &IpNet| {
            let of =
                |(range, prefix): (&IpNet, &u8)| range.contains(subnet) && *prefix == subnet.prefix_len();
            network.pod_cidrs.iter().zip(&network.node_prefixes).any(of)
        };
        self.flannel_subnets.iter().map(IpNet::trunc).filter(fits).collect()
    }
}

/// The problem of an address that is in the pod range, on a link of somebody else.
pub(crate) fn overlap_problem(facts: &Facts, link: &str, address: IpNet, range: IpNet) -> Problem {
    let is_bridge = facts.links.iter().any(|l| l.name == link && l.kind == "bridge");
    if !is_bridge {
        return Problem {
            message: format!("address {address} on {link} overlaps the pod range {range}"),
            help: "remove that address, or choose another network.podCIDR".to_owned(),
        };
    }
    let whose = maker(link).map_or(String::new(), |maker| format!(", a bridge of {maker},"));
    let ports = facts.foreign_ports(link);
    let used = if ports == 0 { String::new() } else { format!("; {} attached to it", interfaces(ports)) };
    Problem {
        message: format!("address {address} on {link}{whose} overlaps the pod range {range}{used}"),
        help: format!(
            "move its containers away and delete it (ip link del {link}); or, if its range is to stay with running \
             containers, stop what made it and hand it over: ip link set {link} down && ip link set {link} name \
             {bridge} alias {alias} up; or choose another network.podCIDR, and both live side by side",
            bridge = ours::BRIDGE,
            alias = ours::LINK_ALIAS,
        ),
    }
}

/// The problem of a link that is in the place of one of ours.
pub(crate) fn place_problem(facts: &Facts, name: &str, kind: &str) -> Problem {
    let kind = if kind.is_empty() { "hardware" } else { kind };
    let ports = facts.foreign_ports(name);
    let used = if ports == 0 { String::new() } else { format!(", {} attached to it", interfaces(ports)) };
    let help = if name == ours::BRIDGE {
        format!(
            "find out who made it, and remove or rename it (ip link del {name}): homelab's bridge has that name"
        )
    } else {
        "remove it (ip link del), or choose another network.vxlan.device".to_owned()
    };
    Problem { message: format!("a link {name} ({kind}) that homelab did not make is in the way{used}"), help }
}

/// The problem of our bridge as a port of another one: pods would be on that one's LAN.
pub(crate) fn nested_problem(facts: &Facts) -> Option<Problem> {
    let bridge = facts.links.iter().find(|l| l.name == ours::BRIDGE && l.alias == ours::LINK_ALIAS)?;
    let master = bridge.master.as_ref()?;
    Some(Problem {
        message: format!("the pods' bridge {} was made a port of {master}", bridge.name),
        help: format!("take it out: ip link set {} nomaster", bridge.name),
    })
}

/// What of other plugins' pods stays as it is, in plain sentences.
pub fn adoption_notes(facts: &Facts) -> Vec<String> {
    let mut notes = Vec::new();
    for bridge in facts.links.iter().filter(|l| l.kind == "bridge") {
        let ports = facts.foreign_ports(&bridge.name);
        // Docker's and libvirt's are no business of a pod network.
        let pods = bridge.name.starts_with("cni") || bridge.name == ours::BRIDGE;
        if ports > 0 && pods {
            notes.push(format!(
                "{} attached to {} by another CNI plugin: they keep their addresses until they are started anew",
                interfaces(ports),
                bridge.name
            ));
        }
    }
    let inside = |held: &&HeldAddress| {
        let ours = |a: &&crate::AddressFact| a.link == ours::BRIDGE;
        facts.addresses.iter().filter(ours).any(|a| a.address.contains(&held.address))
    };
    let held: Vec<&HeldAddress> = facts.held_addresses.iter().filter(inside).collect();
    if let Some(first) = held.first() {
        notes.push(format!(
            "host-local holds {} for running containers (network {}): no new pod gets them before these are gone",
            if held.len() == 1 { "1 address".to_owned() } else { format!("{} addresses", held.len()) },
            first.network
        ));
    }
    notes
}

fn interfaces(count: usize) -> String {
    if count == 1 { "1 container is".to_owned() } else { format!("{count} containers are") }
}
