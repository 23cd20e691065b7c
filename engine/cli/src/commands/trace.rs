//! `homelab trace`

use homelab_driver::Goal;
use homelab_model::TracePacket;
use homelab_model::service::Protocol;

use super::session::{Session, chosen};
use super::{DONE, FAILED, output};
use crate::args::{Global, TraceProtocol};
use crate::error::CliError;
use crate::places::Places;
use crate::render::{ErrorText, TraceQuestion, TracedNode, trace_human, trace_json, trace_markdown};
use crate::terminal::Terminal;

/// What is asked, as the user said it.
pub(crate) struct Question<'a> {
    pub(crate) source: &'a str,
    pub(crate) destination: &'a str,
    pub(crate) protocol: Option<TraceProtocol>,
    pub(crate) node: Option<&'a str>,
}

impl From<TraceProtocol> for Protocol {
    fn from(protocol: TraceProtocol) -> Protocol {
        match protocol {
            TraceProtocol::Tcp => Protocol::Tcp,
            TraceProtocol::Udp => Protocol::Udp,
            TraceProtocol::Sctp => Protocol::Sctp,
        }
    }
}

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    question: &Question<'_>,
) -> Result<u8, CliError> {
    let asked = question.node.map(str::to_owned).into_iter().collect::<Vec<_>>();
    let asked = chosen(&session.cluster, &asked)?;
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let places = Places::of(&session.cluster, &prepared);
    let source = places.source(question.source)?;
    let destination = places.destination(question.destination, question.protocol.map(Into::into), &source)?;
    let from = source.like(destination.address)?;
    let packet = TracePacket {
        source: from,
        destination: destination.address,
        protocol: destination.protocol,
        port: destination.port,
    };
    let nodes = match asked.is_empty() {
        true => places.met_on(&source, destination.address),
        false => asked,
    };
    let mut answers = session.with(terminal, None, |engine| engine.trace(&prepared, &packet, &nodes));
    let all = prepared.plan.nodes.iter().map(|node| &node.name);
    let names: Vec<String> = if nodes.is_empty() { all.cloned().collect() } else { nodes };
    let of_node = |name: String| {
        let answer = answers.iter().position(|(node, _)| *node == name).map(|at| answers.remove(at).1);
        let planned = prepared.plan.nodes.iter().find(|node| node.name == name);
        let answer = match (answer, planned.map(|node| &node.outcome)) {
            (Some(answer), _) => answer.map_err(|error| ErrorText::of(&error)),
            (None, Some(Err(error))) => Err(ErrorText::of(error)),
            (None, _) => {
                Err(ErrorText { message: "the node could not be asked".to_owned(), hints: Vec::new() })
            }
        };
        TracedNode { name, answer }
    };
    let traced: Vec<TracedNode> = names.into_iter().map(of_node).collect();
    prepared.close(session.parallel());
    let question = TraceQuestion {
        source: question.source.to_owned(),
        source_node: source.node.clone(),
        destination: question.destination.to_owned(),
        packet,
    };
    let json = trace_json(&session.cluster.name, &question, &traced);
    let human = |paint| trace_human(&question, &traced, paint, global.verbose);
    output::deliver(global, terminal, &json, human, || trace_markdown(&question, &traced))?;
    Ok(if traced.iter().all(|node| node.answer.is_ok()) { DONE } else { FAILED })
}
