//! `homelab apply` and `homelab destroy`

use std::time::Instant;

use homelab_driver::{Departed, Goal, Plan};
use homelab_model::Impact;
use serde_json::json;

use super::session::Session;
use super::{DONE, FAILED, plan};
use crate::args::{Consent, Format, Global};
use crate::error::CliError;
use crate::render::{plan_json, report_human, report_json, report_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    consent: &Consent,
    destroy: bool,
) -> Result<u8, CliError> {
    let session = Session::new(global, terminal)?;
    let goal = if destroy { Goal::Destroyed } else { Goal::Desired };
    let prepared = session
        .with(terminal, |engine| engine.prepare(&session.cluster, goal, &session.chosen))
        .map_err(|e| CliError::new(e.to_string()))?;
    let failed = prepared.plan.failed_nodes() > 0;
    let planned = plan_json(&prepared.plan);
    if global.format != Format::Json {
        terminal.out(&plan::render(&prepared.plan, global, terminal))?;
    }
    if prepared.plan.is_empty() {
        prepared.close(session.parallel());
        if global.format == Format::Json {
            terminal.out(&format!("{:#}\n", json!({"plan": planned, "result": null})))?;
        }
        return Ok(if failed { FAILED } else { DONE });
    }
    if global.format == Format::Json && !consent.yes {
        // The question would stand in front of a plan that nobody has seen yet.
        terminal.say(&plan_text(&prepared.plan, terminal));
    }
    agree(&prepared.plan, consent, terminal, destroy)?;
    // Peers forget a departed node with this apply, so now is the time to ask about it.
    // With --nodes the others still know it, and a later run asks.
    let departed = if session.chosen.is_empty() { prepared.plan.departed.clone() } else { Vec::new() };
    let cleaning: Vec<(Departed, bool)> = departed
        .into_iter()
        .map(|gone| {
            let clean = consent.yes || clean_too(&gone, terminal)?;
            Ok((gone, clean))
        })
        .collect::<Result<_, CliError>>()?;
    let start = Instant::now();
    let (report, goodbyes) = session.changing(terminal, |engine| {
        let report = engine.apply(prepared);
        let goodbyes: Vec<_> = cleaning
            .into_iter()
            .map(|(gone, clean)| {
                let farewell =
                    (clean && !session.cancelled()).then(|| engine.farewell(&session.cluster, &gone));
                (gone, farewell)
            })
            .collect();
        (report, goodbyes)
    });
    let total = start.elapsed();
    terminal.out(&match global.format {
        Format::Human => report_human(&report, &goodbyes, total, destroy, terminal.paint),
        Format::Json => {
            format!("{:#}\n", json!({"plan": planned, "result": report_json(&report, &goodbyes, total)}))
        }
        Format::Markdown => report_markdown(&report, &goodbyes, total, destroy),
    })?;
    Ok(if report.succeeded() { DONE } else { FAILED })
}

fn plan_text(plan: &Plan, terminal: &Terminal) -> String {
    crate::render::plan_human(plan, terminal.stderr_paint, false)
}

/// Asks for what was not agreed to on the command line.
fn agree(plan: &Plan, consent: &Consent, terminal: &Terminal, destroy: bool) -> Result<(), CliError> {
    let disruptive = plan.impact() == Impact::Disruptive;
    // A destroy is disruptive by its name; its own question is enough.
    let again = disruptive && !destroy && !consent.allow_disruptive;
    if !terminal.interactive {
        if !consent.yes {
            return Err(CliError::new("there is no terminal to ask on, and nothing was changed")
                .hint("add --yes to go on without a question"));
        }
        if again {
            return Err(CliError::new("this plan interrupts pods' connections, and nothing was changed")
                .hint("add --allow-disruptive to allow that"));
        }
        return Ok(());
    }
    let question = if destroy { "Take everything of homelab away?" } else { "Apply these changes?" };
    if !consent.yes && !terminal.confirm(question)? {
        return Err(CliError::new("nothing was changed"));
    }
    if again && !terminal.confirm("This interrupts pods' connections, as the plan says. Go on?")? {
        return Err(CliError::new("nothing was changed"));
    }
    Ok(())
}

fn clean_too(gone: &Departed, terminal: &Terminal) -> Result<bool, CliError> {
    let label = gone.label();
    terminal
        .confirm(&format!("{label} left the cluster file. Take homelab away from it, too, if it answers?"))
}
