//! What is done at its time: pings, judgements, contact with nodes that are no members, comparing states, repetitions.

use std::time::Duration;

use foca::State;
use rand::seq::IteratorRandom;

use super::seal::{Nonce, Tag};
use super::watch::{PING_EVERY, Verdict};
use super::wire::{Message, NOTHING};
use super::{Membership, Repeat, Time, swim};

/// How often a node that is no member is talked to: soon after it was lost or we started, and then forever.
const CONTACT_SOON: Duration = Duration::from_millis(100);
const CONTACT: Duration = Duration::from_millis(500);
const SOON_TRIES: u32 = 5;
/// How often states are compared, and with how many members.
const SYNC_EVERY: Duration = Duration::from_millis(250);
const SYNC_WITH: usize = 2;
/// Members that are asked whether they hear one that we do not.
const HELPERS: usize = 3;

impl Membership {
    /// Pings those that are watched, and judges them.
    pub(super) fn watch_round(&mut self) {
        let own = self.own();
        let ping = own >= self.next_ping;
        if ping {
            self.next_ping = own + PING_EVERY;
        }
        for tag in self.watched.clone() {
            if ping {
                self.send(tag, &Message::Ping);
            }
            let Some(verdict) = self.peers.get_mut(&tag).map(|peer| peer.watch.verdict(own)) else {
                continue;
            };
            if verdict != Verdict::Lives && ping {
                for helper in self.some_members(HELPERS, tag) {
                    self.send(helper, &Message::Ask(tag));
                }
            }
            match verdict {
                Verdict::Suspect if self.record(tag).is_some_and(|m| m.state() == State::Alive) => {
                    self.declare_silent(tag, State::Suspect);
                }
                Verdict::Dead => self.declare_silent(tag, State::Down),
                _ => {}
            }
        }
    }

    /// Random members, without one.
    pub(super) fn some_members(&mut self, number: usize, without: Tag) -> Vec<Tag> {
        let up = self.up();
        up.into_iter().filter(|tag| *tag != without).sample(&mut self.rng, number)
    }

    /// Talks to nodes that are no members, or whose session is not proven.
    pub(super) fn contact_round(&mut self) {
        let own = self.own();
        let due: Vec<Tag> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.wants_contact() && peer.contact <= own)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in due {
            let Some(peer) = self.peers.get_mut(&tag) else { continue };
            peer.tries = peer.tries.saturating_add(1);
            peer.contact = own + if peer.tries <= SOON_TRIES { CONTACT_SOON } else { CONTACT };
            peer.contacted = Some(own);
            if peer.link.is_proven() {
                self.announce(tag);
            } else {
                self.hello_to(tag, NOTHING, true);
            }
        }
    }

    /// Answers a peer's challenge, if there is one, and challenges it if its session is not proven.
    pub(super) fn hello_to(&mut self, tag: Tag, answer: Nonce, challenge: bool) {
        let own = self.own();
        let (epoch, boot) = self.record(tag).map_or((0, 0), |member| (member.id().epoch, member.id().boot));
        let Some(peer) = self.peers.get_mut(&tag) else { return };
        let challenge = if challenge { peer.link.challenge(&mut self.rng, own) } else { NOTHING };
        self.send(tag, &Message::Hello { challenge, answer, epoch, boot });
    }

    /// Compares states with some members.
    pub(super) fn sync_round(&mut self) {
        let own = self.own();
        if own < self.next_sync {
            return;
        }
        self.next_sync = own + SYNC_EVERY;
        let start = usize::try_from(own.as_millis()).unwrap_or_default();
        let digest = self.states.digest(start);
        for tag in self.some_members(SYNC_WITH, self.id.tag) {
            self.send(tag, &Message::Sync(digest.clone()));
        }
    }

    /// Sends the state of `owner` to `to`.
    pub(super) fn push_state(&mut self, to: Tag, owner: Tag) {
        for piece in self.states.pieces(owner) {
            self.send(to, &Message::State(piece));
        }
    }

    /// Sends the node's own state to all members, now and again.
    pub(super) fn push_own(&mut self) {
        if self.states.get(self.id.tag).is_none() || self.leaving {
            return;
        }
        for tag in self.up() {
            self.push_state(tag, self.id.tag);
        }
        self.repeats = swim::repeats(self.own(), Repeat::State);
    }

    /// Tells all members that this node leaves.
    pub(super) fn say_left(&mut self) {
        let left = Message::Left { epoch: self.id.epoch };
        for tag in self.up() {
            self.send(tag, &left);
        }
    }

    pub(super) fn repeat_round(&mut self) {
        let own = self.own();
        let (due, later): (Vec<(Time, Repeat)>, _) =
            std::mem::take(&mut self.repeats).into_iter().partition(|(at, _)| *at <= own);
        self.repeats = later;
        for (_, repeat) in due {
            match repeat {
                Repeat::Left => self.say_left(),
                Repeat::State => {
                    for tag in self.up() {
                        self.push_state(tag, self.id.tag);
                    }
                }
            }
        }
    }
}
