//! Requests of the laptop and responses of the node.

use homelab_model::{Change, NodeObject, Observed, Scope};
use serde::{Deserialize, Serialize};

/// Version of this protocol. It changes when an older peer would misunderstand.
pub const PROTOCOL: u32 = 1;

/// What the laptop asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// First message of a session.
    Hello(Hello),
    /// Look at the node; changes nothing.
    Observe {
        /// Where to look.
        scope: Scope,
    },
    /// Carry out changes in order; undo what was done if one fails.
    Apply {
        /// The changes of the plan.
        changes: Vec<Change<NodeObject>>,
        /// Where to look afterwards: the answer holds a fresh observation.
        scope: Scope,
        /// Nothing of homelab shall remain: afterwards the node's own records go too.
        farewell: bool,
        /// `user@host` of the caller, for the journal.
        by: String,
    },
    /// End of the session.
    Bye,
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "response")]
pub enum Response {
    /// Answer to [`Request::Hello`].
    Hello(Hello),
    /// Answer to [`Request::Observe`].
    Observed(Box<Observed>),
    /// Progress of [`Request::Apply`]: this many changes are done.
    Progress {
        /// Changes done.
        done: usize,
    },
    /// End of a [`Request::Apply`] that went well.
    Applied(Box<Applied>),
    /// A request failed.
    Failed(Failure),
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker.
    pub protocol: u32,
    /// Version of the speaker's package.
    pub version: String,
    /// SHA-256 of the node binary: the one that speaks, or the one that the laptop expects.
    pub sha256: String,
}

/// All changes are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The node after the changes.
    pub observed: Observed,
}

/// A request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The object at fault as plans name it, empty if none is.
    pub object: String,
    /// What went wrong.
    pub message: String,
    /// Whether the changes made before the failure were undone.
    pub undone: bool,
    /// What could not be undone.
    pub left: Vec<String>,
}
