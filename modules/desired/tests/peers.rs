//! The agent's peers beside those of the file: nobody plans to take them away, or to put them back.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use fixtures::{net, peer, spec};
use homelab_desired::{changed_entries, desired, with_peers, without_peers};
use homelab_model::{LivePeers, NodeSpec, PeerSpec, plan_node};

#[test]
fn what_the_agent_put_there_is_no_difference() {
    let two = peer("node2", "192.168.50.12", vec![net("10.244.2.0/24"), net("fd00:10:244:2::/64")]);
    let spec = NodeSpec { peers: vec![two.clone()], ..spec(true) };
    // Flannel still runs on a node of the file; another is Kubernetes' alone.
    let flannel = PeerSpec {
        mac: "86:01:02:03:04:05".into(),
        address: "192.168.50.22".parse().expect("address"),
        pod_cidrs: vec![net("10.244.2.0/24")],
        ..two
    };
    let three = peer("node3", "192.168.50.13", vec![net("10.244.3.0/24")]);
    let live = LivePeers { device: spec.vtep.device.clone(), peers: vec![flannel.clone(), three.clone()] };
    let mut held = desired(&spec);
    with_peers(&mut held, &live.device, &live.peers);
    let plan = |held: &[_], spec: &NodeSpec| plan_node("node1", held, &desired(spec)).changes.len();
    // One neighbour is another; a MAC address and three entries more.
    assert_eq!(plan(&held, &spec), 1 + 1 + 3);
    let mut seen = held.clone();
    without_peers(&mut seen, Some(&spec), &live);
    assert_eq!(plan(&seen, &spec), 0);
    // Entries of nobody's are seen as ever.
    let mut more = held.clone();
    with_peers(&mut more, &live.device, &[peer("x", "192.168.50.99", vec![net("10.244.9.0/24")])]);
    without_peers(&mut more, Some(&spec), &live);
    assert_eq!(plan(&more, &spec), 3);
    // What is missing of the file's is, too.
    seen.retain(|object| !object.spec.key().to_string().contains("fd00:10:244:2::/64"));
    assert_eq!(plan(&seen, &spec), 1);
    // A node that has come into the file is planned: the record does not have it yet. The record itself and the unit are two
    // more.
    let with_three = NodeSpec { peers: vec![spec.peers[0].clone(), three.clone()], ..spec.clone() };
    let mut seen = held.clone();
    without_peers(&mut seen, Some(&spec), &live);
    assert_eq!(plan(&seen, &with_three), 2 + 3);
    let mut seen = held;
    without_peers(&mut seen, Some(&with_three), &live);
    assert_eq!(plan(&seen, &with_three), 2);
    // What moves: the entries of the one, and of the other what is another.
    let moved = changed_entries(&live.device, &live.peers, std::slice::from_ref(&flannel));
    assert_eq!(moved.len(), 3);
    let renamed = PeerSpec { mac: "86:01:02:03:04:06".into(), ..flannel.clone() };
    assert_eq!(changed_entries(&live.device, &[flannel], &[renamed]).len(), 3);
}
