//! The services of the file with all that it leaves open chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_model::service::{Endpoint, Service};
use homelab_model::{
    Assigned, Cluster, ContainerEndpoint, ContainerName, Facts, Node, NodeSpec, Observed, Ranges,
    ServiceContainer, assign, found, ours, without_containers,
};
use ipnet::IpNet;

/// The services with their containers, as every node is told them. What cannot be had, or is amiss, is said in `warnings`.
pub(crate) fn services(
    cluster: &Cluster,
    pods: &BTreeMap<String, Vec<IpNet>>,
    seen: &BTreeMap<String, &Observed>,
    warnings: &mut Vec<String>,
) -> (Vec<Service>, Vec<ServiceContainer>) {
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
        let ContainerEndpoint { node, container, interface, .. } = wanted.clone();
        let name = ContainerName { node, container, interface };
        match seen.get(&name.node) {
            Some(observed) => name.addresses(&observed.facts.attachments),
            None => last_known(&name, cluster, seen),
        }
    };
    let mut assigned = assign(&cluster.services, &memory, &ranges, &addresses);
    for refusal in std::mem::take(&mut assigned.refused) {
        warnings.push(format!("service {} is left out: {}", refusal.service, refusal.reason));
    }
    warnings.extend(std::mem::take(&mut assigned.warnings));
    absent(&assigned, seen, warnings);
    for service in &mut assigned.services {
        let distribution = service.traffic_distribution.clone();
        for endpoint in service.endpoints.iter_mut().filter(|endpoint| endpoint.node.is_none()) {
            place(endpoint, cluster, pods, distribution.as_deref());
        }
    }
    (assigned.services, assigned.containers)
}

/// Where a container was whose node cannot be asked, by what others know.
fn last_known(name: &ContainerName, cluster: &Cluster, seen: &BTreeMap<String, &Observed>) -> Vec<IpAddr> {
    let others = || cluster.nodes.iter().filter_map(|node| seen.get(&node.name));
    let heard = others().filter_map(|observed| observed.facts.containers.get(name));
    let heard = heard.map(|known| known.addresses.clone()).next();
    let told = || {
        let records =
            others().filter_map(|observed| observed.spec.as_ref()).flat_map(|spec| &spec.containers);
        records.filter(|record| record.name == *name).map(|record| record.addresses.clone()).next()
    };
    heard.or_else(told).unwrap_or_default()
}

/// Says which containers are no endpoints now.
fn absent(assigned: &Assigned, seen: &BTreeMap<String, &Observed>, warnings: &mut Vec<String>) {
    for record in assigned.containers.iter().filter(|record| record.addresses.is_empty()) {
        let ServiceContainer { service, name: ContainerName { node, container, .. }, .. } = record;
        warnings.push(match seen.contains_key(node) {
            true => format!(
                "service {service}: node {node} has no running container `{container}`; it is an endpoint from when it starts"
            ),
            false => format!(
                "service {service}: it is not known where the container `{container}` is, because {node} cannot be asked; it is \
                 an endpoint once its node says so"
            ),
        });
    }
}

/// Leaves in a node's configuration where containers were when it was made, if its agent knows by itself where they are now:
/// what agents follow is no change, and no apply puts back where a container was.
pub(crate) fn keep_places(spec: &mut NodeSpec, observed: &Observed, seen: &BTreeMap<String, &Observed>) {
    let Some(before) = &observed.spec else { return };
    let of = |records: &[ServiceContainer], name: &str| -> Vec<ServiceContainer> {
        records.iter().filter(|record| record.service == name).cloned().collect()
    };
    let bare = |service: &Service, records: &[ServiceContainer]| {
        without_containers(service, &records.iter().collect::<Vec<_>>())
    };
    let told = found(&before.containers);
    let follows = |(new, old): (&ServiceContainer, &ServiceContainer)| {
        let known = observed.facts.containers.get(&old.name);
        let known = known.filter(|known| told.get(&old.name) == Some(&known.told));
        // What is known of a container whose node cannot be asked is as good as it gets.
        let right = |addresses| addresses == &new.addresses || !seen.contains_key(&old.name.node);
        (&new.name, &new.endpoint) == (&old.name, &old.endpoint)
            && known.is_some_and(|known| right(&known.addresses))
    };
    // Most services name no container, and there may be thousands of them.
    let named: BTreeSet<String> = spec.containers.iter().map(|record| record.service.clone()).collect();
    for service in &mut spec.services {
        let name = service.full_name();
        if !named.contains(&name) {
            continue;
        }
        let (new, old) = (of(&spec.containers, &name), of(&before.containers, &name));
        let Some(service_before) = before.services.iter().find(|one| one.full_name() == name) else {
            continue;
        };
        let same = new.len() == old.len() && new.iter().zip(&old).all(follows);
        if !same || bare(service, &new) != bare(service_before, &old) {
            continue;
        }
        service.clone_from(service_before);
        let records = spec.containers.iter_mut().filter(|record| record.service == name);
        records.zip(old).for_each(|(record, old)| *record = old);
    }
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
