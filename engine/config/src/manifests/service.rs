//! `v1 Service`, checked as Kubernetes' ValidateService and its allocators do.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

use homelab_model::service::{Affinity, Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use homelab_model::{Declared, Family, Labels, Request};
use ipnet::IpNet;

use crate::balancer::{ADDRESSES, CLASS, POOL, SHARING, annotation};
use crate::problem::Span;
use crate::yaml::{Node, Value};

use super::families::{self, FamilyPolicy};
use super::reader::{At, Reader, absent, lacks, place};
use super::{ManifestDefaults, Meta, values};

/// Sources of a load balancer's addresses, before there was a field for them.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Longest session affinity, seconds.
const MAX_AFFINITY: u32 = 86400;
/// Session affinity where none is written, seconds.
const DEFAULT_AFFINITY: u32 = 10800;

pub(super) const PROTOCOLS: [(&str, Protocol); 3] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
const POLICIES: [(&str, Policy); 2] = [("Cluster", Policy::Cluster), ("Local", Policy::Local)];

/// A service of a file.
pub(super) struct Read {
    pub(super) declared: Declared,
    /// Where its name is.
    pub(super) name: Span,
    /// Where its ports are.
    pub(super) ports: Vec<Span>,
    /// Its class, which is another controller's.
    pub(super) class: Option<At<String>>,
    /// Its cluster addresses, which no other service can have.
    pub(super) cluster_ips: Vec<At<IpAddr>>,
    /// Its node ports, which no other service can have.
    pub(super) node_ports: Vec<(At<u16>, Protocol)>,
}

/// What becomes of a service.
pub(super) enum Outcome {
    /// The proxy serves it, unless the reader has faults.
    Read(Box<Read>),
    /// It is none of the proxy's.
    Skipped { code: &'static str, span: Span, why: &'static str },
    /// The reader says why.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Of(Type),
    ExternalName,
}

pub(super) fn service(
    object: &Node,
    meta: &Meta<'_>,
    defaults: &ManifestDefaults,
    r: &mut Reader,
) -> Outcome {
    let Some(spec) = r.map(object, "spec") else {
        if absent(object, "spec") {
            r.refuse("missing-key", place(object, "spec"), "it has no `spec`");
        }
        return Outcome::Refused;
    };
    let kinds = [
        ("ClusterIP", Kind::Of(Type::ClusterIp)),
        ("NodePort", Kind::Of(Type::NodePort)),
        ("LoadBalancer", Kind::Of(Type::LoadBalancer)),
        ("ExternalName", Kind::ExternalName),
    ];
    // None: the type is wrong itself, and says nothing about other fields.
    let kind = match r.word(spec, "type") {
        Some(text) => r.choice("type", text, &kinds),
        None => Some(At { value: Kind::Of(Type::ClusterIp), span: place(spec, "type") }),
    };
    if let Some(At { value: Kind::ExternalName, span }) = kind {
        return Outcome::Skipped {
            code: "external-name",
            span,
            why: "is an ExternalName: it has no address that a proxy could serve",
        };
    }
    let of_type = kind.and_then(|k| match k.value {
        Kind::Of(of) => Some(of),
        Kind::ExternalName => None,
    });
    if let Some(span) = families::headless(spec) {
        if matches!(of_type, Some(Type::NodePort | Type::LoadBalancer)) {
            r.refuse("headless", span, "only a ClusterIP service can be headless (`clusterIP: None`)").help =
                "take `clusterIP` away, or write `type: ClusterIP`".into();
            return Outcome::Refused;
        }
        return Outcome::Skipped {
            code: "headless",
            span,
            why: "is headless: it has no address that a proxy could serve",
        };
    }
    let mut node_ports = Vec::new();
    let (ports, port_spans) = ports(spec, of_type, &mut node_ports, r);
    let cluster_ips = families::cluster_ips(spec, &defaults.service_cidrs, r);
    let families = families(spec, &cluster_ips, &defaults.service_cidrs, r);
    let external_ips = unique(r.texts(spec, "externalIPs", values::address));
    let (session_affinity, session_affinity_timeout_seconds) = affinity(spec, r);
    let load_balancer_source_ranges = source_ranges(spec, meta, of_type, r);
    let (load_balancer, given) = match of_type {
        Some(Type::LoadBalancer) => addresses(object, spec, meta, r),
        _ => (Vec::new(), Vec::new()),
    };
    let allocate = only_load_balancer(spec, "allocateLoadBalancerNodePorts", of_type, r);
    let node_ports_wanted = match of_type {
        Some(Type::LoadBalancer) => {
            allocate.then(|| r.flag(spec, "allocateLoadBalancerNodePorts")).flatten().is_none_or(|f| f.value)
        }
        Some(Type::NodePort) => true,
        _ => false,
    };
    let class = only_load_balancer(spec, "loadBalancerClass", of_type, r)
        .then(|| r.text(spec, "loadBalancerClass"))
        .flatten()
        .and_then(|text| r.parse(text, values::qualified))
        .filter(|class| class.value != CLASS);
    let external_traffic_policy = external_policy(spec, of_type, !external_ips.is_empty(), r);
    let internal_traffic_policy = r
        .text(spec, "internalTrafficPolicy")
        .and_then(|text| r.choice("internalTrafficPolicy", text, &POLICIES))
        .map_or(Policy::Cluster, |p| p.value);
    let health_check = health_check(spec, of_type, external_traffic_policy, r);
    node_ports.extend(health_check.map(|port| (port, Protocol::Tcp)));
    let words = [("PreferClose", ()), ("PreferSameZone", ()), ("PreferSameNode", ())];
    let traffic_distribution = r.text(spec, "trafficDistribution");
    if let Some(text) = traffic_distribution {
        r.choice("trafficDistribution", text, &words);
    }
    // Kubernetes' controllers have applied it to the conditions of the endpoints already.
    r.flag(spec, "publishNotReadyAddresses");
    let mut request = Request {
        selector: texts(spec, "selector", r),
        require_dual_stack: families.len() == 2
            && r.word(spec, "ipFamilyPolicy").is_some_and(|p| p.value == "RequireDualStack"),
        ..Request::default()
    };
    if of_type == Some(Type::LoadBalancer) && class.is_none() {
        request.pool = note(meta, POOL, r).map(|text| text.value.to_owned());
        request.sharing_key = note(meta, SHARING, r).map(|text| text.value.to_owned());
        request.given = given;
    }
    let labels = labels(meta, r);
    let mut service = Service {
        namespace: meta.namespace.clone(),
        name: meta.name.value.clone(),
        labels,
        r#type: of_type.unwrap_or_default(),
        cluster_ips: cluster_ips.iter().map(|ip| ip.value).collect(),
        external_ips,
        load_balancer,
        load_balancer_source_ranges,
        external_traffic_policy,
        internal_traffic_policy,
        session_affinity,
        session_affinity_timeout_seconds,
        traffic_distribution: traffic_distribution.map(|t| t.value.to_owned()),
        health_check_node_port: health_check.map(|p| p.value),
        ports,
        endpoints: Vec::new(),
    };
    if class.is_some() {
        crate::balancer::without(&mut service, node_ports_wanted);
    }
    Outcome::Read(Box::new(Read {
        declared: Declared {
            service,
            families,
            node_ports: node_ports_wanted,
            containers: Vec::new(),
            request,
        },
        name: meta.name.span,
        ports: port_spans,
        class,
        cluster_ips,
        node_ports,
    }))
}

fn ports(
    spec: &Node,
    of_type: Option<Type>,
    node_ports: &mut Vec<(At<u16>, Protocol)>,
    r: &mut Reader,
) -> (Vec<Port>, Vec<Span>) {
    let before = r.faults.len();
    let items = r.maps(spec, "ports");
    if items.is_empty() && r.faults.len() == before {
        r.refuse("missing-key", place(spec, "ports"), "it has no `ports`").help =
            "a service needs at least one".into();
    }
    let (mut names, mut seen, mut seen_nodes) = (HashMap::new(), HashMap::new(), HashMap::new());
    let (mut ports, mut spans) = (Vec::new(), Vec::new());
    for item in &items {
        let name = r.word(item, "name");
        if name.is_none() && items.len() > 1 && lacks(item, "name") {
            r.refuse("port-name", place(item, "name"), "a port needs a `name` where a service has several");
        }
        let name = name.and_then(|n| r.parse(n, values::label));
        if let Some(name) = &name {
            twice(&mut names, name.value.clone(), name.span, r, "duplicate-name", || {
                format!("two ports are named `{}`", name.value)
            });
        }
        let protocol = match r.word(item, "protocol") {
            Some(text) => r.choice("protocol", text, &PROTOCOLS).map(|p| p.value),
            None => Some(Protocol::Tcp),
        };
        r.target_port(item, "targetPort");
        let node_port = r.node_port(item, "nodePort");
        if let (Some(At { span, .. }), Some(Type::ClusterIp)) = (node_port, of_type) {
            r.refuse("service-type", span, "a ClusterIP service has no `nodePort`").help =
                "write `type: NodePort` or `type: LoadBalancer`, or take it away".into();
        }
        let missing = absent(item, "port");
        if missing {
            r.refuse("missing-key", place(item, "port"), "a port has no `port`");
        }
        let (Some(port), Some(protocol)) = (r.port(item, "port"), protocol) else { continue };
        twice(&mut seen, (protocol, port.value), port.span, r, "duplicate-port", || {
            format!("{} port {} stands twice", protocol.as_str().to_uppercase(), port.value)
        });
        if let Some(at) = node_port {
            twice(&mut seen_nodes, (protocol, at.value), at.span, r, "duplicate-port", || {
                format!("{} node port {} stands twice", protocol.as_str().to_uppercase(), at.value)
            });
            node_ports.push((at, protocol));
        }
        ports.push(Port {
            name: name.map(|n| n.value).unwrap_or_default(),
            protocol,
            port: port.value,
            node_port: node_port.map(|p| p.value),
        });
        spans.push(port.span);
    }
    (ports, spans)
}

/// Refuses what stands a second time.
pub(super) fn twice<T: Eq + Hash>(
    seen: &mut HashMap<T, Span>,
    value: T,
    span: Span,
    r: &mut Reader,
    code: &'static str,
    why: impl FnOnce() -> String,
) {
    match seen.entry(value) {
        Entry::Occupied(first) => {
            let fault = r.refuse(code, span, why());
            fault.label = "again here".into();
            fault.more.push((*first.get(), "first here".into()));
        }
        Entry::Vacant(vacant) => {
            vacant.insert(span);
        }
    }
}

fn families(spec: &Node, ips: &[At<IpAddr>], cidrs: &[IpNet], r: &mut Reader) -> Vec<Family> {
    let words = [("IPv4", Family::IPv4), ("IPv6", Family::IPv6)];
    let before = r.faults.len();
    let mut seen = HashMap::new();
    let mut listed = Vec::new();
    for text in r.texts(spec, "ipFamilies", |t| Ok(t.to_owned())) {
        let text = At { value: text.value.as_str(), span: text.span };
        let Some(family) = r.choice("ipFamilies", text, &words) else { continue };
        twice(&mut seen, family.value, family.span, r, "families", || format!("{} stands twice", text.value));
        listed.push(family);
    }
    let words = [
        ("SingleStack", FamilyPolicy::Single),
        ("PreferDualStack", FamilyPolicy::Prefer),
        ("RequireDualStack", FamilyPolicy::Require),
    ];
    let policy = r.text(spec, "ipFamilyPolicy").and_then(|text| r.choice("ipFamilyPolicy", text, &words));
    if r.faults.len() > before {
        return Vec::new();
    }
    families::resolve(&listed, policy, ips, cidrs, r)
}

fn affinity(spec: &Node, r: &mut Reader) -> (Affinity, u32) {
    let words = [("None", Affinity::None), ("ClientIP", Affinity::ClientIp)];
    let affinity = match r.word(spec, "sessionAffinity") {
        Some(text) => r.choice("sessionAffinity", text, &words).map(|a| a.value),
        None => Some(Affinity::None),
    };
    let config = r.map(spec, "sessionAffinityConfig");
    if let (Some(config), Some(Affinity::None)) = (config, affinity) {
        r.refuse(
            "session-affinity",
            config.span,
            "`sessionAffinityConfig` needs `sessionAffinity: ClientIP`",
        );
    }
    let timeout = config
        .and_then(|config| r.map(config, "clientIP"))
        .and_then(|client| r.number(client, "timeoutSeconds", 1, MAX_AFFINITY));
    (affinity.unwrap_or_default(), timeout.map_or(DEFAULT_AFFINITY, |t| t.value))
}

fn source_ranges(spec: &Node, meta: &Meta<'_>, of_type: Option<Type>, r: &mut Reader) -> Vec<IpNet> {
    let listed = r.texts(spec, "loadBalancerSourceRanges", values::cidr);
    let (ranges, span) = match r.list(spec, "loadBalancerSourceRanges") {
        [] => {
            let Some(text) = r.note(meta.metadata, "annotations", SOURCE_RANGES) else { return Vec::new() };
            let parts = text.value.split(',').filter(|_| !text.value.trim().is_empty());
            let ranges: Vec<_> =
                parts.filter_map(|part| r.parse(At { value: part, span: text.span }, values::cidr)).collect();
            (ranges, text.span)
        }
        [first, ..] => (listed, first.span),
    };
    if of_type.is_some_and(|t| t != Type::LoadBalancer) {
        r.refuse("service-type", span, "source ranges belong to `type: LoadBalancer`").help =
            "take them away, or change the type".into();
    }
    unique(ranges)
}

/// The text of an annotation of MetalLB, unless it is empty.
fn note<'a>(meta: &Meta<'a>, name: &str, r: &mut Reader) -> Option<At<&'a str>> {
    annotation(name, |key| r.note(meta.metadata, "annotations", key)).filter(|text| !text.value.is_empty())
}

/// The addresses that are wanted (`spec.loadBalancerIP`, or MetalLB's annotation), and those that some controller gave.
fn addresses(object: &Node, spec: &Node, meta: &Meta<'_>, r: &mut Reader) -> (Vec<Ingress>, Vec<Ingress>) {
    let single = r.word(spec, "loadBalancerIP").and_then(|text| r.parse(text, values::address));
    let listed = note(meta, ADDRESSES, r)
        .and_then(|text| r.parse(text, |t| crate::balancer::addresses(t, values::address)));
    let mut wanted: Vec<IpAddr> = listed.iter().flat_map(|list| list.value.iter().copied()).collect();
    if let Some(single) = single {
        if let Some(list) = listed.filter(|list| list.value.iter().any(|ip| *ip != single.value)) {
            let why =
                format!("`loadBalancerIP` is {}, but the annotation asks for other addresses", single.value);
            let fault = r.refuse("load-balancer-ip", single.span, why);
            fault.help = "keep one of them".into();
            fault.more.push((list.span, "the annotation".into()));
        }
        wanted = vec![single.value];
    }
    let status = r.map(object, "status").and_then(|status| r.map(status, "loadBalancer"));
    let (mut seen, mut given) = (HashSet::new(), Vec::new());
    for item in status.map(|s| r.maps(s, "ingress")).unwrap_or_default() {
        let ip = r.word(item, "ip");
        let words = [("VIP", IpMode::Vip), ("Proxy", IpMode::Proxy)];
        let mode = r.text(item, "ipMode");
        if let (None, Some(mode)) = (ip, mode) {
            r.refuse("value", mode.span, "`ipMode` needs an `ip` beside it");
        }
        let mode = mode.and_then(|text| r.choice("ipMode", text, &words));
        let Some(ip) = ip.and_then(|text| r.parse(text, values::address)) else { continue };
        if seen.insert(ip.value) {
            given.push(Ingress { ip: ip.value, ip_mode: mode.map_or(IpMode::Vip, |m| m.value) });
        }
    }
    let mode = |ip| given.iter().find(|i| i.ip == ip).map_or(IpMode::Vip, |i| i.ip_mode);
    let wanted: Vec<Ingress> = wanted.into_iter().map(|ip| Ingress { ip, ip_mode: mode(ip) }).collect();
    (wanted, given)
}

/// Whether a field may be read: it is refused for every other type.
fn only_load_balancer(spec: &Node, key: &str, of_type: Option<Type>, r: &mut Reader) -> bool {
    let wrong = of_type.is_some_and(|t| t != Type::LoadBalancer);
    if let (true, Some(node)) = (wrong, r.field(spec, key)) {
        r.refuse("service-type", node.span, format!("`{key}` belongs to `type: LoadBalancer`")).help =
            "take it away, or change the type".into();
    }
    !wrong
}

fn external_policy(spec: &Node, of_type: Option<Type>, external: bool, r: &mut Reader) -> Policy {
    let Some(text) = r.word(spec, "externalTrafficPolicy") else { return Policy::Cluster };
    if of_type == Some(Type::ClusterIp) && !external {
        let why = "`externalTrafficPolicy` is only for services that are reached from outside";
        r.refuse("service-type", text.span, why).help =
            "take it away, or write `type: NodePort` or `type: LoadBalancer`".into();
    }
    r.choice("externalTrafficPolicy", text, &POLICIES).map_or(Policy::Cluster, |p| p.value)
}

fn health_check(spec: &Node, of_type: Option<Type>, policy: Policy, r: &mut Reader) -> Option<At<u16>> {
    let port = r.node_port(spec, "healthCheckNodePort")?;
    if of_type.is_some_and(|t| t != Type::LoadBalancer) || policy != Policy::Local {
        let why = "`healthCheckNodePort` needs `type: LoadBalancer` and `externalTrafficPolicy: Local`";
        r.refuse("service-type", port.span, why).help = "take it away".into();
    }
    Some(port)
}

/// A block of keys and texts; what is empty is an empty text, as in Kubernetes.
fn texts(parent: &Node, key: &str, r: &mut Reader) -> Labels {
    let Some(Node { value: Value::Map(entries), .. }) = r.map(parent, key) else { return Labels::new() };
    let mut texts = Labels::new();
    for entry in entries {
        let text = match entry.value.value {
            Value::Null => Some(String::new()),
            _ => r.is_text(&entry.key, &entry.value).map(|text| text.value.to_owned()),
        };
        texts.extend(text.map(|text| (entry.key.clone(), text)));
    }
    texts
}

/// Its labels, by Kubernetes' syntax.
fn labels(meta: &Meta<'_>, r: &mut Reader) -> Labels {
    let labels = texts(meta.metadata, "labels", r);
    for (key, value) in &labels {
        let entry = meta.metadata.get("labels").and_then(|l| l.value.get(key));
        let Some(entry) = entry else { continue };
        r.parse(At { value: key.as_str(), span: entry.key_span }, values::qualified);
        r.parse(At { value: value.as_str(), span: entry.value.span }, values::label_value);
    }
    labels
}

/// The values, each once, in order.
fn unique<T: Copy + Eq + Hash>(values: Vec<At<T>>) -> Vec<T> {
    let mut seen = HashSet::new();
    values.into_iter().map(|v| v.value).filter(|v| seen.insert(*v)).collect()
}
