//! The services of the file with all that it leaves open chosen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::service::{Endpoint, Service};
use homelab_model::{Cluster, ContainerEndpoint, Facts, Node, Observed, Ranges, assign, ours};
use ipnet::IpNet;

/// The services, as every node is told them. What cannot be had, or is amiss, is said in `warnings`.
pub(crate) fn services(
    cluster: &Cluster,
    pods: &BTreeMap<String, Vec<IpNet>>,
    seen: &BTreeMap<String, &Observed>,
    warnings: &mut Vec<String>,
) -> Vec<Service> {
    let mut memory: BTreeMap<String, Service> = BTreeMap::new();
    let records = cluster.nodes.iter().filter_map(|node| seen.get(&node.name)?.spec.as_ref());
    for service in records.flat_map(|spec| &spec.services) {
        memory.entry(service.full_name()).or_insert_with(|| service.clone());
    }
    let ranges = Ranges {
        service_cidrs: cluster.network.service_cidrs.clone(),
        node_ports: cluster.network.node_port_range,
        pools: cluster.load_balancer.pools.clone(),
        taken: cluster.load_balancer.taken.clone(),
    };
    let addresses = |wanted: &ContainerEndpoint| -> Vec<IpAddr> {
        let Some(observed) = seen.get(&wanted.node) else { return Vec::new() };
        let attachments = observed.facts.attachments.iter();
        let found = attachments.filter(|a| a.interface == wanted.interface && a.is_of(&wanted.container));
        found.flat_map(|attachment| attachment.addresses.iter().copied()).collect()
    };
    let mut assigned = assign(&cluster.services, &memory, &ranges, &addresses);
    for refusal in assigned.refused {
        warnings.push(format!("service {} is left out: {}", refusal.service, refusal.reason));
    }
    warnings.extend(assigned.warnings);
    for service in &mut assigned.services {
        let distribution = service.traffic_distribution.clone();
        for endpoint in service.endpoints.iter_mut().filter(|endpoint| endpoint.node.is_none()) {
            place(endpoint, cluster, pods, distribution.as_deref());
        }
    }
    assigned.services
}

/// Says on which node an endpoint is, where its address tells, and what follows from that.
fn place(
    endpoint: &mut Endpoint,
    cluster: &Cluster,
    pods: &BTreeMap<String, Vec<IpNet>>,
    distribution: Option<&str>,
) {
    let address = endpoint.address;
    let is_home = |node: &&Node| {
        let ranges = pods.get(&node.name).into_iter().flatten();
        address == node.address
            || Some(address) == node.address6
            || ranges.into_iter().any(|range| range.contains(&address))
    };
    let Some(node) = cluster.nodes.iter().find(is_home) else { return };
    endpoint.node = Some(node.name.clone());
    endpoint.zone = endpoint.zone.take().or_else(|| node.zone.clone());
    endpoint.hint(distribution);
}

/// The node's addresses that take node ports: those of the file, or those that it has inside the chosen ranges.
pub(crate) fn node_port_addresses(cluster: &Cluster, node: &Node, facts: &Facts) -> Vec<IpAddr> {
    let chosen = &cluster.network.node_port_addresses;
    if chosen.is_empty() {
        return [Some(node.address), node.address6].into_iter().flatten().collect();
    }
    let own = |link: &str| link == ours::BRIDGE || link == cluster.network.vxlan.device;
    let mut addresses: Vec<IpAddr> = facts
        .addresses
        .iter()
        .filter(|held| !own(&held.link))
        .map(|held| held.address.addr())
        .filter(|address| !address.is_loopback() && chosen.iter().any(|range| range.contains(address)))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
