//! Gather and plan.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use homelab_model::{Cluster, NodeObject, NodeSpec, Observed, Scope, SshSettings, plan_node};

use crate::connection::{Connection, Opening, Places};
use crate::plan::{directories_in_the_way, owned};
use crate::recall::recall;
use crate::resolve::{Resolution, first_scope, resolve, searched_for};
use crate::{
    Event, NodeBinaries, NodeError, Observer, Plan, PlanError, PlannedNode, Target, Transport, parallel,
};

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes worked on at once.
    pub parallel: usize,
    /// `user@host` of the caller, for the nodes' journals.
    pub by: String,
    /// How long a node may take to settle after its changes are made.
    pub settle: Duration,
    /// Pause between two looks at a node that settles.
    pub pause: Duration,
    /// Places on the nodes.
    pub places: Places,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            parallel: 16,
            by: String::new(),
            settle: Duration::from_secs(3),
            pause: Duration::from_millis(200),
            places: Places::default(),
        }
    }
}

/// What the nodes shall become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// What the file says.
    Desired,
    /// Nothing of ours remains.
    Destroyed,
}

/// Gathers, plans and applies.
pub struct Engine<'a> {
    /// Opens sessions.
    pub transport: &'a dyn Transport,
    /// What is run on the nodes.
    pub binaries: &'a NodeBinaries,
    /// Hears of progress.
    pub observer: &'a dyn Observer,
    /// Set by the caller to stop before the next node.
    pub cancel: &'a AtomicBool,
    /// Settings.
    pub options: Options,
}

/// A node that was reached, its session open.
pub(crate) struct Live {
    pub(crate) connection: Connection,
    pub(crate) observed: Observed,
    pub(crate) scope: Scope,
    pub(crate) desired: Vec<NodeObject>,
}

/// A plan with what is needed to carry it out.
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// What each reached node needs to know, by name; empty for a destroy.
    pub specs: BTreeMap<String, NodeSpec>,
    /// Bytes sent to and received from all nodes.
    pub traffic: (u64, u64),
    pub(crate) live: BTreeMap<String, Live>,
    pub(crate) targets: BTreeMap<String, Target>,
}

impl Prepared {
    /// What a node said of itself, if it was reached.
    pub fn observed(&self, node: &str) -> Option<&Observed> {
        self.live.get(node).map(|l| &l.observed)
    }

    /// Ends all sessions.
    pub fn close(self, parallel: usize) {
        parallel::map(self.live.into_values().collect(), parallel, |l| l.connection.close());
    }
}

impl Engine<'_> {
    /// Looks at all nodes at once and makes the plan for the chosen ones (empty: all). Nodes that are not
    /// chosen are looked at too: pod ranges and the MTU depend on all.
    pub fn prepare(&self, cluster: &Cluster, goal: Goal, chosen: &[String]) -> Result<Prepared, PlanError> {
        let digests = self.binaries.digests();
        let scope = first_scope(cluster, &digests);
        let targets: Vec<Target> = cluster
            .nodes
            .iter()
            .map(|n| Target { name: n.name.clone(), address: n.address, ssh: n.ssh.clone() })
            .collect();
        let gathered = parallel::map(targets.clone(), self.options.parallel, |target| {
            let opened = self.open(&target, &scope);
            if let Err(error) = &opened {
                self.observer.event(&target.name, Event::Unreachable(error));
            }
            (target.name, opened)
        });
        let mut live = BTreeMap::new();
        let mut errors = BTreeMap::new();
        for (name, opened) in gathered {
            match opened {
                Ok(found) => drop(live.insert(name, found)),
                Err(error) => drop(errors.insert(name, error)),
            }
        }
        let resolution = self.resolve(cluster, goal, &mut live, &mut errors)?;
        let mut plan = assemble(cluster, goal, chosen, &resolution, &live, &mut errors);
        for (name, error) in errors {
            plan.warnings.push(format!("{name}, which was not chosen, could not be asked: {error}"));
        }
        let traffic =
            live.values().map(|l| l.connection.traffic()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let targets = targets.into_iter().map(|t| (t.name.clone(), t)).collect();
        Ok(Prepared { plan, specs: resolution.specs, traffic, live, targets })
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self, target: &Target, scope: &Scope) -> Result<Live, NodeError> {
        if self.cancelled() {
            return Err(NodeError::Cancelled);
        }
        let opening = Opening {
            transport: self.transport,
            binaries: self.binaries,
            places: &self.options.places,
            scope,
        };
        let (connection, observed) =
            opening.open(target, &|event| self.observer.event(&target.name, event))?;
        Ok(Live { connection, observed, scope: scope.clone(), desired: Vec::new() })
    }

    /// Resolves, and looks again at nodes where homelab's files lie, or lay, at places that were not looked at.
    fn resolve(
        &self,
        cluster: &Cluster,
        goal: Goal,
        live: &mut BTreeMap<String, Live>,
        errors: &mut BTreeMap<String, NodeError>,
    ) -> Result<Resolution, PlanError> {
        let resolution = match goal {
            Goal::Destroyed => {
                let (_, departed) = recall(cluster, &seen(live));
                Resolution { departed, ..Resolution::default() }
            }
            Goal::Desired => resolve(cluster, &seen(live), &self.binaries.digests())?,
        };
        for (name, spec) in &resolution.specs {
            if let Some(node) = live.get_mut(name) {
                node.desired = homelab_desired::desired(spec);
            }
        }
        let nodes = std::mem::take(live).into_iter().collect();
        let looked = parallel::map(nodes, self.options.parallel, |(name, mut node): (String, Live)| {
            let result = node.look_closer();
            (name, node, result)
        });
        for (name, node, result) in looked {
            match result {
                Ok(()) => drop(live.insert(name, node)),
                Err(error) => {
                    self.observer.event(&name, Event::Unreachable(&error));
                    errors.insert(name, error);
                }
            }
        }
        Ok(resolution)
    }
}

impl Live {
    /// Looks again if something that shall be there, or that the last apply left there, was not looked for yet.
    pub(crate) fn look_closer(&mut self) -> Result<(), NodeError> {
        let before = self.observed.spec.as_ref().map(homelab_desired::desired).unwrap_or_default();
        let device = self.scope.device.clone();
        let all = Scope::of(&self.desired, &device).keys.into_iter().chain(Scope::of(&before, &device).keys);
        let mut missing = false;
        for key in all.filter(|(key, _)| searched_for(key)) {
            if !self.scope.keys.contains(&key) {
                self.scope.keys.push(key);
                missing = true;
            }
        }
        if missing {
            self.observed = self.connection.observe(&self.scope)?;
        }
        Ok(())
    }
}

fn seen(live: &BTreeMap<String, Live>) -> BTreeMap<String, &Observed> {
    live.iter().map(|(name, l)| (name.clone(), &l.observed)).collect()
}

fn assemble(
    cluster: &Cluster,
    goal: Goal,
    chosen: &[String],
    resolution: &Resolution,
    live: &BTreeMap<String, Live>,
    errors: &mut BTreeMap<String, NodeError>,
) -> Plan {
    let nodes = cluster
        .nodes
        .iter()
        .filter(|n| chosen.is_empty() || chosen.contains(&n.name))
        .map(|node| {
            let outcome = match (live.get(&node.name), resolution.problems.get(&node.name)) {
                (None, _) => Err(errors.remove(&node.name).unwrap_or(NodeError::Cancelled)),
                (Some(_), Some(problems)) => Err(NodeError::Blocked(problems.clone())),
                (Some(Live { observed, desired, .. }), None) => {
                    let problems = directories_in_the_way(observed, desired);
                    if problems.is_empty() {
                        Ok(plan_node(&node.name, &owned(observed), desired))
                    } else {
                        Err(NodeError::Blocked(problems))
                    }
                }
            };
            PlannedNode { name: node.name.clone(), address: node.address, outcome }
        })
        .collect();
    Plan {
        cluster: cluster.name.clone(),
        destroy: goal == Goal::Destroyed,
        nodes,
        departed: resolution.departed.clone(),
        warnings: resolution.warnings.clone(),
    }
}

/// How to reach a node that is no longer in the file: as all the others are reached, where they agree.
pub(crate) fn common_ssh(cluster: &Cluster) -> SshSettings {
    fn same<T: Clone + PartialEq>(cluster: &Cluster, get: impl Fn(&SshSettings) -> Option<T>) -> Option<T> {
        let mut values = cluster.nodes.iter().map(|n| get(&n.ssh));
        let first = values.next()??;
        values.all(|v| v.as_ref() == Some(&first)).then_some(first)
    }
    SshSettings {
        host: None,
        user: same(cluster, |s| s.user.clone()),
        port: same(cluster, |s| s.port),
        identity: same(cluster, |s| s.identity.clone()),
        jump: same(cluster, |s| s.jump.clone()),
        r#become: same(cluster, |s| s.r#become),
    }
}
