//! Transactions that are still open, and locks: confirm, take back, unlock.

use std::collections::BTreeMap;

use homelab_model::{Cluster, Holder, OpenTransaction, Phase};
use homelab_protocol::{Request, Response};

use crate::engine::{Engine, Live, is_chosen, targets};
use crate::resolve::first_scope;
use crate::{Event, NodeError, Target, history, parallel};

/// What `homelab confirm` found on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfirmOutcome {
    /// The open change stays.
    Confirmed(OpenTransaction),
    /// There was no open change.
    Nothing,
}

/// What `homelab rollback` found on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollbackOutcome {
    /// The open change was taken back.
    RolledBack {
        /// The change.
        open: OpenTransaction,
        /// Objects, as plans name them, that are not as before; empty if the node was verified to be as before.
        left: Vec<String>,
    },
    /// There was no open change.
    Nothing,
}

/// Results by node, in the order of the file.
pub type ByNode<T> = Vec<(String, Result<T, NodeError>)>;

impl Engine<'_> {
    /// Confirms the change that waits for it on every chosen node. A change that another laptop is at work on is
    /// [`NodeError::Busy`].
    pub fn confirm(&self, cluster: &Cluster, chosen: &[String]) -> ByNode<ConfirmOutcome> {
        self.on_each(cluster, chosen, |name, live| {
            let Some(open) = idle(live)? else { return Ok(ConfirmOutcome::Nothing) };
            self.observer.event(name, Event::Confirming);
            match live.line.get().ask(&Request::Confirm { id: open.id.clone() }, self.options.answer)? {
                Response::Confirmed => Ok(ConfirmOutcome::Confirmed(open)),
                Response::Failed(failure) => Err(NodeError::Failed(failure)),
                _ => Err(NodeError::OutOfTurn),
            }
        })
    }

    /// Takes the open change of every chosen node back.
    pub fn rollback_open(&self, cluster: &Cluster, chosen: &[String]) -> ByNode<RollbackOutcome> {
        let reason = format!("{} took it back", self.options.by);
        self.on_each(cluster, chosen, |name, live| {
            let Some(open) = idle(live)? else { return Ok(RollbackOutcome::Nothing) };
            let left = self.say_back(name, live, &open, &reason)?;
            Ok(RollbackOutcome::RolledBack { open, left })
        })
    }

    /// Who holds the locks of the chosen nodes; with `force` it is taken from them. An open change stays open.
    pub fn unlock(&self, cluster: &Cluster, chosen: &[String], force: bool) -> ByNode<Option<Holder>> {
        self.on_each(cluster, chosen, |_, live| {
            if !force {
                return Ok(live.observed.history.holder.clone());
            }
            match live.line.get().ask(&Request::Unlock, self.options.answer)? {
                Response::Unlocked { holder } => Ok(holder),
                Response::Failed(failure) => Err(NodeError::Failed(failure)),
                _ => Err(NodeError::OutOfTurn),
            }
        })
    }

    fn on_each<T: Send>(
        &self,
        cluster: &Cluster,
        chosen: &[String],
        work: impl Fn(&str, &Live) -> Result<T, NodeError> + Sync,
    ) -> ByNode<T> {
        let scope = first_scope(cluster, &self.binaries.digests());
        let chosen = targets(cluster).into_iter().filter(|t| is_chosen(chosen, &t.name)).collect();
        parallel::map(chosen, self.options.parallel, |target: Target| {
            let result = self.open(&target, &scope).and_then(|live| {
                let result = work(&target.name, &live);
                live.line.close();
                result
            });
            match &result {
                Ok(_) => self.observer.event(&target.name, Event::Done),
                Err(error) => self.observer.event(&target.name, Event::Failed(error)),
            }
            (target.name, result)
        })
    }

    fn say_back(
        &self,
        name: &str,
        live: &Live,
        open: &OpenTransaction,
        reason: &str,
    ) -> Result<Vec<String>, NodeError> {
        self.observer.event(name, Event::RollingBack(reason));
        let request = Request::Rollback { id: open.id.clone(), reason: reason.to_owned() };
        match live.line.get().ask(&request, self.options.answer + self.options.confirm_timeout)? {
            Response::RolledBack { left } => Ok(left),
            Response::Failed(failure) => Err(NodeError::Failed(failure)),
            _ => Err(NodeError::OutOfTurn),
        }
    }

    /// Takes back what dead laptops left on the chosen nodes, and sets those aside whose change somebody tries out.
    pub(crate) fn settle_open(
        &self,
        targets: &[Target],
        chosen: &[String],
        live: &mut BTreeMap<String, Live>,
        errors: &mut BTreeMap<String, NodeError>,
        notes: &mut Vec<String>,
    ) {
        let mut open: Vec<(String, Live)> = Vec::new();
        for target in targets.iter().filter(|t| is_chosen(chosen, &t.name)) {
            if live.get(&target.name).is_some_and(|l| matches!(idle(l), Ok(Some(_)))) {
                open.extend(live.remove_entry(&target.name));
            }
        }
        let settled = parallel::map(open, self.options.parallel, |(name, mut live)| {
            let result = self.settle_node(&name, &mut live);
            (name, live, result)
        });
        for (name, node, result) in settled {
            match result {
                Ok(note) => {
                    notes.push(note);
                    live.insert(name, node);
                }
                Err(error) => {
                    self.observer.event(&name, Event::Unreachable(&error));
                    node.line.close();
                    errors.insert(name, error);
                }
            }
        }
    }

    fn settle_node(&self, name: &str, live: &mut Live) -> Result<String, NodeError> {
        let Some(open) = idle(live)? else { return Err(NodeError::OutOfTurn) };
        if open.phase == Phase::Held {
            return Err(NodeError::Held { by: open.by, remaining: open.remaining });
        }
        let left = self.say_back(name, live, &open, "its laptop went away and nobody confirmed it")?;
        live.observed = live.line.get().observe(&live.scope)?;
        Ok(history::taken_back(name, &open, &left))
    }
}

/// The open transaction, if nobody is at work on it.
fn idle(live: &Live) -> Result<Option<OpenTransaction>, NodeError> {
    match (&live.observed.history.open, &live.observed.history.holder) {
        (None, _) => Ok(None),
        (Some(_), Some(holder)) => Err(NodeError::Busy(holder.clone())),
        (Some(open), None) => Ok(Some(open.clone())),
    }
}
