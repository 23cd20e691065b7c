//! Services and pools for the tests of `assign`.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::service::{Endpoint, Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use homelab_model::{Assigned, Declared, Pool, PoolRange, Ranges};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn pool(name: &str, ranges: &[(&str, &str)]) -> Pool {
    let range = |(first, last): &(&str, &str)| PoolRange { first: ip(first), last: ip(last) };
    Pool {
        name: name.into(),
        addresses: ranges.iter().map(range).collect(),
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }
}

pub(crate) fn port(number: u16) -> Port {
    Port { name: format!("p{number}"), protocol: Protocol::Tcp, port: number, node_port: None }
}

pub(crate) fn service(name: &str, r#type: Type) -> Declared {
    let service = Service {
        namespace: "default".into(),
        name: name.into(),
        labels: Default::default(),
        r#type,
        cluster_ips: vec![],
        external_ips: vec![],
        load_balancer: vec![],
        load_balancer_source_ranges: vec![],
        external_traffic_policy: Policy::Cluster,
        internal_traffic_policy: Policy::Cluster,
        session_affinity: Default::default(),
        session_affinity_timeout_seconds: 10800,
        traffic_distribution: None,
        health_check_node_port: None,
        ports: vec![port(80)],
        endpoints: vec![],
    };
    Declared {
        service,
        families: vec![],
        node_ports: r#type != Type::ClusterIp,
        containers: vec![],
        request: Default::default(),
    }
}

pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        node: None,
        zone: None,
        ready: true,
        serving: true,
        terminating: false,
        for_zones: vec![],
        for_nodes: vec![],
        ports: Default::default(),
    }
}

pub(crate) fn ingress(address: &str) -> Ingress {
    Ingress { ip: ip(address), ip_mode: IpMode::Vip }
}

pub(crate) fn memory(assigned: &Assigned) -> BTreeMap<String, Service> {
    assigned.services.iter().map(|s| (s.full_name(), s.clone())).collect()
}

pub(crate) fn assign(declared: &[Declared], memory: &BTreeMap<String, Service>, ranges: &Ranges) -> Assigned {
    homelab_model::assign(declared, memory, ranges, &|_| Vec::new())
}
