//! A node and its pods as network namespaces, and the plugin called as a runtime calls it.
#![allow(dead_code, reason = "every test program uses another part")]

#[path = "../../../cni/tests/schemas/mod.rs"]
pub(crate) mod schemas;

pub(crate) mod agent;
pub(crate) mod ruleset;
pub(crate) mod talk;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_homelab-node");

/// Runs `work` on a thread in a network namespace of its own, which is the node.
pub(crate) fn on_a_node<T: Send>(work: impl FnOnce(&Node) -> T + Send) -> T {
    assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            run("ip link set lo up");
            work(&Node { data: tempfile::tempdir().expect("directory") })
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A network namespace that lives as long as the value.
pub(crate) struct Pod {
    pub(crate) id: String,
    namespace: File,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Pod {
        let holder = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            File::open("/proc/thread-self/ns/net").expect("namespace")
        });
        Pod { id: id.to_owned(), namespace: holder.join().expect("thread") }
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("namespace");
                work()
            });
            worker.join().expect("thread")
        })
    }

    /// What a command inside prints.
    pub(crate) fn run(&self, command: &str) -> String {
        run(&format!("nsenter --net={} {command}", self.path().display()))
    }

    /// Whether a command in the caller's namespace succeeds.
    pub(crate) fn can_here(command: &str) -> bool {
        shell(command).status.success()
    }

    /// Whether a command inside succeeds.
    pub(crate) fn can(&self, command: &str) -> bool {
        shell(&format!("nsenter --net={} {command}", self.path().display())).status.success()
    }
}

fn shell(command: &str) -> std::process::Output {
    Command::new("sh").args(["-c", command]).output().expect("sh")
}

/// What a command in the caller's namespace prints.
pub(crate) fn run(command: &str) -> String {
    let output = shell(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the plugin said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Option<i32>,
    pub(crate) text: String,
}

impl Answer {
    /// The result of a request that went well.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, Some(0), "{}", self.text);
        if self.text.is_empty() { Value::Null } else { serde_json::from_str(&self.text).expect("JSON") }
    }

    /// The code of a request that failed as the specification wants it: exit code 1, error object on stdout.
    pub(crate) fn code(self) -> u64 {
        assert_eq!(self.status, Some(1), "{}", self.text);
        let error: Value = serde_json::from_str(&self.text).expect("JSON");
        schemas::assert_error(error["cniVersion"].as_str().expect("version"), &error);
        error["code"].as_u64().expect("code")
    }
}

/// The calling thread's namespace as a node, with an IPAM store of its own.
pub(crate) struct Node {
    pub(crate) data: TempDir,
}

impl Node {
    /// A configuration, dual stack.
    pub(crate) fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "home", "type": "homelab", "bridge": "homelab0",
            "bridgeMac": "02:00:00:00:00:01", "mtu": 1450, "ranges": ["10.244.1.0/24", "fd00:10:1::/64"],
            "dataDir": self.data.path(),
        })
    }

    /// The plugin's command line and environment for a request. Started by a shell line where one is given.
    pub(crate) fn command(&self, command: &str, pod: &Pod, through: Option<&str>) -> Command {
        let mut process = match through {
            None => Command::new(PLUGIN),
            Some(line) => {
                let mut sh = Command::new("unshare");
                sh.args(["-m", "sh", "-c", &format!("{line} && exec {PLUGIN}")]);
                sh
            }
        };
        if through.is_none() {
            process.arg0("/opt/cni/bin/homelab");
        }
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=test")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        process
    }

    /// One request.
    pub(crate) fn call(&self, command: &str, pod: &Pod, conf: &Value) -> Answer {
        self.finish(start(self.command(command, pod, None), conf))
    }

    /// One request with other environment variables; an empty value takes one away.
    pub(crate) fn call_with(&self, command: &str, pod: &Pod, conf: &Value, env: &[(&str, &str)]) -> Answer {
        let mut process = self.command(command, pod, None);
        for (name, value) in env {
            if value.is_empty() {
                process.env_remove(name);
            } else {
                process.env(name, value);
            }
        }
        self.finish(start(process, conf))
    }

    pub(crate) fn finish(&self, child: Child) -> Answer {
        let output = child.wait_with_output().expect("output");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        Answer { status: output.status.code(), text }
    }

    pub(crate) fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", pod, &self.conf("1.1.0")).ok()
    }

    pub(crate) fn del(&self, pod: &Pod) {
        self.call("DEL", pod, &self.conf("1.1.0")).ok();
    }

    /// Names of entries in the store, of all boots.
    pub(crate) fn entries(&self) -> Vec<String> {
        fn walk(directory: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).expect("directory") {
                let entry = entry.expect("entry");
                let kind = entry.file_type().expect("type");
                let name = entry.file_name().into_string().expect("UTF-8");
                if kind.is_dir() {
                    walk(&entry.path(), found);
                } else if !["lock", "adding", "ports"].contains(&name.as_str()) {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.data.path(), &mut found);
        found.sort();
        found
    }

    /// Ports of the bridge.
    pub(crate) fn ports(&self) -> Vec<String> {
        let links = run("ip -o link show type veth");
        links
            .lines()
            .filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()))
            .collect()
    }

    /// Nothing of any pod is left.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.ports(), Vec::<String>::new());
        assert_eq!(self.entries(), Vec::<String>::new());
    }
}

/// Starts a request and hands it its configuration.
pub(crate) fn start(process: Command, conf: &Value) -> Child {
    start_with(process, conf.to_string().as_bytes())
}

/// Starts a request with any standard input.
pub(crate) fn start_with(mut process: Command, input: &[u8]) -> Child {
    let mut child = process.spawn().expect("plugin");
    let mut stdin = child.stdin.take().expect("stdin");
    // A plugin that was killed, or refused before reading, closes the pipe.
    let _ = stdin.write_all(input);
    child
}

/// The addresses of a result without their prefix lengths.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("ips");
    let text =
        |ip: &Value| ip["address"].as_str().expect("address").split('/').next().unwrap_or("").to_owned();
    ips.iter().map(text).collect()
}
