//! Meaning: what a schema cannot say.

mod advertisements;
mod agent;
mod bgp;
mod bgp_meaning;
mod bgp_values;
mod kubernetes;
mod labels;
mod network;
mod node_ports;
mod nodes;
mod pools;
mod ranges;
mod services;
mod values;

use std::collections::HashMap;
use std::hash::Hash;

use homelab_model::Cluster;

use crate::problem::{Fault, Severity, Span};
use crate::raw::File;
use crate::spanned::Spanned;
use crate::value::quote;
use crate::words::{list, nearest};
use values::Parsed;

/// The cluster with defaults, unless something necessary is missing or wrong.
pub(crate) fn cluster(file: &File, faults: &mut Vec<Fault>) -> Option<Cluster> {
    let name = file.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "a cluster name")));
    let nodes = nodes::nodes(file, faults);
    let network = network::network(file, &nodes, faults);
    let agent = agent::agent(file, &nodes, faults);
    let node_ports = node_ports::node_ports(file, &nodes, agent, faults);
    let pools = pools::load_balancer(file, &nodes, &network.vxlan, faults);
    let place = services::Place { nodes: &nodes, network: &network, node_ports: &node_ports, pools: &pools };
    let services = services::services(file, place, faults);
    let manifests = agent::manifests(file, faults);
    let kubernetes = kubernetes::kubernetes(file, faults);
    ranges::overlaps(&nodes, &network, &pools, faults);
    Some(Cluster {
        name: name?.value,
        nodes: nodes::finish(nodes)?,
        network: network.finish(node_ports)?,
        load_balancer: pools.finish()?,
        services: services?,
        manifests,
        agent: agent?,
        kubernetes: kubernetes?,
    })
}

/// A text parsed, with its place; a fault where it cannot be.
fn take<T>(
    faults: &mut Vec<Fault>,
    text: &Spanned<String>,
    parse: impl Fn(&str) -> Parsed<T>,
) -> Option<Spanned<T>> {
    match parse(&text.value) {
        Ok(value) => Some(Spanned { value, span: text.span }),
        Err(words) => {
            faults.push(Fault::new(words.code, text.span, words.message).help(words.help));
            None
        }
    }
}

/// Whether nothing but warnings came since `before`.
fn clean(faults: &[Fault], before: usize) -> bool {
    faults.iter().skip(before).all(|f| f.severity == Severity::Warning)
}

/// The first of `seen` that equals `value`; adds it otherwise.
fn seen_before<T: Eq + Hash + Clone>(seen: &mut HashMap<T, Span>, value: &T, span: Span) -> Option<Span> {
    let first = seen.get(value).copied();
    if first.is_none() {
        seen.insert(value.clone(), span);
    }
    first
}

/// Whether an address or range is IPv4.
fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// The name of an entry, one of `what`; `kind` is what a name of such is called, with its article.
fn name(
    seen: &mut HashMap<String, Span>,
    text: Option<&Spanned<String>>,
    (kind, what): (&str, &str),
    faults: &mut Vec<Fault>,
) -> Option<Spanned<String>> {
    let name = take(faults, text?, |t| values::label(t, kind))?;
    if let Some(first) = seen_before(seen, &name.value, name.span) {
        faults.push(duplicate(what, &name, first));
    }
    Some(name)
}

/// Tells of a name that no entry has. `names` has None for an entry whose own name is wrong: it may be the one that is meant.
fn known<'a>(
    names: impl IntoIterator<Item = Option<&'a Spanned<String>>>,
    text: &Spanned<String>,
    (code, what, home): (&'static str, &str, &str),
    faults: &mut Vec<Fault>,
) {
    let Some(names) = names.into_iter().map(|name| Some(name?.value.as_str())).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    if names.contains(&text.value.as_str()) {
        return;
    }
    let help = match nearest(&text.value, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => format!("add it to `{home}`"),
        None => format!("known {what}s: {}", list(&names, "and")),
    };
    faults.push(Fault::new(code, text.span, format!("there is no {what} {}", quote(&text.value))).help(help));
}

/// Two of a kind with one name.
fn duplicate(what: &str, name: &Spanned<String>, first: Span) -> Fault {
    Fault::new("duplicate-name", name.span, format!("two {what} are named `{}`", name.value))
        .label("again here")
        .also(first, "first here")
        .help("give each a name of its own")
}
