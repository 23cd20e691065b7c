//! Datagrams as they come in.

use std::time::Duration;

use foca::{Member, State};

use super::id::{Id, screened};
use super::seal::{Admission, Nonce, Opened, Refused, Tag};
use super::swim::LEFT;
use super::wire::{Message, NOTHING};
use super::{Event, Membership};

/// How often a peer is challenged at most because of datagrams of a session that is not proven: recordings can come at
/// any rate.
const CHALLENGE_EVERY: Duration = Duration::from_millis(20);
/// How often a node that is no member is talked to at most because it talks to us.
const CONTACT_AGAIN: Duration = Duration::from_millis(50);
/// How long a question whether we hear a node stands.
const ASKED_FOR: Duration = Duration::from_millis(300);

impl Membership {
    /// Opens a datagram. Nothing happens because of one that does not open.
    pub(super) fn open(&self, datagram: &[u8]) -> Result<(Tag, Opened), Refused> {
        let from = self.seal.sender(datagram)?;
        let peer = self.peers.get(&from).ok_or(Refused::Stranger)?;
        Ok((from, self.seal.open(&peer.link, datagram)?))
    }

    pub(super) fn receive(&mut self, from: Tag, opened: &Opened) -> Result<(), Refused> {
        let own = self.own();
        let peer = self.peers.get_mut(&from).ok_or(Refused::Stranger)?;
        let admission = peer.link.admit(opened);
        if admission == Admission::Replayed {
            return Err(Refused::Replayed);
        }
        let message = Message::decode(&opened.payload).map_err(|_| Refused::Content)?;
        if let Message::Hello { challenge, answer, epoch, boot } = message {
            return self.hello(from, opened, admission, (challenge, answer), (epoch, boot));
        }
        if admission == Admission::Unproven {
            if peer.challenged.is_none_or(|at| own >= at + CHALLENGE_EVERY) {
                peer.challenged = Some(own);
                self.hello_to(from, NOTHING, true);
            }
            return Err(Refused::Unproven);
        }
        self.heard(from);
        self.heed(from, message)
    }

    /// A proof of a session, or the question for one.
    fn hello(
        &mut self,
        from: Tag,
        opened: &Opened,
        admission: Admission,
        (challenge, answer): (Nonce, Nonce),
        (epoch, boot): (u32, u64),
    ) -> Result<(), Refused> {
        let own = self.own();
        let mut fresh = admission == Admission::Fresh;
        let mut started = false;
        if let Some(peer) = self.peers.get_mut(&from)
            && answer != NOTHING
            && peer.link.prove(answer, opened, own)
        {
            started = !fresh;
            fresh = true;
        }
        if fresh {
            self.heard(from);
            if epoch >= self.id.epoch && boot != self.id.boot {
                // An earlier start of this node: ours is the newer one.
                let id = Id { epoch: epoch.saturating_add(1), ..self.id };
                let _ = self.swim(|foca, runtime| foca.change_identity(id, runtime));
            }
        }
        if challenge != NOTHING {
            self.hello_to(from, challenge, !fresh);
        }
        if started {
            // Another start than the last, so no member yet, even if an earlier start is.
            if let Some(peer) = self.peers.get_mut(&from) {
                (peer.contacted, peer.tries) = (Some(own), 0);
            }
            self.announce(from);
        }
        if fresh { Ok(()) } else { Err(Refused::Unproven) }
    }

    /// A new datagram of a proven session.
    fn heard(&mut self, from: Tag) {
        let (own, now) = (self.own(), self.now);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.watch.heard(own, now);
        if peer.up.is_none() {
            // It lives, and is no member: that should not last.
            let soon = peer.contacted.map_or(own, |at| at + CONTACT_AGAIN);
            peer.contact = peer.contact.min(soon);
        }
        for (asker, until) in std::mem::take(&mut peer.askers) {
            if own <= until {
                self.send(asker, &Message::Vouch(from));
            }
        }
    }

    fn heed(&mut self, from: Tag, message: Message) -> Result<(), Refused> {
        match message {
            Message::Hello { .. } => {}
            Message::Swim(datagram) => return self.heed_swim(from, &datagram),
            Message::Ping => self.send(from, &Message::Ack),
            Message::Ack => {}
            Message::Ask(who) => {
                let until = self.own() + ASKED_FOR;
                if let Some(peer) = self.peers.get_mut(&who).filter(|_| who != from) {
                    peer.askers.insert(from, until);
                    self.send(who, &Message::Ping);
                }
            }
            Message::Vouch(who) => {
                let own = self.own();
                if let Some(peer) = self.peers.get_mut(&who) {
                    peer.watch.vouched(own);
                }
            }
            Message::Left { epoch } => self.heed_left(from, epoch),
            Message::Sync(theirs) => {
                let (push, mut want) = self.states.compare(&theirs);
                want.retain(|owner| self.peers.contains_key(owner));
                for owner in push {
                    self.push_state(from, owner);
                }
                if !want.is_empty() {
                    self.send(from, &Message::Want(want));
                }
            }
            Message::Want(owners) => {
                for owner in owners {
                    self.push_state(from, owner);
                }
            }
            Message::State(piece) => {
                let (owner, boot) = (piece.owner, piece.stamp.boot);
                let Some(peer) = self.peers.get(&owner) else { return Ok(()) };
                let (name, current) = (peer.name.clone(), peer.up == Some(boot));
                if self.states.take(piece)
                    && current
                    && let Some((_, bytes)) = self.states.get(owner)
                {
                    let state = Event::State(name, bytes.to_vec());
                    self.event(state);
                }
            }
        }
        Ok(())
    }

    /// A datagram of foca's. Nobody speaks for another; nodes that are not in the table do not exist; and a member
    /// that we hear is not dead because another does not hear it.
    fn heed_swim(&mut self, from: Tag, datagram: &[u8]) -> Result<(), Refused> {
        let now = self.now;
        let known = |id: &Id| id.tag == self.id.tag || self.peers.contains_key(&id.tag);
        let doubt = |member: Member<Id>| {
            let id = *member.id();
            let heard = self
                .peers
                .get(&id.tag)
                .is_some_and(|peer| peer.up == Some(id.boot) && peer.watch.heard_lately(now));
            let doubtful = member.state() == State::Down && member.incarnation() != LEFT && heard;
            let current = || self.record(id.tag).is_some_and(|record| *record.id() == id);
            Some(if doubtful && current() {
                Member::new(id, member.incarnation(), State::Suspect)
            } else {
                member
            })
        };
        let (header, datagram) = screened(datagram, known, doubt).map_err(|_| Refused::Content)?;
        if header.src.tag != from {
            return Err(Refused::Content);
        }
        self.swim(|foca, runtime| foca.handle_data(&datagram, runtime)).map_err(|_| Refused::Content)
    }

    /// The sender has left in order. Others are told by foca's gossip.
    fn heed_left(&mut self, from: Tag, epoch: u32) {
        if self.record(from).is_some_and(|member| member.id().epoch == epoch && member.state() != State::Down)
        {
            self.declare(from, State::Down, LEFT);
        }
    }
}
