//! Endpoints that are going away serve while no other is ready.

use homelab_tests::{Cluster, Place, To};
use serde_json::{Value, json};

use crate::load_balancer::assert_health;
use crate::stage::{LB_LOCAL, Stage, in_container, ports, service, with};

/// A service all of whose endpoints are terminating but `ready`.
fn leaving(name: &str, pods: &[&str], ready: &[&str], more: Value) -> Value {
    let mut endpoints: Vec<Value> =
        pods.iter().map(|pod| with(in_container(pod), json!({ "terminating": true }))).collect();
    endpoints.extend(ready.iter().map(|pod| in_container(pod)));
    service(name, &[], with(json!({ "endpoints": endpoints }), more))
}

/// "[sig-network] Services should fallback to terminating endpoints when there are no ready endpoints with
/// internalTrafficPolicy=Cluster"; one that is ready takes over.
pub(crate) fn should_fall_back_with_internal_policy_cluster(cluster: &mut Cluster, stage: &mut Stage) {
    for (ready, names) in [(&[][..], ["c2"]), (&["c3"], ["c3"])] {
        stage.have(cluster, &[leaving("web", &["c2"], ready, json!({}))]);
        for vip in cluster.cluster_ips("web") {
            for from in [stage.place("c1"), stage.place("c3"), Place::host("node2")] {
                stage.assert_answers(cluster, &from, &To::new(vip, 80, &names));
            }
        }
    }
}

/// "[sig-network] Services should fallback to local terminating endpoints when there are no ready endpoints with
/// internalTrafficPolicy=Local"; a ready one of another node is none for this node.
pub(crate) fn should_fall_back_with_internal_policy_local(cluster: &mut Cluster, stage: &mut Stage) {
    let more = json!({ "internalTrafficPolicy": "Local" });
    stage.have(cluster, &[leaving("web", &["c1"], &["c2"], more)]);
    for vip in cluster.cluster_ips("web") {
        for (from, names) in [("c1b", ["c1"]), ("c2", ["c2"])] {
            stage.assert_answers(cluster, &stage.place(from), &To::new(vip, 80, &names));
        }
        cluster.assert_fails(&stage.place("c3"), &To::new(vip, 80, &[]), "timed out");
    }
}

fn node_port(policy: &str) -> Value {
    json!({
        "type": "NodePort", "externalTrafficPolicy": policy, "ports": ports(&["TCP", "UDP"], Some(30086)),
    })
}

/// "[sig-network] Services should fallback to terminating endpoints when there are no ready endpoints with
/// externallTrafficPolicy=Cluster"
pub(crate) fn should_fall_back_with_external_policy_cluster(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &[leaving("web", &["c2"], &[], node_port("Cluster"))]);
    for node in ["node1", "node2"] {
        for address in cluster.on_lan(node) {
            let to = To::new(address, 30086, &["c2"]);
            cluster.assert_served(&Place::host("client"), &to, |_| stage.node(node));
        }
    }
}

/// "[sig-network] Services should fallback to local terminating endpoints when there are no ready endpoints with
/// externalTrafficPolicy=Local"
pub(crate) fn should_fall_back_with_external_policy_local(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &[leaving("web", &["c2"], &["c3"], node_port("Local"))]);
    let own = cluster.on_lan("client");
    for (node, names) in [("node2", ["c2"]), ("node3", ["c3"])] {
        for (address, own) in cluster.on_lan(node).into_iter().zip(own) {
            let to = To::new(address, 30086, &names);
            cluster.assert_served(&Place::host("client"), &to, |_| vec![own]);
        }
    }
    let to = To::new(cluster.on_lan("node1")[0], 30086, &[]);
    cluster.assert_fails(&Place::host("client"), &to, "timed out");
}

/// "[sig-network] Services should fail health check node port if there are only terminating endpoints": the load balancer
/// in front shall send nothing new, though what it sends is served.
pub(crate) fn should_fail_health_check_node_port(cluster: &mut Cluster, stage: &mut Stage) {
    let more = json!({
        "type": "LoadBalancer", "loadBalancerIP": LB_LOCAL, "externalTrafficPolicy": "Local",
    });
    stage.have(cluster, &[leaving("web", &[], &["c2"], more.clone())]);
    assert_health(cluster, "web", [("node1", "503", 0), ("node2", "200", 1), ("node3", "503", 0)]);
    stage.have(cluster, &[leaving("web", &["c2"], &[], more)]);
    assert_health(cluster, "web", [("node1", "503", 0), ("node2", "503", 0), ("node3", "503", 0)]);
    let port = cluster.told()[0].ports[0].node_port.expect("a port was chosen");
    let to = To::new(cluster.on_lan("node2")[0], port, &["c2"]).by(&["tcp"]);
    stage.assert_answers(cluster, &Place::host("client"), &to);
}
