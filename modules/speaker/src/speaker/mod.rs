//! A node's speaker as a whole: membership, election and announcements, wired together.
//!
//! ```text
//! datagrams ──> membership ──> who lives, and what each says of itself ──┐
//! services, file ──> candidates ─────────────────────────────────────────┼─> election ──> what is ours ──> announcer
//! interfaces ──> what we say of ourselves ───────────────────────────────┘                                   │
//!                        ^───────────────────────── what we announce, since when ────────────────────────────┘
//! ```
//!
//! All nodes elect by the same rule from what they know, and what they know differs for a moment at most. Until a node has
//! heard of all others, or has waited [`SETTLE`] for them, it takes no part: else whoever starts would be alone in its world,
//! and have every address.

mod others;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use homelab_model::service::Service;
use homelab_model::{ContainerWord, KeyRing, SpeakerSpec};

use crate::announce::{self, Announcer, Time};
use crate::candidates::{Candidate, candidates};
use crate::election::{Owned, elect, wanted};
use crate::frame::FrameError;
use crate::mac::Mac;
use crate::membership::{self, MAX_STATE, Membership, Refused, Table};
use crate::state::{Hold, Interface, MemberState, decode, encode};
use others::Others;

/// How long a node that starts waits for others that it does not hear. Longer than a handshake with each of them takes, and
/// than a node needs to answer that is short of CPU.
pub const SETTLE: Duration = Duration::from_millis(1500);
/// How long a node that starts waits for those that start at the same time, after it has said something of itself.
pub const SPEAK: Duration = Duration::from_millis(100);
/// How long a node that starts waits for its own services before it says that they are not in place.
pub const UNREADY: Duration = Duration::from_secs(5);

/// What a [`Speaker`] starts with.
#[derive(Debug)]
pub struct Settings<'a> {
    /// Cluster name.
    pub cluster: &'a str,
    /// This node's name.
    pub node: &'a str,
    /// Random number of this start.
    pub boot: u64,
    /// Random bytes from the operating system, other ones at every start.
    pub seed: [u8; 32],
    /// The membership keys.
    pub keys: &'a KeyRing,
    /// Addresses that this node announced before its agent was started again, the machine not having stopped meanwhile: they
    /// are announced without probes.
    pub held: BTreeSet<IpAddr>,
    /// Wall clock at [`Time`] zero, ms since 1970: for what people are shown, and nothing else.
    pub unix_ms: u64,
}

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram of the membership.
    Datagram {
        /// Receiver.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Send a frame.
    Frame {
        /// On this interface.
        interface: String,
        /// The whole frame.
        bytes: Vec<u8>,
    },
    /// Tell people.
    Event(Event),
    /// A node has said where its containers are that services name.
    Containers {
        /// The node.
        node: String,
        /// All that it has to say.
        words: Vec<ContainerWord>,
    },
}

/// Something that people want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node is a member.
    Up(String),
    /// A node is dead, or was restarted.
    Down(String),
    /// A node has left in order, or is no node of the cluster any more.
    Left(String),
    /// The node takes part from now on.
    Settled,
    /// An address has another owner by this node's election.
    Moved {
        /// Address.
        address: IpAddr,
        /// Owner before.
        from: Option<String>,
        /// Owner now.
        to: Option<String>,
    },
    /// Of an address on this node.
    Address(announce::Event),
    /// This node's state has too many addresses to tell the others of all of them: so many are left out. Those are probed
    /// when they move.
    Untold(usize),
    /// This node has more to say of its containers than fits: so many are left out.
    Unsaid(usize),
}

/// One node's speaker. See the module.
pub struct Speaker {
    node: String,
    unix_ms: u64,
    started: Time,
    phase: Phase,
    leaving: bool,
    membership: Membership,
    announcer: Announcer,
    spec: SpeakerSpec,
    candidates: Vec<Candidate>,
    others: Others,
    /// What we say of ourselves.
    own: MemberState,
    /// Whether our services are in place; None: not known yet.
    ready: Option<bool>,
    /// Whether the others were told anything since the start.
    told: bool,
    held: BTreeSet<IpAddr>,
    owners: BTreeMap<IpAddr, Ownership>,
    owned: Vec<Owned>,
    /// Ours among them, by interface. Asked for at every wake-up of the node.
    hears: BTreeMap<String, Vec<IpAddr>>,
    untold: usize,
    /// Where our containers are that services name.
    containers: Vec<ContainerWord>,
    unsaid: usize,
    /// Somebody came, went or said something else of itself since the last election.
    changed: bool,
    out: VecDeque<Output>,
}

/// How far a start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for what the others say.
    Listens,
    /// It says something of itself, and waits for those that start at the same time.
    Speaks { until: Time },
    /// It takes part.
    Settled,
}

/// Who has an address.
#[derive(Debug, Clone)]
struct Ownership {
    owner: Option<String>,
    since: Time,
    moves: u64,
}

impl Speaker {
    /// A node that starts. It has no addresses before [`Speaker::configure`].
    pub fn new(settings: Settings<'_>, now: Time) -> Speaker {
        let peers = Table::new();
        let membership = Membership::new(
            &membership::Settings {
                cluster: settings.cluster,
                node: settings.node,
                boot: settings.boot,
                seed: settings.seed,
                peers: &peers,
                keys: settings.keys,
            },
            now,
        );
        Speaker {
            node: settings.node.to_owned(),
            unix_ms: settings.unix_ms,
            started: now,
            phase: Phase::Listens,
            leaving: false,
            membership,
            announcer: Announcer::new(),
            spec: SpeakerSpec::default(),
            candidates: Vec::new(),
            others: Others::default(),
            own: MemberState::default(),
            ready: None,
            told: false,
            held: settings.held,
            owners: BTreeMap::new(),
            owned: Vec::new(),
            hears: BTreeMap::new(),
            untold: 0,
            containers: Vec::new(),
            unsaid: 0,
            changed: false,
            out: VecDeque::new(),
        }
    }

    /// Takes what the file or the API says.
    pub fn configure(&mut self, services: &[Service], spec: &SpeakerSpec, now: Time) {
        self.candidates = candidates(services, spec);
        if self.spec != *spec {
            let address = |node: &homelab_model::SpeakerNode| {
                (node.name.clone(), SocketAddr::new(node.address, spec.port))
            };
            let table: Table = spec.nodes.iter().map(address).collect();
            self.membership.set_peers(&table, now);
            self.spec = spec.clone();
        }
        self.refresh(now);
    }

    /// Uses another key ring from now on.
    pub fn set_keys(&mut self, keys: &KeyRing) {
        self.membership.set_keys(keys);
    }

    /// The node has these interfaces, with carrier, and no others.
    pub fn interfaces(&mut self, interfaces: Vec<Interface>, now: Time) {
        let mut macs: BTreeMap<String, Option<Mac>> =
            self.own.interfaces.iter().map(|interface| (interface.name.clone(), None)).collect();
        macs.extend(interfaces.iter().map(|interface| (interface.name.clone(), Some(interface.mac))));
        self.own.interfaces = interfaces;
        for (name, mac) in macs {
            let out = self.announcer.interface(&name, mac, now);
            self.announced(out);
        }
        self.refresh(now);
    }

    /// Whether the node's services are in place, so that it may have addresses.
    pub fn ready(&mut self, ready: bool, now: Time) {
        if self.ready != Some(ready) {
            self.ready = Some(ready);
            self.refresh(now);
        }
    }

    /// Whether the node is to have no addresses, by its owner's word.
    pub fn cordon(&mut self, cordoned: bool, now: Time) {
        if self.own.cordoned != cordoned {
            self.own.cordoned = cordoned;
            self.refresh(now);
        }
    }

    /// Where the node's containers are that services name: the others are told.
    pub fn containers(&mut self, words: Vec<ContainerWord>, now: Time) {
        if self.containers != words {
            self.containers = words;
            self.tell(now);
        }
    }

    /// Hands all addresses over, and takes part no more: the node is about to stop.
    pub fn leave(&mut self, now: Time) {
        if !self.leaving {
            self.leaving = true;
            self.refresh(now);
            self.membership.leave(now);
            self.pump(now);
        }
    }

    /// A datagram that came in. Errors are for counters.
    pub fn datagram(&mut self, datagram: &[u8], now: Time) -> Result<(), Refused> {
        let result = self.membership.datagram(datagram, now);
        self.pump(now);
        if self.changed {
            self.refresh(now);
        }
        result
    }

    /// A frame that came in. Errors are for counters.
    pub fn frame(&mut self, interface: &str, frame: &[u8], now: Time) -> Result<(), FrameError> {
        let out = self.announcer.frame(interface, frame, now)?;
        let changed = !out.events.is_empty();
        self.announced(out);
        if changed {
            self.tell(now);
        }
        Ok(())
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        self.membership.tick(now);
        let out = self.announcer.tick(now);
        let changed = !out.events.is_empty();
        self.announced(out);
        self.pump(now);
        if self.own_deadline().is_some_and(|due| due <= now) {
            self.refresh(now);
        } else if changed {
            self.tell(now);
        }
    }

    /// When [`Speaker::tick`] is due; None: never.
    pub fn next_deadline(&self) -> Option<Time> {
        let all = [self.membership.next_deadline(), self.announcer.next_deadline(), self.own_deadline()];
        all.into_iter().flatten().min()
    }

    /// The next thing to do for the caller.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// What each interface has to hear about: the addresses that are this node's.
    pub fn hears(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.hears
    }

    /// Addresses that this node announces.
    pub fn holds(&self) -> BTreeSet<IpAddr> {
        self.own.holds.iter().filter(|hold| hold.since_unix_ms.is_some()).map(|hold| hold.address).collect()
    }

    fn settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    /// What is this node's by the last election, by interface.
    fn heard(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let mut heard: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for owned in self.owned.iter().filter(|owned| owned.owner.as_ref() == Some(&self.node)) {
            for interface in &owned.interfaces {
                heard.entry(interface.clone()).or_default().push(owned.address);
            }
        }
        heard
    }

    /// When to elect anew, if nothing else happens: the end of a wait.
    fn own_deadline(&self) -> Option<Time> {
        if self.changed {
            return Some(Time::ZERO);
        }
        let settle = match self.phase {
            Phase::Listens => self.listens_until(),
            Phase::Speaks { until } => Some(until),
            Phase::Settled => None,
        };
        let unready = (self.ready.is_none() && !self.told).then_some(self.started + UNREADY);
        settle.into_iter().chain(unready).chain(self.others.next_deadline()).min()
    }

    /// Takes what the membership has to say.
    fn pump(&mut self, now: Time) {
        while let Some(output) = self.membership.poll() {
            let event = match output {
                membership::Output::Send { to, bytes } => {
                    self.out.push_back(Output::Datagram { to, bytes });
                    continue;
                }
                membership::Output::Event(event) => event,
            };
            self.changed = true;
            let event = match event {
                membership::Event::Up(name) => {
                    self.others.up(&name, now);
                    Event::Up(name)
                }
                membership::Event::Down(name) => {
                    self.others.down(&name, now);
                    Event::Down(name)
                }
                membership::Event::Left(name) => {
                    self.others.left(&name, now);
                    Event::Left(name)
                }
                membership::Event::State(name, bytes) => {
                    // A state that this build cannot read is that of a node which says nothing of itself.
                    let (state, words) = decode(&bytes);
                    let returned = self.others.says(&name, state, now);
                    self.again(&returned, now);
                    self.out.push_back(Output::Containers { node: name, words });
                    continue;
                }
            };
            self.out.push_back(Output::Event(event));
        }
    }

    /// Announces addresses once more that somebody else has been announcing, too: the network was parted.
    fn again(&mut self, addresses: &BTreeSet<IpAddr>, now: Time) {
        if !addresses.is_empty() {
            let out = self.announcer.again(addresses, now);
            self.announced(out);
        }
    }

    /// Elects, and does what follows.
    fn refresh(&mut self, now: Time) {
        self.changed = false;
        self.others.tick(now);
        self.settle(now);
        self.owned.clear();
        if self.settled() {
            let mut members = self.others.eligible();
            members.insert(self.node.clone(), MemberState { holds: Vec::new(), ..self.said() });
            self.owned = elect(&self.candidates, &members);
            self.note_owners(now);
        }
        self.hears = self.heard();
        let mut before = self.others.announced();
        before.extend(&self.held);
        let wanted = wanted(&self.owned, &self.node, &before);
        let macs = self.others.macs().chain(self.own.interfaces.iter().map(|i| i.mac)).collect();
        let out = self.announcer.members(macs, now);
        self.announced(out);
        let out = self.announcer.set(&wanted, now);
        self.announced(out);
        self.tell(now);
    }

    /// Until when we listen only.
    fn listens_until(&self) -> Option<Time> {
        let end = self.started + SETTLE;
        let others = self.spec.nodes.iter().filter(|node| node.name != self.node);
        // Without a configuration there is nobody to listen to.
        (!self.spec.nodes.is_empty())
            .then(|| others.map(|node| self.others.awaited(&node.name, end)).max().unwrap_or_default())
    }

    fn settle(&mut self, now: Time) {
        if self.phase == Phase::Listens && self.listens_until().is_some_and(|until| until <= now) {
            self.phase = Phase::Speaks { until: now + SPEAK };
        }
        if let Phase::Speaks { until } = self.phase
            && (now >= until || self.others.all_said())
        {
            self.phase = Phase::Settled;
            self.out.push_back(Output::Event(Event::Settled));
        }
    }

    /// What we say of ourselves, as it is now.
    fn said(&self) -> MemberState {
        let mut state = self.own.clone();
        state.ready = self.ready == Some(true);
        state.cordoned |= self.leaving;
        let holds = self.announcer.status();
        let mut by_address: BTreeMap<IpAddr, Hold> = BTreeMap::new();
        for status in holds {
            let fresh = || Hold { address: status.address, since_unix_ms: None, conflict: None };
            let hold = by_address.entry(status.address).or_insert_with(fresh);
            if status.state == announce::State::Announced {
                let since = self.unix(status.since);
                hold.since_unix_ms = Some(hold.since_unix_ms.map_or(since, |earlier| earlier.min(since)));
            }
            hold.conflict = hold.conflict.or(status.conflict);
        }
        state.holds = by_address.into_values().collect();
        state
    }

    /// Tells the others what has changed of us.
    fn tell(&mut self, now: Time) {
        let mut state = self.said();
        self.own.holds.clone_from(&state.holds);
        // Addresses that we announce are announced by us again if only the agent is started again; and are no others' to give.
        self.held.retain(|address| !state.holds.iter().any(|hold| hold.address == *address));
        let waits = self.ready.is_none() && now < self.started + UNREADY && !self.leaving;
        if self.phase == Phase::Listens || waits {
            return;
        }
        self.told = true;
        let all = state.holds.len();
        let mut words = self.containers.as_slice();
        let bytes = loop {
            match encode(&state, words) {
                Some(bytes) if bytes.len() <= MAX_STATE => break bytes,
                // What is left out are hints.
                _ if !state.holds.is_empty() => {
                    let keep = state.holds.len() * 7 / 8;
                    state.holds.truncate(keep);
                }
                _ if !words.is_empty() => words = &words[..words.len() * 7 / 8],
                _ => return,
            }
        };
        let unsaid = self.containers.len() - words.len();
        if unsaid != self.unsaid {
            self.unsaid = unsaid;
            self.out.push_back(Output::Event(Event::Unsaid(unsaid)));
        }
        let untold = all - state.holds.len();
        if untold != self.untold {
            self.untold = untold;
            self.out.push_back(Output::Event(Event::Untold(untold)));
        }
        let _ = self.membership.set_state(&bytes, now);
        self.pump(now);
    }

    fn note_owners(&mut self, now: Time) {
        let mut before = std::mem::take(&mut self.owners);
        for owned in &self.owned {
            let fresh = Ownership { owner: None, since: now, moves: 0 };
            let mut record = before.remove(&owned.address).unwrap_or(fresh);
            if record.owner != owned.owner {
                record.moves += u64::from(record.owner.is_some());
                record.since = now;
                let from = std::mem::replace(&mut record.owner, owned.owner.clone());
                let event = Event::Moved { address: owned.address, from, to: owned.owner.clone() };
                self.out.push_back(Output::Event(event));
            }
            self.owners.insert(owned.address, record);
        }
    }

    fn announced(&mut self, out: announce::Output) {
        let frames = out.frames.into_iter();
        self.out.extend(frames.map(|(interface, bytes)| Output::Frame { interface, bytes }));
        self.out.extend(out.events.into_iter().map(|event| Output::Event(Event::Address(event))));
    }

    fn unix(&self, time: Time) -> u64 {
        self.unix_ms + u64::try_from(time.as_millis()).unwrap_or_default()
    }
}
