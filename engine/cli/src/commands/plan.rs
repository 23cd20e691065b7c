//! `homelab plan`

use std::path::Path;

use homelab_driver::{Goal, Plan};

use super::output;
use super::session::Session;
use super::{DONE, FAILED, PENDING};
use crate::args::{Format, Global};
use crate::error::CliError;
use crate::planfile;
use crate::render::{Shown, plan_human, plan_json, plan_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    detailed_exitcode: bool,
    out: Option<&Path>,
    scan_pool: bool,
) -> Result<u8, CliError> {
    let mut prepared = session.prepare(terminal, Goal::Desired)?;
    if scan_pool {
        let pools = &session.cluster.load_balancer.pools;
        let used = session.with(terminal, None, |engine| engine.scan_pools(&prepared, pools));
        prepared.plan.warnings.extend(used);
    }
    let by_hand = super::drift::by_hand(session, &prepared);
    prepared.plan.warnings.extend(by_hand);
    let plan = &prepared.plan;
    let json = plan_json(plan);
    if let Some(path) = out {
        let bound = planfile::bind(json.clone(), &session.basis(&prepared));
        output::write(path, &Shown::json(&bound))?;
    }
    let human = |paint| plan_human(plan, paint, global.verbose);
    output::deliver(global, terminal, &json, human, || plan_markdown(plan))?;
    let code = code(plan, detailed_exitcode);
    prepared.close(session.parallel());
    Ok(code)
}

/// The plan for people.
pub(crate) fn text(plan: &Plan, global: &Global, terminal: &Terminal) -> Shown {
    match global.format {
        Format::Markdown => plan_markdown(plan),
        _ => plan_human(plan, terminal.paint, global.verbose),
    }
}

fn code(plan: &Plan, detailed: bool) -> u8 {
    match (plan.has_failed(), detailed && !plan.is_empty()) {
        (false, true) => PENDING,
        (false, false) => DONE,
        _ => FAILED,
    }
}
