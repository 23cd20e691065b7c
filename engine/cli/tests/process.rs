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

/// The command with the manifest of [`directory`].
fn ask(here: &Path, args: &[&str]) -> Output {
    homelab(here, &[&["--node-binaries", "."], args].concat(), false)
}

fn lines(output: &Output) -> Vec<serde_json::Value> {
    let line = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"));
    text(&output.stdout).lines().map(line).collect()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn an_apply_streams_events_from_plan_to_result() {
    let here = directory(GOOD);
    let output = ask(here.path(), &["apply", "--yes", "--format", "json", "--json-into", "result.json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let events = lines(&output);
    let names: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"plan"), Some(&"result")));
    assert!(events.iter().all(|e| e["format_version"] == 1 && e["time"].is_string()));
    assert!(events[0]["nodes"][0]["error"]["message"].as_str().unwrap().contains("cannot connect"));
    let result = events.last().unwrap();
    assert_eq!((&result["exit_code"], &result["nodes"][0]["outcome"]), (&1.into(), &"unplanned".into()));
    let written = json(&here.path().join("result.json"));
    assert_eq!((&written["exit_code"], &written["nodes"]), (&result["exit_code"], &result["nodes"]));
}

#[test]
fn what_ends_a_run_early_is_said_to_programs_too() {
    let here = directory(BAD);
    let output = ask(here.path(), &["destroy", "--format", "json", "--json-into", "result.json"]);
    assert_eq!(output.status.code(), Some(1));
    let events = lines(&output);
    assert_eq!((events.len(), &events[0]["event"], &events[0]["exit_code"]), (1, &"error".into(), &1.into()));
    let written = json(&here.path().join("result.json"));
    assert_eq!(written["error"]["message"], "problems in the cluster file");
    // Commands that answer with one object say nothing on stdout then.
    assert!(ask(here.path(), &["status", "--format", "json"]).stdout.is_empty());
}

#[test]
fn json_stands_beside_human_output() {
    let here = directory(GOOD);
    for (args, field) in [
        (&["plan"][..], "summary"),
        (&["status"], "healthy"),
        (&["status", "services"], "agrees"),
        (&["trace", "node1", "1.1.1.1:80"], "nodes"),
        (&["drift"], "drifted"),
        (&["confirm"], "exit_code"),
        (&["unlock"], "exit_code"),
        (&["unlock", "--force"], "exit_code"),
        (&["validate"], "valid"),
        (&["rollback", "--yes"], "rolled_back"),
        (&["rotate-key", "--yes"], "error"),
    ] {
        let output = ask(here.path(), &[args, &["--json-into", "x.json"]].concat());
        let code = if args == ["validate"] { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_err(), "{args:?}");
        let value = json(&here.path().join("x.json"));
        assert!(value.get(field).is_some(), "{args:?}: {value:#}");
        std::fs::remove_file(here.path().join("x.json")).unwrap();
    }
    let nowhere = ask(here.path(), &["plan", "--json-into", "no/such/x.json"]);
    assert!(text(&nowhere.stderr).contains("cannot write no/such/x.json"));
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn a_plan_file_is_bound_to_what_it_was_made_from() {
    let here = directory(GOOD);
    let path = here.path().join("plan.json");
    let apply = || ask(here.path(), &["apply", "plan.json", "--yes"]);
    let refused = |words: &str| {
        let output = apply();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(words), "{words}: {}", text(&output.stderr));
    };
    refused("cannot read plan.json");
    ask(here.path(), &["plan", "--out", "plan.json"]);
    // The node is as unreachable as it was: the file holds, and there is nothing that could be done.
    let output = apply();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("1 node could not be planned"), "{}", text(&output.stderr));
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("\"format_version\": 1", "\"format_version\": 7")).unwrap();
    refused("written by a newer homelab: its format is 7");
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    refused("is no plan file");
    std::fs::write(&path, good.replace("\"destroy\": false", "\"destroy\": true")).unwrap();
    refused("the plan of a destroy");
    std::fs::write(&path, good.replace("192.168.50.11", "192.168.50.66")).unwrap();
    refused("was altered");
    let output = ask(here.path(), &["plan", "--format", "json"]);
    std::fs::write(&path, output.stdout).unwrap();
    refused("a plan to read");
    std::fs::write(&path, &good).unwrap();
    std::fs::write(here.path().join("homelab.yaml"), format!("{GOOD}network: {{vxlan: {{vni: 7}}}}\n"))
        .unwrap();
    refused("the cluster file has changed since the plan was made");
    std::fs::write(here.path().join("homelab.yaml"), GOOD.replace("home", "work")).unwrap();
    refused("a plan for the cluster \"home\"");
}

#[test]
fn questions_need_a_terminal_or_a_yes() {
    let here = directory(GOOD);
    let output = ask(here.path(), &["rotate-key"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no terminal to ask on"), "{}", text(&output.stderr));
    let output = ask(here.path(), &["rotate-key", "--nodes", "node1", "--yes"]);
    assert!(text(&output.stderr).contains("takes no --nodes"));
    let wrong = ask(here.path(), &["apply", "--try", "soon"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("90s, 10m, 1h"), "{}", text(&wrong.stderr));
}

#[test]
fn a_signal_before_any_change_ends_the_command_at_once() {
    // A node that accepts the connection and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let here = directory(&GOOD.replace("port: 9", &format!("port: {port}")));
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        for command in ["plan", "status", "drift"] {
            let mut child = Command::new(env!("CARGO_BIN_EXE_homelab"))
                .current_dir(here.path())
                .args(["--node-binaries", ".", "--connect-timeout", "60", command])
                .env_remove("HOMELAB_FILE")
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let (connection, _) = listener.accept().unwrap();
            let start = std::time::Instant::now();
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
            assert_eq!(child.wait().unwrap().code(), Some(code), "{command} {signal}");
            assert!(start.elapsed() < std::time::Duration::from_secs(30), "{:?}", start.elapsed());
            drop(connection);
        }
    }
}

#[test]
fn a_watch_ends_well_with_ctrl_c() {
    use std::io::BufRead;
    let here = directory(GOOD);
    for format in ["human", "json", "markdown"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_homelab"))
            .current_dir(here.path())
            .args(["--node-binaries", ".", "--quiet", "--format", format, "status", "lb", "--watch"])
            .env_remove("HOMELAB_FILE")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let said =
            lines.by_ref().map(Result::unwrap).find(|line| line.contains("cannot connect to 127.0.0.1:9"));
        assert!(said.is_some_and(|line| !line.contains('\u{1b}')), "{format}");
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{format}");
    }
}

#[test]
fn a_signal_that_the_caller_ignores_is_not_heard() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let here = directory(&GOOD.replace("port: 9", &format!("port: {port}")));
    // As nohup does.
    let script = format!(
        "trap '' HUP; exec {} --node-binaries . --connect-timeout 60 plan",
        env!("CARGO_BIN_EXE_homelab")
    );
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .current_dir(here.path())
        .env_remove("HOMELAB_FILE")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _connection = listener.accept().unwrap();
    let send = |signal: &str| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    };
    send("HUP");
    std::thread::sleep(std::time::Duration::from_millis(300));
    send("TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_reader_that_is_gone_is_no_crash() {
    let here = directory(GOOD);
    let script = format!(
        "{} --node-binaries . apply --yes --format json | true; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_homelab")
    );
    let output = Command::new("bash").args(["-c", &script]).current_dir(here.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
}
