//! `homelab cordon` and `homelab uncordon`

use homelab_driver::{Goal, LbPicture};

use super::session::{Session, by_node, chosen};
use super::{DONE, FAILED, output};
use crate::args::Global;
use crate::error::CliError;
use crate::hints;
use crate::render::{CordonSaid, cordon_human, cordon_json, cordon_markdown, moves};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    node: &str,
    on: bool,
) -> Result<u8, CliError> {
    let word = if on { "cordon" } else { "uncordon" };
    if !global.nodes.is_empty() {
        return Err(CliError::new(format!(
            "{word} takes the node's name, and all nodes are asked: no --nodes"
        )));
    }
    chosen(&session.cluster, &[node.to_owned()])?;
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let done = session.with(terminal, None, |engine| engine.cordon(&prepared, node, on));
    let done = done.map_err(|error| {
        // One that was not reached says why in the plan.
        let planned = prepared.plan.nodes.iter().find(|planned| planned.name == node);
        let error = planned
            .filter(|_| prepared.observed(node).is_none())
            .and_then(|n| n.outcome.as_ref().err())
            .unwrap_or(&error);
        hints::hints(error).into_iter().fold(CliError::new(format!("{node}: {error}")), CliError::hint)
    });
    let result = done.map(|done| {
        let (before, after) = (LbPicture::of(&done.before), LbPicture::of(&done.after));
        let kept = after.addresses.iter().filter(|row| row.owner.as_deref() == Some(node));
        let kept = kept.map(|row| row.address).collect();
        let silent = by_node(&prepared, done.after);
        CordonSaid {
            node: node.to_owned(),
            on,
            changed: done.changed,
            agent: done.node.agent,
            told: done.node.told,
            known: done.known,
            moved: moves(&before, &after),
            kept,
            silent: silent.into_iter().filter_map(|(name, answer)| Some((name, answer.err()?))).collect(),
        }
    });
    prepared.close(session.parallel());
    let said = result?;
    let json = cordon_json(&said);
    output::deliver(global, terminal, &json, |paint| cordon_human(&said, paint), || cordon_markdown(&said))?;
    Ok(if said.is_done() { DONE } else { FAILED })
}
