//! `homelab plan`

use std::path::Path;

use homelab_driver::{Goal, Plan};

use super::session::Session;
use super::{DONE, FAILED, PENDING};
use crate::args::{Format, Global};
use crate::error::CliError;
use crate::render::{plan_human, plan_json, plan_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    detailed_exitcode: bool,
    out: Option<&Path>,
) -> Result<u8, CliError> {
    let session = Session::new(global, terminal)?;
    let prepared = session
        .with(terminal, |engine| engine.prepare(&session.cluster, Goal::Desired, &session.chosen))
        .map_err(|e| CliError::new(e.to_string()))?;
    terminal.out(&render(&prepared.plan, global, terminal))?;
    if let Some(path) = out {
        std::fs::write(path, format!("{:#}\n", plan_json(&prepared.plan)))
            .map_err(|e| CliError::new(format!("cannot write {}: {e}", path.display())))?;
    }
    let code = code(&prepared.plan, detailed_exitcode);
    prepared.close(session.parallel());
    Ok(code)
}

/// The plan in the form that was asked for.
pub(crate) fn render(plan: &Plan, global: &Global, terminal: &Terminal) -> String {
    match global.format {
        Format::Human => plan_human(plan, terminal.paint, global.verbose),
        Format::Json => format!("{:#}\n", plan_json(plan)),
        Format::Markdown => plan_markdown(plan),
    }
}

fn code(plan: &Plan, detailed: bool) -> u8 {
    match (plan.failed_nodes(), detailed && !plan.is_empty()) {
        (0, true) => PENDING,
        (0, false) => DONE,
        _ => FAILED,
    }
}
