//! Ports of a service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use homelab_model::service::{Port, Protocol, Type};

use super::{Taken, type_name};
use crate::check::node_ports::NodePorts;
use crate::check::{duplicate, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw;
use crate::spanned::Spanned;

/// The ports, and the endpoints' ports by their names. `listen` is the addresses that are fixed on the LAN.
pub(super) fn ports(
    raw: &raw::Service,
    r#type: Type,
    listen: &BTreeSet<IpAddr>,
    range: &NodePorts,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> (Vec<Port>, BTreeMap<String, u16>) {
    let list = raw.ports.as_deref().unwrap_or_default();
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut seen: HashMap<(Protocol, u16), Span> = HashMap::new();
    let mut ports = Vec::new();
    let mut targets = BTreeMap::new();
    for item in list {
        let raw = &item.value;
        let Some(port) = &raw.port else { continue };
        let protocol = match raw.protocol.as_ref().map(|p| p.value.as_str()) {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let name = raw.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "a port name")));
        match &name {
            Some(name) => {
                if let Some(first) = seen_before(&mut names, &name.value, name.span) {
                    faults.push(duplicate("ports", name, first));
                }
            }
            None if raw.name.is_none() && list.len() > 1 => faults.push(
                Fault::new("port-name", port.span, "a port needs a name where a service has several")
                    .help("add one, e.g. `name: http`"),
            ),
            None => {}
        }
        let shown = shown(protocol);
        if let Some(first) = seen_before(&mut seen, &(protocol, port.value), port.span) {
            faults.push(
                Fault::new("duplicate-port", port.span, format!("{shown} port {} stands twice", port.value))
                    .label("again here")
                    .also(first, "first here")
                    .help("the same number is allowed once per protocol"),
            );
        } else {
            for ip in listen {
                let listener = (*ip, protocol, port.value);
                if let Some(first) = seen_before(&mut taken.listeners, &listener, port.span) {
                    let message = format!("two services want {shown} port {} of {ip}", port.value);
                    faults.push(
                        Fault::new("duplicate-port", port.span, message)
                            .label("again here")
                            .also(first, "first here")
                            .help("services share an address only with different ports"),
                    );
                }
            }
        }
        let node_port =
            raw.node_port.as_ref().and_then(|n| node_port(n, r#type, protocol, range, taken, faults));
        let name = name.map(|n| n.value).unwrap_or_default();
        targets.insert(name.clone(), raw.target_port.as_ref().map_or(port.value, |t| t.value));
        ports.push(Port { name, protocol, port: port.value, node_port });
    }
    (ports, targets)
}

fn shown(protocol: Protocol) -> String {
    protocol.as_str().to_uppercase()
}

fn node_port(
    number: &Spanned<u16>,
    r#type: Type,
    protocol: Protocol,
    range: &NodePorts,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<u16> {
    if r#type == Type::ClusterIp {
        faults.push(
            Fault::new(
                "service-type",
                number.span,
                format!("a {} service has no node port", type_name(r#type)),
            )
            .help("write `type: NodePort` or `type: LoadBalancer`, or take `nodePort` away"),
        );
        return None;
    }
    claim(number, protocol, "nodePort", range, taken, faults)
}

/// A number of the node ports that nobody has yet; `key` sets it.
pub(super) fn claim(
    number: &Spanned<u16>,
    protocol: Protocol,
    key: &str,
    range: &NodePorts,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<u16> {
    // A range that is wrong itself says nothing about the number.
    if !range.holds(number.value) && range.complete {
        let (first, last) = range.range;
        let message = format!("{} is outside the node ports {first}-{last}", number.value);
        let mut fault = Fault::new("node-port", number.span, message).help(format!(
            "choose one inside, leave `{key}` out to get a free one, or set `network.nodePortRange`"
        ));
        if let Some(span) = range.span {
            fault = fault.also(span, "the node ports");
        }
        faults.push(fault);
        return None;
    }
    if let Some(first) = seen_before(&mut taken.node_ports, &(protocol, number.value), number.span) {
        faults.push(
            Fault::new(
                "duplicate-port",
                number.span,
                format!("{} node port {} is taken twice", shown(protocol), number.value),
            )
            .label("again here")
            .also(first, "first here")
            .help(format!("leave `{key}` out to get a free one")),
        );
    }
    Some(number.value)
}
