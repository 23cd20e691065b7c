//! What all scenarios share: an API in the LAN, three nodes that follow it, four containers with servers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::AgentFact;
use homelab_tests::{Cluster, Kube, Place, Pod, SERVER, SERVICE_NAME, SERVICES, SLICES, To, until};
use serde_json::{Value, json};

pub(crate) const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The pod ranges that the controller manager gave these Nodes: others than homelab would.
pub(crate) const RANGES: [&str; 3] = ["10.244.13.0/24", "10.244.12.0/24", "10.244.11.0/24"];

/// Two containers on the first node, one on each other one.
const CONTAINERS: [(&str, &str); 4] = [("node1", "c1"), ("node1", "c1b"), ("node2", "c2"), ("node3", "c3")];

pub(crate) struct Stage {
    pub(crate) kube: Kube,
    pub(crate) pods: Vec<Pod>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Services so far: each has numbers of its own.
    count: u16,
}

/// Numbers of a Service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) cluster_ip: IpAddr,
    pub(crate) node_port: u16,
}

/// An endpoint and its conditions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Is<'a> {
    Ready(&'a str),
    /// Serving and terminating.
    Leaving(&'a str),
    /// Neither ready nor serving.
    Unready(&'a str),
}

/// A Node as kubelet and controller manager write it.
fn node(name: &str, address: &str, range: &str) -> Value {
    let since = json!("2026-01-01T00:00:00Z");
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": reason,
            "lastHeartbeatTime": since, "lastTransitionTime": since,
        })
    };
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name }],
            "conditions": [
                condition("Ready", "True", "KubeletReady"),
                condition("NetworkUnavailable", "True", "NoRouteCreated"),
            ],
        },
    })
}

/// Starts the API, writes the Nodes, and has homelab make the rest of it: no other program for networks is there.
pub(crate) fn set(cluster: &mut Cluster) -> Stage {
    let kube = Kube::start(cluster);
    eprintln!("  the API server is {}", kube.name());
    for (name, range) in NODES.iter().zip(RANGES) {
        let address = cluster.lab.address(name).expect("an address").to_string();
        kube.put("/api/v1/nodes", &node(name, &address, range));
    }
    cluster.file.set("kubernetes.kubeconfig", json!(kube.kubeconfig()));
    cluster.apply();
    let pods = CONTAINERS.map(|(node, name)| cluster.container(node, name)).into();
    let nodes = cluster.nodes().into_iter().map(|node| (node.clone(), cluster.addresses_of(&node))).collect();
    let mut stage = Stage { kube, pods, nodes, count: 0 };
    stage.carried_out(cluster);
    cluster.lb_settled(&NODES);
    stage
}

impl Stage {
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).expect("the pod")
    }

    pub(crate) fn place(&self, name: &str) -> Place {
        Place::from(self.pod(name))
    }

    /// Numbers that no Service has had.
    pub(crate) fn numbers(&mut self) -> Numbers {
        self.count += 1;
        let cluster_ip = format!("10.96.7.{}", self.count).parse().expect("an address");
        Numbers { cluster_ip, node_port: 30100 + self.count }
    }

    /// Creates a Service, or makes of it what `spec` says.
    #[track_caller]
    pub(crate) fn service(&self, name: &str, spec: &Value) -> Value {
        self.kube.put(SERVICES, &json!({ "metadata": { "name": name }, "spec": spec }))
    }

    /// What the controller manager makes of a Service's pods.
    #[track_caller]
    pub(crate) fn endpoints(&self, name: &str, all: &[Is<'_>]) {
        self.endpoints_at(name, all, SERVER);
    }

    /// The same with servers at another port.
    #[track_caller]
    pub(crate) fn endpoints_at(&self, name: &str, all: &[Is<'_>], port: u16) {
        let endpoint = |one: &Is<'_>| {
            let (pod, [ready, serving, terminating]) = match one {
                Is::Ready(pod) => (pod, [true, true, false]),
                Is::Leaving(pod) => (pod, [false, true, true]),
                Is::Unready(pod) => (pod, [false, false, false]),
            };
            let pod = self.pod(pod);
            json!({
                "addresses": [pod.addresses[0]], "nodeName": pod.node,
                "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
                "targetRef": { "kind": "Pod", "name": pod.name, "namespace": "default" },
            })
        };
        let endpoints: Vec<Value> = all.iter().map(endpoint).collect();
        let port =
            |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": port });
        self.kube.put(
            SLICES,
            &json!({
                "metadata": { "name": format!("{name}-1"), "labels": { SERVICE_NAME: name } },
                "addressType": "IPv4", "ports": [port("TCP"), port("UDP")], "endpoints": endpoints,
            }),
        );
    }

    /// Deletes a Service and, as the controller manager would, its slice.
    #[track_caller]
    pub(crate) fn delete(&self, name: &str) {
        self.kube.delete(&format!("{SERVICES}/{name}"));
        self.kube.delete(&format!("{SLICES}/{name}-1"));
    }

    /// Waits until all nodes have done what was written.
    #[track_caller]
    pub(crate) fn carried_out(&mut self, cluster: &Cluster) {
        self.kube.carried_out(cluster, &NODES);
    }

    /// Only the endpoints `names` answer, whoever they see.
    #[track_caller]
    pub(crate) fn assert_answers(&self, cluster: &Cluster, from: &Place, to: &To<'_>) {
        cluster.assert_answers(from, to, &self.nodes, &self.pods);
    }

    /// Waits until the controller has given a Service an address, and it is announced. Gives address and owner.
    #[track_caller]
    pub(crate) fn announced(&mut self, cluster: &Cluster, name: &str) -> (IpAddr, String) {
        let address = self.allocated(name);
        let owners = cluster.lb_until(&NODES, "it is announced", |owners| owners.contains_key(&address));
        self.carried_out(cluster);
        (address, owners[&address].clone())
    }

    /// Waits until no node knows an address any more.
    #[track_caller]
    pub(crate) fn withdrawn(&mut self, cluster: &Cluster, address: IpAddr) {
        cluster.lb_until(&NODES, "it is withdrawn", |owners| !owners.contains_key(&address));
        self.carried_out(cluster);
    }

    /// Waits until the controller has given a Service an address.
    #[track_caller]
    pub(crate) fn allocated(&self, name: &str) -> IpAddr {
        until(&format!("{name} gets an address"), || self.ingress(name).is_some());
        self.ingress(name).expect("an address")
    }

    /// `status.loadBalancer.ingress[0].ip`
    #[track_caller]
    pub(crate) fn ingress(&self, name: &str) -> Option<IpAddr> {
        let service = self.kube.get(&format!("{SERVICES}/{name}"))?;
        service.pointer("/status/loadBalancer/ingress/0/ip")?.as_str()?.parse().ok()
    }
}

/// What a node's agent says of itself.
#[track_caller]
pub(crate) fn report(cluster: &Cluster, node: &str) -> Option<AgentFact> {
    serde_json::from_str(&cluster.sh(node, "cat /run/homelab/agent.json 2>/dev/null || true")).ok()
}

/// With further keys.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    for (key, more) in more.as_object().expect("a map") {
        value[key] = more.clone();
    }
    value
}

/// Port 80 by TCP and UDP; at this port of all nodes, too.
pub(crate) fn ports(node_port: Option<u16>) -> Value {
    let port = |protocol: &str| {
        let port = json!({
            "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": SERVER,
        });
        node_port.map_or(port.clone(), |number| with(port, json!({ "nodePort": number })))
    };
    json!([port("TCP"), port("UDP")])
}

/// A Service's `spec` as the API server would complete it.
pub(crate) fn cluster_ip(numbers: Numbers) -> Value {
    let ip = numbers.cluster_ip;
    json!({
        "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        "ports": ports(None),
    })
}

pub(crate) fn node_port(numbers: Numbers) -> Value {
    let more = json!({
        "type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": ports(Some(numbers.node_port)),
    });
    with(cluster_ip(numbers), more)
}

pub(crate) fn load_balancer(numbers: Numbers) -> Value {
    let more = json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": true });
    with(node_port(numbers), more)
}

pub(crate) fn external_name() -> Value {
    json!({ "type": "ExternalName", "externalName": "example.org", "ports": [{ "name": "http", "port": 80 }] })
}
