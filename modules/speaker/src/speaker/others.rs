//! What is known of the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::announce::Time;
use crate::mac::Mac;
use crate::state::{MemberState, Members};

/// How long the last word of a node counts whose agent was started again: its kernel carries on meanwhile.
const RESTART: Duration = Duration::from_secs(3);
/// How long an address that nobody announces any more is known to be the cluster's: whoever has it next need not probe.
const RECENT: Duration = Duration::from_secs(30);

/// A member that has said nothing of itself for so long has nothing to say yet: it is starting, and waits for us.
const SPEECHLESS: Duration = Duration::from_millis(200);

/// The other nodes, by name.
#[derive(Debug, Default)]
pub(super) struct Others {
    nodes: BTreeMap<String, Other>,
    /// Addresses that a node announced and does not announce now, and until when that counts.
    recent: BTreeMap<IpAddr, Time>,
}

#[derive(Debug, Default)]
struct Other {
    alive: bool,
    /// When it became a member.
    up: Time,
    state: Option<MemberState>,
    /// MAC addresses that its interfaces have or had: theirs is no foreign machine's claim. One that is started again has
    /// none in its last word, and announces before its first one is heard.
    macs: BTreeSet<Mac>,
    /// It was started again, and has not said anything since: its old word counts until then.
    word_until: Option<Time>,
    down: Option<Time>,
}

impl Other {
    fn announces(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let holds = self.state.iter().flat_map(|state| &state.holds);
        holds.filter(|hold| hold.since_unix_ms.is_some()).map(|hold| hold.address)
    }
}

impl Others {
    pub(super) fn up(&mut self, name: &str, now: Time) {
        let other = self.nodes.entry(name.to_owned()).or_default();
        other.alive = true;
        other.up = now;
        // One that was dead for a while may come back from a power cut.
        other.word_until = (other.down == Some(now)).then_some(now + RESTART);
        if other.word_until.is_none() {
            self.forget(name, now);
        }
    }

    pub(super) fn down(&mut self, name: &str, now: Time) {
        let other = self.nodes.entry(name.to_owned()).or_default();
        other.alive = false;
        other.down = Some(now);
        let announced: Vec<IpAddr> = other.announces().collect();
        self.recent.extend(announced.into_iter().map(|address| (address, now + RECENT)));
    }

    pub(super) fn left(&mut self, name: &str, now: Time) {
        self.down(name, now);
        if let Some(other) = self.nodes.get_mut(name) {
            other.down = None;
        }
        self.forget(name, now);
    }

    /// Its old word counts no more.
    fn forget(&mut self, name: &str, now: Time) {
        let Some(other) = self.nodes.get_mut(name) else { return };
        other.word_until = None;
        let announced: Vec<IpAddr> = other.announces().collect();
        other.state = None;
        self.recent.extend(announced.into_iter().map(|address| (address, now + RECENT)));
    }

    /// A node says something new of itself. Gives what it announces that it was not known to announce.
    pub(super) fn says(&mut self, name: &str, state: Option<MemberState>, now: Time) -> BTreeSet<IpAddr> {
        let other = self.nodes.entry(name.to_owned()).or_default();
        let before: BTreeSet<IpAddr> = other.announces().collect();
        if let Some(state) = &state {
            other.macs.extend(state.interfaces.iter().map(|interface| interface.mac));
        }
        other.state = state;
        other.word_until = None;
        let after: BTreeSet<IpAddr> = other.announces().collect();
        self.recent.extend(before.difference(&after).map(|address| (*address, now + RECENT)));
        // What a foreign machine has is the cluster's no more.
        let holds = other.state.iter().flat_map(|state| &state.holds);
        for lost in holds.filter(|hold| hold.conflict.is_some()) {
            self.recent.remove(&lost.address);
        }
        after.difference(&before).copied().collect()
    }

    pub(super) fn tick(&mut self, now: Time) {
        self.recent.retain(|_, until| now < *until);
        let over = |other: &Other| other.word_until.is_some_and(|until| until <= now);
        let names: Vec<String> =
            self.nodes.iter().filter(|(_, other)| over(other)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.forget(&name, now);
        }
    }

    /// When [`Others::tick`] changes who is eligible.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.nodes.values().filter_map(|other| other.word_until).min()
    }

    /// Until when a node keeps one that starts waiting, which has nobody to wait for longer than `end`: until it has said
    /// something of itself, or has been a member for so long without a word that it must be starting, too.
    pub(super) fn awaited(&self, name: &str, end: Time) -> Time {
        match self.nodes.get(name).filter(|other| other.alive) {
            Some(other) if other.state.is_some() => Time::ZERO,
            Some(other) => end.min(other.up + SPEECHLESS),
            None => end,
        }
    }

    /// Whether all members have said something of themselves.
    pub(super) fn all_said(&self) -> bool {
        self.nodes.values().all(|other| other.state.is_some() || !other.alive)
    }

    /// What members say of themselves.
    pub(super) fn eligible(&self) -> Members {
        let said = |(name, other): (&String, &Other)| Some((name.clone(), other.state.clone()?));
        self.nodes.iter().filter(|(_, other)| other.alive).filter_map(said).collect()
    }

    /// The last word of a node.
    pub(super) fn state(&self, name: &str) -> Option<&MemberState> {
        self.nodes.get(name)?.state.as_ref()
    }

    /// Addresses that others announce, or announced lately.
    pub(super) fn announced(&self) -> BTreeSet<IpAddr> {
        let now = self.nodes.values().filter(|other| other.alive).flat_map(Other::announces);
        now.chain(self.recent.keys().copied()).collect()
    }

    /// MAC addresses of all interfaces of the others, those of dead ones too.
    pub(super) fn macs(&self) -> impl Iterator<Item = Mac> + '_ {
        self.nodes.values().flat_map(|other| other.macs.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Interface;

    #[test]
    fn a_node_that_is_started_again_is_no_foreign_machine_meanwhile() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let interface = Interface { name: "eth0".to_owned(), mac, networks: Vec::new() };
        let word = |interfaces| Some(MemberState { interfaces, ..MemberState::default() });
        let mut others = Others::default();
        others.up("node1", Time::ZERO);
        others.says("node1", word(vec![interface]), Time::ZERO);
        // Its interfaces go while it shuts down.
        others.says("node1", word(Vec::new()), Time::ZERO);
        others.left("node1", Time::ZERO);
        assert!(others.macs().eq([mac]));
        others.up("node1", Time::ZERO);
        assert!(others.macs().eq([mac]));
    }
}
