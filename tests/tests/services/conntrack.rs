//! What conntrack remembers of datagrams, and what it does not know.

use std::net::IpAddr;

use homelab_tests::{Cluster, Place, Pod, To};
use serde_json::{Value, json};

use crate::stage::{LB_CLUSTER, Stage, address, in_container, ports, service, with};

/// A server that is replaced by another while a client sends to the service all the time, from one port.
pub(crate) struct Cycle {
    pub(crate) kind: &'static str,
    /// More of the service `cycle`.
    pub(crate) more: Value,
    pub(crate) client: Place,
    /// Where the first server is, and the second.
    pub(crate) nodes: [&'static str; 2],
}

/// An endpoint: a bare pod.
fn in_pod(pod: &Pod) -> Value {
    json!({ "node": pod.node, "container": pod.name })
}

/// The client begins before there is a server, and is served by each in its turn.
#[track_caller]
pub(crate) fn cycles(
    cluster: &mut Cluster,
    stage: &mut Stage,
    cycle: Cycle,
    target: impl Fn(&Cluster) -> (IpAddr, u16),
) {
    let Cycle { kind, more, client, nodes } = cycle;
    let of = |endpoints: Value| service("cycle", &[], with(more.clone(), json!({ "endpoints": endpoints })));
    stage.have(cluster, &[of(json!([]))]);
    let (address, port) = target(cluster);
    let check = To::new(address, port, &[]).check(kind).from_port(12345);
    let mut clients = cluster.clients(&client, &[check]);
    clients.until("it begins", |one| one.failed > 2);

    let first = cluster.pod(nodes[0], "server1");
    stage.have(cluster, &[of(json!([in_pod(&first)]))]);
    clients.until("the first server answers", |one| one.last == "server1");
    let second = cluster.pod(nodes[1], "server2");
    cluster.remove_pod(&first);
    stage.have(cluster, &[of(json!([in_pod(&second)]))]);
    clients.until("the second server answers", |one| one.last == "server2");
    let all = clients.end().remove(0);
    let names: Vec<&str> = all.names.keys().map(String::as_str).collect();
    assert_eq!(names, ["server1", "server2"], "{all:?}");
    cluster.remove_pod(&second);
}

fn udp(more: Value) -> Value {
    with(json!({ "ports": ports(&["UDP"], None) }), more)
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a NodePort service"
pub(crate) fn should_preserve_udp_for_a_node_port_service(cluster: &mut Cluster, stage: &mut Stage) {
    let more = json!({ "type": "NodePort", "ports": ports(&["UDP"], Some(30090)) });
    let cycle = Cycle { kind: "udp", more, client: stage.place("c1"), nodes: ["node2", "node2"] };
    cycles(cluster, stage, cycle, |cluster| (cluster.on_lan("node2")[0], 30090));
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service"
pub(crate) fn should_preserve_udp_for_a_cluster_ip_service(cluster: &mut Cluster, stage: &mut Stage) {
    for family in 0..2 {
        let client = stage.place("c1");
        let cycle = Cycle { kind: "udp", more: udp(json!({})), client, nodes: ["node2", "node3"] };
        cycles(cluster, stage, cycle, |cluster| (cluster.cluster_ips("cycle")[family], 80));
    }
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service with
/// InternalTrafficPolicy set to Local"
pub(crate) fn should_preserve_udp_with_internal_policy_local(cluster: &mut Cluster, stage: &mut Stage) {
    let more = udp(json!({ "internalTrafficPolicy": "Local" }));
    let cycle = Cycle { kind: "udp", more, client: stage.place("c1"), nodes: ["node1", "node1"] };
    cycles(cluster, stage, cycle, |cluster| (cluster.cluster_ips("cycle")[0], 80));
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and
/// client is hostNetwork"
pub(crate) fn should_preserve_udp_when_client_is_host_network(cluster: &mut Cluster, stage: &mut Stage) {
    let client = Place::host("node1");
    let cycle = Cycle { kind: "udp", more: udp(json!({})), client, nodes: ["node2", "node2"] };
    cycles(cluster, stage, cycle, |cluster| (cluster.cluster_ips("cycle")[0], 80));
}

/// "[sig-network] LoadBalancers should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on
/// different nodes", "[...] on the same nodes"
pub(crate) fn should_preserve_udp_for_a_load_balancer(cluster: &mut Cluster, stage: &mut Stage) {
    cluster.via(LB_CLUSTER, "node1");
    for nodes in [["node1", "node2"], ["node2", "node2"]] {
        let more = udp(json!({ "type": "LoadBalancer", "loadBalancerIP": LB_CLUSTER }));
        let cycle = Cycle { kind: "udp", more, client: Place::host("client"), nodes };
        cycles(cluster, stage, cycle, |_| (address(LB_CLUSTER), 80));
    }
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when initial unready endpoints get ready"
pub(crate) fn should_preserve_udp_when_unready_endpoints_get_ready(cluster: &mut Cluster, stage: &mut Stage) {
    let of = |endpoints: Value| service("cycle", &[], udp(json!({ "endpoints": endpoints })));
    stage.have(cluster, &[of(json!([]))]);
    let check = To::new(cluster.cluster_ips("cycle")[0], 80, &[]).check("udp").from_port(12345);
    let mut clients = cluster.clients(&stage.place("c1"), &[check]);
    clients.until("it begins", |one| one.failed > 2);
    let unready = with(in_container("c2"), json!({ "ready": false, "serving": false }));
    stage.have(cluster, &[of(json!([unready]))]);
    clients.go_on();
    let so_far = clients.so_far();
    assert!(so_far[0].names.is_empty(), "{so_far:?}");
    stage.have(cluster, &[of(json!([in_container("c2")]))]);
    clients.until("the server answers", |one| one.last == "c2");
}

/// "[sig-network] Conntrack should be able to cleanup conntrack entries when UDP service target port changes for a NodePort
/// service"
pub(crate) fn should_clean_up_when_udp_target_port_changes(cluster: &mut Cluster, stage: &mut Stage) {
    let of = |target: u16| {
        let port = json!({ "protocol": "UDP", "port": 80, "nodePort": 30090, "targetPort": target });
        service("cycle", &["c2"], json!({ "type": "NodePort", "ports": [port] }))
    };
    stage.have(cluster, &[of(7000)]);
    let check = To::new(cluster.on_lan("node2")[0], 30090, &[]).check("udp").from_port(12345);
    let mut clients = cluster.clients(&stage.place("c1"), &[check]);
    clients.until("the first port answers", |one| one.last == "c2");
    stage.have(cluster, &[of(7100)]);
    clients.until("the other port answers", |one| one.last == "c2:7100");
}

/// k8s#48370, #59368, #66651, #125467: a UDP client that goes on sending moves to another endpoint within one apply, and
/// one that began before there were endpoints is served once there are.
pub(crate) fn a_stale_udp_connection_ends_k8s_48370(cluster: &mut Cluster, stage: &mut Stage) {
    let single = |name: &str, pods: &[&str]| service(name, pods, json!({ "ipFamilyPolicy": "SingleStack" }));
    stage.have(cluster, &[single("dns", &["c2"]), single("late", &[])]);
    let (dns, late) = (cluster.cluster_ips("dns")[0], cluster.cluster_ips("late")[0]);
    let from = stage.place("c1b");
    let ask = |cluster: &Cluster, address: IpAddr| {
        let check = To::new(address, 80, &[]).check("udp").from_port(5353);
        cluster.probe(&from, &[check]).remove(0)
    };
    assert_eq!(ask(cluster, dns).name, "c2");
    assert_ne!(ask(cluster, late).error, "");
    stage.have(cluster, &[single("dns", &["c3"]), single("late", &["c1"])]);
    assert_eq!(cluster.cluster_ips("dns"), [dns], "an address stays with its service");
    assert_eq!(ask(cluster, dns).name, "c3");
    assert_eq!(ask(cluster, late).name, "c1");
    // Gone altogether.
    stage.have(cluster, &[single("late", &["c1"])]);
    assert_eq!(ask(cluster, dns).name, "");
}

/// "[sig-network] Conntrack proxy implementation should not be vulnerable to the invalid conntrack state bug [Privileged]":
/// a packet that conntrack does not take to be the connection's is not translated back. If the client sees it, under an
/// address that it knows nothing of, it resets the server's connection.
pub(crate) fn should_not_be_vulnerable_to_the_invalid_state_bug(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(
        cluster,
        &[service("boom", &["c1"], json!({ "type": "NodePort", "ports": ports(&["TCP"], Some(30091)) }))],
    );
    let vip = To::new(cluster.cluster_ips("boom")[0], 80, &[]);
    let at_node = To::new(cluster.on_lan("node2")[0], 30091, &[]);
    // Beside the server, itself, elsewhere, nodes themselves, and a client of the LAN through another node.
    for (from, to) in [
        (stage.place("c1b"), vip),
        (stage.place("c1"), vip),
        (stage.place("c2"), vip),
        (Place::host("node1"), vip),
        (Place::host("node3"), vip),
        (Place::host("client"), at_node),
    ] {
        let clients = cluster.clients(&from, &[to.check("held")]);
        cluster.boom(&stage.place("c1"), 20);
        clients.none_failed(&format!("packets out of the window, {}", from.name));
    }
}
