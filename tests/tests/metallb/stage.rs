//! What all cases share: three dual-stack nodes on two LANs, a container with a server on each, a client on both LANs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_model::LABEL_EXCLUDE;
use homelab_tests::{Cluster, Pod, Resolver, SERVER};
use serde_json::{Value, json};

pub(crate) const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// Interfaces of nodes and client on the two LANs.
pub(crate) const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// Longer than anything takes that is on its way.
pub(crate) const LONG: Duration = Duration::from_secs(40);

/// What is wrong with each case of a group.
pub(crate) type Problems = BTreeMap<&'static str, Vec<String>>;

pub(crate) struct Stage {
    pub(crate) pods: Vec<Pod>,
    /// By node and interface.
    macs: BTreeMap<(String, String), String>,
    /// The client on each LAN.
    resolvers: Vec<Resolver>,
    groups: BTreeMap<&'static str, Problems>,
}

/// Makes it of new nodes.
pub(crate) fn set(cluster: &mut Cluster) -> Stage {
    cluster.second_lan();
    cluster.file.dual_stack(&cluster.lab);
    cluster.file.set("loadBalancer.pools", json!([]));
    cluster.apply();
    let pods: Vec<Pod> = NODES.iter().map(|node| cluster.container(node, &format!("of-{node}"))).collect();
    let mut macs = BTreeMap::new();
    for (node, interface) in NODES.iter().flat_map(|node| INTERFACES.map(|i| (*node, i))) {
        let mac = cluster.sh(node, &format!("cat /sys/class/net/{interface}/address"));
        macs.insert((node.to_owned(), interface.to_owned()), mac);
    }
    let resolvers = INTERFACES.map(|interface| cluster.resolver("client", interface)).into();
    Stage { pods, macs, resolvers, groups: BTreeMap::new() }
}

impl Stage {
    /// Has all cases of a group go through their steps, once; this one must have come out right.
    #[track_caller]
    pub(crate) fn prove(
        &mut self,
        cluster: &mut Cluster,
        group: &'static str,
        case: &str,
        all: fn(&mut Cluster, &mut Stage) -> Problems,
    ) {
        if !self.groups.contains_key(group) {
            let problems = all(cluster, self);
            self.groups.insert(group, problems);
        }
        let problems = &self.groups[group][case];
        assert!(problems.is_empty(), "{case}:\n{}", problems.join("\n"));
    }

    /// The nodes whose interfaces answer for each address on a LAN, by the client's question.
    #[track_caller]
    pub(crate) fn answering(&mut self, lan: usize, addresses: &[IpAddr]) -> BTreeMap<IpAddr, Vec<String>> {
        let claims = self.resolvers[lan].ask(addresses);
        let name = |mac: &String| {
            let mut owners =
                self.macs.iter().filter(|((_, interface), own)| *interface == INTERFACES[lan] && *own == mac);
            owners.next().map_or_else(|| mac.clone(), |((node, _), _)| node.clone())
        };
        claims.iter().map(|(address, macs)| (*address, macs.iter().map(name).collect())).collect()
    }

    /// Endpoints of a service: containers of these nodes.
    pub(crate) fn endpoints(nodes: &[&str]) -> Value {
        nodes.iter().map(|node| json!({ "node": node, "container": format!("of-{node}") })).collect()
    }

    /// A service `lb`, whose addresses it gives, beside others, and advertisements of all.
    #[track_caller]
    pub(crate) fn balanced(
        &self,
        cluster: &mut Cluster,
        services: &[Value],
        advertisements: &[Value],
    ) -> [IpAddr; 2] {
        let addresses = ["192.168.50.200", "fd00:50::200"];
        let ranges = json!(["192.168.50.200-192.168.50.209", "fd00:50::200-fd00:50::209"]);
        let lb = service("lb", "TCP", 80, &json!({ "metallb.io/loadBalancerIPs": addresses.join(",") }));
        let named = (0..).zip(advertisements).map(|(n, advertisement)| {
            let mut named = advertisement.clone();
            named["name"] = json!(format!("l2-{n}"));
            named
        });
        for index in 0..NODES.len() {
            cluster.file.set(&format!("nodes.{index}.labels"), json!({}));
        }
        cluster.file.set("loadBalancer.pools", json!([{ "name": "l2-test", "addresses": ranges }]));
        cluster.file.set("loadBalancer.l2Advertisements", named.collect());
        cluster.file.set("services", [&[lb], services].concat().into());
        cluster.apply();
        cluster.lb_settled(&NODES);
        addresses.map(|address| address.parse().expect("an address"))
    }

    /// Gives a node the label that excludes it, or takes it.
    pub(crate) fn exclude(&self, cluster: &mut Cluster, node: &str, on: bool) {
        let index = NODES.iter().position(|name| *name == node).expect("a node");
        let labels = if on { json!({ LABEL_EXCLUDE: "" }) } else { json!({}) };
        cluster.file.set(&format!("nodes.{index}.labels"), labels);
        cluster.apply();
    }

    /// Waits until the nodes agree on an address's owner, and that one alone answers for it.
    #[track_caller]
    pub(crate) fn announced(&mut self, cluster: &Cluster, address: IpAddr, node: &str) {
        cluster.lb_until(&NODES, node, |owners| owners.get(&address).is_some_and(|owner| owner == node));
        self.answers(address, node);
    }

    /// Waits until a node alone answers for an address on the first LAN.
    #[track_caller]
    pub(crate) fn answers(&mut self, address: IpAddr, node: &str) {
        let start = Instant::now();
        loop {
            let answering = self.answering(0, &[address]).remove(&address).unwrap_or_default();
            if answering == [node] {
                return;
            }
            assert!(start.elapsed() < LONG, "{address}, not {node}: {answering:?} answer");
        }
    }
}

/// A service with endpoints on all nodes.
pub(crate) fn service(name: &str, protocol: &str, port: u16, annotations: &Value) -> Value {
    json!({
        "name": name, "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "annotations": annotations,
        "ports": [{ "protocol": protocol, "port": port, "targetPort": SERVER }],
        "endpoints": Stage::endpoints(&NODES),
    })
}
