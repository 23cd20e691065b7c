//! `homelab-node status`: what this node holds and what differs, without a laptop.

use std::io::{self, Write};
use std::process::ExitCode;

use homelab_linux::{Node, Root};
use homelab_model::{History, KubernetesFact, NodeSpec, Phase, ours, plan_node};
use homelab_protocol::PROTOCOL;
use serde_json::json;

use crate::machine::Machine;
use crate::transaction::history;

/// Prints version, protocol and digest.
pub(crate) fn version() -> ExitCode {
    let digest = homelab_linux::digest_of_self().unwrap_or_else(|e| format!("unknown: {e}"));
    let version = env!("CARGO_PKG_VERSION");
    finish(writeln!(io::stdout(), "homelab-node {version} protocol {PROTOCOL} sha256 {digest}"), true)
}

/// Prints the node's state; exit 1 if something differs or cannot be seen.
pub(crate) fn main(as_json: bool) -> ExitCode {
    let history = match Machine::open() {
        Ok(mut machine) => history(&mut machine),
        Err(message) => {
            let _ = writeln!(io::stderr(), "homelab-node status: {message}");
            return ExitCode::FAILURE;
        }
    };
    let changes = told(&history);
    let text = match std::fs::read_to_string(ours::NODE_SPEC) {
        Ok(text) => text,
        Err(error) => {
            for line in changes {
                let _ = writeln!(io::stdout(), "{line}");
            }
            let _ = writeln!(
                io::stderr(),
                "homelab-node status: {}: {error}\nThis node belongs to no cluster: run homelab apply on the laptop.",
                ours::NODE_SPEC
            );
            return ExitCode::FAILURE;
        }
    };
    match look(&text) {
        Ok((spec, observed, differs)) => {
            let errors = observed.facts.agent.as_ref().map_or(&[][..], |a| &a.errors);
            let healthy = differs.is_empty() && errors.is_empty() && observed.facts.agent.is_some();
            let printed = if as_json {
                let value = json!({
                    "format_version": 1, "cluster": spec.cluster, "node": spec.node,
                    "agent": observed.facts.agent, "cordoned": observed.facts.cordoned,
                    "pods": observed.facts.pods, "differs": differs,
                    "history": history,
                });
                writeln!(io::stdout(), "{value:#}")
            } else {
                let agent = match &observed.facts.agent {
                    Some(agent) => format!("running (pid {}), {} repairs", agent.pid, agent.repairs),
                    None => "not running".to_owned(),
                };
                let mut lines = vec![
                    format!("node     {} of cluster {}", spec.node, spec.cluster),
                    format!("agent    {agent}"),
                    format!(
                        "tunnel   {} VNI {} to {} peers",
                        spec.vtep.device,
                        spec.vtep.vni,
                        spec.peers.len()
                    ),
                    format!("pods     {}", observed.facts.pods),
                ];
                let kubernetes = observed.facts.agent.as_ref().and_then(|agent| agent.kubernetes.as_ref());
                lines.extend(kubernetes.into_iter().flat_map(of_kubernetes));
                let cordoned = observed.facts.cordoned.as_ref();
                lines
                    .extend(cordoned.map(|by| format!("cordon   by {}: no load-balancer addresses", by.who)));
                lines.extend(changes);
                lines.extend(differs.iter().map(|d| format!("differs  {d}")));
                lines.extend(errors.iter().map(|e| format!("error    {e}")));
                writeln!(io::stdout(), "{}", lines.join("\n"))
            };
            finish(printed, healthy)
        }
        Err(message) => {
            let _ = writeln!(io::stderr(), "homelab-node status: {message}");
            ExitCode::FAILURE
        }
    }
}

/// How the agent stands with the Kubernetes API.
fn of_kubernetes(fact: &KubernetesFact) -> Vec<String> {
    let state = match (fact.connected, fact.known) {
        (true, _) => format!("watched at {}", fact.server),
        (false, true) => "not all watched; what was known last is served".to_owned(),
        (false, false) => "not known yet".to_owned(),
    };
    let counts = format!("{} services, {} slices, {} nodes", fact.services, fact.slices, fact.nodes);
    let hidden = fact.hidden.iter().map(|name| format!("hidden   {name}: homelab.yaml has it, too"));
    let peers = fact.peers.iter().map(|name| format!("peer     {name}: a Node of Kubernetes"));
    let troubles = fact.troubles.iter().map(|trouble| format!("trouble  {trouble}"));
    [format!("cluster  {state}: {counts}")].into_iter().chain(hidden).chain(peers).chain(troubles).collect()
}

/// What there is to say of transactions, a line each.
fn told(history: &History) -> Vec<String> {
    let open = history.open.as_ref().map(|open| {
        let after = format!("is taken back in {} s unless it is confirmed", open.remaining);
        let state = match open.phase {
            Phase::Armed => "is under way".to_owned(),
            Phase::RollingBack => "is being taken back".to_owned(),
            Phase::Applied => after,
            Phase::Held => format!("{after}: homelab confirm"),
        };
        format!("change   {} of {} {state}", open.id, open.by)
    });
    let reverted = history.reverted.as_ref().map(|reverted| {
        let left = match reverted.left.is_empty() {
            true => String::new(),
            false => format!("; not as before: {}", reverted.left.join(", ")),
        };
        format!("change   {} of {} was taken back: {}{left}", reverted.id, reverted.by, reverted.reason)
    });
    open.into_iter().chain(reverted).collect()
}

fn look(text: &str) -> Result<(NodeSpec, homelab_model::Observed, Vec<String>), String> {
    let spec: NodeSpec = serde_json::from_str(text).map_err(|e| format!("{}: {e}", ours::NODE_SPEC))?;
    let mut node = Node::open(Root::system()).map_err(|e| e.to_string())?;
    let desired = homelab_desired::desired(&spec);
    let mut observed = node.observe(&homelab_desired::scope(&spec)).map_err(|e| e.to_string())?;
    crate::machine::leave_out_live(&mut observed);
    let differs = plan_node(&spec.node, &observed.objects, &desired)
        .shown()
        .into_iter()
        .map(|c| format!("{} {}", c.action.sign(), c.object))
        .collect();
    Ok((spec, observed, differs))
}

fn finish(printed: io::Result<()>, healthy: bool) -> ExitCode {
    if printed.is_ok() && healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use homelab_model::{Holder, OpenTransaction, Reverted};

    use super::*;

    #[test]
    fn transactions_are_told() {
        let by = Holder { who: "me@laptop".into(), pid: 7, command: "apply".into(), since: 0 };
        let open =
            OpenTransaction { id: "ab".into(), by: by.clone(), phase: Phase::Held, remaining: 9, changes: 3 };
        let (reason, left) = ("nobody confirmed it within 60 s".into(), vec!["link homelab0".to_owned()]);
        let reverted = Reverted { id: "cd".into(), by, at: 0, reason, left };
        let history = History { open: Some(open), reverted: Some(reverted), ..History::default() };
        assert_eq!(
            told(&history),
            [
                "change   ab of me@laptop (homelab apply, process 7) is taken back in 9 s unless it is confirmed: \
                 homelab confirm",
                "change   cd of me@laptop (homelab apply, process 7) was taken back: nobody confirmed it within 60 s; \
                 not as before: link homelab0",
            ]
        );
        assert_eq!(told(&History::default()), [""; 0]);
    }
}
