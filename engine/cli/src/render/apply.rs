//! How an apply or a destroy went.

use std::time::Duration;

use homelab_driver::{Departed, Farewell, NodeReport, Outcome, Report};
use serde_json::{Value, json};

use super::kubernetes;
use super::markdown::{code, prose};
use super::page::{Page, Paint, Shown, bold, line, yellow};
use super::words::{Named, Words, words_human, words_markdown};
use super::{ErrorText, bytes, count, duration, parts};
use crate::amounts::words;
use crate::hints;

/// A node that left the file, and what became of it (None: the user said no).
pub type Goodbye = (Departed, Option<Farewell>);

fn node_words(node: &NodeReport) -> Words {
    match &node.outcome {
        Outcome::Changed(summary) => {
            Words::good(format!("{}, confirmed in {}", parts(summary, false), duration(node.elapsed)))
        }
        Outcome::Unchanged => Words::good("nothing to do"),
        Outcome::Unplanned(error) => Words::bad("not changed").error(Some(ErrorText::of(error))),
        Outcome::Failed(error) => Words::bad("failed").error(Some(ErrorText::of(error))),
        Outcome::NotStarted => Words::bad("not started"),
        Outcome::Held { summary, seconds } => {
            let text = format!("{}, on trial: taken back in {}", parts(summary, false), words(*seconds));
            Words::good(text).hint(hints::ON_TRIAL)
        }
        Outcome::RolledBack { reason, error, left } if left.is_empty() => {
            Words::bad(format!("rolled back, verified to be as before: {reason}"))
                .error(error.as_deref().map(ErrorText::of))
        }
        Outcome::RolledBack { reason, error, left } => {
            Words::bad(format!("rolled back: {reason}; not as before: {}", left.join(", ")))
                .error(error.as_deref().map(ErrorText::of))
                .hint("run homelab plan: it shows what these need; homelab apply mends them")
        }
        Outcome::Unsure(error) => {
            Words::bad("not reached after the change: it takes it back by itself within --confirm-timeout")
                .error(Some(ErrorText::of(error)))
                .hint(
                    "when it answers again, homelab status says whether the change was taken back or stayed",
                )
        }
    }
}

/// What is said of a node that left the file.
fn goodbye_words(gone: &Goodbye) -> Words {
    let back = |reason: &str, left: &[String]| match left.is_empty() {
        true => format!("left the file; homelab is still there, the removal was rolled back: {reason}"),
        false => format!("left the file; the removal was rolled back: {reason}; lost: {}", left.join(", ")),
    };
    match &gone.1 {
        Some(Farewell::Cleaned(summary)) => Words::good(format!("left the file; {}", parts(summary, false))),
        Some(Farewell::Clean) => Words::good("left the file; nothing of homelab is there"),
        Some(Farewell::Failed(error)) => Words::bad("left the file; homelab may still be there")
            .error(Some(ErrorText::of(error)))
            .hint(clean_later(&gone.0)),
        Some(Farewell::RolledBack { reason, left }) => {
            Words::bad(back(reason, left)).hint(clean_later(&gone.0))
        }
        None => Words::good(format!("left the file and was left as it is; {}", clean_later(&gone.0))),
    }
}

/// How to clean a node that has left the file and does not answer now.
fn clean_later(gone: &Departed) -> String {
    let name = gone.name.as_deref().unwrap_or("old-node");
    format!(
        "to clean it later, put it alone into a file (name: old, nodes: [{{name: {name}, address: {}}}]) and run \
         homelab -f that-file destroy",
        gone.address
    )
}

/// The report for people.
pub fn report_human(
    report: &Report,
    departed: &[Goodbye],
    total: Duration,
    destroy: bool,
    paint: Paint,
) -> Shown {
    let mut page = Page::new(paint);
    words_human(&mut page, &all_words(report, departed));
    if !report.warnings.is_empty() {
        page.blank();
    }
    for warning in &report.warnings {
        page.paragraph(&[yellow("warning:"), " ".into()], warning);
    }
    page.blank();
    line!(page, bold(sentence(report, total, destroy)));
    page.end()
}

fn all_words(report: &Report, departed: &[Goodbye]) -> Named {
    let nodes = report.nodes.iter().map(|n| (n.name.clone(), node_words(n)));
    let api =
        report.kubernetes.iter().map(|k| (kubernetes::TITLE.to_owned(), kubernetes::kubernetes_words(k)));
    nodes.chain(api).chain(departed.iter().map(|g| (g.0.label(), goodbye_words(g)))).collect()
}

fn sentence(report: &Report, total: Duration, destroy: bool) -> String {
    let names = |is: &dyn Fn(&Outcome) -> bool| -> Vec<&str> {
        report.nodes.iter().filter(|n| is(&n.outcome)).map(|n| n.name.as_str()).collect()
    };
    let changed = names(&|o| matches!(o, Outcome::Changed(_)));
    let held = names(&|o| matches!(o, Outcome::Held { .. }));
    let back = names(&|o| matches!(o, Outcome::RolledBack { .. }));
    let unsure = names(&|o| matches!(o, Outcome::Unsure(_)));
    let verb = if destroy { "cleaned" } else { "changed and confirmed" };
    let (sent, received) = report.traffic;
    let mut text = if held.is_empty() {
        format!("{} {verb}", count(changed.len(), "node"))
    } else {
        format!("{} changed on trial", count(held.len(), "node"))
    };
    text.push_str(&format!(" in {} ({} sent, {} received).", duration(total), bytes(sent), bytes(received)));
    for (group, verb) in [(&back, "rolled back"), (&unsure, "not reached any more")] {
        if !group.is_empty() {
            text.push_str(&format!(" {} {verb}: {}.", count(group.len(), "node"), group.join(", ")));
        }
    }
    let bad = names(&|o| !o.is_good());
    if !bad.is_empty() {
        text.push_str(&format!(
            " {} not done: {}. Run the command again, or with --nodes {}.",
            count(bad.len(), "node"),
            bad.join(", "),
            bad.join(",")
        ));
    }
    if report.kubernetes.as_ref().is_some_and(|k| !k.is_good()) {
        text.push_str(" The Kubernetes API is not as the cluster file says.");
    }
    text
}

/// The report for comments.
pub fn report_markdown(report: &Report, departed: &[Goodbye], total: Duration, destroy: bool) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("**{}**", prose(&sentence(report, total, destroy))));
    page.blank();
    words_markdown(&mut page, &all_words(report, departed));
    for warning in &report.warnings {
        page.blank();
        line!(page, format!("> **Warning:** {}", code(warning)));
    }
    page.end()
}

/// The report for programs.
pub fn report_json(report: &Report, departed: &[Goodbye], total: Duration) -> Value {
    let nodes = report.nodes.iter().map(|node| {
        let (outcome, summary, error) = match &node.outcome {
            Outcome::Changed(summary) => ("changed", Some(*summary), None),
            Outcome::Unchanged => ("unchanged", None, None),
            Outcome::Unplanned(error) => ("unplanned", None, Some(error)),
            Outcome::Failed(error) => ("failed", None, Some(error)),
            Outcome::NotStarted => ("not_started", None, None),
            Outcome::Held { summary, .. } => ("held", Some(*summary), None),
            Outcome::RolledBack { error, .. } => ("rolled_back", None, error.as_deref()),
            Outcome::Unsure(error) => ("unsure", None, Some(error)),
        };
        let mut value = json!({
            "name": node.name,
            "address": node.address,
            "outcome": outcome,
            "summary": summary,
            "error": error.map(ErrorText::of),
            "seconds": node.elapsed.as_secs_f64(),
        });
        match &node.outcome {
            Outcome::Held { seconds, .. } => value["held_for"] = json!(seconds),
            Outcome::RolledBack { reason, left, .. } => {
                value["rollback"] = json!({"reason": reason, "verified": left.is_empty(), "left": left});
            }
            _ => {}
        }
        value
    });
    let gone = departed.iter().map(|(node, farewell)| {
        let (outcome, error) = match farewell {
            Some(Farewell::Cleaned(_)) => ("cleaned", None),
            Some(Farewell::Clean) => ("clean", None),
            Some(Farewell::Failed(error)) => ("failed", Some(error)),
            Some(Farewell::RolledBack { .. }) => ("rolled_back", None),
            None => ("left", None),
        };
        let error = error.map(ErrorText::of);
        let mut value =
            json!({"name": node.name, "address": node.address, "outcome": outcome, "error": error});
        if let Some(Farewell::RolledBack { reason, left }) = farewell {
            value["rollback"] = json!({"reason": reason, "verified": left.is_empty(), "left": left});
        }
        value
    });
    let mut value = json!({
        "format_version": 1,
        "nodes": nodes.collect::<Vec<_>>(),
        "departed": gone.collect::<Vec<_>>(),
        "warnings": report.warnings,
        "succeeded": report.succeeded(),
        "rolled_back": report.rolled_back(),
        "seconds": total.as_secs_f64(),
        "bytes": {"sent": report.traffic.0, "received": report.traffic.1},
    });
    if let Some(outcome) = &report.kubernetes {
        value["kubernetes"] = kubernetes::outcome_json(outcome);
    }
    value
}
