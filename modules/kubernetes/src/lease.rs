//! Who of several controllers is active: `coordination.k8s.io/v1` Lease, by the rules of client-go's leader election
//! (`tools/leaderelection`).
//!
//! Nobody compares clocks. A Lease is taken for run out when it has not changed for its duration as measured here, and who
//! holds it stops well before that. `now` is a clock of this process that never goes back; the wall clock stands in the
//! Lease for people to read, and decides nothing.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

/// Name of the controllers' Lease in homelab's namespace.
pub const CONTROLLER: &str = "homelab-controller";
/// How long a Lease is good after it was last renewed (kube-controller-manager's).
pub const DURATION: Duration = Duration::from_secs(15);
/// How long its holder goes on without a renewal that succeeds.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Time between attempts.
pub const RETRY: Duration = Duration::from_secs(2);

/// One candidate.
#[derive(Debug, Clone)]
pub struct Election {
    /// `holderIdentity`: the node, and what tells this process from others on it.
    identity: String,
    namespace: String,
    /// The Lease as last seen, and when it was first seen so; None: there is none, or nothing is known yet.
    seen: Option<(Lease, Duration)>,
    /// When the last attempt that made or kept us the holder was sent.
    held: Option<Duration>,
}

/// What a candidate does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Attempt {
    /// Creates the Lease.
    Create(Box<Lease>),
    /// Replaces it; its `metadata.resourceVersion` is that of the one that was seen.
    Replace(Box<Lease>),
    /// Another holds it: nothing.
    Wait,
}

impl Election {
    /// A candidate that holds nothing.
    pub fn new(identity: &str, namespace: &str) -> Election {
        Election { identity: identity.to_owned(), namespace: namespace.to_owned(), seen: None, held: None }
    }

    /// Whether it is the active one. It is that for [`DEADLINE`] after the last attempt that succeeded.
    pub fn is_active(&self, now: Duration) -> bool {
        self.held.is_some_and(|held| now < held + DEADLINE)
    }

    /// Who holds the Lease, as far as is known.
    pub fn holder(&self) -> Option<&str> {
        holder(&self.seen.as_ref()?.0)
    }

    /// The Lease was read. `now` is when the answer came: a change is never taken for earlier than it was.
    pub fn observe(&mut self, lease: Option<Lease>, now: Duration) {
        match lease {
            None => {
                self.seen = None;
                self.held = None;
            }
            Some(lease) => {
                if holder(&lease) != Some(self.identity.as_str()) {
                    self.held = None;
                }
                match &mut self.seen {
                    // Who only writes a label does not renew it.
                    Some((before, _)) if before.spec == lease.spec => *before = lease,
                    _ => self.seen = Some((lease, now)),
                }
            }
        }
    }

    /// What to do. `wall` is the time that stands in the Lease.
    pub fn attempt(&self, now: Duration, wall: Timestamp) -> Attempt {
        let Some((lease, since)) = &self.seen else {
            let spec = self.spec(None, wall);
            let metadata = ObjectMeta {
                name: Some(CONTROLLER.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            };
            return Attempt::Create(Box::new(Lease { metadata, spec: Some(spec) }));
        };
        let mine = holder(lease) == Some(self.identity.as_str());
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let lasts = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        if holder(lease).is_some() && !mine && now < *since + lasts {
            return Attempt::Wait;
        }
        let spec = Some(self.spec(lease.spec.as_ref(), wall));
        Attempt::Replace(Box::new(Lease { metadata: lease.metadata.clone(), spec }))
    }

    /// An attempt succeeded: the Lease as the API gave it back, and when the request was sent.
    pub fn succeeded(&mut self, lease: Lease, sent: Duration) {
        self.held = Some(sent);
        self.seen = Some((lease, sent));
    }

    /// Gives the Lease up in order: another takes it at once. The caller has stopped writing.
    pub fn release(&mut self, wall: Timestamp) -> Option<Lease> {
        self.held.take()?;
        let (lease, _) = self.seen.as_ref()?;
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(wall)),
            ..lease.spec.clone()?
        };
        Some(Lease { metadata: lease.metadata.clone(), spec: Some(spec) })
    }

    fn spec(&self, before: Option<&LeaseSpec>, wall: Timestamp) -> LeaseSpec {
        let mine = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(self.identity.as_str()));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before
                .filter(|_| mine)
                .and_then(|spec| spec.acquire_time.clone())
                .or(Some(MicroTime(wall))),
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(if mine || before.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }
}

/// Who holds a Lease; None: nobody.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An API server with one Lease.
    #[derive(Default)]
    struct Server {
        lease: Option<Lease>,
        version: u64,
    }

    impl Server {
        /// One attempt of a candidate: whether it wrote.
        fn step(&mut self, candidate: &mut Election, now: Duration, wall: i64) -> bool {
            candidate.observe(self.lease.clone(), now);
            let attempt = candidate.attempt(now, Timestamp::from_second(wall).unwrap());
            self.write(candidate, attempt, now)
        }

        fn write(&mut self, candidate: &mut Election, attempt: Attempt, sent: Duration) -> bool {
            let version = |lease: &Lease| lease.metadata.resource_version.clone();
            let mut lease = match (attempt, &self.lease) {
                (Attempt::Create(lease), None) => *lease,
                (Attempt::Replace(lease), Some(has)) if version(&lease) == version(has) => *lease,
                _ => return false,
            };
            self.version += 1;
            lease.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(lease.clone());
            candidate.succeeded(lease, sent);
            true
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn transitions(server: &Server) -> i32 {
        server.lease.as_ref().unwrap().spec.as_ref().unwrap().lease_transitions.unwrap()
    }

    #[test]
    fn one_is_active_and_another_takes_over_when_it_is_silent() {
        let mut server = Server::default();
        let [mut a, mut b] = ["node1", "node2"].map(|name| Election::new(name, "homelab-system"));
        // Clocks of processes and of machines have nothing to do with one another.
        let skew = seconds(5000);
        let wall = |second: u64| 1_900_000_000 + second as i64;
        for second in (0..30).step_by(2) {
            assert!(server.step(&mut a, seconds(second), wall(second)));
            assert!(!server.step(&mut b, skew + seconds(second), 5));
            assert!(a.is_active(seconds(second)) && !b.is_active(skew + seconds(second)));
        }
        // a's last renewal was at 28.
        assert!(a.is_active(seconds(37)) && !a.is_active(seconds(38)));
        for second in 29..43 {
            assert!(!server.step(&mut b, skew + seconds(second), 5), "{second}");
        }
        assert!(server.step(&mut b, skew + seconds(43), 5));
        assert!(b.is_active(skew + seconds(43)));
        assert_eq!((b.holder(), transitions(&server)), (Some("node2"), 1));
        // a is back, sees it, and is not active.
        assert!(!server.step(&mut a, seconds(44), wall(44)));
        assert!(!a.is_active(seconds(44)));
        // What was under way on the old version is refused.
        let late = a.attempt(seconds(60), Timestamp::from_second(0).unwrap());
        assert!(server.step(&mut b, skew + seconds(45), 5));
        assert!(!server.write(&mut a, late, seconds(60)));
    }

    #[test]
    fn a_holder_that_goes_in_order_is_followed_at_once() {
        let mut server = Server::default();
        let [mut a, mut b] = ["node1", "node2"].map(|name| Election::new(name, "homelab-system"));
        assert!(server.step(&mut a, seconds(0), 0));
        assert!(!server.step(&mut b, seconds(0), 0));
        let given = a.release(Timestamp::from_second(1).unwrap()).unwrap();
        assert!(!a.is_active(seconds(0)));
        server.lease = Some(given);
        assert!(server.step(&mut b, seconds(1), 0));
        assert!(b.is_active(seconds(1)));
        assert_eq!(a.release(Timestamp::from_second(1).unwrap()), None);
        // Somebody deletes the Lease.
        server.lease = None;
        b.observe(None, seconds(2));
        assert!(!b.is_active(seconds(2)));
        assert!(server.step(&mut a, seconds(3), 0));
        assert!(!server.step(&mut b, seconds(3), 0));
    }

    #[test]
    fn two_are_never_active_at_once_whatever_is_lost() {
        // All in one time, so that it can be seen. Each message may be late by up to the retry time.
        let mut random = 12345_u64;
        let mut next = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let mut server = Server::default();
        let names = ["node1", "node2", "node3"];
        let mut all = names.map(|name| Election::new(name, "homelab-system"));
        let mut changes = std::collections::BTreeSet::new();
        for tenth in 0..200_000_u64 {
            let now = Duration::from_millis(tenth * 100);
            let index = next(3) as usize;
            // Long silences of one or another.
            let silent = (tenth / 300 + index as u64).is_multiple_of(3);
            if next(5) == 0 && !silent {
                let candidate = &mut all[index];
                candidate.observe(server.lease.clone(), now);
                let wall = Timestamp::from_second(next(1_000_000) as i64).unwrap();
                let attempt = candidate.attempt(now, wall);
                server.write(candidate, attempt, now.saturating_sub(Duration::from_millis(next(4000))));
            }
            let active: Vec<usize> = (0..3).filter(|index| all[*index].is_active(now)).collect();
            assert!(active.len() <= 1, "{active:?} at {now:?}");
            changes.extend(active);
        }
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert!(transitions(&server) > 100);
    }
}
