//! Pods exchange packets every 10 ms while nodes are changed: as many get lost as the plan's impact promises.

use std::time::Duration;

use homelab_tests::{Cluster, DISRUPTIVE, Flow, Loss, Pod, measured, run};
use serde_json::json;

fn main() {
    run(
        "traffic",
        &[
            ("apply_of_impact_none_loses_no_packet", none),
            ("apply_of_impact_brief_loses_none_or_few", brief),
            ("rollback_of_a_brief_change", rollback),
        ],
    )
}

/// Two pods on every node, all of which send to all others: both directions, within a node and between nodes.
fn pods(cluster: &mut Cluster) -> Vec<Pod> {
    let nodes = cluster.nodes();
    let mut pods = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        for letter in ["a", "b"] {
            pods.push(cluster.pod(node, &format!("pod{}{letter}", index + 1)));
        }
    }
    pods
}

fn flow(cluster: &Cluster, pods: &[Pod]) -> Flow {
    cluster.flow(&pods.iter().collect::<Vec<_>>())
}

/// Prints what a flow came to; gives packets sent and lost, and the longest gap.
fn report(what: &str, losses: &[Loss]) -> (u64, u64, u64) {
    let sent = losses.iter().map(|l| l.sent).sum();
    let lost = losses.iter().map(|l| l.lost).sum();
    let gap = losses.iter().map(|l| l.in_a_row).max().unwrap_or_default();
    measured(format_args!("{what}: {lost} of {sent} packets lost, {gap} in a row at most"));
    assert!(losses.iter().all(|l| l.twice == 0), "{losses:?}");
    (sent, lost, gap)
}

/// No flow proves anything before it is known to see a loss.
#[track_caller]
fn assert_flow_sees_a_loss(cluster: &Cluster, pods: &[Pod]) {
    let flow = flow(cluster, pods);
    let drop = "nft add table inet wall; nft 'add chain inet wall forward { type filter hook forward priority -300; }'; \
                nft add rule inet wall forward iifname homelab.1 drop";
    cluster.sh("node2", drop);
    std::thread::sleep(Duration::from_millis(200));
    cluster.sh("node2", "nft delete table inet wall");
    std::thread::sleep(Duration::from_millis(100));
    let losses = flow.end();
    for loss in &losses {
        let (from, to) = loss.way.split_once(" -> ").expect("two pods");
        let hit = to.starts_with("pod2") && !from.starts_with("pod2");
        assert_eq!(loss.lost > 0, hit, "{loss:?}");
        // 200 ms are 20 packets, and a shell takes its time.
        assert!(!hit || (10..200).contains(&loss.in_a_row), "{loss:?}");
    }
}

fn none(cluster: &mut Cluster) {
    cluster.apply();
    let pods = pods(cluster);
    assert_flow_sees_a_loss(cluster, &pods);
    // What can be put back without anybody noticing, kept away from the agent, which would be first.
    cluster.everywhere(
        "kill -STOP $(systemctl show -P MainPID homelab-node); rm /etc/sysctl.d/90-homelab.conf; \
         chmod 600 /etc/cni/net.d/05-homelab.conflist; ip link set homelab0 alias ''",
    );
    let plan = cluster.plan();
    assert!(!plan.is_empty());
    assert_eq!(plan.impact(), "none", "{plan}");
    let flow = flow(cluster, &pods);
    cluster.homelab_ok(&["apply", "--yes"]);
    let losses = flow.end();
    cluster.everywhere("kill -CONT $(systemctl show -P MainPID homelab-node)");
    let (sent, lost, _) = report("apply of impact none", &losses);
    assert!(sent > 1000, "{sent} packets prove little");
    assert_eq!(lost, 0, "{losses:#?}");
    cluster.assert_converged();
}

fn brief(cluster: &mut Cluster) {
    cluster.apply();
    let pods = pods(cluster);
    // A change of the agent's configuration alone: packets keep flowing, and the agent reads it again. A new MTU of the
    // tunnel: the same, for packets that fit into both.
    for (what, path, value, impact) in [
        ("the agent's configuration", "network.serviceCIDR", json!("10.112.0.0/12"), "none"),
        ("the tunnel's MTU", "network.vxlan.mtu", json!(1400), "brief"),
    ] {
        cluster.file.set(path, value);
        let plan = cluster.plan();
        assert_eq!(plan.impact(), impact, "{what}:\n{plan}");
        let flow = flow(cluster, &pods);
        cluster.homelab_ok(&["apply", "--yes"]);
        let losses = flow.end();
        let (sent, lost, _) = report(&format!("apply of impact {impact}, {what}"), &losses);
        assert!(sent > 1000, "{sent} packets prove little");
        assert_eq!(lost, 0, "{what}: {losses:#?}");
        cluster.assert_converged();
    }
}

fn rollback(cluster: &mut Cluster) {
    cluster.apply();
    let pods = pods(cluster);
    let before = cluster.states();
    cluster.file.set("network.vxlan.mtu", json!(1400));
    let flow = flow(cluster, &pods);
    cluster.homelab_ok(&["apply", "--yes", DISRUPTIVE, "--try", "60s"]);
    assert_eq!(cluster.sh("node2", "cat /sys/class/net/homelab.1/mtu"), "1400", "it is tried");
    let output = cluster.homelab_ok(&["rollback", "--yes"]);
    let losses = flow.end();
    cluster.assert_states(&before, &output.stdout);
    let (sent, lost, _) = report("apply and rollback of a brief change", &losses);
    assert!(sent > 1000, "{sent} packets prove little");
    assert_eq!(lost, 0, "{losses:#?}");
}
