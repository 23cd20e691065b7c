//! `homelab status`

use homelab_driver::Goal;

use super::session::Session;
use super::{DONE, FAILED};
use crate::args::{Format, Global};
use crate::error::CliError;
use crate::render::{NodeStatus, node_status, status_human, status_json, status_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(global: &Global, terminal: &Terminal) -> Result<u8, CliError> {
    let session = Session::new(global, terminal)?;
    let prepared = session
        .with(terminal, |engine| engine.prepare(&session.cluster, Goal::Desired, &session.chosen))
        .map_err(|e| CliError::new(e.to_string()))?;
    let status = |n: &homelab_driver::PlannedNode| {
        node_status(n, prepared.observed(&n.name), prepared.specs.get(&n.name))
    };
    let nodes: Vec<NodeStatus> = prepared.plan.nodes.iter().map(status).collect();
    let warnings = &prepared.plan.warnings;
    terminal.out(&match global.format {
        Format::Human => status_human(&nodes, warnings, terminal.paint),
        Format::Json => format!("{:#}\n", status_json(&session.cluster.name, &nodes, warnings)),
        Format::Markdown => status_markdown(&nodes, warnings),
    })?;
    prepared.close(session.parallel());
    Ok(if nodes.iter().all(|n| n.error.is_none()) { DONE } else { FAILED })
}
