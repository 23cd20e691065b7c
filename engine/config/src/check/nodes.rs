//! Nodes: names, addresses, SSH.

use std::collections::HashMap;
use std::net::IpAddr;

use homelab_model::{LABEL_HOSTNAME, LABEL_ZONE, Labels, Node, SshSettings, effective_labels};
use ipnet::IpNet;

use super::{clean, family, labels, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};
use crate::spanned::Spanned;
use crate::words::nearest;

/// A node as far as it can be understood.
pub(super) struct Parsed {
    pub(super) name: Option<Spanned<String>>,
    pub(super) addresses: Vec<Spanned<IpAddr>>,
    pub(super) pod_cidrs: Vec<Spanned<IpNet>>,
    pub(super) interface: Option<Spanned<String>>,
    role: Option<String>,
    pub(super) zone: Option<Spanned<String>>,
    labels: Labels,
    ssh: SshSettings,
    complete: bool,
}

impl Parsed {
    /// What a message calls it.
    pub(super) fn title(&self) -> String {
        self.name.as_ref().map_or_else(|| "a node".into(), |n| n.value.clone())
    }

    /// The labels that selectors see.
    pub(super) fn effective_labels(&self) -> Labels {
        let name = self.name.as_ref().map_or("", |n| &n.value);
        effective_labels(&self.labels, name, self.zone.as_ref().map(|z| z.value.as_str()))
    }
}

/// All nodes; empty if the file has none.
pub(super) fn nodes(file: &File, faults: &mut Vec<Fault>) -> Vec<Parsed> {
    let defaults = defaults(file.ssh.as_ref(), faults);
    let raw = file.nodes.as_deref().unwrap_or_default();
    let nodes: Vec<Parsed> = raw.iter().map(|n| node(&n.value, &defaults, faults)).collect();
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut addresses: HashMap<IpAddr, Span> = HashMap::new();
    for node in &nodes {
        if let Some(name) = &node.name
            && let Some(first) = seen_before(&mut names, &name.value, name.span)
        {
            faults.push(
                Fault::new("duplicate-name", name.span, format!("two nodes are named `{}`", name.value))
                    .label("again here")
                    .also(first, "first here")
                    .help("give each node a name of its own"),
            );
        }
        for address in &node.addresses {
            if let Some(first) = seen_before(&mut addresses, &address.value, address.span) {
                faults.push(
                    Fault::new(
                        "duplicate-address",
                        address.span,
                        format!("two nodes have the address {}", address.value),
                    )
                    .label("again here")
                    .also(first, "first here")
                    .help("each node has an address of its own"),
                );
            }
        }
    }
    // A tunnel's ends are of one family.
    let mut firsts = nodes.iter().filter_map(|n| n.addresses.first());
    if let Some(first) = firsts.next() {
        for other in firsts.filter(|o| o.value.is_ipv4() != first.value.is_ipv4()) {
            let (one, two) = (family(first.value.is_ipv4()), family(other.value.is_ipv4()));
            faults.push(
                Fault::new(
                    "mixed-families",
                    other.span,
                    format!("the tunnel cannot join {one} and {two} addresses"),
                )
                .label(two)
                .also(first.span, one)
                .help(format!(
                    "give every node an {one} address; in a list of two the tunnel takes the first"
                )),
            );
        }
    }
    nodes
}

fn node(raw: &raw::Node, defaults: &SshSettings, faults: &mut Vec<Fault>) -> Parsed {
    let before = faults.len();
    let name = raw.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "a node name")));
    let mut addresses: Vec<Spanned<IpAddr>> = Vec::new();
    for text in raw.address.iter().flat_map(|a| &a.0) {
        let Some(address) = take(faults, text, values::node_address) else { continue };
        if let Some(what) = values::unusable(address.value) {
            faults.push(
                Fault::new(
                    "address",
                    address.span,
                    format!("{} is {what}; no node can be reached there", address.value),
                )
                .help("write the node's address on the LAN"),
            );
        } else if let Some(first) = addresses.iter().find(|a| a.value.is_ipv4() == address.value.is_ipv4()) {
            let message = format!("a node has one {} address here, not two", family(address.value.is_ipv4()));
            faults.push(
                Fault::new("two-of-a-family", address.span, message)
                    .label("second")
                    .also(first.span, "first")
                    .help(
                        "keep the one that the other nodes reach; a list is for an IPv4 and an IPv6 address",
                    ),
            );
        } else {
            addresses.push(address);
        }
    }
    let mut pod_cidrs: Vec<Spanned<IpNet>> = Vec::new();
    for text in raw.pod_cidr.iter().flat_map(|a| &a.0) {
        let Some(net) = take(faults, text, values::cidr) else { continue };
        match pod_cidrs.iter().find(|n| n.value.addr().is_ipv4() == net.value.addr().is_ipv4()) {
            Some(first) => faults.push(super::network::twice("podCIDR", &net, first.span)),
            None => pod_cidrs.push(net),
        }
    }
    let interface = raw.interface.as_ref().and_then(|i| take(faults, i, values::interface));
    let ssh = match &raw.ssh {
        Some(own) => node_ssh(own, defaults, faults),
        None => defaults.clone(),
    };
    let role = raw.role.as_ref().map(|r| r.value.clone());
    let zone = raw.zone.as_ref().and_then(|z| take(faults, z, values::zone));
    given_labels(raw, faults);
    let labels = labels::labels(raw.labels.as_ref(), faults);
    let complete = clean(faults, before);
    Parsed { name, addresses, pod_cidrs, interface, role, zone, labels, ssh, complete }
}

/// Tells of labels that every node has of itself, where they say something else.
fn given_labels(raw: &raw::Node, faults: &mut Vec<Fault>) {
    for (label, field, own) in [(LABEL_HOSTNAME, "name", &raw.name), (LABEL_ZONE, "zone", &raw.zone)] {
        let written = raw.labels.iter().flat_map(|l| &l.0).find(|(key, _)| key.value == label);
        let Some((_, value)) = written else { continue };
        if own.as_ref().is_none_or(|own| own.value != value.value) {
            let message = format!("the label `{label}` is the node's `{field}`, and says something else");
            let mut fault = Fault::new("label", value.span, message)
                .help(format!("take it away, and write `{field}: {}`", crate::value::short(&value.value)));
            if let Some(own) = own {
                fault = fault.also(own.span, format!("its {field}"));
            }
            faults.push(fault);
        }
    }
}

/// The node of that name; a fault where there is none.
pub(super) fn known<'a>(
    nodes: &'a [Parsed],
    text: &Spanned<String>,
    faults: &mut Vec<Fault>,
) -> Option<&'a Parsed> {
    let named = |n: &&Parsed| n.name.as_ref().is_some_and(|name| name.value == text.value);
    if let Some(node) = nodes.iter().find(named) {
        return Some(node);
    }
    let names: Vec<&str> = nodes.iter().filter_map(|n| n.name.as_ref()).map(|n| n.value.as_str()).collect();
    // A node whose own name is wrong may be the one that is meant.
    if names.len() == nodes.len() && !nodes.is_empty() {
        let help = match nearest(&text.value, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known nodes: {}", crate::words::list(&names, "and")),
        };
        faults.push(
            Fault::new("unknown-node", text.span, format!("there is no node `{}`", text.value)).help(help),
        );
    }
    None
}

/// The nodes of the cluster, unless one of them is incomplete.
pub(super) fn finish(nodes: Vec<Parsed>) -> Option<Vec<Node>> {
    let node = |n: Parsed| {
        let mut addresses = n.addresses.into_iter().map(|a| a.value);
        Some(Node {
            name: n.name?.value,
            address: addresses.next().filter(|_| n.complete)?,
            address6: addresses.next(),
            ssh: n.ssh,
            pod_cidrs: n.pod_cidrs.into_iter().map(|c| c.value).collect(),
            interface: n.interface.map(|i| i.value),
            role: n.role,
            zone: n.zone.map(|z| z.value),
            labels: n.labels,
        })
    };
    nodes.into_iter().map(node).collect()
}

fn defaults(raw: Option<&raw::Ssh>, faults: &mut Vec<Fault>) -> SshSettings {
    let Some(raw) = raw.cloned() else { return SshSettings::default() };
    let raw::Ssh { user, port, identity, jump, r#become } = raw;
    node_ssh(
        &raw::NodeSsh { host: None, user, port, identity, jump, r#become },
        &SshSettings::default(),
        faults,
    )
}

fn node_ssh(raw: &raw::NodeSsh, defaults: &SshSettings, faults: &mut Vec<Fault>) -> SshSettings {
    let mut word = |text: &Option<Spanned<String>>, what: &str| {
        text.as_ref().and_then(|t| take(faults, t, |t| values::ssh_word(t, what))).map(|t| t.value)
    };
    let host = word(&raw.host, "a host");
    let user = word(&raw.user, "a user name");
    if let Some(text) = raw.host.as_ref().filter(|_| host.as_ref().is_some_and(|h| h.contains('@'))) {
        let (user, host) = text.value.rsplit_once('@').unwrap_or_default();
        faults.push(
            Fault::new("ssh", text.span, "the user does not belong to `host`")
                .help(format!("write `host: {host}` and `user: {user}`")),
        );
    }
    let identity = raw.identity.as_ref().and_then(|text| {
        if text.value.trim().is_empty() {
            faults.push(
                Fault::new("ssh", text.span, "`identity` is empty")
                    .help("name a private key file, or leave it out to use the agent and ~/.ssh/config"),
            );
            return None;
        }
        if text.value.ends_with(".pub") {
            let private = text.value.trim_end_matches(".pub");
            faults.push(
                Fault::new("ssh", text.span, "this looks like a public key file")
                    .help(format!("name the private key: `{private}`"))
                    .warning(),
            );
        }
        Some(text.value.clone())
    });
    let jump = raw.jump.as_ref().and_then(|j| take(faults, j, values::jump)).map(|j| j.value);
    SshSettings {
        host: host.or_else(|| defaults.host.clone()),
        user: user.or_else(|| defaults.user.clone()),
        port: raw.port.as_ref().map(|p| p.value).or(defaults.port),
        identity: identity.or_else(|| defaults.identity.clone()),
        jump: jump.or_else(|| defaults.jump.clone()),
        r#become: raw.r#become.as_ref().map(|b| b.value).or(defaults.r#become),
    }
}
