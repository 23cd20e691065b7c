//! Gather and plan.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use homelab_model::{
    Cluster, History, KeyRing, NodeObject, NodePlan, NodeSpec, Observed, PasswordFile, Scope, plan_node,
};

use crate::connection::{Line, Opening};
use crate::keys::{self, Ring};
use crate::kubernetes::{agents_notes, with_nodes};
use crate::lock::Heart;
use crate::plan::{directories_in_the_way, owned};
use crate::recall::recall;
use crate::resolve::{Resolution, first_scope, resolve, searched_for};
use crate::{
    Event, Kubernetes, NodeBinaries, NodeError, Observer, Options, Plan, PlanError, PlannedKubernetes,
    PlannedNode, Target, Transport, history, parallel,
};

/// What the nodes shall become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// What the file says.
    Desired,
    /// Nothing of ours remains.
    Destroyed,
    /// What they were before the last confirmed change.
    Previous,
}

/// What the nodes shall become, with what only the engine asks for.
#[derive(Clone)]
pub(crate) enum Aim {
    Goal(Goal),
    /// As they are, with this ring of membership keys.
    Ring(KeyRing),
}

/// Gathers, plans and applies.
pub struct Engine<'a> {
    /// Opens sessions.
    pub transport: &'a dyn Transport,
    /// What is run on the nodes.
    pub binaries: &'a NodeBinaries,
    /// The Kubernetes API; None: the command has nothing to do with it.
    pub kubernetes: Option<&'a dyn Kubernetes>,
    /// Hears of progress.
    pub observer: &'a dyn Observer,
    /// Set by the caller to stop: what is under way on a node is finished or taken back, and nothing else is begun.
    pub cancel: &'a AtomicBool,
    /// 32 bytes that nobody can guess, for names of transactions and for keys.
    pub random: &'a (dyn Fn() -> [u8; 32] + Sync),
    /// Settings.
    pub options: Options,
}

/// A node that was reached, its session open.
pub(crate) struct Live {
    pub(crate) line: Line,
    pub(crate) observed: Observed,
    pub(crate) scope: Scope,
    pub(crate) desired: Vec<NodeObject>,
}

/// A plan with what is needed to carry it out.
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// What each reached node needs to know, by name; empty unless the goal is [`Goal::Desired`].
    pub specs: BTreeMap<String, NodeSpec>,
    /// Bytes sent to and received from all nodes.
    pub traffic: (u64, u64),
    pub(crate) aim: Aim,
    pub(crate) cluster: Cluster,
    pub(crate) chosen: Vec<String>,
    pub(crate) live: BTreeMap<String, Live>,
    pub(crate) targets: BTreeMap<String, Target>,
    /// Nodes that were not chosen and could not be asked.
    pub(crate) silent: BTreeMap<String, NodeError>,
    pub(crate) ring: Option<Ring>,
    /// Files of passwords that nodes hold and keep, by the nodes' names.
    pub(crate) kept: BTreeMap<String, PasswordFile>,
    /// There once the nodes are locked.
    pub(crate) heart: Option<Heart>,
    /// What was found, and done, before there was a plan.
    pub(crate) notes: Vec<String>,
}

impl Prepared {
    /// What a node said of itself, if it was reached.
    pub fn observed(&self, node: &str) -> Option<&Observed> {
        self.live.get(node).map(|l| &l.observed)
    }

    /// What was changed on a node by hand since the last apply, as the changes that would undo it. The base is what
    /// the last confirmed transaction told the node to be, not the file, and not the node's own record, which may
    /// have been changed by hand, too. None if the node was not reached, never had an apply, or has one that waits
    /// to be confirmed.
    pub fn drift(&self, node: &str) -> Option<NodePlan> {
        let observed = self.observed(node)?;
        history::drift(node, observed, self.ring.as_ref().and_then(Ring::summary))
    }

    /// Ends all sessions, `parallel` at once.
    pub fn close(mut self, parallel: usize) {
        self.hang_up(parallel);
    }

    /// Ends all sessions, and with them the locks.
    pub(crate) fn hang_up(&mut self, parallel: usize) {
        self.heart = None;
        let live = std::mem::take(&mut self.live).into_values().collect();
        parallel::map(live, parallel, |live: Live| live.line.close());
    }
}

type Gathered = (BTreeMap<String, Live>, BTreeMap<String, NodeError>);

impl Engine<'_> {
    /// Looks at all nodes at once and makes the plan for the chosen ones (empty: all). Nodes that are not
    /// chosen are looked at too: pod ranges and the MTU depend on all.
    pub fn prepare(&self, cluster: &Cluster, goal: Goal, chosen: &[String]) -> Result<Prepared, PlanError> {
        self.prepare_aim(cluster, Aim::Goal(goal), chosen, false)
    }

    /// The same for an apply that follows: a change that nobody confirmed and whose laptop is gone is taken back
    /// first, and one that somebody tries out keeps its node from being planned ([`NodeError::Held`]).
    pub fn prepare_apply(
        &self,
        cluster: &Cluster,
        goal: Goal,
        chosen: &[String],
    ) -> Result<Prepared, PlanError> {
        self.prepare_aim(cluster, Aim::Goal(goal), chosen, true)
    }

    pub(crate) fn prepare_aim(
        &self,
        cluster: &Cluster,
        aim: Aim,
        chosen: &[String],
        applying: bool,
    ) -> Result<Prepared, PlanError> {
        let targets = targets(cluster);
        let (mut live, mut errors) = self.gather(cluster, &targets);
        let mut notes = Vec::new();
        if applying {
            self.settle_open(&targets, chosen, &mut live, &mut errors, &mut notes);
        }
        let targets = targets.into_iter().map(|t| (t.name.clone(), t)).collect();
        let empty = Plan {
            cluster: cluster.name.clone(),
            destroy: false,
            nodes: Vec::new(),
            kubernetes: None,
            departed: Vec::new(),
            warnings: Vec::new(),
        };
        let mut prepared = Prepared {
            plan: empty,
            specs: BTreeMap::new(),
            traffic: (0, 0),
            aim,
            cluster: cluster.clone(),
            chosen: chosen.to_vec(),
            live,
            targets,
            silent: errors,
            ring: None,
            kept: BTreeMap::new(),
            heart: None,
            notes,
        };
        self.replan(&mut prepared)?;
        Ok(prepared)
    }

    /// Looks at all nodes again over the same sessions, and plans again. What a laptop left that died meanwhile is
    /// taken back on nodes that are locked by now.
    pub fn refresh(&self, prepared: &mut Prepared) -> Result<(), PlanError> {
        let live = std::mem::take(&mut prepared.live).into_iter().collect();
        let looked = parallel::map(live, self.options.parallel, |(name, mut live): (String, Live)| {
            let result = live.line.get().observe(&live.scope);
            (name, result.map(|observed| live.observed = observed), live)
        });
        for node in std::mem::take(&mut prepared.plan.nodes) {
            if let Err(error) = node.outcome {
                prepared.silent.insert(node.name, error);
            }
        }
        for (name, result, live) in looked {
            match result {
                Ok(()) => {
                    prepared.silent.remove(&name);
                    prepared.live.insert(name, live);
                }
                Err(error) => {
                    self.observer.event(&name, Event::Unreachable(&error));
                    prepared.silent.insert(name, error);
                }
            }
        }
        if prepared.heart.is_some() {
            let targets: Vec<Target> = prepared.targets.values().cloned().collect();
            let Prepared { chosen, live, silent, notes, .. } = prepared;
            self.settle_open(&targets, chosen, live, silent, notes);
        }
        self.replan(prepared)
    }

    /// Makes the plan anew from what is known of the nodes.
    fn replan(&self, prepared: &mut Prepared) -> Result<(), PlanError> {
        let Prepared { cluster, chosen, aim, live, silent: errors, .. } = prepared;
        let resolution = self.resolve(cluster, aim, chosen, live, errors)?;
        let mut plan = assemble(cluster, aim, chosen, &resolution.cluster, live, errors);
        plan.warnings.extend(prepared.notes.iter().cloned());
        for (name, live) in live.iter() {
            if is_chosen(chosen, name) {
                plan.warnings.extend(history::warnings(name, &live.observed.history, self.options.now));
                let stays = matches!(aim, Aim::Goal(Goal::Desired | Goal::Previous));
                if let (Some(by), true) = (&live.observed.facts.cordoned, stays) {
                    plan.warnings.push(history::cordoned(name, by, self.options.now));
                }
            }
        }
        plan.warnings.extend(resolution.warnings);
        for (name, error) in errors.iter() {
            plan.warnings.push(format!("{name}, which was not chosen, could not be asked: {error}"));
        }
        prepared.traffic =
            live.values().map(|l| l.line.get().traffic()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        plan.kubernetes = resolution.kubernetes;
        prepared.plan = plan;
        prepared.specs = resolution.cluster.specs;
        prepared.ring = resolution.ring;
        prepared.kept = resolution.kept;
        Ok(())
    }

    /// Opens a session to every node and looks at it.
    pub(crate) fn gather(&self, cluster: &Cluster, targets: &[Target]) -> Gathered {
        let scope = first_scope(cluster, &self.binaries.digests());
        let gathered = parallel::map(targets.to_vec(), self.options.parallel, |target| {
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
        (live, errors)
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self, target: &Target, scope: &Scope) -> Result<Live, NodeError> {
        if self.cancelled() {
            return Err(NodeError::Cancelled);
        }
        self.reopen(target, scope, self.options.answer)
    }

    /// Opens a session for what must be brought to an end, though the user wants to stop.
    pub(crate) fn reopen(&self, target: &Target, scope: &Scope, limit: Duration) -> Result<Live, NodeError> {
        let opening = Opening {
            transport: self.transport,
            binaries: self.binaries,
            places: &self.options.places,
            scope,
            limit,
        };
        let (connection, observed) =
            opening.open(target, &|event| self.observer.event(&target.name, event))?;
        Ok(Live { line: Line::new(connection), observed, scope: scope.clone(), desired: Vec::new() })
    }

    /// Resolves, and looks again at nodes where homelab's files lie, or lay, at places that were not looked at.
    fn resolve(
        &self,
        cluster: &Cluster,
        aim: &Aim,
        chosen: &[String],
        live: &mut BTreeMap<String, Live>,
        errors: &mut BTreeMap<String, NodeError>,
    ) -> Result<Resolved, PlanError> {
        let known = keys::newest(live);
        let mut resolved = Resolved { ring: known.clone(), ..Resolved::default() };
        for node in live.values_mut() {
            node.desired.clear();
        }
        match aim {
            Aim::Goal(Goal::Desired) => {
                let api = self.see_kubernetes(cluster, live);
                let mut notes = Vec::new();
                let state = api
                    .as_ref()
                    .and_then(|api| api.state.as_ref().ok())
                    .filter(|_| cluster.kubernetes.is_some());
                let told = state.map(|state| with_nodes(cluster, state, &mut notes));
                let (told, problems) = told.unwrap_or_else(|| (cluster.clone(), BTreeMap::new()));
                resolved.cluster = resolve(&told, &seen(live), &self.binaries.digests())?;
                resolved.warnings.extend(notes);
                for (name, found) in problems {
                    if resolved.cluster.specs.contains_key(&name) {
                        resolved.cluster.problems.entry(name).or_default().extend(found);
                    }
                }
                resolved.warnings.extend(agents_notes(live));
                if cluster.kubernetes.is_none()
                    && api.is_none()
                    && live.values().any(|l| l.observed.spec.as_ref().is_some_and(|s| s.kubernetes.is_some()))
                {
                    resolved.warnings.push(format!(
                        "the cluster file no longer speaks of Kubernetes: what homelab made in its API (namespace {}, \
                         roles, and addresses and finalizers of Services) stays there, because no kubeconfig leads to it: \
                         KUBECONFIG may name one",
                        homelab_model::ours::KUBERNETES_NAMESPACE
                    ));
                }
                let specs = &mut resolved.cluster.specs;
                let (planned, mut tokens) = self.plan_kubernetes(&told, chosen, api.as_ref(), specs, live);
                resolved.kubernetes = planned;
                let ring = known.unwrap_or(Ring::New);
                for (name, spec) in &resolved.cluster.specs {
                    if let Some(node) = live.get_mut(name) {
                        node.desired = homelab_desired::desired(spec);
                        node.desired.extend(tokens.remove(name));
                        node.desired.push(keys::object(ring.text()));
                    }
                }
                resolved.ring = Some(ring);
                resolved.kept = self.passwords(&resolved.cluster.specs, live);
            }
            Aim::Goal(Goal::Destroyed) => {
                let (_, departed) = recall(cluster, &seen(live));
                resolved.cluster.departed = departed;
                let api = self.see_kubernetes(cluster, live);
                resolved.kubernetes = self.unplan_kubernetes(cluster, chosen, api.as_ref());
            }
            Aim::Goal(Goal::Previous) => self.previous(chosen, live, errors, &mut resolved),
            Aim::Ring(ring) => {
                for node in live.values_mut() {
                    node.desired = keys::with(owned(&node.observed), &ring.summary());
                }
                resolved.ring = Some(Ring::Given(ring.clone()));
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
        Ok(resolved)
    }
}

/// What the nodes shall become, in full.
#[derive(Default)]
pub(crate) struct Resolved {
    pub(crate) cluster: Resolution,
    pub(crate) ring: Option<Ring>,
    pub(crate) kept: BTreeMap<String, PasswordFile>,
    pub(crate) warnings: Vec<String>,
    pub(crate) kubernetes: Option<PlannedKubernetes>,
}

impl Live {
    /// Looks again if something that shall be there, or that the last apply left there, was not looked for yet.
    pub(crate) fn look_closer(&mut self) -> Result<(), NodeError> {
        let before = self.observed.spec.as_ref().map(homelab_desired::foundation).unwrap_or_default();
        let confirmed = self.observed.history.confirmed.as_ref().and_then(|c| c.spec.as_ref());
        let confirmed = confirmed.map(homelab_desired::foundation).unwrap_or_default();
        let device = self.scope.device.clone();
        let all = [&self.desired, &before, &confirmed].map(|objects| Scope::of(objects, &device).keys);
        let mut missing = false;
        for key in all.into_iter().flatten().filter(|(key, _)| searched_for(key)) {
            if !self.scope.keys.contains(&key) {
                self.scope.keys.push(key);
                missing = true;
            }
        }
        if missing {
            self.observed = self.line.get().observe(&self.scope)?;
        }
        Ok(())
    }
}

/// How to reach the nodes of the file.
pub(crate) fn targets(cluster: &Cluster) -> Vec<Target> {
    let target =
        |n: &homelab_model::Node| Target { name: n.name.clone(), address: n.address, ssh: n.ssh.clone() };
    cluster.nodes.iter().map(target).collect()
}

/// Whether a node is among the chosen ones; none means all.
pub(crate) fn is_chosen(chosen: &[String], name: &str) -> bool {
    chosen.is_empty() || chosen.iter().any(|c| c == name)
}

fn seen(live: &BTreeMap<String, Live>) -> BTreeMap<String, &Observed> {
    live.iter().map(|(name, l)| (name.clone(), &l.observed)).collect()
}

fn assemble(
    cluster: &Cluster,
    aim: &Aim,
    chosen: &[String],
    resolution: &Resolution,
    live: &BTreeMap<String, Live>,
    errors: &mut BTreeMap<String, NodeError>,
) -> Plan {
    let nodes = cluster
        .nodes
        .iter()
        .filter(|n| is_chosen(chosen, &n.name))
        .map(|node| {
            let seen = live.get(&node.name);
            let history = seen.map_or_else(History::default, |l| l.observed.history.clone());
            let outcome = match (seen, resolution.problems.get(&node.name)) {
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
            PlannedNode { name: node.name.clone(), address: node.address, outcome, history }
        })
        .collect();
    Plan {
        cluster: cluster.name.clone(),
        destroy: matches!(aim, Aim::Goal(Goal::Destroyed)),
        nodes,
        kubernetes: None,
        departed: resolution.departed.clone(),
        warnings: resolution.warnings.clone(),
    }
}
