//! `homelab confirm`, `rollback` and `unlock`: changes that are open, and locks.

use homelab_driver::{ByNode, ConfirmOutcome, Goal, RollbackOutcome};
use homelab_model::{Holder, OpenTransaction};
use serde_json::{Value, json};

use super::apply::{self, Task};
use super::output;
use super::session::Session;
use super::{DONE, FAILED};
use crate::args::{Format, Global};
use crate::error::CliError;
use crate::planfile::utc;
use crate::render::words::{Named, Words, list_human, list_markdown};
use crate::render::{ErrorText, count};
use crate::stream::Stream;
use crate::terminal::Terminal;

pub(crate) fn confirm(global: &Global, terminal: &Terminal, session: &Session) -> Result<u8, CliError> {
    let results = session.signals.changing(|| {
        session.with(terminal, None, |engine| engine.confirm(&session.cluster, &session.chosen))
    });
    let words = |outcome: &ConfirmOutcome| match outcome {
        ConfirmOutcome::Confirmed(open) => ("confirmed", Words::good(format!("confirmed: {}", of(open)))),
        ConfirmOutcome::Nothing => ("nothing", Words::good("holds no change")),
    };
    let kept = results.iter().filter(|(_, r)| matches!(r, Ok(ConfirmOutcome::Confirmed(_)))).count();
    let mut sentence = format!("{} confirmed.", count(kept, "node"));
    if kept == 0 {
        // A script that tries, tests and confirms must not take a change that has lapsed for a good one.
        sentence
            .push_str(" What was on trial was confirmed or taken back before; homelab status says which.");
    }
    let code = if kept > 0 && results.iter().all(|(_, r)| r.is_ok()) { DONE } else { FAILED };
    give(global, terminal, None, &results, words, &sentence, stopped(session, code))
}

pub(crate) fn rollback(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    task: &Task<'_>,
) -> Result<u8, CliError> {
    let prepared = session.prepare(terminal, task.goal)?;
    let nodes = prepared.plan.nodes.iter();
    let open: Vec<(String, OpenTransaction)> =
        nodes.filter_map(|n| Some((n.name.clone(), n.history.open.clone()?))).collect();
    if open.is_empty() {
        debug_assert_eq!(task.goal, Goal::Previous);
        return apply::run_from(global, terminal, session, task, Some(prepared));
    }
    prepared.close(session.parallel());
    for (name, open) in &open {
        terminal.say(&format!("{name} has an open change: {}", of(open)));
    }
    super::ask(terminal, task.consent.yes, "Take these open changes back now?")?;
    let stream = (global.format == Format::Json).then(|| Stream::new(terminal));
    let results = session.signals.changing(|| {
        session
            .with(terminal, stream.as_ref(), |engine| engine.rollback_open(&session.cluster, &session.chosen))
    });
    let words = |outcome: &RollbackOutcome| match outcome {
        RollbackOutcome::RolledBack { open, left } if left.is_empty() => {
            ("rolled_back", Words::good(format!("taken back, verified to be as before: {}", of(open))))
        }
        RollbackOutcome::RolledBack { open, left } => {
            let text = format!("taken back: {}; not as before: {}", of(open), left.join(", "));
            (
                "rolled_back",
                Words::bad(text).hint("homelab plan shows what these need; homelab apply mends them"),
            )
        }
        RollbackOutcome::Nothing => ("nothing", Words::good("no open change")),
    };
    let back = |r: &Result<RollbackOutcome, _>| matches!(r, Ok(RollbackOutcome::RolledBack { .. }));
    let whole = |r: &Result<RollbackOutcome, _>| match r {
        Ok(RollbackOutcome::RolledBack { left, .. }) => left.is_empty(),
        other => other.is_ok(),
    };
    let number = results.iter().filter(|(_, r)| back(r)).count();
    let sentence = format!("{} taken back.", count(number, "open change"));
    let code = if results.iter().all(|(_, r)| whole(r)) { DONE } else { FAILED };
    give(global, terminal, stream.as_ref(), &results, words, &sentence, stopped(session, code))
}

pub(crate) fn unlock(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    force: bool,
) -> Result<u8, CliError> {
    let ask = |force| {
        session.with(terminal, None, |engine| engine.unlock(&session.cluster, &session.chosen, force))
    };
    let mut results = ask(false);
    let holders = results.iter().filter(|(_, r)| matches!(r, Ok(Some(_)))).count();
    let mut taken = false;
    if holders > 0 && (force || terminal.interactive) {
        if !force {
            let words = |holder: &Option<Holder>| held(holder, false);
            terminal.show(&list_human(&named(&results, words), &locked(holders), terminal.stderr_paint));
            super::ask(
                terminal,
                false,
                "Take these locks away? Whoever holds them loses the nodes at once.",
            )?;
        }
        results = ask(true);
        taken = true;
    }
    let sentence = match (holders, taken) {
        (0, _) => "No node is locked.".to_owned(),
        (_, true) => {
            let number = results.iter().filter(|(_, r)| matches!(r, Ok(Some(_)))).count();
            format!(
                "{} taken away. A change that was under way is taken back by its node.",
                count(number, "lock")
            )
        }
        (_, false) => format!("{} homelab unlock --force takes the locks away.", locked(holders)),
    };
    let good = results.iter().all(|(_, r)| r.is_ok()) && (holders == 0 || taken);
    give(global, terminal, None, &results, |h| held(h, taken), &sentence, if good { DONE } else { FAILED })
}

fn held(holder: &Option<Holder>, taken: bool) -> (&'static str, Words) {
    match holder {
        None => ("free", Words::good("not locked")),
        Some(holder) => {
            let (name, verb) = if taken { ("displaced", "taken from") } else { ("held", "locked by") };
            (name, Words::good(format!("{verb} {holder}, since {}", utc(holder.since))))
        }
    }
}

fn locked(number: usize) -> String {
    let verb = if number == 1 { "is" } else { "are" };
    format!("{} {verb} locked.", count(number, "node"))
}

/// A change in a few words.
fn of(open: &OpenTransaction) -> String {
    format!("{} by {}", count(open.changes, "change"), open.by)
}

fn stopped(session: &Session, code: u8) -> u8 {
    session.signals.exit_code().unwrap_or(code)
}

fn named<T>(results: &ByNode<T>, words: impl Fn(&T) -> (&'static str, Words)) -> Named {
    let all = results.iter().map(|(name, result)| match result {
        Ok(outcome) => (name.clone(), words(outcome).1),
        Err(error) => (name.clone(), Words::bad("failed").error(Some(ErrorText::of(error)))),
    });
    all.collect()
}

fn give<T>(
    global: &Global,
    terminal: &Terminal,
    stream: Option<&Stream<'_>>,
    results: &ByNode<T>,
    words: impl Fn(&T) -> (&'static str, Words),
    sentence: &str,
    code: u8,
) -> Result<u8, CliError> {
    let nodes: Vec<Value> = results
        .iter()
        .map(|(name, result)| match result {
            Ok(outcome) => {
                let (outcome, said) = words(outcome);
                json!({"name": name, "outcome": outcome, "text": said.text, "good": said.good, "error": null})
            }
            Err(error) => {
                json!({"name": name, "outcome": "failed", "text": null, "good": false, "error": ErrorText::of(error)})
            }
        })
        .collect();
    let json = json!({"format_version": 1, "nodes": nodes, "exit_code": code});
    if let Some(stream) = stream {
        stream.send("result", json.clone());
        output::into(global, &json)?;
        return Ok(code);
    }
    let nodes = named(results, words);
    output::deliver(
        global,
        terminal,
        &json,
        |paint| list_human(&nodes, sentence, paint),
        || list_markdown(&nodes, sentence),
    )?;
    Ok(code)
}
