//! What is printed, as pure functions of what is known.

mod apply;
mod cordon;
mod drift;
mod fields;
mod history;
#[cfg(test)]
mod hostile;
mod human;
mod json;
mod kubernetes;
mod lb;
mod lb_notes;
mod lb_routers;
#[cfg(test)]
mod lb_tests;
mod markdown;
pub(crate) mod page;
mod served;
#[cfg(test)]
mod service_tests;
mod services;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod trace;
pub(crate) mod words;

use std::time::Duration;

use homelab_driver::{Departed, NodeError, Plan};
use homelab_model::{Impact, Module, Phase, Summary};

use page::{Page, Span, bold, red};

pub use apply::{Goodbye, report_human, report_json, report_markdown};
pub use cordon::{CordonSaid, Move, cordon_human, cordon_json, cordon_markdown, moves};
pub use drift::{NodeDrift, drift_human, drift_json, drift_markdown, node_drift};
pub use fields::{Field, Line, Sign, fields, short};
pub(crate) use history::history_json;
pub use human::plan_human;
pub use json::plan_json;
pub use lb::{LbAnswer, lb_human, lb_json, lb_markdown};
pub use lb_notes::lb_warnings;
pub use markdown::{MARKDOWN_LIMIT, plan_markdown};
pub use page::{Paint, Shown};
pub(crate) use services::is_called;
pub use services::{
    ServiceRow, ServicesOfNode, service_rows, services_human, services_json, services_markdown,
};
pub use status::{
    AgentStatus, NodeStatus, VtepStatus, node_status, status_human, status_json, status_markdown,
};
pub use trace::{TraceQuestion, TracedNode, trace_human, trace_json, trace_markdown};

/// A node's error and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct ErrorText {
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hints: Vec<String>,
}

impl ErrorText {
    /// The error with its hints.
    pub fn of(error: &NodeError) -> ErrorText {
        ErrorText { message: error.to_string(), hints: crate::hints::hints(error) }
    }

    /// On a page, below the node's name.
    fn show(&self, page: &mut Page, indent: usize) {
        let lead = || Span::from(" ".repeat(indent));
        if !self.message.is_empty() {
            page.paragraph(&[lead(), red("error:"), " ".into()], &self.message);
        }
        for hint in &self.hints {
            page.paragraph(&[lead(), bold("hint:"), " ".into()], hint);
        }
    }
}

/// `1 node`, `3 nodes`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// `12 to create, 1 to update`.
pub(crate) fn parts(summary: &Summary, infinitive: bool) -> String {
    let parts = [
        (summary.create, "to create", "created"),
        (summary.update, "to update", "updated"),
        (summary.replace, "to replace", "replaced"),
        (summary.delete, "to delete", "deleted"),
    ];
    let shown = parts.iter().filter(|(n, _, _)| *n > 0);
    shown
        .map(|(n, coming, done)| format!("{n} {}", if infinitive { coming } else { done }))
        .collect::<Vec<_>>()
        .join(", ")
}

/// One sentence about a plan.
pub(crate) fn plan_sentence(plan: &Plan) -> String {
    let planned = plan.nodes.len() - plan.failed_nodes();
    if !plan.is_empty() {
        let nodes = count(plan.changed_nodes(), "node");
        let on_nodes =
            (plan.changed_nodes() > 0).then(|| format!("{} on {nodes}", parts(&plan.summary(), true)));
        let api = plan.kubernetes.as_ref().and_then(kubernetes::sentence_part);
        let both: Vec<String> = on_nodes.into_iter().chain(api).collect();
        return format!("Plan: {}.", both.join("; "));
    }
    let nodes = match (planned, plan.failed_nodes()) {
        (0, _) => return "No plan: no node could be planned.".to_owned(),
        (1, 0) => "the node".to_owned(),
        (n, 0) => format!("all {n} nodes"),
        (1, _) => "the other node".to_owned(),
        (n, _) => format!("the other {n} nodes"),
    };
    if plan.destroy {
        return format!("No changes. Nothing of homelab is on {nodes}.");
    }
    let verb = if planned == 1 { "is" } else { "are" };
    format!("No changes. {} {verb} as the cluster file says.", capital(&nodes))
}

/// `node1 still knows it`, `node1, node2 still know it`.
pub(crate) fn still_known(gone: &Departed) -> String {
    let verb = if gone.known_to.len() == 1 { "knows" } else { "know" };
    format!("{} still {verb} it", gone.known_to.join(", "))
}

/// Whether a node holds a change that somebody tries out.
fn on_trial(plan: &Plan) -> bool {
    plan.nodes.iter().any(|n| n.history.open.as_ref().is_some_and(|open| open.phase == Phase::Held))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Word of an impact, as in plans.
pub(crate) fn impact_word(impact: Impact) -> &'static str {
    match impact {
        Impact::None => "none",
        Impact::Brief => "brief",
        Impact::Disruptive => "disruptive",
    }
}

/// What a reader should know of a module's name.
pub(crate) fn module_title(module: Module) -> &'static str {
    match module {
        Module::Agent => "agent",
        Module::Vtep => "vtep (tunnel)",
        Module::Cni => "cni (pods)",
        Module::Proxy => "proxy (services)",
    }
}

/// `0.8 s`, `1 min 4 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// `3 KiB`.
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..1024 => format!("{number} bytes"),
        1024..1_048_576 => format!("{} KiB", number.div_ceil(1024)),
        _ => format!("{:.1} MiB", number as f64 / 1_048_576.0),
    }
}
