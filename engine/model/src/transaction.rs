//! What a node and the laptop tell each other of changes that may still be taken back.
//!
//! A change of a node is a transaction: it is written down before its first effect, it is undone by the node itself
//! unless the laptop confirms it in time, and the last confirmed one can be taken back as long as it is the last.

use serde::{Deserialize, Serialize};

use crate::NodeObject;
use crate::spec::NodeSpec;

/// Who works on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// `user@host` of the laptop.
    pub who: String,
    /// Process id on the laptop.
    pub pid: u32,
    /// The command, e.g. `apply`.
    pub command: String,
    /// When it began, seconds since 1970 (the laptop's clock).
    pub since: u64,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (homelab {}, process {})", self.who, self.command, self.pid)
    }
}

/// How far a transaction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Written down and armed; its changes may be under way.
    Armed,
    /// All changes are made; the node waits for the laptop's word.
    Applied,
    /// The laptop has seen that all is well and holds the change for the user (`apply --try`).
    Held,
    /// It is being taken back.
    RollingBack,
}

/// A transaction that is neither confirmed nor taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenTransaction {
    /// Its name, chosen by the laptop.
    pub id: String,
    /// Whose it is.
    pub by: Holder,
    /// How far it has come.
    pub phase: Phase,
    /// Seconds until the node takes it back by itself; 0 if that is due.
    pub remaining: u64,
    /// Number of its changes.
    pub changes: usize,
}

/// A transaction that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reverted {
    /// Its name.
    pub id: String,
    /// Whose it was.
    pub by: Holder,
    /// When it was taken back, seconds since 1970 (the node's clock).
    pub at: u64,
    /// Why, as a part of a sentence: `nobody confirmed it within 60 s`.
    pub reason: String,
    /// Objects, as plans name them, that are not as they were before; empty if the node was verified to be as before.
    pub left: Vec<String>,
}

/// The last confirmed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmed {
    /// Its name.
    pub id: String,
    /// Whose it was.
    pub by: Holder,
    /// When it was confirmed, seconds since 1970 (the node's clock).
    pub at: u64,
    /// What the node was told to be; None if the transaction did not write it.
    pub spec: Option<NodeSpec>,
    /// Whether `homelab rollback` can take it back: it has not been taken back yet.
    pub revertible: bool,
}

/// The last confirmed transaction with the state before it, for `homelab rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Previous {
    /// The transaction.
    pub confirmed: Confirmed,
    /// All objects of ours before it.
    pub before: Vec<NodeObject>,
}

/// What a node knows of its transactions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Who holds the node's lock.
    pub holder: Option<Holder>,
    /// A transaction that is under way.
    pub open: Option<OpenTransaction>,
    /// The transaction before, if it was taken back by the node itself and nothing was confirmed since.
    pub reverted: Option<Reverted>,
    /// The last confirmed transaction.
    pub confirmed: Option<Confirmed>,
}
