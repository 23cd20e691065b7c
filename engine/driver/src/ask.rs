//! Questions about services, over the sessions of a plan.

use homelab_model::{ServiceReport, TracePacket, TraceReport};
use homelab_protocol::{Request, Response};

use crate::connection::Line;
use crate::engine::{Engine, Prepared, is_chosen};
use crate::{ByNode, NodeError, parallel};

impl Engine<'_> {
    /// What each reached node that was chosen holds of each service.
    pub fn services(&self, prepared: &Prepared) -> ByNode<Vec<ServiceReport>> {
        self.ask_each(prepared, &prepared.chosen, &Request::Services, |response| match response {
            Response::Services { services } => Ok(services),
            other => Err(other),
        })
    }

    /// What each reached node of `nodes` (empty: all) does with a packet. Nothing is sent.
    pub fn trace(&self, prepared: &Prepared, packet: &TracePacket, nodes: &[String]) -> ByNode<TraceReport> {
        self.ask_each(prepared, nodes, &Request::Trace(*packet), |response| match response {
            Response::Traced(traced) => Ok(*traced),
            other => Err(other),
        })
    }

    pub(crate) fn ask_each<T: Send>(
        &self,
        prepared: &Prepared,
        nodes: &[String],
        request: &Request,
        read: impl Fn(Response) -> Result<T, Response> + Sync,
    ) -> ByNode<T> {
        let names =
            prepared.cluster.nodes.iter().map(|node| &node.name).filter(|name| is_chosen(nodes, name));
        let lines: Vec<(String, Line)> =
            names.filter_map(|name| Some((name.clone(), prepared.live.get(name)?.line.clone()))).collect();
        parallel::map(lines, self.options.parallel, |(name, line): (String, Line)| {
            let answer = line.get().ask(request, self.options.answer);
            let answer = answer.and_then(|response| match read(response) {
                Ok(value) => Ok(value),
                Err(Response::Failed(failure)) => Err(NodeError::Failed(failure)),
                Err(_) => Err(NodeError::OutOfTurn),
            });
            (name, answer)
        })
    }
}
