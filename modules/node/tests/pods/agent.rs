//! The agent in a network namespace that is its node, with places of its own for what it writes.

#[path = "../../../../tests/fixtures/agent.rs"]
mod start;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use homelab_model::{AgentFact, KubernetesFact, KubernetesSpec, NodeSpec};

use self::start::command;
use super::ruleset::fixtures;
use super::{Node, PLUGIN, run};

/// The node's address.
pub(crate) const ADDRESS: &str = "192.168.7.1";

/// A running agent. Ends with the value.
pub(crate) struct Agent(std::process::Child);

/// What an agent is told that watches this API server.
pub(crate) fn spec(server: &str) -> NodeSpec {
    NodeSpec {
        interface: "lan".into(),
        address: ADDRESS.parse().expect("address"),
        // Below a place that is covered on every machine.
        cni_bin_dirs: vec!["/opt/cni/bin".into()],
        kubernetes: Some(KubernetesSpec::new(vec![server.to_owned()], "node1")),
        ..fixtures::spec(true)
    }
}

impl Agent {
    /// In a mount namespace of its own; `data` of the node is its /var/lib/homelab.
    pub(crate) fn start(node: &Node, spec: &NodeSpec) -> Agent {
        let child =
            command(Path::new(PLUGIN), node.data.path(), spec).stdin(Stdio::null()).spawn().expect("agent");
        Agent(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn report(&self) -> Option<AgentFact> {
        let path = PathBuf::from(format!("/proc/{}/root/run/homelab/agent.json", self.0.id()));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// How it stands with the API.
    pub(crate) fn kubernetes(&self) -> Option<KubernetesFact> {
        self.report().and_then(|report| report.kubernetes)
    }

    pub(crate) fn connected(&self) -> bool {
        self.kubernetes().is_some_and(|fact| fact.connected)
    }

    /// Tells it something else.
    pub(crate) fn tell(&self, spec: &NodeSpec) {
        let pid = self.0.id();
        std::fs::write(format!("/proc/{pid}/root/etc/homelab/node.json"), spec.to_file()).expect("file");
        run(&format!("kill -HUP {pid}"));
    }

    /// Stops it as systemd does.
    pub(crate) fn stop(mut self) {
        run(&format!("kill -TERM {}", self.0.id()));
        assert!(self.0.wait().expect("it ends").success());
    }

    /// What `homelab-node status` says there.
    pub(crate) fn status(&self) -> String {
        run(&format!("nsenter --mount --target {} {PLUGIN} status 2>&1 || true", self.0.id()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is shown of the node when something does not happen.
const SHOW: &str = "nft list table inet homelab-proxy 2>&1; ip route; ip neigh; bridge fdb show";

/// Waits for it.
pub(crate) fn eventually(what: &str, happens: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !happens() {
        assert!(Instant::now() < deadline, "not in time: {what}\n{}", run(SHOW));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same again, whoever still holds old connections.
pub(crate) fn again(port: u16) -> TcpListener {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
