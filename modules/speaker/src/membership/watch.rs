//! Whether one peer lives, judged by how long nothing came from it.

use std::time::Duration;

use super::Time;

/// How often a node pings those that it watches.
pub(super) const PING_EVERY: Duration = Duration::from_millis(50);
/// After this silence others are asked whether they hear the peer: two pings and their answers were lost, or a node
/// is slow.
const ASK_AFTER: Duration = Duration::from_millis(120);
/// After this silence, of the others, too, the peer is suspected, and told so by everybody.
const SUSPECT_AFTER: Duration = Duration::from_millis(220);
/// After this silence the peer is dead: beyond the 300 ms that a starved node may sleep, and nine lost pings.
const DOWN_AFTER: Duration = Duration::from_millis(450);
/// For a peer that was slow of late: never longer than this, so that its addresses move within a second all the same.
const DOWN_AT_LAST: Duration = Duration::from_millis(900);
/// A suspect has at least this long to object.
const OBJECTION: Duration = Duration::from_millis(200);
/// How long a long silence is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// A peer that we heard within this time is not dead, whoever says so: it becomes a suspect, and may object. Watchers
/// need longer than this, less a ping, to declare a peer dead.
const HEARSAY: Duration = Duration::from_millis(350);

/// What one peer's silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Lives,
    /// Others should be asked.
    Silent,
    Suspect,
    Dead,
}

/// Signs of life of one peer. Times are of the node's own clock, which does not count the time that the node itself
/// was held up.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Last sign of life, through others, too.
    life: Time,
    /// Last datagram, by the caller's clock: what others say of a peer is not less true because we were held up.
    direct: Option<Time>,
    suspected: Option<Time>,
    /// Whether the peer is pinged, so that its silence means something.
    watching: bool,
    /// Longest silence that ended within [`MEMORY`], and when it ended.
    longest: Option<(Duration, Time)>,
}

impl Watch {
    /// Begins to watch: silence counts from now on.
    pub(super) fn start(&mut self, now: Time) {
        self.watching = true;
        self.life = now;
        self.suspected = None;
    }

    /// Does not watch any more.
    pub(super) fn stop(&mut self) {
        self.watching = false;
    }

    /// A sign of life from others' mouths.
    pub(super) fn vouched(&mut self, now: Time) {
        let silence = now.saturating_sub(self.life);
        let longer = self.longest.is_none_or(|(longest, at)| longest <= silence || now > at + MEMORY);
        if longer && self.watching {
            self.longest = Some((silence, now));
        }
        self.life = now;
        self.suspected = None;
    }

    /// A datagram from the peer itself, by the node's own clock and by the caller's.
    pub(super) fn heard(&mut self, own: Time, now: Time) {
        self.vouched(own);
        self.direct = Some(now);
    }

    /// Whether the peer was heard so lately that others' news of its death are doubtful; by the caller's
    /// clock.
    pub(super) fn heard_lately(&self, now: Time) -> bool {
        self.direct.is_some_and(|direct| now < direct + HEARSAY)
    }

    /// The silence that this peer may keep: more if it was slow within the last minute.
    fn allowed(&self, now: Time) -> Duration {
        match self.longest {
            Some((longest, at)) if now <= at + MEMORY => (2 * longest).clamp(DOWN_AFTER, DOWN_AT_LAST),
            _ => DOWN_AFTER,
        }
    }

    pub(super) fn verdict(&mut self, now: Time) -> Verdict {
        let silence = now.saturating_sub(self.life);
        if silence < ASK_AFTER {
            return Verdict::Lives;
        }
        if silence < SUSPECT_AFTER {
            return Verdict::Silent;
        }
        let suspected = *self.suspected.get_or_insert(now);
        if silence >= self.allowed(now) && now >= suspected + OBJECTION {
            return Verdict::Dead;
        }
        Verdict::Suspect
    }

    /// When the verdict may be another, if nothing comes until then.
    pub(super) fn next(&self, now: Time) -> Time {
        let dead = self.life + self.allowed(now);
        let dead = self.suspected.map_or(dead, |suspected| dead.max(suspected + OBJECTION));
        let steps = [self.life + ASK_AFTER, self.life + SUSPECT_AFTER, dead];
        steps.into_iter().find(|step| *step > now).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn silence_is_judged_in_steps() {
        let mut watch = Watch::default();
        watch.start(ms(900));
        watch.heard(ms(1000), ms(1000));
        for (at, verdict, next) in [
            (1000, Verdict::Lives, 1120),
            (1119, Verdict::Lives, 1120),
            (1120, Verdict::Silent, 1220),
            (1220, Verdict::Suspect, 1450),
            (1449, Verdict::Suspect, 1450),
            (1450, Verdict::Dead, 1450),
        ] {
            assert_eq!(watch.verdict(ms(at)), verdict, "{at}");
            assert_eq!(watch.next(ms(at)), ms(next), "{at}");
        }
        watch.vouched(ms(1460));
        assert_eq!(watch.verdict(ms(1470)), Verdict::Lives);
    }

    #[test]
    fn a_peer_that_was_slow_is_waited_for_longer() {
        let mut watch = Watch::default();
        watch.start(ms(0));
        watch.heard(ms(300), ms(300));
        watch.heard(ms(310), ms(310));
        assert_eq!(watch.verdict(ms(310 + 450)), Verdict::Suspect);
        assert_eq!(watch.verdict(ms(310 + 599)), Verdict::Suspect);
        assert_eq!(watch.next(ms(310 + 599)), ms(310 + 450 + 200));
        assert_eq!(watch.verdict(ms(310 + 650)), Verdict::Dead);
        // And no longer a minute later.
        let mut watch = Watch::default();
        watch.start(ms(0));
        watch.heard(ms(440), ms(440));
        watch.start(ms(61_000));
        watch.verdict(ms(61_220));
        assert_eq!(watch.verdict(ms(61_450)), Verdict::Dead);
    }

    #[test]
    fn a_suspect_may_object_even_if_the_judge_comes_late() {
        let mut watch = Watch::default();
        watch.start(ms(0));
        assert_eq!(watch.verdict(ms(700)), Verdict::Suspect);
        assert_eq!(watch.next(ms(700)), ms(900));
        assert_eq!(watch.verdict(ms(900)), Verdict::Dead);
    }
}
