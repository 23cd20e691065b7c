//! `homelab rotate-key`

use std::time::{Duration, Instant};

use homelab_driver::{Rotation, RotationStep};
use serde_json::{Value, json};

use super::session::Session;
use super::{DONE, FAILED, ROLLED_BACK, output};
use crate::args::Global;
use crate::error::CliError;
use crate::hints;
use crate::render::words::{Named, Words, list_human, list_markdown};
use crate::render::{report_human, report_json, report_markdown};
use crate::terminal::Terminal;

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    yes: bool,
) -> Result<u8, CliError> {
    if !global.nodes.is_empty() {
        return Err(CliError::new("the key is the same on all nodes: rotate-key takes no --nodes"));
    }
    super::ask(terminal, yes, "Replace the membership key on all nodes?")?;
    let start = Instant::now();
    let rotation = session
        .signals
        .changing(|| session.with(terminal, None, |engine| engine.rotate_keys(&session.cluster)))
        .map_err(|e| hints::rotate(&e).into_iter().fold(CliError::new(e.to_string()), CliError::hint))
        .map_err(|e| e.stopped_by(session.signals.exit_code()))?;
    let total = start.elapsed();
    let back = rotation.steps.iter().any(|(_, r)| r.rolled_back());
    let code = match session.signals.exit_code() {
        Some(code) => code,
        None if back => ROLLED_BACK,
        None if rotation.finished => DONE,
        None => FAILED,
    };
    let mut json = rotation_json(&rotation, total);
    json["exit_code"] = json!(code);
    // Where a step failed, its report says which node is where; else the steps are enough.
    let failed = rotation.steps.last().map(|(_, r)| r).filter(|r| !r.succeeded());
    let (nodes, sentence) = (steps(&rotation), sentence(&rotation));
    if let Some(report) = failed {
        let human = |paint| report_human(report, &[], total, false, paint);
        output::deliver(global, terminal, &json, human, || report_markdown(report, &[], total, false))?;
        terminal.say(&sentence);
    } else {
        let human = |paint| list_human(&nodes, &sentence, paint);
        output::deliver(global, terminal, &json, human, || list_markdown(&nodes, &sentence))?;
    }
    Ok(code)
}

fn word(step: RotationStep) -> (&'static str, &'static str) {
    match step {
        RotationStep::CatchUp => ("catch_up", "all nodes have the same keys"),
        RotationStep::Add => ("add", "the new key is accepted everywhere"),
        RotationStep::Switch => ("switch", "the new key signs everywhere"),
        RotationStep::Trim => ("trim", "the old key is gone everywhere"),
    }
}

fn steps(rotation: &Rotation) -> Named {
    let step = |(i, (step, report)): (usize, &(RotationStep, homelab_driver::Report))| {
        let text = word(*step).1;
        let words =
            if report.succeeded() { Words::good(text) } else { Words::bad(format!("not yet: {text}")) };
        (format!("step {}", i + 1), words)
    };
    rotation.steps.iter().enumerate().map(step).collect()
}

fn sentence(rotation: &Rotation) -> String {
    match rotation.finished {
        true => format!("The membership key was replaced ({}).", rotation.summary),
        false => "The key is not replaced yet; all nodes still understand each other. \
                  homelab rotate-key goes on from here."
            .to_owned(),
    }
}

fn rotation_json(rotation: &Rotation, total: Duration) -> Value {
    let steps: Vec<Value> = rotation
        .steps
        .iter()
        .map(|(step, report)| {
            let mut value = report_json(report, &[], total);
            value["step"] = json!(word(*step).0);
            value
        })
        .collect();
    json!({
        "format_version": 1,
        "steps": steps,
        "finished": rotation.finished,
        "keys": rotation.summary,
        "seconds": total.as_secs_f64(),
    })
}
