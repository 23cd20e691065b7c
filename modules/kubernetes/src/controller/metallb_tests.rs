//! MetalLB's end-to-end tests of address pools for namespaces with certain labels (`e2etest/l2tests/assignment.go`), by their
//! names: its resources and the namespaces as they are read from the API, the controller, and what it writes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::{Labels, SpeakerSpec};
use serde_json::{Value, json};

use super::tests::{Scene, service};
use crate::metallb::{Resources, meaning};

fn resources(pools: &Value) -> Resources {
    let mut all = Resources::default();
    for (name, spec) in pools.as_object().unwrap() {
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        assert_eq!(all.add("ipaddresspools", object), None);
    }
    all
}

fn labels(of: &[(&str, &[&str])]) -> BTreeMap<String, Labels> {
    let true_ones = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), "true".to_owned())).collect();
    of.iter().map(|(namespace, keys)| ((*namespace).to_owned(), true_ones(keys))).collect()
}

/// For namespaces that have all of these labels.
fn with_labels(keys: &[&str]) -> Value {
    let all: BTreeMap<&str, &str> = keys.iter().map(|key| (*key, "true")).collect();
    json!([{ "matchLabels": all }])
}

/// Has the controller see a new Service; gives its address.
fn create(scene: &mut Scene, name: &str) -> IpAddr {
    scene.services.insert(name.to_owned(), service(name, name, 5));
    scene.step();
    scene.step();
    let [address] = scene.services[name].status[..] else { panic!("{name} has no address") };
    address
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn with_namespace_and_namespace_labels() {
    let pools = resources(&json!({
        "test-ns-label-pool-1": {
            "addresses": ["192.168.5.0/32"],
            "serviceAllocation": { "priority": 20, "namespaces": ["l2"] },
        },
        "test-ns-label-pool-2": {
            "addresses": ["192.168.10.0/32"],
            "serviceAllocation": { "priority": 10, "namespaceSelectors": with_labels(&["foo1", "foo2"]) },
        },
        "ns-l2-ip-pool": {
            "addresses": ["192.168.20.0/32"], "serviceAllocation": { "namespaces": ["l2"] },
        },
    }));
    assert!(pools.wants_namespaces());
    let mut scene = Scene::new([]);
    // One of the labels is not both.
    let namespaces = labels(&[("l2", &["foo1", "foo2"]), ("half", &["foo1"])]);
    scene.pools = meaning(&pools, &SpeakerSpec::default(), &namespaces).pools;
    assert_eq!(create(&mut scene, "l2/one"), ip("192.168.10.0"), "the highest priority");
    assert_eq!(create(&mut scene, "l2/two"), ip("192.168.5.0"), "the next one");
    assert_eq!(create(&mut scene, "l2/three"), ip("192.168.20.0"), "no priority is the lowest");
    scene.services.insert("half/four".to_owned(), service("half/four", "half/four", 5));
    let said = scene.step().join("\n");
    assert!(said.contains("AllocationFailed"), "for others there is none: {said}");
}

#[test]
fn with_namespace_with_labels() {
    let pools = resources(&json!({
        "first-ns-labels-ip-pool": {
            "addresses": ["192.168.20.0/32"],
            "serviceAllocation": { "priority": 10, "namespaceSelectors": with_labels(&["first"]) },
        },
        "second-ns-labels-ip-pool": {
            "addresses": ["192.168.30.0/31"],
            "serviceAllocation": { "priority": 10, "namespaceSelectors": with_labels(&["second"]) },
        },
        "no-ns-labels-ip-pool": { "addresses": ["192.168.40.0/32"] },
        "second-ns-labels-higher-priority-ip-pool": {
            "addresses": ["192.168.50.0/32"],
            "serviceAllocation": { "priority": 5, "namespaceSelectors": with_labels(&["second", "new"]) },
        },
    }));
    let mut scene = Scene::new([]);
    let read = |namespaces| meaning(&pools, &SpeakerSpec::default(), &labels(namespaces)).pools;
    scene.pools = read(&[("l2", &["first"]), ("second", &["second"])]);
    assert_eq!(create(&mut scene, "second/one"), ip("192.168.30.0"));
    assert_eq!(create(&mut scene, "l2/one"), ip("192.168.20.0"));
    assert_eq!(create(&mut scene, "l2/two"), ip("192.168.40.0"), "its own pool is used up");
    // The second namespace gets a label more. MetalLB's pools have one address each; here one is left in the pool of lower
    // priority, which is not the one that counts.
    scene.pools = read(&[("l2", &["first"]), ("second", &["second", "new"])]);
    assert_eq!(create(&mut scene, "second/two"), ip("192.168.50.0"));
    assert_eq!(scene.services["second/one"].status, [ip("192.168.30.0")], "what is given stays");
    let told: Vec<IpAddr> = ["l2/one", "l2/two"].map(|name| scene.services[name].status[0]).into();
    assert_eq!(told, [ip("192.168.20.0"), ip("192.168.40.0")]);
}
