//! Services at random, for the properties of this crate and for those that a kernel must keep (`homelab-linux`).
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;

use homelab_model::service::{Affinity, Endpoint, Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use homelab_proxy::NodeView;
use proptest::prelude::*;

pub(crate) fn view() -> NodeView {
    NodeView {
        name: "node1".to_owned(),
        addresses: vec!["192.168.50.11".parse().unwrap(), "fd00:50::11".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..NodeView::default()
    }
}

fn endpoint(number: u8, ready: bool, terminating: bool, v4: bool) -> Endpoint {
    let node = number % 3 + 1;
    let address = match v4 {
        true => format!("10.244.{node}.{number}"),
        false => format!("fd00:10:244:{node}::{number:x}"),
    };
    Endpoint {
        address: address.parse().unwrap(),
        node: Some(format!("node{node}")),
        zone: None,
        ready,
        serving: true,
        terminating,
        for_zones: vec![],
        for_nodes: vec![],
        ports: [("a", 8080), ("b", 9090)].into_iter().collect(),
    }
}

fn a_service() -> impl Strategy<Value = Service> {
    let policy = || prop_oneof![Just(Policy::Cluster), Just(Policy::Local)];
    let endpoints = prop::collection::vec((1_u8..120, any::<bool>(), any::<bool>(), any::<bool>()), 0..90);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (1_u8..9, 0_usize..3, policy(), policy(), flags, endpoints, 1..90000_u32).prop_map(
        |(number, kind, external, internal, (sticky, ranged, dual), endpoints, timeout)| {
            let mut cluster_ips = vec![format!("10.96.0.{number}").parse().unwrap()];
            if dual {
                cluster_ips.push(format!("fd00:10:96::{number:x}").parse().unwrap());
            }
            let lb = |last: u8| Ingress {
                ip: format!("192.168.50.{last}").parse().unwrap(),
                ip_mode: IpMode::Vip,
            };
            Service {
                namespace: "default".to_owned(),
                name: format!("service{number}"),
                labels: homelab_model::Labels::new(),
                r#type: [Type::ClusterIp, Type::NodePort, Type::LoadBalancer][kind],
                cluster_ips,
                // Shared on purpose: a conflict.
                external_ips: vec![format!("203.0.113.{}", number / 2).parse().unwrap()],
                load_balancer: vec![lb(200 + number)],
                load_balancer_source_ranges: match ranged {
                    true => {
                        ["10.0.0.0/8", "10.1.0.0/16", "192.168.50.7/32"].map(|r| r.parse().unwrap()).to_vec()
                    }
                    false => vec![],
                },
                external_traffic_policy: external,
                internal_traffic_policy: internal,
                session_affinity: if sticky { Affinity::ClientIp } else { Affinity::None },
                session_affinity_timeout_seconds: timeout,
                traffic_distribution: None,
                health_check_node_port: None,
                ports: [("a", Protocol::Tcp, 80_u16), ("b", Protocol::Udp, 53)]
                    .map(|(name, protocol, port)| Port {
                        name: name.to_owned(),
                        protocol,
                        port,
                        node_port: Some(30000 + u16::from(number)),
                    })
                    .to_vec(),
                endpoints: endpoints.into_iter().map(|(n, r, t, v4)| endpoint(n, r, t, v4)).collect(),
            }
        },
    )
}

pub(crate) fn services() -> impl Strategy<Value = Vec<Service>> {
    prop::collection::vec(a_service(), 0..6).prop_map(|services| {
        let by_name: BTreeMap<String, Service> = services.into_iter().map(|s| (s.name.clone(), s)).collect();
        by_name.into_values().collect()
    })
}
