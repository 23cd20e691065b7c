//! What nodes do with a packet.

use std::net::SocketAddr;

use homelab_model::{TraceEndpoint, TraceOutcome, TracePacket, TraceReport, TraceStep};
use serde_json::{Value, json};

use super::markdown::{code, prose};
use super::page::{Page, Paint, Shown, bold, dim, line, yellow};
use super::{ErrorText, count};

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceQuestion {
    /// The source as the user said it.
    pub source: String,
    /// The node that it is, or is on.
    pub source_node: Option<String>,
    /// The destination as the user said it.
    pub destination: String,
    /// The packet.
    pub packet: TracePacket,
}

/// What one node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedNode {
    /// Node name.
    pub name: String,
    /// What it does, or why it could not be asked.
    pub answer: Result<TraceReport, ErrorText>,
}

fn packet_word(packet: &TracePacket) -> String {
    let to = SocketAddr::new(packet.destination, packet.port);
    format!("{} -> {to}/{}", packet.source, packet.protocol.as_str())
}

/// `default/web: one of 3 endpoints; the source stays`.
fn summary(traced: &TraceReport) -> String {
    let service = traced.service.as_deref();
    let last = traced.steps.iter().rfind(|step| step.matched).map(|step| step.why.as_str());
    let because = |what: &str| match last {
        Some(why) => format!("{what}: {why}"),
        None => what.to_owned(),
    };
    let what = match &traced.outcome {
        TraceOutcome::Untouched => match service {
            Some(_) => "left alone".to_owned(),
            None => "no service has this address and port; the packet goes on as it is".to_owned(),
        },
        TraceOutcome::Dropped => because("dropped"),
        TraceOutcome::Refused => because("refused"),
        TraceOutcome::Translated { endpoints } => translated(endpoints, traced.remembered),
    };
    match service {
        Some(name) => format!("{name}: {what}"),
        None => what,
    }
}

fn translated(endpoints: &[TraceEndpoint], remembered: Option<SocketAddr>) -> String {
    let to = match (endpoints, remembered) {
        ([one], Some(kept)) if one.address == kept => format!("{kept}, as this client had before"),
        ([one], _) => format!("the endpoint {}", one.address),
        (many, _) => format!("one of {}", count(many.len(), "endpoint")),
    };
    let hidden: Vec<String> =
        endpoints.iter().filter(|e| e.masqueraded).map(|e| e.address.to_string()).collect();
    let source = match hidden.len() {
        0 => "the source stays".to_owned(),
        all if all == endpoints.len() => "the node's address becomes the source".to_owned(),
        _ => format!("the source stays, but for {}, where the node's address becomes it", hidden.join(", ")),
    };
    format!("{to}; {source}")
}

fn endpoint_words(outcome: &TraceOutcome) -> Vec<String> {
    let TraceOutcome::Translated { endpoints } = outcome else { return Vec::new() };
    let word = |endpoint: &TraceEndpoint| match endpoint.masqueraded {
        true => format!("{} (masqueraded)", endpoint.address),
        false => endpoint.address.to_string(),
    };
    endpoints.iter().map(word).collect()
}

/// Nodes that answer the same, with their answer: most do.
fn alike(nodes: &[TracedNode]) -> Vec<(Vec<&str>, &TraceReport)> {
    let mut groups: Vec<(Vec<&str>, &TraceReport)> = Vec::new();
    for node in nodes {
        let Ok(traced) = &node.answer else { continue };
        match groups.iter_mut().find(|(_, other)| *other == traced) {
            Some((names, _)) => names.push(&node.name),
            None => groups.push((vec![&node.name], traced)),
        }
    }
    groups
}

/// The trace for people.
pub fn trace_human(question: &TraceQuestion, nodes: &[TracedNode], paint: Paint, verbose: bool) -> Shown {
    let mut page = Page::new(paint);
    let on = question.source_node.as_ref().map(|node| format!(", from {node}")).unwrap_or_default();
    line!(page, bold(packet_word(&question.packet)), on);
    page.blank();
    for node in nodes {
        match &node.answer {
            Ok(traced) => line!(page, bold(format!("{}: ", node.name)), summary(traced)),
            Err(error) => {
                line!(page, bold(&node.name), " could not be asked:");
                error.show(&mut page, 2);
            }
        }
    }
    for (names, traced) in alike(nodes) {
        page.blank();
        line!(page, bold(format!("On {}", names.join(", "))));
        for warning in &traced.warnings {
            page.paragraph(&["  ".into(), yellow("warning:"), " ".into()], warning);
        }
        for endpoint in endpoint_words(&traced.outcome) {
            line!(page, format!("  to {endpoint}"));
        }
        let shown = |step: &&TraceStep| verbose || step.matched;
        for step in traced.steps.iter().filter(shown) {
            match step.matched {
                true => line!(page, format!("  {}: {}", step.chain, step.why)),
                false => line!(page, dim(format!("  {}: does not match ({})", step.chain, step.why))),
            }
            line!(page, dim(format!("      {}", step.rule)));
        }
        let hidden = traced.steps.iter().filter(|step| !shown(step)).count();
        if hidden > 0 {
            let are = if hidden == 1 {
                "does not match; --verbose shows it"
            } else {
                "do not match; --verbose shows them"
            };
            line!(page, dim(format!("  {} {are}", count(hidden, "other rule"))));
        }
    }
    page.end()
}

/// The trace for comments.
pub fn trace_markdown(question: &TraceQuestion, nodes: &[TracedNode]) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("### {}", prose(&packet_word(&question.packet))));
    for node in nodes {
        page.blank();
        let traced = match &node.answer {
            Ok(traced) => traced,
            Err(error) => {
                line!(page, format!("{} could not be asked: {}", prose(&node.name), code(&error.message)));
                continue;
            }
        };
        line!(page, format!("**{}**: {}", prose(&node.name), code(&summary(traced))));
        page.blank();
        for warning in &traced.warnings {
            line!(page, format!("> **Warning:** {}", code(warning)));
            page.blank();
        }
        for step in traced.steps.iter().filter(|step| step.matched) {
            line!(page, format!("1. {} {}: {}", code(&step.chain), code(&step.rule), code(&step.why)));
        }
    }
    page.end()
}

/// The trace for programs.
pub fn trace_json(cluster: &str, question: &TraceQuestion, nodes: &[TracedNode]) -> Value {
    let TracePacket { source, destination, protocol, port } = &question.packet;
    let node = |node: &TracedNode| match &node.answer {
        Err(error) => json!({"name": node.name, "error": error}),
        Ok(traced) => {
            let (outcome, endpoints) = match &traced.outcome {
                TraceOutcome::Untouched => ("untouched", &[][..]),
                TraceOutcome::Dropped => ("dropped", &[][..]),
                TraceOutcome::Refused => ("refused", &[][..]),
                TraceOutcome::Translated { endpoints } => ("translated", endpoints.as_slice()),
            };
            json!({
                "name": node.name, "error": null, "summary": summary(traced), "service": traced.service,
                "outcome": outcome, "endpoints": endpoints, "remembered": traced.remembered,
                "steps": traced.steps, "warnings": traced.warnings,
            })
        }
    };
    json!({
        "format_version": 1, "cluster": cluster,
        "source": {"said": question.source, "address": source, "node": question.source_node},
        "destination": {"said": question.destination, "address": destination},
        "protocol": protocol, "port": port,
        "nodes": nodes.iter().map(node).collect::<Vec<_>>(),
    })
}
