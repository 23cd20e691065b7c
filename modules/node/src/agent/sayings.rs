//! What speakers have to say of addresses, until it stands in Events of their Services. Nobody waits for that.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// So many wait at most, as in client-go (`maxQueuedEvents`); then the oldest goes.
const MOST: usize = 1000;
/// What is older is no news any more.
const STALE: Duration = Duration::from_secs(600);

/// Something about a load-balancer address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saying {
    pub(super) address: IpAddr,
    pub(super) what: What,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// This node announces it from now on; `before` is the node that did so until then.
    Announced { before: Option<String>, protocol: &'static str },
    /// A machine of this MAC address, which is none of ours, answers for it.
    Conflict(String),
}

/// Sayings that wait.
#[derive(Debug, Default)]
pub(super) struct Sayings {
    waiting: Mutex<VecDeque<(Instant, Saying)>>,
    bell: Notify,
}

impl Sayings {
    pub(super) fn push(&self, address: IpAddr, what: What) {
        let mut waiting = self.waiting();
        if waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back((Instant::now(), Saying { address, what }));
        drop(waiting);
        self.bell.notify_one();
    }

    /// The oldest, as soon as there is one. One who stops to wait loses none.
    pub(super) async fn next(&self) -> Saying {
        loop {
            if let Some((_, saying)) = self.waiting().pop_front().filter(|(at, _)| at.elapsed() < STALE) {
                return saying;
            }
            if self.waiting().is_empty() {
                self.bell.notified().await;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Instant, Saying)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_comes_first_and_goes_first() {
        let sayings = Sayings::default();
        let address: IpAddr = "192.168.50.200".parse().unwrap();
        for number in 0..=MOST {
            sayings.push(address, What::Conflict(number.to_string()));
        }
        assert_eq!(sayings.next().await.what, What::Conflict("1".to_owned()));
        assert_eq!(sayings.waiting().len(), MOST - 1);
        sayings.waiting().clear();
        let (next, ()) =
            tokio::join!(sayings.next(), async { sayings.push(address, What::Conflict("x".into())) });
        assert_eq!(next.what, What::Conflict("x".to_owned()));
    }
}
