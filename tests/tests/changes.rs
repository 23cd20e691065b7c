//! The file changes: what plan says of it, what apply makes of it, and that nothing stale stays.

use std::net::IpAddr;

use homelab_lab::NodeSnapshot;
use homelab_model::ours;
use homelab_tests::{Cluster, DISRUPTIVE, run};
use serde_json::json;

fn main() {
    run(
        "changes",
        &[
            ("vni_port_and_mtu", vni_port_and_mtu),
            ("pod_cidr_of_a_node_and_of_all", pod_cidr_of_a_node_and_of_all),
            ("single_to_dual_stack_and_back", single_to_dual_stack_and_back),
            ("flannel_2554_no_stale_routes_of_a_removed_node", removed_node),
            ("removed_node_that_does_not_answer", removed_node_that_does_not_answer),
            ("renamed_node_keeps_its_range", renamed_node_keeps_its_range),
            ("disruptive_changes_need_a_word", disruptive_changes_need_a_word),
            ("a_pool_that_comes_later_is_announced", a_pool_that_comes_later_is_announced),
            // Last: the lab has a node more from then on.
            ("fourth_node", fourth_node),
        ],
    )
}

/// The nodes are exactly what an installation of today's file on empty disks gives.
#[track_caller]
fn assert_like_new(cluster: &mut Cluster, what: &str) {
    let grown = cluster.states();
    // The same ranges: a new cluster would begin with the first.
    let nodes = cluster.nodes();
    for (index, node) in nodes.iter().enumerate() {
        let ranges: Vec<String> = cluster.spec(node).pod_cidrs.iter().map(ToString::to_string).collect();
        cluster.file.set(&format!("nodes.{index}.podCIDR"), json!(ranges));
    }
    cluster.lab.reset(&[]).expect("the nodes boot");
    cluster.apply();
    // A bridge that had a port once looks different for good.
    for pod in cluster.pods() {
        cluster.remove_pod(&pod);
    }
    for ((node, grown), new) in nodes.iter().zip(&grown).zip(cluster.states()) {
        // Every installation on empty disks makes keys of its own.
        let without_keys = |state: &NodeSnapshot| state.clone().without_entries(&[ours::KEYS]);
        let stale = without_keys(&new).diff(&without_keys(grown));
        assert!(stale.is_empty(), "{what}: {node} differs from a new one:\n{stale}");
    }
}

fn vni_port_and_mtu(cluster: &mut Cluster) {
    cluster.apply();
    let pods = cluster.pods();
    for (path, value, impact) in [
        ("network.vxlan.mtu", json!(1400), "brief"),
        ("network.vxlan.port", json!(4789), "disruptive"),
        ("network.vxlan.vni", json!(42), "disruptive"),
        ("network.vxlan.device", json!("pods.7"), "disruptive"),
    ] {
        cluster.file.set(path, value);
        let plan = cluster.plan();
        assert_eq!(plan.impact(), impact, "{path}:\n{plan}");
        for node in cluster.nodes() {
            assert!(!plan.node(&node).changes.is_empty(), "{path} concerns {node}:\n{plan}");
        }
        cluster.apply();
        cluster.assert_converged();
        cluster.assert_mesh(&pods);
    }
    let links = cluster.everywhere(
        "ip -o link show type vxlan | wc -l; ls /proc/sys/net/ipv4/conf | grep -c homelab[.] || true",
    );
    assert!(links.iter().all(|l| l == "1\n0"), "one tunnel each: {links:?}");
    for pod in &pods {
        cluster.remove_pod(pod);
    }
    assert_like_new(cluster, "vni, port, mtu and device changed");
}

fn pod_cidr_of_a_node_and_of_all(cluster: &mut Cluster) {
    cluster.apply();
    cluster.file.set("nodes.1.podCIDR", json!("10.244.200.0/24"));
    let plan = cluster.plan();
    assert_eq!(plan.impact(), "disruptive", "{plan}");
    let text = plan.json.to_string();
    assert!(text.contains("10.244.1.0/24") && text.contains("10.244.200.0/24"), "{plan}");
    let peers = plan.node("node1").entries();
    for entry in ["delete route 10.244.1.0/24", "create route 10.244.200.0/24"] {
        assert!(peers.contains(entry), "{entry}:\n{plan}");
    }
    cluster.apply();
    cluster.assert_converged();
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    assert!(pods[1].addresses[0].to_string().starts_with("10.244.200."), "{pods:?}");
    for pod in &pods {
        cluster.remove_pod(pod);
    }
    cluster.file.set("nodes.1.podCIDR", json!(null));
    cluster.file.set("network.podCIDR", json!("10.20.0.0/16"));
    cluster.apply();
    cluster.assert_converged();
    let old = cluster.everywhere("ip address; ip route; ip neighbour; nft list ruleset; cat /etc/cni/net.d/05-homelab.conflist /etc/homelab/node.json");
    assert!(old.iter().all(|text| !text.contains("10.244.")), "an old range is left: {old:?}");
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    for pod in &pods {
        cluster.remove_pod(pod);
    }
    assert_like_new(cluster, "pod CIDRs changed");
}

fn single_to_dual_stack_and_back(cluster: &mut Cluster) {
    cluster.apply();
    for pod in cluster.pods() {
        cluster.remove_pod(&pod);
    }
    let single = cluster.file.clone();
    let before = cluster.states();
    cluster.file.dual_stack(&cluster.lab);
    cluster.apply();
    cluster.assert_converged();
    let pods = cluster.pods();
    assert!(pods.iter().all(|p| p.addresses.len() == 2), "{pods:?}");
    cluster.assert_mesh(&pods);
    for pod in &pods {
        cluster.remove_pod(pod);
    }
    cluster.file = single;
    cluster.apply();
    cluster.assert_converged();
    for ((node, before), after) in cluster.nodes().iter().zip(before).zip(cluster.states()) {
        let stale = before.diff(&after);
        assert!(stale.is_empty(), "IPv6 stays on {node}:\n{stale}");
    }
}

fn removed_node(cluster: &mut Cluster) {
    let empty = cluster.snapshot("node3");
    cluster.apply();
    cluster.file.remove("node3");
    let output = cluster.homelab_ok(&["plan"]);
    assert!(output.stdout.contains("node3"), "plan names it:\n{}{}", output.stdout, output.stderr);
    let plan = cluster.plan();
    for node in ["node1", "node2"] {
        let entries = plan.node(node).entries();
        assert!(entries.contains("delete route 10.244.2.0/24"), "{plan}");
        assert!(
            entries.iter().any(|e| e.starts_with("delete fdb ") && e.contains("192.168.50.13")),
            "{plan}"
        );
        assert!(entries.contains("delete neighbour 10.244.2.0 dev homelab.1"), "{plan}");
    }
    cluster.apply();
    cluster.assert_converged();
    let left = empty.diff(&cluster.snapshot("node3"));
    assert!(left.is_empty(), "node3 is cleaned too:\n{left}");
    for node in ["node1", "node2"] {
        let text = cluster
            .sh(node, "ip route; ip neighbour show nud permanent; bridge fdb; cat /etc/homelab/node.json");
        assert!(!text.contains("10.244.2.") && !text.contains("192.168.50.13"), "stale on {node}:\n{text}");
    }
    let pods = vec![cluster.pod("node1", "left1"), cluster.pod("node2", "left2")];
    cluster.assert_mesh(&pods);
}

fn removed_node_that_does_not_answer(cluster: &mut Cluster) {
    cluster.apply();
    cluster.lab.power_cut(&["node3"]).expect("the power goes");
    cluster.file.remove("node3");
    let output = cluster.homelab(&["apply", "--yes", DISRUPTIVE]);
    let text = output.stdout + &output.stderr;
    assert!(text.contains("node3"), "it says what became of node3:\n{text}");
    for node in ["node1", "node2"] {
        let text = cluster.sh(node, "ip route; ip neighbour show nud permanent; bridge fdb");
        assert!(!text.contains("10.244.2.") && !text.contains("192.168.50.13"), "stale on {node}:\n{text}");
    }
    cluster.assert_converged();
    // The range is free again, and a node that comes back into the file gets one.
    cluster.lab.start("node3").expect("node3 boots");
    cluster.file.add(&cluster.lab, "node3");
    cluster.apply();
    cluster.assert_converged();
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
}

/// Ranges are stable without a state file: order, names and addresses in the file may change.
fn renamed_node_keeps_its_range(cluster: &mut Cluster) {
    cluster.apply();
    let before: Vec<_> = cluster.nodes().iter().map(|n| cluster.spec(n).pod_cidrs).collect();
    let nodes = cluster.file.0["nodes"].as_array_mut().expect("nodes");
    nodes.reverse();
    nodes[1]["name"] = json!("attic");
    cluster.apply();
    cluster.assert_converged();
    let after: Vec<_> = cluster.nodes().iter().map(|n| cluster.spec(n).pod_cidrs).collect();
    assert_eq!(before, after);
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    // A node whose own memory is lost gets its range from the peers' memory.
    cluster.lab.reset(&["node3"]).expect("node3 boots");
    cluster.apply();
    assert_eq!(before[2], cluster.spec("node3").pod_cidrs);
}

fn disruptive_changes_need_a_word(cluster: &mut Cluster) {
    cluster.apply();
    cluster.file.set("network.vxlan.vni", json!(42));
    let output = cluster.homelab(&["apply", "--yes"]);
    assert_eq!(output.code, 1, "{}{}", output.stdout, output.stderr);
    assert!(output.stderr.contains(DISRUPTIVE), "it names the flag:\n{}", output.stderr);
    let vnis = cluster.everywhere("ip -d link show homelab.1 | grep -o 'vxlan id [0-9]*'");
    assert!(vnis.iter().all(|v| v == "vxlan id 1"), "nothing was done: {vnis:?}");
}

fn fourth_node(cluster: &mut Cluster) {
    cluster.apply();
    let pods = cluster.pods();
    let node = cluster.lab.add_node().expect("node4 boots");
    cluster.file.add(&cluster.lab, &node);
    let plan = cluster.plan();
    // Whoever runs already notices nothing but the agent's new configuration.
    for old in ["node1", "node2", "node3"] {
        let part = plan.node(old);
        assert!(part.changes.iter().all(|c| c.impact != "disruptive"), "{plan}");
        let entries = part.entries();
        assert!(entries.contains("create route 10.244.3.0/24"), "{plan}");
        assert_eq!(entries.len(), 5, "route, neighbour, fdb, node.json, unit:\n{plan}");
    }
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
    let mut all = pods;
    all.push(cluster.pod(&node, "pod4"));
    cluster.assert_mesh(&all);
    let address: IpAddr = all[3].addresses[0];
    assert!(address.to_string().starts_with("10.244.3."), "{address}");
    for pod in &all {
        cluster.remove_pod(pod);
    }
    assert_like_new(cluster, "a node added");
}

/// With the first pool the agent's unit lets it speak ARP and neighbour discovery: to read the new configuration is not enough.
fn a_pool_that_comes_later_is_announced(cluster: &mut Cluster) {
    let pools = cluster.file.0["loadBalancer"]["pools"].take();
    cluster.file.set("loadBalancer.pools", json!([]));
    cluster.apply();
    let nodes = cluster.nodes();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    assert!(cluster.lb(nodes[0]).is_none(), "without pools nothing is announced");
    cluster.file.set("loadBalancer.pools", pools);
    cluster.file.set(
        "services",
        json!([{ "name": "web", "type": "LoadBalancer", "ports": [{ "port": 80 }], "endpoints": ["192.0.2.2"] }]),
    );
    let said = cluster.apply().stdout;
    assert!(said.contains("the agent restarts"), "{said}");
    let owners = cluster.lb_settled(&nodes);
    let (address, owner) = owners.iter().next().expect("an address");
    let mac = cluster.sh(owner, "cat /sys/class/net/eth0/address");
    let claims = cluster.resolver("client", "eth0").ask(&[*address]);
    assert_eq!(claims[address], std::collections::BTreeSet::from([mac]));
    for node in nodes {
        let report = cluster.sh(node, "cat /run/homelab/agent.json");
        assert!(report.contains("\"errors\":[]"), "{report}");
    }
}
