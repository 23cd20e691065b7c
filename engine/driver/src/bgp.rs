//! What BGP needs of the nodes, and what stands in its way there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use homelab_model::service::Service;
use homelab_model::{BgpPeer, Facts, FrrFact, NodeSpec, Problem, SpeakerSpec, ours};

/// What a node that has sessions needs: FRR, its own or one that is installed for it.
pub(crate) fn frr(
    spec: &mut NodeSpec,
    facts: &Facts,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    let peers = homelab_desired::bgp_peers(spec);
    if peers.is_empty() {
        return;
    }
    let watched = peers.iter().any(|peer| peer.bfd_profile.is_some());
    let mut problem = |message: &str, help: &str| {
        problems.push(Problem { message: message.to_owned(), help: help.to_owned() });
    };
    let install = match &facts.frr {
        None if !facts.apt => {
            problem(
                "BGP needs FRR, which is not installed, and there is no apt-get by which homelab could install it",
                "install FRR on the node as its distribution has it; homelab then uses its daemons, and leaves its \
                 service and configuration alone",
            );
            false
        }
        None => true,
        Some(frr) => {
            if watched && !frr.bfd {
                problem(
                    "FRR is installed, but not its bfdd, which peers with a `bfdProfile` need",
                    "install FRR with bfdd on the node, or take `bfdProfile` off the peer",
                );
            }
            warnings.extend(rivals(&spec.node, &peers, frr));
            frr.ours
        }
    };
    if install {
        spec.packages.push(ours::FRR_PACKAGE.to_owned());
    }
}

/// Says where the user's own FRR and ours get in each other's way.
fn rivals(node: &str, peers: &[&BgpPeer], frr: &FrrFact) -> Vec<String> {
    let mut warnings = Vec::new();
    let both: BTreeSet<IpAddr> =
        peers.iter().map(|p| p.peer_address).filter(|a| frr.bgpd && frr.neighbors.contains(a)).collect();
    for address in both {
        warnings.push(format!(
            "{node}: another bgpd runs here, and has {address} among its neighbours, too: a router keeps one session with \
             an address, so the two disturb each other; take the neighbour out of that configuration, or give homelab's \
             peer another `sourceAddress`"
        ));
    }
    if frr.bfdd && peers.iter().any(|peer| peer.bfd_profile.is_some()) {
        warnings.push(format!(
            "{node}: another bfdd runs here; the two take each other's packets. Switch it off (bfdd=no in \
             /etc/frr/daemons, then systemctl restart frr), or leave `bfdProfile` out for this node"
        ));
    }
    warnings
}

/// Says which peers have no node, and which nodes no peer.
pub(crate) fn unpaired(spec: &SpeakerSpec, warnings: &mut Vec<String>) {
    let Some(bgp) = &spec.bgp else { return };
    let pairs: BTreeSet<(&str, &str)> = spec
        .nodes
        .iter()
        .flat_map(|node| {
            let peers = homelab_desired::peers_of(spec, &node.name);
            peers.into_iter().map(|peer| (node.name.as_str(), peer.name.as_str()))
        })
        .collect();
    for peer in bgp.peers.iter().filter(|peer| !pairs.iter().any(|(_, name)| *name == peer.name)) {
        warnings.push(format!(
            "BGP peer {}: no node fits its `nodeSelectors`, so nobody has a session with it",
            peer.name
        ));
    }
    let lonely = |node: &&homelab_model::SpeakerNode| !pairs.iter().any(|(name, _)| *name == node.name);
    for node in spec.nodes.iter().filter(lonely).filter(|_| !pairs.is_empty()) {
        warnings
            .push(format!("{}: no BGP peer is for this node, so it tells no router of addresses", node.name));
    }
}

/// The addresses that some node tells a router of, if all goes well there.
pub(crate) fn told(spec: &SpeakerSpec, services: &[Service]) -> BTreeSet<IpAddr> {
    let can = homelab_desired::Can { ready: true, cordoned: false };
    let routes = |node: &homelab_model::SpeakerNode| homelab_desired::routes(spec, &node.name, services, can);
    spec.nodes.iter().flat_map(routes).flat_map(|route| route.addresses).collect()
}
