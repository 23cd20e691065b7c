//! Which agents live, what each says of itself, and how their datagrams are sealed.
//!
//! Members, suspicion, refutation and gossip are SWIM by foca. Beside it each node pings a few neighbours often, and
//! their silence is what starts a suspicion: foca probes one member a period, which is too slow for addresses that must
//! move within a second, or too nervous for a node that is short of CPU (book: decisions/membership.md).
//!
//! Nothing here has a socket or a clock: datagrams and the time come in, [`Output`]s go out. Deadlines are told by
//! [`Membership::next_deadline`]; a node that was held up and comes later than that does not hold the lost time against
//! its peers.

mod id;
mod receive;
mod rounds;
mod seal;
mod states;
mod swim;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, Timer};
use homelab_model::KeyRing;
use rand::SeedableRng;
use rand::rngs::StdRng;
use thiserror::Error;

pub use seal::{MAX_DATAGRAM, Refused};
pub use states::MAX_STATE;

use id::{Id, Records};
use seal::{Link, Seal, Tag, tag_of};
use states::{Stamp, States};
use watch::Watch;
use wire::Message;

/// Time since some moment before the node's start, by a clock that never goes back.
pub type Time = Duration;

/// Lateness of a call that is not held against the node: timers of a busy but healthy system.
const LATE: Duration = Duration::from_millis(25);

/// Nodes that may be members, by name, and where their datagrams go.
pub type Table = BTreeMap<String, SocketAddr>;

/// What a [`Membership`] starts with.
#[derive(Debug)]
pub struct Settings<'a> {
    /// Cluster name. Datagrams of one cluster are nothing to another, whatever the keys.
    pub cluster: &'a str,
    /// This node's name.
    pub node: &'a str,
    /// Random number of this start.
    pub boot: u64,
    /// Random bytes from the operating system, other ones at every start: nonces and challenges come from them.
    pub seed: [u8; 32],
    /// All nodes; this node's own entry is ignored.
    pub peers: &'a Table,
    /// The keys.
    pub keys: &'a KeyRing,
}

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram of at most [`MAX_DATAGRAM`] bytes. It may be lost; failure to send is no error.
    Send {
        /// Receiver.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Something has changed.
    Event(Event),
}

/// A change among the members. Nodes go by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node is a member. Its state follows as soon as it is known.
    Up(String),
    /// The node is dead, or was restarted: then `Up` follows at once.
    Down(String),
    /// The node has left in order, or is no node of the cluster any more.
    Left(String),
    /// A new state of a node that is a member.
    State(String, Vec<u8>),
}

/// How a node stands, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It was never a member since this node's start.
    Unknown,
    /// Member.
    Alive,
    /// Member that has been silent for a moment, and may object.
    Suspect,
    /// Dead, or out of reach.
    Down,
    /// It has left in order.
    Left,
}

impl Standing {
    /// Whether the node is a member.
    pub fn is_member(self) -> bool {
        matches!(self, Standing::Alive | Standing::Suspect)
    }
}

/// A node of the table, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// Node name.
    pub name: &'a str,
    /// How it stands.
    pub standing: Standing,
    /// Since when.
    pub since: Time,
    /// The last state known of it, of a node that is no member, too.
    pub state: Option<&'a [u8]>,
}

/// A state of more than [`MAX_STATE`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a state has at most {MAX_STATE} bytes")]
pub struct StateTooLong;

struct Peer {
    name: String,
    addr: SocketAddr,
    link: Link,
    watch: Watch,
    standing: Standing,
    since: Time,
    /// The start as which it is a member.
    up: Option<u64>,
    incarnation: u16,
    /// When to talk to it next while it is no member, and how often that was tried.
    contact: Time,
    contacted: Option<Time>,
    tries: u32,
    challenged: Option<Time>,
    /// Who does not hear it and asked us, and until when the question stands.
    askers: BTreeMap<Tag, Time>,
}

/// Something to be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    State,
    Left,
}

/// This node's membership. See the module.
pub struct Membership {
    cluster: String,
    seal: Seal,
    id: Id,
    foca: Foca<Id, Records, StdRng, NoCustomBroadcast>,
    rng: StdRng,
    peers: BTreeMap<Tag, Peer>,
    states: States,
    /// Version of the node's own state.
    version: u64,
    /// The caller's time, and the time that the node was held up.
    now: Time,
    stalled: Duration,
    /// foca's timers, by own time and order of submission.
    timers: BTreeMap<(Time, u64), Timer<Id>>,
    submitted: u64,
    /// Members that this node watches.
    watched: Vec<Tag>,
    next_ping: Time,
    next_sync: Time,
    repeats: Vec<(Time, Repeat)>,
    leaving: bool,
    out: VecDeque<Output>,
}

impl Membership {
    /// A node that starts. It contacts all peers at its first [`Membership::tick`].
    pub fn new(settings: &Settings<'_>, now: Time) -> Membership {
        let mut rng = StdRng::from_seed(settings.seed);
        let seal = Seal::new(settings.cluster, settings.node, settings.keys, &mut rng);
        let id = Id { tag: tag_of(settings.cluster, settings.node), epoch: 1, boot: settings.boot };
        let foca = Foca::new(id, swim::config(settings.peers.len()), StdRng::from_rng(&mut rng), Records);
        let mut membership = Membership {
            cluster: settings.cluster.to_owned(),
            seal,
            id,
            foca,
            rng,
            peers: BTreeMap::new(),
            states: States::default(),
            version: 0,
            now,
            stalled: Duration::ZERO,
            timers: BTreeMap::new(),
            submitted: 0,
            watched: Vec::new(),
            next_ping: now,
            next_sync: now,
            repeats: Vec::new(),
            leaving: false,
            out: VecDeque::new(),
        };
        membership.set_peers(settings.peers, now);
        membership
    }

    /// Takes another table. Nodes that are no longer in it are members no more; new ones are contacted.
    pub fn set_peers(&mut self, table: &Table, now: Time) {
        self.clock(now);
        let tags: BTreeMap<Tag, (&String, &SocketAddr)> =
            table.iter().map(|(name, addr)| (tag_of(&self.cluster, name), (name, addr))).collect();
        let gone: Vec<Tag> = self.peers.keys().copied().filter(|tag| !tags.contains_key(tag)).collect();
        for tag in gone {
            self.expel(tag);
        }
        for (tag, (name, addr)) in tags {
            if tag == self.id.tag {
                continue;
            }
            match self.peers.get_mut(&tag) {
                Some(peer) => peer.addr = *addr,
                None => {
                    let peer = Peer::new(name, *addr, self.seal.link(name), self.now, self.own());
                    self.peers.insert(tag, peer);
                }
            }
        }
        self.resize();
    }

    /// Uses another key ring from now on.
    pub fn set_keys(&mut self, keys: &KeyRing) {
        self.seal.set_keys(keys);
    }

    /// Tells all members the node's state from now on: bytes that only the caller understands.
    pub fn set_state(&mut self, state: &[u8], now: Time) -> Result<(), StateTooLong> {
        if state.len() > MAX_STATE {
            return Err(StateTooLong);
        }
        self.clock(now);
        if self.states.get(self.id.tag).is_some_and(|(_, held)| held == state) {
            return Ok(());
        }
        self.version += 1;
        let stamp = Stamp { epoch: self.id.epoch, version: self.version, boot: self.id.boot };
        self.states.put(self.id.tag, stamp, state.to_vec());
        self.push_own();
        Ok(())
    }

    /// Takes a datagram. It does not matter where it came from: what is sealed for us by a node of the table counts,
    /// and answers go to the table's addresses.
    pub fn datagram(&mut self, datagram: &[u8], now: Time) -> Result<(), Refused> {
        if self.leaving {
            return Ok(());
        }
        let (from, opened) = self.open(datagram)?;
        self.clock(now);
        let result = self.receive(from, &opened);
        self.contact_round();
        result
    }

    /// Does what is due. To be called at [`Membership::next_deadline`], and at the start.
    pub fn tick(&mut self, now: Time) {
        self.clock(now);
        self.repeat_round();
        if !self.leaving {
            self.swim_round();
            self.watch_round();
            self.contact_round();
            self.sync_round();
        }
    }

    /// Leaves in order: all members are told at once, and again at the deadlines that follow. The node takes part no
    /// more; a caller that does not wait for the deadlines loses only the repetitions.
    pub fn leave(&mut self, now: Time) {
        self.clock(now);
        if self.leaving {
            return;
        }
        self.say_left();
        self.leaving = true;
        self.timers.clear();
        self.repeats = swim::repeats(self.own(), Repeat::Left);
    }

    /// When [`Membership::tick`] is due; None: never.
    pub fn next_deadline(&self) -> Option<Time> {
        let own = self.own();
        let mut due: Vec<Time> = self.repeats.iter().map(|(at, _)| *at).collect();
        if !self.leaving {
            due.extend(self.timers.first_key_value().map(|((at, _), _)| *at));
            due.extend(self.peers.values().filter(|peer| peer.wants_contact()).map(|peer| peer.contact));
            due.extend(self.watched.iter().filter_map(|tag| self.peers.get(tag)).map(|p| p.watch.next(own)));
            if self.peers.values().any(|peer| peer.up.is_some()) {
                due.extend([self.next_ping, self.next_sync]);
            }
        }
        due.into_iter().min().map(|at| at + self.stalled)
    }

    /// The next thing to do for the caller.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// All other nodes of the table, by name.
    pub fn members(&self) -> Vec<Member<'_>> {
        let mut members: Vec<Member<'_>> = self
            .peers
            .iter()
            .map(|(tag, peer)| Member {
                name: &peer.name,
                standing: peer.standing,
                since: peer.since,
                state: self.states.get(*tag).map(|(_, bytes)| bytes),
            })
            .collect();
        members.sort_by_key(|member| member.name);
        members
    }

    /// Time as far as the node could use it. Everything below is judged by it.
    fn own(&self) -> Time {
        self.now.saturating_sub(self.stalled)
    }

    /// Takes the caller's time. What was due long ago was not done because this node was held up; others answered
    /// meanwhile, and their answers wait in the socket.
    fn clock(&mut self, now: Time) {
        let now = now.max(self.now);
        if let Some(late) = self.next_deadline().and_then(|due| now.checked_sub(due.max(self.now)))
            && late > LATE
        {
            self.stalled += late;
        }
        self.now = now;
    }

    fn send(&mut self, to: Tag, message: &Message) {
        if let Some(peer) = self.peers.get(&to)
            && let Some(bytes) = self.seal.seal(&peer.link, &message.encode())
        {
            self.out.push_back(Output::Send { to: peer.addr, bytes });
        }
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    /// Tags of the members, in order.
    fn up(&self) -> Vec<Tag> {
        self.peers.iter().filter(|(_, peer)| peer.up.is_some()).map(|(tag, _)| *tag).collect()
    }
}

impl Peer {
    fn new(name: &str, addr: SocketAddr, link: Link, now: Time, own: Time) -> Peer {
        Peer {
            name: name.to_owned(),
            addr,
            link,
            watch: Watch::default(),
            standing: Standing::Unknown,
            since: now,
            up: None,
            incarnation: 0,
            contact: own,
            contacted: None,
            tries: 0,
            challenged: None,
            askers: BTreeMap::new(),
        }
    }

    /// Whether the peer is to be talked to until it is a member.
    fn wants_contact(&self) -> bool {
        self.up.is_none() || !self.link.is_proven()
    }
}
