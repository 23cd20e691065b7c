//! `homelab status services`

use homelab_driver::Goal;

use super::session::{Session, by_node};
use super::{DONE, FAILED, output};
use crate::args::Global;
use crate::error::CliError;
use crate::render::{ServicesOfNode, service_rows, services_human, services_json, services_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    name: Option<&str>,
) -> Result<u8, CliError> {
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let answers = session.with(terminal, None, |engine| engine.services(&prepared));
    let answers = by_node(&prepared, answers).into_iter();
    let nodes: Vec<ServicesOfNode> = answers.map(|(name, answer)| ServicesOfNode { name, answer }).collect();
    prepared.close(session.parallel());
    let all = service_rows(&nodes);
    let rows: Vec<_> =
        all.iter().filter(|row| name.is_none_or(|name| row.is_called(name))).cloned().collect();
    let json = services_json(&session.cluster.name, &nodes, &rows);
    let human = |paint| services_human(&nodes, &rows, paint, global.verbose);
    let failed = nodes.iter().any(|node| node.answer.is_err());
    if let (Some(name), true, false) = (name, rows.is_empty(), failed) {
        let known: Vec<&str> = all.iter().map(|row| row.name.as_str()).filter(|n| !n.is_empty()).collect();
        let error = CliError::new(format!("no node knows a service {name:?}"));
        return Err(match known.is_empty() {
            true => error.hint("no node knows any; homelab apply tells them those of the cluster file"),
            false => error.hint(format!("they know {}", known.join(", "))),
        });
    }
    output::deliver(global, terminal, &json, human, || services_markdown(&nodes, &rows))?;
    Ok(if failed || rows.iter().any(|row| !row.agrees()) { FAILED } else { DONE })
}
