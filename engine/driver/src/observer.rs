//! What the driver tells of its progress. The caller draws it.

use homelab_model::Holder;

use crate::NodeError;

/// A step of one node.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The connection is being opened.
    Connecting,
    /// The node binary is on its way.
    Uploading {
        /// Bytes sent.
        sent: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The node is known.
    Observed,
    /// The node could not be observed.
    Unreachable(&'a NodeError),
    /// The node's lock is being taken.
    Locking,
    /// Somebody else holds the node's lock, and is waited for.
    Waiting(&'a Holder),
    /// This package is being installed; nothing of the node is changed yet.
    Installing(&'a str),
    /// The transaction is being written down and its undo armed.
    Arming,
    /// Changes are being made.
    Applying {
        /// Changes done.
        done: usize,
        /// Changes in all.
        total: usize,
    },
    /// All changes are made; the node is looked at over a fresh connection.
    Verifying,
    /// All is well; the node is being told that the changes stay.
    Confirming,
    /// The node was lost; a connection is tried again and again.
    Reconnecting,
    /// The changes are being taken back, for this reason.
    RollingBack(&'a str),
    /// The node is as desired.
    Done,
    /// The node failed.
    Failed(&'a NodeError),
    /// The changes were taken back, for this reason.
    RolledBack(&'a str),
}

/// Hears of progress. Called from several threads.
pub trait Observer: Sync {
    /// Something happened on `node`.
    fn event(&self, node: &str, event: Event<'_>);
}

/// Hears and says nothing.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &str, _: Event<'_>) {}
}
