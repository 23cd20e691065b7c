//! Carry out a plan: the first node alone, then batches; or all nodes at once where nothing else works.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use homelab_model::{Change, Impact, LinkKind, NodeObject, NodePlan, Spec};

use crate::engine::{Aim, Engine, Goal, Prepared};
use crate::lock::Heart;
use crate::plan::owned;
use crate::reach::{Reach, tunnel};
use crate::transact::Job;
use crate::{ApplyError, Event, KubernetesOutcome, NodeError, NodeReport, Outcome, Report, parallel};

/// Whether the plan moves a node's tunnel to another network: meanwhile it understands nobody else. The link may get
/// another name on the way, as the usual one does with another VNI.
fn moves_tunnel(plan: &NodePlan) -> bool {
    let place = |o: &NodeObject| match &o.spec {
        Spec::Link(l) => match l.kind {
            LinkKind::Vxlan { vni, port, .. } => Some((vni, port)),
            _ => None,
        },
        _ => None,
    };
    let places = |side: fn(&Change<NodeObject>) -> Option<&NodeObject>| -> BTreeSet<(u32, u16)> {
        plan.changes.iter().filter_map(|c| side(&c.change)).filter_map(place).collect()
    };
    let (before, after) = (places(Change::before), places(Change::after));
    !before.is_empty() && !after.is_empty() && before != after
}

/// How many of the next nodes, given whether each is disrupted, are changed at once: at most `size`, and no more
/// disrupted ones than there is `room` for.
fn next_batch(disrupted: &[bool], size: usize, room: Option<usize>) -> usize {
    let mut used = 0;
    for (index, disrupted) in disrupted.iter().enumerate().take(size.max(1)) {
        if *disrupted {
            used += 1;
            if room.is_some_and(|room| used > room) {
                return index;
            }
        }
    }
    disrupted.len().min(size.max(1))
}

/// Nodes to be changed, each with its place among the chosen ones.
pub(crate) type Jobs = Vec<(usize, Job)>;
/// The same, with what went wrong.
type Stopped = Vec<(usize, Job, Option<Outcome>)>;

/// How it went on a node.
pub(crate) struct Done {
    index: usize,
    name: String,
    outcome: Outcome,
    elapsed: Duration,
    traffic: (u64, u64),
}

impl Engine<'_> {
    /// Carries out exactly the prepared plan, and locks the nodes first if [`Engine::lock`] has not. The first
    /// failure stops the roll-out: the failed node is as before, nodes that are done stay. All sessions and locks end.
    pub fn apply(&self, mut prepared: Prepared) -> Result<Report, ApplyError> {
        let result = self.apply_prepared(&mut prepared);
        prepared.hang_up(self.options.parallel);
        result
    }

    fn apply_prepared(&self, prepared: &mut Prepared) -> Result<Report, ApplyError> {
        let room = self.room(prepared)?;
        let empty = |p: &NodePlan| p.changes.is_empty();
        if prepared.plan.nodes.iter().any(|n| n.outcome.as_ref().is_ok_and(|p| !empty(p)))
            && !self.cancelled()
        {
            self.lock(prepared)?;
        }
        let heart = prepared.heart.take().unwrap_or_else(Heart::new);
        let destroy = matches!(prepared.aim, Aim::Goal(Goal::Destroyed));
        let mut api = prepared.plan.kubernetes.take();
        let mut kubernetes = None;
        // What agents no longer use goes when they have stopped to.
        let late = destroy || prepared.cluster.kubernetes.is_none();
        if let Some(planned) = api.take_if(|_| !late) {
            // What nodes are about to be given must be there first.
            match self.apply_kubernetes(&planned) {
                KubernetesOutcome::Failed { error, .. } => return Err(ApplyError::Kubernetes(error)),
                outcome => kubernetes = Some(outcome),
            }
        }
        let secrets = if self.cancelled() { BTreeMap::new() } else { self.secrets(prepared)? };
        let mut reach = if destroy { Reach::default() } else { self.look_around(prepared) };
        reach.port = prepared.cluster.network.vxlan.port;
        let mut report = Report::default();
        let mut outcomes: BTreeMap<usize, (Outcome, Duration)> = BTreeMap::new();
        let mut heads = Vec::new();
        let mut jobs = Vec::new();
        for (index, node) in std::mem::take(&mut prepared.plan.nodes).into_iter().enumerate() {
            heads.push((node.name.clone(), node.address));
            let plan = match node.outcome {
                Err(error) => {
                    outcomes.insert(index, (Outcome::Unplanned(error), Duration::ZERO));
                    continue;
                }
                Ok(plan) => plan,
            };
            if plan.changes.is_empty() {
                if let Some(live) = prepared.live.get(&node.name) {
                    reach.is_ready(&node.name, tunnel(&live.desired));
                }
                outcomes.insert(index, (Outcome::Unchanged, Duration::ZERO));
                continue;
            }
            let (Some(live), Some(target)) =
                (prepared.live.remove(&node.name), prepared.targets.get(&node.name))
            else {
                continue;
            };
            let farewell = live.desired.is_empty();
            let mut job = Job::new(target.clone(), plan, live, self.fresh_id(), farewell);
            job.secrets.clone_from(&secrets);
            jobs.push((index, job));
        }
        let installed = if self.cancelled() { Ok(jobs) } else { self.install(jobs) };
        let (jobs, failed) = match installed {
            Ok(jobs) => (jobs, Vec::new()),
            Err(failed) => (Vec::new(), failed),
        };
        let together = jobs.iter().filter(|(_, job)| moves_tunnel(&job.plan)).count() > 1;
        let done = if self.cancelled() {
            jobs.into_iter().map(|(index, job)| self.over(index, job, Outcome::NotStarted)).collect()
        } else if together {
            self.together(jobs, &heart, &reach)
        } else {
            self.rolling(jobs, &heart, &reach, room, prepared.cluster.nodes.len())
        };
        for node in failed.into_iter().chain(done) {
            report.traffic = (report.traffic.0 + node.traffic.0, report.traffic.1 + node.traffic.1);
            outcomes.insert(node.index, (node.outcome, node.elapsed));
        }
        report.warnings = reach.warnings();
        report.nodes = heads
            .into_iter()
            .enumerate()
            .map(|(index, (name, address))| {
                let (outcome, elapsed) =
                    outcomes.remove(&index).unwrap_or((Outcome::NotStarted, Duration::ZERO));
                NodeReport { name, address, outcome, elapsed }
            })
            .collect();
        report.kubernetes = kubernetes;
        if let Some(planned) = api {
            // A node that could not be cleaned still uses its account.
            let clean = report.nodes.iter().all(|n| n.outcome.is_good());
            let outcome = if clean { self.apply_kubernetes(&planned) } else { KubernetesOutcome::NotStarted };
            report.kubernetes = Some(outcome);
        }
        Ok(report)
    }

    /// How many nodes may be disrupted at once; an error if that is not enough to begin.
    fn room(&self, prepared: &Prepared) -> Result<Option<usize>, ApplyError> {
        let total = prepared.cluster.nodes.len();
        let Some(allowed) = self.options.max_unavailable.map(|most| most.of(total)) else { return Ok(None) };
        let gone = |n: &&homelab_model::Node| !prepared.live.contains_key(&n.name);
        let unavailable: Vec<String> =
            prepared.cluster.nodes.iter().filter(gone).map(|n| n.name.clone()).collect();
        let room = allowed.checked_sub(unavailable.len());
        let disruptive = prepared.plan.impact() == Impact::Disruptive;
        let plans = || prepared.plan.nodes.iter().filter_map(|n| n.outcome.as_ref().ok());
        if plans().filter(|p| moves_tunnel(p)).count() > 1 {
            let disrupted = plans().filter(|p| p.impact() == Impact::Disruptive);
            let nodes: Vec<String> = disrupted.map(|p| p.node.clone()).collect();
            if nodes.len() > room.unwrap_or(0) {
                return Err(ApplyError::OnlyTogether { nodes, allowed });
            }
        }
        match room {
            Some(room) if room > 0 || !disruptive => Ok(Some(room)),
            _ => Err(ApplyError::TooManyUnavailable { unavailable, allowed }),
        }
    }

    fn look_around(&self, prepared: &Prepared) -> Reach {
        let planned = prepared.plan.nodes.iter().filter(|n| n.outcome.is_ok());
        let tunnels = planned
            .filter_map(|n| prepared.live.get(&n.name).map(|live| (&n.name, live)))
            .map(|(name, live)| (name.clone(), (live.line.clone(), tunnel(&owned(&live.observed)))))
            .collect();
        self.reach_before(tunnels)
    }

    fn rolling(
        &self,
        mut jobs: Jobs,
        heart: &Heart,
        reach: &Reach,
        room: Option<usize>,
        total: usize,
    ) -> Vec<Done> {
        let most = self.options.batch.map_or(usize::MAX, |batch| batch.of(total)).min(self.options.parallel);
        let mut all = Vec::new();
        // The first node shows whether the change is a good one.
        let mut size = 1;
        let mut failed = false;
        while !jobs.is_empty() && !failed && !self.cancelled() {
            let disrupted: Vec<bool> =
                jobs.iter().map(|(_, job)| job.plan.impact() == Impact::Disruptive).collect();
            let count = next_batch(&disrupted, size, room);
            if count == 0 {
                break;
            }
            let rest = jobs.split_off(count);
            let batch = std::mem::replace(&mut jobs, rest);
            let done = parallel::map(batch, self.options.parallel, |(index, mut job)| {
                job.begun = Instant::now();
                if self.cancelled() {
                    return self.over(index, job, Outcome::NotStarted);
                }
                let outcome = self.whole(&mut job, heart, reach).unwrap_or_else(|outcome| outcome);
                self.over(index, job, outcome)
            });
            failed = done.iter().any(|d| !d.outcome.is_good());
            all.extend(done);
            size = most;
        }
        all.extend(jobs.into_iter().map(|(index, job)| self.over(index, job, Outcome::NotStarted)));
        all
    }

    /// One node from the beginning to the end. It is confirmed as soon as it is seen to be well: its own clock runs,
    /// however long others of its batch take.
    pub(crate) fn whole(&self, job: &mut Job, heart: &Heart, reach: &Reach) -> Result<Outcome, Outcome> {
        self.start(job, heart, true)?;
        self.verify(job)?;
        self.check(job, reach)?;
        self.confirm_job(job)
    }

    fn check(&self, job: &mut Job, reach: &Reach) -> Result<(), Outcome> {
        let Some(line) = job.fresh.as_ref().map(|f| f.line.clone()) else { return Ok(()) };
        let lost = self.cut_off(reach, job.name(), &line, tunnel(&job.live.desired));
        if lost.is_empty() {
            return Ok(());
        }
        reach.is_not_ready(job.name());
        let reason = format!("pods of {} no longer reached {}", job.name(), lost.join(", "));
        Err(self.take_back(job, &reason, Some(NodeError::CutOff(lost))))
    }

    /// All nodes at once: armed everywhere, then carried out everywhere, then confirmed everywhere; or taken back.
    fn together(&self, jobs: Jobs, heart: &Heart, reach: &Reach) -> Vec<Done> {
        let jobs = self.step(jobs, |job| self.start(job, heart, false));
        let jobs = match jobs {
            Ok(jobs) if !self.cancelled() => jobs,
            Ok(jobs) => return self.all_back(jobs.into_iter().map(|(i, j)| (i, j, None)).collect(), true),
            Err(jobs) => return self.all_back(jobs, true),
        };
        let made = self.step(jobs, |job| {
            job.begun = Instant::now();
            self.run(job)?;
            self.verify(job)?;
            reach.is_ready(job.name(), tunnel(&job.live.desired));
            Ok(())
        });
        let checked = made.and_then(|jobs| self.step(jobs, |job| self.check(job, reach)));
        let jobs = match checked {
            Ok(jobs) => jobs,
            Err(jobs) => return self.all_back(jobs, false),
        };
        parallel::map(jobs, self.options.parallel, |(index, mut job)| {
            let outcome = self.confirm_job(&mut job).unwrap_or_else(|outcome| outcome);
            self.over(index, job, outcome)
        })
    }

    /// Does something on all nodes at once; all of them, with what went wrong, if it went wrong on any.
    fn step(
        &self,
        jobs: Jobs,
        work: impl Fn(&mut Job) -> Result<(), Outcome> + Sync,
    ) -> Result<Jobs, Stopped> {
        let done = parallel::map(jobs, self.options.parallel, |(index, mut job)| {
            let result = work(&mut job);
            (index, job, result.err())
        });
        if done.iter().any(|(_, _, failed)| failed.is_some()) {
            return Err(done);
        }
        Ok(done.into_iter().map(|(index, job, _)| (index, job)).collect())
    }

    /// Takes everything back, because one node failed.
    fn all_back(&self, jobs: Stopped, only_armed: bool) -> Vec<Done> {
        let failed: Vec<String> =
            jobs.iter().filter(|(_, _, o)| o.is_some()).map(|(_, job, _)| job.name().to_owned()).collect();
        let reason = if failed.is_empty() {
            "the run was stopped".to_owned()
        } else {
            format!("{} failed, and only all nodes together can be changed", failed.join(", "))
        };
        parallel::map(jobs, self.options.parallel, |(index, mut job, outcome)| {
            let outcome = outcome.unwrap_or_else(|| match self.take_back(&mut job, &reason, None) {
                // It was armed, and nothing was changed.
                Outcome::RolledBack { left, .. } if only_armed && left.is_empty() => Outcome::NotStarted,
                other => other,
            });
            self.over(index, job, outcome)
        })
    }

    /// The end of a node's part. Its sessions, and its lock, end here.
    pub(crate) fn over(&self, index: usize, mut job: Job, outcome: Outcome) -> Done {
        job.drop_fresh();
        let (sent, received) = job.live.line.get().traffic();
        job.live.line.close();
        let done = Done {
            index,
            name: job.target.name.clone(),
            outcome,
            elapsed: job.begun.elapsed(),
            traffic: (sent + job.spent.0, received + job.spent.1),
        };
        self.tell(&done);
        done
    }

    fn tell(&self, done: &Done) {
        let event = match &done.outcome {
            Outcome::Changed(_) | Outcome::Held { .. } | Outcome::Unchanged => Event::Done,
            Outcome::Failed(error) | Outcome::Unsure(error) | Outcome::Unplanned(error) => {
                Event::Failed(error)
            }
            Outcome::RolledBack { reason, .. } => Event::RolledBack(reason),
            Outcome::NotStarted => return,
        };
        self.observer.event(&done.name, event);
    }

    /// The name of a transaction: nobody else has the same.
    pub(crate) fn fresh_id(&self) -> String {
        (self.random)()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_to_the_room_for_disruption() {
        let (t, f) = (true, false);
        assert_eq!(next_batch(&[t, t, t], 1, None), 1);
        assert_eq!(next_batch(&[t, t, t], 9, None), 3);
        assert_eq!(next_batch(&[t, t, t], 9, Some(2)), 2);
        assert_eq!(next_batch(&[f, t, f, t, f], 9, Some(1)), 3);
        assert_eq!(next_batch(&[f, f, f], 2, Some(0)), 2);
        assert_eq!(next_batch(&[t], 0, Some(1)), 1);
        assert_eq!(next_batch(&[t], 1, Some(0)), 0);
    }
}
