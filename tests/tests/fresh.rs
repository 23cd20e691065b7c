//! A first plan changes nothing, a first apply makes everything, a second one nothing.

use homelab_tests::{Cluster, run};

fn main() {
    run(
        "fresh",
        &[
            ("the_generated_file_is_enough", the_generated_file_is_enough),
            ("plan_lists_everything_and_changes_nothing", plan_lists_everything_and_changes_nothing),
            ("apply_then_plan_is_empty_and_apply_changes_nothing", second_apply_changes_nothing),
            ("dual_stack_converges_too", dual_stack_converges_too),
            ("destroy_leaves_no_trace", destroy_leaves_no_trace),
            ("destroy_of_a_fresh_node_does_nothing", destroy_of_a_fresh_node_does_nothing),
        ],
    )
}

/// What every node holds, in the words of a plan. `$SHA` is the binary's digest.
const EXPECTED: [(&str, &str); 38] = [
    ("agent", "binary /usr/local/lib/homelab/$SHA/homelab-node"),
    ("agent", "symlink /usr/local/lib/homelab/homelab-node"),
    ("agent", "file /etc/homelab/node.json"),
    ("agent", "file /etc/homelab/membership.keys"),
    ("agent", "file /etc/systemd/system/homelab-node.service"),
    ("agent", "unit homelab-node.service"),
    ("vtep", "file /etc/sysctl.d/90-homelab.conf"),
    ("vtep", "sysctl net.ipv4.ip_forward"),
    ("vtep", "sysctl net.ipv4.conf.all.send_redirects"),
    ("vtep", "link homelab.1"),
    ("vtep", "sysctl net.ipv4.conf.homelab/1.rp_filter"),
    ("vtep", "sysctl net.ipv6.conf.homelab/1.accept_ra"),
    ("vtep", "nft table inet homelab"),
    ("vtep", "nft chain inet homelab vtep-postrouting"),
    ("cni", "link homelab0"),
    ("cni", "sysctl net.ipv6.conf.homelab0.accept_ra"),
    ("cni", "sysctl net.ipv6.conf.homelab0.accept_dad"),
    ("cni", "sysctl net.ipv4.conf.homelab0.send_redirects"),
    ("cni", "nft table bridge homelab"),
    ("cni", "nft chain bridge homelab cni-guard"),
    ("cni", "nft chain bridge homelab cni-own"),
    ("cni", "nft chain bridge homelab cni-own-target"),
    ("cni", "nft chain bridge homelab cni-own6"),
    ("cni", "nft chain bridge homelab cni-prerouting"),
    ("cni", "nft chain inet homelab cni-output"),
    ("cni", "nft table inet homelab-hostport"),
    ("cni", "nft chain inet homelab-hostport guard"),
    ("cni", "nft chain inet homelab-hostport hostports"),
    ("cni", "nft chain inet homelab-hostport output"),
    ("cni", "nft chain inet homelab-hostport own"),
    ("cni", "nft chain inet homelab-hostport postrouting"),
    ("cni", "nft chain inet homelab-hostport prerouting"),
    ("proxy", "nft table inet homelab-proxy"),
    ("cni", "symlink /opt/cni/bin/homelab"),
    ("cni", "symlink /usr/lib/cni/homelab"),
    ("cni", "file /etc/cni/net.d/05-homelab.conflist"),
    ("vtep", "address 10.244.$N.0/32 dev homelab.1"),
    ("cni", "address 10.244.$N.1/24 dev homelab0"),
];

/// The lab's own YAML, as a user writes it.
fn the_generated_file_is_enough(cluster: &mut Cluster) {
    let config = cluster.lab.config_path();
    let output = cluster.lab.homelab(&["validate"]).expect("homelab starts");
    assert!(output.success(), "{}: {}{}", config.display(), output.stdout, output.stderr);
    let output = cluster.lab.homelab(&["apply", "--yes"]).expect("homelab starts");
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    let output = cluster.lab.homelab(&["plan", "--detailed-exitcode"]).expect("homelab starts");
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
}

fn plan_lists_everything_and_changes_nothing(cluster: &mut Cluster) {
    let nodes = cluster.nodes();
    let before: Vec<_> = nodes.iter().map(|n| cluster.lab.snapshot(n).expect("snapshot")).collect();
    let plan = cluster.plan();
    let output = cluster.homelab(&["plan", "--detailed-exitcode"]);
    assert_eq!(output.code, 2, "{}{}", output.stdout, output.stderr);
    for (node, before) in nodes.iter().zip(before) {
        let changed = before.diff(&cluster.lab.snapshot(node).expect("snapshot"));
        assert!(changed.is_empty(), "plan changed {node}:\n{changed}");
        // Nothing of the temporary binary stays, and nothing runs.
        let left = cluster.sh(
            node,
            "ls -A /run /tmp /var/tmp /dev/shm | grep -i homelab || true; pgrep -xa homelab-node || true",
        );
        assert_eq!(left, "", "plan left something on {node}");
    }
    for (number, node) in nodes.iter().enumerate() {
        let part = plan.node(node);
        assert!(part.changes.iter().all(|c| c.action == "create"), "only creations:\n{plan}");
        assert!(part.changes.iter().all(|c| c.impact == "none"), "no impact:\n{plan}");
        let binary = part.changes.iter().find(|c| c.object.starts_with("binary ")).expect("a binary");
        let sha = binary.object.split('/').rev().nth(1).expect("a digest");
        for (module, object) in EXPECTED {
            let object = object.replace("$SHA", sha).replace("$N", &number.to_string());
            assert!(
                part.changes.iter().any(|c| c.module == module && c.object == object),
                "{node}: {module} {object} is missing:\n{plan}"
            );
        }
        for kind in ["fdb ", "route ", "neighbour "] {
            let count = part.changes.iter().filter(|c| c.object.starts_with(kind)).count();
            assert_eq!(count, 2, "{node}: one {kind} for each peer:\n{plan}");
        }
        assert_eq!(part.entries().len(), EXPECTED.len() + 6, "{node}: nothing else:\n{plan}");
    }
}

/// Everything that a second apply could touch.
const TRACES: &str = r#"
find /etc/homelab /usr/local/lib/homelab /var/lib/homelab /etc/systemd/system /etc/sysctl.d /etc/cni /opt/cni /usr/lib/cni \
  -printf '%p %T@ %C@ %i %m %U:%G\n' | sort
systemctl show homelab-node -p MainPID -p ExecMainStartTimestampMonotonic -p NRestarts -p ActiveEnterTimestampMonotonic
ip -json link | jq -c '.[] | [.ifindex, .ifname, .address, .mtu]'
nft --handle list table inet homelab
"#;

fn second_apply_changes_nothing(cluster: &mut Cluster) {
    cluster.apply();
    cluster.assert_converged();
    let before = cluster.everywhere(TRACES);
    let output = cluster.homelab_ok(&["apply", "--yes"]);
    let after = cluster.everywhere(TRACES);
    assert_eq!(before, after, "a second apply left traces");
    let text = (output.stdout + &output.stderr).to_lowercase();
    assert!(text.contains("nothing to do") || text.contains("no changes"), "it says so:\n{text}");
    cluster.assert_converged();
}

fn dual_stack_converges_too(cluster: &mut Cluster) {
    cluster.file.dual_stack(&cluster.lab);
    cluster.apply();
    cluster.assert_converged();
    let before = cluster.everywhere(TRACES);
    cluster.homelab_ok(&["apply", "--yes"]);
    assert_eq!(before, cluster.everywhere(TRACES), "a second apply left traces");
}

fn destroy_leaves_no_trace(cluster: &mut Cluster) {
    let nodes = cluster.nodes();
    // The kernel turns this off with forwarding: it must come back as it was.
    let before: Vec<_> = nodes.iter().map(|n| cluster.lab.snapshot(n).expect("snapshot")).collect();
    for dual in [false, true] {
        if dual {
            cluster.file.dual_stack(&cluster.lab);
        }
        cluster.apply();
        let pod = cluster.pod("node1", if dual { "short2" } else { "short1" });
        cluster.remove_pod(&pod);
        cluster.homelab_ok(&["destroy", "--yes"]);
        for (node, before) in nodes.iter().zip(&before) {
            let after = cluster.lab.snapshot(node).expect("snapshot").without_times();
            let changed = before.clone().without_times().diff(&after);
            assert!(changed.is_empty(), "destroy (dual stack: {dual}) left on {node}:\n{changed}");
            assert_eq!(cluster.sh(node, "pgrep -xa homelab-node || true"), "", "on {node}");
        }
    }
    // And it can come back.
    cluster.apply();
    cluster.assert_converged();
}

fn destroy_of_a_fresh_node_does_nothing(cluster: &mut Cluster) {
    let before = cluster.lab.snapshot("node2").expect("snapshot");
    cluster.homelab_ok(&["destroy", "--yes"]);
    let changed = before.diff(&cluster.lab.snapshot("node2").expect("snapshot"));
    assert!(changed.is_empty(), "{changed}");
}
