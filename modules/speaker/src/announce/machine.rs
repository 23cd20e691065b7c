//! One address on one interface.

use std::net::IpAddr;

use super::wire::{self, Packet};
use super::{
    BURST, CONFLICT_INTERVAL, DEFEND_INTERVAL, Event, EventKind, HANDOVER, Output, PROBE_INTERVAL,
    PROBE_WAIT, PROBES, State, Status, Time, UPKEEP,
};
use crate::mac::Mac;

/// Where and when something happens, and where its results go.
pub(super) struct Context<'a> {
    pub(super) address: IpAddr,
    pub(super) interface: &'a str,
    pub(super) now: Time,
    pub(super) out: &'a mut Output,
}

impl Context<'_> {
    fn send(&mut self, frame: Vec<u8>) {
        self.out.frames.push((self.interface.to_owned(), frame));
    }

    fn event(&mut self, kind: EventKind) {
        let interface = self.interface.to_owned();
        self.out.events.push(Event { address: self.address, interface, kind });
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// No link. `at_once`: announced when it is back, without probes.
    Down { at_once: bool },
    /// `sent` probes are out; the next, or after the last one the announcement, is due at `next`.
    Probing { sent: u32, next: Time },
    /// In conflict; the next round of probes starts at `until`.
    Waiting { until: Time },
    /// `sent` announcements of the burst are out, or all and upkeep goes on.
    Announced { sent: usize, next: Time, defended: Option<Time>, doubled: Option<(Time, Mac)> },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    phase: Phase,
    /// Who has the address. Stays while it is probed again.
    conflict: Option<Mac>,
    since: Time,
    answered: u64,
    announcements: u64,
    claims: u64,
}

impl Machine {
    pub(super) fn new(at_once: bool, mac: Option<Mac>, cx: &mut Context<'_>) -> Machine {
        let phase = Phase::Down { at_once };
        let mut machine =
            Machine { phase, conflict: None, since: cx.now, answered: 0, announcements: 0, claims: 0 };
        if let Some(mac) = mac {
            machine.start(at_once, mac, cx);
        }
        machine
    }

    pub(super) fn is_announced(&self) -> bool {
        matches!(self.phase, Phase::Announced { .. })
    }

    pub(super) fn conflict(&self) -> Option<Mac> {
        self.conflict
    }

    /// Still wanted; `takeover`: it has become known that a peer announced it until now.
    pub(super) fn hasten(&mut self, takeover: bool, mac: Option<Mac>, cx: &mut Context<'_>) {
        if !takeover || self.conflict.is_some() {
            return;
        }
        match (&mut self.phase, mac) {
            (Phase::Down { at_once }, _) => *at_once = true,
            (Phase::Probing { .. }, Some(mac)) => self.announce(mac, cx),
            _ => {}
        }
    }

    /// Starts the burst anew if the address is announced.
    pub(super) fn again(&mut self, mac: Mac, cx: &mut Context<'_>) {
        if let Phase::Announced { sent, next, doubled, .. } = &mut self.phase {
            (*sent, *next, *doubled) = (0, cx.now, None);
            self.tick(mac, cx);
        }
    }

    /// The link came, went, or has another MAC address.
    pub(super) fn link(&mut self, mac: Option<Mac>, cx: &mut Context<'_>) {
        let at_once = match self.phase {
            Phase::Down { at_once } => at_once,
            Phase::Announced { .. } => true,
            Phase::Probing { .. } | Phase::Waiting { .. } => false,
        };
        match mac {
            Some(mac) => self.start(at_once, mac, cx),
            None => {
                self.phase = Phase::Down { at_once };
                self.since = cx.now;
            }
        }
    }

    fn start(&mut self, at_once: bool, mac: Mac, cx: &mut Context<'_>) {
        if at_once {
            return self.announce(mac, cx);
        }
        if self.conflict.is_none() {
            self.since = cx.now;
            cx.event(EventKind::Probing);
        }
        self.probe_again(mac, cx);
    }

    /// Starts a round of probes.
    pub(super) fn probe_again(&mut self, mac: Mac, cx: &mut Context<'_>) {
        self.probe(0, mac, cx);
    }

    fn probe(&mut self, before: u32, mac: Mac, cx: &mut Context<'_>) {
        cx.send(wire::probe(mac, cx.address));
        let sent = before + 1;
        let pause = if sent < PROBES { PROBE_INTERVAL } else { PROBE_WAIT };
        self.phase = Phase::Probing { sent, next: cx.now + pause };
    }

    /// The address is ours from now on.
    fn announce(&mut self, mac: Mac, cx: &mut Context<'_>) {
        if self.conflict.take().is_some() {
            cx.event(EventKind::ConflictOver);
        }
        if !self.is_announced() {
            self.since = cx.now;
            cx.event(EventKind::Announced);
        }
        self.phase = Phase::Announced { sent: 0, next: cx.now, defended: None, doubled: None };
        self.tick(mac, cx);
    }

    fn yields(&mut self, other: Mac, cx: &mut Context<'_>) {
        if self.conflict != Some(other) {
            if self.conflict.replace(other).is_none() {
                self.since = cx.now;
            }
            cx.event(EventKind::Conflict(other));
        }
        self.phase = Phase::Waiting { until: cx.now + CONFLICT_INTERVAL };
    }

    /// A foreign machine says that it has the address.
    pub(super) fn claimed(&mut self, other: Mac, mac: Mac, cx: &mut Context<'_>) {
        self.claims += 1;
        match &mut self.phase {
            // The next round of probes finds out who has it then: one event in ten seconds, whatever is claimed.
            Phase::Down { .. } | Phase::Waiting { .. } => {}
            Phase::Probing { .. } => self.yields(other, cx),
            // RFC 5227 2.4 (b).
            Phase::Announced { defended: Some(at), .. } if cx.now < *at + DEFEND_INTERVAL => {
                self.yields(other, cx);
            }
            Phase::Announced { defended, .. } => {
                *defended = Some(cx.now);
                self.announcements += 1;
                cx.send(wire::announcement(mac, cx.address));
            }
        }
    }

    /// A member says that it has the address: the next owner, or one that does not know of us.
    pub(super) fn doubled(&mut self, other: Mac, now: Time) {
        // The last words of the owner before us.
        if now < self.since + HANDOVER {
            return;
        }
        if let Phase::Announced { doubled: doubled @ None, .. } = &mut self.phase {
            *doubled = Some((now + HANDOVER, other));
        }
    }

    /// Somebody looks for the address.
    pub(super) fn asked(&mut self, packet: &Packet, foreign: bool, mac: Mac, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Announced { .. } => {
                self.answered += 1;
                cx.send(packet.answer(mac));
            }
            // Two that probe at the same time: both keep away from it (RFC 5227 2.1.1, RFC 4862 5.4.3).
            Phase::Probing { .. } if foreign && packet.is_probe() => {
                self.claims += 1;
                self.yields(packet.speaker(), cx);
            }
            _ => {}
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Down { .. } => None,
            Phase::Probing { next, .. } | Phase::Waiting { until: next } => Some(next),
            Phase::Announced { next, doubled, .. } => Some(doubled.map_or(next, |(at, _)| next.min(at))),
        }
    }

    pub(super) fn tick(&mut self, mac: Mac, cx: &mut Context<'_>) {
        let now = cx.now;
        match &mut self.phase {
            Phase::Probing { sent, next } if *next <= now => match *sent {
                sent if sent < PROBES => self.probe(sent, mac, cx),
                _ => self.announce(mac, cx),
            },
            Phase::Waiting { until } if *until <= now => self.probe_again(mac, cx),
            Phase::Announced { sent, next, doubled, .. } => {
                if let Some((_, other)) = doubled.take_if(|(at, _)| *at <= now) {
                    cx.event(EventKind::Doubled(other));
                    (*sent, *next) = (0, now);
                }
                if *next <= now {
                    // From gap to gap: a late tick makes no heap of announcements.
                    let gap = BURST.get(*sent + 1).map_or(UPKEEP, |at| *at - BURST[*sent]);
                    *sent += usize::from(*sent < BURST.len() - 1);
                    *next = now + gap;
                    self.announcements += 1;
                    cx.send(wire::announcement(mac, cx.address));
                    wire::second_form(mac, cx.address).into_iter().for_each(|frame| cx.send(frame));
                }
            }
            _ => {}
        }
    }

    pub(super) fn status(&self, address: IpAddr, interface: &str) -> Status {
        let state = match self.phase {
            Phase::Down { .. } => State::Down,
            Phase::Announced { .. } => State::Announced,
            Phase::Probing { .. } if self.conflict.is_none() => State::Probing,
            Phase::Probing { .. } | Phase::Waiting { .. } => State::Conflict,
        };
        Status {
            address,
            interface: interface.to_owned(),
            state,
            since: self.since,
            conflict: self.conflict,
            answered: self.answered,
            announcements: self.announcements,
            claims: self.claims,
        }
    }
}
