//! Services as the controller sees them: what decides about their addresses, and what is written to them.

use std::net::IpAddr;

use homelab_model::service::{Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use homelab_model::{Declared, Family, Request};
use k8s_openapi::api::core::v1 as core;

/// Keeps a Service until its addresses are withdrawn (k8s.io/cloud-provider, `service/helpers`).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Prefixes of MetalLB's annotations, the newer first.
const PREFIXES: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];

/// A Service of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`. Those of one resource can be compared (KEP-5504).
    pub version: u64,
    /// It is being deleted, and waits for its finalizers.
    pub deleting: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// What it has for a class of load balancers.
    pub class: Class,
    /// `status.loadBalancer.ingress`, as far as it is addresses that packets arrive with.
    pub status: Vec<IpAddr>,
    /// Its status has what we never write: names, addresses of proxies.
    pub foreign_status: bool,
    /// The pool that its addresses are of, as MetalLB notes it (`metallb.io/ip-allocated-from-pool`).
    pub noted_pool: Option<String>,
    /// What it asks for.
    pub declared: Declared,
    /// Why what it asks for cannot be understood; it then keeps what it has.
    pub fault: Option<String>,
}

/// Whose load balancer a Service wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// It is no load balancer.
    None,
    /// Whoever serves those without a class.
    Default,
    /// Who has this `loadBalancerClass`.
    Named(String),
}

impl Watched {
    /// Reads a Service; None: it has no name, uid or version, and so is none of an API.
    pub fn of(service: &core::Service) -> Option<Watched> {
        let meta = &service.metadata;
        let version = meta.resource_version.as_deref()?.parse().ok()?;
        let (name, namespace) = (meta.name.clone()?, meta.namespace.clone()?);
        let spec = service.spec.as_ref();
        let kind = spec.and_then(|s| s.type_.as_deref());
        let class = match (kind, spec.and_then(|s| s.load_balancer_class.clone())) {
            (Some("LoadBalancer"), None) => Class::Default,
            (Some("LoadBalancer"), Some(name)) => Class::Named(name),
            _ => Class::None,
        };
        let ingress = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref())
            .unwrap_or_default();
        let vip = |one: &core::LoadBalancerIngress| {
            let proxy = one.ip_mode.as_deref() == Some("Proxy");
            one.ip.as_deref().filter(|_| !proxy && one.hostname.is_none())?.parse().ok()
        };
        let status: Vec<IpAddr> = ingress.iter().filter_map(vip).collect();
        let (declared, fault) = declared(service, name, namespace, &class);
        Some(Watched {
            uid: meta.uid.clone()?,
            version,
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            class,
            foreign_status: status.len() != ingress.len(),
            status,
            noted_pool: annotation(service, "ip-allocated-from-pool"),
            declared,
            fault,
        })
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        self.declared.service.full_name()
    }

    /// Whether it has our finalizer.
    pub fn is_held(&self) -> bool {
        self.finalizers.iter().any(|one| one == FINALIZER)
    }
}

/// An annotation of MetalLB by its name without prefix, unless it is empty. The newer prefix counts.
fn annotation(service: &core::Service, name: &str) -> Option<String> {
    let notes = service.metadata.annotations.as_ref()?;
    let text = PREFIXES.iter().find_map(|prefix| notes.get(&format!("{prefix}{name}")))?;
    (!text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// What decides about addresses, and why some of it cannot be understood.
fn declared(
    service: &core::Service,
    name: String,
    namespace: String,
    class: &Class,
) -> (Declared, Option<String>) {
    let empty = core::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let addresses = |list: &Option<Vec<String>>| -> Vec<IpAddr> {
        list.iter().flatten().filter_map(|text| text.parse().ok()).collect()
    };
    let family = |text: &String| match text.as_str() {
        "IPv4" => Some(Family::IPv4),
        "IPv6" => Some(Family::IPv6),
        _ => None,
    };
    let families: Vec<Family> = spec.ip_families.iter().flatten().filter_map(family).collect();
    let require_dual_stack =
        families.len() == 2 && spec.ip_family_policy.as_deref() == Some("RequireDualStack");
    let is_balancer = *class != Class::None;
    let (fixed, fault) = if is_balancer { fixed(service, spec) } else { (Vec::new(), None) };
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let request = Request {
        pool: annotation(service, "address-pool").filter(|_| is_balancer),
        sharing_key: annotation(service, "allow-shared-ip").filter(|_| is_balancer),
        selector: spec.selector.clone().unwrap_or_default(),
        require_dual_stack,
        given: Vec::new(),
    };
    let service = Service {
        namespace,
        name,
        labels: service.metadata.labels.clone().unwrap_or_default(),
        r#type: if is_balancer { Type::LoadBalancer } else { Type::ClusterIp },
        cluster_ips: addresses(&spec.cluster_ips),
        external_ips: addresses(&spec.external_ips),
        load_balancer: fixed.into_iter().map(vip).collect(),
        load_balancer_source_ranges: Vec::new(),
        external_traffic_policy: if local { Policy::Local } else { Policy::Cluster },
        internal_traffic_policy: Policy::Cluster,
        session_affinity: Default::default(),
        session_affinity_timeout_seconds: 10800,
        traffic_distribution: None,
        health_check_node_port: None,
        ports: spec.ports.iter().flatten().filter_map(port).collect(),
        endpoints: Vec::new(),
    };
    (Declared { service, families, node_ports: false, containers: Vec::new(), request }, fault)
}

/// The addresses that a Service fixes: `spec.loadBalancerIP`, else MetalLB's annotation (its getDesiredLbIPs).
fn fixed(service: &core::Service, spec: &core::ServiceSpec) -> (Vec<IpAddr>, Option<String>) {
    let single = spec.load_balancer_ip.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let listed = annotation(service, "loadBalancerIPs");
    if single.is_some() && listed.is_some() && single != listed.as_deref() {
        let why = "`loadBalancerIP` and the annotation `loadBalancerIPs` ask for different addresses; keep one of them";
        return (Vec::new(), Some(why.to_owned()));
    }
    let Some(text) = single.map(str::to_owned).or(listed) else { return (Vec::new(), None) };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let Ok(ip) = part.parse::<IpAddr>() else {
            return (Vec::new(), Some(format!("it asks for `{part}`, which is no address")));
        };
        if addresses.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            return (Vec::new(), Some(format!("`{text}` asks for two addresses of one family; keep one")));
        }
        addresses.push(ip);
    }
    (addresses, None)
}

fn port(port: &core::ServicePort) -> Option<Port> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return None,
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, protocol, port: u16::try_from(port.port).ok()?, node_port: None })
}

/// An address that packets arrive with.
pub(super) fn vip(ip: IpAddr) -> Ingress {
    Ingress { ip, ip_mode: IpMode::Vip }
}
