//! The plan as data.

use serde::{Deserialize, Serialize};

use crate::node::{Module, NodeObject};
use crate::object::{Change, Impact, Object, diff};

/// What happens to an object, in a plan's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// `+`
    Create,
    /// `~`
    Update,
    /// `-/+`
    Replace,
    /// `-`
    Delete,
}

impl Action {
    /// The sign in front of a change.
    pub fn sign(self) -> &'static str {
        match self {
            Action::Create => "+",
            Action::Update => "~",
            Action::Replace => "-/+",
            Action::Delete => "-",
        }
    }
}

/// One change with what a reader needs to judge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChange {
    /// Whose object it is.
    pub module: Module,
    /// The object as plans name it.
    pub object: String,
    /// What happens to it.
    pub action: Action,
    /// What traffic notices.
    pub impact: Impact,
    /// Why; empty where nothing is noticed.
    pub reason: String,
    /// The change itself.
    pub change: Change<NodeObject>,
}

/// All changes of one node, in the order in which they are carried out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodePlan {
    /// Node name.
    pub node: String,
    /// Its changes.
    pub changes: Vec<PlannedChange>,
}

/// Counts over a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Objects to create.
    pub create: usize,
    /// Objects to alter in place.
    pub update: usize,
    /// Objects to delete and create.
    pub replace: usize,
    /// Objects to delete.
    pub delete: usize,
}

impl FromIterator<Action> for Summary {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Summary {
        let mut summary = Summary::default();
        for action in actions {
            match action {
                Action::Create => summary.create += 1,
                Action::Update => summary.update += 1,
                Action::Replace => summary.replace += 1,
                Action::Delete => summary.delete += 1,
            }
        }
        summary
    }
}

impl Summary {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Summary::default()
    }
}

/// The plan that leads one node from `observed` to `desired`.
pub fn plan_node(node: &str, observed: &[NodeObject], desired: &[NodeObject]) -> NodePlan {
    let changes = diff(observed, desired)
        .into_iter()
        .map(|change| {
            let (impact, reason) = NodeObject::impact(&change);
            let (action, object) = match &change {
                Change::Create { after } => (Action::Create, after),
                Change::Update { after, .. } => (Action::Update, after),
                Change::Replace { after, .. } => (Action::Replace, after),
                Change::Delete { before } => (Action::Delete, before),
            };
            PlannedChange {
                module: object.module,
                object: object.spec.key().to_string(),
                action,
                impact,
                reason: reason.to_owned(),
                change,
            }
        })
        .collect();
    NodePlan { node: node.to_owned(), changes }
}

impl NodePlan {
    /// The worst impact of all changes.
    pub fn impact(&self) -> Impact {
        self.changes.iter().map(|c| c.impact).max().unwrap_or(Impact::None)
    }

    /// The bare changes.
    pub fn bare(&self) -> Vec<Change<NodeObject>> {
        self.changes.iter().map(|c| c.change.clone()).collect()
    }

    /// The changes as they are shown: an object that goes and comes again because its parent is replaced is one
    /// replacement. Order of creation.
    pub fn shown(&self) -> Vec<PlannedChange> {
        let mut shown: Vec<PlannedChange> = Vec::new();
        let created =
            |object: &str| self.changes.iter().find(|c| c.action == Action::Create && c.object == object);
        for planned in &self.changes {
            match planned.action {
                Action::Delete if created(&planned.object).is_some() => {}
                Action::Create => {
                    let deleted = self
                        .changes
                        .iter()
                        .find(|c| c.action == Action::Delete && c.object == planned.object)
                        .and_then(|c| c.change.before());
                    let mut planned = planned.clone();
                    if let (Some(before), Some(after)) = (deleted, planned.change.after()) {
                        planned.action = Action::Replace;
                        planned.impact = Impact::Brief;
                        planned.reason = "made again with the object that it belongs to".to_owned();
                        planned.change = Change::Replace { before: before.clone(), after: after.clone() };
                    }
                    shown.push(planned);
                }
                _ => shown.push(planned.clone()),
            }
        }
        shown
    }

    /// Counts of what is [`shown`](NodePlan::shown).
    pub fn summary(&self) -> Summary {
        self.shown().iter().map(|change| change.action).collect()
    }
}
