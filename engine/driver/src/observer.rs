//! What the driver tells of its progress. The caller draws it.

use crate::NodeError;

/// A step of one node.
#[derive(Debug)]
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
    /// Changes are being made.
    Applying {
        /// Changes done.
        done: usize,
        /// Changes in all.
        total: usize,
    },
    /// All changes are made; the node is looked at again.
    Verifying,
    /// The node is as desired.
    Done,
    /// The node failed.
    Failed(&'a NodeError),
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
