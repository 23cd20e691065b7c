//! foca's side: its settings, its timers, and what its members mean for ours.

use std::iter::once;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{AccumulatingRuntime, Config, Foca, Incarnation, NoCustomBroadcast, PeriodicParams, State, Timer};
use rand::rngs::StdRng;

use super::id::{Id, Records};
use super::seal::{MAX_PAYLOAD, Tag};
use super::wire::Message;
use super::{Event, Membership, Repeat, Standing, Time};

type Swim = Foca<Id, Records, StdRng, NoCustomBroadcast>;

/// foca's own probes: for members that nobody watches because all of their watchers died with them.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
const PROBE_RTT: Duration = Duration::from_millis(400);
/// How long a member that failed foca's own probe may object.
const SUSPECT_TO_DOWN: Duration = Duration::from_secs(2);
/// How often news are passed on to [`FANOUT`] members, while there are any.
const GOSSIP_EVERY: Duration = Duration::from_millis(100);
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// A member that foca wants to declare dead and that we hear gets this much longer.
const RECONSIDER: Duration = Duration::from_millis(500);
/// Members that a node watches: all of them in a cluster of up to five nodes, else its next in the ring of tags.
const NEIGHBOURS: usize = 4;
/// When a message to all members is repeated, in case it was lost.
const REPEATS: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(45)];

/// Incarnation of a dead member that says it has left in order. The living do not have it: foca renews their identity
/// instead.
pub(super) const LEFT: Incarnation = Incarnation::MAX;

pub(super) fn repeats(own: Time, what: Repeat) -> Vec<(Time, Repeat)> {
    REPEATS.iter().map(|after| (own + *after, what)).collect()
}

/// foca's settings for a cluster of about `nodes` nodes.
pub(super) fn config(nodes: usize) -> Config {
    let rounds = u8::try_from(3 * nodes).unwrap_or(u8::MAX).max(10);
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: FANOUT,
        // News told to all at once, and twice more.
        max_transmissions: NonZeroU8::new(rounds).unwrap_or(NonZeroU8::MAX),
        suspect_to_down_after: SUSPECT_TO_DOWN,
        // Nodes of the table are few, and come back with another epoch.
        remove_down_after: None,
        // A byte is for the kind of message.
        max_packet_size: NonZeroUsize::new(MAX_PAYLOAD - 1).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: GOSSIP_EVERY, num_members: FANOUT }),
    }
}

impl Membership {
    /// Lets foca do something, and does what it asks for.
    pub(super) fn swim(
        &mut self,
        act: impl FnOnce(&mut Swim, &mut AccumulatingRuntime<Id>) -> Result<(), foca::Error>,
    ) -> Result<(), foca::Error> {
        let mut runtime = AccumulatingRuntime::new();
        let result = act(&mut self.foca, &mut runtime);
        while let Some((to, datagram)) = runtime.to_send() {
            self.send(to.tag, &Message::Swim(datagram.to_vec()));
        }
        let own = self.own();
        while let Some((after, timer)) = runtime.to_schedule() {
            self.timers.insert((own + after, self.submitted), timer);
            self.submitted += 1;
        }
        self.reconcile();
        result
    }

    /// The settings follow the size of the table.
    pub(super) fn resize(&mut self) {
        let config = config(self.peers.len() + 1);
        // foca refuses only changes of what is the same in all of our configurations.
        let _ = self.foca.set_config(config);
    }

    /// Runs foca's timers.
    pub(super) fn swim_round(&mut self) {
        let own = self.own();
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= own) {
            let timer = entry.remove();
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer
                && self.peers.get(&member_id.tag).is_some_and(|peer| peer.watch.heard_lately(self.now))
            {
                self.timers.insert((own + RECONSIDER, self.submitted), timer);
                self.submitted += 1;
                continue;
            }
            // The only error, a probe that was cut short, mends itself.
            let _ = self.swim(|foca, runtime| foca.handle_timer(timer, runtime));
        }
    }

    /// What foca knows of a node: identity, incarnation, state.
    pub(super) fn record(&self, tag: Tag) -> Option<foca::Member<Id>> {
        self.foca.iter_membership_state().find(|member| member.id().tag == tag).cloned()
    }

    /// Says of a member that is silent that it is suspect or dead, to everybody.
    pub(super) fn declare_silent(&mut self, tag: Tag, state: State) {
        if let Some(member) = self.record(tag) {
            self.declare(tag, state, member.incarnation());
        }
    }

    /// Asks a node to take us for a member, and to say who else is one. Only the tag of its identity matters.
    pub(super) fn announce(&mut self, tag: Tag) {
        let anyone = Id { tag, epoch: 0, boot: 0 };
        let _ = self.swim(|foca, runtime| foca.announce(anyone, runtime));
    }

    /// Says something of a member to everybody.
    pub(super) fn declare(&mut self, tag: Tag, state: State, incarnation: Incarnation) {
        let Some(member) = self.record(tag) else { return };
        let news = foca::Member::new(*member.id(), incarnation, state);
        let _ = self.swim(|foca, runtime| foca.apply_many(once(news), true, runtime));
        let everybody = NonZeroUsize::new(self.foca.num_members()).unwrap_or(NonZeroUsize::MIN);
        let usual = config(self.peers.len() + 1);
        let _ = self.foca.set_config(Config { num_indirect_probes: everybody, ..usual });
        let _ = self.swim(|foca, runtime| foca.gossip(runtime));
        self.resize();
    }

    /// A node that is no longer in the table. Others find out by their own tables.
    pub(super) fn expel(&mut self, tag: Tag) {
        if let Some(member) = self.record(tag) {
            let news = foca::Member::new(*member.id(), LEFT, State::Down);
            let _ = self.swim(|foca, runtime| foca.apply_many(once(news), false, runtime));
        }
        self.peers.remove(&tag);
        self.states.forget(tag);
        self.watched.retain(|watched| *watched != tag);
    }

    /// Compares foca's members with ours, and says what has changed.
    fn reconcile(&mut self) {
        if *self.foca.identity() != self.id {
            self.id = *self.foca.identity();
            self.states.restamp(self.id.tag, self.id.epoch);
            self.push_own();
            let own = self.own();
            for peer in self.peers.values_mut().filter(|peer| peer.up.is_none()) {
                peer.contact = own;
            }
        }
        let members: Vec<foca::Member<Id>> = self.foca.iter_membership_state().cloned().collect();
        for member in members {
            self.reconcile_one(&member);
        }
        let up = self.up();
        let after = up.partition_point(|tag| *tag < self.id.tag);
        let watched: Vec<Tag> = up[after..].iter().chain(&up[..after]).take(NEIGHBOURS).copied().collect();
        let own = self.own();
        for (tag, peer) in &mut self.peers {
            match (self.watched.contains(tag), watched.contains(tag)) {
                (false, true) => peer.watch.start(own),
                (true, false) => peer.watch.stop(),
                _ => {}
            }
        }
        self.watched = watched;
    }

    fn reconcile_one(&mut self, member: &foca::Member<Id>) {
        let (own, now) = (self.own(), self.now);
        let id = member.id();
        let Some(peer) = self.peers.get_mut(&id.tag) else { return };
        let name = peer.name.clone();
        let standing = match member.state() {
            State::Alive => Standing::Alive,
            State::Suspect => Standing::Suspect,
            State::Down if peer.up.is_none() => peer.standing,
            State::Down if member.incarnation() == LEFT => Standing::Left,
            State::Down => Standing::Down,
        };
        if standing.is_member() && peer.up == Some(id.boot) && member.incarnation() > peer.incarnation {
            // It has objected to a suspicion: so it lives.
            peer.watch.vouched(own);
        }
        peer.incarnation = member.incarnation();
        if peer.standing != standing || peer.up.is_some_and(|boot| boot != id.boot) {
            peer.standing = standing;
            peer.since = now;
        }
        let before = peer.up;
        peer.up = standing.is_member().then_some(id.boot);
        if before == peer.up {
            return;
        }
        if before.is_some() {
            (peer.contact, peer.tries) = (own, 0);
            peer.contacted = Some(own);
            self.event(if standing == Standing::Left {
                Event::Left(name.clone())
            } else {
                Event::Down(name.clone())
            });
        }
        if standing.is_member() {
            self.event(Event::Up(name.clone()));
            self.push_state(id.tag, self.id.tag);
            if let Some((stamp, bytes)) = self.states.get(id.tag)
                && stamp.boot == id.boot
            {
                let state = Event::State(name, bytes.to_vec());
                self.event(state);
            }
        }
    }
}
