//! Plan files, output for programs, and secrets that stay on the nodes: what runs without anybody watching.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use homelab_lab::Output;
use homelab_tests::{Cluster, measured, run, spy_while};
use serde_json::{Value, json};

fn main() {
    run(
        "pipeline",
        &[
            ("plan_file_is_applied_exactly", plan_file_is_applied),
            ("plan_files_that_do_not_hold_are_refused", plan_files_refused),
            ("pyinfra_509_output_for_programs_and_comments", output_for_programs),
            ("drift_is_told_apart_from_a_changed_file", drift),
            ("terraform_20051_keys_are_never_shown", keys_are_never_shown),
            ("rotated_keys_are_understood_at_every_moment", rotate_key),
        ],
    )
}

const KEYS: &str = "/etc/homelab/membership.keys";

fn said(output: &Output) -> String {
    format!("{} ended with {}\n{}{}", output.command, output.code, output.stdout, output.stderr)
}

fn path(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.lab.dir().join(name)
}

fn text_of(path: &PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn plan_file_is_applied(cluster: &mut Cluster) {
    let file = path(cluster, "plan.json");
    let name = file.to_string_lossy().into_owned();
    cluster.homelab_ok(&["plan", "--out", &name]);
    let plan: Value = serde_json::from_str(&text_of(&file)).expect("a plan file is JSON");
    assert!(plan["format_version"].is_u64(), "{plan:#}");
    // Read-only and from another place: a plan file is data.
    cluster.homelab_ok(&["apply", &name, "--yes"]);
    cluster.assert_converged();
    // It was for the nodes as they were then.
    let again = cluster.homelab(&["apply", &name, "--yes"]);
    assert_eq!(again.code, 1, "{}", said(&again));
    // Exactly that: the changes that the file names are those that are made.
    cluster.file.set("network.vxlan.mtu", json!(1400));
    let planned = cluster.plan_of(&["--out", &name]);
    let states = cluster.states();
    cluster.homelab_ok(&["apply", &name, "--yes"]);
    cluster.assert_converged();
    assert!(planned.nodes.iter().all(|node| !node.changes.is_empty()), "{planned}");
    for (node, before) in cluster.nodes().iter().zip(states) {
        assert!(!before.diff(&cluster.state(node)).is_empty(), "{node} was changed");
    }
    // A plan of nothing is a plan.
    cluster.homelab_ok(&["plan", "--out", &name]);
    cluster.homelab_ok(&["apply", &name, "--yes"]);
}

fn plan_files_refused(cluster: &mut Cluster) {
    cluster.apply();
    cluster.file.set("network.vxlan.mtu", json!(1400));
    let file = path(cluster, "plan.json");
    let name = file.to_string_lossy().into_owned();
    cluster.homelab_ok(&["plan", "--out", &name]);
    let good = text_of(&file);
    let plan: Value = serde_json::from_str(&good).expect("a plan file is JSON");
    let before = cluster.states();
    let refused = |cluster: &Cluster, what: &str, words: &[&str]| {
        let output = cluster.homelab(&["apply", &name, "--yes", "--allow-disruptive"]);
        assert_eq!(output.code, 1, "{what}: {}", said(&output));
        let text = said(&output);
        for word in words {
            assert!(text.contains(word), "{what}: `{word}` is missing:\n{text}");
        }
        assert!(!text.contains("panicked"), "{what}: {text}");
        cluster.assert_states(&before, what);
    };
    let write = |value: &Value| std::fs::write(&file, value.to_string()).expect("the file can be written");

    // Altered: a value, a change less, a change more, a node's address, an impact that looks better.
    let mut altered = plan.clone();
    let change = altered["nodes"][0]["changes"][0].clone();
    altered["nodes"][0]["changes"].as_array_mut().expect("changes").remove(0);
    write(&altered);
    refused(cluster, "a change was taken out", &["node1"]);
    altered = plan.clone();
    altered["nodes"][1]["changes"].as_array_mut().expect("changes").push(change);
    write(&altered);
    refused(cluster, "a change was added", &["node2"]);
    write(&serde_json::from_str(&good.replace("1400", "1300")).expect("JSON"));
    refused(cluster, "another MTU", &["altered", "node1"]);
    altered = plan.clone();
    altered["nodes"][0]["address"] = json!("192.168.50.13");
    write(&altered);
    refused(cluster, "another address", &["node1"]);
    altered = plan.clone();
    for change in altered["nodes"][0]["changes"].as_array_mut().expect("changes") {
        change["impact"] = json!("none");
    }
    write(&altered);
    refused(cluster, "another impact", &["node1"]);
    altered = plan.clone();
    altered["destroy"] = json!(true);
    write(&altered);
    refused(cluster, "a destroy", &["destroy"]);

    // From a newer version; no plan; half of one; endless nesting.
    altered = plan.clone();
    altered["format_version"] = json!(plan["format_version"].as_u64().unwrap_or_default() + 1);
    write(&altered);
    refused(cluster, "a newer format", &["newer"]);
    for (what, text) in [
        ("empty", String::new()),
        ("half a file", good[..good.len() / 2].to_owned()),
        ("another file", "name: home\nnodes: []\n".to_owned()),
        ("deep", "[".repeat(200_000)),
        ("an escape sequence", "\u{1b}[2J\u{1b}]0;x\u{7}".to_owned()),
    ] {
        std::fs::write(&file, text).expect("the file can be written");
        refused(cluster, what, &["plan.json"]);
    }
    std::fs::remove_file(&file).expect("it can be removed");
    refused(cluster, "missing", &["plan.json"]);

    // The right file for another configuration, for other nodes, for other states of the nodes.
    std::fs::write(&file, &good).expect("the file can be written");
    let kept = cluster.file.clone();
    cluster.file.set("network.vxlan.mtu", json!(1390));
    refused(cluster, "another configuration", &["cluster file", "changed"]);
    cluster.file = kept.clone();
    cluster.file.remove("node3");
    refused(cluster, "fewer nodes", &["node3"]);
    cluster.file = kept;
    let output = cluster.homelab(&["apply", &name, "--yes", "--nodes", "node1"]);
    assert_eq!(output.code, 1, "{}", said(&output));

    // Somebody was there in between; the agent, which would mend it, is kept away.
    cluster
        .sh("node2", "kill -STOP $(systemctl show -P MainPID homelab-node); ip link set homelab0 mtu 1280");
    let output = cluster.homelab(&["apply", &name, "--yes"]);
    cluster.sh("node2", "kill -CONT $(systemctl show -P MainPID homelab-node)");
    assert_eq!(output.code, 1, "{}", said(&output));
    let text = said(&output);
    for word in ["node2", "link homelab0"] {
        assert!(text.contains(word), "it names what changed since: `{word}`:\n{text}");
    }
    assert!(!text.contains("node1 link"), "{text}");
    for word in ["node1", "node3"] {
        assert_eq!(
            cluster.sh(word, "cat /sys/class/net/homelab.1/mtu"),
            "1450",
            "nothing was changed:\n{text}"
        );
    }
}

fn output_for_programs(cluster: &mut Cluster) {
    // Exit codes and a comment for a pull request.
    let args = ["plan", "--detailed-exitcode", "--format", "markdown"];
    let pending = cluster.homelab(&args);
    assert_eq!(pending.code, 2, "{}", said(&pending));
    let head = pending.stdout.split("<details>").next().unwrap_or_default();
    assert!(head.contains("3 nodes") && head.lines().count() < 10, "the summary is first: {head}");
    for word in ["<details>", "node1", "node2", "node3"] {
        assert!(pending.stdout.contains(word), "`{word}` is missing:\n{}", pending.stdout);
    }
    assert!(pending.stdout.len() < 65_536, "it fits into a comment");
    assert!(!pending.stdout.contains('\u{1b}'), "no colours in a file");
    assert_eq!(pending.stdout, cluster.homelab(&args).stdout, "the order is stable");

    // Events, one a line, with the result at the end; JSON into a file beside words for people.
    let file = path(cluster, "result.json");
    let name = file.to_string_lossy().into_owned();
    let output = cluster.homelab_ok(&["apply", "--yes", "--format", "json"]);
    let events: Vec<Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert!(events.len() > 4, "{}", output.stdout);
    for event in &events {
        assert!(event["event"].is_string() && event["format_version"].is_u64(), "{event}");
    }
    let last = events.last().expect("events");
    assert_eq!(last["event"], "result", "{last}");
    for node in cluster.nodes() {
        assert!(last.to_string().contains(&node), "the result names {node}: {last}");
        assert_complete(&events, &node);
    }
    measured(format_args!("{} events of {} nodes, 0 lost", events.len(), cluster.nodes().len()));
    cluster.file.set("network.vxlan.mtu", json!(1400));
    let output = cluster.homelab_ok(&["apply", "--yes", "--json-into", &name]);
    let result: Value = serde_json::from_str(&text_of(&file)).expect("JSON");
    assert!(result["format_version"].is_u64(), "{result:#}");
    assert!(serde_json::from_str::<Value>(&output.stdout).is_err(), "words for people:\n{}", output.stdout);
    assert!(!said(&output).contains('\u{1b}'), "no terminal, no colours");
    cluster.homelab_ok(&["plan", "--detailed-exitcode", "--json-into", &name]);
    let plan: Value = serde_json::from_str(&text_of(&file)).expect("JSON");
    assert_eq!(plan["summary"]["changed_nodes"], 0, "{plan:#}");
    let output = cluster.homelab(&["plan", "--detailed-exitcode", "--format", "markdown"]);
    assert_eq!(output.code, 0, "{}", said(&output));
}

/// Asserts that there is an event for every step of a node and for every change that its plan has.
#[track_caller]
fn assert_complete(events: &[Value], node: &str) {
    let plan = events.iter().find(|e| e["event"] == "plan").expect("the plan is an event");
    let planned = plan["nodes"].as_array().expect("nodes").iter().find(|n| n["name"] == node);
    let total = planned.and_then(|n| n["changes"].as_array()).map_or(0, Vec::len);
    assert!(total > 0, "{node} has a plan: {plan}");
    let steps: Vec<&Value> = events.iter().filter(|e| e["node"] == node).collect();
    let done: Vec<_> =
        steps.iter().filter(|e| e["event"] == "applying").map(|e| e["done"].as_u64()).collect();
    assert_eq!(done, (0..=total as u64).map(Some).collect::<Vec<_>>(), "{node}: one event for each change");
    let named = |name: &str| steps.iter().filter(|e| e["event"] == name).count();
    for (name, times) in
        [("locking", 1), ("arming", 1), ("verifying", 1), ("confirming", 1), ("done", 1), ("failed", 0)]
    {
        assert_eq!(named(name), times, "{node}: {name} in {steps:?}");
    }
}

/// Somebody changed a node by hand, or the file changed: two questions with two answers.
fn drift(cluster: &mut Cluster) {
    cluster.apply();
    let asked = |cluster: &Cluster| cluster.homelab(&["drift", "--detailed-exitcode"]);
    let output = asked(cluster);
    assert_eq!(output.code, 0, "{}", said(&output));
    // The file changes: no drift, and a plan.
    cluster.file.set("network.vxlan.mtu", json!(1400));
    let output = asked(cluster);
    assert_eq!(output.code, 0, "a changed file is no drift: {}", said(&output));
    assert_eq!(cluster.homelab(&["plan", "--detailed-exitcode"]).code, 2);
    // Somebody at a node: drift, that and only that.
    cluster.sh(
        "node2",
        "kill -STOP $(systemctl show -P MainPID homelab-node); rm /etc/sysctl.d/90-homelab.conf",
    );
    let output = asked(cluster);
    let text = said(&output);
    assert_eq!(output.code, 2, "{text}");
    assert!(text.contains("node2") && text.contains("/etc/sysctl.d/90-homelab.conf"), "{text}");
    assert!(!text.contains("link homelab.1"), "what the file changes is no drift:\n{text}");
    cluster.sh("node2", "kill -CONT $(systemctl show -P MainPID homelab-node)");
    cluster.apply();
    assert_eq!(asked(cluster).code, 0);
    cluster.assert_converged();
}

/// The secrets of a node's key file: its lines of hex digits.
fn secrets(cluster: &Cluster, node: &str) -> Vec<String> {
    let text = cluster.sh(node, &format!("cat {KEYS}"));
    let hex = |line: &&str| line.len() >= 32 && line.bytes().all(|b| b.is_ascii_hexdigit());
    let found: Vec<String> = text.lines().filter(hex).map(str::to_owned).collect();
    assert!(!found.is_empty(), "no key on {node}");
    found
}

#[track_caller]
fn assert_secret(cluster: &Cluster, secrets: &[String], what: &str, text: &str) {
    for secret in secrets {
        assert!(!text.contains(secret.as_str()), "{what} shows a key");
    }
    for node in cluster.nodes() {
        for secret in secrets {
            let journal =
                cluster.sh(&node, &format!("journalctl --no-pager --all | grep -c {secret} || true"));
            assert_eq!(journal, "0", "{what}: the journal of {node} shows a key");
        }
    }
}

fn keys_are_never_shown(cluster: &mut Cluster) {
    let file = path(cluster, "plan.json");
    let name = file.to_string_lossy().into_owned();
    let mut text = said(&cluster.homelab_ok(&["plan", "--verbose", "--out", &name]));
    text += &text_of(&file);
    text += &said(&cluster.homelab_ok(&["apply", "--yes", "--verbose", "--format", "json"]));
    let first = secrets(cluster, "node1");
    for node in cluster.nodes() {
        assert_eq!(cluster.sh(&node, &format!("stat -c '%a %u:%g' {KEYS}")), "600 0:0", "{node}");
        assert_eq!(secrets(cluster, &node), first, "all nodes have the same key: {node}");
    }
    assert_secret(cluster, &first, "the first apply", &text);
    // Everything that is said of it later, the before side too; and what other processes can see meanwhile.
    let words: Vec<&str> = first.iter().map(String::as_str).collect();
    let (text, seen) = spy_while(&words, || {
        let mut text = String::new();
        cluster.sh("node2", "kill -STOP $(systemctl show -P MainPID homelab-node)");
        cluster.sh("node2", &format!("echo 'homelab-keys 0' >{KEYS}"));
        for format in ["human", "json", "markdown"] {
            text += &said(&cluster.homelab_ok(&["plan", "--verbose", "--format", format, "--out", &name]));
            text += &text_of(&file);
            text += &said(&cluster.homelab(&["drift", "--format", format]));
        }
        // It is carried from a node that has it.
        text += &said(&cluster.homelab_ok(&["apply", "--yes", "--verbose"]));
        text += &said(&cluster.homelab_ok(&["status", "--verbose"]));
        text
    });
    assert!(seen.is_empty(), "a key was seen in {seen:?}");
    assert_secret(cluster, &first, "a later run", &text);
    assert_eq!(secrets(cluster, "node2"), first);
    // A new node gets it, and destroy takes it away.
    cluster.lab.reset(&["node3"]).expect("node3 boots");
    cluster.apply();
    assert_eq!(secrets(cluster, "node3"), first);
    let output = cluster.homelab_ok(&["destroy", "--yes", "--verbose", "--allow-disruptive"]);
    assert_secret(cluster, &first, "destroy", &said(&output));
    for (node, left) in cluster
        .nodes()
        .iter()
        .zip(cluster.everywhere("ls -A /etc/homelab /var/lib/homelab 2>/dev/null || true"))
    {
        assert_eq!(left, "", "left on {node}");
    }
    cluster.apply();
    assert_ne!(secrets(cluster, "node1"), first, "a new cluster has a new key");
}

/// Key files of all nodes as they were at one moment; None while one of them is changing.
fn rings(files: &[PathBuf]) -> Option<Vec<Vec<String>>> {
    let read = || files.iter().map(|file| std::fs::read_to_string(file).ok()).collect::<Option<Vec<_>>>();
    let (first, second) = (read()?, read()?);
    let keys = |text: &String| text.lines().skip(2).map(str::to_owned).collect();
    (first == second).then(|| first.iter().map(keys).collect())
}

fn rotate_key(cluster: &mut Cluster) {
    cluster.apply();
    let old = secrets(cluster, "node1");
    let files: Vec<PathBuf> =
        cluster.nodes().iter().map(|node| cluster.on_node(node, KEYS).expect("the node is on")).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (output, (looks, states)) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut looks, mut states) = (0, BTreeSet::new());
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if let Some(rings) = rings(&files) {
                    looks += 1;
                    states.insert(rings);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            (looks, states)
        });
        let output = cluster.homelab(&["rotate-key", "--yes"]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (output, watch.join().expect("the watch returns"))
    });
    assert!(output.success(), "{}", said(&output));
    for rings in &states {
        for signer in rings {
            for other in rings {
                assert!(other.contains(&signer[0]), "a node does not accept what another one signs with");
            }
        }
    }
    measured(format_args!(
        "rotate-key: {looks} looks, {} states of three rings, all understood",
        states.len()
    ));
    assert!(states.len() >= 4, "old, both, new signs, new: {}", states.len());
    let new = secrets(cluster, "node1");
    assert_eq!(new.len(), 1, "the old key is gone");
    assert!(!old.contains(&new[0]), "the key is another");
    for node in cluster.nodes() {
        assert_eq!(secrets(cluster, &node), new, "{node}");
        assert_eq!(cluster.sh(&node, &format!("stat -c '%a %u:%g' {KEYS}")), "600 0:0", "{node}");
    }
    assert_secret(cluster, &[old, new].concat(), "rotate-key", &said(&output));
    cluster.assert_converged();
}
