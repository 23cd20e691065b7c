//! Addresses on the LAN. Nothing announces them here: the client has a route.

use homelab_tests::{Cluster, Place, To};
use serde_json::{Value, json};

use crate::stage::{EXTERNAL, LB_CLUSTER, LB_LOCAL, LB_RANGED, Stage, address, service, standing};

/// "[sig-network] LoadBalancers ExternalTrafficPolicy: Cluster [...] should work for type=LoadBalancer"
pub(crate) fn should_work_for_type_load_balancer(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for node in ["node1", "node3"] {
        cluster.via(LB_CLUSTER, node);
        let to = To::new(address(LB_CLUSTER), 80, &["c3"]);
        cluster.assert_served(&Place::host("client"), &to, |_| stage.node(node));
    }
}

/// "[sig-network] LoadBalancers ExternalTrafficPolicy: Local [...] should only target nodes with endpoints": there the
/// client's address stays.
pub(crate) fn should_only_target_nodes_with_endpoints(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let (client, [own, _]) = (Place::host("client"), cluster.on_lan("client"));
    let to = To::new(address(LB_LOCAL), 80, &["c2"]);
    cluster.via(LB_LOCAL, "node2");
    cluster.assert_served(&client, &to, |_| vec![own]);
    for node in ["node1", "node3"] {
        cluster.via(LB_LOCAL, node);
        cluster.assert_fails(&client, &to, "timed out");
    }
}

/// "[sig-network] LoadBalancers ExternalTrafficPolicy: Local [...] should work from pods"; metallb#257, #572, #825: also
/// on a node without endpoints.
pub(crate) fn should_work_from_pods(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let vip = address(LB_LOCAL);
    let to = To::new(vip, 80, &["c2"]);
    let sources = [stage.node("node1"), stage.own("c1b", vip)].concat();
    cluster.assert_served(&stage.place("c1b"), &to, |_| sources.clone());
    cluster.assert_served(&Place::host("node3"), &to, |_| stage.node("node3"));
}

/// Asks by HTTP; gives status, weight and body.
#[track_caller]
fn get(cluster: &Cluster, host: &str, url: &str) -> String {
    let ask = "import sys, urllib.request, urllib.error\n\
               try: answer = urllib.request.urlopen(sys.argv[1], timeout=3)\n\
               except urllib.error.HTTPError as error: answer = error\n\
               print(answer.status, answer.headers.get('X-Load-Balancing-Endpoint-Weight'), answer.read().decode())";
    cluster.sh(host, &format!("python3 -c \"{ask}\" {url}"))
}

/// What every node says of a service's local endpoints to a load balancer in front.
#[track_caller]
pub(crate) fn assert_health(cluster: &Cluster, name: &str, expected: [(&str, &str, u32); 3]) {
    let service = cluster.told().into_iter().find(|s| s.name == name).expect("the service");
    let port = service.health_check_node_port.expect("a port was chosen");
    for (node, status, endpoints) in expected {
        let address = cluster.lab.address(node).expect("address");
        let answer = get(cluster, "client", &format!("http://{address}:{port}/"));
        assert!(answer.starts_with(&format!("{status} {endpoints} ")), "{node}: {answer}");
        let body: Value = serde_json::from_str(answer.splitn(3, ' ').nth(2).expect("a body")).expect("JSON");
        assert_eq!((&body["localEndpoints"], &body["service"]["name"]), (&json!(endpoints), &json!(name)));
    }
}

/// A load balancer in front asks every node whether it has endpoints, and the agent how it fares.
pub(crate) fn health_check_node_port(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    assert_health(cluster, "lb-local", [("node1", "503", 0), ("node2", "200", 1), ("node3", "503", 0)]);
    for node in cluster.nodes() {
        assert!(get(cluster, &node, "http://127.0.0.1:10256/healthz").starts_with("200 "), "{node}");
        let metrics = get(cluster, &node, "http://127.0.0.1:10256/metrics");
        assert!(metrics.contains("\nhomelab_services "), "{node}");
    }
}

/// "[sig-network] Services should be possible to connect to a service via ExternalIP when the external IP is not assigned
/// to a node": pods and nodes too.
pub(crate) fn should_be_possible_to_connect_via_external_ip(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let to = To::new(address(EXTERNAL), 80, &["c3"]);
    cluster.via(EXTERNAL, "node2");
    cluster.assert_served(&Place::host("client"), &to, |_| stage.node("node2"));
    cluster.assert_served(&stage.place("c1"), &to, |_| stage.node("node1"));
    cluster.assert_served(&Place::host("node2"), &to, |_| stage.node("node2"));
}

/// "[sig-network] LoadBalancers should only allow access from service loadbalancer source ranges": pods too, and node
/// ports are open to all.
pub(crate) fn should_only_allow_access_from_source_ranges(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let client = Place::host("client");
    let to = To::new(address(LB_RANGED), 80, &["c2"]);
    cluster.via(LB_RANGED, "node2");
    // The client is outside of the ranges.
    cluster.assert_fails(&client, &to, "timed out");
    let own = |stage: &Stage, name: &str| stage.pod(name).addresses.iter().find(|a| a.is_ipv4()).copied();
    let mut node_port = None;
    for (allowed, other) in [("c1", "c1b"), ("c1b", "c1")] {
        let range = format!("{}/32", own(stage, allowed).expect("IPv4"));
        let more = json!({
            "type": "LoadBalancer", "loadBalancerIP": LB_RANGED, "loadBalancerSourceRanges": [range],
            "ipFamilyPolicy": "SingleStack",
        });
        stage.have(cluster, &[service("ranged", &["c2"], more)]);
        stage.assert_answers(cluster, &stage.place(allowed), &to);
        for from in [stage.place(other), client.clone()] {
            cluster.assert_fails(&from, &to, "timed out");
        }
        node_port = cluster.told()[0].ports[0].node_port;
    }
    let [address, _] = cluster.on_lan("node2");
    let port = node_port.expect("a port was chosen");
    stage.assert_answers(cluster, &client, &To::new(address, port, &["c2"]).by(&["tcp"]));
    let open =
        json!({ "type": "LoadBalancer", "loadBalancerIP": LB_RANGED, "ipFamilyPolicy": "SingleStack" });
    stage.have(cluster, &[service("ranged", &["c2"], open)]);
    for from in [stage.place("c1"), stage.place("c1b"), client] {
        stage.assert_answers(cluster, &from, &to);
    }
}

/// "[sig-network] LoadBalancers ExternalTrafficPolicy: Local [...] should target all nodes with endpoints", "[sig-network]
/// Services should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes"
pub(crate) fn should_handle_updates_to_external_policy(cluster: &mut Cluster, stage: &mut Stage) {
    let of = |policy: &str| {
        let more = json!({
            "type": "LoadBalancer", "loadBalancerIP": LB_LOCAL, "externalTrafficPolicy": policy,
        });
        service("lb", &["c1", "c2"], more)
    };
    let (client, [own, _]) = (Place::host("client"), cluster.on_lan("client"));
    stage.have(cluster, &[of("Local")]);
    let node_port = cluster.told()[0].ports[0].node_port.expect("a port was chosen");
    for (node, name) in [("node1", "c1"), ("node2", "c2")] {
        cluster.via(LB_LOCAL, node);
        let to = To::new(address(LB_LOCAL), 80, std::slice::from_ref(&name));
        cluster.assert_served(&client, &to, |_| vec![own]);
        let [at_node, _] = cluster.on_lan(node);
        cluster.assert_served(&client, &To { address: at_node, port: node_port, ..to }.by(&["tcp"]), |_| {
            vec![own]
        });
    }
    let [at_node3, _] = cluster.on_lan("node3");
    let to = To::new(at_node3, node_port, &["c1", "c2"]).by(&["tcp"]);
    cluster.assert_fails(&client, &to, "timed out");
    assert_health(cluster, "lb", [("node1", "200", 1), ("node2", "200", 1), ("node3", "503", 0)]);
    let health = cluster.told()[0].health_check_node_port.expect("a port was chosen");

    stage.have(cluster, &[of("Cluster")]);
    cluster.via(LB_LOCAL, "node3");
    cluster.assert_served(&client, &To::new(address(LB_LOCAL), 80, to.names), |_| stage.node("node3"));
    cluster.assert_served(&client, &to, |_| stage.node("node3"));
    assert_eq!(cluster.told()[0].health_check_node_port, None);
    let nobody = To::new(cluster.on_lan("node2")[0], health, &[]).by(&["tcp"]);
    cluster.assert_fails(&client, &nobody, "refused");
}
