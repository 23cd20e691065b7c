//! Pools and services.

use std::collections::HashMap;
use std::net::IpAddr;

use homelab_model::{L2Settings, LoadBalancer, Pool, PoolRange, Service, ServicePort};

use super::{clean, network, nodes, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};
use crate::spanned::Spanned;
use crate::words::nearest;

/// A pool as far as it can be understood.
pub(super) struct ParsedPool {
    name: Option<Spanned<String>>,
    /// Each range with its text.
    pub(super) ranges: Vec<Spanned<(String, PoolRange)>>,
    auto_assign: bool,
    avoid_buggy_ips: bool,
}

impl ParsedPool {
    pub(super) fn title(&self) -> &str {
        self.name.as_ref().map_or("?", |n| &n.value)
    }
}

/// All of `loadBalancer`.
pub(super) struct Pools {
    pub(super) pools: Vec<ParsedPool>,
    l2: L2Settings,
    complete: bool,
}

impl Pools {
    pub(super) fn finish(self) -> Option<LoadBalancer> {
        let pool = |p: ParsedPool| {
            Some(Pool {
                name: p.name?.value,
                addresses: p.ranges.into_iter().map(|r| r.value.1).collect(),
                auto_assign: p.auto_assign,
                avoid_buggy_ips: p.avoid_buggy_ips,
            })
        };
        let pools = self.pools.into_iter().map(pool).collect::<Option<_>>()?;
        self.complete.then_some(LoadBalancer { pools, l2: self.l2 })
    }
}

pub(super) fn load_balancer(file: &File, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> Pools {
    let before = faults.len();
    let empty = raw::LoadBalancer::default();
    let raw = file.load_balancer.as_ref().unwrap_or(&empty);
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut pools = Vec::new();
    for pool in raw.pools.as_deref().unwrap_or_default() {
        let raw = &pool.value;
        let name = raw.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "a pool name")));
        if let Some(name) = &name
            && let Some(first) = seen_before(&mut names, &name.value, name.span)
        {
            faults.push(duplicate("pools", name, first));
        }
        let mut ranges = Vec::new();
        for text in raw.addresses.as_deref().unwrap_or_default() {
            let Some(range) = take(faults, text, values::pool_range) else { continue };
            let PoolRange { first, last } = range.value;
            if let Some(what) = values::unusable(first).or_else(|| values::unusable(last)) {
                faults.push(
                    Fault::new(
                        "pool-range",
                        range.span,
                        format!("{} cannot be announced: it contains {what}", text.value),
                    )
                    .help("a pool holds free addresses of your LAN"),
                );
                continue;
            }
            ranges.push(Spanned { value: (text.value.clone(), range.value), span: range.span });
        }
        pools.push(ParsedPool {
            name,
            ranges,
            auto_assign: raw.auto_assign.as_ref().is_none_or(|a| a.value),
            avoid_buggy_ips: raw.avoid_buggy_ips.as_ref().is_some_and(|a| a.value),
        });
    }
    let l2 = raw.l2.as_ref().map(|l2| settings(l2, nodes, faults)).unwrap_or_default();
    Pools { pools, l2, complete: clean(faults, before) }
}

fn settings(raw: &raw::L2, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> L2Settings {
    let mut l2 = L2Settings::default();
    for text in raw.interfaces.as_deref().unwrap_or_default() {
        if let Some(name) = take(faults, text, values::interface) {
            l2.interfaces.push(name.value);
        }
    }
    let known: Vec<&str> = nodes.iter().filter_map(|n| n.name.as_ref()).map(|n| n.value.as_str()).collect();
    for text in raw.nodes.as_deref().unwrap_or_default() {
        // A node whose own name is wrong may be the one that is meant.
        if known.len() == nodes.len() && !nodes.is_empty() && !known.contains(&text.value.as_str()) {
            let help = match nearest(&text.value, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known nodes: {}", crate::words::list(&known, "and")),
            };
            faults.push(
                Fault::new("unknown-node", text.span, format!("there is no node `{}`", text.value))
                    .help(help),
            );
        }
        l2.nodes.push(text.value.clone());
    }
    l2
}

fn duplicate(what: &str, name: &Spanned<String>, first: Span) -> Fault {
    Fault::new("duplicate-name", name.span, format!("two {what} are named `{}`", name.value))
        .label("again here")
        .also(first, "first here")
        .help("give each a name of its own")
}

/// What services may not share.
#[derive(Default)]
struct Taken {
    names: HashMap<String, Span>,
    cluster_ips: HashMap<IpAddr, Span>,
    listeners: HashMap<(IpAddr, String, u16), Span>,
    node_ports: HashMap<(String, u16), Span>,
}

pub(super) fn services(
    file: &File,
    network: &network::Parsed,
    pools: &Pools,
    faults: &mut Vec<Fault>,
) -> Option<Vec<Service>> {
    let mut taken = Taken::default();
    let raw = file.services.as_deref().unwrap_or_default();
    let services: Vec<Option<Service>> =
        raw.iter().map(|s| service(&s.value, network, pools, &mut taken, faults)).collect();
    services.into_iter().collect()
}

fn service(
    raw: &raw::Service,
    network: &network::Parsed,
    pools: &Pools,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<Service> {
    let before = faults.len();
    let name = raw.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "a service name")));
    if let Some(name) = &name
        && let Some(first) = seen_before(&mut taken.names, &name.value, name.span)
    {
        faults.push(duplicate("services", name, first));
    }
    let kind = raw.r#type.as_ref().map_or("ClusterIP", |t| &t.value).to_owned();
    let cluster_ip = raw.cluster_ip.as_ref().and_then(|t| cluster_ip(t, network, taken, faults));
    let load_balancer_ip =
        raw.load_balancer_ip.as_ref().and_then(|t| load_balancer_ip(t, &kind, pools, faults));
    let ports = ports(raw, &kind, load_balancer_ip.as_ref(), taken, faults);
    let mut endpoints = Vec::new();
    let mut seen: HashMap<IpAddr, Span> = HashMap::new();
    for text in raw.endpoints.as_deref().unwrap_or_default() {
        let Some(address) = take(faults, text, values::address) else { continue };
        if let Some(what) = values::unusable(address.value) {
            let message = format!("{} is {what}; nothing can answer there", address.value);
            faults.push(
                Fault::new("endpoint", address.span, message)
                    .help("write an address of a pod or of a machine"),
            );
        } else if let Some(first) = seen_before(&mut seen, &address.value, address.span) {
            let message = format!("the endpoint {} stands twice", address.value);
            faults.push(
                Fault::new("endpoint", address.span, message)
                    .label("again here")
                    .also(first, "first here")
                    .help("keep one of them"),
            );
        } else if let Some(range) = network.services.iter().find(|r| r.net.contains(&address.value)) {
            let message = format!("the endpoint {} is in the service range {}", address.value, range.net);
            faults.push(
                Fault::new("endpoint", address.span, message)
                    .help("a service cannot stand behind a service; write what answers"),
            );
        } else {
            endpoints.push(address.value);
        }
    }
    clean(faults, before).then_some(())?;
    Some(Service {
        name: name?.value,
        r#type: kind,
        cluster_ip,
        load_balancer_ip: load_balancer_ip.map(|a| a.value),
        ports,
        endpoints,
    })
}

fn cluster_ip(
    text: &Spanned<String>,
    network: &network::Parsed,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<IpAddr> {
    if text.value.eq_ignore_ascii_case("none") {
        faults.push(
            Fault::new("headless", text.span, "a headless service (`clusterIP: None`) has no address")
                .help("there is nothing to program for it; leave the service out, or leave `clusterIP` out to get an address"),
        );
        return None;
    }
    let address = take(faults, text, values::address)?;
    let ranges = &network.services;
    let Some(range) = ranges.iter().find(|r| r.net.contains(&address.value)) else {
        // Ranges that are wrong themselves say nothing about the address.
        if !ranges.is_empty() {
            let names: Vec<String> = ranges.iter().map(|r| r.net.to_string()).collect();
            let message = format!("{} is outside the service range {}", address.value, names.join(" and "));
            let mut fault = Fault::new("cluster-ip", address.span, message)
                .help("choose an address inside it, or leave `clusterIP` out to get a free one");
            if let Some(span) = ranges.first().and_then(|r| r.span) {
                fault = fault.also(span, "the service range");
            }
            faults.push(fault);
        }
        return None;
    };
    let ends = [Some(range.net.network()), range.is_v4().then(|| range.net.broadcast())];
    if ends.contains(&Some(address.value)) {
        let message = format!(
            "{} is the first or last address of {}; it cannot be a service's",
            address.value, range.net
        );
        faults.push(Fault::new("cluster-ip", address.span, message).help("choose one between them"));
        return None;
    }
    if let Some(first) = seen_before(&mut taken.cluster_ips, &address.value, address.span) {
        faults.push(
            Fault::new(
                "duplicate-address",
                address.span,
                format!("two services have the address {}", address.value),
            )
            .label("again here")
            .also(first, "first here")
            .help("leave `clusterIP` out to get a free one"),
        );
    }
    Some(address.value)
}

fn load_balancer_ip(
    text: &Spanned<String>,
    kind: &str,
    pools: &Pools,
    faults: &mut Vec<Fault>,
) -> Option<Spanned<IpAddr>> {
    if kind != "LoadBalancer" {
        faults.push(
            Fault::new("service-type", text.span, format!("a {kind} service has no load-balancer address"))
                .help("write `type: LoadBalancer`, or take `loadBalancerIP` away"),
        );
        return None;
    }
    let address = take(faults, text, values::address)?;
    let inside = |r: &PoolRange| {
        r.first.is_ipv4() == address.value.is_ipv4() && r.first <= address.value && address.value <= r.last
    };
    let held = pools.pools.iter().any(|p| p.ranges.iter().any(|r| inside(&r.value.1)));
    // A pool that is wrong itself may be the one that is meant.
    if !held && pools.complete {
        let help = if pools.pools.is_empty() {
            "add a pool that holds it to `loadBalancer.pools`".to_owned()
        } else {
            let all: Vec<&str> =
                pools.pools.iter().flat_map(|p| p.ranges.iter().map(|r| r.value.0.as_str())).collect();
            format!("the pools hold {}", crate::words::list(&all, "and"))
        };
        faults.push(
            Fault::new("load-balancer-ip", address.span, format!("{} is in no pool", address.value))
                .help(help),
        );
    }
    Some(address)
}

fn ports(
    raw: &raw::Service,
    kind: &str,
    load_balancer_ip: Option<&Spanned<IpAddr>>,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Vec<ServicePort> {
    let list = raw.ports.as_deref().unwrap_or_default();
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut seen: HashMap<(String, u16), Span> = HashMap::new();
    let mut ports = Vec::new();
    for item in list {
        let raw = &item.value;
        let Some(port) = &raw.port else { continue };
        let protocol = raw.protocol.as_ref().map_or("TCP", |p| &p.value).to_owned();
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
        if let Some(first) = seen_before(&mut seen, &(protocol.clone(), port.value), port.span) {
            faults.push(
                Fault::new(
                    "duplicate-port",
                    port.span,
                    format!("{protocol} port {} stands twice", port.value),
                )
                .label("again here")
                .also(first, "first here")
                .help("the same number is allowed once per protocol"),
            );
        } else if let Some(ip) = load_balancer_ip {
            let listener = (ip.value, protocol.clone(), port.value);
            if let Some(first) = seen_before(&mut taken.listeners, &listener, port.span) {
                let message = format!("two services want {protocol} port {} of {}", port.value, ip.value);
                faults.push(
                    Fault::new("duplicate-port", port.span, message)
                        .label("again here")
                        .also(first, "first here")
                        .help("services share an address only with different ports"),
                );
            }
        }
        let node_port = raw.node_port.as_ref().and_then(|n| node_port(n, kind, &protocol, taken, faults));
        ports.push(ServicePort {
            name: name.map(|n| n.value),
            protocol,
            port: port.value,
            target_port: raw.target_port.as_ref().map_or(port.value, |t| t.value),
            node_port,
        });
    }
    ports
}

fn node_port(
    number: &Spanned<u16>,
    kind: &str,
    protocol: &str,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<u16> {
    if kind == "ClusterIP" {
        faults.push(
            Fault::new("service-type", number.span, "a ClusterIP service has no node port")
                .help("write `type: NodePort` or `type: LoadBalancer`, or take `nodePort` away"),
        );
        return None;
    }
    if let Some(first) = seen_before(&mut taken.node_ports, &(protocol.to_owned(), number.value), number.span)
    {
        faults.push(
            Fault::new(
                "duplicate-port",
                number.span,
                format!("{protocol} node port {} is taken twice", number.value),
            )
            .label("again here")
            .also(first, "first here")
            .help("leave `nodePort` out to get a free one"),
        );
    }
    Some(number.value)
}
