//! `v1 Service` as the API server gives it: validated and defaulted there, so nothing is refused here. What cannot be
//! read is left out, as kube-proxy does.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::metallb::{ADDRESSES, POOL, SHARING, annotation};
use homelab_model::service::{Affinity, Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use homelab_model::{Declared, Family, KubernetesSpec, Request};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::{SERVICE_PROXY_NAME, address};

/// Sources of a load balancer's addresses, before there was a field for them.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Session affinity where none is written, seconds.
const DEFAULT_AFFINITY: u32 = 10800;

/// A Service of the API, as far as homelab cares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeService {
    /// Without endpoints. Its `load_balancer` is what it asks for (`spec.loadBalancerIP` or MetalLB's annotation).
    pub declared: Declared,
    /// Whether the proxy serves it: not headless, no ExternalName, not another proxy's.
    pub proxied: bool,
    /// `status.loadBalancer.ingress`, the entries with an address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<Ingress>,
    /// Whether its load-balancer addresses are homelab's to give and to announce, by its class.
    pub ours: bool,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.finalizers`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// It is deleted, and stays until its finalizers are gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
}

/// Reads a Service; None if it has no name.
pub fn service(object: &core::Service, settings: &KubernetesSpec) -> Option<KubeService> {
    let meta = &object.metadata;
    let empty = core::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let labels = meta.labels.clone().unwrap_or_default();
    let r#type = match spec.type_.as_deref() {
        Some("NodePort") => Type::NodePort,
        Some("LoadBalancer") => Type::LoadBalancer,
        _ => Type::ClusterIp,
    };
    // kube-proxy's ShouldSkipService; the label is a selector of its informers.
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    let named = spec.type_.as_deref() == Some("ExternalName");
    let others = labels.get(SERVICE_PROXY_NAME) != settings.service_proxy_name.as_ref();
    let balanced = r#type == Type::LoadBalancer;
    let ours =
        balanced && spec.load_balancer_class.as_ref().is_none_or(|c| *c == settings.load_balancer_class);
    let external_traffic_policy = policy(spec.external_traffic_policy.as_deref());
    let health = spec.health_check_node_port.and_then(port);
    let status = status(object);
    let annotations = meta.annotations.as_ref();
    let note = |name: &str| {
        annotation(name, |key| annotations.and_then(|all| all.get(key)).filter(|text| !text.is_empty()))
    };
    let asks = || {
        let listed = note(ADDRESSES).map(String::as_str);
        let one = spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty());
        addresses(one.or(listed).into_iter().flat_map(|text| text.split(',')))
    };
    let ranges = || match spec.load_balancer_source_ranges.as_deref() {
        None | Some([]) => {
            let text = annotations.and_then(|all| all.get(SOURCE_RANGES));
            ranges(text.into_iter().flat_map(|text| text.split(',')))
        }
        Some(listed) => ranges(listed.iter().map(String::as_str)),
    };
    let request = Request {
        pool: note(POOL).cloned(),
        sharing_key: note(SHARING).cloned(),
        selector: spec.selector.clone().unwrap_or_default(),
        require_dual_stack: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        given: status.clone(),
    };
    let wanted: Vec<Ingress> = if ours { asks().map(vip).collect() } else { Vec::new() };
    let listed = spec.cluster_ips.as_deref().unwrap_or_default().iter().map(String::as_str);
    let cluster_ips: Vec<IpAddr> = match headless {
        true => Vec::new(),
        false => unique(addresses(listed.chain(spec.cluster_ip.as_deref()))),
    };
    let families = spec.ip_families.as_deref().unwrap_or_default().iter().filter_map(|f| family(f)).collect();
    let name = meta.name.clone()?;
    let service = Service {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name,
        labels,
        r#type,
        cluster_ips,
        external_ips: unique(addresses(
            spec.external_ips.as_deref().unwrap_or_default().iter().map(String::as_str),
        )),
        load_balancer: wanted,
        load_balancer_source_ranges: if balanced { ranges() } else { Vec::new() },
        external_traffic_policy,
        internal_traffic_policy: policy(spec.internal_traffic_policy.as_deref()),
        session_affinity: match spec.session_affinity.as_deref() {
            Some("ClientIP") => Affinity::ClientIp,
            _ => Affinity::None,
        },
        session_affinity_timeout_seconds: timeout(spec),
        traffic_distribution: spec.traffic_distribution.clone(),
        health_check_node_port: health.filter(|_| balanced && external_traffic_policy == Policy::Local),
        ports: ports(spec),
        endpoints: Vec::new(),
    };
    let declared = Declared {
        node_ports: service.ports.iter().any(|port| port.node_port.is_some()),
        service,
        families,
        containers: Vec::new(),
        request: if ours { request } else { Request::default() },
    };
    Some(KubeService {
        declared,
        proxied: !headless && !named && !others,
        status,
        ours,
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
    })
}

/// The port numbers and protocols that a packet can have.
fn ports(spec: &core::ServiceSpec) -> Vec<Port> {
    let read = |item: &core::ServicePort| {
        Some(Port {
            name: item.name.clone().unwrap_or_default(),
            protocol: protocol(item.protocol.as_deref())?,
            port: port(item.port)?,
            node_port: item.node_port.and_then(port),
        })
    };
    spec.ports.iter().flatten().filter_map(read).collect()
}

fn status(object: &core::Service) -> Vec<Ingress> {
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut by_address: BTreeMap<IpAddr, ()> = BTreeMap::new();
    let read = |item: &core::LoadBalancerIngress| {
        let ip_mode = match item.ip_mode.as_deref() {
            Some("Proxy") => IpMode::Proxy,
            _ => IpMode::Vip,
        };
        Some(Ingress { ip: address(item.ip.as_deref()?)?, ip_mode })
    };
    let listed = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    listed.filter_map(read).filter(|one| by_address.insert(one.ip, ()).is_none()).collect()
}

fn vip(ip: IpAddr) -> Ingress {
    Ingress { ip, ip_mode: IpMode::Vip }
}

fn addresses<'a>(texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = IpAddr> {
    texts.filter_map(|text| address(text.trim()))
}

fn ranges<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpNet> {
    let range = |text: &str| {
        let (ip, length) = text.trim().split_once('/')?;
        Some(IpNet::new(address(ip)?, length.parse().ok()?).ok()?.trunc())
    };
    texts.filter_map(range).collect()
}

/// The values, each once, in order.
fn unique(values: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for value in values {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}

fn policy(text: Option<&str>) -> Policy {
    if text == Some("Local") { Policy::Local } else { Policy::Cluster }
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::IPv4),
        "IPv6" => Some(Family::IPv6),
        _ => None,
    }
}

fn timeout(spec: &core::ServiceSpec) -> u32 {
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds);
    seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_AFFINITY)
}

/// A port that a packet can go to.
pub(crate) fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// A protocol by its name; TCP where there is none.
pub(crate) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}
