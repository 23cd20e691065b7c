//! What a node says of its addresses on the wire: the part of RFC 5227 (IPv4) and of RFC 4862 with RFC 4861 (IPv6) that is
//! about one address and not about how a machine gets its own.
//!
//! ```text
//!                        nobody announced it                         nobody answered
//!   wanted here ──────────────────────────────────> Probing ───────────────────────────┐
//!        │                                           │   ^                             │
//!        │ a peer announced it                       │   │ 10 s                        v
//!        └───────────────────────────────────────────┼───┼────────────────────────> Announced
//!                                       somebody did v   │  second claim in 10 s      │   ^
//!                                                 Conflict <───────────────────────────┘   │ link is back
//!                                                            link lost: Down ──────────────┘
//! ```
//!
//! Each address has a machine of its own on each interface: what a foreign host does on one LAN says nothing about another.
//! An [`Announcer`] has no clock, no socket and no chance in it. Who drives it hands over what a socket has before it calls
//! [`Announcer::tick`], so that an answer that waited is not overlooked.

mod machine;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::frame::FrameError;
use crate::mac::Mac;
use machine::{Context, Machine};
use wire::Packet;

/// Time since any fixed moment. Never goes back.
pub type Time = Duration;

/// Probes before an address that nobody announced is announced (RFC 5227: PROBE_NUM).
pub const PROBES: u32 = 3;
/// From one probe to the next. RFC 5227 takes 1 to 2 s, at random, so that machines which were switched on together do not
/// speak together; here one node alone probes for an address.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// From the last probe to the announcement (RFC 5227: ANNOUNCE_WAIT, 2 s). A machine on the LAN answers in milliseconds, one
/// that sleeps on a wireless network within its beacons, some 100 ms each. Who answers later is noticed afterwards.
pub const PROBE_WAIT: Duration = Duration::from_millis(400);
/// When the announcements of a burst are sent, from its start. RFC 5227 has two of them, 2 s apart; any of these may be lost.
pub const BURST: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(350),
    Duration::from_millis(750),
    Duration::from_millis(1500),
];
/// From one announcement to the next afterwards, for as long as the address is announced.
pub const UPKEEP: Duration = Duration::from_secs(10);
/// A second foreign claim in this time makes an address yield (RFC 5227: DEFEND_INTERVAL).
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// From a conflict to the next round of probes.
pub const CONFLICT_INTERVAL: Duration = Duration::from_secs(10);
/// How long a member's claim to an address of ours may be that of its next owner, of which we have not heard yet.
pub const HANDOVER: Duration = Duration::from_secs(1);

/// An address that this node is to announce.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// On these interfaces.
    pub interfaces: BTreeSet<String>,
    /// A peer announced it until now: nobody else can have it, and clients wait. It is not probed first.
    pub takeover: bool,
}

/// What is to be sent, and what happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Output {
    /// Interfaces and whole frames, in order.
    pub frames: Vec<(String, Vec<u8>)>,
    /// Events, in order.
    pub events: Vec<Event>,
}

/// Something that people want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Address.
    pub address: IpAddr,
    /// On which interface.
    pub interface: String,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It is being probed.
    Probing,
    /// It is announced from now on.
    Announced,
    /// It is not wanted here any more.
    Released,
    /// A foreign machine has it, so it is not announced.
    Conflict(Mac),
    /// No foreign machine has it any more.
    ConflictOver,
    /// A member announces it too, and has done so for longer than a handover takes: the network was parted, or is. It is
    /// announced again, so that what the other said does not last.
    Doubled(Mac),
}

/// Where an address stands on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The interface is not there, or has no carrier.
    Down,
    /// Nobody has claimed it so far.
    Probing,
    /// It is ours.
    Announced,
    /// A foreign machine has it.
    Conflict,
}

/// An address on an interface, as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Address.
    pub address: IpAddr,
    /// Interface.
    pub interface: String,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// The foreign machine that has it.
    pub conflict: Option<Mac>,
    /// Requests and solicitations that were answered.
    pub answered: u64,
    /// Announcements that were sent; the two forms of ARP count as one.
    pub announcements: u64,
    /// Foreign claims to it.
    pub claims: u64,
}

/// The announcements of one node.
#[derive(Debug, Clone, Default)]
pub struct Announcer {
    /// Interfaces with carrier.
    interfaces: BTreeMap<String, Mac>,
    members: BTreeSet<Mac>,
    addresses: BTreeMap<IpAddr, BTreeMap<String, Machine>>,
}

impl Announcer {
    /// One that announces nothing.
    pub fn new() -> Announcer {
        Announcer::default()
    }

    /// The addresses that are this node's, all of them. Those that stay are left as they are, but for one that is being probed
    /// and turns out to have been a peer's: it is announced at once.
    pub fn set(&mut self, wanted: &BTreeMap<IpAddr, Wanted>, now: Time) -> Output {
        let mut out = Output::default();
        for (&address, machines) in &mut self.addresses {
            let stay = wanted.get(&address).map(|w| &w.interfaces);
            machines.retain(|interface, _| {
                let stays = stay.is_some_and(|names| names.contains(interface));
                if !stays {
                    let kind = EventKind::Released;
                    out.events.push(Event { address, interface: interface.clone(), kind });
                }
                stays
            });
        }
        for (&address, wanted) in wanted {
            let machines = self.addresses.entry(address).or_default();
            let at_once = wanted.takeover || machines.values().any(Machine::is_announced);
            for interface in &wanted.interfaces {
                let mac = self.interfaces.get(interface).copied();
                let mut cx = Context { address, interface, now, out: &mut out };
                match machines.get_mut(interface) {
                    Some(machine) => machine.hasten(wanted.takeover, mac, &mut cx),
                    None => {
                        machines.insert(interface.clone(), Machine::new(at_once, mac, &mut cx));
                    }
                }
            }
        }
        self.addresses.retain(|_, machines| !machines.is_empty());
        out
    }

    /// Announces these addresses once more, in a burst, as far as they are announced: somebody else did, too, and clients may
    /// know the wrong one.
    pub fn again(&mut self, addresses: &BTreeSet<IpAddr>, now: Time) -> Output {
        let mut out = Output::default();
        for (&address, machines) in &mut self.addresses {
            if !addresses.contains(&address) {
                continue;
            }
            for (interface, machine) in machines {
                if let Some(&mac) = self.interfaces.get(interface) {
                    machine.again(mac, &mut Context { address, interface, now, out: &mut out });
                }
            }
        }
        out
    }

    /// An interface has this MAC address now, and carrier; None: it is not there or has no carrier. What was announced before
    /// is announced again at once.
    pub fn interface(&mut self, name: &str, mac: Option<Mac>, now: Time) -> Output {
        let mut out = Output::default();
        let before = match mac {
            Some(mac) => self.interfaces.insert(name.to_owned(), mac),
            None => self.interfaces.remove(name),
        };
        if before == mac {
            return out;
        }
        for (&address, machines) in &mut self.addresses {
            if let Some(machine) = machines.get_mut(name) {
                machine.link(mac, &mut Context { address, interface: name, now, out: &mut out });
            }
        }
        out
    }

    /// The MAC addresses of all interfaces of all members: never a conflict.
    pub fn members(&mut self, macs: BTreeSet<Mac>, now: Time) -> Output {
        let mut out = Output::default();
        self.members = macs;
        for (&address, machines) in &mut self.addresses {
            for (interface, machine) in machines {
                let Some(&mac) = self.interfaces.get(interface) else { continue };
                if machine.conflict().is_some_and(|other| self.members.contains(&other)) {
                    machine.probe_again(mac, &mut Context { address, interface, now, out: &mut out });
                }
            }
        }
        out
    }

    /// A frame that came in. Errors are for counters: any machine on the LAN can cause them. Frames that are none of ours are
    /// no errors.
    pub fn frame(&mut self, interface: &str, frame: &[u8], now: Time) -> Result<Output, FrameError> {
        let mut out = Output::default();
        let Some(&mac) = self.interfaces.get(interface) else { return Ok(out) };
        let packet = Packet::parse(frame)?;
        let speaker = packet.speaker();
        // A promiscuous interface hears what is for others; a switch or bridge may return what we said.
        if !(packet.destination().is_group() || packet.destination() == mac) || speaker == mac {
            return Ok(out);
        }
        let own = self.interfaces.values().any(|other| *other == speaker);
        let foreign = !own && !self.members.contains(&speaker);
        let (claim, question) = (packet.claim(), packet.question());
        if let Some((address, machine)) = claim.and_then(|address| self.machine(address, interface)) {
            let mut cx = Context { address, interface, now, out: &mut out };
            match (foreign, own) {
                (true, _) => machine.claimed(speaker, mac, &mut cx),
                (_, false) => machine.doubled(speaker, now),
                _ => {}
            }
        }
        // An announcement in the form of a request is no question.
        let question = question.filter(|_| question != claim);
        if let Some((address, machine)) = question.and_then(|address| self.machine(address, interface)) {
            let mut cx = Context { address, interface, now, out: &mut out };
            machine.asked(&packet, foreign, mac, &mut cx);
        }
        Ok(out)
    }

    fn machine(&mut self, address: IpAddr, interface: &str) -> Option<(IpAddr, &mut Machine)> {
        self.addresses.get_mut(&address)?.get_mut(interface).map(|machine| (address, machine))
    }

    /// Does what is due. Afterwards [`Announcer::next_deadline`] is later than `now`.
    pub fn tick(&mut self, now: Time) -> Output {
        let mut out = Output::default();
        for (&address, machines) in &mut self.addresses {
            for (interface, machine) in machines {
                if let Some(&mac) = self.interfaces.get(interface) {
                    machine.tick(mac, &mut Context { address, interface, now, out: &mut out });
                }
            }
        }
        out
    }

    /// When [`Announcer::tick`] has something to do next, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Time> {
        self.machines().filter_map(|(_, _, machine)| machine.deadline()).min()
    }

    /// All addresses on all their interfaces, sorted.
    pub fn status(&self) -> Vec<Status> {
        self.machines().map(|(address, interface, machine)| machine.status(address, interface)).collect()
    }

    fn machines(&self) -> impl Iterator<Item = (IpAddr, &str, &Machine)> {
        self.addresses
            .iter()
            .flat_map(|(address, machines)| machines.iter().map(|(name, m)| (*address, name.as_str(), m)))
    }
}
