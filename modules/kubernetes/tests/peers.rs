//! Which peers Nodes of the API are, and what is written for flannel.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;

use fixtures::{net, peer};
use homelab_kubernetes::KubeNode;
use homelab_kubernetes::peers::{Annotations, Peers, peers};
use homelab_model::{KubernetesSpec, NodeSpec, NodesFrom, PeerSpec, stable_mac};
use serde_json::{Value, json};

const FLANNELS: &str = "86:01:02:03:04:05";

fn mac(name: &str) -> String {
    stable_mac(&["homelab", "vtep", "home", name])
}

/// node1, 192.168.50.11, 10.244.0.0/24.
fn spec(dual: bool) -> NodeSpec {
    let kubernetes =
        KubernetesSpec { nodes: NodesFrom::FromKubernetes, ..KubernetesSpec::new(Vec::new(), "node1") };
    NodeSpec { kubernetes: Some(kubernetes), ..fixtures::spec(dual) }
}

fn node(address: &str, ranges: &[&str], annotations: &[(&str, &str)]) -> KubeNode {
    let prefixed = |(name, text): &(&str, &str)| (format!("flannel.alpha.coreos.com/{name}"), json!(text));
    let annotations: serde_json::Map<String, Value> = annotations.iter().map(prefixed).collect();
    let object = json!({
        "metadata": { "name": "x", "annotations": annotations },
        "spec": { "podCIDRs": ranges },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    });
    homelab_kubernetes::node(&serde_json::from_value(object).unwrap())
}

fn flannel(address: &str, range: &str, vni: u32, mac: &str) -> KubeNode {
    let data = format!("{{\"VNI\":{vni},\"VtepMAC\":\"{mac}\"}}");
    let annotations = [
        ("backend-type", "vxlan"),
        ("backend-data", data.as_str()),
        ("public-ip", address),
        ("kube-subnet-manager", "true"),
    ];
    node(address, &[range], &annotations)
}

fn own() -> (&'static str, KubeNode) {
    ("node1", node("192.168.50.11", &["10.244.0.0/24"], &[]))
}

fn of(spec: &NodeSpec, nodes: &[(&str, KubeNode)], before: &[PeerSpec]) -> Peers {
    let nodes: BTreeMap<String, KubeNode> =
        nodes.iter().map(|(name, node)| ((*name).to_owned(), node.clone())).collect();
    peers(spec, &nodes, before, &mac)
}

fn complaint(nodes: &[(&str, KubeNode)]) -> String {
    let mut all = vec![own()];
    all.extend(nodes.iter().cloned());
    let found = of(&spec(false), &all, &[]);
    assert_eq!(found.complaints.len(), 1, "{found:?}");
    found.complaints[0].clone()
}

#[test]
fn nodes_that_the_file_does_not_have_are_peers() {
    let two = node("192.168.50.12", &["10.244.2.0/24", "fd00:10:244:2::/64"], &[]);
    let found = of(&spec(true), &[own(), ("node2", two.clone())], &[]);
    let whole = peer("node2", "192.168.50.12", vec![net("10.244.2.0/24"), net("fd00:10:244:2::/64")]);
    assert_eq!((found.peers, found.complaints), (vec![whole.clone()], vec![]));
    // A family that the cluster does not use.
    let found = of(&spec(false), &[own(), ("node2", two.clone())], &[]);
    assert_eq!(found.peers, [peer("node2", "192.168.50.12", vec![net("10.244.2.0/24")])]);
    // Peers of the file stay the file's.
    let with_file = NodeSpec { peers: vec![whole], ..spec(true) };
    let found = of(&with_file, &[own(), ("node2", two.clone())], &[]);
    assert_eq!((found.peers, found.complaints), (vec![], vec![]));
    // And without `nodes: fromKubernetes` all do.
    let kubernetes = Some(KubernetesSpec::new(Vec::new(), "node1"));
    let found = of(&NodeSpec { kubernetes, ..spec(true) }, &[own(), ("node2", two)], &[]);
    assert_eq!(found, Peers::default());
}

#[test]
fn what_is_wrong_with_a_node_is_said_and_it_is_no_peer() {
    let two = |range: &str| ("node2", node("192.168.50.12", &[range], &[]));
    for range in ["0.0.0.0/0", "10.244.0.0/16", "10.99.1.0/24", "10.244.2.1/24"] {
        assert!(complaint(&[two(range)]).contains("no node's part"), "{range}");
    }
    assert!(complaint(&[two("10.244.0.128/25")]).contains("is that of node1"));
    assert!(
        complaint(&[two("10.244.2.0/24"), ("node3", node("192.168.50.13", &["10.244.2.0/25"], &[]))])
            .contains("Node node3: its pod range 10.244.2.0/25 is that of node2")
    );
    assert!(complaint(&[("node2", node("192.168.50.12", &[], &[]))]).contains("no pod range yet"));
    for address in ["127.0.0.1", "10.244.7.7", "0.0.0.0"] {
        let found = complaint(&[("node2", node(address, &["10.244.2.0/24"], &[]))]);
        assert!(found.contains("no tunnel leads to"), "{found}");
    }
    assert!(
        complaint(&[("node2", node("192.168.50.11", &["10.244.2.0/24"], &[]))]).contains("that of node1")
    );
    assert!(
        complaint(&[("node2", node("fd00::2", &["10.244.2.0/24"], &[]))]).contains("no InternalIP of IPv4")
    );
    let theirs = |vni, mac| complaint(&[("node2", flannel("192.168.50.12", "10.244.2.0/24", vni, mac))]);
    assert!(theirs(7, FLANNELS).contains("VNI 7"));
    for bad in ["", "87:01:02:03:04:05", "00:00:00:00:00:00", "86:1:02:03:04:05", "x"] {
        assert!(theirs(1, bad).contains("is its MAC address"), "{bad}");
    }
    let host_gw =
        [("backend-type", "host-gw"), ("public-ip", "192.168.50.12"), ("kube-subnet-manager", "true")];
    let found = complaint(&[("node2", node("192.168.50.12", &["10.244.2.0/24"], &host_gw))]);
    assert!(found.contains("backend host-gw"), "{found}");
}

#[test]
fn ranges_that_the_file_contradicts_are_said() {
    let here = ("node1", node("192.168.50.11", &["10.244.7.0/24"], &[]));
    let found = of(&spec(false), std::slice::from_ref(&here), &[]);
    let words = &found.complaints[0];
    assert!(words.contains("10.244.0.0/24") && words.contains("10.244.7.0/24") && words.contains("podCIDR"));
    // Also where peers are the file's.
    let kubernetes = Some(KubernetesSpec::new(Vec::new(), "node1"));
    assert_eq!(of(&NodeSpec { kubernetes, ..spec(false) }, &[here], &[]).complaints, found.complaints);
    let peers = vec![peer("node2", "192.168.50.12", vec![net("10.244.2.0/24")])];
    let two = ("node2", node("192.168.50.12", &["10.244.3.0/24"], &[]));
    let found = of(&NodeSpec { peers, ..spec(false) }, &[own(), two], &[]);
    assert!(found.complaints[0].contains("10.244.2.0/24") && found.complaints[0].contains("10.244.3.0/24"));
}

#[test]
fn flannel_is_met_and_finds_us_while_it_is_there() {
    let two = ("node2", flannel("192.168.50.12", "10.244.2.0/24", 1, &FLANNELS.to_uppercase()));
    let found = of(&spec(false), &[own(), two.clone()], &[]);
    let theirs =
        PeerSpec { mac: FLANNELS.into(), ..peer("node2", "192.168.50.12", vec![net("10.244.2.0/24")]) };
    assert_eq!((&found.peers, &found.flannel), (&vec![theirs.clone()], &vec!["node2".to_owned()]));
    let patch = found.annotations.patch(&BTreeMap::new()).unwrap();
    let written = |name: &str| &patch["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")];
    assert_eq!(written("public-ip"), "192.168.50.11");
    assert_eq!(written("backend-data"), &json!(format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac("node1"))));
    assert_eq!((written("backend-type"), written("kube-subnet-manager")), (&json!("vxlan"), &json!("true")));
    // Once that is there, nothing is written again.
    let now: BTreeMap<String, String> =
        serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
    assert_eq!(found.annotations.patch(&now), None);
    // A node of the file that flannel still runs on: its MAC address, the file's range.
    let with_file =
        NodeSpec { peers: vec![peer("node2", "192.168.50.12", vec![net("10.244.2.0/24")])], ..spec(false) };
    assert_eq!(of(&with_file, &[own(), two], &[]).peers, [theirs]);
    // Our own words on a Node are no flannel's, and go when nobody reads them. What the user wrote stays.
    let ours = flannel("192.168.50.12", "10.244.2.0/24", 1, &mac("node2"));
    let found = of(&spec(false), &[own(), ("node2", ours)], &[]);
    assert_eq!((found.peers[0].mac.clone(), found.flannel.len()), (mac("node2"), 0));
    assert_eq!(found.annotations, Annotations::Gone(mac("node1")));
    let mut now = now;
    now.insert("flannel.alpha.coreos.com/public-ip-overwrite".into(), "192.168.50.11".into());
    let gone = found.annotations.patch(&now).unwrap();
    let gone = gone["metadata"]["annotations"].as_object().unwrap();
    assert!(gone.len() == 4 && gone.values().all(Value::is_null), "{gone:?}");
    assert_eq!(found.annotations.patch(&BTreeMap::new()), None);
    // What flannel left on this very Node leads others astray: it is replaced.
    let left = ("node1", flannel("192.168.50.11", "10.244.0.0/24", 1, FLANNELS));
    assert!(matches!(of(&spec(false), &[left], &[]).annotations, Annotations::Ours(_)));
}

#[test]
fn a_list_without_this_node_takes_nobody_away() {
    let two = peer("node2", "192.168.50.12", vec![net("10.244.2.0/24")]);
    let three = ("node3", node("192.168.50.13", &["10.244.3.0/24"], &[]));
    let before = std::slice::from_ref(&two);
    assert_eq!(of(&spec(false), &[], before).peers, before);
    let found = of(&spec(false), std::slice::from_ref(&three), before);
    assert_eq!(found.peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["node2", "node3"]);
    assert_eq!(found.annotations, Annotations::Any);
    // Whose range is another's now is gone.
    let heir = ("node4", node("192.168.50.14", &["10.244.2.0/24"], &[]));
    assert_eq!(of(&spec(false), &[heir], before).peers[0].name, "node4");
    assert_eq!(of(&spec(false), &[own(), three], before).peers.len(), 1);
}
