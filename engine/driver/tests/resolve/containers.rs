//! Endpoints that are containers: what nodes are told, and what is no change.

use std::collections::BTreeMap;

use homelab_driver::Resolution;
use homelab_model::{
    AttachmentFact, Cluster, ContainerEndpoint, ContainerName, Declared, KnownContainer, KnownContainers,
    NodeSpec, Observed,
};

use super::{TWO, cluster, resolve, with_service};

/// A service whose endpoints are the containers `a` of node1 and `b` of node2.
fn followed() -> Cluster {
    let mut cluster = with_service(cluster(&TWO));
    let Declared { service, containers, .. } = &mut cluster.services[0];
    let plain = service.endpoints[0].clone();
    service.endpoints.clear();
    for (node, container) in [("node1", "a"), ("node2", "b")] {
        let mut endpoint = plain.clone();
        endpoint.address = "0.0.0.0".parse().expect("an address");
        endpoint.node = Some(node.into());
        containers.push(ContainerEndpoint {
            node: node.into(),
            container: container.into(),
            interface: "eth0".into(),
            endpoint,
        });
    }
    cluster
}

/// A node with a container at this address, or without it.
fn with(mut observed: Observed, container: &str, address: Option<&str>) -> Observed {
    let attachment = |address: &str| AttachmentFact {
        container: container.into(),
        interface: "eth0".into(),
        pod: None,
        link: "hl1".into(),
        addresses: vec![address.parse().expect("an address")],
    };
    observed.facts.attachments = address.into_iter().map(attachment).collect();
    observed
}

fn both(cluster: &Cluster, one: &Observed, two: Option<&Observed>) -> Resolution {
    let mut seen = BTreeMap::from([("node1".to_owned(), one)]);
    seen.extend(two.map(|two| ("node2".to_owned(), two)));
    resolve(cluster, &seen, &BTreeMap::new()).expect("ranges fit")
}

fn endpoints(spec: &NodeSpec) -> Vec<String> {
    spec.services[0].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

/// What node1's agent knows after it was told `spec`: where `a` is, and `b`.
fn known(spec: &NodeSpec, addresses: [&[&str]; 2]) -> KnownContainers {
    let one = |(record, addresses): (&homelab_model::ServiceContainer, &[&str])| KnownContainer {
        name: record.name.clone(),
        told: record.addresses.clone(),
        addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        said: true,
    };
    KnownContainers {
        containers: spec.containers.iter().zip(addresses).map(one).collect(),
        ..KnownContainers::default()
    }
}

#[test]
fn what_agents_follow_is_no_change() {
    let cluster = followed();
    let (mut one, two) =
        (with(super::observed(), "a", Some("10.244.0.5")), with(super::observed(), "b", Some("10.244.1.5")));
    let first = both(&cluster, &one, Some(&two)).specs["node1"].clone();
    assert_eq!(endpoints(&first), ["10.244.0.5", "10.244.1.5"]);
    // They tell each other of it, though there are no addresses to announce.
    assert_eq!(first.speaker.as_ref().map(|speaker| speaker.nodes.len()), Some(2));
    one.spec = Some(first.clone());
    let moved = with(two.clone(), "b", Some("10.244.1.9"));

    // An agent that knows nothing is told where they are.
    let next = |one: &Observed, two: Option<&Observed>| both(&cluster, one, two).specs["node1"].clone();
    assert_eq!(endpoints(&next(&one, Some(&moved))), ["10.244.0.5", "10.244.1.9"]);
    // One that knows is told nothing; one that is wrong is.
    one.facts.containers = known(&first, [&["10.244.0.5"], &["10.244.1.9"]]);
    assert_eq!(next(&one, Some(&moved)), first);
    one.facts.containers = known(&first, [&["10.244.0.5"], &["10.244.1.7"]]);
    assert_eq!(endpoints(&next(&one, Some(&moved))), ["10.244.0.5", "10.244.1.9"]);
    // What it knows came before what it was told last.
    one.facts.containers = known(&first, [&["10.244.0.5"], &["10.244.1.9"]]);
    one.facts.containers.containers[1].told.clear();
    assert_eq!(endpoints(&next(&one, Some(&moved))), ["10.244.0.5", "10.244.1.9"]);

    // A container that ended is no change either, and said.
    one.facts.containers = known(&first, [&["10.244.0.5"], &[]]);
    let ended = both(&cluster, &one, Some(&with(two.clone(), "b", None)));
    assert_eq!(ended.specs["node1"], first);
    let said =
        "service default/web: node node2 has no running container `b`; it is an endpoint from when it starts";
    assert!(ended.warnings.iter().any(|warning| warning == said), "{:?}", ended.warnings);
    // A node that cannot be asked: what the others know is as good as it gets.
    one.facts.containers = known(&first, [&["10.244.0.5"], &["10.244.1.8"]]);
    let dead = both(&cluster, &one, None);
    assert_eq!((&dead.specs["node1"], &dead.warnings), (&first, &Vec::new()));

    // With another change of the service, what is applied is where they are.
    let mut altered = cluster.clone();
    altered.services[0].service.session_affinity = homelab_model::service::Affinity::ClientIp;
    one.facts.containers = known(&first, [&["10.244.0.5"], &["10.244.1.9"]]);
    let after = both(&altered, &one, Some(&moved)).specs["node1"].clone();
    assert_eq!(endpoints(&after), ["10.244.0.5", "10.244.1.9"]);
    let dead = both(&altered, &one, None).specs["node1"].clone();
    assert_eq!(endpoints(&dead), ["10.244.0.5", "10.244.1.9"]);
    assert_eq!(
        dead.containers[1].name,
        ContainerName { node: "node2".into(), container: "b".into(), interface: "eth0".into() }
    );
}
