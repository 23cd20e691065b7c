//! `examples/homeserver` is checked: its parts agree with each other and with the command.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use homelab_config::Source;
use serde_json::Value;

use crate::tools;

fn path(file: &str) -> PathBuf {
    tools::root().join("examples/homeserver").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).expect("a file of the example")
}

fn workflow() -> Value {
    serde_saphyr::from_str(&read(".github/workflows/homelab.yml")).expect("YAML")
}

/// Commands that a workflow may call.
const COMMANDS: [&str; 12] = [
    "validate",
    "plan",
    "apply",
    "destroy",
    "status",
    "drift",
    "confirm",
    "rollback",
    "unlock",
    "rotate-key",
    "cordon",
    "uncordon",
];

/// All scripts of the workflow.
fn scripts(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == "run" => vec![text.clone()],
                value => scripts(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(scripts).collect(),
        _ => Vec::new(),
    }
}

/// The words after `homelab` in each call of it.
fn calls(script: &str) -> Vec<Vec<String>> {
    let lines = script.lines().map(str::trim).filter(|line| line.starts_with("homelab "));
    lines
        .map(|line| {
            let end = |word: &&str| !word.starts_with(['>', '|', '&', ';']);
            line.split_whitespace().skip(1).take_while(end).map(str::to_owned).collect()
        })
        .collect()
}

/// What `homelab` says when called with these words.
pub(crate) fn homelab(words: &[&str]) -> String {
    let test = std::env::current_exe().expect("our own path");
    // An old one would know other flags. All of the workspace: else cargo builds dependencies with other features.
    tools::run(&mut tools::cargo(&["build", "--quiet", "--workspace", "--bin=homelab"])).expect("a build");
    let built = test.ancestors().nth(2).expect("target directory").join("homelab");
    let output = Command::new(built).args(words).output().expect("homelab runs");
    assert!(output.status.success(), "homelab {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn vagrant_has_the_same_nodes() {
    let source = Source { name: "homelab.yaml".into(), text: read("homelab.yaml") };
    let cluster = homelab_config::load(&[source]).expect("a good file").cluster;
    let nodes: BTreeMap<String, String> =
        cluster.nodes.into_iter().map(|node| (node.name, node.address.to_string())).collect();
    let machines: BTreeMap<String, String> = read("Vagrantfile")
        .lines()
        .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" => "))
        .map(|(name, address)| (name.trim_matches('"').to_owned(), address.trim_matches('"').to_owned()))
        .collect();
    assert_eq!(machines, nodes);
}

#[test]
fn vagrant_accepts_its_file_where_there_is_vagrant() {
    if Command::new("vagrant").arg("--version").output().is_err() {
        return;
    }
    let home = std::env::temp_dir().join(format!("homelab-vagrant-{}", std::process::id()));
    let output = Command::new("vagrant")
        .args(["validate", "--ignore-provider"])
        .current_dir(path(""))
        // Nothing is left in the user's home or in the example.
        .env("VAGRANT_HOME", &home)
        .env("VAGRANT_DOTFILE_PATH", home.join("dot"))
        .env("VAGRANT_CHECKPOINT_DISABLE", "1")
        .output()
        .expect("vagrant runs");
    std::fs::remove_dir_all(&home).ok();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_workflow_knows_its_events_and_jobs() {
    let workflow = workflow();
    let keys =
        |value: &Value| -> BTreeSet<String> { value.as_object().expect("a block").keys().cloned().collect() };
    assert_eq!(
        keys(&workflow["on"]),
        ["pull_request", "push", "schedule", "workflow_dispatch"].map(str::to_owned).into()
    );
    assert_eq!(keys(&workflow["jobs"]), ["apply", "drift", "plan"].map(str::to_owned).into());
    // Two runs at once would lock each other out, and a cancelled one would leave a rollback to the nodes.
    assert_eq!(workflow["concurrency"]["cancel-in-progress"], Value::Bool(false));
    // Secrets come by the environment, never as words of a script.
    for script in scripts(&workflow) {
        assert!(!script.contains("${{"), "{script}");
        let syntax = Command::new("bash").args(["-n", "-c", &script]).output().expect("bash");
        assert!(syntax.status.success(), "{script}");
    }
}

#[test]
fn the_workflow_uses_only_what_the_command_knows() {
    let calls: Vec<Vec<String>> = scripts(&workflow()).iter().flat_map(|script| calls(script)).collect();
    let mut used = BTreeSet::new();
    let mut given = BTreeSet::new();
    for call in &calls {
        let command = call.iter().find(|word| COMMANDS.contains(&word.as_str())).expect("a command");
        used.insert(command.clone());
        let help = homelab(&[command, "--help"]);
        for flag in call.iter().filter(|word| word.starts_with('-')) {
            let known = help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == flag);
            assert!(known, "homelab {command} does not know {flag}:\n{help}");
            given.insert(format!("{command} {flag}"));
        }
        // clap itself has the last word: flags without their values, words too many.
        let mut words: Vec<&str> = call.iter().map(String::as_str).collect();
        words.push("--help");
        homelab(&words);
    }
    assert_eq!(used, ["apply", "drift", "plan", "validate"].map(str::to_owned).into());
    // What pipelines are made for is used.
    for flag in [
        "plan --detailed-exitcode",
        "plan --format",
        "plan --json-into",
        "plan --out",
        "apply --format",
        "apply --json-into",
        "apply --lock-timeout",
        "apply --yes",
        "drift --detailed-exitcode",
    ] {
        assert!(given.contains(flag), "{flag}");
    }
}

#[test]
fn files_that_jobs_hand_on_are_written_before_they_are_read() {
    let workflow = workflow();
    let steps = |job: &str| workflow["jobs"][job]["steps"].as_array().expect("steps").clone();
    let words = |job: &str, command: &str| -> Vec<String> {
        let calls = scripts(&workflow["jobs"][job]);
        let all = calls.iter().flat_map(|script| calls_of(script, command)).next();
        all.expect("a call")
    };
    let after = |words: &[String], flag: &str| {
        words.iter().skip_while(|word| *word != flag).nth(1).expect("a value").clone()
    };
    let with = |job: &str, uses: &str| -> Value {
        let action = |step: &&Value| step["uses"].as_str().is_some_and(|u| u.starts_with(uses));
        steps(job).iter().find(action).expect("the step")["with"].clone()
    };
    let out = after(&words("plan", "plan"), "--out");
    let kept = with("plan", "actions/upload-artifact@");
    assert!(kept["path"].as_str().expect("paths").lines().any(|line| line == out), "{out}");
    assert_eq!(kept["name"], with("apply", "actions/download-artifact@")["name"]);
    assert_eq!(after(&words("apply", "apply"), "apply"), out, "the plan that is applied");
    let result = after(&words("apply", "apply"), "--json-into");
    let kept = with("apply", "actions/upload-artifact@");
    assert!(kept["path"].as_str().expect("paths").lines().any(|line| line == result), "{result}");
    assert_eq!(workflow["jobs"]["apply"]["needs"], "plan");
}

/// The calls of one command in a script.
fn calls_of(script: &str, command: &str) -> Vec<Vec<String>> {
    calls(script).into_iter().filter(|call| call.iter().any(|word| word == command)).collect()
}
