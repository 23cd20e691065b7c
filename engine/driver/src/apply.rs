//! Carry out a plan: the first node alone, then the others in parallel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_model::{Cluster, NodePlan, Summary, diff, plan_node};
use homelab_protocol::{Request, Response};

use crate::engine::{Engine, Live, Prepared, common_ssh};
use crate::plan::owned;
use crate::resolve::first_scope;
use crate::{Departed, Event, NodeError, Target, parallel};

/// How an apply went.
#[derive(Debug)]
pub struct Report {
    /// The chosen nodes, in the order of the file.
    pub nodes: Vec<NodeReport>,
    /// Bytes sent to and received from the nodes that were changed.
    pub traffic: (u64, u64),
}

/// How it went on one node.
#[derive(Debug)]
pub struct NodeReport {
    /// Node name.
    pub name: String,
    /// Its address on the LAN.
    pub address: IpAddr,
    /// What became of it.
    pub outcome: Outcome,
    /// Time from the first change to the last look.
    pub elapsed: Duration,
}

/// What became of a node.
#[derive(Debug)]
pub enum Outcome {
    /// Changed and verified.
    Changed(Summary),
    /// There was nothing to do.
    Unchanged,
    /// There was no plan for it.
    Unplanned(NodeError),
    /// It failed.
    Failed(NodeError),
    /// Another node failed, or the user stopped the run, before this one was begun.
    NotStarted,
}

impl Report {
    /// Whether every node is as desired.
    pub fn succeeded(&self) -> bool {
        self.nodes.iter().all(|n| matches!(n.outcome, Outcome::Changed(_) | Outcome::Unchanged))
    }
}

/// What became of a node that left the file.
#[derive(Debug)]
pub enum Farewell {
    /// Everything of ours was taken away.
    Cleaned(Summary),
    /// There was nothing of ours.
    Clean,
    /// It did not answer, or something failed.
    Failed(NodeError),
}

struct Job {
    index: usize,
    name: String,
    plan: NodePlan,
    live: Live,
    target: Target,
}

impl Engine<'_> {
    /// Carries out exactly the prepared plan. The first failure stops the roll-out; nodes that are done stay.
    pub fn apply(&self, prepared: Prepared) -> Report {
        let Prepared { plan, mut live, targets, .. } = prepared;
        let destroy = plan.destroy;
        let mut outcomes: BTreeMap<usize, (Outcome, Duration)> = BTreeMap::new();
        let mut jobs = Vec::new();
        let mut heads = Vec::new();
        for (index, node) in plan.nodes.into_iter().enumerate() {
            heads.push((node.name.clone(), node.address));
            let outcome = match (node.outcome, live.remove(&node.name), targets.get(&node.name)) {
                (Err(error), _, _) => Outcome::Unplanned(error),
                (Ok(plan), Some(live), Some(target)) if !plan.changes.is_empty() => {
                    jobs.push(Job { index, name: node.name, plan, live, target: target.clone() });
                    continue;
                }
                (Ok(_), kept, _) => {
                    if let Some(kept) = kept {
                        live.insert(node.name, kept);
                    }
                    Outcome::Unchanged
                }
            };
            outcomes.insert(index, (outcome, Duration::ZERO));
        }
        let mut traffic = (0, 0);
        // The first node shows whether the change is a good one.
        let mut size = 1;
        while !jobs.is_empty() && !self.cancelled() {
            let rest = jobs.split_off(size.min(jobs.len()));
            let done = parallel::map(std::mem::replace(&mut jobs, rest), self.options.parallel, |mut job| {
                let start = Instant::now();
                let result = if self.cancelled() { None } else { Some(self.apply_node(&mut job, destroy)) };
                (job, result, start.elapsed())
            });
            let mut failed = false;
            for (job, result, elapsed) in done {
                let (sent, received) = job.live.connection.traffic();
                traffic = (traffic.0 + sent, traffic.1 + received);
                let outcome = match result {
                    None => Outcome::NotStarted,
                    Some(Ok(())) => Outcome::Changed(job.plan.summary()),
                    Some(Err(error)) => {
                        failed = true;
                        Outcome::Failed(error)
                    }
                };
                outcomes.insert(job.index, (outcome, elapsed));
                live.insert(job.name, job.live);
            }
            if failed {
                break;
            }
            size = self.options.parallel.max(1);
        }
        parallel::map(live.into_values().collect(), self.options.parallel, |l| l.connection.close());
        let nodes = heads
            .into_iter()
            .enumerate()
            .map(|(index, (name, address))| {
                let (outcome, elapsed) =
                    outcomes.remove(&index).unwrap_or((Outcome::NotStarted, Duration::ZERO));
                NodeReport { name, address, outcome, elapsed }
            })
            .collect();
        Report { nodes, traffic }
    }

    fn apply_node(&self, job: &mut Job, destroy: bool) -> Result<(), NodeError> {
        let result = self.change(&job.target, &job.plan, &mut job.live, destroy);
        match &result {
            Ok(()) => self.observer.event(&job.name, Event::Done),
            Err(error) => self.observer.event(&job.name, Event::Failed(error)),
        }
        result
    }

    fn change(
        &self,
        target: &Target,
        plan: &NodePlan,
        live: &mut Live,
        farewell: bool,
    ) -> Result<(), NodeError> {
        let total = plan.changes.len();
        self.observer.event(&target.name, Event::Applying { done: 0, total });
        let request = Request::Apply {
            changes: plan.bare(),
            scope: live.scope.clone(),
            farewell,
            by: self.options.by.clone(),
        };
        // A session may die while the user reads the plan. As long as nothing was carried out a new one will do,
        // if the node is still the one that was planned for.
        let first = match live.connection.send(&request).and_then(|()| live.connection.receive()) {
            Err(NodeError::Broken { .. }) => {
                let fresh = self.open(target, &live.scope)?;
                if plan_node(&plan.node, &owned(&fresh.observed), &live.desired) != *plan {
                    return Err(NodeError::Stale);
                }
                live.connection = fresh.connection;
                live.connection.send(&request)?;
                live.connection.receive()?
            }
            other => other?,
        };
        let mut response = first;
        let observed = loop {
            match response {
                Response::Progress { done } => {
                    self.observer.event(&target.name, Event::Applying { done, total });
                    response = live.connection.receive()?;
                }
                Response::Applied(applied) => break applied.observed,
                Response::Failed(failure) => return Err(NodeError::Failed(failure)),
                Response::Hello(_) | Response::Observed(_) => return Err(NodeError::OutOfTurn),
            }
        };
        live.observed = observed;
        self.verify(target, live)
    }

    /// Looks until nothing differs: a link takes a moment to come up, an agent to report itself.
    fn verify(&self, target: &Target, live: &mut Live) -> Result<(), NodeError> {
        self.observer.event(&target.name, Event::Verifying);
        let end = Instant::now() + self.options.settle;
        loop {
            let left = diff(&owned(&live.observed), &live.desired);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let objects = left.iter().map(|c| c.key().to_string()).collect();
                return Err(NodeError::Unsettled(objects));
            }
            std::thread::sleep(self.options.pause);
            live.observed = live.connection.observe(&live.scope)?;
        }
    }

    /// Takes everything of ours away from a node that left the file, if it still answers at its old address and
    /// still is that node.
    pub fn farewell(&self, cluster: &Cluster, departed: &Departed) -> Farewell {
        let name = departed.label();
        let target = Target { name, address: departed.address, ssh: common_ssh(cluster) };
        match self.farewell_node(cluster, departed, &target) {
            Ok(None) => {
                self.observer.event(&target.name, Event::Done);
                Farewell::Clean
            }
            Ok(Some(summary)) => {
                self.observer.event(&target.name, Event::Done);
                Farewell::Cleaned(summary)
            }
            Err(error) => {
                self.observer.event(&target.name, Event::Failed(&error));
                Farewell::Failed(error)
            }
        }
    }

    fn farewell_node(
        &self,
        cluster: &Cluster,
        departed: &Departed,
        target: &Target,
    ) -> Result<Option<Summary>, NodeError> {
        let scope = first_scope(cluster, &self.binaries.digests());
        let mut live = self.open(target, &scope)?;
        live.look_closer()?;
        let result = match &live.observed.spec {
            Some(spec) if spec.address != departed.address => {
                Err(NodeError::OtherMachine(format!("{} of cluster {}", spec.node, spec.cluster)))
            }
            Some(spec) if cluster.nodes.iter().any(|n| n.name == spec.node) => {
                Err(NodeError::OtherMachine(format!("{}, which is in the file", spec.node)))
            }
            _ => {
                let plan = plan_node(&target.name, &owned(&live.observed), &live.desired);
                if plan.changes.is_empty() {
                    Ok(None)
                } else {
                    self.change(target, &plan, &mut live, true).map(|()| Some(plan.summary()))
                }
            }
        };
        live.connection.close();
        result
    }
}
