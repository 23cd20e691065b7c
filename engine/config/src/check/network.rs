//! Ranges of pods and services, and the tunnel.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use homelab_model::{Mtu, Network, PodOptions, Vxlan, ours};
use ipnet::IpNet;

use super::{clean, family, node_ports, nodes, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};
use crate::spanned::{OneOrMany, Spanned};

/// A range of the file, or a default.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) net: IpNet,
    pub(super) span: Option<Span>,
}

impl Range {
    pub(super) fn is_v4(&self) -> bool {
        self.net.addr().is_ipv4()
    }
}

/// The network as far as it can be understood.
pub(super) struct Parsed {
    pub(super) pods: Vec<Range>,
    prefixes: Vec<u8>,
    pub(super) services: Vec<Range>,
    pub(super) vxlan: Vxlan,
    options: PodOptions,
    complete: bool,
}

impl Parsed {
    pub(super) fn finish(self, ports: node_ports::NodePorts) -> Option<Network> {
        (self.complete && ports.complete).then(|| Network {
            pod_cidrs: self.pods.iter().map(|r| r.net).collect(),
            node_prefixes: self.prefixes,
            service_cidrs: self.services.iter().map(|r| r.net).collect(),
            node_port_range: ports.range,
            node_port_addresses: ports.addresses,
            masquerade_all: ports.masquerade_all,
            pods: self.options,
            vxlan: self.vxlan,
        })
    }
}

/// Pods 10.244.0.0/16 or fd00:10:244::/48.
fn default_pods(v4: bool) -> Range {
    let net = if v4 {
        IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 16)
    } else {
        IpNet::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0)), 48)
    };
    Range { net: net.unwrap_or_default(), span: None }
}

/// Services 10.96.0.0/12 or fd00:10:96::/112.
fn default_services(v4: bool) -> Range {
    let net = if v4 {
        IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)), 12)
    } else {
        IpNet::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0)), 112)
    };
    Range { net: net.unwrap_or_default(), span: None }
}

/// A second range of a family that has one.
pub(super) fn twice(key: &str, second: &Spanned<IpNet>, first: Span) -> Fault {
    let message = format!("`{key}` has two {} ranges", family(second.value.addr().is_ipv4()));
    Fault::new("two-of-a-family", second.span, message)
        .label("second")
        .also(first, "first")
        .help("one range per address family")
}

fn ranges(key: &str, raw: Option<&OneOrMany<Spanned<String>>>, faults: &mut Vec<Fault>) -> Vec<Range> {
    let mut list: Vec<Range> = Vec::new();
    for text in raw.iter().flat_map(|r| &r.0) {
        let Some(net) = take(faults, text, values::cidr) else { continue };
        if let Some(what) =
            values::unusable(net.value.addr()).or((net.value.prefix_len() < 4).then_some("far too large"))
        {
            faults.push(
                Fault::new("cidr", net.span, format!("{} cannot be used: it is {what}", net.value))
                    .help("take a private range, e.g. `10.244.0.0/16` or `fd00:10:244::/48`"),
            );
            continue;
        }
        match list.iter().find(|r| r.is_v4() == net.value.addr().is_ipv4()).and_then(|r| r.span) {
            Some(first) => faults.push(twice(key, &net, first)),
            None => list.push(Range { net: net.value, span: Some(net.span) }),
        }
    }
    list
}

pub(super) fn network(file: &File, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> Parsed {
    let before = faults.len();
    let empty = raw::Network::default();
    let raw = file.network.as_ref().unwrap_or(&empty);
    let has_v4 = nodes.iter().any(|n| n.addresses.iter().any(|a| a.value.is_ipv4()));
    let known = nodes.iter().any(|n| !n.addresses.is_empty());

    let mut pods = ranges("podCIDR", raw.pod_cidr.as_ref(), faults);
    let pods_given = raw.pod_cidr.is_some();
    if !pods_given {
        pods.push(default_pods(has_v4 || !known));
    }
    let mut services = ranges("serviceCIDR", raw.service_cidr.as_ref(), faults);
    let pods_good = faults.len() == before;
    if raw.service_cidr.is_none() {
        services = pods.iter().map(|p| default_services(p.is_v4())).collect();
    } else if pods_good {
        families(&pods, &services, faults);
    }
    for service in &services {
        let least = if service.is_v4() { 30 } else { 126 };
        if service.net.prefix_len() > least {
            let message = format!("{} has room for no services", service.net);
            faults.push(
                Fault::new("too-small", service.span.unwrap_or_default(), message)
                    .help("e.g. `10.96.0.0/12`"),
            );
        }
    }
    let prefixes = if pods_good { prefixes(raw, &pods, nodes, faults) } else { Vec::new() };
    if pods_good {
        node_ranges(&pods, &prefixes, nodes, faults);
        families_of_nodes(&pods, nodes, faults);
    }
    let tunnel_v4 = nodes.iter().find_map(|n| n.addresses.first()).is_none_or(|a| a.value.is_ipv4());
    let vxlan = vxlan(raw.vxlan.as_ref(), &pods, tunnel_v4, nodes, faults);
    let on = |wish: &Option<Spanned<bool>>| wish.as_ref().is_some_and(|wish| wish.value);
    let options = raw.pods.as_ref().map_or(PodOptions::default(), |pods| PodOptions {
        port_isolation: on(&pods.port_isolation),
        spoof_protection: on(&pods.spoof_protection),
    });
    Parsed { pods, prefixes, services, vxlan, options, complete: clean(faults, before) }
}

/// Services and pods have the same families.
fn families(pods: &[Range], services: &[Range], faults: &mut Vec<Fault>) {
    for service in services {
        if !pods.iter().any(|p| p.is_v4() == service.is_v4())
            && let Some(span) = service.span
        {
            let name = family(service.is_v4());
            let mut fault = Fault::new("families", span, format!("{name} services need {name} pods"))
                .label(name)
                .help(format!("add an {name} range to `podCIDR`, or take this one away"));
            if let Some(pod) = pods.first().and_then(|p| p.span) {
                fault = fault.also(pod, "the pods");
            }
            faults.push(fault);
        }
    }
    for pod in pods {
        if !services.iter().any(|s| s.is_v4() == pod.is_v4())
            && services.iter().all(|s| pods.iter().any(|p| p.is_v4() == s.is_v4()))
            && let Some(span) = services.first().and_then(|s| s.span)
        {
            let name = family(pod.is_v4());
            let mut fault =
                Fault::new("families", span, format!("{name} pods need an {name} range in `serviceCIDR`"))
                    .help(format!("add one, e.g. `{}`", default_services(pod.is_v4()).net));
            if let Some(pod) = pod.span {
                fault = fault.also(pod, format!("{name} pods"));
            }
            faults.push(fault);
        }
    }
}

/// Length of each node's part, per pod range.
fn prefixes(raw: &raw::Network, pods: &[Range], nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> Vec<u8> {
    let given: &[Spanned<u8>] = raw.node_prefix.as_ref().map_or(&[], |p| &p.0);
    if let Some(first) = given.first().filter(|_| given.len() != pods.len()) {
        let (have, want) = (given.len(), pods.len());
        let message =
            format!("`nodePrefix` has {}, `podCIDR` {}", count(have, "number"), count(want, "range"));
        let help = if want == 2 {
            "give one number per range, e.g. `nodePrefix: [24, 64]`"
        } else {
            "give one number"
        };
        let mut fault = Fault::new("node-prefix", first.span, message).help(help);
        if let Some(pod) = pods.first().and_then(|p| p.span) {
            fault = fault.also(pod, "for this range");
        }
        faults.push(fault);
        return Vec::new();
    }
    let mut prefixes = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let written = given.get(index);
        let prefix = written.map_or(if pod.is_v4() { 24 } else { 64 }, |p| p.value);
        prefixes.push(prefix);
        let Some(span) = written.map(|p| p.span).or(pod.span) else { continue };
        let most = if pod.is_v4() { 30 } else { 120 };
        if prefix > most {
            let message = format!("a /{prefix} is too small for the pods of a node");
            let usual = if pod.is_v4() { 24 } else { 64 };
            let help = format!("{} allows /{most} at most; /{usual} is usual", family(pod.is_v4()));
            faults.push(Fault::new("node-prefix", span, message).help(help));
            continue;
        }
        let cidr = pod.net;
        if prefix < cidr.prefix_len() {
            let mut fault =
                Fault::new("too-small", span, format!("{cidr} is smaller than one node's /{prefix}")).help(
                    match written {
                        Some(_) => format!("set `nodePrefix` to {} or more", longer(cidr, nodes.len())),
                        None => room(cidr, prefix, nodes.len()),
                    },
                );
            if let (Some(_), Some(pod)) = (written, pod.span) {
                fault = fault.also(pod, "the pod range");
            }
            faults.push(fault);
            continue;
        }
        let bits = u32::from(prefix - cidr.prefix_len());
        let room_for = if bits >= 32 { u64::from(u32::MAX) } else { 1_u64 << bits };
        if (nodes.len() as u64) > room_for {
            let message = format!(
                "{cidr} has room for {}, but there are {}",
                count(room_for as usize, "node"),
                nodes.len()
            );
            let at = pod.span.unwrap_or(span);
            let mut fault = Fault::new("too-small", at, message)
                .label(format!("{room_for} x /{prefix}"))
                .help(room(cidr, prefix, nodes.len()));
            if let (Some(prefix), Some(_)) = (written, pod.span) {
                fault = fault.also(prefix.span, "for each node");
            }
            faults.push(fault);
        }
    }
    prefixes
}

/// `1 node`, `2 nodes`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A node's prefix length that gives as many nodes room.
fn longer(cidr: IpNet, nodes: usize) -> u8 {
    let bits = nodes.max(1).next_power_of_two().trailing_zeros() as u8;
    cidr.prefix_len().saturating_add(bits)
}

/// What would be large enough.
fn room(cidr: IpNet, prefix: u8, nodes: usize) -> String {
    let bits = nodes.max(1).next_power_of_two().trailing_zeros() as u8;
    let wider = prefix.checked_sub(bits).filter(|l| *l >= 8).and_then(|l| IpNet::new(cidr.addr(), l).ok());
    let longer = longer(cidr, nodes);
    let most = if cidr.addr().is_ipv4() { 28 } else { 120 };
    match (wider, longer <= most) {
        (Some(wider), true) => format!("widen it, e.g. `{}`, or set `nodePrefix: {longer}`", wider.trunc()),
        (Some(wider), false) => format!("widen it, e.g. `{}`", wider.trunc()),
        (None, _) => "choose a wider range".into(),
    }
}

/// Ranges that the file fixes for nodes.
fn node_ranges(pods: &[Range], prefixes: &[u8], nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) {
    let mut seen: HashMap<IpNet, Span> = HashMap::new();
    for net in nodes.iter().flat_map(|n| &n.pod_cidrs) {
        let v4 = net.value.addr().is_ipv4();
        let Some((index, pod)) = pods.iter().enumerate().find(|(_, p)| p.is_v4() == v4) else {
            let message = format!("a node cannot have {} pods when the cluster has none", family(v4));
            faults.push(
                Fault::new("node-range", net.span, message)
                    .help(format!("add an {} range to `network.podCIDR`, or take this one away", family(v4))),
            );
            continue;
        };
        let of_the_cluster = |fault: Fault| match pod.span {
            Some(span) => fault.also(span, "the cluster's pods"),
            None => fault,
        };
        if let Some(&prefix) = prefixes.get(index)
            && net.value.prefix_len() != prefix
        {
            let fixed =
                IpNet::new(net.value.addr(), prefix).map(|n| n.trunc().to_string()).unwrap_or_default();
            let message =
                format!("a node's part of {} is a /{prefix}, not a /{}", pod.net, net.value.prefix_len());
            let help = format!("write `{fixed}`, or change `network.nodePrefix`");
            faults.push(Fault::new("node-range", net.span, message).help(help));
        } else if !pod.net.contains(&net.value) {
            let message = format!("{} is outside the cluster's pod range {}", net.value, pod.net);
            faults
                .push(of_the_cluster(Fault::new("node-range", net.span, message).help(
                    "choose a part of the pod range, or leave it out: homelab finds one and keeps it",
                )));
        } else if let Some(first) = seen_before(&mut seen, &net.value, net.span) {
            faults.push(
                Fault::new("overlap", net.span, format!("two nodes have the pod range {}", net.value))
                    .label("again here")
                    .also(first, "first here")
                    .help("leave it out where it does not matter: homelab finds one and keeps it"),
            );
        }
    }
}

/// IPv6 pods need IPv6 on the LAN.
fn families_of_nodes(pods: &[Range], nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) {
    for pod in pods {
        let Some(span) = pod.span else { continue };
        let v4 = pod.is_v4();
        let without: Vec<&nodes::Parsed> = nodes
            .iter()
            .filter(|n| !n.addresses.is_empty() && !n.addresses.iter().any(|a| a.value.is_ipv4() == v4))
            .collect();
        if without.is_empty() {
            continue;
        }
        let name = family(v4);
        let who = if without.len() == nodes.len() {
            "no node has one".to_owned()
        } else {
            let names: Vec<String> = without.iter().take(5).map(|n| n.title()).collect();
            format!("{} has none", crate::words::list(&names, "and"))
                .replace(" has none", if names.len() == 1 { " has none" } else { " have none" })
        };
        let example = if v4 {
            "address: [fd00:50::11, 192.168.50.11]"
        } else {
            "address: [192.168.50.11, fd00:50::11]"
        };
        let mut fault =
            Fault::new("families", span, format!("{name} pods need nodes with {name} addresses: {who}"))
                .label(format!("{name} pods"))
                .help(format!("give every node both, e.g. `{example}`, or take this range away"));
        for node in without.iter().take(5) {
            if let Some(address) = node.addresses.first() {
                fault = fault.also(address.span, format!("no {name}"));
            }
        }
        // IPv4 pods behind IPv6 nodes reach each other, but not the LAN.
        faults.push(if v4 { fault.warning() } else { fault });
    }
}

fn vxlan(
    raw: Option<&raw::Vxlan>,
    pods: &[Range],
    tunnel_v4: bool,
    nodes: &[nodes::Parsed],
    faults: &mut Vec<Fault>,
) -> Vxlan {
    let empty = raw::Vxlan::default();
    let raw = raw.unwrap_or(&empty);
    let vni = raw.vni.as_ref().map_or(1, |v| v.value);
    let mut mtu = Mtu::Auto;
    if let Some(written) = &raw.mtu
        && let Some(bytes) = written.value.as_u64()
    {
        let most = if tunnel_v4 { 65485 } else { 65465 };
        if bytes < 1280 && pods.iter().any(|p| !p.is_v4()) {
            let message = format!("an MTU of {bytes} is too small for IPv6 pods");
            faults.push(
                Fault::new("mtu", written.span, message).help("IPv6 needs 1280 (RFC 8200); `auto` is best"),
            );
        } else if bytes > most {
            let message = format!("an MTU of {bytes} leaves no room for the tunnel's own bytes over IPv6");
            faults.push(
                Fault::new("mtu", written.span, message).help(format!("{most} at most; `auto` is best")),
            );
        }
        mtu = Mtu::Bytes(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
    let mut device: String = format!("homelab.{vni}").chars().take(15).collect();
    if let Some(written) = raw.device.as_ref().and_then(|d| take(faults, d, values::interface)) {
        let holder = nodes.iter().find(|n| n.interface.as_ref().is_some_and(|i| i.value == written.value));
        let clash = match (written.value.as_str(), holder) {
            (name, _) if name == ours::BRIDGE => Some("the name of the pods' bridge".to_owned()),
            ("lo", _) => Some("the loopback interface".to_owned()),
            (_, Some(node)) => Some(format!("the LAN interface of {}", node.title())),
            (name, None) if hardware(name) => Some("how Linux names network cards".to_owned()),
            _ => None,
        };
        if let Some(clash) = clash {
            let message = format!("`{}` is {clash}", written.value);
            faults.push(
                Fault::new("device", written.span, message)
                    .help(format!("leave it out (`{device}` is the default), or choose another name")),
            );
        }
        device = written.value;
    }
    Vxlan {
        vni,
        port: raw.port.as_ref().map_or(8472, |p| p.value),
        mtu,
        device,
        checksum_offload: raw.checksum_offload.as_ref().and_then(|c| c.value.as_bool()),
    }
}

/// eth0, wlan1, enp3s0, eno1, ens18, wlp2s0: the kernel's and systemd's names for cards.
fn hardware(name: &str) -> bool {
    ["eth", "wlan", "enp", "eno", "ens", "wlp", "enx"]
        .iter()
        .any(|p| name.strip_prefix(p).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
}
