//! One node's transaction: armed, carried out, seen over a fresh connection, confirmed; or taken back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use homelab_model::{History, NodePlan, Observed, Phase, diff, plan_node};
use homelab_protocol::{Failure, Fault, LOCK_PATIENCE, Request, Response, Transaction};

use crate::engine::{Engine, Live};
use crate::lock::{Heart, Unlocked};
use crate::packages::without;
use crate::plan::owned;
use crate::recover::{Found, SEEK};
use crate::{Event, NodeError, Outcome, Target};

/// A node that is being changed.
pub(crate) struct Job {
    pub(crate) target: Target,
    pub(crate) plan: NodePlan,
    /// The session that holds the node's lock.
    pub(crate) live: Live,
    /// Name of the transaction.
    pub(crate) id: String,
    pub(crate) farewell: bool,
    pub(crate) secrets: BTreeMap<String, String>,
    /// A newer session, over which the changes are judged.
    pub(crate) fresh: Option<Live>,
    pub(crate) begun: Instant,
    /// What the node was before.
    pub(crate) before: Observed,
    /// Whether requests and answers of the first session still belong together.
    pub(crate) sound: bool,
    pub(crate) armed: bool,
    /// From when on the node counts its patience.
    pub(crate) clock: Instant,
    pub(crate) told: bool,
    pub(crate) confirmed: bool,
    /// Bytes of sessions that are over.
    pub(crate) spent: (u64, u64),
}

/// What became of a transaction, as the node's history says.
pub(crate) enum Fate {
    Open(Phase),
    Reverted {
        reason: String,
        left: Vec<String>,
    },
    Confirmed,
    /// The node knows nothing of it.
    Gone,
}

pub(crate) fn fate(history: &History, id: &str) -> Fate {
    match (&history.open, &history.reverted, &history.confirmed) {
        (Some(open), _, _) if open.id == id => Fate::Open(open.phase),
        (_, Some(reverted), _) if reverted.id == id => {
            Fate::Reverted { reason: reverted.reason.clone(), left: reverted.left.clone() }
        }
        (_, _, Some(confirmed)) if confirmed.id == id => Fate::Confirmed,
        _ => Fate::Gone,
    }
}

impl Job {
    pub(crate) fn new(target: Target, plan: NodePlan, live: Live, id: String, farewell: bool) -> Job {
        let before = live.observed.clone();
        let now = Instant::now();
        Job {
            target,
            plan,
            live,
            id,
            farewell,
            secrets: BTreeMap::new(),
            fresh: None,
            begun: now,
            before,
            sound: true,
            armed: false,
            clock: now,
            told: false,
            confirmed: false,
            spent: (0, 0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.target.name
    }

    /// Objects that are not as they were before the transaction.
    pub(crate) fn not_as_before(&self, observed: &Observed) -> Vec<String> {
        let left = diff(&owned(observed), &owned(&self.before));
        left.iter().map(|c| c.key().to_string()).collect()
    }

    fn transaction(&self, engine: &Engine<'_>) -> Transaction {
        let has = |summary: &&String| {
            self.plan.changes.iter().any(|c| {
                c.change.after().is_some_and(|o| crate::keys::any_secret(o) == Some(summary.as_str()))
            })
        };
        // A node hears only the secrets that it is to keep.
        let needed = self.secrets.iter().filter(|(summary, _)| has(summary));
        Transaction {
            id: self.id.clone(),
            by: engine.options.holder(),
            changes: self.plan.bare(),
            scope: self.live.scope.clone(),
            farewell: self.farewell,
            timeout: engine.options.timeout(),
            secrets: needed.map(|(summary, text)| (summary.clone(), text.clone())).collect(),
        }
    }

    /// Ends the newer session.
    pub(crate) fn drop_fresh(&mut self) {
        if let Some(fresh) = self.fresh.take() {
            let (sent, received) = fresh.line.get().traffic();
            self.spent = (self.spent.0 + sent, self.spent.1 + received);
            fresh.line.close();
        }
    }
}

pub(crate) fn rolled_back(reason: &str, error: Option<NodeError>, left: Vec<String>) -> Outcome {
    Outcome::RolledBack { reason: reason.to_owned(), error: error.map(Box::new), left }
}

fn refusal(failure: Failure) -> NodeError {
    match failure.fault {
        Fault::Stale => NodeError::Stale(failure.left),
        _ => NodeError::Failed(failure),
    }
}

impl Engine<'_> {
    /// Arms the transaction, and with `run` carries it out in the same breath.
    pub(crate) fn start(&self, job: &mut Job, heart: &Heart, run: bool) -> Result<(), Outcome> {
        self.observer.event(job.name(), Event::Arming);
        match self.begin(job, run) {
            Err(Outcome::Failed(error @ NodeError::Broken { .. })) if !job.armed => {
                // A session may die while the user reads the plan. As long as nothing was begun a new one will do,
                // if the node is still the one that was planned for.
                let fresh = match self.reopen(&job.target, &job.live.scope, self.options.answer) {
                    Ok(fresh) => fresh,
                    Err(_) => return self.seek(job, error),
                };
                if !matches!(fate(&fresh.observed.history, &job.id), Fate::Gone) {
                    return match self.found(job, fresh, error) {
                        (Found::Go, _) => Ok(()),
                        (Found::End(outcome), _) => Err(outcome),
                        (Found::Wait, error) => self.seek(job, error),
                    };
                }
                let again = plan_node(job.name(), &owned(&fresh.observed), &job.live.desired);
                if without(again) != without(job.plan.clone()) {
                    return Err(Outcome::Failed(NodeError::Stale(Vec::new())));
                }
                self.relock(&job.target, &fresh).map_err(Outcome::Failed)?;
                heart.watch(&fresh.line);
                job.live.line = fresh.line;
                job.before = fresh.observed;
                job.sound = true;
                self.begin(job, run)?;
            }
            other => other?,
        }
        if run && job.fresh.is_none() { self.carry_out(job) } else { Ok(()) }
    }

    /// Takes the lock again over a new session. The old one may hold it for as long as the node has patience.
    fn relock(&self, target: &Target, fresh: &Live) -> Result<(), NodeError> {
        let patience = Duration::from_secs(LOCK_PATIENCE) + Duration::from_secs(5);
        let mut result = self.take_lock(target, &fresh.line, Duration::ZERO);
        if matches!(&result, Err(Unlocked::Busy(holder)) if *holder == self.options.holder()) {
            result = self.take_lock(target, &fresh.line, patience);
        }
        match result {
            Ok(_) => Ok(()),
            Err(Unlocked::Busy(holder)) => Err(NodeError::Busy(holder)),
            Err(Unlocked::Cancelled) => Err(NodeError::Cancelled),
            Err(Unlocked::Lost(error)) => Err(error),
        }
    }

    fn begin(&self, job: &mut Job, run: bool) -> Result<(), Outcome> {
        let begin = Request::Begin(Box::new(job.transaction(self)));
        let line = job.live.line.clone();
        let mut connection = line.get();
        connection.within(self.options.answer + self.options.confirm_timeout);
        let sent =
            connection.send(&begin).and_then(|()| if run { connection.send(&Request::Run) } else { Ok(()) });
        let answer = sent.and_then(|()| connection.receive());
        job.clock = Instant::now();
        match answer {
            Ok(Response::Armed) => {
                job.armed = true;
                Ok(())
            }
            Ok(Response::Failed(failure)) => {
                // The answer to what was sent along with it is still to come.
                job.sound = !run;
                Err(Outcome::Failed(refusal(failure)))
            }
            Ok(_) => {
                job.sound = false;
                drop(connection);
                Err(self.take_back(job, "the node answered out of turn", Some(NodeError::OutOfTurn)))
            }
            Err(error) => {
                job.sound = false;
                Err(Outcome::Failed(error))
            }
        }
    }

    /// Has an armed transaction carried out.
    pub(crate) fn run(&self, job: &mut Job) -> Result<(), Outcome> {
        let sent = {
            let mut connection = job.live.line.get();
            connection.within(self.options.answer);
            connection.send(&Request::Run)
        };
        match sent {
            Ok(()) => self.carry_out(job),
            Err(error) => {
                job.sound = false;
                self.seek(job, error)
            }
        }
    }

    /// Hears of the changes until the last one is made.
    fn carry_out(&self, job: &mut Job) -> Result<(), Outcome> {
        let total = job.plan.changes.len();
        self.observer.event(job.name(), Event::Applying { done: 0, total });
        let line = job.live.line.clone();
        let mut connection = line.get();
        let mut last = 0;
        loop {
            // The node ends a transaction in which nothing moves for so long.
            connection.within(self.options.confirm_timeout + SEEK);
            let answer = connection.receive();
            job.clock = Instant::now();
            match answer {
                Ok(Response::Progress { done }) if done > last && done <= total => {
                    last = done;
                    self.observer.event(job.name(), Event::Applying { done, total });
                }
                Ok(Response::Applied(applied)) => {
                    job.live.observed = applied.observed;
                    return Ok(());
                }
                Ok(Response::Failed(failure)) => {
                    drop(connection);
                    // A refusal leaves what was armed as it is: only a failed run has been undone already.
                    let ran = failure.fault == Fault::Error;
                    let undone = ran && (failure.undone || !failure.left.is_empty());
                    let (reason, left) = (failure.message.clone(), failure.left.clone());
                    let error = refusal(failure);
                    if undone {
                        return Err(rolled_back(&reason, Some(error), left));
                    }
                    return Err(self.take_back(job, &reason, Some(error)));
                }
                Ok(_) => {
                    drop(connection);
                    job.sound = false;
                    let reason = "the node answered out of turn";
                    return Err(self.take_back(job, reason, Some(NodeError::OutOfTurn)));
                }
                Err(error) => {
                    drop(connection);
                    job.sound = false;
                    return self.seek(job, error);
                }
            }
        }
    }

    /// Looks over a fresh connection until nothing differs: a link takes a moment to come up, an agent to report
    /// itself.
    pub(crate) fn verify(&self, job: &mut Job) -> Result<(), Outcome> {
        self.observer.event(job.name(), Event::Verifying);
        if job.fresh.is_none() {
            match self.reopen(&job.target, &job.live.scope, self.options.answer) {
                Ok(fresh) => match fate(&fresh.observed.history, &job.id) {
                    Fate::Reverted { reason, left } => {
                        return Err(rolled_back(&reason, None, left));
                    }
                    _ => job.fresh = Some(fresh),
                },
                Err(error) => self.seek(job, error)?,
            }
        }
        let end = Instant::now() + self.options.settle;
        loop {
            let Some(fresh) = &mut job.fresh else { return Err(Outcome::Failed(NodeError::OutOfTurn)) };
            let left = diff(&owned(&fresh.observed), &job.live.desired);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let objects: Vec<String> = left.iter().map(|c| c.key().to_string()).collect();
                let error = NodeError::Unsettled(objects);
                return Err(self.take_back(job, "the node did not become as desired", Some(error)));
            }
            std::thread::sleep(self.options.pause);
            let looked = fresh.line.get().observe(&fresh.scope);
            match looked {
                Ok(observed) => fresh.observed = observed,
                Err(error) => {
                    job.drop_fresh();
                    self.seek(job, error)?;
                }
            }
        }
    }

    /// Lets the changes stay, or has the node hold them for the user.
    pub(crate) fn confirm_job(&self, job: &mut Job) -> Result<Outcome, Outcome> {
        self.observer.event(job.name(), Event::Confirming);
        let seconds = self.options.hold.map(|hold| hold.as_secs().max(1));
        let request = match seconds {
            Some(seconds) => Request::Hold { id: job.id.clone(), seconds },
            None => Request::Confirm { id: job.id.clone() },
        };
        let summary = job.plan.summary();
        let good = match seconds {
            Some(seconds) => Outcome::Held { summary, seconds },
            None => Outcome::Changed(summary),
        };
        let end = job.clock + self.options.confirm_timeout;
        loop {
            if job.confirmed {
                return Ok(good);
            }
            let Some(fresh) = &mut job.fresh else { return Err(Outcome::Failed(NodeError::OutOfTurn)) };
            let left = (end + SEEK).saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
            let answer = fresh.line.get().ask(&request, left.min(self.options.answer));
            let told = std::mem::replace(&mut job.told, true);
            match answer {
                Ok(Response::Confirmed) => return Ok(good),
                Ok(Response::Failed(failure)) if failure.fault == Fault::NoTransaction => {
                    let looked = fresh.line.get().observe(&fresh.scope);
                    let error = NodeError::Failed(failure);
                    let observed = match looked {
                        Ok(observed) => observed,
                        Err(_) => {
                            job.drop_fresh();
                            self.seek(job, error)?;
                            continue;
                        }
                    };
                    return match fate(&observed.history, &job.id) {
                        Fate::Confirmed => Ok(good),
                        Fate::Reverted { reason, left } => Err(rolled_back(&reason, None, left)),
                        Fate::Open(_) => Err(self.take_back(job, "the node cannot confirm it", Some(error))),
                        Fate::Gone if told && self.is_clean(job, &observed) => Ok(good),
                        Fate::Gone => {
                            let left = job.not_as_before(&observed);
                            let reason = "the node no longer knew of the change";
                            Err(rolled_back(reason, Some(error), left))
                        }
                    };
                }
                Ok(Response::Failed(failure)) => {
                    let reason = failure.message.clone();
                    return Err(self.take_back(job, &reason, Some(NodeError::Failed(failure))));
                }
                Ok(_) => {
                    let reason = "the node answered out of turn";
                    return Err(self.take_back(job, reason, Some(NodeError::OutOfTurn)));
                }
                Err(error) => {
                    job.drop_fresh();
                    if Instant::now() >= end {
                        return Err(Outcome::Unsure(error));
                    }
                    self.seek(job, error)?;
                    if !job.confirmed {
                        self.rest();
                    }
                }
            }
        }
    }
}
