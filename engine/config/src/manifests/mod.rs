//! Kubernetes manifests as a source of services: Service, EndpointSlice and Endpoints objects of YAML or JSON files.
//!
//! An object that Kubernetes would refuse is left out whole and told; it never stops the others. What a field means,
//! and what it is where it is not written, is as in Kubernetes and in kube-proxy.

mod families;
mod reader;
mod service;
mod slice;
mod values;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use homelab_model::service::Protocol;
use homelab_model::{Declared, EndpointGroup as Group, join_endpoints};
use ipnet::IpNet;

use crate::Source;
use crate::documents::{self, Document};
use crate::problem::{self, Fault, Problem, Span};
use crate::yaml::{Node, Value};

use reader::{At, Reader, absent, lacks, place};
use service::Outcome;

/// The label that makes a slice a service's.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Another proxy serves what has this label.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Endpoints of headless services have this label.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints with this label are not made slices of.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints with this annotation were locks of elections.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// What manifests leave to the cluster.
#[derive(Debug, Clone, Default)]
pub struct ManifestDefaults {
    /// Ranges of service addresses, the default family's first. Empty: none are known, and every address is taken.
    pub service_cidrs: Vec<IpNet>,
    /// Zones by node name, for endpoints that do not say theirs.
    pub zones: BTreeMap<String, String>,
}

/// What files of manifests hold.
#[derive(Debug, Clone)]
pub struct Manifests {
    /// Services in the order of the files, with their endpoints in the order of their addresses.
    pub services: Vec<Declared>,
    /// What was left out and why, and documents that are no YAML (the only errors).
    pub problems: Vec<Problem>,
}

/// Reads files of Kubernetes manifests.
pub fn manifests(sources: &[Source], defaults: &ManifestDefaults) -> Manifests {
    let mut reading = Reading {
        defaults,
        faults: Vec::new(),
        services: Vec::new(),
        known: HashMap::new(),
        cluster_ips: HashMap::new(),
        node_ports: HashMap::new(),
        slices: Vec::new(),
        endpoints: Vec::new(),
        refused: HashSet::new(),
    };
    for (index, source) in sources.iter().enumerate() {
        for document in documents::documents(index, &source.text) {
            reading.document(document);
        }
    }
    let (services, faults) = reading.finish();
    Manifests { services, problems: problem::finish(sources, faults) }
}

/// What all objects that are read have.
struct Meta<'a> {
    metadata: &'a Node,
    namespace: String,
    name: At<String>,
}

impl Meta<'_> {
    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name.value)
    }
}

/// Endpoints that name a service.
struct Named {
    title: String,
    /// Namespace and name of the service.
    service: (String, String),
    /// Where it is named.
    span: Span,
    groups: Vec<Group>,
}

struct Reading<'a> {
    defaults: &'a ManifestDefaults,
    faults: Vec<Fault>,
    services: Vec<service::Read>,
    /// All services of the files by namespace and name, also those that are left out.
    known: HashMap<(String, String), Span>,
    cluster_ips: HashMap<IpAddr, Span>,
    node_ports: HashMap<(Protocol, u16), Span>,
    slices: Vec<Named>,
    endpoints: Vec<Named>,
    /// Services whose endpoints are left out: that they have none needs no further word.
    refused: HashSet<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    EndpointSlice,
    Endpoints,
}

/// A kind with the `apiVersion` it has here.
type Typed<'a> = (&'a str, &'a str);

impl Reading<'_> {
    fn document(&mut self, document: Document) {
        let Document { root, mut faults, start, end } = document;
        match root {
            Some(root) if root.value != Value::Bad => {
                self.object(&root, (start, end), None, &mut faults);
            }
            _ => self.faults.append(&mut faults),
        }
    }

    /// One object, or each of a list; `extent` is its text, `faults` are those of the whole document.
    fn object(
        &mut self,
        node: &Node,
        extent: (usize, usize),
        list: Option<Typed<'_>>,
        faults: &mut Vec<Fault>,
    ) {
        if matches!(node.value, Value::Null | Value::Bad) {
            return;
        }
        let text = |key: &str| match node.get(key).map(|e| &e.value.value) {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        // Items of a typed list need not say what they are.
        let kind = text("kind").or(list.map(|(kind, _)| kind));
        let version = text("apiVersion").or(list.map(|(_, version)| version));
        let (Some(kind), Some(version)) = (kind, version) else {
            let missing = if kind.is_none() { "kind" } else { "apiVersion" };
            let message = format!("this is no Kubernetes object: it has no `{missing}`");
            let fault = Fault::new("missing-key", place(node, missing), message).warning();
            self.faults.push(fault.help("for example `apiVersion: v1` and `kind: Service`"));
            return;
        };
        let read = match (kind, version) {
            ("List", "v1") => return self.items(node, extent, None, faults),
            ("ServiceList", "v1") => return self.items(node, extent, Some(("Service", version)), faults),
            ("EndpointsList", "v1") => return self.items(node, extent, Some(("Endpoints", version)), faults),
            ("EndpointSliceList", "discovery.k8s.io/v1") => {
                return self.items(node, extent, Some(("EndpointSlice", version)), faults);
            }
            ("Service", "v1") => Kind::Service,
            ("Endpoints", "v1") => Kind::Endpoints,
            ("EndpointSlice", "discovery.k8s.io/v1") => Kind::EndpointSlice,
            ("EndpointSlice", old) if old.starts_with("discovery.k8s.io/") => {
                let message = format!("an EndpointSlice of {} is left out", values::quote(old));
                let span = node.get("apiVersion").map_or(node.span, |e| e.value.span);
                self.faults.push(
                    Fault::new("api-version", span, message).warning().help("write `discovery.k8s.io/v1`"),
                );
                return;
            }
            _ => return,
        };
        let mut own = Vec::new();
        faults.retain(|fault| {
            let inside = (extent.0..extent.1).contains(&fault.span.start);
            own.extend(inside.then(|| fault.clone()));
            !inside
        });
        self.read(read, node, own);
    }

    fn items(
        &mut self,
        node: &Node,
        extent: (usize, usize),
        list: Option<Typed<'_>>,
        faults: &mut Vec<Fault>,
    ) {
        let mut r = Reader::new("the list", Vec::new());
        let items = r.list(node, "items");
        for (index, item) in items.iter().enumerate() {
            let next = items.get(index + 1).map(|n| n.span.start).filter(|n| *n > item.span.start);
            self.object(item, (item.span.start, next.unwrap_or(extent.1)), list, faults);
        }
        self.faults.append(&mut r.finish());
    }

    fn read(&mut self, kind: Kind, node: &Node, faults: Vec<Fault>) {
        let word = match kind {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Endpoints => "Endpoints",
        };
        let mut r = Reader::new(title(word, node), faults);
        if let Some(meta) = meta(kind, node, &mut r) {
            match kind {
                Kind::Service => return self.service(node, &meta, r),
                Kind::EndpointSlice => return self.slice(node, &meta, r),
                Kind::Endpoints => return self.endpoints(node, &meta, r),
            }
        }
        self.faults.append(&mut r.finish());
    }

    fn service(&mut self, node: &Node, meta: &Meta<'_>, mut r: Reader) {
        let key = (meta.namespace.clone(), meta.name.value.clone());
        if r.note(meta.metadata, "labels", SERVICE_PROXY_NAME).is_some() {
            self.known.entry(key).or_insert(meta.name.span);
            return;
        }
        service::twice(&mut self.known, key, meta.name.span, &mut r, "duplicate-name", || {
            format!("two Services are named {}", meta.full_name())
        });
        let outcome = service::service(node, meta, self.defaults, &mut r);
        if let Outcome::Skipped { code, span, why } = outcome {
            if r.is_good() {
                r.faults.push(Fault::new(code, span, format!("{} {why}", r.title)).warning());
            }
        } else if let Outcome::Read(read) = outcome
            && r.is_good()
        {
            self.conflicts(&read, &mut r);
            if r.is_good() {
                self.keep(*read, &r.title);
            }
        }
        self.faults.append(&mut r.finish());
    }

    /// Refuses what another service has already.
    fn conflicts(&self, read: &service::Read, r: &mut Reader) {
        for ip in &read.cluster_ips {
            if let Some(first) = self.cluster_ips.get(&ip.value) {
                let fault =
                    r.refuse("duplicate-address", ip.span, format!("another Service has {}", ip.value));
                fault.more.push((*first, "first here".into()));
            }
        }
        for (port, protocol) in &read.node_ports {
            if let Some(first) = self.node_ports.get(&(*protocol, port.value)) {
                let protocol = protocol.as_str().to_uppercase();
                let why = format!("another Service has {protocol} node port {}", port.value);
                let fault = r.refuse("duplicate-port", port.span, why);
                fault.more.push((*first, "first here".into()));
            }
        }
    }

    fn keep(&mut self, read: service::Read, title: &str) {
        if let Some(class) = &read.class {
            let message = format!(
                "{title} gets no load-balancer address: its class is {}",
                values::quote(&class.value)
            );
            let fault = Fault::new("load-balancer-class", class.span, message).warning();
            self.faults
                .push(fault.help(
                    "take `loadBalancerClass` away, or write `homelab`, to get one of homelab's pools",
                ));
        }
        self.cluster_ips.extend(read.cluster_ips.iter().map(|ip| (ip.value, ip.span)));
        self.node_ports.extend(read.node_ports.iter().map(|(port, of)| ((*of, port.value), port.span)));
        self.services.push(read);
    }

    fn slice(&mut self, node: &Node, meta: &Meta<'_>, mut r: Reader) {
        for label in [SERVICE_PROXY_NAME, HEADLESS] {
            if r.note(meta.metadata, "labels", label).is_some() {
                return;
            }
        }
        let label = r.note(meta.metadata, "labels", SERVICE_NAME);
        if label.is_none_or(|l| l.value.is_empty()) && r.is_good() {
            let why = format!("it names no Service by the label `{SERVICE_NAME}`");
            let span = label.map_or(meta.name.span, |l| l.span);
            r.refuse("no-service", span, why).help = format!("add `{SERVICE_NAME}: NAME` to its labels");
        }
        let group = slice::slice(node, self.defaults, &mut r);
        let service = |label: &At<&str>| (meta.namespace.clone(), label.value.to_owned());
        match label {
            Some(label) if r.is_good() => {
                let title = r.title.clone();
                self.slices.push(Named {
                    title,
                    service: service(&label),
                    span: label.span,
                    groups: vec![group],
                });
            }
            label => self.refused.extend(label.as_ref().map(service)),
        }
        self.faults.append(&mut r.finish());
    }

    fn endpoints(&mut self, node: &Node, meta: &Meta<'_>, mut r: Reader) {
        let other = r.note(meta.metadata, "labels", SERVICE_PROXY_NAME).is_some()
            || r.note(meta.metadata, "labels", HEADLESS).is_some()
            || r.note(meta.metadata, "labels", SKIP_MIRROR).is_some_and(|l| l.value == "true")
            || r.note(meta.metadata, "annotations", LEADER).is_some();
        if other {
            return;
        }
        let groups = slice::endpoints(node, self.defaults, &mut r);
        let service = (meta.namespace.clone(), meta.name.value.clone());
        if r.is_good() {
            let title = r.title.clone();
            self.endpoints.push(Named { title, service, span: meta.name.span, groups });
        } else {
            self.refused.insert(service);
        }
        self.faults.append(&mut r.finish());
    }

    /// Joins endpoints to services; what has no counterpart is told.
    fn finish(self) -> (Vec<Declared>, Vec<Fault>) {
        let Reading { mut faults, services, known, slices, endpoints, refused, .. } = self;
        let mut groups: HashMap<(String, String), Vec<Group>> = HashMap::new();
        let mut told = Vec::new();
        for named in slices {
            orphan(&named, &known, &mut told);
            groups.entry(named.service).or_default().extend(named.groups);
        }
        let by_slices: HashSet<(String, String)> = groups.keys().cloned().collect();
        for named in endpoints {
            if !by_slices.contains(&named.service) {
                orphan(&named, &known, &mut told);
                groups.entry(named.service).or_default().extend(named.groups);
            }
        }
        faults.append(&mut told);
        let joined = services.into_iter().map(|read| {
            let mut declared = read.declared;
            let title = format!("Service {}", declared.service.full_name());
            let key = (declared.service.namespace.clone(), declared.service.name.clone());
            let Some(groups) = groups.remove(&key) else {
                if !declared.request.selector.is_empty() && !refused.contains(&key) {
                    let message = format!("{title} has a selector, and no EndpointSlice here names it: it has no endpoints");
                    let fault = Fault::new("no-endpoints", read.name, message).warning();
                    faults.push(fault.help(
                        "selectors are for a cluster to follow; add its EndpointSlices (kubectl get endpointslices -o yaml)",
                    ));
                }
                return declared;
            };
            let some = groups.iter().any(|g| !g.endpoints.is_empty());
            declared.service.endpoints = join_endpoints(&declared.service.ports, &groups);
            let served: HashSet<&str> =
                declared.service.endpoints.iter().flat_map(|e| e.ports.names()).collect();
            for (port, span) in declared.service.ports.iter().zip(&read.ports) {
                if some && !served.contains(port.name.as_str()) {
                    let message = format!("port {} of {title} has no endpoints", port.port);
                    let protocol = port.protocol.as_str().to_uppercase();
                    let help = match port.name.as_str() {
                        "" => format!("none of them has a {protocol} port without a name"),
                        name => format!("none of them has a {protocol} port named `{name}`"),
                    };
                    faults.push(Fault::new("no-endpoints", *span, message).warning().help(help));
                }
            }
            declared
        });
        let joined = joined.collect();
        (joined, faults)
    }
}

fn orphan(named: &Named, known: &HashMap<(String, String), Span>, faults: &mut Vec<Fault>) {
    if !known.contains_key(&named.service) {
        let (namespace, name) = &named.service;
        let message =
            format!("{} belongs to Service {namespace}/{name}, which is in none of the files", named.title);
        faults.push(Fault::new("no-service", named.span, message).warning());
    }
}

/// Kind and name for messages, before anything is known to be right.
fn title(kind: &str, node: &Node) -> String {
    let metadata = node.get("metadata").map(|e| &e.value);
    let text = |key: &str| match metadata.and_then(|m| m.get(key)).map(|e| &e.value.value) {
        Some(Value::Text(text)) if !text.is_empty() => Some(values::short(text)),
        _ => None,
    };
    let name = text("name").or_else(|| text("generateName"));
    match (text("namespace"), name) {
        (namespace, Some(name)) => format!("{kind} {}/{name}", namespace.unwrap_or_else(|| "default".into())),
        _ => format!("a {kind} without a name"),
    }
}

fn meta<'a>(kind: Kind, node: &'a Node, r: &mut Reader) -> Option<Meta<'a>> {
    let Some(metadata) = r.map(node, "metadata") else {
        if absent(node, "metadata") {
            r.refuse("missing-key", place(node, "metadata"), "it has no `metadata`");
        }
        return None;
    };
    let namespace = match r.word(metadata, "namespace") {
        Some(text) => r.parse(text, values::label)?.value,
        None => "default".to_owned(),
    };
    let mut text = r.word(metadata, "name");
    // Nobody refers to the name of a slice.
    if text.is_none() && kind == Kind::EndpointSlice {
        text = r
            .word(metadata, "generateName")
            .map(|t| At { value: t.value.trim_end_matches('-'), span: t.span });
    }
    let Some(text) = text else {
        if lacks(metadata, "name") {
            r.refuse("missing-key", place(metadata, "name"), "it has no `metadata.name`");
        }
        return None;
    };
    let name = r.parse(text, if kind == Kind::Service { values::label } else { values::subdomain })?;
    Some(Meta { metadata, namespace, name })
}
