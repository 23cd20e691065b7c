//! A LAN without a wire: announcers, foreign machines that hold addresses, and a clock that goes from deadline to deadline.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use homelab_speaker::announce::{Announcer, Event, EventKind, Output, State, Status, Time, Wanted};
use homelab_speaker::arp::{Arp, Operation};
use homelab_speaker::mac::Mac;
use homelab_speaker::ndp::{Message, Ndp};

pub(crate) const INTERFACE: &str = "eth0";

/// A frame as the tests look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// Who has it? From somebody who does not say that it has it.
    Asks(IpAddr),
    /// The speaker has it, says it to all.
    Announces(IpAddr),
    /// The speaker has it, says it to one machine.
    Answers(IpAddr, Mac),
}

impl Said {
    pub(crate) fn of(frame: &[u8]) -> (Mac, Said) {
        if let Ok(arp) = Arp::parse(frame) {
            let said = match arp.operation {
                Operation::Request if arp.sender != arp.target => Said::Asks(arp.target.into()),
                _ if arp.destination.is_group() => Said::Announces(arp.sender.into()),
                _ => Said::Answers(arp.sender.into(), arp.destination),
            };
            return (arp.sender_mac, said);
        }
        let ndp = Ndp::parse(frame).unwrap();
        let said = match ndp.message {
            Message::Solicitation(_) => Said::Asks(ndp.target.into()),
            _ if ndp.destination_mac.is_group() => Said::Announces(ndp.target.into()),
            _ => Said::Answers(ndp.target.into(), ndp.destination_mac),
        };
        (ndp.speaker(), said)
    }

    /// The address that is claimed.
    pub(crate) fn claim(self) -> Option<IpAddr> {
        match self {
            Said::Asks(_) => None,
            Said::Announces(address) | Said::Answers(address, _) => Some(address),
        }
    }
}

pub(crate) fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => Arp::probe(mac, address).build(),
        IpAddr::V6(address) => Ndp::probe(mac, address).build(),
    }
}

pub(crate) fn question(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => Arp::request(mac, Ipv4Addr::new(192, 168, 50, 7), address).build(),
        IpAddr::V6(address) => {
            let me = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
            Ndp::solicitation(mac, me, address).build()
        }
    }
}

pub(crate) fn announcement(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => Arp::announcement(mac, address).build(),
        IpAddr::V6(address) => Ndp::announcement(mac, address).build(),
    }
}

/// The answer of who has what is asked for.
fn answer(mac: Mac, frame: &[u8]) -> Vec<u8> {
    match Arp::parse(frame) {
        Ok(arp) => arp.answer(mac).build(),
        Err(_) => Ndp::parse(frame).unwrap().answer(mac).build(),
    }
}

pub(crate) fn wanted(addresses: &[(IpAddr, bool)]) -> BTreeMap<IpAddr, Wanted> {
    let wanted = |&(address, takeover): &(IpAddr, bool)| {
        (address, Wanted { interfaces: BTreeSet::from([INTERFACE.to_owned()]), takeover })
    };
    addresses.iter().map(wanted).collect()
}

pub(crate) fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// MAC address of a node or of a foreign machine.
pub(crate) fn node_mac(number: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, u8::try_from(number).unwrap() + 0x11])
}

pub(crate) fn foreign_mac(number: usize) -> Mac {
    Mac([4, 0, 0, 0, 0, u8::try_from(number).unwrap() + 0x77])
}

pub(crate) struct Node {
    pub(crate) announcer: Announcer,
    pub(crate) mac: Mac,
    pub(crate) carrier: bool,
    /// What it should announce.
    pub(crate) wanted: BTreeMap<IpAddr, Wanted>,
}

#[derive(Default)]
pub(crate) struct Lan {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    /// Foreign machines and what they hold. They answer at once.
    pub(crate) foreign: BTreeMap<Mac, BTreeSet<IpAddr>>,
    pub(crate) heard: Vec<(Time, Mac, Said)>,
    pub(crate) events: Vec<(Time, usize, Event)>,
    queue: VecDeque<Vec<u8>>,
}

impl Lan {
    /// Nodes that know each other.
    pub(crate) fn of(nodes: usize) -> Lan {
        let mut lan = Lan { now: Duration::from_secs(1000), ..Lan::default() };
        let macs: BTreeSet<Mac> = (0..nodes).map(node_mac).collect();
        for number in 0..nodes {
            let mut announcer = Announcer::new();
            let _ = announcer.members(macs.clone(), lan.now);
            let _ = announcer.interface(INTERFACE, Some(node_mac(number)), lan.now);
            lan.nodes.push(Node { announcer, mac: node_mac(number), carrier: true, wanted: BTreeMap::new() });
        }
        lan
    }

    pub(crate) fn set(&mut self, node: usize, addresses: &[(IpAddr, bool)]) {
        self.nodes[node].wanted = wanted(addresses);
        let before = self.nodes[node].announcer.status();
        let output = self.nodes[node].announcer.set(&wanted(addresses), self.now);
        self.came(node, output, &before);
    }

    pub(crate) fn link(&mut self, node: usize, carrier: bool) {
        self.nodes[node].carrier = carrier;
        let before = self.nodes[node].announcer.status();
        let mac = carrier.then_some(self.nodes[node].mac);
        let output = self.nodes[node].announcer.interface(INTERFACE, mac, self.now);
        self.came(node, output, &before);
    }

    /// A foreign machine takes an address, in the way that DHCP clients and kernels do, or gives it up.
    pub(crate) fn hold(&mut self, mac: Mac, address: IpAddr, held: bool) {
        if held {
            self.foreign.entry(mac).or_default().insert(address);
            self.say(announcement(mac, address));
        } else {
            self.foreign.entry(mac).or_default().remove(&address);
        }
    }

    /// Somebody says this to all that are on the LAN.
    pub(crate) fn say(&mut self, frame: Vec<u8>) {
        self.queue.push_back(frame);
        self.deliver();
    }

    /// Who says that it has the address when a client asks.
    pub(crate) fn ask(&mut self, address: IpAddr) -> Vec<Mac> {
        let client = foreign_mac(100);
        let from = self.heard.len();
        self.say(question(client, address));
        let answers =
            |(_, mac, said): &(Time, Mac, Said)| (*said == Said::Answers(address, client)).then_some(*mac);
        self.heard[from..].iter().filter_map(answers).collect()
    }

    /// Lets time go by.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.nodes.iter().filter_map(|node| node.announcer.next_deadline()).min();
            self.now = next.filter(|next| *next <= end).unwrap_or(end).max(self.now);
            for node in 0..self.nodes.len() {
                let before = self.nodes[node].announcer.status();
                let output = self.nodes[node].announcer.tick(self.now);
                let after = self.nodes[node].announcer.next_deadline();
                assert!(after.is_none_or(|at| at > self.now), "no busy loop");
                self.came(node, output, &before);
            }
            if next.is_none_or(|next| next > end) {
                return;
            }
        }
    }

    pub(crate) fn state(&self, node: usize, address: IpAddr) -> Option<State> {
        self.status(node, address).map(|status| status.state)
    }

    pub(crate) fn status(&self, node: usize, address: IpAddr) -> Option<Status> {
        self.nodes[node].announcer.status().into_iter().find(|status| status.address == address)
    }

    /// What a node said about an address since then, and when.
    pub(crate) fn said(&self, node: usize, address: IpAddr, since: Time) -> Vec<(u64, Said)> {
        let mac = self.nodes[node].mac;
        self.heard
            .iter()
            .filter(|(at, from, said)| {
                let (Said::Asks(a) | Said::Announces(a) | Said::Answers(a, _)) = said;
                *at >= since && *from == mac && *a == address
            })
            .map(|(at, _, said)| (u64::try_from((*at - since).as_millis()).unwrap(), *said))
            .collect()
    }

    pub(crate) fn kinds(&self, node: usize, address: IpAddr) -> Vec<EventKind> {
        let of = |(_, number, event): &(Time, usize, Event)| {
            (*number == node && event.address == address).then_some(event.kind)
        };
        self.events.iter().filter_map(of).collect()
    }

    /// Looks at what a node did and puts it on the wire.
    fn came(&mut self, node: usize, output: Output, before: &[Status]) {
        let was = |address| before.iter().find(|s| s.address == address).map(|s| s.state);
        for event in output.events {
            let foreign = self.foreign.values().any(|held| held.contains(&event.address));
            let probed = matches!(was(event.address), Some(State::Probing | State::Conflict));
            let hurried = self.nodes[node].wanted.get(&event.address).is_some_and(|w| w.takeover);
            if event.kind == EventKind::Announced && probed && !hurried {
                assert!(
                    !foreign,
                    "{} was announced although a foreign machine answered probes",
                    event.address
                );
            }
            self.events.push((self.now, node, event));
        }
        for (interface, frame) in output.frames {
            assert_eq!(interface, INTERFACE);
            assert!(self.nodes[node].carrier, "nothing is sent without a link");
            let (mac, said) = Said::of(&frame);
            assert_eq!(mac, self.nodes[node].mac);
            if let Some(address) = said.claim() {
                assert!(self.nodes[node].wanted.contains_key(&address), "only own addresses are claimed");
                let foreign_has = self.state(node, address) == Some(State::Conflict);
                assert!(!foreign_has, "nobody is fought in a conflict");
                let claims = self.state(node, address) == Some(State::Announced);
                assert!(claims, "only announced addresses are claimed: {address}");
            }
            self.queue.push_back(frame);
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        while let Some(frame) = self.queue.pop_front() {
            let (from, said) = Said::of(&frame);
            self.heard.push((self.now, from, said));
            if let Said::Asks(address) = said {
                let holders =
                    self.foreign.iter().filter(|(mac, held)| held.contains(&address) && **mac != from);
                self.queue.extend(holders.map(|(mac, _)| answer(*mac, &frame)));
            }
            for node in 0..self.nodes.len() {
                if self.nodes[node].carrier && self.nodes[node].mac != from {
                    let before = self.nodes[node].announcer.status();
                    let output = self.nodes[node].announcer.frame(INTERFACE, &frame, self.now).unwrap();
                    self.came(node, output, &before);
                }
            }
        }
    }
}
