//! The speaker's thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homelab_linux::Root;
use homelab_linux::l2::{Lan, interfaces};
use homelab_linux::netlink::{Events, Socket};
use homelab_model::{ContainerWord, KeyRing, LbReport, LbState, ours};
use homelab_proxy::follow::News;
use homelab_speaker::announce::{EventKind, Time};
use homelab_speaker::mac::Mac;
use homelab_speaker::membership::MAX_DATAGRAM;
use homelab_speaker::speaker::{Event, Output, Settings, Speaker};
use homelab_speaker::state::Interface;
use tracing::{error, info, warn};

use super::bgp::Said;
use super::story::Story;
use super::{Command, Told};
use crate::agent::containers::Heard;
use crate::agent::metrics::Metrics;
use crate::agent::sayings::Sayings;

/// Keys, reports, and what did not work the last time are looked at this often.
const EVERY: Duration = Duration::from_secs(1);
/// [`Time`] of the thread's start: others' times reach back before it.
const START: Time = Duration::from_secs(3600);
/// How long an interface that has carrier again is not used because the kernel searches duplicates of its addresses: the
/// node cannot send from them meanwhile, so it would take packets that it cannot pass on.
const TENTATIVE: Duration = Duration::from_secs(5);
/// Datagrams read at a time, of a flood not all: what is due comes in between.
const AT_ONCE: usize = 64;
/// How long the last words of a node that leaves are repeated.
const FAREWELL: Duration = Duration::from_millis(250);

/// Who hears of what the speaker does, and of what it hears.
#[derive(Clone, Copy)]
pub(super) struct Ears<'a> {
    pub(super) metrics: &'a Metrics,
    /// What does not work.
    pub(super) errors: &'a Mutex<Vec<String>>,
    /// What is known of sessions with routers.
    pub(super) bgp: &'a Said,
    /// For Events of Kubernetes.
    pub(super) sayings: &'a Sayings,
    /// Of other nodes and their containers.
    pub(super) heard: &'a Heard,
}

/// Runs the speaker until the agent ends.
pub(super) fn run(commands: &Receiver<Command>, bell: &UnixStream, ears: Ears<'_>) {
    if let Err(message) = Task::new(ears).and_then(|mut task| task.serve(commands, bell)) {
        error!("speaker: {message}");
    }
}

struct Task<'a> {
    ears: Ears<'a>,
    /// Where this node's containers are.
    containers: Vec<ContainerWord>,
    story: Story,
    start: Instant,
    told: Option<Box<Told>>,
    cordoned: bool,
    ready: Option<bool>,
    speaker: Option<Speaker>,
    udp: Option<UdpSocket>,
    lan: Lan,
    /// Interfaces that are in use, by name, with their indices.
    used: BTreeMap<String, u32>,
    /// Since when interfaces have carrier that are not in use yet.
    waiting: BTreeMap<String, Time>,
    netlink: Socket,
    /// The keys' file as it was when it was read: device, inode, seconds and nanoseconds of change.
    keys: Option<(u64, u64, i64, i64)>,
    /// What does not work, by what it is about.
    troubles: BTreeMap<String, String>,
    report: Option<LbReport>,
    /// Something happened that the report does not say yet.
    news: bool,
}

impl<'a> Task<'a> {
    fn new(ears: Ears<'a>) -> Result<Task<'a>, String> {
        Ok(Task {
            ears,
            containers: Vec::new(),
            story: Story::default(),
            start: Instant::now(),
            told: None,
            cordoned: false,
            ready: None,
            speaker: None,
            udp: None,
            used: BTreeMap::new(),
            waiting: BTreeMap::new(),
            lan: Lan::new().map_err(|e| format!("no ports: {e}"))?,
            netlink: Socket::route().map_err(|e| format!("netlink: {e}"))?,
            keys: None,
            troubles: BTreeMap::new(),
            report: None,
            news: false,
        })
    }

    fn now(&self) -> Time {
        START + self.start.elapsed()
    }

    fn serve(&mut self, commands: &Receiver<Command>, bell: &UnixStream) -> Result<(), String> {
        let text = |e: io::Error| format!("events of links: {e}");
        let mut events = Events::of_links().map_err(text)?;
        let mut look_around = self.now();
        loop {
            let due = self.speaker.as_ref().and_then(Speaker::next_deadline);
            let due = due.unwrap_or(look_around).min(look_around);
            let mut descriptors = vec![bell.as_fd(), events.as_fd(), self.lan.as_fd()];
            descriptors.extend(self.udp.as_ref().map(UdpSocket::as_fd));
            let time = due.saturating_sub(self.now());
            homelab_linux::wait(&descriptors, Some(time)).map_err(|e| e.to_string())?;
            while let Ok(1..) = (&*bell).read(&mut [0; 64]) {}
            for command in commands.try_iter() {
                match command {
                    Command::Leave(done) => {
                        self.leave(&done);
                        return Ok(());
                    }
                    command => self.take(command),
                }
            }
            if events.drain().map_err(text)?.any() {
                self.look();
            }
            if self.now() >= look_around {
                self.every();
                look_around = self.now() + EVERY;
            }
            // Before the clock is asked: an answer that waits is no silence.
            self.datagrams();
            self.frames();
            let now = self.now();
            if let Some(speaker) = &mut self.speaker
                && speaker.next_deadline().is_some_and(|due| due <= now)
            {
                speaker.tick(now);
            }
            self.carry_out();
        }
    }

    fn take(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Configure(told) => self.configure(told),
            Command::Ready(ready) => {
                self.ready = Some(ready);
                self.speaker.iter_mut().for_each(|speaker| speaker.ready(ready, now));
            }
            Command::Cordon(cordoned) => {
                self.cordoned = cordoned;
                self.speaker.iter_mut().for_each(|speaker| speaker.cordon(cordoned, now));
            }
            Command::Containers(words) => {
                self.containers = words.clone();
                self.speaker.iter_mut().for_each(|speaker| speaker.containers(words.clone(), now));
            }
            Command::Leave(_) => {}
        }
        self.news = true;
    }

    fn configure(&mut self, told: Option<Box<Told>>) {
        let place = |told: &Told| (told.cluster.clone(), told.node.clone(), told.address, told.spec.port);
        let stays = self.told.as_deref().map(place) == told.as_deref().map(place);
        if !stays {
            (self.speaker, self.udp) = (None, None);
            self.troubles.clear();
        }
        self.told = told;
        if self.told.is_none() {
            let _ = std::fs::remove_file(ours::LB_REPORT);
            self.report = None;
            self.lan.hear(&BTreeMap::new());
            self.ears.metrics.addresses(None);
        }
        let now = self.now();
        if let (Some(speaker), Some(told)) = (&mut self.speaker, &self.told) {
            speaker.configure(&told.services, &told.spec, now);
        }
        self.every();
    }

    /// Reads the keys if they are others than before, and starts what is not running.
    fn every(&mut self) {
        if self.told.is_none() {
            return;
        }
        self.read_keys();
        self.bind();
        self.look();
        self.news = true;
    }

    fn read_keys(&mut self) {
        let meta = std::fs::metadata(ours::KEYS);
        let stamp = meta.ok().map(|m| (m.dev(), m.ino(), m.ctime(), m.ctime_nsec()));
        if stamp.is_some() && stamp == self.keys && self.speaker.is_some() {
            return;
        }
        let result = match homelab_linux::read_secret(&Root::system(), ours::KEYS) {
            Ok(Some((_, text))) => KeyRing::parse(&text).map_err(|e| e.to_string()),
            Ok(None) => Err(format!("{} is missing: run homelab apply", ours::KEYS)),
            Err(error) => Err(error.to_string()),
        };
        match result {
            Ok(keys) => {
                self.keys = stamp;
                self.trouble("keys", None);
                match &mut self.speaker {
                    Some(speaker) => speaker.set_keys(&keys),
                    None => self.begin(&keys),
                }
            }
            // With the keys that it has it goes on.
            Err(message) => self.trouble("keys", Some(message)),
        }
    }

    fn begin(&mut self, keys: &KeyRing) {
        let Some(told) = &self.told else { return };
        let mut random = [0; 40];
        if let Err(error) = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)) {
            return self.trouble("random numbers", Some(error.to_string()));
        }
        let (mut seed, mut boot) = ([0; 32], [0; 8]);
        seed.copy_from_slice(&random[..32]);
        boot.copy_from_slice(&random[32..]);
        let now = self.now();
        let held = held_before(&told.node);
        self.story = Story::new(&told.node, held.clone());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.saturating_sub(now).as_millis()).unwrap_or_default();
        let settings = Settings {
            cluster: &told.cluster,
            node: &told.node,
            boot: u64::from_ne_bytes(boot),
            seed,
            keys,
            held,
            unix_ms,
        };
        let mut speaker = Speaker::new(settings, now);
        speaker.configure(&told.services, &told.spec, now);
        speaker.cordon(self.cordoned, now);
        speaker.containers(self.containers.clone(), now);
        if let Some(ready) = self.ready {
            speaker.ready(ready, now);
        }
        self.speaker = Some(speaker);
        self.look();
    }

    fn bind(&mut self) {
        let Some(told) = self.told.as_ref().filter(|_| self.udp.is_none()) else { return };
        let address = SocketAddr::new(told.address, told.spec.port);
        let bound = UdpSocket::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match bound {
            Ok(socket) => {
                self.udp = Some(socket);
                self.trouble("membership", None);
            }
            Err(error) => self.trouble("membership", Some(format!("UDP {address}: {error}"))),
        }
    }

    /// Looks at the interfaces.
    fn look(&mut self) {
        let now = self.now();
        let found = match interfaces(&mut self.netlink) {
            Ok(found) => found,
            Err(error) => return self.trouble("interfaces", Some(error.to_string())),
        };
        self.trouble("interfaces", None);
        self.lan.keep(&found);
        let mut usable: Vec<homelab_linux::l2::Interface> =
            found.into_iter().filter(|i| i.operational).collect();
        self.waiting.retain(|name, _| usable.iter().any(|interface| interface.name == *name));
        usable.retain(|interface| {
            let name = &interface.name;
            let since = *self.waiting.entry(name.clone()).or_insert(now);
            let stays = self.used.get(name) == Some(&interface.index);
            stays || !interface.tentative || now >= since + TENTATIVE
        });
        self.used = usable.iter().map(|interface| (interface.name.clone(), interface.index)).collect();
        let usable =
            usable.into_iter().map(|i| Interface { name: i.name, mac: Mac(i.mac), networks: i.networks });
        if let Some(speaker) = &mut self.speaker {
            speaker.interfaces(usable.collect(), now);
        }
    }

    fn datagrams(&mut self) {
        let now = self.now();
        let (Some(socket), Some(speaker)) = (&self.udp, &mut self.speaker) else { return };
        // One byte more than there may be: what is longer is refused, not cut.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        // An error is that of a datagram which was sent: its receiver does not listen.
        for _ in 0..AT_ONCE {
            let Ok((length, _)) = socket.recv_from(&mut buffer) else { break };
            if let Err(refused) = speaker.datagram(&buffer[..length], now) {
                self.ears.metrics.refused(refused.label(), 1);
            }
        }
    }

    fn frames(&mut self) {
        let now = self.now();
        let (speaker, metrics) = (&mut self.speaker, self.ears.metrics);
        let left_out = self.lan.receive(&mut |interface, frame| {
            if let Some(speaker) = speaker
                && speaker.frame(interface, frame, now).is_err()
            {
                metrics.refused("frame", 1);
            }
        });
        if left_out > 0 {
            metrics.refused("flood", left_out);
        }
    }

    /// Does what the speaker wants done.
    fn carry_out(&mut self) {
        let Some(mut speaker) = self.speaker.take() else { return self.tell() };
        let errors = self.lan.hear(speaker.hears());
        let mut failed: BTreeMap<String, String> =
            errors.into_iter().map(|(interface, error)| (interface, error.to_string())).collect();
        let mut heard = Vec::new();
        while let Some(output) = speaker.poll() {
            match output {
                Output::Datagram { to, bytes } => {
                    if let Some(socket) = &self.udp {
                        // As good as lost on the way.
                        let _ = socket.send_to(&bytes, to);
                    }
                }
                Output::Frame { interface, bytes } => {
                    if let Err(error) = self.lan.send(&interface, &bytes) {
                        failed.insert(interface, error.to_string());
                    }
                }
                Output::Event(event) => {
                    heard.extend(news_of(&event));
                    self.event(&event);
                }
                Output::Containers { node, words } => heard.push(News::Said(node, words)),
            }
        }
        self.ears.heard.push(heard);
        for interface in speaker.hears().keys() {
            let message = failed.remove(interface).map(|error| format!("{interface}: {error}"));
            self.trouble(&format!("announcements on {interface}"), message);
        }
        self.speaker = Some(speaker);
        self.tell();
    }

    fn event(&mut self, event: &Event) {
        self.news = true;
        if let Some((address, what)) = self.story.hear(event) {
            self.ears.sayings.push(address, what);
        }
        let nobody = "nobody".to_owned();
        match event {
            Event::Up(node) => info!(node, "member"),
            Event::Down(node) => warn!(node, "no member any more: dead, out of reach or started again"),
            Event::Left(node) => info!(node, "left"),
            Event::Settled => info!("the others are known: load-balancer addresses are elected"),
            Event::Untold(0) => {}
            Event::Untold(count) => {
                warn!(
                    count,
                    "more addresses than the other nodes can be told of: they are probed when they move"
                );
            }
            Event::Unsaid(count) => {
                let message =
                    format!("no room to tell the other nodes of {count} containers that services name");
                self.trouble("containers", (*count > 0).then_some(message));
            }
            Event::Moved { address, from, to } => {
                self.ears.metrics.moves.inc();
                let (from, to) = (from.as_ref().unwrap_or(&nobody), to.as_ref().unwrap_or(&nobody));
                info!(%address, from, to, "load-balancer address moves");
            }
            Event::Address(event) => {
                let (address, interface) = (event.address, &event.interface);
                match event.kind {
                    EventKind::Probing => info!(%address, interface, "is probed"),
                    EventKind::Announced => info!(%address, interface, "is announced"),
                    EventKind::Released => info!(%address, interface, "is announced no more"),
                    EventKind::Conflict(mac) => {
                        self.ears.metrics.conflicts.inc();
                        warn!(%address, interface, %mac, "a foreign machine has it");
                    }
                    EventKind::ConflictOver => {
                        info!(%address, interface, "no foreign machine has it any more")
                    }
                    EventKind::Doubled(mac) => {
                        warn!(%address, interface, %mac, "another node announces it, too");
                    }
                }
            }
        }
    }

    /// Notes what does not work, or that it works.
    fn trouble(&mut self, what: &str, message: Option<String>) {
        match message {
            Some(message) if self.troubles.get(what) != Some(&message) => {
                warn!("speaker: {what}: {message}");
                self.troubles.insert(what.to_owned(), message);
            }
            Some(_) => return,
            None => {
                if self.troubles.remove(what).is_none() {
                    return;
                }
            }
        }
        let all = self.troubles.iter().map(|(what, message)| format!("speaker: {what}: {message}"));
        *self.ears.errors.lock().unwrap_or_else(PoisonError::into_inner) = all.collect();
    }

    /// Writes the report if something happened.
    fn tell(&mut self) {
        let Some(speaker) = self.speaker.as_ref().filter(|_| self.news) else { return };
        self.news = false;
        let bgp = self.ears.bgp.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let report = LbReport { bgp, ..speaker.report(self.now()) };
        let same = |old: &LbReport| LbReport { time_unix_ms: report.time_unix_ms, ..old.clone() } == report;
        if self.report.as_ref().is_some_and(same) {
            return;
        }
        self.ears.metrics.addresses(Some(&report));
        let fresh = format!("{}.new", ours::LB_REPORT);
        let written = serde_json::to_vec(&report)
            .map_err(io::Error::from)
            .and_then(|text| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, ours::LB_REPORT));
        let message = written.as_ref().err().map(|e| format!("{}: {e}", ours::LB_REPORT));
        self.report = written.is_ok().then_some(report);
        self.trouble("report", message);
    }

    /// Hands over, and says goodbye for a moment more.
    fn leave(&mut self, done: &Sender<()>) {
        let end = self.now() + FAREWELL;
        let now = self.now();
        self.speaker.iter_mut().for_each(|speaker| speaker.leave(now));
        self.carry_out();
        while let Some(due) = self.speaker.as_ref().and_then(Speaker::next_deadline).filter(|due| *due < end)
        {
            std::thread::sleep(due.saturating_sub(self.now()));
            let now = self.now();
            self.speaker.iter_mut().for_each(|speaker| speaker.tick(now));
            self.carry_out();
        }
        let _ = std::fs::remove_file(ours::LB_REPORT);
        let _ = done.send(());
    }
}

/// What it means for the containers of a node.
fn news_of(event: &Event) -> Option<News> {
    match event {
        Event::Up(node) => Some(News::Up(node.clone())),
        Event::Down(node) => Some(News::Down(node.clone())),
        Event::Left(node) => Some(News::Left(node.clone())),
        _ => None,
    }
}

/// What this node announced before its agent was started again: /run does not outlive the machine.
fn held_before(node: &str) -> BTreeSet<IpAddr> {
    let report = std::fs::read(ours::LB_REPORT).ok();
    let report: Option<LbReport> = report.and_then(|text| serde_json::from_slice(&text).ok());
    let Some(report) = report.filter(|report| report.node == node) else { return BTreeSet::new() };
    let announced =
        |a: &&homelab_model::LbAddress| a.interfaces.iter().any(|i| i.state == LbState::Announced);
    report.addresses.iter().filter(announced).map(|address| address.address).collect()
}
