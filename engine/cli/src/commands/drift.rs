//! `homelab drift`

use homelab_driver::{Goal, Prepared};

use super::output;
use super::session::Session;
use super::{DONE, FAILED, PENDING};
use crate::args::Global;
use crate::error::CliError;
use crate::render::{NodeDrift, drift_human, drift_json, drift_markdown, node_drift};
use crate::terminal::Terminal;

pub(crate) fn run(global: &Global, terminal: &Terminal, detailed_exitcode: bool) -> Result<u8, CliError> {
    let session = Session::new(global, terminal, "drift")?;
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let nodes = of(&prepared);
    let warnings = &prepared.plan.warnings;
    let json = drift_json(&session.cluster.name, &nodes, warnings);
    let human = |paint| drift_human(&nodes, warnings, paint, global.verbose);
    output::deliver(global, terminal, &json, human, || {
        drift_markdown(&session.cluster.name, &nodes, warnings)
    })?;
    let drifted = nodes.iter().any(NodeDrift::drifted);
    let failed = nodes.iter().any(|n| n.error.is_some());
    prepared.close(session.parallel());
    Ok(match (failed, drifted && detailed_exitcode) {
        (true, _) => FAILED,
        (false, true) => PENDING,
        (false, false) => DONE,
    })
}

fn of(prepared: &Prepared) -> Vec<NodeDrift> {
    prepared.plan.nodes.iter().map(|n| node_drift(n, prepared.drift(&n.name))).collect()
}

/// A warning for each node of the plan whose changes take back what somebody did by hand.
pub(crate) fn by_hand(prepared: &Prepared) -> Vec<String> {
    of(prepared).iter().filter_map(NodeDrift::sentence).collect()
}
