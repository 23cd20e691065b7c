//! The plan of a whole cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;

use homelab_model::{
    Content, History, Impact, Module, NodeObject, NodePlan, Object, Observed, Problem, Spec, Summary, ours,
};

use crate::{Departed, NodeError, PlannedKubernetes};

/// What an apply would do. What is shown is what is carried out.
#[derive(Debug)]
pub struct Plan {
    /// Cluster name.
    pub cluster: String,
    /// Whether everything of ours is to go.
    pub destroy: bool,
    /// The chosen nodes, in the order of the file.
    pub nodes: Vec<PlannedNode>,
    /// The Kubernetes API's part; None where the plan is not about it.
    pub kubernetes: Option<PlannedKubernetes>,
    /// Nodes that left the file.
    pub departed: Vec<Departed>,
    /// What the user should know, in plain sentences.
    pub warnings: Vec<String>,
}

/// A node's part.
#[derive(Debug)]
pub struct PlannedNode {
    /// Node name.
    pub name: String,
    /// Its address on the LAN.
    pub address: IpAddr,
    /// Its changes, or why there is no plan for it.
    pub outcome: Result<NodePlan, NodeError>,
    /// What it knows of its transactions, if it was reached.
    pub history: History,
}

impl Plan {
    /// Version of the plan's JSON form.
    pub const FORMAT: u32 = 1;

    /// Counts over all nodes.
    pub fn summary(&self) -> Summary {
        let mut total = Summary::default();
        for node in self.nodes.iter().filter_map(|n| n.outcome.as_ref().ok()) {
            let summary = node.summary();
            total.create += summary.create;
            total.update += summary.update;
            total.replace += summary.replace;
            total.delete += summary.delete;
        }
        total
    }

    /// Nodes with changes.
    pub fn changed_nodes(&self) -> usize {
        self.nodes.iter().filter(|n| n.outcome.as_ref().is_ok_and(|p| !p.changes.is_empty())).count()
    }

    /// Nodes without a plan.
    pub fn failed_nodes(&self) -> usize {
        self.nodes.iter().filter(|n| n.outcome.is_err()).count()
    }

    /// Whether there is no plan for a node, or for the Kubernetes API.
    pub fn has_failed(&self) -> bool {
        self.failed_nodes() > 0 || self.kubernetes.as_ref().is_some_and(|k| k.outcome.is_err())
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changed_nodes() == 0 && self.kubernetes.as_ref().is_none_or(|k| k.changes().is_empty())
    }

    /// The worst impact of all changes.
    pub fn impact(&self) -> Impact {
        let plans = self.nodes.iter().filter_map(|n| n.outcome.as_ref().ok());
        plans.map(NodePlan::impact).max().unwrap_or(Impact::None)
    }
}

/// Names of a node's links that are ours.
pub(crate) fn our_links(observed: &Observed) -> BTreeSet<String> {
    // Rendering takes a moment, and hardly ever has anybody taken a mark away.
    let unmarked = |o: &NodeObject| matches!(&o.spec, Spec::Link(l) if l.alias != ours::LINK_ALIAS);
    let record = observed.spec.as_ref().filter(|_| observed.objects.iter().any(unmarked));
    let recorded = record.map(homelab_desired::foundation).unwrap_or_default();
    observed.our_links(&recorded)
}

/// Whether a directory stands where a file of ours should be. It is somebody else's, and may hold anything.
fn is_directory(object: &NodeObject) -> bool {
    match &object.spec {
        Spec::File(o) => o.content == Content::Opaque("directory".to_owned()),
        Spec::Symlink(o) => o.target == "(directory)",
        Spec::Binary(o) => o.sha256 == "(directory)",
        _ => false,
    }
}

/// Directories in the place of `desired` files.
pub(crate) fn directories_in_the_way(observed: &Observed, desired: &[NodeObject]) -> Vec<Problem> {
    let wanted = |o: &&NodeObject| desired.iter().any(|d| d.key() == o.key());
    let found = observed.objects.iter().filter(|o| is_directory(o)).filter(wanted);
    let path = |o: &NodeObject| match &o.spec {
        Spec::File(o) => o.path.clone(),
        Spec::Symlink(o) => o.path.clone(),
        Spec::Binary(o) => o.path.clone(),
        _ => String::new(),
    };
    found
        .map(|o| Problem {
            message: format!("a directory that homelab did not make is in the way: {}", path(o)),
            help: "move it elsewhere".to_owned(),
        })
        .collect()
}

/// The observed objects without those that stand under one of our names and are not ours.
pub(crate) fn owned(observed: &Observed) -> Vec<NodeObject> {
    let ours = our_links(observed);
    let foreign = |o: &&NodeObject| matches!(&o.spec, Spec::Link(l) if !ours.contains(&l.name));
    let links: Vec<_> = observed.objects.iter().filter(foreign).map(Object::key).collect();
    let keep = |o: &&NodeObject| {
        !is_directory(o) && !links.contains(&o.key()) && o.parent().is_none_or(|p| !links.contains(&p))
    };
    observed.objects.iter().filter(keep).cloned().collect()
}

/// Modules in the order in which plans show them.
pub const MODULES: [Module; 4] = [Module::Agent, Module::Vtep, Module::Cni, Module::Proxy];
