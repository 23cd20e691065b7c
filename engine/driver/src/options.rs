//! Settings of a run.

use std::time::Duration;

use homelab_model::{Holder, Passwords};

use crate::Places;

/// A number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// So many nodes.
    Nodes(usize),
    /// So many of a hundred nodes, rounded down.
    Percent(u8),
}

impl Batch {
    /// The number among `total` nodes.
    pub fn of(self, total: usize) -> usize {
        match self {
            Batch::Nodes(nodes) => nodes,
            Batch::Percent(percent) => total * usize::from(percent.min(100)) / 100,
        }
    }
}

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes worked on at once.
    pub parallel: usize,
    /// `user@host` of the caller, for the nodes' locks and journals.
    pub by: String,
    /// Process id of the caller, for the same.
    pub pid: u32,
    /// The command, e.g. `apply`, for the same.
    pub command: String,
    /// Seconds since 1970, for the same and for how long ago something was.
    pub now: u64,
    /// How long a node may take to settle after its changes are made.
    pub settle: Duration,
    /// Longest time for an answer that takes a node a moment; a node that drips it byte by byte is not waited for.
    pub answer: Duration,
    /// Pause between two looks at a node that settles, and between two tries to reach one that was lost.
    pub pause: Duration,
    /// A node takes a change back that it hears nothing about for so long. Whole seconds count, at least one.
    pub confirm_timeout: Duration,
    /// Do not confirm: the nodes take the changes back after this time unless the user confirms them.
    pub hold: Option<Duration>,
    /// Nodes changed at once after the first one; None: all, as far as `parallel` admits.
    pub batch: Option<Batch>,
    /// Most nodes that may be unreachable, failed or in a disruptive change at the same time; None: no bound.
    pub max_unavailable: Option<Batch>,
    /// How long to wait for another holder of a node's lock.
    pub lock_wait: Duration,
    /// Passwords of BGP peers by the peers' names; None: they are not at hand, and nodes keep what they have.
    pub passwords: Option<Passwords>,
    /// Give the chosen nodes new ServiceAccounts and tokens, whatever they have.
    pub new_tokens: bool,
    /// Places on the nodes.
    pub places: Places,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            parallel: 16,
            by: String::new(),
            pid: 0,
            command: "apply".to_owned(),
            now: 0,
            settle: Duration::from_secs(3),
            answer: Duration::from_secs(60),
            pause: Duration::from_millis(200),
            confirm_timeout: Duration::from_secs(60),
            hold: None,
            batch: None,
            max_unavailable: None,
            lock_wait: Duration::ZERO,
            passwords: None,
            new_tokens: false,
            places: Places::default(),
        }
    }
}

impl Options {
    /// How the caller signs locks and journals.
    pub fn holder(&self) -> Holder {
        Holder { who: self.by.clone(), pid: self.pid, command: self.command.clone(), since: self.now }
    }

    /// `confirm_timeout` as the nodes hear it, seconds.
    pub(crate) fn timeout(&self) -> u64 {
        self.confirm_timeout.as_secs().max(1)
    }
}
