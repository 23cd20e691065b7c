//! Ours: a node with its ruleset, and services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use homelab_linux::{Connections, Node, Root};
use homelab_model::service::{Endpoint, Port, Service};
use homelab_model::{NodeSpec, diff};
use homelab_proxy::{Elements, NodeView, compile};

use crate::Size;
use crate::fixtures::{self, net};

/// First address of services.
const VIPS: u32 = u32::from_be_bytes([10, 96, 0, 10]);
/// First address of pods.
const PODS: u32 = u32::from_be_bytes([10, 128, 0, 10]);
/// Pods that come later.
const NEW_PODS: u32 = u32::from_be_bytes([10, 160, 0, 10]);

fn v4(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

/// A node of both families.
pub(crate) fn spec() -> NodeSpec {
    let mut spec = fixtures::spec(true);
    spec.cluster_cidrs[0] = net("10.128.0.0/10");
    spec
}

pub(crate) fn view() -> NodeView {
    homelab_proxy::view(&spec())
}

/// The address of a service.
pub(crate) fn vip(number: u32) -> IpAddr {
    v4(VIPS + number)
}

fn endpoint(address: IpAddr, node: u32) -> Endpoint {
    let ports = BTreeMap::from([(String::new(), 8080)]);
    let text = serde_json::json!({ "address": address, "node": format!("node{node}"), "ports": ports });
    serde_json::from_value(text).unwrap()
}

/// Service `number` at these addresses, the first endpoint on this node.
pub(crate) fn service_at(number: u32, pods: impl Iterator<Item = IpAddr>) -> Service {
    let text = serde_json::json!({
        "namespace": "default", "name": format!("service-{number}"), "clusterIPs": [vip(number)], "ports": [],
    });
    let mut service: Service = serde_json::from_value(text).unwrap();
    service.ports =
        vec![Port { name: String::new(), protocol: Default::default(), port: 80, node_port: None }];
    service.endpoints = (1..).zip(pods).map(|(node, address)| endpoint(address, node)).collect();
    service
}

/// Service `number`, each endpoint of its own.
pub(crate) fn service(number: u32, endpoints: u32) -> Service {
    service_at(number, (0..endpoints).map(|n| v4(PODS + number * endpoints + n)))
}

/// Another address for an endpoint.
pub(crate) fn replace_endpoint(service: &mut Service, round: u32) {
    service.endpoints[1].address = v4(NEW_PODS + round);
}

pub(crate) fn services(size: Size) -> Vec<Service> {
    (0..size.services).map(|number| service(number, size.endpoints)).collect()
}

/// A node whose tables are those of the caller's network namespace.
pub(crate) struct Ours {
    pub(crate) node: Node,
    _root: tempfile::TempDir,
}

impl Ours {
    pub(crate) fn new() -> Ours {
        let root = tempfile::tempdir().unwrap();
        let node = Node::open(Root::at(root.path())).unwrap();
        Ours { node, _root: root }
    }

    /// Loads the ruleset, as an apply does.
    pub(crate) fn load_ruleset(&mut self) {
        let changes = diff(&[], &homelab_proxy::foundation(&spec()));
        self.node.apply_all(&changes, &mut |_| {}).unwrap();
    }

    pub(crate) fn sync(&mut self, elements: &Elements) {
        self.node.sync_services(elements, Connections::OfChange).unwrap();
    }
}

/// The elements of services that do not get in each other's way.
pub(crate) fn compiled(services: &[Service]) -> Elements {
    let (elements, conflicts) = compile(services, &view());
    assert!(conflicts.is_empty(), "{conflicts:?}");
    elements
}
