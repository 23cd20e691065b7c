//! What load balancers ask each node: whether a service with external policy Local has endpoints there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use homelab_model::service::{Policy, Protocol, Service, Type};

use crate::compile::{Conflict, NodeView};
use crate::element::Frontend;
use crate::rules::families;

/// What is said of one service at one `healthCheckNodePort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// Ready endpoints on this node, of the family of the address.
    pub local_endpoints: usize,
}

/// Health checks by where they listen: the `healthCheckNodePort` of each service of type LoadBalancer with external
/// policy Local, on each address of the node that takes node ports and is of a family of the service.
///
/// Counts as kube-proxy does (`LocalReadyEndpoints` of pkg/proxy/endpointslicecache.go): addresses, not ports, and
/// none that only serve until they end, although they still take packets ([`crate::choose::choose`]): a load balancer
/// is to go elsewhere in time. The first service by name has a port that two of them want.
pub fn health_checks(
    services: &[Service],
    view: &NodeView,
) -> (BTreeMap<SocketAddr, HealthCheck>, Vec<Conflict>) {
    let mut services: Vec<&Service> = services.iter().collect();
    services.sort_by_cached_key(|service| service.full_name());
    let families = families(view);
    let mut checks: BTreeMap<SocketAddr, HealthCheck> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for service in services {
        let checked =
            service.r#type == Type::LoadBalancer && service.external_traffic_policy == Policy::Local;
        let Some(port) = service.health_check_node_port.filter(|_| checked) else { continue };
        for address in view.node_port_addresses() {
            let v4 = address.is_ipv4();
            if !families.contains(&v4) || !service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4) {
                continue;
            }
            if let Some(holder) = checks.get(&SocketAddr::new(address, port)) {
                let frontend = Frontend { address, protocol: Protocol::Tcp, port };
                let holder = format!("{}/{}", holder.namespace, holder.name);
                conflicts.push(Conflict { frontend, holder, other: service.full_name() });
                continue;
            }
            let check = HealthCheck {
                namespace: service.namespace.clone(),
                name: service.name.clone(),
                local_endpoints: local_ready(service, view, v4),
            };
            checks.insert(SocketAddr::new(address, port), check);
        }
    }
    (checks, conflicts)
}

fn local_ready(service: &Service, view: &NodeView, v4: bool) -> usize {
    let ready = service.endpoints.iter().filter(|endpoint| {
        endpoint.ready
            && endpoint.node.as_deref() == Some(view.name.as_str())
            && endpoint.address.is_ipv4() == v4
            && service.ports.iter().any(|port| endpoint.ports.get(&port.name).is_some())
    });
    ready.map(|endpoint| endpoint.address).collect::<BTreeSet<IpAddr>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn view() -> NodeView {
        NodeView {
            name: "a".to_owned(),
            addresses: ["192.0.2.1", "2001:db8::1", "127.0.0.1"].map(|a| a.parse().unwrap()).to_vec(),
            pod_cidrs: ["10.42.0.0/16", "fd42::/48"].map(|a| a.parse().unwrap()).to_vec(),
            ..NodeView::default()
        }
    }

    fn service(change: Value) -> Service {
        let mut service = json!({
            "namespace": "web",
            "name": "front",
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.1"],
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30200,
            "ports": [{"port": 80}],
        });
        for (key, value) in change.as_object().unwrap() {
            service[key] = value.clone();
        }
        serde_json::from_value(service).unwrap()
    }

    fn endpoint(address: &str, change: Value) -> Value {
        let mut endpoint = json!({"address": address, "node": "a", "ports": {"": 8080}});
        for (key, value) in change.as_object().unwrap() {
            endpoint[key] = value.clone();
        }
        endpoint
    }

    fn counts(services: &[Service]) -> Vec<(String, String, usize)> {
        let (checks, _) = health_checks(services, &view());
        let row = |(address, check): (SocketAddr, HealthCheck)| {
            (address.to_string(), format!("{}/{}", check.namespace, check.name), check.local_endpoints)
        };
        checks.into_iter().map(row).collect()
    }

    #[test]
    fn only_load_balancers_with_policy_local_and_a_port_are_checked() {
        let one = |address: &str| vec![(address.to_owned(), "web/front".to_owned(), 0)];
        assert_eq!(counts(&[service(json!({}))]), one("192.0.2.1:30200"));
        assert_eq!(counts(&[service(json!({"clusterIPs": ["fd43::1"]}))]), one("[2001:db8::1]:30200"));
        assert_eq!(counts(&[service(json!({"externalTrafficPolicy": "Cluster"}))]), []);
        assert_eq!(counts(&[service(json!({"type": "NodePort"}))]), []);
        assert_eq!(counts(&[service(json!({"healthCheckNodePort": null}))]), []);
    }

    #[test]
    fn ready_endpoints_of_this_node_count_once_per_address_and_by_family() {
        let endpoints = json!([
            endpoint("10.42.0.2", json!({})),
            endpoint("10.42.0.2", json!({"ports": {"": 8081}})),
            endpoint("10.42.0.3", json!({"ready": false})),
            endpoint("10.42.0.4", json!({"ready": false, "terminating": true})),
            endpoint("10.42.0.5", json!({"ports": {"other": 1}})),
            endpoint("10.42.0.6", json!({"node": null})),
            endpoint("10.42.1.2", json!({"node": "b"})),
            endpoint("fd42::2", json!({})),
            endpoint("fd42::3", json!({})),
        ]);
        let service = service(json!({"clusterIPs": ["10.96.0.1", "fd43::1"], "endpoints": endpoints}));
        let name = || "web/front".to_owned();
        let expected =
            vec![("192.0.2.1:30200".to_owned(), name(), 1), ("[2001:db8::1]:30200".to_owned(), name(), 2)];
        assert_eq!(counts(&[service]), expected);
    }

    #[test]
    fn the_first_by_name_has_a_port_that_two_want() {
        let services =
            [service(json!({"name": "z"})), service(json!({"name": "b"})), service(json!({"name": "c"}))];
        let (checks, conflicts) = health_checks(&services, &view());
        assert_eq!(checks.values().map(|check| check.name.as_str()).collect::<Vec<_>>(), ["b"]);
        let said: Vec<_> =
            conflicts.iter().map(|c| (c.frontend.to_string(), c.holder.as_str(), c.other.as_str())).collect();
        let frontend = || "192.0.2.1 . tcp . 30200".to_owned();
        assert_eq!(said, [(frontend(), "web/b", "web/c"), (frontend(), "web/b", "web/z")]);
    }
}
