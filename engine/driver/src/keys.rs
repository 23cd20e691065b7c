//! The membership key: made at the first apply, carried to nodes that lack it, replaced in three steps.

use std::collections::BTreeMap;

use homelab_model::{
    Change, Content, File, KeyRing, Module, NodeObject, NodePlan, Object, Observed, PlannedChange, Spec,
    generation_of, ours,
};
use homelab_protocol::{Request, Response};

use crate::engine::{Engine, Live, Prepared};
use crate::{ApplyError, NodeError};

/// What a plan says of a ring that does not exist yet.
pub const NEW_KEYS: &str = "made at this apply";
/// A ring cannot have been changed more often than this: whoever says so wants the count to overflow.
pub(crate) const MOST_CHANGES: u64 = 1 << 48;

/// The ring that the nodes shall have.
#[derive(Clone)]
pub(crate) enum Ring {
    /// None has one yet.
    New,
    /// Some have it.
    Known { summary: String, holders: Vec<String> },
    /// The engine has it.
    Given(KeyRing),
}

impl Ring {
    /// What objects say of it.
    pub(crate) fn text(&self) -> &str {
        self.summary().unwrap_or(NEW_KEYS)
    }

    pub(crate) fn summary(&self) -> Option<&str> {
        match self {
            Ring::Known { summary, .. } => Some(summary),
            Ring::New | Ring::Given(_) => None,
        }
    }
}

/// The file of a ring.
pub(crate) fn object(summary: &str) -> NodeObject {
    let content = Content::Secret(summary.to_owned());
    let file = File { path: ours::KEYS.to_owned(), mode: 0o600, owner: "0:0".to_owned(), content };
    NodeObject { module: Module::Agent, spec: Spec::File(file) }
}

/// `objects` with this ring in place of any other.
pub(crate) fn with(mut objects: Vec<NodeObject>, summary: &str) -> Vec<NodeObject> {
    let ring = object(summary);
    objects.retain(|o| o.key() != ring.key());
    objects.push(ring);
    objects
}

/// What a node says of its ring, if it holds one that can be used.
pub(crate) fn held(observed: &Observed) -> Option<&str> {
    let summary = observed.objects.iter().find_map(|o| secret_of(o))?;
    generation_of(summary).filter(|&g| g <= MOST_CHANGES).map(|_| summary)
}

pub(crate) fn secret_of(object: &NodeObject) -> Option<&str> {
    match &object.spec {
        Spec::File(File { path, content: Content::Secret(summary), .. }) if path == ours::KEYS => {
            Some(summary)
        }
        _ => None,
    }
}

/// The newest ring that a node holds. Of two with the same generation, as two laptops make them that do not see each
/// other's nodes, the same one always wins.
pub(crate) fn newest(live: &BTreeMap<String, Live>) -> Option<Ring> {
    let rings = live.values().filter_map(|l| held(&l.observed));
    let summary = rings.max_by_key(|s| (generation_of(s), s.to_string()))?.to_owned();
    let has = |(name, l): (&String, &Live)| (held(&l.observed) == Some(&summary)).then(|| name.clone());
    let holders = live.iter().filter_map(has).collect();
    Some(Ring::Known { summary, holders })
}

/// What an object says of its secret, whichever it is.
pub(crate) fn any_secret(object: &NodeObject) -> Option<&str> {
    match &object.spec {
        Spec::File(File { content: Content::Secret(summary), .. }) => Some(summary),
        _ => None,
    }
}

/// Whether carrying out `plan` needs the text of a ring.
fn needs_text(plan: &NodePlan) -> bool {
    plan.changes.iter().any(|c| c.change.after().is_some_and(|o| secret_of(o).is_some()))
}

/// Puts `summary` where an object speaks of a secret that is to be made.
pub(crate) fn rename_object(object: &mut NodeObject, file: &str, old: &str, summary: &str) {
    if let Spec::File(File { path, content: Content::Secret(text), .. }) = &mut object.spec
        && path == file
        && text == old
    {
        summary.clone_into(text);
    }
}

/// The same in what a plan makes.
pub(crate) fn rename(changes: &mut [PlannedChange], file: &str, old: &str, summary: &str) {
    for planned in changes {
        match &mut planned.change {
            Change::Create { after } | Change::Update { after, .. } | Change::Replace { after, .. } => {
                rename_object(after, file, old, summary);
            }
            Change::Delete { .. } => {}
        }
    }
}

impl Engine<'_> {
    /// The texts of secrets that the plan needs. New ones are made here; plan and desired state then name them.
    pub(crate) fn secrets(&self, prepared: &mut Prepared) -> Result<BTreeMap<String, String>, ApplyError> {
        let mut secrets = self.rings(prepared)?;
        self.password_files(prepared, &mut secrets)?;
        self.tokens(prepared, &mut secrets)?;
        Ok(secrets)
    }

    fn rings(&self, prepared: &mut Prepared) -> Result<BTreeMap<String, String>, ApplyError> {
        let plans = prepared.plan.nodes.iter().filter_map(|n| n.outcome.as_ref().ok());
        let none = BTreeMap::new();
        if !plans.clone().any(needs_text) {
            return Ok(none);
        }
        match prepared.ring.clone() {
            None => Ok(none),
            Some(Ring::Given(ring)) => Ok(BTreeMap::from([(ring.summary(), ring.to_text())])),
            Some(Ring::New) => {
                let ring = KeyRing::first((self.random)());
                let summary = ring.summary();
                for node in &mut prepared.plan.nodes {
                    if let Ok(plan) = &mut node.outcome {
                        rename(&mut plan.changes, ours::KEYS, NEW_KEYS, &summary);
                    }
                }
                for live in prepared.live.values_mut() {
                    live.desired.iter_mut().for_each(|o| rename_object(o, ours::KEYS, NEW_KEYS, &summary));
                }
                Ok(BTreeMap::from([(summary, ring.to_text())]))
            }
            Some(Ring::Known { summary, holders }) => {
                let ring = self.fetch_ring(prepared, &summary, &holders)?;
                Ok(BTreeMap::from([(summary, ring.to_text())]))
            }
        }
    }

    /// Fetches a ring from the first of its holders that gives it.
    pub(crate) fn fetch_ring(
        &self,
        prepared: &Prepared,
        summary: &str,
        holders: &[String],
    ) -> Result<KeyRing, ApplyError> {
        let mut failed = (String::new(), NodeError::WrongKey);
        for name in holders {
            let Some(live) = prepared.live.get(name) else { continue };
            let request = Request::Secret { path: ours::KEYS.to_owned() };
            let error = match live.line.get().ask(&request, self.options.answer) {
                Ok(Response::Secret(secret)) => match KeyRing::parse(&secret.text) {
                    Ok(ring) if ring.summary() == *summary => return Ok(ring),
                    _ => NodeError::WrongKey,
                },
                Ok(Response::Failed(failure)) => NodeError::Failed(failure),
                Ok(_) => NodeError::OutOfTurn,
                Err(error) => error,
            };
            failed = (name.clone(), error);
        }
        Err(ApplyError::Keys { node: failed.0, error: Box::new(failed.1) })
    }
}
