//! `v1 Service` as the API server gives it: validated and defaulted there, so nothing is refused here. What cannot be
//! read is left out, as kube-proxy does.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::KubernetesSpec;
use homelab_model::service::{Affinity, Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::{HEADLESS, SERVICE_PROXY_NAME, address};

/// Sources of a load balancer's addresses, before there was a field for them.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Session affinity where none is written, seconds.
const DEFAULT_AFFINITY: u32 = 10800;

/// A Service of the API, as far as agents care.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeService {
    /// Without endpoints, and with the load-balancer addresses of its status.
    pub service: Service,
    /// Whether the proxy serves it: not headless, no ExternalName, not another proxy's.
    pub proxied: bool,
    /// Whether its load-balancer addresses are homelab's to announce: by its class, and because it is not being deleted.
    pub announced: bool,
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
    // kube-proxy's ShouldSkipService; the labels are selectors of its informers.
    let headless =
        matches!(spec.cluster_ip.as_deref(), None | Some("" | "None")) || labels.contains_key(HEADLESS);
    let named = spec.type_.as_deref() == Some("ExternalName");
    let others = labels.get(SERVICE_PROXY_NAME) != settings.service_proxy_name.as_ref();
    let balanced = r#type == Type::LoadBalancer;
    let ours =
        balanced && spec.load_balancer_class.as_ref().is_none_or(|c| *c == settings.load_balancer_class);
    let external_traffic_policy = policy(spec.external_traffic_policy.as_deref());
    let health = spec.health_check_node_port.and_then(port);
    let annotations = meta.annotations.as_ref();
    let ranges = || match spec.load_balancer_source_ranges.as_deref() {
        None | Some([]) => {
            let text = annotations.and_then(|all| all.get(SOURCE_RANGES));
            ranges(text.into_iter().flat_map(|text| text.split(',')))
        }
        Some(listed) => ranges(listed.iter().map(String::as_str)),
    };
    let listed = spec.cluster_ips.as_deref().unwrap_or_default().iter().map(String::as_str);
    let cluster_ips: Vec<IpAddr> = match headless {
        true => Vec::new(),
        false => unique(addresses(listed.chain(spec.cluster_ip.as_deref()))),
    };
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
        load_balancer: status(object),
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
    let announced = ours && meta.deletion_timestamp.is_none();
    Some(KubeService { service, proxied: !headless && !named && !others, announced })
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
