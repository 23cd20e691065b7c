//! `discovery.k8s.io/v1 EndpointSlice`, checked as Kubernetes' ValidateEndpointSlice does, and the older `v1 Endpoints`.

use std::collections::HashMap;
use std::net::IpAddr;

use homelab_model::service::{Endpoint, Numbers, Protocol};
use homelab_model::{EndpointGroup as Group, GroupPort as SlicePort};

use crate::problem::Span;
use crate::yaml::Node;

use super::reader::{At, Reader, absent, lacks, place};
use super::service::{PROTOCOLS, twice};
use super::{ManifestDefaults, values};

/// Kubernetes' limits of a slice.
const MAX_PORTS: usize = 20_000;
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_HINTS: usize = 8;

/// An EndpointSlice.
pub(super) fn slice(object: &Node, defaults: &ManifestDefaults, r: &mut Reader) -> Group {
    let kind = match r.word(object, "addressType") {
        Some(text) => {
            let words = [("IPv4", Some(true)), ("IPv6", Some(false)), ("FQDN", None)];
            let kind = r.choice("addressType", text, &words);
            if let Some(At { value: None, span }) = kind {
                r.refuse("address-type", span, "a proxy needs addresses, not host names (FQDN)").help =
                    "write a slice with `addressType: IPv4` or `IPv6`".into();
                return Group { ports: Vec::new(), endpoints: Vec::new() };
            }
            kind.and_then(|k| k.value)
        }
        None => {
            if lacks(object, "addressType") {
                let span = place(object, "addressType");
                r.refuse("missing-key", span, "it has no `addressType`").help =
                    "write `IPv4` or `IPv6`".into();
            }
            None
        }
    };
    let mut endpoints = Vec::new();
    let items = r.maps(object, "endpoints");
    if too_many(object, "endpoints", items.len(), MAX_ENDPOINTS, r) {
        return Group { ports: Vec::new(), endpoints };
    }
    for item in items {
        endpoints.extend(endpoint(item, kind, defaults, r));
    }
    Group { ports: ports(object, r), endpoints }
}

fn too_many(parent: &Node, key: &str, count: usize, most: usize, r: &mut Reader) -> bool {
    if count > most {
        r.refuse(
            "too-many",
            place(parent, key),
            format!("`{key}` holds {count}, and at most {most} are allowed"),
        );
    }
    count > most
}

fn endpoint(item: &Node, v4: Option<bool>, defaults: &ManifestDefaults, r: &mut Reader) -> Option<Endpoint> {
    let before = r.faults.len();
    let addresses = r.texts(item, "addresses", values::address);
    if addresses.is_empty() && r.faults.len() == before {
        r.refuse("missing-key", place(item, "addresses"), "an endpoint has no `addresses`");
    }
    too_many(item, "addresses", addresses.len(), MAX_ADDRESSES, r);
    for address in &addresses {
        if v4.is_some_and(|v4| v4 != address.value.is_ipv4()) {
            let (is, wants) = if address.value.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            let why = format!("{} is {is}, and `addressType` is {wants}", address.value);
            r.refuse("families", address.span, why).help = "each family needs a slice of its own".into();
        }
    }
    let conditions = r.map(item, "conditions");
    let mut condition = |key| conditions.and_then(|c| r.flag(c, key)).map(|f| f.value);
    let ready = condition("ready").unwrap_or(true);
    let serving = condition("serving").unwrap_or(ready);
    let terminating = condition("terminating").unwrap_or(false);
    let node = r.text(item, "nodeName").and_then(|text| r.parse(text, values::subdomain)).map(|n| n.value);
    let zone = r.word(item, "zone").and_then(|text| r.parse(text, values::label_value)).map(|z| z.value);
    if let Some(text) = r.text(item, "hostname") {
        r.parse(text, values::label);
    }
    let hints = r.map(item, "hints");
    let for_zones = hints.map(|h| hint(h, "forZones", values::label_value, r)).unwrap_or_default();
    let for_nodes = hints.map(|h| hint(h, "forNodes", values::subdomain, r)).unwrap_or_default();
    let zone = zone.or_else(|| defaults.zones.get(node.as_ref()?).cloned());
    // The addresses of one endpoint are one another's equals; kube-proxy takes the first.
    let address = addresses.first()?.value;
    let ports = Numbers::default();
    Some(Endpoint { address, node, zone, ready, serving, terminating, for_zones, for_nodes, ports })
}

fn hint(hints: &Node, key: &str, name: fn(&str) -> values::Parsed<String>, r: &mut Reader) -> Vec<String> {
    let items = r.maps(hints, key);
    if too_many(hints, key, items.len(), MAX_HINTS, r) {
        return Vec::new();
    }
    let mut seen = HashMap::new();
    let mut names = Vec::new();
    for item in items {
        let Some(text) = r.word(item, "name") else {
            if lacks(item, "name") {
                r.refuse("missing-key", place(item, "name"), format!("one of `{key}` has no `name`"));
            }
            continue;
        };
        let Some(name) = r.parse(text, name) else { continue };
        twice(&mut seen, name.value.clone(), name.span, r, "duplicate-name", || {
            format!("`{}` stands twice in `{key}`", name.value)
        });
        names.push(name.value);
    }
    names
}

fn ports(object: &Node, r: &mut Reader) -> Vec<SlicePort> {
    let items = r.maps(object, "ports");
    if too_many(object, "ports", items.len(), MAX_PORTS, r) {
        return Vec::new();
    }
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut ports = Vec::new();
    for item in items {
        let text = r.word(item, "name");
        let name = text.and_then(|n| r.parse(n, values::label));
        let span = name.as_ref().map_or(place(item, "port"), |n| n.span);
        let name = name.map(|n| n.value).unwrap_or_default();
        if text.is_none() || !name.is_empty() {
            twice(&mut names, name.clone(), span, r, "duplicate-name", || match name.as_str() {
                "" => "two ports have no name".into(),
                name => format!("two ports are named `{name}`"),
            });
        }
        if absent(item, "port") {
            let why = "a port has no number, which means every port; a proxy cannot serve that";
            r.refuse("missing-key", place(item, "port"), why).help = "write its `port`".into();
        }
        ports.extend(port(item, name, r));
    }
    ports
}

fn port(item: &Node, name: String, r: &mut Reader) -> Option<SlicePort> {
    let protocol = match r.word(item, "protocol") {
        Some(text) => r.choice("protocol", text, &PROTOCOLS).map(|p| p.value),
        None => Some(Protocol::Tcp),
    };
    let number = r.port(item, "port")?.value;
    Some(SlicePort { name, protocol: protocol?, number })
}

/// An Endpoints object, as Kubernetes' mirroring controller makes slices of it.
pub(super) fn endpoints(object: &Node, defaults: &ManifestDefaults, r: &mut Reader) -> Vec<Group> {
    r.maps(object, "subsets").into_iter().map(|subset| group(subset, defaults, r)).collect()
}

fn group(subset: &Node, defaults: &ManifestDefaults, r: &mut Reader) -> Group {
    let before = r.faults.len();
    let mut endpoints = Vec::new();
    for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
        for item in r.maps(subset, key) {
            endpoints.extend(address(item, ready, defaults, r));
        }
    }
    if endpoints.is_empty() && r.faults.len() == before {
        let why = "a subset has neither `addresses` nor `notReadyAddresses`";
        r.refuse("missing-key", place(subset, "addresses"), why);
    }
    let items = r.maps(subset, "ports");
    let mut ports = Vec::new();
    for item in &items {
        let text = r.word(item, "name");
        if text.is_none() && items.len() > 1 && lacks(item, "name") {
            r.refuse("port-name", place(item, "name"), "a port needs a `name` where there are several");
        }
        let name = text.and_then(|n| r.parse(n, values::label)).map(|n| n.value).unwrap_or_default();
        if absent(item, "port") {
            r.refuse("missing-key", place(item, "port"), "a port has no `port`");
        }
        ports.extend(port(item, name, r));
    }
    Group { ports, endpoints }
}

fn address(item: &Node, ready: bool, defaults: &ManifestDefaults, r: &mut Reader) -> Option<Endpoint> {
    let node = r.text(item, "nodeName").and_then(|text| r.parse(text, values::subdomain)).map(|n| n.value);
    if let Some(text) = r.word(item, "hostname") {
        r.parse(text, values::label);
    }
    let Some(text) = r.word(item, "ip") else {
        if lacks(item, "ip") {
            r.refuse("missing-key", place(item, "ip"), "an address has no `ip`");
        }
        return None;
    };
    let address: IpAddr = r.parse(text, values::address)?.value;
    let zone = node.as_ref().and_then(|n| defaults.zones.get(n)).cloned();
    Some(Endpoint {
        address,
        node,
        zone,
        ready,
        serving: ready,
        terminating: false,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        ports: Numbers::default(),
    })
}
