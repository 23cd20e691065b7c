//! Services that come, go, and change their type and ports.

use homelab_tests::{Cluster, Place, SERVER, To};
use serde_json::{Value, json};

use crate::stage::{LB_CLUSTER, Stage, address, ports, service};

/// "[sig-network] Services should be updated after adding or deleting ports"
pub(crate) fn should_be_updated_after_adding_or_deleting_ports(cluster: &mut Cluster, stage: &mut Stage) {
    let port = |name, port, target: u16| json!({ "name": name, "port": port, "targetPort": target });
    let (one, other) = (port("one", 80, SERVER), port("other", 81, 7100));
    let steps = [
        (json!([one]), Some("c2"), None),
        (json!([one, other]), Some("c2"), Some("c2:7100")),
        (json!([other]), None, Some("c2:7100")),
    ];
    for (ports, at_80, at_81) in steps {
        stage.have(cluster, &[service("web", &["c2"], json!({ "ports": ports }))]);
        for vip in cluster.cluster_ips("web") {
            for (port, name) in [(80, at_80), (81, at_81)] {
                let from = stage.place("c1");
                match name {
                    Some(name) => {
                        stage.assert_answers(cluster, &from, &To::new(vip, port, &[name]).by(&["tcp"]));
                    }
                    None => cluster.assert_fails(&from, &To::new(vip, port, &[]).by(&["tcp"]), "refused"),
                }
            }
        }
    }
}

/// "[sig-network] Services should be able to up and down services", "[...] should work after the service has been
/// recreated"
pub(crate) fn should_be_able_to_up_and_down_services(cluster: &mut Cluster, stage: &mut Stage) {
    let of = |name: &str, pod| service(name, &[pod], json!({}));
    let from = stage.place("c1");
    stage.have(cluster, &[of("up1", "c2"), of("up2", "c3")]);
    let (first, second) = (cluster.cluster_ips("up1"), cluster.cluster_ips("up2"));
    let clients = cluster.clients(&from, &[To::new(second[0], 80, &[]).check("tcp")]);
    for vip in &first {
        stage.assert_answers(cluster, &from, &To::new(*vip, 80, &["c2"]));
    }
    stage.have(cluster, &[of("up2", "c3")]);
    for vip in &first {
        cluster.assert_fails(&from, &To::new(*vip, 80, &[]), "timed out");
    }
    stage.have(cluster, &[of("up1", "c3"), of("up2", "c3"), of("up3", "c2")]);
    for (name, pod) in [("up1", "c3"), ("up3", "c2")] {
        for vip in cluster.cluster_ips(name) {
            stage.assert_answers(cluster, &from, &To::new(vip, 80, &[pod]));
        }
    }
    assert_eq!(cluster.cluster_ips("up2"), second, "an address stays with its service");
    clients.none_failed("others come and go");
}

/// "[sig-network] Services should be able to update service type to NodePort listening on same port number but different
/// protocols"
pub(crate) fn should_be_able_to_update_to_node_port_on_same_port_but_different_protocols(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    stage.have(cluster, &[service("web", &["c2"], json!({ "ports": ports(&["TCP"], None) }))]);
    let vips = cluster.cluster_ips("web");
    stage.assert_answers(cluster, &stage.place("c1"), &To::new(vips[0], 80, &["c2"]).by(&["tcp"]));
    let more = json!({ "type": "NodePort", "ports": ports(&["TCP", "UDP"], None) });
    stage.have(cluster, &[service("web", &["c2"], more)]);
    assert_eq!(cluster.cluster_ips("web"), vips, "an address stays with its service");
    let chosen: Vec<u16> = cluster.told()[0].ports.iter().filter_map(|port| port.node_port).collect();
    assert!(chosen.len() == 2 && chosen[0] == chosen[1], "{chosen:?}");
    for address in [cluster.on_lan("node1"), cluster.on_lan("node3")].concat() {
        stage.assert_answers(cluster, &Place::host("client"), &To::new(address, chosen[0], &["c2"]));
    }
    for vip in vips {
        stage.assert_answers(cluster, &stage.place("c1"), &To::new(vip, 80, &["c2"]));
    }
}

/// "[sig-network] LoadBalancers should be able to change the type and ports of a TCP service", "[...] of a UDP service":
/// ClusterIP, NodePort, another node port, LoadBalancer, another port, ClusterIP.
pub(crate) fn should_be_able_to_change_the_type_and_ports(cluster: &mut Cluster, stage: &mut Stage) {
    let of = |r#type: &str, node_port, port: u16| {
        let mut ports = ports(&["TCP", "UDP"], node_port);
        ports.as_array_mut().into_iter().flatten().for_each(|p| p["port"] = json!(port));
        let lb = json!({ "type": r#type, "ports": ports });
        let mut service = service("web", &["c2"], lb);
        if r#type == "LoadBalancer" {
            service["loadBalancerIP"] = json!(LB_CLUSTER);
        }
        service
    };
    let client = Place::host("client");
    let [node1, _] = cluster.on_lan("node1");
    let at_node = |port| To::new(node1, port, &["c2"]);
    let on_lan = |port| To::new(address(LB_CLUSTER), port, &["c2"]);
    cluster.via(LB_CLUSTER, "node1");

    stage.have(cluster, &[of("ClusterIP", None, 80)]);
    let vips = cluster.cluster_ips("web");
    stage.have(cluster, &[of("NodePort", Some(30087), 80)]);
    stage.assert_answers(cluster, &client, &at_node(30087));
    stage.have(cluster, &[of("NodePort", Some(30088), 80)]);
    stage.assert_answers(cluster, &client, &at_node(30088));
    cluster.assert_fails(&client, &at_node(30087), "refused");
    stage.have(cluster, &[of("LoadBalancer", Some(30088), 80)]);
    stage.assert_answers(cluster, &client, &at_node(30088));
    stage.assert_answers(cluster, &client, &on_lan(80));
    stage.have(cluster, &[of("LoadBalancer", Some(30088), 82)]);
    stage.assert_answers(cluster, &client, &on_lan(82));
    stage.assert_answers(cluster, &client, &at_node(30088));
    stage.have(cluster, &[of("ClusterIP", None, 82)]);
    cluster.assert_fails(&client, &at_node(30088), "refused");
    assert_eq!(cluster.cluster_ips("web"), vips, "an address stays with its service");
    for vip in vips {
        stage.assert_answers(cluster, &stage.place("c1"), &To::new(vip, 82, &["c2"]));
        cluster.assert_fails(&stage.place("c1"), &To::new(vip, 80, &[]), "refused");
    }
}

/// The objects of a service of Kubernetes with this `spec` and an endpoint.
fn objects(stage: &Stage, spec: Value) -> [Value; 2] {
    let pod = stage.pod("c2");
    let address = pod.addresses.iter().find(|a| a.is_ipv4()).expect("IPv4").to_string();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "named-1", "labels": { "kubernetes.io/service-name": "named" } },
        "ports": [{ "name": "http", "port": SERVER }],
        "endpoints": [{ "addresses": [address], "nodeName": pod.node }],
    });
    [json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "named" }, "spec": spec }), slice]
}

/// "[sig-network] Services should be able to change the type from ExternalName to ClusterIP", "[...] from ExternalName to
/// NodePort", "[...] from ClusterIP to ExternalName", "[...] from NodePort to ExternalName": a name is no address, the
/// service is left out with a reason, and what it was before is gone.
pub(crate) fn should_be_able_to_change_from_and_to_external_name(cluster: &mut Cluster, stage: &mut Stage) {
    let vip = address("10.96.7.8");
    let [node1, _] = cluster.on_lan("node1");
    let (in_cluster, at_node) = (To::new(vip, 80, &["c2"]), To::new(node1, 30089, &["c2"]));
    let (in_cluster, at_node) = (in_cluster.by(&["tcp"]), at_node.by(&["tcp"]));
    let (pod, client) = (stage.place("c1"), Place::host("client"));
    let named = json!({ "type": "ExternalName", "externalName": "example.org" });
    let ports = json!([{ "name": "http", "port": 80 }]);
    let cluster_ip = json!({ "type": "ClusterIP", "clusterIP": vip, "ports": ports });
    let ports = json!([{ "name": "http", "port": 80, "nodePort": 30089 }]);
    let node_port = json!({ "type": "NodePort", "clusterIP": vip, "ports": ports });
    for served in [cluster_ip, node_port] {
        let said = stage.have_manifest(cluster, &objects(stage, named.clone()));
        assert!(said.contains("ExternalName"), "{said}");
        assert!(cluster.told().is_empty());
        cluster.assert_fails(&pod, &in_cluster, "timed out");
        cluster.assert_fails(&client, &at_node, "refused");

        let with_port = served["type"] == "NodePort";
        let said = stage.have_manifest(cluster, &objects(stage, served));
        assert!(!said.contains("ExternalName"), "{said}");
        stage.assert_answers(cluster, &pod, &in_cluster);
        if with_port {
            stage.assert_answers(cluster, &client, &at_node);
        }
    }
    stage.have_manifest(cluster, &objects(stage, named));
    cluster.assert_fails(&pod, &in_cluster, "timed out");
    cluster.assert_fails(&client, &at_node, "refused");
}

/// In `homelab.yaml` they are mistakes, and nothing is changed. In a manifest they stop nobody: `sources`, `types`.
pub(crate) fn external_name_and_headless_are_refused_with_a_reason(cluster: &mut Cluster, stage: &mut Stage) {
    let web = service("web", &["c2"], json!({}));
    stage.have(cluster, std::slice::from_ref(&web));
    let told = cluster.told();
    for (more, reason) in [
        (json!({ "type": "ExternalName" }), "only a DNS alias"),
        (
            json!({ "clusterIP": "None", "ipFamilyPolicy": "SingleStack" }),
            "a headless service (`clusterIP: None`) has no address",
        ),
    ] {
        cluster.file.set("services", json!([web, service("other", &["c2"], more)]));
        let output = cluster.homelab(&["apply", "--yes"]);
        assert!(output.code == 1 && output.stderr.contains(reason), "{output:?}");
    }
    assert_eq!(cluster.told(), told);
}
