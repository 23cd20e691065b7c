//! Peers of the tunnel by the Nodes of the API, and flannel's annotations.
//!
//! A Node is taken at its word only as far as the file allows: its ranges must be in the cluster's, and nobody else's.
//! Whoever may write Nodes could otherwise have any traffic of the machine sent to himself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::{NodeSpec, NodesFrom, PeerSpec};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::node::{FLANNEL, FlannelData};
use crate::{Flannel, FlannelVtep, KubeNode};

/// What flannel writes of its tunnels. What a user wrote for flannel (`public-ip-overwrite`) stays.
const WRITTEN: [&str; 6] =
    ["backend-type", "backend-data", "backend-v6-data", "public-ip", "public-ipv6", "kube-subnet-manager"];

/// What the Nodes of the API mean for the tunnel of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    /// Peers that the file does not have, or for which flannel says something else, by name.
    pub peers: Vec<PeerSpec>,
    /// Nodes whose tunnel is flannel's.
    pub flannel: Vec<String>,
    /// What is wrong with Nodes, in plain sentences.
    pub complaints: Vec<String>,
    /// What flannel's annotations of the own Node are to be.
    pub annotations: Annotations,
}

/// What flannel's annotations of the own Node are to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Annotations {
    /// Whatever they are.
    #[default]
    Any,
    /// These, for as long as there are nodes that run flannel.
    Ours(BTreeMap<String, String>),
    /// None of ours: with this MAC address. Somebody else's stay.
    Gone(String),
}

/// The peers of the node of `spec`. `before` are those that counted last, and `mac` gives the MAC address that homelab's
/// tunnel has on the node of a name.
///
/// A list of Nodes without the own one is not believed when it lacks others: it may be that of a control plane that was set
/// up anew, while the machines are still there.
pub fn peers(
    spec: &NodeSpec,
    nodes: &BTreeMap<String, KubeNode>,
    before: &[PeerSpec],
    mac: &dyn Fn(&str) -> String,
) -> Peers {
    let mut found = Peers::default();
    let Some(told) = &spec.kubernetes else { return found };
    let own = nodes.get(&spec.node);
    found.complaints.extend(own.and_then(|own| own_ranges(spec, own)));
    if told.nodes == NodesFrom::FromFile {
        return found;
    }
    let mut taken = Taken::new(spec);
    let others = || nodes.iter().filter(|(name, _)| **name != spec.node);
    // Those of the file come first: their ranges are theirs.
    for (name, node) in others() {
        if let Some(peer) = spec.peers.iter().find(|peer| peer.name == *name) {
            of_file(spec, peer, node, mac, &mut found);
        }
    }
    for (name, node) in others().filter(|(name, _)| !spec.peers.iter().any(|peer| peer.name == **name)) {
        match taken.peer(name, node, mac) {
            Ok((peer, is_flannel)) => {
                if is_flannel {
                    found.flannel.push(name.clone());
                }
                found.peers.push(peer);
            }
            Err(why) => found.complaints.push(format!("Node {name}: {why}")),
        }
        found.complaints.append(&mut taken.remarks);
    }
    if own.is_none() {
        let of_file = |name: &str| spec.peers.iter().any(|peer| peer.name == name);
        let missing = before.iter().filter(|peer| !nodes.contains_key(&peer.name));
        found.peers.extend(missing.filter(|peer| of_file(&peer.name) || taken.holds(peer).is_ok()).cloned());
    }
    found.peers.sort_by(|a, b| a.name.cmp(&b.name));
    found.annotations = annotations(spec, own, &found);
    found
}

/// The own Node has other ranges than the pods here.
fn own_ranges(spec: &NodeSpec, own: &KubeNode) -> Option<String> {
    let (theirs, ours) = differing(&own.pod_cidrs, &spec.pod_cidrs)?;
    Some(format!(
        "this node's pods have the range {ours}, and its Node {theirs}: run homelab apply; if homelab.yaml says podCIDR for \
         {}, take that away",
        spec.node
    ))
}

/// The first range of `theirs` that is not the one of its family in `ours`, and that one.
fn differing<'a>(theirs: &'a [IpNet], ours: &'a [IpNet]) -> Option<(&'a IpNet, &'a IpNet)> {
    let same_family = |theirs: &IpNet| ours.iter().find(|net| is_v4(net) == is_v4(theirs));
    theirs
        .iter()
        .find_map(|theirs| Some((theirs, same_family(theirs)?)))
        .filter(|(theirs, ours)| theirs != ours)
}

fn is_v4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

/// A peer of the file: where its Node says that flannel runs there, flannel's word on MAC and IP address counts.
fn of_file(
    spec: &NodeSpec,
    peer: &PeerSpec,
    node: &KubeNode,
    mac: &dyn Fn(&str) -> String,
    found: &mut Peers,
) {
    let name = &peer.name;
    if let Some((theirs, ours)) = differing(&node.pod_cidrs, &peer.pod_cidrs) {
        found.complaints.push(format!(
            "Node {name} has the pod range {theirs}, and homelab {ours}: run homelab apply; if homelab.yaml says podCIDR for \
             {name}, take that away"
        ));
    }
    let Some(flannel) = &node.flannel else { return };
    match vtep(spec, flannel, &mac(name)) {
        Ok(None) => {}
        Ok(Some(vtep)) if leads_nowhere(spec, vtep.public_ip) => {
            found.complaints.push(format!("Node {name}: {}", nowhere(vtep.public_ip)));
        }
        Ok(Some(vtep)) => {
            let v4 = spec.address.is_ipv4();
            let (carried, left): (Vec<IpNet>, Vec<IpNet>) =
                peer.pod_cidrs.iter().partition(|net| is_v4(net) == v4);
            found.complaints.extend(left.first().map(|net| format!("Node {name}: {}", not_carried(net))));
            found.flannel.push(name.clone());
            let (address, mac) = (vtep.public_ip, vtep.mac.clone());
            found.peers.push(PeerSpec { name: name.clone(), address, mac, pod_cidrs: carried });
        }
        Err(why) => found.complaints.push(format!("Node {name}: {why}")),
    }
}

/// Whether no tunnel can lead to an address.
fn leads_nowhere(spec: &NodeSpec, address: IpAddr) -> bool {
    address.is_ipv4() != spec.address.is_ipv4()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback()
        || spec.cluster_cidrs.iter().any(|all| all.contains(&address))
}

fn nowhere(address: IpAddr) -> String {
    format!("no tunnel leads to its address {address}")
}

fn not_carried(net: &IpNet) -> String {
    let family = if is_v4(net) { "IPv4" } else { "IPv6" };
    format!(
        "flannel carries {family} in a tunnel of its own over {family}: {net} is not reached until homelab runs there"
    )
}

/// The end of flannel's tunnel that ours can meet; None: the annotations are homelab's own.
fn vtep<'a>(spec: &NodeSpec, flannel: &'a Flannel, ours: &str) -> Result<Option<&'a FlannelVtep>, String> {
    let v4 = spec.address.is_ipv4();
    if flannel.backend != "vxlan" {
        return Err(format!(
            "it runs flannel with the backend {}, which only flannel can talk to",
            flannel.backend
        ));
    }
    let Some(vtep) = flannel.over(v4) else {
        let family = if v4 { "IPv4" } else { "IPv6" };
        return Err(format!("it runs flannel without a tunnel over {family}, which is what ours goes over"));
    };
    if vtep.vni != spec.vtep.vni {
        let (theirs, ours) = (vtep.vni, spec.vtep.vni);
        return Err(format!(
            "it runs flannel with VNI {theirs}, and network.vxlan.vni is {ours}: make them the same"
        ));
    }
    if vtep.mac == ours {
        return Ok(None);
    }
    if !is_unicast_mac(&vtep.mac) {
        return Err(format!("flannel says that {:?} is its MAC address", vtep.mac));
    }
    Ok(Some(vtep))
}

fn is_unicast_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    let byte = |octet: &&str| octet.len() == 2 && octet.bytes().all(|b| b.is_ascii_hexdigit());
    octets.len() == 6
        && octets.iter().all(byte)
        && u8::from_str_radix(octets[0], 16).is_ok_and(|first| first & 1 == 0)
        && octets.iter().any(|octet| *octet != "00")
}

/// What is somebody's already.
struct Taken<'a> {
    spec: &'a NodeSpec,
    ranges: Vec<(IpNet, String)>,
    addresses: Vec<(IpAddr, String)>,
    macs: Vec<(String, String)>,
    /// What is wrong with a Node that is a peer all the same.
    remarks: Vec<String>,
}

impl<'a> Taken<'a> {
    fn new(spec: &'a NodeSpec) -> Taken<'a> {
        let mut taken = Taken {
            spec,
            ranges: spec.pod_cidrs.iter().map(|net| (*net, spec.node.clone())).collect(),
            addresses: vec![(spec.address, spec.node.clone())],
            macs: vec![(spec.vtep.mac.clone(), spec.node.clone())],
            remarks: Vec::new(),
        };
        spec.peers.iter().for_each(|peer| taken.keep(peer));
        taken
    }

    fn keep(&mut self, peer: &PeerSpec) {
        self.ranges.extend(peer.pod_cidrs.iter().map(|net| (*net, peer.name.clone())));
        self.addresses.push((peer.address, peer.name.clone()));
        self.macs.push((peer.mac.clone(), peer.name.clone()));
    }

    /// The peer that a Node is which the file does not have, and whether it runs flannel.
    fn peer(
        &mut self,
        name: &str,
        node: &KubeNode,
        mac: &dyn Fn(&str) -> String,
    ) -> Result<(PeerSpec, bool), String> {
        let spec = self.spec;
        let v4 = spec.address.is_ipv4();
        let ours = mac(name);
        let met = node.flannel.as_ref().map(|flannel| vtep(spec, flannel, &ours)).transpose()?.flatten();
        let annotated = node.flannel.as_ref().and_then(|flannel| flannel.over(v4));
        let internal = || node.addresses.iter().find(|address| address.is_ipv4() == v4).copied();
        let Some(address) = annotated.map(|vtep| vtep.public_ip).or_else(internal) else {
            let family = if v4 { "IPv4" } else { "IPv6" };
            return Err(format!("it has no InternalIP of {family}, which is what the tunnel goes over"));
        };
        if node.pod_cidrs.is_empty() {
            return Err(
                "it has no pod range yet: kube-controller-manager gives one with --allocate-node-cidrs"
                    .to_owned(),
            );
        }
        let used = |net: &&IpNet| self.spec.cluster_cidrs.iter().any(|all| is_v4(all) == is_v4(net));
        let mut pod_cidrs: Vec<IpNet> = node.pod_cidrs.iter().filter(used).copied().collect();
        if met.is_some() {
            let left = pod_cidrs.iter().find(|net| is_v4(net) != v4);
            self.remarks.extend(left.map(|net| format!("Node {name}: {}", not_carried(net))));
            pod_cidrs.retain(|net| is_v4(net) == v4);
        }
        let mac = met.map_or(ours, |vtep| vtep.mac.clone());
        let peer = PeerSpec { name: name.to_owned(), address, mac, pod_cidrs };
        self.holds(&peer)?;
        self.keep(&peer);
        Ok((peer, met.is_some()))
    }

    /// Whether a peer may have what it wants.
    fn holds(&self, peer: &PeerSpec) -> Result<(), String> {
        if peer.pod_cidrs.is_empty() {
            return Err("none of its pod ranges is of a family that the cluster uses".to_owned());
        }
        for net in &peer.pod_cidrs {
            let inside = |all: &&IpNet| all.contains(net) && all.prefix_len() < net.prefix_len();
            if *net != net.trunc() || !self.spec.cluster_cidrs.iter().any(|all| inside(&all)) {
                return Err(format!("its pod range {net} is no node's part of network.podCIDR"));
            }
            let overlaps = |other: &IpNet| other.contains(net) || net.contains(other);
            if let Some((other, holder)) = self.ranges.iter().find(|(other, _)| overlaps(other)) {
                return Err(format!("its pod range {net} is that of {holder}, {other}"));
            }
        }
        let address = peer.address;
        if leads_nowhere(self.spec, address) {
            return Err(nowhere(address));
        }
        if let Some((_, holder)) = self.addresses.iter().find(|(other, _)| *other == address) {
            return Err(format!("its address {address} is that of {holder}"));
        }
        if let Some((_, holder)) = self.macs.iter().find(|(other, _)| *other == peer.mac) {
            return Err(format!("its tunnel's MAC address {} is that of {holder}", peer.mac));
        }
        Ok(())
    }
}

/// Flannel on other nodes finds ours by what it would have written here itself. Once nobody needs that, it goes.
fn annotations(spec: &NodeSpec, own: Option<&KubeNode>, found: &Peers) -> Annotations {
    let Some(own) = own else { return Annotations::Any };
    let v4 = spec.address.is_ipv4();
    let here = own.flannel.as_ref().and_then(|flannel| flannel.over(v4));
    let left_here = own.flannel.is_some() && here.is_none_or(|vtep| vtep.mac != spec.vtep.mac);
    if found.flannel.is_empty() && !left_here {
        return Annotations::Gone(spec.vtep.mac.clone());
    }
    let data = FlannelData { vni: spec.vtep.vni, mac: spec.vtep.mac.clone() };
    let (address, key) = if v4 { ("public-ip", "backend-data") } else { ("public-ipv6", "backend-v6-data") };
    let all = [
        (address, spec.address.to_string()),
        ("backend-type", "vxlan".to_owned()),
        (key, serde_json::to_string(&data).unwrap_or_default()),
        ("kube-subnet-manager", "true".to_owned()),
    ];
    Annotations::Ours(all.into_iter().map(|(name, value)| (format!("{FLANNEL}{name}"), value)).collect())
}

impl Annotations {
    /// The merge patch of `nodes/NAME/status` that makes them so; None: they are. Flannel writes them by way of the status,
    /// too.
    pub fn patch(&self, now: &BTreeMap<String, String>) -> Option<Value> {
        let patch: BTreeMap<String, Value> = match self {
            Annotations::Any => return None,
            Annotations::Ours(wanted) => {
                let differs = |(name, value): &(&String, &String)| now.get(*name) != Some(*value);
                wanted.iter().filter(differs).map(|(name, value)| (name.clone(), json!(value))).collect()
            }
            Annotations::Gone(mac) => {
                let data = |name: &str| now.get(&format!("{FLANNEL}{name}"));
                let is_ours = |text: &String| {
                    serde_json::from_str::<FlannelData>(text).is_ok_and(|data| data.mac == *mac)
                };
                if !["backend-data", "backend-v6-data"].iter().any(|name| data(name).is_some_and(is_ours)) {
                    return None;
                }
                let written = WRITTEN.iter().map(|name| format!("{FLANNEL}{name}"));
                written.filter(|name| now.contains_key(name)).map(|name| (name, Value::Null)).collect()
            }
        };
        (!patch.is_empty()).then(|| json!({ "metadata": { "annotations": patch } }))
    }
}
