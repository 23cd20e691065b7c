//! What was changed on the nodes by hand, apart from what changed in the cluster file.

use std::net::IpAddr;

use homelab_driver::PlannedNode;
use homelab_model::{Action, Change, Impact, NodeObject, NodePlan, PlannedChange};
use serde_json::{Value, json};

use super::human::changes_human;
use super::json::change_json;
use super::markdown::{MARKDOWN_LIMIT, code, details, fit, prose};
use super::page::{Page, Paint, Shown, bold, dim, green, line, yellow};
use super::{ErrorText, count, parts};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDrift {
    /// Node name.
    pub name: String,
    /// Its address on the LAN.
    pub address: IpAddr,
    /// Why it could not be asked or planned.
    pub error: Option<ErrorText>,
    /// What somebody did since the last apply; None: not asked, or there was no apply yet.
    pub by_hand: Option<NodePlan>,
    /// Whether the last apply was by another build of homelab, which may make some objects otherwise.
    pub other_build: bool,
    /// Objects that an apply would change because the file, or homelab, changed.
    pub by_file: Vec<String>,
}

impl NodeDrift {
    /// Whether somebody changed something by hand.
    pub fn drifted(&self) -> bool {
        self.by_hand.as_ref().is_some_and(|p| !p.changes.is_empty())
    }

    /// A plan's warning that it takes back what somebody did.
    pub(crate) fn sentence(&self) -> Option<String> {
        const NAMES: usize = 5;
        // Another build's objects are no work of a hand, and nobody can tell them apart.
        let shown = self.by_hand.as_ref().filter(|p| !p.changes.is_empty() && !self.other_build)?.shown();
        let names: Vec<&str> = shown.iter().take(NAMES).map(|c| c.object.as_str()).collect();
        let more = match shown.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("{}: changed by hand since the last apply: {}{more}", self.name, names.join(", ")))
    }
}

/// Tells apart what `undo` takes back (None: nobody knows what the last apply made) and what else the plan changes.
pub fn node_drift(node: &PlannedNode, undo: Option<NodePlan>, other_build: bool) -> NodeDrift {
    let shown = node.outcome.as_ref().map(NodePlan::shown).unwrap_or_default();
    let back: Vec<PlannedChange> = undo.as_ref().map(NodePlan::shown).unwrap_or_default();
    // What taking the hand's work back leads to already is no change of the file.
    let same =
        |c: &PlannedChange| back.iter().any(|b| b.object == c.object && b.change.after() == c.change.after());
    let by_file = if undo.is_some() {
        shown.iter().filter(|c| !same(c)).map(|c| c.object.clone()).collect()
    } else {
        Vec::new()
    };
    NodeDrift {
        name: node.name.clone(),
        address: node.address,
        error: node.outcome.as_ref().err().map(ErrorText::of),
        by_hand: undo.map(|plan| NodePlan { node: plan.node, changes: back.iter().map(done).collect() }),
        other_build,
        by_file,
    }
}

/// The change that `undo` takes back. What it did to traffic is past.
fn done(undo: &PlannedChange) -> PlannedChange {
    let change: Change<NodeObject> = undo.change.invert();
    let action = match undo.action {
        Action::Create => Action::Delete,
        Action::Delete => Action::Create,
        // Made anew or altered: from outside that is the same.
        Action::Update | Action::Replace => Action::Update,
    };
    PlannedChange { action, impact: Impact::None, reason: String::new(), change, ..undo.clone() }
}

fn words(node: &NodeDrift) -> String {
    match &node.by_hand {
        Some(plan) if plan.changes.is_empty() => {
            "nothing was changed by hand since the last apply".to_owned()
        }
        Some(plan) => {
            let done = parts(&plan.summary(), false);
            format!("changed by hand since the last apply: {done}")
        }
        None if node.error.is_some() => "not known".to_owned(),
        None => "not known: there was no apply yet, or the last one waits to be confirmed".to_owned(),
    }
}

fn file_words(node: &NodeDrift) -> Option<String> {
    let objects = count(node.by_file.len(), "object");
    (!node.by_file.is_empty())
        .then(|| format!("the cluster file changed since: {objects} to change; homelab plan shows them"))
}

fn build_words(node: &NodeDrift) -> Option<String> {
    (node.other_build && node.drifted()).then(|| {
        "the last apply was by another build of homelab: what this one makes otherwise shows here, too"
            .to_owned()
    })
}

fn sentence(nodes: &[NodeDrift]) -> String {
    let names = |is: &dyn Fn(&NodeDrift) -> bool| -> Vec<&str> {
        nodes.iter().filter(|n| is(n)).map(|n| n.name.as_str()).collect()
    };
    let hand = names(&NodeDrift::drifted);
    let file = names(&|n| !n.by_file.is_empty());
    let unknown = names(&|n| n.error.is_some());
    let mut text = match hand.len() {
        0 => "Nothing was changed by hand.".to_owned(),
        _ => format!("Changed by hand: {}. homelab apply takes that back.", hand.join(", ")),
    };
    if !file.is_empty() {
        text.push_str(&format!(" The file changed since the last apply of {}.", file.join(", ")));
    }
    if !unknown.is_empty() {
        text.push_str(&format!(" Not known: {}.", unknown.join(", ")));
    }
    text
}

/// The drift for people.
pub fn drift_human(nodes: &[NodeDrift], warnings: &[String], paint: Paint, verbose: bool) -> Shown {
    let mut page = Page::new(paint);
    for node in nodes {
        let color = if node.drifted() { yellow } else { green };
        let color = if node.by_hand.is_none() { dim } else { color };
        line!(page, bold(&node.name), format!(" ({}): ", node.address), color(words(node)));
        if let Some(error) = &node.error {
            error.show(&mut page, 2);
        }
        if let Some(plan) = &node.by_hand {
            changes_human(&mut page, plan, verbose);
        }
        for text in build_words(node).into_iter().chain(file_words(node)) {
            line!(page, format!("  {text}"));
        }
        page.blank();
    }
    for warning in warnings {
        page.paragraph(&[yellow("warning:"), " ".into()], warning);
    }
    line!(page, bold(sentence(nodes)));
    page.end()
}

/// The drift for comments.
pub fn drift_markdown(cluster: &str, nodes: &[NodeDrift], warnings: &[String]) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("### homelab drift: {}", prose(cluster)));
    page.blank();
    line!(page, format!("**{}**", prose(&sentence(nodes))));
    page.blank();
    let mut notes: Vec<String> = warnings.iter().map(|w| format!("> **Warning:** {}", code(w))).collect();
    for node in nodes {
        let error = node.error.as_ref().map(|e| format!("> **{}**: {}", prose(&node.name), code(&e.message)));
        notes.extend(error);
        let words = build_words(node).into_iter().chain(file_words(node));
        notes.extend(words.map(|text| format!("{}: {text}.", prose(&node.name))));
    }
    fit(&mut page, notes, MARKDOWN_LIMIT / 2);
    for node in nodes {
        let Some(plan) = node.by_hand.as_ref().filter(|p| !p.changes.is_empty()) else { continue };
        let title = format!("{} ({}): {}", node.name, node.address, parts(&plan.summary(), false));
        let body = details(&title, plan);
        if page.len() + body.len() + 400 <= MARKDOWN_LIMIT {
            page.append(&body);
        } else {
            line!(page, format!("_Too long for a comment: {}._", prose(&node.name)));
        }
    }
    page.end()
}

/// The drift for programs.
pub fn drift_json(cluster: &str, nodes: &[NodeDrift], warnings: &[String]) -> Value {
    let all: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({
                "name": node.name,
                "address": node.address,
                "error": node.error,
                "by_hand": node.by_hand.as_ref().map(|p| p.shown().iter().map(change_json).collect::<Vec<_>>()),
                "by_file": node.by_file,
                "other_build": node.other_build,
            })
        })
        .collect();
    json!({
        "format_version": 1,
        "cluster": cluster,
        "drifted": nodes.iter().any(NodeDrift::drifted),
        "nodes": all,
        "warnings": warnings,
    })
}
