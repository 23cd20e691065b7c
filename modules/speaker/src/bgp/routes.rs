//! Which prefixes a node tells which routers, as far as files, the API and the node itself say it. Every node that may tell an
//! address does: routers spread packets over them (ECMP), and there is no election.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_model::service::Service;
use homelab_model::{BgpAdvertisement, BgpCommunity, BgpPeer, BgpSpec, LbUnfit, Selector, SpeakerSpec};
use ipnet::IpNet;

use crate::addresses::{Cluster, Holder, holders};

/// A prefix that a node tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// The addresses that it stands for, sorted.
    pub addresses: Vec<IpAddr>,
    /// Names of the peers that are told, and how. Never empty.
    pub peers: BTreeMap<String, Attributes>,
}

/// How a peer is told of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// LOCAL_PREF; always None for a router of another autonomous system.
    pub local_pref: Option<u32>,
    /// Communities, sorted, each once.
    pub communities: Vec<BgpCommunity>,
}

/// What a node knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Can {
    /// Its services are in place.
    pub ready: bool,
    /// It is to have no addresses, or is about to stop.
    pub cordoned: bool,
}

/// The peers that a node has sessions with, in the order of the settings.
pub fn peers_of<'a>(spec: &'a SpeakerSpec, node: &str) -> Vec<&'a BgpPeer> {
    let (Some(bgp), Some(node)) = (&spec.bgp, spec.nodes.iter().find(|one| one.name == node)) else {
        return Vec::new();
    };
    bgp.peers.iter().filter(|peer| Selector::any(&peer.node_selectors, &node.labels)).collect()
}

/// What a node tells its peers, sorted by prefix. An address is told to a peer if each of the services that share it has an
/// advertisement that chooses the node and the peer. Where several advertisements give a peer the same prefix, the communities
/// are joined and the highest LOCAL_PREF counts. A peer is told of addresses of its own family only, since for the other the
/// session has no next hop; MetalLB does the same unless `dualStackAddressFamily` is set.
pub fn routes(spec: &SpeakerSpec, node: &str, services: &[Service], can: Can) -> Vec<Route> {
    let Some(bgp) = spec.bgp.as_ref().filter(|_| can.ready && !can.cordoned) else { return Vec::new() };
    let cluster = Cluster::of(spec, &bgp.advertisements);
    let Some(index) = cluster.node(node) else { return Vec::new() };
    let peers = peers_of(spec, node);

    let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
    for holders in holders(services).chunk_by(|(a, _), (b, _)| a == b) {
        let address = holders[0].0;
        let demands = cluster.demands(holders, address, cluster.pool(address));
        let Ok(selected) = cluster.select(index, &demands) else { continue };
        for peer in peers.iter().filter(|peer| peer.peer_address.is_ipv4() == address.is_ipv4()) {
            let by: Vec<Vec<&BgpAdvertisement>> =
                selected.iter().map(|of_one| to(bgp, of_one, peer)).collect();
            if by.iter().any(Vec::is_empty) {
                continue;
            }
            for advertisement in by.into_iter().flatten() {
                let Some(prefix) = prefix(advertisement, address) else { continue };
                let route = routes.entry(prefix).or_insert_with(|| Route {
                    prefix,
                    addresses: Vec::new(),
                    peers: BTreeMap::new(),
                });
                if route.addresses.last() != Some(&address) {
                    route.addresses.push(address);
                }
                let internal = peer.peer_asn == bgp.my_asn;
                route.peers.entry(peer.name.clone()).or_default().add(advertisement, internal);
            }
        }
    }
    routes.into_values().collect()
}

/// By address of a pool, why nodes may not tell it; a node that may, or that only lacks a router for it, gives no reason.
pub fn unfit(spec: &SpeakerSpec, services: &[Service]) -> BTreeMap<IpAddr, BTreeSet<LbUnfit>> {
    let Some(bgp) = &spec.bgp else { return BTreeMap::new() };
    let cluster = Cluster::of(spec, &bgp.advertisements);
    let reasons = |holders: &[Holder<'_>]| {
        let address = holders[0].0;
        let pool = cluster.pool(address)?;
        let demands = cluster.demands(holders, address, Some(pool));
        let nodes = 0..spec.nodes.len();
        Some((address, nodes.filter_map(|node| cluster.select(node, &demands).err()).collect()))
    };
    holders(services).chunk_by(|(a, _), (b, _)| a == b).filter_map(reasons).collect()
}

/// Those of some advertisements that are for a peer.
fn to<'a>(bgp: &'a BgpSpec, indices: &[usize], peer: &BgpPeer) -> Vec<&'a BgpAdvertisement> {
    indices.iter().map(|index| &bgp.advertisements[*index]).filter(|one| one.is_to(&peer.name)).collect()
}

/// The prefix that is told for an address; None if the length is none of its family, which the file's check refuses.
fn prefix(advertisement: &BgpAdvertisement, address: IpAddr) -> Option<IpNet> {
    IpNet::new(address, advertisement.length(address)).ok().map(|net| net.trunc())
}

impl Attributes {
    fn add(&mut self, advertisement: &BgpAdvertisement, internal: bool) {
        if internal {
            self.local_pref = self.local_pref.max(advertisement.local_pref);
        }
        for community in &advertisement.communities {
            if let Err(at) = self.communities.binary_search(community) {
                self.communities.insert(at, *community);
            }
        }
    }
}
