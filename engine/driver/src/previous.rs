//! `homelab rollback`: the state before the last confirmed change.

use std::collections::BTreeMap;

use homelab_model::{Content, File, NodeObject, Object, Spec, ours, sha256_hex};
use homelab_protocol::{Request, Response};

use crate::connection::Line;
use crate::engine::{Engine, Live, Resolved, is_chosen};
use crate::keys::Ring;
use crate::plan::owned;
use crate::{Event, NodeError, parallel};

impl Engine<'_> {
    /// Asks the chosen nodes what they were before, and makes that what they shall be.
    pub(crate) fn previous(
        &self,
        chosen: &[String],
        live: &mut BTreeMap<String, Live>,
        errors: &mut BTreeMap<String, NodeError>,
        resolved: &mut Resolved,
    ) {
        let asked: Vec<(String, Line)> = live
            .iter()
            .filter(|(name, _)| is_chosen(chosen, name))
            .map(|(name, l)| (name.clone(), l.line.clone()))
            .collect();
        let answers = parallel::map(asked, self.options.parallel, |(name, line)| {
            let answer = match line.get().ask(&Request::Previous, self.options.answer) {
                Ok(Response::Previous(previous)) => Ok(previous),
                Ok(Response::Failed(failure)) => Err(NodeError::Failed(failure)),
                Ok(_) => Err(NodeError::OutOfTurn),
                Err(error) => Err(error),
            };
            (name, answer)
        });
        for node in live.values_mut() {
            node.desired = owned(&node.observed);
        }
        for (name, answer) in answers {
            let before = match answer {
                Ok(Some(previous)) if previous.confirmed.revertible => {
                    wanted(previous.before, resolved.ring.as_ref())
                }
                Ok(_) => {
                    resolved
                        .warnings
                        .push(format!("{name} has no confirmed change that could be taken back"));
                    continue;
                }
                Err(error) => Err(error),
            };
            match before {
                Ok(before) => {
                    if let Some(node) = live.get_mut(&name) {
                        node.desired = before;
                    }
                }
                Err(error) => {
                    self.observer.event(&name, Event::Unreachable(&error));
                    if let Some(node) = live.remove(&name) {
                        node.line.close();
                    }
                    errors.insert(name, error);
                }
            }
        }
    }
}

/// What a node shall be to be as `before`: the agent as its files describe it, and of the membership keys the ring of
/// today, because an old one would cut the node off from its peers.
fn wanted(mut before: Vec<NodeObject>, ring: Option<&Ring>) -> Result<Vec<NodeObject>, NodeError> {
    let record = before.iter().find_map(|o| match &o.spec {
        Spec::File(File { path, content: Content::Text(text), .. }) if path == ours::NODE_SPEC => {
            Some(sha256_hex(text.as_bytes()))
        }
        _ => None,
    });
    let binary = before.iter().find_map(|o| match &o.spec {
        Spec::Symlink(link) if link.path == ours::BINARY => link.target.split('/').next().map(str::to_owned),
        _ => None,
    });
    let mut unmakable = Vec::new();
    for object in &mut before {
        let name = object.key().to_string();
        match &mut object.spec {
            // A process cannot be brought back, only started from what the files say.
            Spec::Unit(unit) if unit.name == ours::UNIT => {
                if let (Some(record), Some(binary)) = (&record, &binary) {
                    unit.config.clone_from(record);
                    unit.running.clone_from(binary);
                }
                unit.reload_needed = false;
                if unit.enabled {
                    "active".clone_into(&mut unit.state);
                }
            }
            Spec::File(File { path, content: Content::Secret(summary), .. }) => {
                match ring.and_then(Ring::summary) {
                    Some(today) if path == ours::KEYS => today.clone_into(summary),
                    // The node has kept it.
                    _ if path == ours::BGP_PASSWORDS || path == ours::KUBERNETES_TOKEN => {}
                    _ => unmakable.push(name),
                }
            }
            _ => {}
        }
    }
    if unmakable.is_empty() { Ok(before) } else { Err(NodeError::Unmakable(unmakable)) }
}
