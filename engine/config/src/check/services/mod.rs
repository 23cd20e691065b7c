//! Services: what Kubernetes' own validation says of them, and what needs the rest of the file.

mod addresses;
mod balancer;
mod endpoints;
mod policies;
mod ports;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use homelab_model::service::{Ingress, IpMode, Protocol, Service, Type};
use homelab_model::{Declared, Family, Request};

use super::node_ports::NodePorts;
use super::pools::Pools;
use super::{clean, labels, network, nodes, seen_before, take, values};
use crate::merge::DEFAULT_NAMESPACE;
use crate::problem::{Fault, Span};
use crate::raw::{self, File};
use crate::spanned::Spanned;

/// The rest of the file.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) nodes: &'a [nodes::Parsed],
    pub(super) network: &'a network::Parsed,
    pub(super) node_ports: &'a NodePorts,
    pub(super) pools: &'a Pools,
}

/// What services may not share.
#[derive(Default)]
struct Taken {
    names: HashMap<(String, String), Span>,
    cluster_ips: HashMap<IpAddr, Span>,
    /// Load-balancer addresses with the sharing key.
    balanced: HashMap<IpAddr, (Option<String>, Span)>,
    listeners: HashMap<(IpAddr, Protocol, u16), Span>,
    node_ports: HashMap<(Protocol, u16), Span>,
}

pub(super) fn services(file: &File, place: Place<'_>, faults: &mut Vec<Fault>) -> Option<Vec<Declared>> {
    let mut taken = Taken::default();
    let raw = file.services.as_deref().unwrap_or_default();
    let services: Vec<Option<Declared>> =
        raw.iter().map(|s| service(&s.value, place, &mut taken, faults)).collect();
    services.into_iter().collect()
}

fn service(
    raw: &raw::Service,
    place: Place<'_>,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<Declared> {
    let before = faults.len();
    let name = raw.name.as_ref().and_then(|n| take(faults, n, values::service_name));
    let namespace =
        raw.namespace.as_ref().map(|n| take(faults, n, |t| values::label(t, "a namespace")).map(|n| n.value));
    let namespace = namespace.unwrap_or_else(|| Some(DEFAULT_NAMESPACE.to_owned()));
    if let (Some(name), Some(namespace)) = (&name, &namespace)
        && let Some(first) =
            seen_before(&mut taken.names, &(namespace.clone(), name.value.clone()), name.span)
    {
        faults.push(same_name(name, namespace, first));
    }
    let r#type = match raw.r#type.as_ref().map(|t| t.value.as_str()) {
        Some("NodePort") => Type::NodePort,
        Some("LoadBalancer") => Type::LoadBalancer,
        _ => Type::ClusterIp,
    };
    let fixed = addresses::cluster_ips(raw, place, taken, faults);
    let families = addresses::families(raw, &fixed, place, faults);
    let external_ips = addresses::external_ips(raw, place, &families, faults);
    let labels = labels::labels(raw.labels.as_ref(), faults);
    let mut request = balancer::request(raw, r#type, place, faults);
    let wanted = balancer::addresses(raw, r#type, place, &families, faults);
    balancer::shared(&wanted, &request, taken, faults);
    let load_balancer_source_ranges = addresses::source_ranges(raw, r#type, &families, faults);
    let listen: BTreeSet<IpAddr> =
        external_ips.iter().copied().chain(wanted.iter().map(|a| a.value)).collect();
    let (ports, targets) = ports::ports(raw, r#type, &listen, place.node_ports, taken, faults);
    let policies = policies::policies(raw, r#type, faults);
    let health_check_node_port =
        policies::health_check(raw, r#type, policies.external, place.node_ports, taken, faults);
    let allocate = policies::allocate_node_ports(raw, r#type, faults);
    let (endpoints, containers) = endpoints::endpoints(raw, place, &families, &targets, faults);
    let ours = balancer::is_ours(raw, r#type, faults);
    clean(faults, before).then_some(())?;
    request.require_dual_stack =
        families.len() == 2 && raw.ip_family_policy.as_ref().is_some_and(|p| p.value == "RequireDualStack");
    let mut service = Service {
        namespace: namespace?,
        name: name?.value,
        labels,
        r#type,
        cluster_ips: fixed.into_iter().map(|ip| ip.value).collect(),
        external_ips,
        load_balancer: wanted.into_iter().map(|ip| Ingress { ip: ip.value, ip_mode: IpMode::Vip }).collect(),
        load_balancer_source_ranges,
        external_traffic_policy: policies.external,
        internal_traffic_policy: policies.internal,
        session_affinity: policies.affinity,
        session_affinity_timeout_seconds: policies.timeout,
        traffic_distribution: raw.traffic_distribution.as_ref().map(|t| t.value.clone()),
        health_check_node_port,
        ports,
        endpoints,
    };
    if !ours {
        crate::balancer::without(&mut service, allocate);
        request = Request::default();
    }
    Some(Declared { service, families, node_ports: allocate, containers, request })
}

fn same_name(name: &Spanned<String>, namespace: &str, first: Span) -> Fault {
    if namespace == DEFAULT_NAMESPACE {
        return super::duplicate("services", name, first);
    }
    let message = format!("two services of the namespace `{namespace}` are named `{}`", name.value);
    Fault::new("duplicate-name", name.span, message)
        .label("again here")
        .also(first, "first here")
        .help("give each a name or a namespace of its own")
}

/// As in the file.
fn type_name(r#type: Type) -> &'static str {
    match r#type {
        Type::ClusterIp => "ClusterIP",
        Type::NodePort => "NodePort",
        Type::LoadBalancer => "LoadBalancer",
    }
}

/// Says of an address or range that the service has nothing of its family.
fn unused(span: Span, what: &str, family: Family, families: &[Family], faults: &mut Vec<Fault>) {
    // Families are unknown where the service ranges are wrong.
    if families.is_empty() || families.contains(&family) {
        return;
    }
    let message = format!("{what} is not used: the service has no {family} address");
    faults.push(
        Fault::new("families", span, message)
            .help(format!("take it away, or add {family} to `ipFamilies`"))
            .warning(),
    );
}
