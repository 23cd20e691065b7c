//! `homelab-node status`: what this node holds and what differs, without a laptop.

use std::io::{self, Write};
use std::process::ExitCode;

use homelab_linux::{Node, Root};
use homelab_model::{NodeSpec, ours, plan_node};
use homelab_protocol::PROTOCOL;
use serde_json::json;

/// Prints version, protocol and digest.
pub(crate) fn version() -> ExitCode {
    let digest = homelab_linux::digest_of_self().unwrap_or_else(|e| format!("unknown: {e}"));
    let version = env!("CARGO_PKG_VERSION");
    finish(writeln!(io::stdout(), "homelab-node {version} protocol {PROTOCOL} sha256 {digest}"), true)
}

/// Prints the node's state; exit 1 if something differs or cannot be seen.
pub(crate) fn main(as_json: bool) -> ExitCode {
    let text = match std::fs::read_to_string(ours::NODE_SPEC) {
        Ok(text) => text,
        Err(error) => {
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
                    "agent": observed.facts.agent, "pods": observed.facts.pods, "differs": differs,
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

fn look(text: &str) -> Result<(NodeSpec, homelab_model::Observed, Vec<String>), String> {
    let spec: NodeSpec = serde_json::from_str(text).map_err(|e| format!("{}: {e}", ours::NODE_SPEC))?;
    let mut node = Node::open(Root::system()).map_err(|e| e.to_string())?;
    let desired = homelab_desired::desired(&spec);
    let observed = node.observe(&homelab_desired::scope(&spec)).map_err(|e| e.to_string())?;
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
