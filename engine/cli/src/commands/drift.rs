//! `homelab drift`

use homelab_driver::{Goal, PlannedNode, Prepared};

use super::output;
use super::session::Session;
use super::{DONE, FAILED, PENDING};
use crate::args::Global;
use crate::error::CliError;
use crate::render::{NodeDrift, drift_human, drift_json, drift_markdown, node_drift};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    detailed_exitcode: bool,
) -> Result<u8, CliError> {
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let nodes = of(session, &prepared);
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

fn of(session: &Session, prepared: &Prepared) -> Vec<NodeDrift> {
    let builds = session.basis(prepared).binaries;
    let other = |name: &str| {
        let observed = prepared.observed(name);
        let told = observed.and_then(|o| o.history.confirmed.as_ref()?.spec.as_ref().or(o.spec.as_ref()));
        told.is_some_and(|spec| !builds.values().any(|digest| *digest == spec.binary_sha256))
    };
    let node = |n: &PlannedNode| node_drift(n, prepared.drift(&n.name), other(&n.name));
    prepared.plan.nodes.iter().map(node).collect()
}

/// A warning for each node of the plan whose changes take back what somebody did by hand.
pub(crate) fn by_hand(session: &Session, prepared: &Prepared) -> Vec<String> {
    of(session, prepared).iter().filter_map(NodeDrift::sentence).collect()
}
