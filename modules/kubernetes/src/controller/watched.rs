//! Services as the controller sees them: what decides about their addresses, and what is written to them.

use std::net::IpAddr;

use homelab_model::service::{Ingress, IpMode, Type};
use homelab_model::{Declared, Family, KubernetesSpec, Request};
use k8s_openapi::api::core::v1 as core;

use crate::address;

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
    pub fn of(object: &core::Service, settings: &KubernetesSpec) -> Option<Watched> {
        let mut service = crate::service(object, settings)?.service;
        let (meta, empty) = (&object.metadata, core::ServiceSpec::default());
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let class = match (service.r#type, spec.load_balancer_class.clone()) {
            (Type::LoadBalancer, None) => Class::Default,
            (Type::LoadBalancer, Some(name)) => Class::Named(name),
            _ => Class::None,
        };
        let balancer = object.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default();
        let arrives = |one: &core::LoadBalancerIngress| {
            let proxy = one.ip_mode.as_deref() == Some("Proxy");
            one.ip.as_deref().filter(|_| !proxy && one.hostname.is_none()).and_then(address)
        };
        let status: Vec<IpAddr> = ingress.iter().filter_map(arrives).collect();
        let (fixed, fault) = match class {
            Class::None => (Vec::new(), None),
            _ => fixed(object, spec.load_balancer_ip.as_deref()),
        };
        service.load_balancer = fixed.into_iter().map(vip).collect();
        let family = |text: &String| match text.as_str() {
            "IPv4" => Some(Family::IPv4),
            "IPv6" => Some(Family::IPv6),
            _ => None,
        };
        let families: Vec<Family> = spec.ip_families.iter().flatten().filter_map(family).collect();
        let request = Request {
            pool: annotation(object, "address-pool"),
            sharing_key: annotation(object, "allow-shared-ip"),
            selector: spec.selector.clone().unwrap_or_default(),
            require_dual_stack: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
            given: Vec::new(),
        };
        Some(Watched {
            uid: meta.uid.clone()?,
            version: meta.resource_version.as_deref()?.parse().ok()?,
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            class,
            foreign_status: status.len() != ingress.len(),
            status,
            noted_pool: annotation(object, "ip-allocated-from-pool"),
            declared: Declared { service, families, node_ports: false, containers: Vec::new(), request },
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
    let text = PREFIXES.iter().find_map(|prefix| notes.get(&format!("{prefix}{name}")))?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The addresses that a Service fixes: `spec.loadBalancerIP`, else MetalLB's annotation (its getDesiredLbIPs).
fn fixed(service: &core::Service, single: Option<&str>) -> (Vec<IpAddr>, Option<String>) {
    let single = single.map(str::trim).filter(|text| !text.is_empty());
    let listed = annotation(service, "loadBalancerIPs");
    if single.is_some() && listed.is_some() && single != listed.as_deref() {
        let why = "`loadBalancerIP` and the annotation `loadBalancerIPs` ask for different addresses; keep one of them";
        return (Vec::new(), Some(why.to_owned()));
    }
    let Some(text) = single.map(str::to_owned).or(listed) else { return (Vec::new(), None) };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let Some(ip) = address(part) else {
            return (Vec::new(), Some(format!("it asks for `{part}`, which is no address")));
        };
        if addresses.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            return (Vec::new(), Some(format!("`{text}` asks for two addresses of one family; keep one")));
        }
        addresses.push(ip);
    }
    (addresses, None)
}

/// An address that packets arrive with.
pub(super) fn vip(ip: IpAddr) -> Ingress {
    Ingress { ip, ip_mode: IpMode::Vip }
}
