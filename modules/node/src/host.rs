//! What serve and agent need of the machine. The real one is `homelab-linux`; tests have a fake.

use homelab_linux::Root;
use homelab_model::{Change, NodeObject, Observed, Scope};

/// A machine that can be looked at and changed.
pub(crate) trait Host {
    /// A look at everything; changes nothing.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, String>;
    /// Carries out changes in order. `progress` hears how many are done. On an error nothing after it was tried.
    fn apply(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyFailure>;
    /// Takes the lock that keeps other applies out, their undo too; it is held until the guard is dropped.
    fn lock_apply(&mut self) -> Result<Box<dyn Send>, String>;
    /// Takes the lock that keeps the agent out while changes are made; it is held until the guard is dropped.
    fn lock(&mut self) -> Result<Box<dyn Send>, String>;
    /// Gives up what an undo would need: the changes stay.
    fn settle(&mut self) -> Result<(), String>;
    /// Removes homelab's own records once nothing of it remains.
    fn farewell(&mut self) -> Result<(), String>;
    /// SHA-256 of the running binary, lower-case hex.
    fn binary_sha256(&self) -> Result<String, String>;
}

/// A change that failed.
#[derive(Debug, Clone)]
pub(crate) struct ApplyFailure {
    /// The object as plans name it.
    pub(crate) object: String,
    /// What went wrong.
    pub(crate) message: String,
}

/// The real machine.
pub(crate) struct Machine {
    node: homelab_linux::Node,
}

impl Machine {
    pub(crate) fn open() -> Result<Self, String> {
        homelab_linux::Node::open(Root::system()).map(|node| Machine { node }).map_err(|e| e.to_string())
    }
}

/// How long an apply waits for another one.
const APPLY_WAIT: std::time::Duration = std::time::Duration::from_secs(20);
/// How long an apply waits for the agent to finish a check.
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

impl Host for Machine {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, String> {
        self.node.observe(scope).map_err(|e| e.to_string())
    }

    fn apply(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyFailure> {
        self.node.apply_all(changes, progress).map_err(|error| ApplyFailure {
            object: error.object.to_string(),
            message: error.source.to_string(),
        })
    }

    fn lock_apply(&mut self) -> Result<Box<dyn Send>, String> {
        match homelab_linux::lock_apply(&Root::system(), APPLY_WAIT) {
            Ok(lock) => Ok(Box::new(lock)),
            Err(error) => Err(format!("another apply is at work here: {error}")),
        }
    }

    fn lock(&mut self) -> Result<Box<dyn Send>, String> {
        match homelab_linux::lock(&Root::system(), LOCK_WAIT) {
            Ok(lock) => Ok(Box::new(lock)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        self.node.settle().map_err(|e| e.to_string())
    }

    fn farewell(&mut self) -> Result<(), String> {
        self.node.farewell().map_err(|e| e.to_string())
    }

    fn binary_sha256(&self) -> Result<String, String> {
        homelab_linux::digest_of_self().map_err(|e| e.to_string())
    }
}
