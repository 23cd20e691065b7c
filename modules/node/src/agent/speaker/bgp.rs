//! BGP: keeps the running configuration of our bgpd as the cluster's and the node's state say.
//!
//! On a thread of its own, since bgpd may answer late. Nothing depends on it: bgpd goes on without the agent, and with what
//! it last heard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use homelab_linux::vtysh::{self, Daemon};
use homelab_linux::{Error, Root};
use homelab_model::{BgpPeer, LbBgp, LbRoute, LbSession, PasswordFile, Passwords, ours};
use homelab_speaker::bgp::{Can, Config, Route, Wanted, commands, config, peers_of, routes, sessions};
use tracing::{info, warn};

use super::Told;
use crate::agent::metrics::Metrics;
use crate::agent::sayings::{Sayings, What};

/// How often it is looked whether daemons were started anew or passwords changed, which costs next to nothing.
const LOOK: Duration = Duration::from_millis(200);
/// How often bgpd is asked for its sessions.
const SESSIONS_EVERY: Duration = Duration::from_secs(2);
/// How often the configuration is compared with what daemons have, if nothing happens.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long after the agent's start a node that does not know yet whether its services are in place leaves what it told.
const UNKNOWN: Duration = Duration::from_secs(10);

/// What is said to the thread.
enum Command {
    Configure(Option<Box<Told>>),
    Ready(bool),
    Cordon(bool),
    /// Withdraw everything, and end.
    Leave(Sender<()>),
}

/// What the thread says.
pub(super) type Said = Arc<Mutex<Option<LbBgp>>>;

/// The other end.
pub(super) struct Handle {
    commands: Sender<Command>,
    said: Said,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Starts the thread.
    pub(super) fn start(metrics: Arc<Metrics>, sayings: Arc<Sayings>) -> Result<Handle, String> {
        let (commands, receiver) = channel();
        let said = Said::default();
        let mut task = Task::new(metrics, Arc::clone(&said), sayings);
        let work = move || task.serve(&receiver);
        let thread =
            std::thread::Builder::new().name("bgp".to_owned()).spawn(work).map_err(|e| e.to_string())?;
        Ok(Handle { commands, said, thread })
    }

    /// What the thread says, now and later.
    pub(super) fn said(&self) -> Said {
        Arc::clone(&self.said)
    }

    pub(super) fn configure(&self, told: Option<Box<Told>>) {
        let _ = self.commands.send(Command::Configure(told));
    }

    pub(super) fn ready(&self, ready: bool) {
        let _ = self.commands.send(Command::Ready(ready));
    }

    pub(super) fn cordon(&self, cordoned: bool) {
        let _ = self.commands.send(Command::Cordon(cordoned));
    }

    /// Withdraws everything before the machine goes down. The channel says when that is done.
    pub(super) fn leave(&self) -> Receiver<()> {
        let (done, wait) = channel();
        let _ = self.commands.send(Command::Leave(done));
        wait
    }

    /// What does not work now.
    pub(super) fn errors(&self) -> Vec<String> {
        let ended = self.thread.is_finished().then(|| "bgp: its thread has ended".to_owned());
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = said.iter().filter_map(|bgp| bgp.problem.as_ref()).map(|p| format!("bgp: {p}"));
        problem.chain(ended).collect()
    }
}

/// What tells a daemon's process from the next one.
type Start = Option<(u64, i64, i64)>;

/// What the daemons are to have.
struct Goal {
    config: Config,
    routes: Vec<LbRoute>,
    /// Names of the peers whose password is missing.
    missing: String,
    /// The processes that were made to have it, at the last attempt.
    starts: Option<[Start; 2]>,
}

struct Task {
    metrics: Arc<Metrics>,
    said: Said,
    /// For Events of Kubernetes.
    sayings: Arc<Sayings>,
    /// Whether bgpd was configured once.
    speaking: bool,
    root: Root,
    told: Option<Box<Told>>,
    ready: Option<bool>,
    cordoned: bool,
    started: Instant,
    passwords: Passwords,
    /// The passwords' file as it was when it was read: device, inode, seconds and nanoseconds of change.
    stamp: Option<(u64, u64, i64, i64)>,
    /// None: it is to be found out.
    goal: Option<Goal>,
    compare_at: Instant,
    sessions_at: Instant,
    report: LbBgp,
    /// What does not work, by what it is about.
    troubles: BTreeMap<&'static str, String>,
}

impl Task {
    fn new(metrics: Arc<Metrics>, said: Said, sayings: Arc<Sayings>) -> Task {
        let now = Instant::now();
        Task {
            metrics,
            said,
            sayings,
            speaking: false,
            root: Root::system(),
            told: None,
            ready: None,
            cordoned: false,
            started: now,
            passwords: Passwords::default(),
            stamp: None,
            goal: None,
            compare_at: now,
            sessions_at: now,
            report: LbBgp::default(),
            troubles: BTreeMap::new(),
        }
    }

    fn serve(&mut self, commands: &Receiver<Command>) {
        loop {
            let command = match &self.told {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => commands.recv_timeout(LOOK),
            };
            let first = match command {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            for command in first.into_iter().chain(commands.try_iter()) {
                self.goal = None;
                match command {
                    Command::Configure(told) => self.configure(told),
                    Command::Ready(ready) => self.ready = Some(ready),
                    Command::Cordon(cordoned) => self.cordoned = cordoned,
                    Command::Leave(done) => {
                        self.cordoned = true;
                        self.ready.get_or_insert(false);
                        self.keep();
                        let _ = done.send(());
                        return;
                    }
                }
            }
            self.keep();
        }
    }

    fn configure(&mut self, told: Option<Box<Told>>) {
        let speaks = |told: &Told| !peers_of(&told.spec, &told.node).is_empty();
        self.told = told.filter(|told| speaks(told));
        if self.told.is_none() {
            // Its daemons go with the configuration.
            self.stamp = None;
            self.passwords = Passwords::default();
            self.report = LbBgp::default();
            self.troubles.clear();
            self.tell(None);
        }
    }

    /// Sees to everything that is due.
    fn keep(&mut self) {
        let Some(told) = self.told.take() else { return };
        self.read_passwords(&told);
        let known = self.ready.or_else(|| (self.started.elapsed() >= UNKNOWN).then_some(false));
        if let Some(ready) = known {
            self.make(&told, ready);
        }
        let now = Instant::now();
        if now >= self.sessions_at {
            self.sessions_at = now + SESSIONS_EVERY;
            self.ask(&told);
        }
        self.told = Some(told);
        let problems: Vec<&str> = self.troubles.values().map(String::as_str).collect();
        self.report.problem = (!problems.is_empty()).then(|| problems.join("; "));
        self.tell(Some(self.report.clone()));
    }

    fn read_passwords(&mut self, told: &Told) {
        if !peers_of(&told.spec, &told.node).iter().any(|peer| peer.password) {
            (self.passwords, self.stamp) = (Passwords::default(), None);
            return self.trouble("passwords", None);
        }
        let meta = fs::metadata(ours::BGP_PASSWORDS);
        let stamp = meta.ok().map(|m| (m.dev(), m.ino(), m.ctime(), m.ctime_nsec()));
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        let read = match homelab_linux::read_secret(&self.root, ours::BGP_PASSWORDS) {
            Ok(Some((_, text))) => PasswordFile::parse(&text).map_err(|e| e.to_string()),
            Ok(None) => Err("it is missing: run homelab apply".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(file) => {
                (self.passwords, self.stamp) = (file.passwords().clone(), stamp);
                self.goal = None;
                self.trouble("passwords", None);
            }
            // With those that it has it goes on.
            Err(why) => self.trouble("passwords", Some(format!("{}: {why}", ours::BGP_PASSWORDS))),
        }
    }

    fn goal(&self, told: &Told, ready: bool) -> Goal {
        let can = Can { ready, cordoned: self.cordoned };
        let routes = routes(&told.spec, &told.node, &told.services, can);
        let wanted = Wanted {
            node: &told.node,
            address: told.address,
            spec: &told.spec,
            passwords: &self.passwords,
            routes: &routes,
        };
        let missing = wanted.sessions().1.join(", ");
        Goal {
            config: config(wanted),
            routes: routes.into_iter().map(shown).collect(),
            missing,
            starts: None,
        }
    }

    /// Makes the daemons have what they should, if they may have something else.
    fn make(&mut self, told: &Told, ready: bool) {
        let mut goal = match self.goal.take() {
            Some(goal) => goal,
            None => self.goal(told, ready),
        };
        let starts = Some([Daemon::Bgp, Daemon::Bfd].map(|daemon| daemon.start(&self.root)));
        let now = Instant::now();
        if goal.starts != starts || now >= self.compare_at {
            goal.starts = starts;
            let done = self.converge(&goal);
            self.compare_at = now + if done { COMPARE_EVERY } else { RETRY };
        }
        self.goal = Some(goal);
    }

    fn converge(&mut self, goal: &Goal) -> bool {
        let missing = &goal.missing;
        self.trouble("peers", (!missing.is_empty()).then(|| format!("no password for {missing}")));
        let daemons = [(Daemon::Bfd, &goal.config.bfdd), (Daemon::Bgp, &goal.config.bgpd)];
        let [bfd, bgp] = daemons.map(|(daemon, text)| {
            let result = if text.is_empty() { Ok(0) } else { converge(daemon, text) };
            match &result {
                Ok(0) => {}
                Ok(changed) => {
                    info!(daemon = daemon.name(), commands = changed, "configured");
                    self.metrics.bgp_changes.inc();
                    self.sessions_at = Instant::now();
                }
                Err(_) => self.metrics.bgp_failures.inc(),
            }
            self.trouble(daemon.name(), result.as_ref().err().cloned());
            result.is_ok()
        });
        if bgp {
            let before = std::mem::replace(&mut self.report.routes, goal.routes.clone());
            self.say(&before);
        }
        bfd && bgp
    }

    /// Says which addresses routers are told of now. Those that bgpd had from an earlier agent are no news.
    fn say(&mut self, before: &[LbRoute]) {
        let known: BTreeSet<_> = before.iter().flat_map(|route| &route.addresses).collect();
        let told = self.report.routes.iter().flat_map(|route| &route.addresses);
        for address in told.filter(|address| self.speaking && !known.contains(address)) {
            self.sayings.push(*address, What::Announced { before: None, protocol: "bgp" });
        }
        self.speaking = true;
    }

    fn ask(&mut self, told: &Told) {
        let peers: Vec<&BgpPeer> = peers_of(&told.spec, &told.node);
        let answer = vtysh::neighbors().map_err(|e| explained(&e));
        let answer = answer.and_then(|json| sessions(&json, &peers).map_err(|e| format!("bgpd: {e}")));
        // What bgpd cannot say because it does not run is known already.
        let error = answer.as_ref().err().filter(|_| !self.troubles.contains_key("bgpd")).cloned();
        self.trouble("sessions", error);
        // Without bgpd there are none.
        let found = answer.or_else(|_| sessions("{}", &peers)).unwrap_or_default();
        for session in &found {
            let before = self.report.sessions.iter().find(|before| before.peer == session.peer);
            let state = |one: &LbSession| one.state == LbSession::ESTABLISHED;
            let (was, is) = (before.is_some_and(state), state(session));
            let (peer, router) = (&session.peer, &session.router);
            match (was, is) {
                (false, true) => info!(peer, router, "BGP session established"),
                (true, false) => {
                    let why = session.last_reset.as_deref().unwrap_or("bgpd does not say");
                    warn!(peer, router, why, "BGP session lost");
                }
                _ => {}
            }
        }
        self.report.sessions = found;
    }

    /// Notes what does not work, or that it works.
    fn trouble(&mut self, what: &'static str, message: Option<String>) {
        match message {
            Some(message) if self.troubles.get(what) != Some(&message) => {
                warn!("bgp: {message}");
                self.troubles.insert(what, message);
            }
            Some(_) => {}
            None => drop(self.troubles.remove(what)),
        }
    }

    fn tell(&self, report: Option<LbBgp>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != report {
            self.metrics.bgp(report.as_ref());
            *said = report;
        }
    }
}

/// Makes a daemon's running configuration `wanted`; how many commands that took. An error for people if it has not become so.
fn converge(daemon: Daemon, wanted: &str) -> Result<usize, String> {
    let missing = |running: &str| commands(running, wanted);
    let needed = missing(&daemon.running_config().map_err(|e| explained(&e))?);
    if needed.is_empty() {
        return Ok(0);
    }
    daemon.configure(&needed).map_err(|e| explained(&e))?;
    let left = missing(&daemon.running_config().map_err(|e| explained(&e))?);
    // A line may be shown in other words than it was said in, by another version of FRR. Its first words tell which.
    let words = |line: &String| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
    match left.iter().find(|line| line.contains(' ') && !line.starts_with("router bgp")) {
        None => Ok(needed.len()),
        Some(line) => Err(format!(
            "{}: it does not take a part of its configuration: {} ...",
            daemon.name(),
            words(line)
        )),
    }
}

/// An error with what to look at.
fn explained(error: &Error) -> String {
    let text = error.to_string();
    if !text.contains("failed to connect") {
        return text;
    }
    let unit = if text.starts_with(Daemon::Bfd.name()) { ours::BGP_BFD_UNIT } else { ours::BGP_UNIT };
    let daemon = text.split(':').next().unwrap_or_default();
    format!("{daemon} does not run: systemctl status {unit}")
}

fn shown(route: Route) -> LbRoute {
    LbRoute { prefix: route.prefix, addresses: route.addresses, peers: route.peers.into_keys().collect() }
}
