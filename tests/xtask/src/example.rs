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
    for call in &calls {
        let mut words = call.iter().map(String::as_str).peekable();
        let mut command = None;
        let mut flags = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "-f" | "--format" => {
                    flags.push(word);
                    words.next();
                }
                flag if flag.starts_with('-') => flags.push(flag),
                word => command = command.or(Some(word)),
            }
        }
        let command = command.expect("a command");
        used.insert(command);
        let help = homelab(&[command, "--help"]);
        for flag in flags {
            let known = help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == flag);
            assert!(known, "homelab {command} does not know {flag}:\n{help}");
        }
    }
    assert_eq!(used, ["apply", "plan", "validate"].into());
}
