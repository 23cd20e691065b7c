//! How an apply or a destroy went.

use std::time::Duration;

use homelab_driver::{Departed, Farewell, NodeReport, Outcome, Report};
use serde_json::{Value, json};

use super::{ErrorText, Paint, bytes, count, duration, parts};

/// A node that left the file, and what became of it (None: the user said no).
pub type Goodbye = (Departed, Option<Farewell>);

/// What is said of a node, and whether that is good.
fn node_words(node: &NodeReport) -> (bool, String, Option<ErrorText>) {
    match &node.outcome {
        Outcome::Changed(summary) => {
            (true, format!("{} in {}", parts(summary, false), duration(node.elapsed)), None)
        }
        Outcome::Unchanged => (true, "nothing to do".to_owned(), None),
        Outcome::Unplanned(error) => (false, "not changed".to_owned(), Some(ErrorText::of(error))),
        Outcome::Failed(error) => (false, "failed".to_owned(), Some(ErrorText::of(error))),
        Outcome::NotStarted => (false, "not started".to_owned(), None),
    }
}

fn goodbye_words(gone: &Goodbye) -> (bool, String, Option<ErrorText>) {
    match &gone.1 {
        Some(Farewell::Cleaned(summary)) => (true, format!("left the file; {}", parts(summary, false)), None),
        Some(Farewell::Clean) => (true, "left the file; nothing of homelab is there".to_owned(), None),
        Some(Farewell::Failed(error)) => {
            let mut text = ErrorText::of(error);
            text.hints.push(clean_later(&gone.0));
            (true, "left the file; homelab may still be there".to_owned(), Some(text))
        }
        None => (true, format!("left the file and was left as it is; {}", clean_later(&gone.0)), None),
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
) -> String {
    let mut out = String::new();
    let width = report.nodes.iter().map(|n| n.name.len()).max().unwrap_or(0);
    let nodes = report.nodes.iter().map(|n| (n.name.clone(), node_words(n)));
    let gone = departed.iter().map(|g| (g.0.label(), goodbye_words(g)));
    for (name, (good, words, error)) in nodes.chain(gone) {
        let mark = if good { paint.green("ok") } else { paint.red("!!") };
        out.push_str(&format!("{mark} {name:<width$}  {words}\n"));
        if let Some(error) = error {
            out.push_str(&format!("   {} {}\n", paint.red("error:"), error.message));
            for hint in error.hints {
                out.push_str(&format!("   {} {hint}\n", paint.bold("hint:")));
            }
        }
    }
    out.push('\n');
    out.push_str(&paint.bold(&sentence(report, total, destroy)));
    out.push('\n');
    out
}

fn sentence(report: &Report, total: Duration, destroy: bool) -> String {
    let changed = report.nodes.iter().filter(|n| matches!(n.outcome, Outcome::Changed(_))).count();
    let bad: Vec<&str> = report
        .nodes
        .iter()
        .filter(|n| !matches!(n.outcome, Outcome::Changed(_) | Outcome::Unchanged))
        .map(|n| n.name.as_str())
        .collect();
    let verb = if destroy { "cleaned" } else { "changed and verified" };
    let time = duration(total);
    let (sent, received) = report.traffic;
    let mut text = format!(
        "{} {verb} in {time} ({} sent, {} received).",
        count(changed, "node"),
        bytes(sent),
        bytes(received)
    );
    if !bad.is_empty() {
        text.push_str(&format!(
            " {} not done: {}. Run the command again, or with --nodes {}.",
            count(bad.len(), "node"),
            bad.join(", "),
            bad.join(",")
        ));
    }
    text
}

/// The report for comments.
pub fn report_markdown(report: &Report, departed: &[Goodbye], total: Duration, destroy: bool) -> String {
    let mut out = format!("**{}**\n\n| node | result |\n|---|---|\n", sentence(report, total, destroy));
    let nodes = report.nodes.iter().map(|n| (n.name.clone(), node_words(n)));
    let gone = departed.iter().map(|g| (g.0.label(), goodbye_words(g)));
    for (name, (_, mut words, error)) in nodes.chain(gone) {
        if let Some(error) = error {
            words.push_str(&format!(": {}", error.message));
        }
        let words = words.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
        out.push_str(&format!("| {name} | {words} |\n"));
    }
    out
}

/// The report for programs.
pub fn report_json(report: &Report, departed: &[Goodbye], total: Duration) -> Value {
    let nodes = report.nodes.iter().map(|node| {
        let (outcome, summary, error) = match &node.outcome {
            Outcome::Changed(summary) => ("changed", Some(*summary), None),
            Outcome::Unchanged => ("unchanged", None, None),
            Outcome::Unplanned(error) => ("unplanned", None, Some(ErrorText::of(error))),
            Outcome::Failed(error) => ("failed", None, Some(ErrorText::of(error))),
            Outcome::NotStarted => ("not_started", None, None),
        };
        json!({
            "name": node.name,
            "address": node.address,
            "outcome": outcome,
            "summary": summary,
            "error": error,
            "seconds": node.elapsed.as_secs_f64(),
        })
    });
    let gone = departed.iter().map(|(node, farewell)| {
        let (outcome, error) = match farewell {
            Some(Farewell::Cleaned(_)) => ("cleaned", None),
            Some(Farewell::Clean) => ("clean", None),
            Some(Farewell::Failed(error)) => ("failed", Some(ErrorText::of(error))),
            None => ("left", None),
        };
        json!({"name": node.name, "address": node.address, "outcome": outcome, "error": error})
    });
    json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "departed": gone.collect::<Vec<_>>(),
        "succeeded": report.succeeded(),
        "seconds": total.as_secs_f64(),
        "bytes": {"sent": report.traffic.0, "received": report.traffic.1},
    })
}
