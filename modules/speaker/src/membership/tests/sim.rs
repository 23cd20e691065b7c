//! Nodes in a network of simulated time: latency, loss, cuts, deaths, restarts, nodes short of CPU. A seed decides all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use homelab_model::KeyRing;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::membership::{Event, Membership, Output, Refused, Settings, Standing, Table, Time};

pub(super) const CLUSTER: &str = "home";

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A datagram on its way or recorded.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) bytes: Vec<u8>,
}

/// One node.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) member: Option<Membership>,
    pub(super) keys: KeyRing,
    pub(super) table: Table,
    /// Short of CPU: may sleep up to 300 ms whenever it has something to do.
    pub(super) starved: bool,
    pub(super) refused: BTreeMap<Refused, u64>,
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    boots: u64,
    inbox: Vec<Vec<u8>>,
    deadline: Option<Time>,
    wake: Option<Time>,
}

/// The network.
pub(super) struct Sim {
    pub(super) now: Time,
    pub(super) nodes: Vec<Node>,
    /// Share of datagrams that are lost.
    pub(super) loss: f64,
    pub(super) latency: Range<u64>,
    /// Pairs of sender and receiver between which nothing passes.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    pub(super) events: Vec<(Time, usize, Event)>,
    /// Everything sent, if wanted.
    pub(super) recording: Option<Vec<Packet>>,
    pub(super) rng: StdRng,
    queue: BTreeMap<(Time, u64), Packet>,
    number: u64,
}

pub(super) fn name(index: usize) -> String {
    format!("node{index}")
}

impl Sim {
    /// `count` nodes that are off.
    pub(super) fn new(count: usize, seed: u64) -> Sim {
        let addr = |i: usize| SocketAddr::from((Ipv4Addr::new(10, 0, 0, i as u8 + 1), 7946));
        let table: Table = (0..count).map(|i| (name(i), addr(i))).collect();
        let node = |i| Node {
            name: name(i),
            member: None,
            keys: KeyRing::first([1; 32]),
            table: table.clone(),
            starved: false,
            refused: BTreeMap::new(),
            sent: 0,
            sent_bytes: 0,
            boots: 0,
            inbox: Vec::new(),
            deadline: None,
            wake: None,
        };
        Sim {
            now: ms(1000),
            nodes: (0..count).map(node).collect(),
            loss: 0.0,
            latency: 100..600,
            cuts: BTreeSet::new(),
            events: Vec::new(),
            recording: None,
            rng: StdRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            number: 0,
        }
    }

    /// `count` nodes that know each other, with what they have said so far forgotten.
    pub(super) fn running(count: usize, seed: u64) -> Sim {
        let mut sim = Sim::new(count, seed);
        for node in 0..count {
            sim.start(node);
        }
        sim.run(ms(2000));
        sim.assert_all_members();
        sim.events.clear();
        sim
    }

    pub(super) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.boots += 1;
        let settings = Settings {
            cluster: CLUSTER,
            node: &node.name,
            boot: self.rng.random(),
            seed: self.rng.random(),
            peers: &node.table,
            keys: &node.keys,
        };
        node.member = Some(Membership::new(&settings, self.now));
        node.inbox.clear();
        (node.deadline, node.wake) = (Some(self.now), None);
    }

    /// Power cut.
    pub(super) fn kill(&mut self, index: usize) {
        self.nodes[index].member = None;
        (self.nodes[index].deadline, self.nodes[index].wake) = (None, None);
    }

    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.extend([(a, b), (b, a)]);
    }

    /// Lets the caller do something with a node's membership.
    pub(super) fn with<T>(&mut self, index: usize, act: impl FnOnce(&mut Membership, Time) -> T) -> T {
        let now = self.now;
        let result = act(self.nodes[index].member.as_mut().expect("a node that runs"), now);
        self.drain(index);
        result
    }

    pub(super) fn inject(&mut self, packet: Packet) {
        self.queue.insert((self.now, self.number), packet);
        self.number += 1;
    }

    fn drain(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(member) = &mut node.member else { return };
        while let Some(output) = member.poll() {
            match output {
                Output::Event(event) => self.events.push((self.now, index, event)),
                Output::Send { to, bytes } => {
                    assert!(bytes.len() <= crate::membership::MAX_DATAGRAM);
                    node.sent += 1;
                    node.sent_bytes += bytes.len() as u64;
                    // Table addresses of nodes that the simulation does not have lead nowhere.
                    let last = to.ip().to_string().rsplit('.').next().and_then(|n| n.parse::<usize>().ok());
                    let Some(to) = last.map(|n| n - 1) else { continue };
                    let packet = Packet { from: index, to, bytes };
                    if let Some(recording) = &mut self.recording {
                        recording.push(packet.clone());
                    }
                    if self.cuts.contains(&(index, to)) || self.rng.random_bool(self.loss) {
                        continue;
                    }
                    let after = Duration::from_micros(self.rng.random_range(self.latency.clone()));
                    self.queue.insert((self.now + after, self.number), packet);
                    self.number += 1;
                }
            }
        }
        node.deadline = member.next_deadline();
    }

    /// When a node that has something to do gets to it.
    fn delay(&mut self, index: usize) -> Duration {
        if !self.nodes[index].starved {
            return Duration::ZERO;
        }
        let most = if self.rng.random_bool(0.3) { 300_000 } else { 5_000 };
        Duration::from_micros(self.rng.random_range(0..most))
    }

    fn work(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        (node.wake, node.deadline) = (None, None);
        let Some(member) = &mut node.member else { return };
        let due = |member: &Membership| member.next_deadline().is_some_and(|at| at <= self.now);
        // A select loop may come to either first.
        if self.rng.random_bool(0.5) && due(member) {
            member.tick(self.now);
        }
        for bytes in std::mem::take(&mut node.inbox) {
            if let Err(refused) = member.datagram(&bytes, self.now) {
                *node.refused.entry(refused).or_default() += 1;
            }
        }
        if due(member) {
            member.tick(self.now);
        }
        self.drain(index);
    }

    /// Until nothing is due at or before `end`.
    pub(super) fn run_until(&mut self, end: Time) {
        loop {
            let packet = self.queue.first_key_value().map(|((at, _), _)| *at);
            let node = (0..self.nodes.len())
                .filter_map(|i| self.nodes[i].wake.or(self.nodes[i].deadline).map(|at| (at, i)))
                .min();
            let next = packet.into_iter().chain(node.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            match node.filter(|(at, _)| packet.is_none_or(|packet| *at <= packet)) {
                Some((_, index)) if self.nodes[index].wake.is_some() => self.work(index),
                Some((_, index)) => {
                    let wake = self.now + self.delay(index);
                    self.nodes[index].wake = Some(wake);
                }
                None => {
                    let Some((_, packet)) = self.queue.pop_first() else { break };
                    let wake = self.now + self.delay(packet.to);
                    let Some(node) = self.nodes.get_mut(packet.to) else { continue };
                    if node.member.is_some() {
                        node.inbox.push(packet.bytes);
                        node.wake.get_or_insert(wake);
                    }
                }
            }
        }
        self.now = end;
    }

    pub(super) fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until `done`, for at most `limit`; how long it took, to the millisecond.
    pub(super) fn run_while(&mut self, limit: Duration, mut not_done: impl FnMut(&Sim) -> bool) -> Duration {
        let start = self.now;
        while not_done(self) {
            assert!(self.now < start + limit, "not within {limit:?}: {:#?}", self.events);
            self.run(ms(1));
        }
        self.now - start
    }

    pub(super) fn standing(&self, at: usize, of: usize) -> Standing {
        let member = self.nodes[at].member.as_ref().expect("a node that runs");
        member.members().iter().find(|m| m.name == name(of)).expect("in the table").standing
    }

    pub(super) fn state(&self, at: usize, of: usize) -> Option<Vec<u8>> {
        let member = self.nodes[at].member.as_ref().expect("a node that runs");
        member.members().iter().find(|m| m.name == name(of))?.state.map(<[u8]>::to_vec)
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let running = |i: &usize| self.nodes[*i].member.is_some();
        let all = 0..self.nodes.len();
        let pairs = all.clone().filter(running).flat_map(move |a| all.clone().map(move |b| (a, b)));
        pairs.filter(move |(a, b)| a != b && running(b))
    }

    /// Whether all running nodes are members for all running nodes.
    pub(super) fn all_members(&self) -> bool {
        self.pairs().all(|(a, b)| self.standing(a, b).is_member())
    }

    pub(super) fn assert_all_members(&self) {
        for (a, b) in self.pairs() {
            assert!(self.standing(a, b).is_member(), "{a} sees {b}: {:?}", self.standing(a, b));
        }
    }

    /// What nodes have lost, and when.
    pub(super) fn lost(&self) -> Vec<&(Time, usize, Event)> {
        self.events.iter().filter(|(_, _, event)| matches!(event, Event::Down(_) | Event::Left(_))).collect()
    }

    /// When `at` said that `of` is dead.
    pub(super) fn down(&self, at: usize, of: usize) -> Option<Time> {
        let event = Event::Down(name(of));
        self.events.iter().find(|(_, node, e)| *node == at && *e == event).map(|(time, _, _)| *time)
    }
}

/// Minimum, median and maximum of times in ms, printed under a title.
pub(super) fn figures(title: &str, mut times: Vec<u128>) -> (u128, u128, u128) {
    times.sort_unstable();
    let (min, median, max) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    println!("{title}: min {min} ms, median {median} ms, max {max} ms ({} runs)", times.len());
    (min, median, max)
}
