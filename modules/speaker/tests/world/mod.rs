//! A cluster, a client and a foreign machine on one LAN of simulated time. A seed decides all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use homelab_model::service::Service;
use homelab_model::{
    ContainerWord, KeyRing, L2Advertisement, LbReport, Pool, PoolRange, SpeakerNode, SpeakerSpec,
};
use homelab_speaker::arp::Arp;
use homelab_speaker::mac::Mac;
use homelab_speaker::membership::Refused;
use homelab_speaker::speaker::{Event, Output, Settings, Speaker};
use homelab_speaker::state::Interface;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// How often the client sends to every address.
const SENDS: Duration = Duration::from_millis(10);
const CLIENT: Mac = Mac([4, 0, 0, 0, 0, 0x77]);
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 7);
pub(crate) const FOREIGN: Mac = Mac([4, 0, 0, 0, 0, 0x99]);

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn name(node: usize) -> String {
    format!("node{}", node + 1)
}

pub(crate) fn mac(node: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, node as u8 + 1])
}

fn address_of(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, 11 + node as u8)
}

/// A load-balancer address by its number.
pub(crate) fn vip(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, 200 + number as u8)
}

/// A node: a kernel, and an agent if it runs.
pub(crate) struct Node {
    pub(crate) agent: Option<Speaker>,
    /// The kernel forwards what comes to its MAC address.
    pub(crate) on: bool,
    carrier: bool,
    /// What the agent left in /run.
    held: BTreeSet<IpAddr>,
}

enum Packet {
    Datagram { from: usize, to: SocketAddr, bytes: Vec<u8> },
    Frame { from: usize, bytes: Vec<u8> },
}

/// What the client has of one address.
#[derive(Default)]
struct Route {
    mac: Option<Mac>,
    asked: Option<Duration>,
    failed: u64,
    longest: u64,
}

/// The LAN. Machines: the nodes, then the client, then the foreign machine.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node>,
    /// Which part of the network each machine is in.
    pub(crate) parts: Vec<usize>,
    /// Share of datagrams that are lost.
    pub(crate) loss: f64,
    /// Addresses that the foreign machine has.
    pub(crate) foreign: BTreeSet<Ipv4Addr>,
    pub(crate) events: Vec<(Duration, usize, Event)>,
    /// What each node has heard of each other one's containers.
    pub(crate) words: BTreeMap<(usize, String), Vec<ContainerWord>>,
    services: Vec<Service>,
    spec: SpeakerSpec,
    client: BTreeMap<Ipv4Addr, Route>,
    answers: Vec<Mac>,
    queue: BTreeMap<(Duration, u64), Packet>,
    number: u64,
    rng: StdRng,
}

impl World {
    /// Nodes that are off, and services with one address each.
    pub(crate) fn new(nodes: usize, vips: usize, seed: u64) -> World {
        let service = |number: usize| {
            let value = json!({
                "namespace": "default", "name": format!("s{number}"), "type": "LoadBalancer",
                "loadBalancer": [{ "ip": vip(number) }], "ports": [{ "port": 80 }],
            });
            serde_json::from_value(value).expect("a service")
        };
        let pool = PoolRange { first: vip(0).into(), last: vip(50).into() };
        let speaker_node = |node| SpeakerNode {
            name: name(node),
            address: address_of(node).into(),
            labels: BTreeMap::new(),
        };
        let spec = SpeakerSpec {
            port: SpeakerSpec::PORT,
            nodes: (0..nodes).map(speaker_node).collect(),
            pools: vec![Pool {
                name: "default".into(),
                addresses: vec![pool],
                auto_assign: true,
                avoid_buggy_ips: false,
                service_allocation: None,
            }],
            advertisements: vec![L2Advertisement { name: "all".into(), ..L2Advertisement::default() }],
            bgp: None,
        };
        let off = || Node { agent: None, on: false, carrier: true, held: BTreeSet::new() };
        World {
            now: ms(10_000),
            nodes: (0..nodes).map(|_| off()).collect(),
            parts: vec![0; nodes + 2],
            loss: 0.0,
            foreign: BTreeSet::new(),
            events: Vec::new(),
            words: BTreeMap::new(),
            services: (0..vips).map(service).collect(),
            spec,
            client: (0..vips).map(|number| (vip(number), Route::default())).collect(),
            answers: Vec::new(),
            queue: BTreeMap::new(),
            number: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Nodes that run, with a client that reaches every address.
    pub(crate) fn running(nodes: usize, vips: usize, seed: u64) -> World {
        let mut world = World::new(nodes, vips, seed);
        for node in 0..nodes {
            world.boot(node);
            let pause = world.rng.random_range(0..300);
            world.run(pause);
        }
        world.run(5000);
        world.forget();
        world.run(200);
        assert!(world.gaps().values().all(|gap| *gap == 0), "the client reaches all: {:?}", world.gaps());
        world
    }

    /// Forgets what has happened so far.
    pub(crate) fn forget(&mut self) {
        self.events.clear();
        for route in self.client.values_mut() {
            (route.failed, route.longest) = (0, 0);
        }
    }

    pub(crate) fn boot(&mut self, node: usize) {
        self.nodes[node].on = true;
        self.nodes[node].held.clear();
        self.start(node);
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self, node: usize) {
        let keys = KeyRing::first([7; 32]);
        let (boot, seed) = (self.rng.random(), self.rng.random());
        let held = std::mem::take(&mut self.nodes[node].held);
        let settings =
            Settings { cluster: "home", node: &name(node), boot, seed, keys: &keys, held, unix_ms: 0 };
        let mut agent = Speaker::new(settings, self.now);
        agent.configure(&self.services, &self.spec, self.now);
        self.nodes[node].agent = Some(agent);
        self.link(node, self.nodes[node].carrier);
        let now = self.now;
        self.with(node, |agent| agent.ready(true, now));
    }

    /// The agent is killed: the kernel goes on.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(agent) = self.nodes[node].agent.take() {
            self.nodes[node].held = agent.holds();
        }
    }

    pub(crate) fn power_cut(&mut self, node: usize) {
        self.kill(node);
        self.nodes[node].on = false;
    }

    /// The node's cable is plugged in, or not.
    pub(crate) fn link(&mut self, node: usize, carrier: bool) {
        self.nodes[node].carrier = carrier;
        let network = format!("{}/24", address_of(node)).parse().expect("a network");
        let eth0 = Interface { name: "eth0".into(), mac: mac(node), networks: vec![network] };
        let now = self.now;
        self.with(node, |agent| agent.interfaces(carrier.then_some(eth0).into_iter().collect(), now));
    }

    /// Puts machines into a part of the network of their own.
    pub(crate) fn part(&mut self, machines: &[usize]) {
        machines.iter().for_each(|machine| self.parts[*machine] = 1);
    }

    pub(crate) fn heal(&mut self) {
        self.parts.fill(0);
    }

    pub(crate) fn with(&mut self, node: usize, act: impl FnOnce(&mut Speaker)) {
        if let Some(agent) = &mut self.nodes[node].agent {
            act(agent);
        }
        self.collect(node);
    }

    fn collect(&mut self, node: usize) {
        let now = self.now;
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let mut packets = Vec::new();
        while let Some(output) = agent.poll() {
            match output {
                Output::Datagram { to, bytes } => packets.push(Packet::Datagram { from: node, to, bytes }),
                Output::Frame { interface, bytes } => {
                    assert_eq!(interface, "eth0");
                    packets.push(Packet::Frame { from: node, bytes });
                }
                Output::Event(event) => self.events.push((now, node, event)),
                Output::Containers { node: of, words } => drop(self.words.insert((node, of), words)),
            }
        }
        packets.into_iter().for_each(|packet| self.send(packet));
    }

    fn send(&mut self, packet: Packet) {
        let delay = Duration::from_micros(self.rng.random_range(200..1200));
        self.number += 1;
        self.queue.insert((self.now + delay, self.number), packet);
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        let up = |machine: usize| self.nodes.get(machine).is_none_or(|node| node.on && node.carrier);
        up(from) && up(to) && self.parts[from] == self.parts[to]
    }

    /// Lets milliseconds pass.
    pub(crate) fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now += ms(1);
            let later = self.queue.split_off(&(self.now, u64::MAX));
            for packet in std::mem::replace(&mut self.queue, later).into_values() {
                self.deliver(packet);
            }
            let now = self.now;
            for node in 0..self.nodes.len() {
                let due = |agent: &Speaker| agent.next_deadline().is_some_and(|due| due <= now);
                if self.nodes[node].agent.as_ref().is_some_and(due) {
                    self.with(node, |agent| agent.tick(now));
                }
            }
            if now.as_millis().is_multiple_of(SENDS.as_millis()) {
                self.client_sends();
            }
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let now = self.now;
        match packet {
            Packet::Datagram { from, to, bytes } => {
                let to = (0..self.nodes.len()).find(|node| IpAddr::from(address_of(*node)) == to.ip());
                let to = to.expect("a node");
                if self.passes(from, to) && !self.rng.random_bool(self.loss) {
                    self.with(to, |agent| match agent.datagram(&bytes, now) {
                        // Who has just started is asked to prove itself first; what it sent before is overtaken.
                        Ok(()) | Err(Refused::Unproven | Refused::Replayed) => {}
                        Err(refused) => panic!("{refused}"),
                    });
                }
            }
            Packet::Frame { from, bytes } => {
                let client = self.nodes.len();
                for to in (0..client + 2).filter(|to| *to != from) {
                    if !self.passes(from, to) {
                        continue;
                    }
                    if to < client {
                        self.with(to, |agent| agent.frame("eth0", &bytes, now).expect("a good frame"));
                    } else {
                        self.hears(to == client, &bytes);
                    }
                }
            }
        }
    }

    /// The client, or the foreign machine, hears ARP as Linux does.
    fn hears(&mut self, client: bool, frame: &[u8]) {
        let Ok(arp) = Arp::parse(frame) else { return };
        if client {
            if arp.destination == CLIENT {
                self.answers.push(arp.sender_mac);
            }
            // An entry that is there follows announcements (arp(7)); one is made only by an answer.
            if let Some(route) = self.client.get_mut(&arp.sender)
                && (route.mac.is_some() || arp.destination == CLIENT)
            {
                route.mac = Some(arp.sender_mac);
            }
        } else if self.foreign.contains(&arp.target) && arp.sender != arp.target {
            // It answers questions and probes, and says nothing to announcements.
            let answer = arp.answer(FOREIGN);
            self.send(Packet::Frame { from: self.nodes.len() + 1, bytes: answer.build() });
        }
    }

    /// The foreign machine takes an address, and says so.
    pub(crate) fn takes(&mut self, address: Ipv4Addr) {
        self.foreign.insert(address);
        let bytes = Arp::announcement(FOREIGN, address).build();
        self.send(Packet::Frame { from: self.nodes.len() + 1, bytes });
    }

    fn client_sends(&mut self) {
        let client = self.nodes.len();
        let addresses: Vec<Ipv4Addr> = self.client.keys().copied().collect();
        for address in addresses {
            let to = self.client[&address].mac;
            let node = (0..client).find(|node| Some(mac(*node)) == to);
            let arrives = node.is_some_and(|node| self.passes(client, node));
            let (now, route) = (self.now, self.client.get_mut(&address).expect("known"));
            route.failed = if arrives { 0 } else { route.failed + 1 };
            route.longest = route.longest.max(route.failed);
            if to.is_none() && route.asked.is_none_or(|asked| now >= asked + ms(1000)) {
                route.asked = Some(now);
                self.asks(address);
            }
        }
    }

    fn asks(&mut self, address: Ipv4Addr) {
        let bytes = Arp::request(CLIENT, CLIENT_IP, address).build();
        self.send(Packet::Frame { from: self.nodes.len(), bytes });
    }

    /// Longest time that the client did not reach each address, ms.
    pub(crate) fn gaps(&self) -> BTreeMap<Ipv4Addr, u64> {
        let gap = |route: &Route| route.longest * SENDS.as_millis() as u64;
        self.client.iter().map(|(address, route)| (*address, gap(route))).collect()
    }

    /// Who answers the client for an address.
    pub(crate) fn answered(&mut self, address: Ipv4Addr) -> Vec<Mac> {
        self.answers.clear();
        self.asks(address);
        self.run(10);
        std::mem::take(&mut self.answers)
    }

    /// Exactly one node answers for every address, and the client sends to it. Gives the owners.
    #[track_caller]
    pub(crate) fn assert_one_each(&mut self) -> BTreeMap<Ipv4Addr, usize> {
        let addresses: Vec<Ipv4Addr> = self.client.keys().copied().collect();
        let mut owners = BTreeMap::new();
        for address in addresses {
            // Before the question: its answer would mend what is wrong.
            let known = self.client[&address].mac;
            let answers = self.answered(address);
            assert_eq!(answers.len(), 1, "{address}: {answers:?}");
            assert_eq!(known, Some(answers[0]), "{address}: the client sends to another");
            owners.insert(address, usize::from(answers[0].0[5]) - 1);
        }
        owners
    }

    pub(crate) fn report(&self, node: usize) -> LbReport {
        self.nodes[node].agent.as_ref().expect("it runs").report(self.now)
    }

    /// Addresses that moved, as the nodes see it.
    pub(crate) fn moves(&self) -> usize {
        self.events.iter().filter(|(_, _, event)| matches!(event, Event::Moved { .. })).count()
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.rng.random_range(0..below)
    }
}

/// Prints minimum, median and maximum of gaps in milliseconds; gives the last two.
pub(crate) fn figures(title: &str, mut gaps: Vec<u64>) -> (u64, u64) {
    gaps.sort_unstable();
    let (min, median, max) = (gaps[0], gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    println!("{title}: {} runs, {min} / {median} / {max} ms", gaps.len());
    (median, max)
}
