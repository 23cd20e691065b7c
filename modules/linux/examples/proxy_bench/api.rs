//! Services as the Kubernetes API has them, in the tests' own server.

use std::net::TcpListener;

use homelab_model::service::Service;
use homelab_test_api::{Api, Resource};
use serde_json::{Value, json};

/// A server on loopback of the caller's network namespace, with a Node and these services.
pub(crate) fn serve(services: &[Service]) -> Api {
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success(), "loopback");
    let api = Api::with(TcpListener::bind("127.0.0.1:0").unwrap(), &[]).unwrap();
    let node = json!({
        "metadata": { "name": "node1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.50.11" }] },
    });
    api.create(&Resource::NODES, node).unwrap();
    for service in services {
        api.create(&Resource::SERVICES, object(service)).unwrap();
        api.create(&Resource::ENDPOINT_SLICES, slice(service)).unwrap();
    }
    api
}

/// The `v1` Service.
pub(crate) fn object(service: &Service) -> Value {
    let vip = service.cluster_ips[0];
    json!({
        "metadata": { "name": service.name, "namespace": service.namespace },
        "spec": {
            "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{ "port": service.ports[0].port, "protocol": "TCP", "targetPort": 8080 }],
        },
    })
}

pub(crate) fn slice_name(service: &Service) -> String {
    format!("{}-4x7kq", service.name)
}

/// The `discovery.k8s.io/v1` EndpointSlice.
pub(crate) fn slice(service: &Service) -> Value {
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "addresses": [endpoint.address], "nodeName": endpoint.node,
            "conditions": { "ready": true, "serving": true, "terminating": false },
        })
    });
    json!({
        "metadata": {
            "name": slice_name(service), "namespace": service.namespace,
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
    })
}
