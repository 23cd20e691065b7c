//! Changes on trial, changes taken back later, and upgrades that are cut short.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use homelab_lab::{Impairment, NodeSnapshot, Output};
use homelab_tests::{Cluster, Random, Signal, measured, run};
use serde_json::json;

fn main() {
    run(
        "transact",
        &[
            ("try_lapses_by_itself", try_lapses),
            ("confirm_keeps_what_is_tried", confirm_keeps),
            ("rollback_takes_back_what_is_tried", rollback_of_a_trial),
            ("who_tries_a_change_keeps_others_out", second_apply_meanwhile),
            ("rollback_of_the_last_confirmed_apply", rollback_of_confirmed),
            ("kill_in_the_middle_of_an_upgrade", killed_upgrade),
            ("upload_is_atomic", upload_is_atomic),
        ],
    )
}

const HUNG: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(2);

fn said(output: &Output) -> String {
    format!("{} ended with {}\n{}{}", output.command, output.code, output.stdout, output.stderr)
}

/// An applied cluster, a file that wants another MTU, and the nodes' states before.
fn changed(cluster: &mut Cluster) -> Vec<NodeSnapshot> {
    cluster.apply();
    let before = cluster.states();
    cluster.file.set("network.vxlan.mtu", json!(1400));
    before
}

#[track_caller]
fn assert_mtus(cluster: &Cluster, mtu: &str, what: &str) {
    for (node, found) in cluster.nodes().iter().zip(cluster.everywhere("cat /sys/class/net/homelab.1/mtu")) {
        assert_eq!(found, mtu, "{node}: {what}");
    }
}

#[track_caller]
fn assert_as_before(cluster: &Cluster, before: &[NodeSnapshot], what: &str) {
    cluster.assert_states(before, what);
    for node in cluster.nodes() {
        assert!(!cluster.is_open(&node) && !cluster.is_locked(&node), "{node}: {what}");
    }
}

fn try_lapses(cluster: &mut Cluster) {
    let before = changed(cluster);
    let output = cluster.homelab_ok(&["apply", "--yes", "--try", "4s"]);
    let start = Instant::now();
    assert!(said(&output).contains("homelab confirm"), "it says how to keep the change:\n{}", said(&output));
    assert_mtus(cluster, "1400", "the change is in effect");
    let plan = cluster.homelab_ok(&["plan"]);
    assert!(said(&plan).contains("homelab confirm"), "plan shows what is tried:\n{}", said(&plan));
    let limit = Duration::from_secs(4) + GRACE;
    for node in cluster.nodes() {
        cluster.closed_within(&node, limit.saturating_sub(start.elapsed()));
    }
    measured(format_args!(
        "--try 4s lapsed on all nodes {} ms after the end of apply",
        start.elapsed().as_millis()
    ));
    assert_as_before(cluster, &before, "the trial is over");
    let plan = cluster.homelab(&["plan", "--detailed-exitcode"]);
    assert_eq!(plan.code, 2, "{}", said(&plan));
    assert!(said(&plan).contains("taken back"), "{}", said(&plan));
    let late = cluster.homelab(&["confirm"]);
    assert_eq!(late.code, 1, "too late: {}", said(&late));
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
}

fn confirm_keeps(cluster: &mut Cluster) {
    changed(cluster);
    cluster.homelab_ok(&["apply", "--yes", "--try", "5s"]);
    for node in cluster.nodes() {
        assert!(cluster.is_open(&node), "{node} waits");
    }
    // From another machine too: what counts is access to the nodes.
    let output = cluster.homelab_from("wan", &["confirm"]);
    assert!(output.success(), "{}", said(&output));
    for node in cluster.nodes() {
        assert!(!cluster.is_open(&node), "{node}: {}", said(&output));
    }
    std::thread::sleep(Duration::from_secs(5) + GRACE);
    assert_mtus(cluster, "1400", "it stays");
    cluster.assert_converged();
}

fn rollback_of_a_trial(cluster: &mut Cluster) {
    let before = changed(cluster);
    cluster.homelab_ok(&["apply", "--yes", "--try", "10m"]);
    assert_mtus(cluster, "1400", "the change is in effect");
    let output = cluster.homelab(&["rollback", "--yes"]);
    assert_eq!(output.code, 0, "what was asked for is no failure: {}", said(&output));
    assert_as_before(cluster, &before, &said(&output));
    // A trial outlives a reboot no more than any change that nobody confirmed.
    cluster.homelab_ok(&["apply", "--yes", "--try", "10m"]);
    cluster.lab.reboot("node2").expect("node2 boots");
    cluster.lab.wait_settled("node2").expect("node2 is up");
    cluster.closed_within("node2", GRACE);
    assert_eq!(cluster.sh("node2", "cat /sys/class/net/homelab.1/mtu"), "1450");
    cluster.homelab_ok(&["rollback", "--yes"]);
    assert_mtus(cluster, "1450", "all are as before");
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
}

fn second_apply_meanwhile(cluster: &mut Cluster) {
    let before = changed(cluster);
    cluster.homelab_ok(&["apply", "--yes", "--try", "10m"]);
    cluster.file.set("network.vxlan.mtu", json!(1300));
    let second = cluster.homelab_from("wan", &["apply", "--yes"]);
    assert_eq!(second.code, 1, "{}", said(&second));
    for word in ["root@client", "homelab confirm", "homelab rollback"] {
        assert!(said(&second).contains(word), "`{word}` is missing:\n{}", said(&second));
    }
    assert_mtus(cluster, "1400", "the second one changed nothing");
    cluster.homelab_ok(&["rollback", "--yes"]);
    assert_as_before(cluster, &before, "taken back");
    let second = cluster.homelab_from("wan", &["apply", "--yes"]);
    assert!(second.success(), "{}", said(&second));
    assert_mtus(cluster, "1300", "nobody is in the way");
}

fn rollback_of_confirmed(cluster: &mut Cluster) {
    let before = changed(cluster);
    cluster.homelab_ok(&["apply", "--yes"]);
    let after = cluster.states();
    // One node alone.
    let output = cluster.homelab_ok(&["rollback", "--yes", "--nodes", "node2"]);
    cluster.assert_state("node2", &before[1], &said(&output));
    cluster.assert_state("node1", &after[0], &said(&output));
    // The others; the one that was taken back has nothing more.
    cluster.homelab(&["rollback", "--yes"]);
    assert_as_before(cluster, &before, "all are taken back");
    let again = cluster.homelab(&["rollback", "--yes"]);
    let text = said(&again);
    assert!(text.contains("no confirmed change that could be taken back"), "there is nothing more:\n{text}");
    assert_as_before(cluster, &before, "nothing more was done");
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
    // It is armed like any apply: somebody who drifts in between is not run over without a word.
    cluster.homelab_ok(&["rollback", "--yes"]);
    assert_as_before(cluster, &before, "and once more");
}

/// Another version of the node binary with fault points: one byte more at its end, which changes nothing but its
/// digest.
fn next_version(cluster: &Cluster) -> PathBuf {
    let now = cluster.binaries();
    let next = cluster.lab.dir().join("next");
    let script = r#"set -e
mkdir -p "$2"; file=$(jq -r '.binaries[].file' "$1/homelab-node.json")
{ gzip -dc "$1/$file"; printf x; } >"$2/plain"
gzip -nc "$2/plain" >"$2/$file"
jq --arg sha "$(sha256sum <"$2/plain" | cut -d' ' -f1)" --argjson size "$(stat -c %s "$2/plain")" \
  '.binaries[] |= (.sha256 = $sha | .size = $size)' "$1/homelab-node.json" >"$2/homelab-node.json""#;
    let status =
        Command::new("sh").args(["-c", script, "sh"]).arg(&now).arg(&next).status().expect("sh starts");
    assert!(status.success(), "another version cannot be made");
    next
}

/// Digest of the binary that the agent of a node runs.
fn running(cluster: &Cluster, node: &str) -> String {
    cluster.sh(node, "sha256sum /proc/$(systemctl show -P MainPID homelab-node)/exe | cut -d' ' -f1")
}

/// Asserts that every installed binary is what its directory's name says.
#[track_caller]
fn assert_whole(cluster: &Cluster, node: &str, what: &str) {
    let script = "cd /usr/local/lib/homelab 2>/dev/null || exit 0; for file in [0-9a-f]*/homelab-node; do \
                  case $file in recovery/*|'[0-9a-f]*'/*) continue;; esac; \
                  test $(sha256sum <$file | cut -d' ' -f1) = ${file%/*} || echo $file; done";
    assert_eq!(cluster.sh(node, script), "", "{what}: {node} has a part of a binary at its final path");
}

/// Files are new, the old process still runs, the laptop is dead.
fn killed_upgrade(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
    let old = running(cluster, "node2");
    let before = cluster.states();
    let next = next_version(cluster);
    cluster.with_binaries(next);
    let plan = cluster.plan_of_node("node2");
    let changes = &plan.node("node2").changes;
    let unit =
        changes.iter().position(|c| c.object == "unit homelab-node.service").expect("the agent restarts");
    // No timer helps: what the laptop sees next is what the kill left.
    let long = ["apply", "--yes", "--nodes", "node2", "--confirm-timeout", "3600s"];
    cluster.stop_at("node2", &format!("effect.{unit}.before"));
    let mut apply = cluster.start(&long);
    let stopped = cluster.reached("node2", HUNG).unwrap_or_else(|| panic!("{}", apply.so_far()));
    // Another hand takes away a rule meanwhile, and the agent is not there to see it.
    cluster.sh(
        "node2",
        "kill -STOP $(systemctl show -P MainPID homelab-node); nft flush chain inet homelab vtep-postrouting",
    );
    apply.signal(Signal::SIGKILL);
    let _ = apply.end(HUNG);
    cluster.sh("node2", &format!("kill -KILL {}", stopped.pid));
    assert_eq!(running(cluster, "node2"), old, "the old process runs");
    assert_whole(cluster, "node2", "killed");
    let plan = cluster.plan_of_node("node2");
    let entries: Vec<String> = plan.node("node2").entries().into_iter().collect();
    assert!(entries.iter().any(|e| e.ends_with("unit homelab-node.service")), "the process:\n{plan}");
    assert!(
        entries.iter().any(|e| e.contains("nft chain inet homelab vtep-postrouting")),
        "the rule:\n{plan}"
    );
    cluster.disarm("node2");
    let output = cluster.homelab(&["apply", "--yes", "--nodes", "node2"]);
    assert!(output.success(), "the next apply mends it:\n{}", said(&output));
    let new = running(cluster, "node2");
    assert_ne!(new, old, "the new process runs");
    cluster.homelab_ok(&["plan", "--detailed-exitcode", "--nodes", "node2"]);
    assert!(cluster.sh("node2", "nft list chain inet homelab vtep-postrouting").contains("masquerade"));
    // Taken back as a whole: the old binary is there again, and runs.
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
    assert_eq!(running(cluster, "node1"), new);
    let output = cluster.homelab_ok(&["rollback", "--yes", "--nodes", "node1"]);
    assert_eq!(running(cluster, "node1"), old, "{}", said(&output));
    cluster.assert_state("node1", &before[0], &said(&output));
}

fn upload_is_atomic(cluster: &mut Cluster) {
    cluster.with_fault_points();
    let mut random = Random::new();
    // Two seconds for the binary.
    cluster.lab.impair("node2", Impairment { rate_mbit: 8.0, ..Default::default() }).expect("slow");
    for round in 0..6 {
        let mut apply = cluster.start(&["apply", "--yes", "--nodes", "node2", "--confirm-timeout", "3s"]);
        let after = random.below(Duration::from_millis(2500));
        std::thread::sleep(after);
        let what = format!("round {round}, after {} ms", after.as_millis());
        match round % 3 {
            0 => apply.signal(Signal::SIGKILL),
            1 => cluster.cut_connections("node2"),
            _ => {
                cluster.lab.power_cut(&["node2"]).expect("the power goes");
                cluster.lab.start("node2").expect("node2 boots");
                apply.signal(Signal::SIGKILL);
            }
        }
        let _ = apply.end(HUNG);
        assert_whole(cluster, "node2", &what);
    }
    cluster.lab.unimpair("node2").expect("good");
    cluster.closed_within("node2", Duration::from_secs(5));
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
    for node in cluster.nodes() {
        assert_whole(cluster, &node, "at the end");
        let parts = cluster.sh(&node, "find /usr/local/lib/homelab -type f ! -name homelab-node; ls -d /tmp/homelab* /var/tmp/homelab* 2>/dev/null || true");
        assert_eq!(parts, "", "no upload stays in the way on {node}");
    }
}
