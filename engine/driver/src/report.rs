//! How an apply went.

use std::net::IpAddr;
use std::time::Duration;

use homelab_model::Summary;

use crate::{KubernetesOutcome, NodeError};

/// How an apply went.
#[derive(Debug, Default)]
pub struct Report {
    /// The chosen nodes, in the order of the file.
    pub nodes: Vec<NodeReport>,
    /// Bytes sent to and received from the nodes that were changed.
    pub traffic: (u64, u64),
    /// How it went in the Kubernetes API; None where the run was not about it.
    pub kubernetes: Option<KubernetesOutcome>,
    /// What the user should know, in plain sentences.
    pub warnings: Vec<String>,
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
    /// Time from the first change to the last word.
    pub elapsed: Duration,
}

/// What became of a node.
#[derive(Debug)]
pub enum Outcome {
    /// Changed, verified and confirmed.
    Changed(Summary),
    /// There was nothing to do.
    Unchanged,
    /// There was no plan for it.
    Unplanned(NodeError),
    /// It failed, and nothing was changed, or is as the error says.
    Failed(NodeError),
    /// Another node failed, or the user stopped the run, before this one was changed.
    NotStarted,
    /// Changed and verified. The node takes it back by itself unless the user confirms it.
    Held {
        /// What was changed.
        summary: Summary,
        /// Time until then, seconds.
        seconds: u64,
    },
    /// It was changed, and the change was taken back.
    RolledBack {
        /// Why, as a part of a sentence.
        reason: String,
        /// What failed on this node, if that was the reason.
        error: Option<Box<NodeError>>,
        /// Objects, as plans name them, that are not as before; empty if the node was verified to be as before.
        left: Vec<String>,
    },
    /// It could not be reached after the change: it takes the change back by itself unless it heard that it may stay.
    Unsure(NodeError),
}

impl Outcome {
    /// Whether the node is as desired.
    pub fn is_good(&self) -> bool {
        matches!(self, Outcome::Changed(_) | Outcome::Unchanged | Outcome::Held { .. })
    }
}

impl Report {
    /// Whether every node, and the Kubernetes API, is as desired.
    pub fn succeeded(&self) -> bool {
        self.nodes.iter().all(|n| n.outcome.is_good())
            && self.kubernetes.as_ref().is_none_or(KubernetesOutcome::is_good)
    }

    /// Whether a change was taken back on a node.
    pub fn rolled_back(&self) -> bool {
        self.nodes.iter().any(|n| matches!(n.outcome, Outcome::RolledBack { .. }))
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
    /// Something failed on the way, and the node has everything back.
    RolledBack {
        /// Why, as a part of a sentence.
        reason: String,
        /// Objects, as plans name them, that are not as before.
        left: Vec<String>,
    },
}
