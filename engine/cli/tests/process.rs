//! The program as a user starts it.
#![cfg(test)]

use std::path::Path;
use std::process::{Command, Output};

const GOOD: &str =
    "name: home\nnodes:\n  - {name: node1, address: 192.168.50.11, ssh: {host: 127.0.0.1, port: 9}}\n";
const BAD: &str = "name: home\nnodes:\n  - {name: node1, adress: 192.168.50.11}\n";

fn homelab(directory: &Path, args: &[&str], github: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homelab"));
    command.current_dir(directory).args(args);
    command.env_remove("HOMELAB_FILE").env_remove("HOMELAB_NODE_BINARIES").env_remove("GITHUB_ACTIONS");
    if github {
        command.env("GITHUB_ACTIONS", "true");
    }
    command.stdin(std::process::Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn directory(file: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("homelab.yaml"), file).unwrap();
    let digest = "a".repeat(64);
    let manifest = format!(
        r#"{{"format_version":1,"binaries":{{"x86_64":{{"sha256":"{digest}","size":1,"file":"x.gz"}}}}}}"#
    );
    std::fs::write(directory.path().join("homelab-node.json"), manifest).unwrap();
    directory
}

#[test]
fn usage_errors_exit_with_1_and_help_with_0() {
    let here = directory(GOOD);
    for args in [&["no-such-command"][..], &[], &["plan", "--no-such-flag"], &["plan", "--format", "xml"]] {
        let output = homelab(here.path(), args, false);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
    let help = homelab(here.path(), &["--help"], false);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Exit codes"));
    assert_eq!(homelab(here.path(), &["--version"], false).status.code(), Some(0));
}

#[test]
fn validate_shows_problems_at_their_place() {
    let here = directory(GOOD);
    let output = homelab(here.path(), &["validate"], false);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("homelab.yaml is valid: cluster home, 1 node, pods 10.244.0.0/16"));
    let here = directory(BAD);
    let output = homelab(here.path(), &["validate"], false);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("homelab.yaml:3:") && stderr.contains("address"), "{stderr}");
    assert!(!stderr.contains("::error"), "{stderr}");
    let stderr = text(&homelab(here.path(), &["validate"], true).stderr);
    assert!(stderr.contains("::error file=homelab.yaml,line=3,col="), "{stderr}");
    let output = homelab(here.path(), &["validate", "--format", "json"], false);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\"valid\": false"));
}

#[test]
fn a_node_that_refuses_connections_is_reported_by_plan_and_apply() {
    let here = directory(GOOD);
    let ask = |args: &[&str]| {
        let mut all = vec!["--node-binaries", "."];
        all.extend_from_slice(args);
        homelab(here.path(), &all, false)
    };
    let output = ask(&["plan", "--detailed-exitcode", "--out", "plan.json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("error: cannot connect to 127.0.0.1:9"), "{stdout}");
    assert!(stdout.contains("hint:") && stdout.contains("1 node could not be planned: node1"), "{stdout}");
    let plan = std::fs::read_to_string(here.path().join("plan.json")).unwrap();
    assert!(plan.contains("\"format_version\": 1") && plan.contains("\"failed_nodes\": 1"), "{plan}");
    assert_eq!(ask(&["apply", "--yes"]).status.code(), Some(1));
    let status = ask(&["status", "--format", "json"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status.stdout).contains("\"reachable\": false"));
    let unknown = ask(&["plan", "--nodes", "node7"]);
    assert!(text(&unknown.stderr).contains("its nodes are node1"));
}

#[test]
fn missing_files_come_with_a_hint() {
    let here = tempfile::tempdir().unwrap();
    let output = homelab(here.path(), &["plan"], false);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot read homelab.yaml") && text(&output.stderr).contains("hint:")
    );
    std::fs::write(here.path().join("homelab.yaml"), GOOD).unwrap();
    let output = homelab(here.path(), &["plan", "--node-binaries", "."], false);
    assert!(text(&output.stderr).contains("cargo xtask dist"), "{}", text(&output.stderr));
}

#[test]
fn schema_completions_and_manual_are_printed() {
    let here = tempfile::tempdir().unwrap();
    for (args, words) in [
        (&["schema"][..], "\"$schema\""),
        (&["completions", "bash"], "detailed-exitcode"),
        (&["completions", "zsh"], "#compdef homelab"),
        (&["completions", "fish"], "complete -c homelab"),
        (&["man"], ".TH homelab 1"),
    ] {
        let output = homelab(here.path(), args, false);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(text(&output.stdout).contains(words), "{args:?}");
    }
}
