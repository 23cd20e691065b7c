//! `homelab status`

use homelab_driver::Goal;

use super::session::Session;
use super::{DONE, FAILED, output};
use crate::args::Global;
use crate::error::CliError;
use crate::render::{NodeStatus, node_status, status_human, status_json, status_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(global: &Global, terminal: &Terminal, session: &Session) -> Result<u8, CliError> {
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let status = |n: &homelab_driver::PlannedNode| {
        node_status(n, prepared.observed(&n.name), prepared.specs.get(&n.name))
    };
    let nodes: Vec<NodeStatus> = prepared.plan.nodes.iter().map(status).collect();
    let mut warnings = prepared.plan.warnings.clone();
    warnings.extend(super::lb::warnings(session, terminal, &prepared));
    let warnings = &warnings;
    let json = status_json(&session.cluster.name, &nodes, warnings);
    let human = |paint| status_human(&nodes, warnings, paint);
    output::deliver(global, terminal, &json, human, || status_markdown(&nodes, warnings))?;
    prepared.close(session.parallel());
    Ok(if nodes.iter().all(|n| n.error.is_none()) { DONE } else { FAILED })
}
