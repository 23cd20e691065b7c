//! What the speakers are told, and what nobody will announce.

use std::collections::BTreeSet;

use homelab_desired::{Candidate, candidates, unfit};
use homelab_model::service::Service;
use homelab_model::{Cluster, Facts, LABEL_EXCLUDE, LbUnfit, LinkFact, SpeakerNode, SpeakerSpec};

use crate::bgp::told;

/// Whether there are load-balancer addresses to give: Kubernetes may have pools, too (MetalLB's resources).
pub(crate) fn gives(cluster: &Cluster) -> bool {
    !cluster.load_balancer.pools.is_empty() || cluster.kubernetes.is_some()
}

/// Whether nodes are to tell each other where containers are.
fn follows(cluster: &Cluster) -> bool {
    cluster.nodes.len() > 1 && cluster.services.iter().any(|declared| !declared.containers.is_empty())
}

/// What every node's speaker is told; None if they have neither addresses to announce nor containers to tell of. The order of
/// the file is no difference.
pub(crate) fn speaker(cluster: &Cluster) -> Option<SpeakerSpec> {
    let balancer = &cluster.load_balancer;
    if !gives(cluster) && !follows(cluster) {
        return None;
    }
    let node = |node: &homelab_model::Node| SpeakerNode {
        name: node.name.clone(),
        address: node.address,
        labels: node.effective_labels(),
    };
    let mut spec = SpeakerSpec {
        port: balancer.port,
        nodes: cluster.nodes.iter().map(node).collect(),
        pools: balancer.pools.clone(),
        advertisements: balancer.l2_advertisements.clone(),
        bgp: balancer.bgp.as_ref().map(|bgp| bgp.spec.clone().sorted()),
    };
    spec.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    spec.pools.sort_by(|a, b| a.name.cmp(&b.name));
    spec.advertisements.sort_by(|a, b| a.name.cmp(&b.name));
    Some(spec)
}

/// Says on which of a node's interfaces requests for addresses may get lost: radios (metallb#253, #284, #454), and strict
/// filters beside another default gateway (metallb#319, #533, #610).
pub(crate) fn lossy(
    spec: &SpeakerSpec,
    node: &str,
    lan: Option<&LinkFact>,
    facts: &Facts,
    warnings: &mut Vec<String>,
) {
    let named = |link: &LinkFact| spec.advertisements.iter().any(|one| one.interfaces.contains(&link.name));
    let by_network = spec.advertisements.iter().any(|one| one.interfaces.is_empty());
    // Where no interface is named, the one whose network holds an address announces it, else the LAN's.
    let holds = |link: &LinkFact| {
        let ranges = || spec.pools.iter().flat_map(|pool| &pool.addresses);
        let nets = facts.addresses.iter().filter(|held| held.link == link.name).map(|held| held.address);
        lan.is_some_and(|lan| lan.name == link.name)
            || nets.into_iter().any(|net| ranges().any(|r| net.contains(&r.first) || net.contains(&r.last)))
    };
    let default =
        facts.routes.iter().find(|r| r.destination.addr().is_ipv4() && r.destination.prefix_len() == 0);
    let gateway = default.and_then(|route| route.link.as_deref());
    for link in facts.links.iter().filter(|link| named(link) || (by_network && holds(link))) {
        if link.wireless {
            warnings.push(format!(
                "{node}: load-balancer addresses may be announced on {}, which is wireless: access points and drivers often \
                 keep requests for other addresses than the interface's own from it; use a cable, leave the node out by \
                 `nodeSelectors`, or try `ip link set {0} promisc on`",
                link.name
            ));
        }
        if let Some(gateway) = gateway.filter(|gateway| link.strict_rp_filter && *gateway != link.name) {
            warnings.push(format!(
                "{node}: load-balancer addresses may be announced on {}, where clients of other networks are dropped: \
                 `net.ipv4.conf.{0}.rp_filter` (or that of `all`) is 1, and answers to them leave by {gateway}; set it to 2, or \
                 give the node a route to those clients on {0}",
                link.name
            ));
        }
    }
}

/// Says which nodes announce nothing, and which addresses nobody announces.
pub(crate) fn unannounced(spec: &SpeakerSpec, services: &[Service], warnings: &mut Vec<String>) {
    for node in spec.nodes.iter().filter(|node| node.labels.contains_key(LABEL_EXCLUDE)) {
        warnings.push(format!(
            "{} announces no load-balancer addresses: it has the label {LABEL_EXCLUDE}",
            node.name
        ));
    }
    let told = told(spec, services);
    let mut untold = unfit(spec, services);
    for candidate in candidates(services, spec) {
        if told.contains(&candidate.address) {
            continue;
        }
        let Some(why) = silence(&candidate, untold.remove(&candidate.address)) else { continue };
        for service in &candidate.services {
            warnings.push(format!(
                "service {service}: nobody announces its load-balancer address {}: {why}",
                candidate.address
            ));
        }
    }
}

/// Why no node may announce an address, if none may; `untold` is why none may tell routers of it. An address in no pool is
/// somebody else's.
fn silence(candidate: &Candidate, untold: Option<BTreeSet<LbUnfit>>) -> Option<String> {
    let pool = candidate.pool.as_ref().filter(|_| candidate.placement.nodes.is_empty())?;
    if untold.as_ref().is_some_and(BTreeSet::is_empty) {
        return Some(
            "no BGP peer of its family has a session with a node that may tell it, or services that share it are for different \
             peers"
                .to_owned(),
        );
    }
    let untold = untold.unwrap_or_default();
    let excluded = &candidate.placement.excluded;
    let because = |why| untold.contains(&why) || excluded.iter().any(|(_, reason)| *reason == why);
    // The last hurdle that a node failed at: the others did not come so far.
    Some(if because(LbUnfit::NoCommonInterface) {
        "services that share it are to be announced on different interfaces".to_owned()
    } else if because(LbUnfit::NoLocalEndpoint) {
        "no node that could has an endpoint, which `externalTrafficPolicy: Local` asks for".to_owned()
    } else if because(LbUnfit::ExcludeLabel) {
        format!("all nodes that could have the label {LABEL_EXCLUDE}")
    } else if because(LbUnfit::NotSelected) {
        format!("no node fits the `nodeSelectors` of the advertisements for pool {pool}")
    } else {
        format!("no advertisement is for pool {pool} and this service")
    })
}
