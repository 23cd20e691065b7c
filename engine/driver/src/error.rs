//! Why a node could not be observed or changed.

use homelab_model::{AllocError, ApiError, Holder, Problem};
use homelab_protocol::{Failure, Fault, FrameError};
use thiserror::Error;

use crate::{BinariesError, TransportError};

/// Why nothing at all can be planned.
#[derive(Debug, Error)]
pub enum PlanError {
    /// No pod range for a node.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}

/// Why an apply was not begun. Nothing was changed on any node.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// Somebody else works on a node.
    #[error("{node} is locked by {holder}")]
    Busy {
        /// Node.
        node: String,
        /// Who works on it.
        holder: Holder,
    },
    /// The user stopped the run.
    #[error("stopped before anything was changed")]
    Cancelled,
    /// More nodes are out of service than the user allows, or no room is left for one that is to be disrupted.
    #[error("{}", unavailable_text(.unavailable, *.allowed))]
    TooManyUnavailable {
        /// Nodes that cannot be used.
        unavailable: Vec<String>,
        /// How many may be.
        allowed: usize,
    },
    /// Nodes that can only be changed at the same moment, and that are more than may be out of service at once.
    #[error(
        "{} can only be changed together, and at most {allowed} nodes may be out of service at once",
        .nodes.join(", ")
    )]
    OnlyTogether {
        /// The nodes.
        nodes: Vec<String>,
        /// How many may be.
        allowed: usize,
    },
    /// The membership key cannot be had of the node that holds it.
    #[error("the membership key cannot be had from {node}: {error}")]
    Keys {
        /// Node.
        node: String,
        /// Why.
        error: Box<NodeError>,
    },
    /// The Kubernetes API refuses what the nodes need of it. Nothing was changed on nodes.
    #[error(transparent)]
    Kubernetes(ApiError),
    /// Passwords of BGP peers are missing.
    #[error("{node}: {error}")]
    Passwords {
        /// Node.
        node: String,
        /// Why.
        error: Box<NodeError>,
    },
}

/// Why the membership key is not replaced (any further).
#[derive(Debug, Error)]
pub enum RotateError {
    /// Nothing can be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nothing could be begun.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Not every node can be changed: the others would no longer understand one that is left out.
    #[error("these nodes cannot be reached or changed: {}", names(.0))]
    Unreachable(Vec<(String, NodeError)>),
    /// No node has a key.
    #[error("no node has a membership key yet")]
    NoKeys,
    /// The nodes hold more changes of the ring than can be counted, or something that is no ring.
    #[error("what the nodes hold is no ring of membership keys: {0}")]
    Malformed(String),
}

/// Why one node failed.
#[derive(Debug, Error)]
pub enum NodeError {
    /// No session.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The shell script that starts the node binary ended before it did.
    #[error("homelab-node could not be started: {}", bootstrap_text(.output, .status))]
    Bootstrap {
        /// What was written to stdout and stderr.
        output: String,
        /// Exit status, if known.
        status: Option<i32>,
    },
    /// There is no node binary for this machine.
    #[error("no homelab-node for {arch} (there is one for {})", list(.have))]
    NoBinary {
        /// `uname -m` of the node.
        arch: String,
        /// What there is.
        have: Vec<String>,
    },
    /// The node binary cannot be read.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// The node's end speaks another version of the protocol.
    #[error(
        "the node speaks version {node} of homelab's protocol (homelab-node {version}), this is version {ours}"
    )]
    Protocol {
        /// The node's version of the protocol.
        node: u32,
        /// Version of the node's binary.
        version: String,
        /// Our version of the protocol.
        ours: u32,
    },
    /// The node binary that answers is not the one that was started.
    #[error("homelab-node on the node is not ours: its SHA-256 is {got}, not {want}")]
    WrongBinary {
        /// Digest that the node reports.
        got: String,
        /// Digest of our binary.
        want: String,
    },
    /// The exchange of messages broke.
    #[error("the connection to homelab-node broke: {source}{}", suffix(.stderr))]
    Broken {
        /// What happened.
        source: FrameError,
        /// What the node wrote on stderr.
        stderr: String,
    },
    /// A message at the wrong place.
    #[error("homelab-node answered out of turn")]
    OutOfTurn,
    /// The node could not look at itself.
    #[error("homelab-node cannot look at the node: {0}")]
    Unobserved(String),
    /// The node could not carry out a request.
    #[error("{}", failure_text(.0))]
    Failed(Failure),
    /// Something on the node stands in the way.
    #[error("{}", problems_text(.0))]
    Blocked(Vec<Problem>),
    /// The node no longer is what the plan was made for: the objects that differ, where they are known.
    #[error("the node has changed since it was planned{}", objects(.0))]
    Stale(Vec<String>),
    /// All changes were made, and yet the node is not as desired.
    #[error("after the apply these are not as they should be: {}", .0.join(", "))]
    Unsettled(Vec<String>),
    /// The machine that answers is not the node that was looked for.
    #[error("another machine answers there: {0}")]
    OtherMachine(String),
    /// Somebody else works on the node.
    #[error("the node is locked by {0}")]
    Busy(Holder),
    /// The node has a change that somebody tries out.
    #[error(
        "a change by {by} is being tried out; the node takes it back in {remaining} s unless it is confirmed"
    )]
    Held {
        /// Whose it is.
        by: Holder,
        /// Seconds until then.
        remaining: u64,
    },
    /// The node's tunnel no longer reaches peers that it reached before.
    #[error("pods of this node no longer reach {}", .0.join(", "))]
    CutOff(Vec<String>),
    /// Objects that the node had before and that nobody can make again.
    #[error("these cannot be made again: {}", .0.join(", "))]
    Unmakable(Vec<String>),
    /// The password of a peer was not given.
    #[error("the password of the BGP peer {0} is not at hand")]
    NoPassword(String),
    /// What the node says of its membership key does not fit.
    #[error("the membership key is not what the node says it is")]
    WrongKey,
    /// The user stopped the run before this node.
    #[error("stopped before this node was reached")]
    Cancelled,
}

impl NodeError {
    /// A failed exchange, with what the node said on stderr.
    pub(crate) fn broken(source: FrameError, stderr: &str) -> NodeError {
        NodeError::Broken { source, stderr: stderr.trim().to_owned() }
    }
}

fn suffix(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") }
}

fn objects(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) }
}

fn names(nodes: &[(String, NodeError)]) -> String {
    nodes.iter().map(|(name, error)| format!("{name} ({error})")).collect::<Vec<_>>().join(", ")
}

fn unavailable_text(unavailable: &[String], allowed: usize) -> String {
    if unavailable.is_empty() {
        return format!(
            "the plan interrupts pods' connections, and at most {allowed} nodes may be out of service at once"
        );
    }
    let count = unavailable.len();
    let names = unavailable.join(", ");
    format!(
        "{count} of the nodes are out of service already ({names}), and at most {allowed} may be, with those to be disrupted"
    )
}

fn list(have: &[String]) -> String {
    if have.is_empty() { "none at all".to_owned() } else { have.join(", ") }
}

fn bootstrap_text(output: &str, status: &Option<i32>) -> String {
    match (output.trim(), status) {
        ("", Some(status)) => format!("the shell ended with status {status} and said nothing"),
        ("", None) => "the connection ended and nothing was said".to_owned(),
        (said, _) => said.to_owned(),
    }
}

fn failure_text(failure: &Failure) -> String {
    let mut text = match failure.object.as_str() {
        "" => failure.message.clone(),
        object => format!("{object}: {}", failure.message),
    };
    // A refusal comes before any change.
    let refused = failure.fault != Fault::Error;
    if failure.undone && !refused {
        text.push_str("; the changes made before it were undone");
    } else if !failure.left.is_empty() {
        text.push_str(&format!("; these could not be undone: {}", failure.left.join(", ")));
    }
    text
}

fn problems_text(problems: &[Problem]) -> String {
    problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; ")
}
