//! From node to node: the first one alone, a failure stops the rest, and what must happen everywhere at once does.

use std::time::Duration;

use homelab_lab::Output;
use homelab_tests::{Cluster, DISRUPTIVE, Pod, measured, run};
use serde_json::json;

fn main() {
    run(
        "rollout",
        &[
            ("failure_on_the_first_node_touches_no_other", first_node_fails),
            ("failure_in_the_middle_keeps_what_is_confirmed", middle_node_fails),
            ("kubespray_13491_a_dead_node_does_not_stop_the_others", dead_node),
            ("change_of_all_nodes_at_once_is_all_or_nothing", all_or_nothing),
            ("nodes_that_no_longer_reach_each_other_are_rolled_back", cluster_check),
            ("tunnel_that_never_worked_is_a_warning", blocked_before),
        ],
    )
}

const HUNG: Duration = Duration::from_secs(60);

fn said(output: &Output) -> String {
    format!("{} ended with {}\n{}{}", output.command, output.code, output.stdout, output.stderr)
}

fn mtus(cluster: &Cluster) -> Vec<String> {
    cluster.everywhere("cat /sys/class/net/homelab.1/mtu")
}

/// Applies another MTU with these arguments; the node's program is killed after its first change.
#[track_caller]
fn kill_during_apply(cluster: &mut Cluster, node: &str, args: &[&str]) -> Output {
    cluster.with_fault_points();
    cluster.apply();
    cluster.file.set("network.vxlan.mtu", json!(1400));
    cluster.stop_at(node, "effect.0.after");
    let apply = cluster.start(&[&["apply", "--yes", "--confirm-timeout", "3s"], args].concat());
    let stopped = cluster.reached(node, HUNG).unwrap_or_else(|| panic!("{}", apply.so_far()));
    cluster.sh(node, &format!("kill -KILL {}", stopped.pid));
    let output = apply.end(HUNG);
    assert_eq!(output.code, 3, "{}", said(&output));
    cluster.closed_within(node, Duration::from_secs(5));
    output
}

#[track_caller]
fn assert_next_apply_finishes(cluster: &Cluster) {
    cluster.homelab_ok(&["apply", "--yes", DISRUPTIVE]);
    cluster.assert_converged();
}

fn first_node_fails(cluster: &mut Cluster) {
    let output = kill_during_apply(cluster, "node1", &[]);
    assert_eq!(mtus(cluster), ["1450", "1450", "1450"], "{}", said(&output));
    for word in ["node1", "rolled back", "not started"] {
        assert!(said(&output).contains(word), "`{word}` is missing:\n{}", said(&output));
    }
    for node in cluster.nodes() {
        assert!(!cluster.is_locked(&node) && !cluster.is_open(&node), "{node}");
    }
    assert_next_apply_finishes(cluster);
}

fn middle_node_fails(cluster: &mut Cluster) {
    let output = kill_during_apply(cluster, "node2", &["--batch", "1"]);
    assert_eq!(mtus(cluster), ["1400", "1450", "1450"], "{}", said(&output));
    for (node, words) in [("node1", "confirmed"), ("node2", "rolled back"), ("node3", "not started")] {
        let report =
            |line: &&str| line.starts_with(&format!("ok {node}")) || line.starts_with(&format!("!! {node}"));
        let line = output.stdout.lines().find(report);
        assert!(line.is_some_and(|line| line.contains(words)), "{node}: `{words}`:\n{}", said(&output));
    }
    // Nodes of different states understand each other.
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    assert_next_apply_finishes(cluster);
    cluster.assert_mesh(&pods);
}

fn dead_node(cluster: &mut Cluster) {
    cluster.apply();
    cluster.file.set("network.vxlan.mtu", json!(1400));
    cluster.lab.power_cut(&["node1"]).expect("the power goes");
    let args = ["apply", "--yes", "--connect-timeout", "2"];
    let output = cluster.homelab(&args);
    assert_eq!(output.code, 1, "{}", said(&output));
    assert!(said(&output).contains("node1"), "{}", said(&output));
    for node in ["node2", "node3"] {
        assert_eq!(cluster.sh(node, "cat /sys/class/net/homelab.1/mtu"), "1400", "{}", said(&output));
    }
    cluster.lab.start("node1").expect("node1 boots");
    assert_next_apply_finishes(cluster);
}

fn vnis(cluster: &Cluster) -> Vec<String> {
    cluster.everywhere("ip -details link show type vxlan | grep -o 'vxlan id [0-9]*' | cut -d' ' -f3")
}

fn all_or_nothing(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
    let pods = cluster.pods();
    let before = cluster.states();
    cluster.file.set("network.vxlan.vni", json!(42));
    // One node's program dies when all others are through: nobody has the new VNI afterwards.
    cluster.stop_at("node3", "journal.applied.before");
    let apply = cluster.start(&["apply", "--yes", DISRUPTIVE, "--confirm-timeout", "3s"]);
    let stopped = cluster.reached("node3", HUNG).unwrap_or_else(|| panic!("{}", apply.so_far()));
    let others: Vec<String> = vnis(cluster);
    assert_eq!(others, ["42", "42", "42"], "they are switched together");
    cluster.sh("node3", &format!("kill -KILL {}", stopped.pid));
    let output = apply.end(HUNG);
    assert_eq!(output.code, 3, "{}", said(&output));
    for node in cluster.nodes() {
        cluster.closed_within(&node, Duration::from_secs(6));
    }
    cluster.assert_states(&before, &said(&output));
    cluster.assert_mesh(&pods);
    // And all of it, with a gap in the traffic that is counted.
    let flow = cluster.flow(&pods.iter().collect::<Vec<&Pod>>());
    cluster.homelab_ok(&["apply", "--yes", DISRUPTIVE]);
    let losses = flow.end();
    let gap = losses.iter().map(|loss| loss.in_a_row).max().unwrap_or_default();
    measured(format_args!(
        "another VNI on all nodes at once: pods lost each other for {} ms at most",
        gap * 10
    ));
    assert!(gap < 500, "the plan says some seconds: {losses:#?}");
    assert_eq!(vnis(cluster), ["42", "42", "42"]);
    cluster.assert_converged();
    cluster.assert_mesh(&pods);
}

/// A firewall lets the old port through and not the new one. Every node is as the file says, and the change is wrong.
fn cluster_check(cluster: &mut Cluster) {
    cluster.apply();
    let pods = cluster.pods();
    cluster.everywhere(
        "nft add table inet wall; nft 'add chain inet wall input { type filter hook input priority 0; }'; \
         nft add rule inet wall input udp dport 4789 drop",
    );
    let before = cluster.states();
    cluster.file.set("network.vxlan.port", json!(4789));
    let output = cluster.homelab(&["apply", "--yes", DISRUPTIVE, "--confirm-timeout", "10s"]);
    assert_eq!(output.code, 3, "{}", said(&output));
    for word in ["rolled back", "no longer reach"] {
        assert!(said(&output).contains(word), "`{word}` is missing:\n{}", said(&output));
    }
    cluster.assert_states(&before, &said(&output));
    cluster.assert_mesh(&pods);
    cluster.everywhere("nft delete table inet wall");
    assert_next_apply_finishes(cluster);
    cluster.assert_mesh(&pods);
}

fn blocked_before(cluster: &mut Cluster) {
    cluster.sh(
        "node3",
        "nft add table inet wall; nft 'add chain inet wall input { type filter hook input priority 0; }'; \
         nft add rule inet wall input udp dport 8472 drop",
    );
    let output = cluster.homelab_ok(&["apply", "--yes"]);
    let text = said(&output);
    for word in ["node3", "is UDP 8472 open"] {
        assert!(text.contains(word), "a warning says what is closed: `{word}`:\n{text}");
    }
    cluster.sh("node3", "nft delete table inet wall");
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    cluster.file.set("network.vxlan.mtu", json!(1400));
    let output = cluster.homelab_ok(&["apply", "--yes"]);
    assert!(!said(&output).contains("is UDP 8472 open"), "{}", said(&output));
}
