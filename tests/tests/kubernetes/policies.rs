//! Node ports, affinity, traffic policies, endpoints that are going away, and what conntrack remembers.

use std::net::IpAddr;

use homelab_tests::{Cluster, Place, To};
use serde_json::{Value, json};

use crate::stage::{Is, NODES, Numbers, Stage, cluster_ip, load_balancer, node_port, with};

/// "[sig-network] Services should be able to create a functioning NodePort service"
pub(crate) fn should_be_able_to_create_a_functioning_node_port_service(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    let numbers = stage.numbers();
    stage.service("ports", &node_port(numbers));
    stage.endpoints("ports", &[Is::Ready("c1"), Is::Ready("c2")]);
    stage.carried_out(cluster);
    for node in ["node1", "node3"] {
        let to = To::new(cluster.on_lan(node)[0], numbers.node_port, &["c1", "c2"]);
        for from in [Place::host("client"), stage.place("c3"), Place::host("node2")] {
            stage.assert_answers(cluster, &from, &to);
        }
    }
    stage.delete("ports");
}

/// "[sig-network] Services should have session affinity work for service with type clusterIP", "[...] for NodePort service",
/// "[...] should be able to switch session affinity for service with type clusterIP", "[...] for NodePort service"
pub(crate) fn should_be_able_to_switch_session_affinity(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    let all = ["c1", "c2", "c3"];
    stage.endpoints("sticky", &all.map(Is::Ready));
    let of = |word: &str| with(node_port(numbers), affinity(word));
    let vip = To::new(numbers.cluster_ip, 80, &all).by(&["tcp"]);
    let at_node = To::new(cluster.on_lan("node3")[0], numbers.node_port, &all).by(&["tcp"]);
    for word in ["ClientIP", "None", "ClientIP"] {
        stage.service("sticky", &of(word));
        stage.carried_out(cluster);
        for (from, to) in [(stage.place("c1b"), vip), (Place::host("client"), at_node)] {
            assert_affinity(cluster, stage, &from, &to, word == "ClientIP");
        }
    }
    stage.delete("sticky");
}

/// The keys of a Service's affinity.
pub(crate) fn affinity(word: &str) -> Value {
    let config = if word == "None" { Value::Null } else { json!({ "clientIP": { "timeoutSeconds": 600 } }) };
    json!({ "sessionAffinity": word, "sessionAffinityConfig": config })
}

/// All connections from one client meet one of the endpoints, or all of these.
#[track_caller]
pub(crate) fn assert_affinity(cluster: &Cluster, stage: &Stage, from: &Place, to: &To<'_>, one: bool) {
    if !one {
        return stage.assert_answers(cluster, from, to);
    }
    // Connections that begin at the same moment may each find nothing remembered.
    let first = cluster.ask_once(from, "tcp", to);
    for answer in cluster.ask(from, "tcp", to) {
        assert_eq!((answer.name.as_str(), answer.error.as_str()), (first.as_str(), ""), "{}", from.name);
    }
}

/// "[sig-network] Services should fallback to terminating endpoints when there are no ready endpoints with
/// internalTrafficPolicy=Cluster", "[...] with externallTrafficPolicy=Cluster"; one that is ready takes over.
pub(crate) fn should_fall_back_to_terminating_endpoints(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.service("leaving", &node_port(numbers));
    let steps: [(&[Is<'_>], [&str; 1]); 2] =
        [(&[Is::Leaving("c2")], ["c2"]), (&[Is::Leaving("c2"), Is::Ready("c3")], ["c3"])];
    for (endpoints, names) in steps {
        stage.endpoints("leaving", endpoints);
        stage.carried_out(cluster);
        stage.assert_answers(cluster, &stage.place("c1"), &To::new(numbers.cluster_ip, 80, &names));
        let at_node = To::new(cluster.on_lan("node1")[0], numbers.node_port, &names);
        stage.assert_answers(cluster, &Place::host("client"), &at_node);
    }
    stage.delete("leaving");
}

/// "[sig-network] Services should fallback to local terminating endpoints when there are no ready endpoints with
/// internalTrafficPolicy=Local", "[...] with externalTrafficPolicy=Local"
pub(crate) fn should_fall_back_to_local_terminating_endpoints(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    let local = json!({ "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local" });
    stage.service("leaving-here", &with(node_port(numbers), local));
    stage.endpoints("leaving-here", &[Is::Leaving("c1"), Is::Ready("c2")]);
    stage.carried_out(cluster);
    let client = Place::host("client");
    for (from, node, names) in [("c1b", "node1", ["c1"]), ("c2", "node2", ["c2"])] {
        stage.assert_answers(cluster, &stage.place(from), &To::new(numbers.cluster_ip, 80, &names));
        let to = To::new(cluster.on_lan(node)[0], numbers.node_port, &names);
        cluster.assert_served(&client, &to, |_| vec![cluster.on_lan("client")[0]]);
    }
    cluster.assert_fails(&stage.place("c3"), &To::new(numbers.cluster_ip, 80, &[]), "timed out");
    let to = To::new(cluster.on_lan("node3")[0], numbers.node_port, &[]);
    cluster.assert_fails(&client, &to, "timed out");
    stage.delete("leaving-here");
}

/// "[sig-network] Services should respect internalTrafficPolicy=Local Pod to Pod", "[...] Pod (hostNetwork: true) to Pod"
pub(crate) fn should_respect_internal_policy_local(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.service("local", &with(cluster_ip(numbers), json!({ "internalTrafficPolicy": "Local" })));
    stage.endpoints("local", &[Is::Ready("c1"), Is::Ready("c2")]);
    stage.carried_out(cluster);
    let to = To::new(numbers.cluster_ip, 80, &["c1"]);
    for from in [stage.place("c1b"), Place::host("node1")] {
        stage.assert_answers(cluster, &from, &to);
    }
    for from in [stage.place("c3"), Place::host("node3")] {
        cluster.assert_fails(&from, &To::new(numbers.cluster_ip, 80, &[]), "timed out");
    }
    stage.delete("local");
}

/// "[sig-network] LoadBalancers ExternalTrafficPolicy: Local [...] should only target nodes with endpoints", "[...] should
/// work for type=LoadBalancer", "[sig-network] Services should implement NodePort and HealthCheckNodePort correctly when
/// ExternalTrafficPolicy changes", "[...] should fail health check node port if there are only terminating endpoints"
pub(crate) fn should_only_target_nodes_with_endpoints(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    let health = numbers.node_port + 1000;
    let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": health });
    stage.service("lb-local", &with(load_balancer(numbers), local));
    stage.endpoints("lb-local", &[Is::Ready("c2")]);
    let address = stage.allocated("lb-local");
    cluster.lb_until(&NODES, "the node with the endpoint", |owners| {
        owners.get(&address).is_some_and(|owner| owner == "node2")
    });
    stage.carried_out(cluster);
    let (client, own) = (Place::host("client"), cluster.on_lan("client")[0]);
    cluster.assert_served(&client, &To::new(address, 80, &["c2"]), |_| vec![own]);
    assert_health(cluster, health, [503, 200, 503]);
    // Pods reach it also where there is no endpoint.
    stage.assert_answers(cluster, &stage.place("c3"), &To::new(address, 80, &["c2"]));
    stage.endpoints("lb-local", &[Is::Ready("c3")]);
    cluster.lb_until(&NODES, "it follows the endpoint", |owners| {
        owners.get(&address).is_some_and(|owner| owner == "node3")
    });
    stage.carried_out(cluster);
    cluster.assert_served(&client, &To::new(address, 80, &["c3"]), |_| vec![own]);
    assert_health(cluster, health, [503, 503, 200]);
    stage.endpoints("lb-local", &[Is::Leaving("c3")]);
    stage.carried_out(cluster);
    assert_health(cluster, health, [503, 503, 503]);
    // Cluster, and back.
    let policy = json!({ "externalTrafficPolicy": "Cluster" });
    stage.service("lb-local", &with(load_balancer(numbers), policy));
    stage.endpoints("lb-local", &[Is::Ready("c3")]);
    stage.announced(cluster, "lb-local");
    stage.assert_answers(cluster, &client, &To::new(address, 80, &["c3"]));
    let at_node = To::new(cluster.on_lan("node1")[0], numbers.node_port, &["c3"]);
    stage.assert_answers(cluster, &client, &at_node);
    let nobody = To::new(cluster.on_lan("node3")[0], health, &[]).by(&["tcp"]);
    cluster.assert_fails(&client, &nobody, "refused");
    stage.delete("lb-local");
}

/// What each node says of its local endpoints to a load balancer in front.
#[track_caller]
fn assert_health(cluster: &Cluster, port: u16, expected: [u16; 3]) {
    let said = NODES.map(|node| {
        let [address, _] = cluster.on_lan(node);
        let get = format!("curl --silent --max-time 10 --output /dev/null --write-out '%{{http_code}}' http://{address}:{port}/");
        cluster.sh("client", &get).parse::<u16>().unwrap_or_default()
    });
    assert_eq!(said, expected);
}

/// A server that is replaced by another while a client sends to the service all the time, from one port.
#[track_caller]
pub(crate) fn cycles(cluster: &mut Cluster, stage: &mut Stage, name: &str, from: &Place, to: (IpAddr, u16)) {
    stage.carried_out(cluster);
    let check = To::new(to.0, to.1, &[]).check("udp").from_port(12345);
    let mut clients = cluster.clients(from, &[check]);
    clients.until("it begins", |one| one.failed > 2);
    for server in ["c2", "c3", "c1"] {
        stage.endpoints(name, &[Is::Ready(server)]);
        clients.until(&format!("{server} answers"), |one| one.last == server);
    }
    stage.endpoints(name, &[]);
    let before = clients.so_far()[0].failed;
    clients.until("nobody answers", |one| one.failed > before + 3);
    clients.end();
    stage.delete(name);
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service"
pub(crate) fn should_preserve_udp_for_a_cluster_ip_service(cluster: &mut Cluster, stage: &mut Stage) {
    let Numbers { cluster_ip: vip, .. } = udp(stage, "udp-ip", cluster_ip);
    let from = stage.place("c1b");
    cycles(cluster, stage, "udp-ip", &from, (vip, 80));
}

/// "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a NodePort service"
pub(crate) fn should_preserve_udp_for_a_node_port_service(cluster: &mut Cluster, stage: &mut Stage) {
    let Numbers { node_port: port, .. } = udp(stage, "udp-port", node_port);
    let address = cluster.on_lan("node2")[0];
    cycles(cluster, stage, "udp-port", &Place::host("client"), (address, port));
}

fn udp(stage: &mut Stage, name: &str, spec: fn(Numbers) -> Value) -> Numbers {
    let numbers = stage.numbers();
    stage.service(name, &spec(numbers));
    stage.endpoints(name, &[]);
    numbers
}
