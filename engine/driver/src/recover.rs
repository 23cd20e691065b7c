//! A node that was lost, or whose change failed: find it, learn what became of it, have it take its change back.

use std::time::{Duration, Instant};

use homelab_model::{Observed, Phase, diff};
use homelab_protocol::{Request, Response};

use crate::engine::{Engine, Live};
use crate::plan::owned;
use crate::transact::{Fate, Job, fate, rolled_back};
use crate::{Event, NodeError, Outcome};

/// How much longer than the confirm timeout a node is asked to take its changes back.
const TAKE_BACK: Duration = Duration::from_secs(5);
/// How much longer than the confirm timeout a lost node is looked for, to say what became of it.
pub(crate) const SEEK: Duration = Duration::from_secs(10);

/// How to go on with a lost node that was found again.
pub(crate) enum Found {
    /// Its changes are made, and wait for a word.
    Go,
    /// It is taking them back.
    Wait,
    /// That is what became of it.
    End(Outcome),
}

impl Engine<'_> {
    /// Whether a farewell has been said: nothing of ours is left, not even a record of it.
    pub(crate) fn is_clean(&self, job: &Job, observed: &Observed) -> bool {
        job.farewell && diff(&owned(observed), &job.live.desired).is_empty()
    }

    /// Looks for a lost node until it must have taken its changes back, to say what became of it. Ok if its
    /// changes are made and wait for a word.
    pub(crate) fn seek(&self, job: &mut Job, error: NodeError) -> Result<(), Outcome> {
        self.observer.event(job.name(), Event::Reconnecting);
        // The node counts from its last word on; a loss that is noticed late still gets a few tries.
        let counted = job.clock + self.options.confirm_timeout + SEEK;
        let end = counted.max(Instant::now() + SEEK);
        let mut error = error;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Outcome::Unsure(error));
            }
            if let Ok(fresh) = self.reopen(&job.target, &job.live.scope, left.min(self.options.answer)) {
                match self.found(job, fresh, error) {
                    (Found::Go, _) => return Ok(()),
                    (Found::End(outcome), _) => return Err(outcome),
                    (Found::Wait, same) => error = same,
                }
            }
            if self.cancelled() {
                return Err(Outcome::Unsure(error));
            }
            self.rest();
        }
    }

    /// Judges what is found on a node that was lost.
    pub(crate) fn found(&self, job: &mut Job, fresh: Live, error: NodeError) -> (Found, NodeError) {
        let restarted = fresh.observed.facts.boot_id != job.before.facts.boot_id;
        let gone = || NodeError::OutOfTurn;
        match fate(&fresh.observed.history, &job.id) {
            Fate::Open(Phase::Applied | Phase::Held) if !restarted => {
                job.drop_fresh();
                job.fresh = Some(fresh);
                (Found::Go, error)
            }
            Fate::Open(Phase::RollingBack | Phase::Applied | Phase::Held) => {
                fresh.line.close();
                (Found::Wait, error)
            }
            Fate::Open(Phase::Armed) => {
                job.drop_fresh();
                job.fresh = Some(fresh);
                let reason = error.to_string();
                (Found::End(self.take_back(job, &reason, Some(error))), gone())
            }
            Fate::Reverted { reason, left } => (Found::End(rolled_back(&reason, Some(error), left)), gone()),
            Fate::Confirmed => {
                job.confirmed = true;
                job.drop_fresh();
                job.fresh = Some(fresh);
                (Found::Go, error)
            }
            Fate::Gone if job.told && self.is_clean(job, &fresh.observed) => {
                job.confirmed = true;
                job.fresh = Some(fresh);
                (Found::Go, error)
            }
            Fate::Gone if job.armed => {
                let left = job.not_as_before(&fresh.observed);
                (Found::End(rolled_back(&error.to_string(), Some(error), left)), gone())
            }
            Fate::Gone => (Found::End(Outcome::Failed(error)), gone()),
        }
    }

    /// Has the node take the transaction back, over whatever session works.
    pub(crate) fn take_back(&self, job: &mut Job, reason: &str, error: Option<NodeError>) -> Outcome {
        self.observer.event(job.name(), Event::RollingBack(reason));
        let end = Instant::now() + self.options.confirm_timeout + TAKE_BACK;
        let request = Request::Rollback { id: job.id.clone(), reason: reason.to_owned() };
        let limit = self.options.confirm_timeout + SEEK;
        let mut lines: Vec<_> = job.fresh.iter().map(|f| f.line.clone()).collect();
        if job.sound {
            lines.push(job.live.line.clone());
        }
        for line in lines {
            if let Ok(Response::RolledBack { left }) = line.get().ask(&request, limit) {
                return rolled_back(reason, error, left);
            }
        }
        job.sound = false;
        job.drop_fresh();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Ok(fresh) = self.reopen(
                &job.target,
                &job.live.scope,
                left.max(Duration::from_secs(1)).min(self.options.answer),
            ) {
                let error_ = |error: Option<NodeError>| error.unwrap_or(NodeError::OutOfTurn);
                match fate(&fresh.observed.history, &job.id) {
                    Fate::Open(_) => {
                        let answer = fresh.line.get().ask(&request, limit);
                        fresh.line.close();
                        if let Ok(Response::RolledBack { left }) = answer {
                            return rolled_back(reason, error, left);
                        }
                    }
                    Fate::Reverted { reason, left } => return rolled_back(&reason, error, left),
                    // It was written down, and what failed came after.
                    Fate::Confirmed => return Outcome::Changed(job.plan.summary()),
                    Fate::Gone if job.told && self.is_clean(job, &fresh.observed) => {
                        return Outcome::Changed(job.plan.summary());
                    }
                    Fate::Gone if job.armed => {
                        let left = job.not_as_before(&fresh.observed);
                        return rolled_back(reason, error, left);
                    }
                    Fate::Gone => return Outcome::Failed(error_(error)),
                }
            }
            if Instant::now() >= end || self.cancelled() {
                return Outcome::Unsure(error.unwrap_or(NodeError::OutOfTurn));
            }
            self.rest();
        }
    }

    /// Waits between two tries.
    pub(crate) fn rest(&self) {
        std::thread::sleep(self.options.pause.clamp(Duration::from_millis(5), Duration::from_millis(500)));
    }
}
