//! Services that change their type and ports, and those that are not ours.

use homelab_tests::{Cluster, Place, SERVER, To, until};
use serde_json::{Value, json};

use crate::stage::{Is, Numbers, Stage, cluster_ip, external_name, load_balancer, node_port, ports, with};

/// Whether a Service answers inside the cluster, and at a node for clients of the LAN.
#[track_caller]
fn assert_reached(cluster: &Cluster, stage: &Stage, numbers: Numbers, inside: bool, at_node: bool) {
    let names = ["c2"];
    let vip = To::new(numbers.cluster_ip, 80, &names);
    let node = To::new(cluster.on_lan("node1")[0], numbers.node_port, &names);
    let (pod, client) = (stage.place("c1"), Place::host("client"));
    if inside {
        stage.assert_answers(cluster, &pod, &vip);
    } else {
        cluster.assert_fails(&pod, &vip.by(&["tcp"]), "timed out");
    }
    if at_node {
        stage.assert_answers(cluster, &client, &node);
    } else {
        cluster.assert_fails(&client, &node.by(&["tcp"]), "refused");
    }
}

/// A Service that is one thing and then another.
#[track_caller]
fn changes(cluster: &mut Cluster, stage: &mut Stage, name: &str, steps: &[fn(Numbers) -> Value]) {
    let numbers = stage.numbers();
    stage.endpoints(name, &[Is::Ready("c2")]);
    for step in steps {
        let spec = step(numbers);
        stage.service(name, &spec);
        stage.carried_out(cluster);
        let named = spec["type"] == "ExternalName";
        assert_reached(cluster, stage, numbers, !named, spec["type"] == "NodePort");
    }
    stage.delete(name);
}

fn named(_: Numbers) -> Value {
    external_name()
}

/// "[sig-network] Services should be able to change the type from ExternalName to ClusterIP"
pub(crate) fn should_be_able_to_change_from_external_name_to_cluster_ip(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    changes(cluster, stage, "name-ip", &[named, cluster_ip]);
}

/// "[sig-network] Services should be able to change the type from ExternalName to NodePort"
pub(crate) fn should_be_able_to_change_from_external_name_to_node_port(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    changes(cluster, stage, "name-port", &[named, node_port]);
}

/// "[sig-network] Services should be able to change the type from ClusterIP to ExternalName"
pub(crate) fn should_be_able_to_change_from_cluster_ip_to_external_name(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    changes(cluster, stage, "ip-name", &[cluster_ip, named]);
}

/// "[sig-network] Services should be able to change the type from NodePort to ExternalName"
pub(crate) fn should_be_able_to_change_from_node_port_to_external_name(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    changes(cluster, stage, "port-name", &[node_port, cluster_ip, node_port, named]);
}

/// "[sig-network] Services should be updated after adding or deleting ports"
pub(crate) fn should_be_updated_after_adding_or_deleting_ports(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.endpoints("ported", &[Is::Ready("c2")]);
    let port = |port: u16| json!({ "name": "tcp", "protocol": "TCP", "port": port, "targetPort": SERVER });
    let other = json!({ "name": "udp", "protocol": "UDP", "port": 81, "targetPort": SERVER });
    for (all, tcp, udp) in [
        (json!([port(80)]), 80, false),
        (json!([port(80), other]), 80, true),
        (json!([port(82), other]), 82, true),
        (json!([port(80)]), 80, false),
    ] {
        stage.service("ported", &with(cluster_ip(numbers), json!({ "ports": all })));
        stage.carried_out(cluster);
        let from = stage.place("c1");
        let at = |port| To::new(numbers.cluster_ip, port, &["c2"]);
        stage.assert_answers(cluster, &from, &at(tcp).by(&["tcp"]));
        cluster.assert_fails(&from, &at(162 - tcp).by(&["tcp"]), "refused");
        if udp {
            stage.assert_answers(cluster, &from, &at(81).by(&["udp"]));
        } else {
            cluster.assert_fails(&from, &at(81).by(&["udp"]), "refused");
        }
    }
    stage.delete("ported");
}

/// "[sig-network] LoadBalancers should be able to change the type and ports of a TCP service", "[...] of a UDP service":
/// ClusterIP, NodePort, LoadBalancer, another port, ClusterIP; the address is given and taken back.
pub(crate) fn should_be_able_to_change_the_type_and_ports(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.endpoints("changes", &[Is::Ready("c2")]);
    stage.service("changes", &cluster_ip(numbers));
    stage.service("changes", &node_port(numbers));
    stage.carried_out(cluster);
    assert_reached(cluster, stage, numbers, true, true);
    stage.service("changes", &load_balancer(numbers));
    let (address, _) = stage.announced(cluster, "changes");
    let client = Place::host("client");
    stage.assert_answers(cluster, &client, &To::new(address, 80, &["c2"]));
    assert_reached(cluster, stage, numbers, true, true);
    let mut other = ports(Some(numbers.node_port));
    for port in other.as_array_mut().into_iter().flatten() {
        port["port"] = json!(82);
    }
    stage.service("changes", &with(load_balancer(numbers), json!({ "ports": other })));
    stage.carried_out(cluster);
    assert_eq!(stage.ingress("changes"), Some(address), "the address stays");
    stage.assert_answers(cluster, &client, &To::new(address, 82, &["c2"]));
    stage.service("changes", &cluster_ip(numbers));
    stage.withdrawn(cluster, address);
    assert_reached(cluster, stage, numbers, true, false);
    assert_eq!(stage.ingress("changes"), None);
    stage.delete("changes");
}

/// "[sig-network] Services should implement service.kubernetes.io/service-proxy-name": one of another proxy is left alone,
/// and one that is given over is given up.
pub(crate) fn should_implement_service_proxy_name(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.endpoints("proxied", &[Is::Ready("c2")]);
    for (labels, served) in [
        (json!({ "service.kubernetes.io/service-proxy-name": "other" }), false),
        (json!({}), true),
        (json!({ "service.kubernetes.io/service-proxy-name": "other" }), false),
    ] {
        let metadata = json!({ "name": "proxied", "labels": labels });
        let object = json!({ "metadata": metadata, "spec": node_port(numbers) });
        stage.kube.put(homelab_tests::SERVICES, &object);
        stage.carried_out(cluster);
        assert_reached(cluster, stage, numbers, served, served);
    }
    stage.delete("proxied");
}

/// "[sig-network] Services should implement service.kubernetes.io/headless": no proxy has to do with it, and load-balancer
/// addresses of another class are somebody else's.
pub(crate) fn should_leave_headless_and_other_classes_alone(cluster: &mut Cluster, stage: &mut Stage) {
    let rules = |cluster: &Cluster| {
        cluster.sh("node1", "nft list table inet homelab-proxy | grep -c elements || true")
    };
    stage.carried_out(cluster);
    let before = rules(cluster);
    let headless = json!({
        "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "ports": ports(None),
    });
    stage.service("headless", &headless);
    stage.endpoints("headless", &[Is::Ready("c2")]);
    let numbers = stage.numbers();
    let class = json!({ "loadBalancerClass": "example.org/other" });
    stage.service("classy", &with(load_balancer(numbers), class));
    stage.endpoints("classy", &[Is::Ready("c2")]);
    // One that comes later has its address, so that those had their turn.
    let later = stage.numbers();
    stage.service("later", &load_balancer(later));
    stage.endpoints("later", &[Is::Ready("c2")]);
    stage.announced(cluster, "later");
    assert_eq!(stage.ingress("classy"), None);
    // The other things about it are ours.
    assert_reached(cluster, stage, numbers, true, true);
    for name in ["headless", "classy", "later"] {
        stage.delete(name);
    }
    // The one with an address goes some time after it is deleted.
    until("nothing is left", || rules(cluster) == before);
}
