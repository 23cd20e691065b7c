//! Node ports: their range, and the addresses that answer on them.

use homelab_model::{AgentSettings, Network, SpeakerSpec};
use ipnet::IpNet;

use super::{clean, nodes, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};

/// What the file says about node ports.
pub(super) struct NodePorts {
    pub(super) range: (u16, u16),
    pub(super) span: Option<Span>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) masquerade_all: bool,
    pub(super) complete: bool,
}

impl NodePorts {
    pub(super) fn holds(&self, number: u16) -> bool {
        (self.range.0..=self.range.1).contains(&number)
    }
}

pub(super) fn node_ports(
    file: &File,
    nodes: &[nodes::Parsed],
    agent: Option<AgentSettings>,
    faults: &mut Vec<Fault>,
) -> NodePorts {
    let before = faults.len();
    let empty = raw::Network::default();
    let raw = file.network.as_ref().unwrap_or(&empty);
    let range = raw.node_port_range.as_ref().and_then(|r| take(faults, r, values::port_range));
    let mut addresses: Vec<IpNet> = Vec::new();
    match &raw.node_port_addresses {
        Some(list) => {
            for text in list {
                let Some(net) = take(faults, text, values::cidr_of_hosts) else { continue };
                // 0.0.0.0/0 is every address of the node, as in kube-proxy.
                let what = values::unusable(net.value.addr()).filter(|_| net.value.prefix_len() > 0);
                match what {
                    Some(what) => faults.push(
                        Fault::new("cidr", net.span, format!("{} cannot be used: it is {what}", net.value))
                            .help("write ranges of the nodes' addresses on the LAN, e.g. `192.168.50.0/24`"),
                    ),
                    None => addresses.push(net.value),
                }
            }
        }
        None => addresses.extend(nodes.iter().flat_map(|n| &n.addresses).map(|a| IpNet::from(a.value))),
    }
    let ports = NodePorts {
        range: range.as_ref().map_or(Network::NODE_PORTS, |r| r.value),
        span: range.as_ref().map(|r| r.span),
        addresses,
        masquerade_all: raw.masquerade_all.as_ref().is_some_and(|m| m.value),
        complete: clean(faults, before),
    };
    let vxlan = raw.vxlan.as_ref().and_then(|v| v.port.as_ref());
    let taken = [
        (vxlan.map_or(8472, |p| p.value), vxlan.map(|p| p.span), "the tunnel's port"),
        (
            agent.map_or(0, |a| a.port),
            file.agent.as_ref().and_then(|a| a.port.as_ref()).map(|p| p.span),
            "the agent's port",
        ),
        speakers(file),
        (22, None, "the port of SSH"),
    ];
    for (number, span, what) in taken {
        // A node port in front of one of these would take its packets away.
        if ports.holds(number)
            && let Some(at) = ports.span.or(span)
        {
            let (first, last) = ports.range;
            let message = format!("{what}, {number}, lies inside the node ports {first}-{last}");
            let mut fault = Fault::new("node-port", at, message)
                .help("a service that gets it would take it over on every node: keep it out of the range");
            if let Some(span) = span.filter(|s| *s != at) {
                fault = fault.also(span, "set here");
            }
            faults.push(fault.warning());
        }
    }
    ports
}

/// The port of the speakers, where there are any.
fn speakers(file: &File) -> (u16, Option<Span>, &'static str) {
    let raw = file.load_balancer.as_ref();
    let port = raw.and_then(|raw| raw.port.as_ref());
    let some = port.is_some() || raw.is_some_and(|raw| raw.pools.as_ref().is_some_and(|p| !p.is_empty()));
    let number = port.map_or(SpeakerSpec::PORT, |p| p.value);
    (if some { number } else { 0 }, port.map(|p| p.span), "the speakers' port")
}
