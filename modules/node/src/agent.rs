//! The agent: keeps what is ours in the kernel and on disk as [`NodeSpec`] says.
//!
//! Subscribe first, full check, then events, then a full check on a timer. A check is the engine's own:
//! `apply(diff(observe(), desired(spec)))`. It leaves out what belongs to the agent itself (binary, unit, spec):
//! only the laptop changes that. While the laptop applies, the lock keeps the agent out; under the lock it reads
//! the spec again, so it never works for yesterday's.

mod events;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homelab_linux::{Error, Kinds, Node, Root};
use homelab_model::{AgentFact, Backend, Module, NodeObject, NodeSpec, Scope, Spec, diff, ours, sha256_hex};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use events::{EVERYTHING, FILES, NOTHING, among, kinds_of_events, listen, union};

/// Files and sysctls have no events that could be trusted: they are read this often.
const FILES_EVERY: Duration = Duration::from_millis(400);
/// Links, addresses, routes, neighbours, FDB and nftables have events; this is for those that get lost.
const KERNEL_EVERY: Duration = Duration::from_secs(5);
/// Addresses of pods that ended without a DEL are free again after this at the latest.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How often systemd hears that the agent lives, at least.
const QUIET: Duration = Duration::from_secs(10);
/// Events come in bursts; wait this long after the first.
const SETTLE: Duration = Duration::from_millis(20);
/// While the lock is held by an apply.
const RETRY: Duration = Duration::from_millis(100);

pub(crate) fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => Err(format!("no event loop: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            error!("{message}");
            ExitCode::FAILURE
        }
    }
}

struct Agent {
    node: Node,
    spec: Option<NodeSpec>,
    report: AgentFact,
    written: Option<AgentFact>,
    /// What could not be repaired at the last check of its kind.
    failures: Vec<(Spec, String)>,
    /// Why the node could not be looked at, if it could not.
    blind: Option<String>,
    /// Why there is no usable spec, if there is none.
    trouble: Option<String>,
}

async fn run() -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| format!("signals: {e}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| format!("signals: {e}"))?;
    // Before the first look, so that nothing is missed between the two.
    let watched = Arc::new(Mutex::new(Vec::new()));
    let mut events = listen(Arc::clone(&watched))?;
    let mut agent = Agent {
        node: Node::open(Root::system()).map_err(|e| e.to_string())?,
        spec: None,
        report: AgentFact {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: String::new(),
            repairs: 0,
            errors: Vec::new(),
        },
        written: None,
        failures: Vec::new(),
        blind: None,
        trouble: None,
    };
    agent.load();
    agent.write_report();
    info!(version = agent.report.version, "agent started");
    let _ = sd_notify::notify(&[NotifyState::Ready]);

    let mut files = interval(FILES_EVERY);
    let mut kernel = interval(KERNEL_EVERY);
    let mut sweep = interval(SWEEP_EVERY);
    for timer in [&mut files, &mut kernel, &mut sweep] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut due = EVERYTHING;
    let mut check_at = Some(Instant::now());
    loop {
        let wait = check_at.unwrap_or_else(|| Instant::now() + QUIET);
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            event = events.recv() => {
                let happened = event.ok_or("netlink events ended")?.map_err(|e| format!("netlink events: {e}"))?;
                due = union(due, kinds_of_events(happened));
                check_at.get_or_insert_with(|| Instant::now() + SETTLE);
            }
            _ = files.tick() => {
                due = union(due, FILES);
                check_at.get_or_insert_with(Instant::now);
            }
            _ = kernel.tick() => due = union(due, Kinds::KERNEL),
            _ = sweep.tick() => match crate::cni::sweep(Path::new(ours::IPAM)) {
                Ok(0) => {}
                Ok(freed) => info!(freed, "addresses of vanished pods are free again"),
                Err(error) => warn!(%error, "cannot look for addresses of vanished pods"),
            },
            () = sleep_until(wait), if check_at.is_some() => {
                check_at = None;
                if agent.check(due) {
                    // Files have no links: their check, which comes often, costs no look at the kernel.
                    if due.links && let (Ok(links), Ok(mut watched)) = (agent.node.our_links(), watched.lock()) {
                        *watched = links;
                    }
                    due = NOTHING;
                } else {
                    check_at = Some(Instant::now() + RETRY);
                }
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }
    info!("agent stops; the kernel keeps its state");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    Ok(())
}

impl Agent {
    /// Reads the spec if it is another than the loaded one.
    fn load(&mut self) {
        let trouble = match std::fs::read(ours::NODE_SPEC) {
            // A destroy is under way, or somebody deleted it; what is loaded stays valid until the laptop comes.
            Err(error) => Some(format!("{}: {error}", ours::NODE_SPEC)),
            Ok(bytes) => self
                .parse(&bytes)
                .err()
                .map(|reason| format!("{} cannot be used: {reason}; run homelab apply", ours::NODE_SPEC)),
        };
        if let Some(message) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            error!("{message}");
        }
        self.trouble = trouble;
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<(), String> {
        let digest = sha256_hex(bytes);
        if digest == self.report.config {
            return Ok(());
        }
        let spec: NodeSpec = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if spec.format_version != NodeSpec::FORMAT {
            return Err(format!("its format is {}, mine is {}", spec.format_version, NodeSpec::FORMAT));
        }
        info!(node = spec.node, cluster = spec.cluster, peers = spec.peers.len(), "configuration loaded");
        self.spec = Some(spec);
        self.report.config = digest;
        Ok(())
    }

    /// Repairs what differs among `kinds`. False if an apply holds the lock.
    fn check(&mut self, kinds: Kinds) -> bool {
        match homelab_linux::lock(&Root::system(), Duration::ZERO) {
            Err(Error::Locked(_)) => return false,
            Err(error) => warn!(%error, "cannot take the lock"),
            Ok(_lock) => {
                self.load();
                if let Some(spec) = self.spec.clone() {
                    self.converge(&spec, kinds);
                }
            }
        }
        let failures = self.failures.iter().map(|(_, message)| message);
        self.report.errors = self.trouble.iter().chain(&self.blind).chain(failures).cloned().collect();
        self.write_report();
        true
    }

    fn converge(&mut self, spec: &NodeSpec, kinds: Kinds) {
        let mine = |o: &NodeObject| o.module != Module::Agent && among(kinds, &o.spec);
        let mut desired = homelab_desired::desired(spec);
        desired.retain(mine);
        let scope = Scope::of(&desired, &spec.vtep.device);
        let observed = self.node.observe_objects(&scope, kinds);
        let mut observed = match observed {
            // A stranger's link under one of our names is in the way, and stays.
            Ok(observed) => homelab_linux::without_strangers(observed, &desired),
            Err(error) => {
                warn!(%error, "cannot look at the node");
                self.blind = Some(error.to_string());
                return;
            }
        };
        self.blind = None;
        observed.retain(mine);
        let known: Vec<String> = self.failures.iter().map(|(_, message)| message.clone()).collect();
        self.failures.retain(|(spec, _)| !among(kinds, spec));
        for change in diff(&observed, &desired) {
            let object = change.key().to_string();
            // One by one: a part that cannot be repaired must not keep the rest broken.
            match self.node.apply(&change) {
                Ok(()) => {
                    self.report.repairs += 1;
                    info!(object, "repaired");
                }
                Err(error) => {
                    let message = format!("{object}: {error}");
                    if !known.contains(&message) {
                        warn!(object, %error, "cannot repair");
                    }
                    if let Some(object) = change.after().or(change.before()) {
                        self.failures.push((object.spec.clone(), message));
                    }
                }
            }
        }
    }

    /// Writes [`AgentFact`] to /run/homelab/agent.json when it has changed.
    fn write_report(&mut self) {
        if self.written.as_ref() == Some(&self.report) {
            return;
        }
        let path = format!("{}/agent.json", ours::RUN);
        let text = serde_json::to_vec(&self.report).unwrap_or_default();
        let fresh = format!("{path}.new");
        match std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)) {
            Ok(()) => self.written = Some(self.report.clone()),
            Err(error) => warn!(%error, path, "cannot write the report"),
        }
    }
}
