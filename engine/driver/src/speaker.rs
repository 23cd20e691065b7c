//! What the speakers are told, and what nobody will announce.

use homelab_model::service::{IpMode, Service};
use homelab_model::{Cluster, L2Advertisement, LABEL_EXCLUDE, Labels, Selector, SpeakerNode, SpeakerSpec};

/// What every node's speaker is told; None without pools. The order of the file is no difference.
pub(crate) fn speaker(cluster: &Cluster) -> Option<SpeakerSpec> {
    let balancer = &cluster.load_balancer;
    if balancer.pools.is_empty() {
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
    };
    spec.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    spec.pools.sort_by(|a, b| a.name.cmp(&b.name));
    spec.advertisements.sort_by(|a, b| a.name.cmp(&b.name));
    Some(spec)
}

/// Says which nodes announce nothing, and which addresses nobody announces.
pub(crate) fn unannounced(spec: &SpeakerSpec, services: &[Service], warnings: &mut Vec<String>) {
    for node in spec.nodes.iter().filter(excluded) {
        warnings.push(format!(
            "{} announces no load-balancer addresses: it has the label {LABEL_EXCLUDE}",
            node.name
        ));
    }
    for service in services {
        for one in service.load_balancer.iter().filter(|one| one.ip_mode == IpMode::Vip) {
            let Some(pool) = spec.pools.iter().find(|pool| pool.holds(one.ip)) else { continue };
            if let Some(why) = silence(spec, &pool.name, service) {
                warnings.push(format!(
                    "service {}: nobody announces its load-balancer address {}: {why}",
                    service.full_name(),
                    one.ip
                ));
            }
        }
    }
}

fn excluded(node: &&SpeakerNode) -> bool {
    node.labels.contains_key(LABEL_EXCLUDE)
}

/// Why no node may announce a service's address of a pool, as far as selectors and labels say.
fn silence(spec: &SpeakerSpec, pool: &str, service: &Service) -> Option<String> {
    let any = |selectors: &[Selector], labels: &Labels| {
        selectors.is_empty() || selectors.iter().any(|selector| selector.matches(labels))
    };
    let fits = |one: &&L2Advertisement| {
        (one.ip_address_pools.is_empty() || one.ip_address_pools.iter().any(|name| name == pool))
            && any(&one.service_selectors, &service.labels)
    };
    let advertisements: Vec<&L2Advertisement> = spec.advertisements.iter().filter(fits).collect();
    let chosen =
        |node: &&SpeakerNode| advertisements.iter().any(|one| any(&one.node_selectors, &node.labels));
    let nodes: Vec<&SpeakerNode> = spec.nodes.iter().filter(chosen).collect();
    if advertisements.is_empty() {
        return Some(format!("no advertisement is for pool {pool} and this service"));
    }
    if nodes.is_empty() {
        let names: Vec<&str> = advertisements.iter().map(|one| one.name.as_str()).collect();
        return Some(format!("no node fits the `nodeSelectors` of {}", names.join(" and ")));
    }
    nodes.iter().all(excluded).then(|| format!("all nodes that could have the label {LABEL_EXCLUDE}"))
}
