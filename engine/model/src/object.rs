//! The one abstraction: keyed objects, their changes, and the laws that hold for both.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a user's traffic notices of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Impact {
    /// Nothing.
    None,
    /// A moment in which new things wait (agent restart); packets keep flowing.
    Brief,
    /// Pods on the node, or in the cluster, lose connectivity.
    Disruptive,
}

/// A piece of node state with an identity.
pub trait Object: Clone + Eq {
    /// Identity; its order is the order of creation (and, reversed, of deletion).
    type Key: Ord + Clone;
    /// The identity of this object.
    fn key(&self) -> Self::Key;
    /// The object that takes this one with it when it goes, as a link takes its addresses.
    fn parent(&self) -> Option<Self::Key>;
    /// Whether `self` can become `after` without being deleted first.
    fn updates_in_place(&self, after: &Self) -> bool;
    /// What a user's traffic notices, and why.
    fn impact(change: &Change<Self>) -> (Impact, &'static str);
}

/// One step from what is to what should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "action")]
pub enum Change<O> {
    /// Make an object that is not there.
    Create {
        /// The new object.
        after: O,
    },
    /// Alter an object in place.
    Update {
        /// As it is.
        before: O,
        /// As it should be.
        after: O,
    },
    /// Delete an object and make it anew, because it cannot be altered in place.
    Replace {
        /// As it is.
        before: O,
        /// As it should be.
        after: O,
    },
    /// Take an object away.
    Delete {
        /// As it is.
        before: O,
    },
}

impl<O: Object> Change<O> {
    /// The identity of the changed object.
    pub fn key(&self) -> O::Key {
        match self {
            Change::Create { after } | Change::Update { after, .. } | Change::Replace { after, .. } => {
                after.key()
            }
            Change::Delete { before } => before.key(),
        }
    }

    /// The object before the change, if there is one.
    pub fn before(&self) -> Option<&O> {
        match self {
            Change::Create { .. } => None,
            Change::Update { before, .. } | Change::Replace { before, .. } | Change::Delete { before } => {
                Some(before)
            }
        }
    }

    /// The object after the change, if there is one.
    pub fn after(&self) -> Option<&O> {
        match self {
            Change::Create { after } | Change::Update { after, .. } | Change::Replace { after, .. } => {
                Some(after)
            }
            Change::Delete { .. } => None,
        }
    }

    /// The change that undoes this one.
    pub fn invert(&self) -> Self {
        match self.clone() {
            Change::Create { after } => Change::Delete { before: after },
            Change::Delete { before } => Change::Create { after: before },
            Change::Update { before, after } => Change::Update { before: after, after: before },
            Change::Replace { before, after } => Change::Replace { before: after, after: before },
        }
    }
}

/// Where changes take effect. Implemented on a node, and by fakes in tests.
pub trait Backend<O: Object> {
    /// What can go wrong.
    type Error;
    /// Carries out one change. Deleting what is gone already is no error.
    fn apply(&mut self, change: &Change<O>) -> Result<(), Self::Error>;
}

/// The changes that lead from `observed` to `desired`.
///
/// First what must go, children before parents; then what is made or altered, parents before children.
/// A replaced object's children are deleted before it and made again after it, so that every prefix of the
/// list can be undone by [`invert`]ing it.
pub fn diff<O: Object>(observed: &[O], desired: &[O]) -> Vec<Change<O>> {
    let have: BTreeMap<O::Key, &O> = observed.iter().map(|o| (o.key(), o)).collect();
    let want: BTreeMap<O::Key, &O> = desired.iter().map(|o| (o.key(), o)).collect();
    let mut gone: BTreeSet<O::Key> = BTreeSet::new();
    let mut replaced: BTreeSet<O::Key> = BTreeSet::new();
    // Parents sort before their children, so one pass in key order sees a parent's fate first.
    for (key, before) in &have {
        let orphan = before.parent().is_some_and(|p| gone.contains(&p) || replaced.contains(&p));
        match want.get(key) {
            None => {
                gone.insert(key.clone());
            }
            Some(_) if orphan => {
                gone.insert(key.clone());
            }
            Some(after) if before != after && !before.updates_in_place(after) => {
                replaced.insert(key.clone());
            }
            Some(_) => {}
        }
    }
    let mut changes: Vec<Change<O>> =
        gone.iter().rev().map(|k| Change::Delete { before: have[k].clone() }).collect();
    for (key, &after) in &want {
        let after = after.clone();
        match have.get(key) {
            Some(_) if gone.contains(key) => changes.push(Change::Create { after }),
            None => changes.push(Change::Create { after }),
            Some(&before) if replaced.contains(key) => {
                changes.push(Change::Replace { before: before.clone(), after });
            }
            Some(&before) if *before != after => {
                changes.push(Change::Update { before: before.clone(), after });
            }
            Some(_) => {}
        }
    }
    changes
}

/// The changes that undo `applied`, last first.
pub fn invert<O: Object>(applied: &[Change<O>]) -> Vec<Change<O>> {
    applied.iter().rev().map(Change::invert).collect()
}
