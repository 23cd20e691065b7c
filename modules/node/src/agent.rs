//! The agent: keeps what is ours in the kernel and on disk as [`NodeSpec`] says.
//!
//! Subscribe first, full check, then events, then a full check on a timer. A check is the engine's own:
//! `apply(diff(observe(), desired(spec)))`. It leaves out what belongs to the agent itself (binary, unit, spec):
//! only the laptop changes that. While the laptop applies, the lock keeps the agent out; under the lock it reads
//! the spec again, so it never works for yesterday's.

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
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as Start};

use homelab_kubernetes::metallb::Note;
use homelab_linux::{Connections, Error, Kinds, Node, Root};
use homelab_model::{
    AgentFact, Backend, Change, Module, NodeObject, NodeSpec, Scope, Spec, diff, ours, sha256_hex,
};
use homelab_proxy::Elements;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::transaction::is_nft;
use events::{EVERYTHING, FILES, SERVICES, Watched, among, kinds_of_events, listen, union};
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
    let mut agent = Agent {
        node: Node::open(Root::system()).map_err(|e| e.to_string())?,
        spec: None,
        file: None,
        foundation: Vec::new(),
        peers: peers::Live::load(),
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
        speaker: speaker::Handle::start(Arc::clone(&metrics), &sayings)?,
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

    /// Repairs what differs among `kinds`. False if an apply holds the lock.
    fn check(&mut self, kinds: Kinds) -> bool {
        match homelab_linux::lock(&Root::system(), Duration::ZERO) {
            Err(Error::Locked(_)) => return false,
            Err(error) => warn!(%error, "cannot take the lock"),
            Ok(_lock) => {
                let start = Start::now();
                self.load();
                let kinds = Kinds { services: kinds.services || !self.settled, ..kinds };
                if let Some(spec) = self.spec.clone() {
                    self.converge(&spec, kinds);
                    if kinds.nft
                        && let Err(error) = self.node.note_ruleset()
                    {
                        warn!(%error, "cannot note what nft says");
                    }
                    if kinds.nft {
                        self.guard();
                        self.forward();
                    }
                    if kinds.services {
                        self.serve(None);
                    }
                }
                let scope = if kinds.links || kinds.nft || kinds.services { "kernel" } else { "files" };
                self.metrics.checks.with_label_values(&[scope]).observe(start.elapsed().as_secs_f64());
            }
        }
        true
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

    fn converge(&mut self, spec: &NodeSpec, kinds: Kinds) {
        let mine = |o: &NodeObject| o.module != Module::Agent && among(kinds, &o.spec);
        let kinds = Kinds { services: false, ..kinds };
        let desired: Vec<_> = self.foundation.iter().filter(|o| mine(o)).cloned().collect();
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
        let (nft, others): (Vec<_>, Vec<_>) = diff(&observed, &desired).into_iter().partition(is_nft);
        for change in others {
            self.repair(&change, &known);
        }
        // Chains jump to each other: all of them at once, or, where that fails, as far as it goes.
        match self.node.apply_all(&nft, &mut |_| {}) {
            Ok(()) => nft.iter().for_each(|change| self.repaired(change)),
            Err(_) => nft.iter().for_each(|change| self.repair(change, &known)),
        }
        if kinds.links {
            self.peers.settle(&self.failures);
        }
    }

    /// Repairs one thing: a part that cannot be repaired must not keep the rest broken. What is `known` not to work is
    /// not said again.
    fn repair(&mut self, change: &Change<NodeObject>, known: &[String]) {
        match self.node.apply(change) {
            Ok(()) => self.repaired(change),
            Err(error) => {
                let object = change.key().to_string();
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

    fn repaired(&mut self, change: &Change<NodeObject>) {
        // What Kubernetes brings is no repair.
        if self.peers.moves(&change.key()) {
            info!(object = change.key().to_string(), "follows the Nodes of Kubernetes");
            return;
        }
        info!(object = change.key().to_string(), "repaired");
        self.count_repair();
    }

    fn count_repair(&mut self) {
        self.report.repairs += 1;
        self.metrics.repairs.inc();
    }

    /// Lets guarded pods send by their own addresses only.
    fn guard(&mut self) {
        match crate::cni::guard::sync() {
            Ok((0, 0)) => self.unguarded = None,
            Ok((added, deleted)) => {
                info!(added, deleted, "spoof protection of pods repaired");
                self.count_repair();
                self.unguarded = None;
            }
            Err(error) => {
                let message = error.to_string();
                if self.unguarded.as_ref() != Some(&message) {
                    warn!(%error, "cannot keep pods to their own addresses");
                }
                self.unguarded = Some(message);
            }
        }
    }

    /// Makes the node's ports lead to the pods that hold them.
    fn forward(&mut self) {
        match crate::cni::hostport::Claims::of(Path::new(ours::IPAM)).and_then(|claims| claims.sync()) {
            Ok(synced) => {
                if synced.added + synced.deleted > 0 {
                    info!(added = synced.added, deleted = synced.deleted, "host ports repaired");
                    self.count_repair();
                }
                if synced.freed > 0 {
                    info!(pods = synced.freed, "host ports of vanished pods are free again");
                }
                self.unforwarded = None;
            }
            Err(error) => {
                let message = error.to_string();
                if self.unforwarded.as_ref() != Some(&message) {
                    warn!(%error, "cannot put host ports in place");
                }
                self.unforwarded = Some(message);
            }
        }
    }

    /// Makes the proxy's sets hold what they should; with `changed` only what they hold of these services.
    fn serve(&mut self, changed: Option<&Elements>) {
        let connections = if self.settled { Connections::OfChange } else { Connections::All };
        let start = Start::now();
        let all = self.services.elements();
        let result = match changed {
            Some(changed) => self.node.sync_changed_services(changed),
            // What an earlier agent put there is served on until Kubernetes says what there is.
            None if !self.services.known() => self.node.sync_changed_services(all),
            None => self.node.sync_services(all, connections),
        };
        self.metrics.synced(start.elapsed(), result.as_ref().copied().map_err(drop));
        match result {
            Ok(synced) => {
                self.synced = Some(Moment::now());
                self.metrics.elements.set(number(self.services.elements().values().map(Vec::len).sum()));
                if synced.added + synced.deleted > 0 {
                    info!(added = synced.added, deleted = synced.deleted, "services in place");
                }
                if synced.ended + synced.released > 0 {
                    info!(
                        connections = synced.ended,
                        clients = synced.released,
                        "taken off endpoints that are gone"
                    );
                }
                // What a new configuration brings is no repair.
                if synced.added + synced.deleted > 0 && self.settled && changed.is_none() {
                    self.count_repair();
                }
                self.settled = true;
                self.unsynced = None;
            }
            Err(error) => {
                let message = error.to_string();
                if self.unsynced.as_ref() != Some(&message) {
                    warn!(%error, "cannot put services in place");
                }
                self.unsynced = Some(message);
                self.settled = false;
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
