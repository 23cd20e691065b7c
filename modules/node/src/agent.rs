//! The agent: keeps what is ours in the kernel and on disk as [`NodeSpec`] says.
//!
//! Subscribe first, full check, then events, then a full check on a timer. A check is the engine's own:
//! `apply(diff(observe(), desired(spec)))`. It leaves out what belongs to the agent itself (binary, unit, spec):
//! only the laptop changes that. While the laptop applies, the lock keeps the agent out; under the lock it reads
//! the spec again, so it never works for yesterday's.

mod check;
pub(crate) mod containers;
mod events;
mod http;
pub(crate) mod kubernetes;
mod live;
mod metrics;
pub(crate) mod peers;
mod sandboxes;
mod sayings;
mod speaker;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homelab_kubernetes::metallb::Note;
use homelab_linux::{Kinds, Node, Root};
use homelab_model::{AgentFact, NodeObject, NodeSpec, Spec, ours, sha256_hex};
use sd_notify::NotifyState;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use events::{EVERYTHING, FILES, SERVICES, Watched, kinds_of_events, listen, union};
use http::{Http, Limits, Moment};
use metrics::{Metrics, number};
use sandboxes::Sandboxes;

/// Files and sysctls have no events that could be trusted: they are read this often.
const FILES_EVERY: Duration = Duration::from_millis(400);
/// Links, addresses, routes, neighbours, FDB and nftables have events; this is for those that get lost.
const KERNEL_EVERY: Duration = Duration::from_secs(5);
/// Services are read from the kernel this often, if any ruleset changed since.
const SERVICES_EVERY: Duration = Duration::from_secs(60);
/// Services count as in place this long after they were last seen to be: one look may be late or fail, because an apply
/// holds the lock or a change met another one, but not two. kube-proxy allows two periods of its own, too.
const HEALTHY_FOR: Duration = SERVICES_EVERY.saturating_mul(2);
/// How often systemd hears that the agent lives, at least.
const QUIET: Duration = Duration::from_secs(10);
/// Events come in bursts; wait this long after the first.
const SETTLE: Duration = Duration::from_millis(20);
/// While the lock is held by an apply.
const RETRY: Duration = Duration::from_millis(100);

pub(crate) fn main() -> ExitCode {
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .finish();
    // What the client of Kubernetes says by itself is said in our words, too, once and with the server's name.
    let ours = Targets::new().with_default(LevelFilter::INFO).with_target("kube", LevelFilter::OFF);
    let ours = ours.with_target("kube_client", LevelFilter::OFF).with_target("tower", LevelFilter::OFF);
    log.with(ours).init();
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
    spec: Option<Rc<NodeSpec>>,
    /// The spec's file as it was when it was read.
    file: Option<Stamp>,
    /// What it says but for services, rendered once: checks come often.
    foundation: Vec<NodeObject>,
    /// Peers that Kubernetes has beyond the file.
    peers: peers::Live,
    /// Containers that services name.
    containers: containers::Containers,
    /// Services of the file and of Kubernetes, and what the proxy's sets are to hold.
    services: live::Services,
    /// What several of them want, as far as it has been said: who goes without, and why.
    conflicts: BTreeSet<(String, String)>,
    /// Whether services were in place once, so that a difference is somebody else's work.
    settled: bool,
    report: AgentFact,
    written: Option<AgentFact>,
    /// What could not be repaired at the last check of its kind.
    failures: Vec<(Spec, String)>,
    /// When the sets last held what they should.
    synced: Option<Moment>,
    /// Why host ports are not in place, if they are not.
    unforwarded: Option<String>,
    /// Why guarded pods may send by other addresses.
    unguarded: Option<String>,
    /// Why services are not in place, if they are not.
    unsynced: Option<String>,
    /// Why the node could not be looked at, if it could not.
    blind: Option<String>,
    /// Why there is no usable spec, if there is none.
    trouble: Option<String>,
    metrics: Arc<Metrics>,
    http: Http,
    speaker: speaker::Handle,
    /// What was last said of MetalLB's resources.
    noted: Vec<Note>,
}

/// What tells a file from what replaces it: device, inode, size and time of change in ns.
type Stamp = (u64, u64, u64, i64, i64);

async fn run() -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| format!("signals: {e}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| format!("signals: {e}"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| format!("signals: {e}"))?;
    // Before the first look, so that nothing is missed between the two.
    let watched = Arc::new(Mutex::new(Watched::default()));
    let mut events = listen(Arc::clone(&watched))?;
    let metrics = Arc::new(Metrics::new().map_err(|e| format!("metrics: {e}"))?);
    let sayings = Arc::new(sayings::Sayings::default());
    let heard = Arc::new(containers::Heard::default());
    let mut agent = Agent {
        node: Node::open(Root::system()).map_err(|e| e.to_string())?,
        spec: None,
        file: None,
        foundation: Vec::new(),
        peers: peers::Live::load(),
        containers: containers::Containers::load(Arc::clone(&heard)),
        services: live::Services::new(Arc::clone(&metrics), Arc::clone(&sayings)),
        conflicts: BTreeSet::new(),
        settled: false,
        report: AgentFact {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: String::new(),
            repairs: 0,
            errors: Vec::new(),
            kubernetes: None,
        },
        written: None,
        failures: Vec::new(),
        synced: None,
        unforwarded: None,
        unguarded: None,
        unsynced: None,
        blind: None,
        trouble: None,
        http: Http::new(Arc::clone(&metrics), Limits::new(HEALTHY_FOR)),
        speaker: speaker::Handle::start(Arc::clone(&metrics), &sayings, &heard)?,
        noted: Vec::new(),
        metrics,
    };
    if let Ok(mut watched) = watched.lock() {
        watched.own = agent.node.port();
    }
    agent.load();
    agent.write_report();
    info!(version = agent.report.version, "agent started");
    let _ = sd_notify::notify(&[NotifyState::Ready]);

    let mut files = interval(FILES_EVERY);
    let mut kernel = interval(KERNEL_EVERY);
    let mut services = interval(SERVICES_EVERY);
    let mut sweep = interval(sandboxes::EVERY);
    for timer in [&mut files, &mut kernel, &mut services, &mut sweep] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut sandboxes = Sandboxes::new();
    let mut due = EVERYTHING;
    let mut check_at = Some(Instant::now());
    loop {
        let wait = check_at.unwrap_or_else(|| Instant::now() + QUIET);
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // The laptop has written a configuration and waits to hear that it is read. What it says is done when the
            // laptop is.
            _ = hangup.recv() => {
                agent.load();
                agent.speaker.cordon();
                agent.write_report();
                due = EVERYTHING;
                check_at.get_or_insert_with(Instant::now);
            }
            event = events.recv() => {
                let happened = event.ok_or("netlink events ended")?.map_err(|e| format!("netlink events: {e}"))?;
                due = union(due, kinds_of_events(happened));
                check_at.get_or_insert_with(|| Instant::now() + SETTLE);
            }
            () = agent.services.wait() => {
                let kinds = agent.hear();
                if kinds != Kinds::NONE {
                    due = union(due, kinds);
                    check_at.get_or_insert_with(Instant::now);
                }
            }
            () = agent.containers.wait() => {
                let kinds = agent.hear_of_containers();
                if kinds != Kinds::NONE {
                    due = union(due, kinds);
                    check_at.get_or_insert_with(Instant::now);
                }
            }
            _ = files.tick() => {
                due = union(due, FILES);
                check_at.get_or_insert_with(Instant::now);
            }
            _ = kernel.tick() => due = union(due, Kinds::KERNEL),
            _ = services.tick() => due = union(due, SERVICES),
            _ = sweep.tick() => sandboxes.sweep(&agent.metrics),
            look = sandboxes.next() => sandboxes.take(&look, &agent.metrics),
            () = sleep_until(wait), if check_at.is_some() => {
                check_at = None;
                if due.links {
                    due = union(due, agent.look_for_containers());
                }
                let checked = agent.check(due);
                agent.http.listen().await;
                if checked {
                    agent.sum_up();
                    // Files have no links: their check, which comes often, costs no look at the kernel.
                    if due.links && let (Ok(links), Ok(mut watched)) = (agent.node.our_links(), watched.lock()) {
                        watched.links = links;
                    }
                    due = Kinds::NONE;
                } else {
                    check_at = Some(Instant::now() + RETRY);
                }
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }
    // An agent that is started again keeps its addresses: the kernel goes on serving them meanwhile.
    if homelab_linux::machine_stops() {
        info!("the machine stops: load-balancer addresses are handed over");
        agent.speaker.leave();
    }
    agent.services.leave();
    info!("agent stops; the kernel keeps its state");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    Ok(())
}

/// Replaces a file: whole, or not at all while the machine runs.
fn replace(path: &str, content: &[u8]) -> std::io::Result<()> {
    let fresh = format!("{path}.new");
    std::fs::write(&fresh, content).and_then(|()| std::fs::rename(&fresh, path))
}

/// What the agent keeps in a file, as JSON; None: nothing, or nothing that can be used.
fn kept_json<T: DeserializeOwned>(path: &str) -> Option<T> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(%error, path, "what the agent keeps cannot be read");
            None
        }
        Ok(text) => serde_json::from_str(&text)
            .inspect_err(|error| warn!(%error, path, "what the agent keeps is of no use"))
            .ok(),
    }
}

/// The stamp of a file, if it is there.
fn stamp(path: &str) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

/// Whether the ruleset of services has it.
fn is_of_proxy(spec: &Spec) -> bool {
    match spec {
        Spec::NftTable(table) => table.name == ours::PROXY_TABLE,
        Spec::NftChain(chain) => chain.table == ours::PROXY_TABLE,
        _ => false,
    }
}

impl Agent {
    /// Reads the spec if it is another than the loaded one.
    fn load(&mut self) {
        let stamp = stamp(ours::NODE_SPEC);
        if stamp.is_some() && stamp == self.file {
            return;
        }
        self.file = stamp;
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
        let mut spec: NodeSpec = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if spec.format_version != NodeSpec::FORMAT {
            return Err(format!("its format is {}, mine is {}", spec.format_version, NodeSpec::FORMAT));
        }
        self.containers.configure(&mut spec);
        let services = self.services.configure(&mut spec)?;
        info!(
            node = spec.node,
            cluster = spec.cluster,
            peers = spec.peers.len(),
            services,
            "configuration loaded"
        );
        self.take_peers(&spec);
        self.settled = false;
        self.spec = Some(Rc::new(spec));
        self.report.config = digest;
        self.tell();
        Ok(())
    }

    /// Says what is wrong after a check.
    fn sum_up(&mut self) {
        // Elements serve nobody without the rules that read them.
        let ruled = !self.failures.iter().any(|(spec, _)| is_of_proxy(spec));
        if let (Some(synced), true, None) = (self.synced, ruled, &self.blind) {
            self.http.in_place(synced);
        }
        if self.spec.is_some() && self.trouble.is_none() && self.blind.is_none() && self.failures.is_empty() {
            self.services.network_is_there();
        }
        if self.spec.is_some() {
            self.speaker.ready(self.settled && ruled && self.blind.is_none());
        }
        let speaker = self.speaker.errors();
        let failures = self.failures.iter().map(|(_, message)| message);
        let proxy = self.unsynced.iter().chain(self.http.errors());
        self.report.errors = self
            .trouble
            .iter()
            .chain(&self.blind)
            .chain(&self.unforwarded)
            .chain(&self.unguarded)
            .chain(proxy)
            .chain(self.peers.complaints())
            .chain(failures)
            .chain(&speaker)
            .cloned()
            .collect();
        self.metrics.errors.set(number(self.report.errors.len()));
        self.report.kubernetes = self.services.fact();
        if let Some(fact) = &mut self.report.kubernetes {
            fact.notes = self.noted.iter().map(|note| format!("{}: {}", note.resource, note.text)).collect();
            fact.peers = self.peers.names();
        }
        self.write_report();
    }

    /// Writes [`AgentFact`] to /run/homelab/agent.json when it has changed.
    fn write_report(&mut self) {
        if self.written.as_ref() == Some(&self.report) {
            return;
        }
        let path = format!("{}/agent.json", ours::RUN);
        let text = serde_json::to_vec(&self.report).unwrap_or_default();
        match replace(&path, &text) {
            Ok(()) => self.written = Some(self.report.clone()),
            Err(error) => warn!(%error, path, "cannot write the report"),
        }
    }
}
