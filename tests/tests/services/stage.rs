//! What all scenarios share: three dual-stack nodes, four containers with servers, and services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_tests::{Cluster, Place, Pod, SERVER, To};
use serde_json::{Value, json};

/// Load-balancer addresses of [`standing`].
pub(crate) const LB_CLUSTER: &str = "192.168.50.200";
pub(crate) const LB_LOCAL: &str = "192.168.50.201";
pub(crate) const LB_RANGED: &str = "192.168.50.202";
/// External address of [`standing`].
pub(crate) const EXTERNAL: &str = "192.168.50.150";
/// Node ports of [`standing`]: with external policy Cluster, Local, by SCTP.
pub(crate) const PORT_CLUSTER: u16 = 30080;
pub(crate) const PORT_LOCAL: u16 = 30081;
pub(crate) const PORT_SCTP: u16 = 30082;

/// Two containers on the first node, one on each other one.
const CONTAINERS: [(&str, &str); 4] = [("node1", "c1"), ("node1", "c1b"), ("node2", "c2"), ("node3", "c3")];

pub(crate) struct Stage {
    pub(crate) pods: Vec<Pod>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
    /// The file that was applied last.
    applied: Option<String>,
}

/// Makes it of new nodes.
pub(crate) fn set(cluster: &mut Cluster) -> Stage {
    cluster.file.dual_stack(&cluster.lab);
    cluster.apply();
    let pods = CONTAINERS.map(|(node, name)| cluster.container(node, name)).into();
    // The bridge has its addresses with the first container.
    let nodes = cluster.nodes().into_iter().map(|node| (node.clone(), cluster.addresses_of(&node))).collect();
    Stage { pods, nodes, applied: None }
}

impl Stage {
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).expect("the pod")
    }

    pub(crate) fn place(&self, name: &str) -> Place {
        Place::from(self.pod(name))
    }

    /// The pod's own address as a source.
    pub(crate) fn own(&self, name: &str, like: IpAddr) -> Vec<IpAddr> {
        vec![self.pod(name).address_like(like)]
    }

    /// Addresses that a node's masquerade can have towards pods.
    pub(crate) fn node(&self, name: &str) -> Vec<IpAddr> {
        self.nodes[name].clone()
    }

    /// Applies these services and no others, unless they are there already.
    #[track_caller]
    pub(crate) fn have(&mut self, cluster: &mut Cluster, services: &[Value]) {
        cluster.file.set("services", json!(services));
        let text = cluster.file.text();
        if self.applied.as_ref() != Some(&text) {
            self.applied = None;
            cluster.apply();
            self.applied = Some(text);
        }
    }

    /// Applies these objects of Kubernetes, in a manifest, and nothing else. Gives what was said.
    #[track_caller]
    pub(crate) fn have_manifest(&mut self, cluster: &mut Cluster, items: &[Value]) -> String {
        self.applied = None;
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        std::fs::write(cluster.lab.dir().join("manifest.yaml"), list.to_string()).expect("written");
        cluster.file.set("manifests", json!(["manifest.yaml"]));
        cluster.apply().stderr
    }

    /// The nodes are no longer as they were last made.
    pub(crate) fn spoiled(&mut self) {
        self.applied = None;
    }

    /// Asserts that only the endpoints `names` answer pods and the client by `to`, whoever they see.
    #[track_caller]
    pub(crate) fn assert_answers(&self, cluster: &Cluster, from: &Place, to: &To<'_>) {
        cluster.assert_answers(from, to, &self.nodes, &self.pods);
    }
}

/// An endpoint: a container of [`CONTAINERS`].
pub(crate) fn in_container(name: &str) -> Value {
    json!({ "node": format!("node{}", &name[1..2]), "container": name })
}

/// With further keys.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    for (key, more) in more.as_object().expect("a map") {
        value[key] = more.clone();
    }
    value
}

/// A service with a TCP and a UDP port 80, and endpoints in these containers.
pub(crate) fn service(name: &str, pods: &[&str], more: Value) -> Value {
    let plain = json!({
        "name": name,
        "ipFamilyPolicy": "PreferDualStack",
        "ports": ports(&["TCP", "UDP"], None),
        "endpoints": pods.iter().map(|pod| in_container(pod)).collect::<Vec<_>>(),
    });
    with(plain, more)
}

/// Port 80 for these protocols, at the same port of all nodes.
pub(crate) fn ports(protocols: &[&str], node_port: Option<u16>) -> Value {
    let port = |protocol: &&str| {
        let port = json!({
            "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": SERVER,
        });
        match node_port {
            Some(number) => with(port, json!({ "nodePort": number })),
            None => port,
        }
    };
    protocols.iter().map(port).collect()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Services of every kind, for scenarios that change none.
pub(crate) fn standing() -> Vec<Value> {
    let local = json!({
        "type": "LoadBalancer", "loadBalancerIP": LB_LOCAL, "externalTrafficPolicy": "Local",
    });
    let ports_of = |number| ports(&["TCP", "UDP"], Some(number));
    vec![
        service("web", &["c1", "c2", "c3"], json!({})),
        service("itself", &["c1"], json!({})),
        service("empty", &[], json!({ "ports": ports(&["TCP", "UDP", "SCTP"], None) })),
        service("local", &["c1", "c2"], json!({ "internalTrafficPolicy": "Local" })),
        service(
            "many",
            &["c2", "c3"],
            json!({ "ports": [
            { "name": "one", "port": 80, "targetPort": SERVER },
            { "name": "other", "port": 81, "targetPort": 7100 },
        ] }),
        ),
        service("three", &["c1", "c3"], json!({ "ports": ports(&["TCP", "UDP", "SCTP"], None) })),
        service(
            "different",
            &["c2"],
            json!({ "ports": [
            { "name": "tcp", "port": 80, "targetPort": SERVER },
            { "name": "udp", "protocol": "UDP", "port": 80, "targetPort": 7100 },
        ] }),
        ),
        service("ports", &["c1", "c2"], json!({ "type": "NodePort", "ports": ports_of(PORT_CLUSTER) })),
        service(
            "ports-local",
            &["c2"],
            json!({
                "type": "NodePort", "externalTrafficPolicy": "Local", "ports": ports_of(PORT_LOCAL),
            }),
        ),
        service(
            "ports-sctp",
            &["c2"],
            json!({ "type": "NodePort", "ports": ports(&["SCTP"], Some(PORT_SCTP)) }),
        ),
        service(
            "lb",
            &["c3"],
            json!({
                "type": "LoadBalancer", "loadBalancerIP": LB_CLUSTER, "ports": ports(&["TCP", "UDP", "SCTP"], None),
            }),
        ),
        service("lb-local", &["c2"], local),
        service(
            "lb-ranged",
            &["c2"],
            json!({
                "type": "LoadBalancer", "loadBalancerIP": LB_RANGED, "loadBalancerSourceRanges": ["192.168.50.0/30"],
            }),
        ),
        service("external", &["c3"], json!({ "externalIPs": [EXTERNAL] })),
        service(
            "sticky",
            &["c1", "c2", "c3"],
            json!({
                "type": "NodePort", "sessionAffinity": "ClientIP", "ports": ports_of(30083),
            }),
        ),
    ]
}
