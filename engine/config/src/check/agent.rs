//! The agent of every node, and the manifests beside the file.

use std::collections::HashMap;
use std::net::IpAddr;

use homelab_model::AgentSettings;

use super::{nodes, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};

pub(super) fn agent(file: &File, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> Option<AgentSettings> {
    let empty = raw::Agent::default();
    let raw = file.agent.as_ref().unwrap_or(&empty);
    let mut settings = AgentSettings::default();
    if let Some(port) = &raw.port {
        settings.port = port.value;
    }
    let Some(text) = &raw.address else { return Some(settings) };
    let address = take(faults, text, values::address)?;
    let holder = nodes.iter().find(|n| n.addresses.iter().any(|a| a.value == address.value));
    let any = if address.value.is_ipv4() { "0.0.0.0" } else { "::" };
    let wrong = match (address.value, holder) {
        (_, Some(node)) if nodes.len() > 1 => Some(format!(
            "{} is the address of {}; the other agents cannot answer there",
            text.value,
            node.title()
        )),
        (IpAddr::V4(a), _) if a.is_broadcast() => Some(format!("{a} is the broadcast address")),
        (a, _) if a.is_multicast() => Some(format!("{a} is a multicast address")),
        _ => None,
    };
    match wrong {
        Some(message) => {
            let help = format!("write `127.0.0.1` for the node itself, or `{any}` for all its addresses");
            faults.push(Fault::new("agent-address", address.span, message).help(help));
            None
        }
        None => Some(AgentSettings { address: address.value, ..settings }),
    }
}

/// Paths of manifests as they are written.
pub(super) fn manifests(file: &File, faults: &mut Vec<Fault>) -> Vec<String> {
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut paths = Vec::new();
    for path in file.manifests.as_deref().unwrap_or_default() {
        if path.value.trim().is_empty() {
            faults.push(
                Fault::new("manifests", path.span, "the path of a manifest is empty")
                    .help("for example `services/web.yaml`"),
            );
        } else if let Some(first) = seen_before(&mut seen, &path.value, path.span) {
            faults.push(
                Fault::new("manifests", path.span, format!("the manifest {} is named twice", path.value))
                    .label("again here")
                    .also(first, "first here")
                    .help("keep one of them"),
            );
        } else {
            paths.push(path.value.clone());
        }
    }
    paths
}
