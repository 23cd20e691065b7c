//! What the nodes remember: pod ranges of earlier applies, and nodes that have left the file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::{Cluster, Memory, NodeObject, Observed, Spec, ours};
use ipnet::IpNet;
use serde::Serialize;

/// A node that the file no longer has and that its former peers still hold entries for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Departed {
    /// Its name, where a peer still knows it.
    pub name: Option<String>,
    /// Its address on the LAN.
    pub address: IpAddr,
    /// Its pod ranges.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The nodes that hold something about it.
    pub known_to: Vec<String>,
}

impl Departed {
    /// Its name, or else its address.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.to_string())
    }
}

/// A peer as a node remembers it, or as its kernel's entries show it.
struct Remembered {
    name: Option<String>,
    address: IpAddr,
    pod_cidrs: Vec<IpNet>,
}

/// Collects what `seen` (by node name of the file) remembers.
pub fn recall(cluster: &Cluster, seen: &BTreeMap<String, &Observed>) -> (Memory, Vec<Departed>) {
    let mut memory = Memory::default();
    let mut departed: BTreeMap<IpAddr, Departed> = BTreeMap::new();
    // A machine that we see under a new name, and perhaps a new address, has not departed.
    let present = |name: &str| {
        cluster.nodes.iter().any(|n| n.name == name)
            || seen.values().any(|o| o.spec.as_ref().is_some_and(|s| s.node == name))
    };
    for node in &cluster.nodes {
        let Some(observed) = seen.get(&node.name) else { continue };
        // The record may be lost; what the last confirmed transaction told the node then still is known.
        let confirmed = || observed.history.confirmed.as_ref().and_then(|c| c.spec.as_ref());
        let own = match observed.spec.as_ref().or_else(confirmed) {
            Some(spec) => spec.pod_cidrs.clone(),
            None => match bridge_ranges(&observed.objects) {
                none if none.is_empty() && node.pod_cidrs.is_empty() => {
                    observed.facts.flannel_ranges(cluster)
                }
                ranges => ranges,
            },
        };
        if !own.is_empty() {
            memory.own.insert(node.name.clone(), own);
        }
        for peer in peers(observed) {
            if !peer.pod_cidrs.is_empty() {
                memory.by_address.entry(peer.address).or_insert_with(|| peer.pod_cidrs.clone());
                if let Some(name) = &peer.name {
                    memory.by_name.entry(name.clone()).or_insert_with(|| peer.pod_cidrs.clone());
                }
            }
            let at_home = cluster.nodes.iter().any(|n| n.address == peer.address);
            if at_home || peer.name.as_deref().is_some_and(present) {
                continue;
            }
            let entry = departed.entry(peer.address).or_insert_with(|| Departed {
                name: None,
                address: peer.address,
                pod_cidrs: peer.pod_cidrs.clone(),
                known_to: Vec::new(),
            });
            entry.name = entry.name.take().or(peer.name);
            if !entry.known_to.contains(&node.name) {
                entry.known_to.push(node.name.clone());
            }
        }
    }
    (memory, departed.into_values().collect())
}

/// Ranges of the pods' bridge: the witness of a node whose own record is lost.
fn bridge_ranges(objects: &[NodeObject]) -> Vec<IpNet> {
    let addresses = objects.iter().filter_map(|o| match &o.spec {
        Spec::Address(a) if a.link == ours::BRIDGE => Some(a.address),
        _ => None,
    });
    addresses.filter(|a| a.prefix_len() < a.max_prefix_len()).map(|a| a.trunc()).collect()
}

/// The peers of a node's record, and those that only its kernel still knows.
fn peers(observed: &Observed) -> Vec<Remembered> {
    let recorded = observed.spec.iter().flat_map(|s| &s.peers);
    let mut peers: Vec<Remembered> = recorded
        .map(|p| Remembered {
            name: Some(p.name.clone()),
            address: p.address,
            pod_cidrs: p.pod_cidrs.clone(),
        })
        .collect();
    for object in &observed.objects {
        let Spec::Fdb(entry) = &object.spec else { continue };
        if peers.iter().any(|p| p.address == entry.remote) {
            continue;
        }
        // fdb: MAC -> machine; neighbour: next hop -> MAC; route: range -> next hop.
        let hops: Vec<IpAddr> = observed
            .objects
            .iter()
            .filter_map(|o| match &o.spec {
                Spec::Neighbour(n) if n.link == entry.link && n.mac == entry.mac => Some(n.address),
                _ => None,
            })
            .collect();
        let routes = observed.objects.iter().filter_map(|o| match &o.spec {
            Spec::Route(r) if r.via.is_some_and(|via| hops.contains(&via)) => Some(r.destination),
            _ => None,
        });
        peers.push(Remembered { name: None, address: entry.remote, pod_cidrs: routes.collect() });
    }
    peers
}
