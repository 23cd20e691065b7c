//! Cluster addresses.

use homelab_tests::{Cluster, Place, To};
use serde_json::json;

use crate::stage::{Stage, address, service, standing};

/// "[sig-network] Services should preserve source pod IP for traffic thru service cluster IP", "[...] should serve a basic
/// endpoint from pods": pods of the same and of other nodes, by both families, under their own addresses; but not to
/// themselves.
pub(crate) fn should_preserve_source_pod_ip(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("web") {
        let to = To::new(vip, 80, &["c1", "c2", "c3"]);
        for from in ["c1", "c1b", "c2"] {
            cluster.assert_served(&stage.place(from), &to, |answering| match answering == from {
                true => stage.node(&stage.pod(from).node),
                false => stage.own(from, vip),
            });
        }
        cluster.assert_fails(&stage.place("c1"), &To { port: 81, ..to }, "refused");
    }
    cluster.assert_converged();
}

/// "[sig-network] Services should allow pods to hairpin back to themselves through services"
pub(crate) fn should_allow_pods_to_hairpin(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("itself") {
        let to = To::new(vip, 80, &["c1"]);
        cluster.assert_served(&stage.place("c1"), &to, |_| stage.node("node1"));
        cluster.assert_served(&stage.place("c1b"), &to, |_| stage.own("c1b", vip));
    }
}

/// A node has its tunnel's or bridge's address towards pods.
pub(crate) fn nodes_are_clients_too(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("web") {
        for node in ["node1", "node3"] {
            let to = To::new(vip, 80, &["c1", "c2", "c3"]);
            cluster.assert_served(&Place::host(node), &to, |_| stage.node(node));
        }
    }
}

/// "[sig-network] Services should serve multiport endpoints from pods"
pub(crate) fn should_serve_multiport_endpoints(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("many") {
        let from = stage.place("c1");
        for (port, names) in [(80, ["c2", "c3"]), (81, ["c2:7100", "c3:7100"])] {
            cluster.assert_served(&from, &To::new(vip, port, &names).by(&["tcp"]), |_| stage.own("c1", vip));
        }
        cluster.assert_fails(&from, &To::new(vip, 81, &[]).by(&["udp"]), "refused");
    }
}

/// "[sig-network] Services should serve endpoints on same port and different protocols": each protocol has its own
/// endpoints' port.
pub(crate) fn should_serve_endpoints_on_same_port_and_different_protocols(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("different") {
        for (kind, name) in [(&["tcp"], "c2"), (&["udp"], "c2:7100")] {
            let to = To::new(vip, 80, std::slice::from_ref(&name)).by(kind);
            cluster.assert_served(&stage.place("c1"), &to, |_| stage.own("c1", vip));
        }
    }
    for vip in cluster.cluster_ips("three") {
        let to = To::new(vip, 80, &["c1", "c3"]).by(&["tcp", "udp", "sctp"]);
        cluster.assert_served(&stage.place("c2"), &to, |_| stage.own("c2", vip));
    }
}

/// "[sig-network] Services should be rejected when no endpoints exist"
pub(crate) fn should_be_rejected_when_no_endpoints_exist(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("empty") {
        cluster.assert_fails(&stage.place("c1"), &To::new(vip, 80, &[]), "refused");
        cluster.assert_fails(&Place::host("node2"), &To::new(vip, 80, &[]), "refused");
    }
}

/// A service address that no service has.
pub(crate) fn an_address_of_nobody_drops(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for nobody in ["10.111.0.1", "fd00:10:96::ffff"] {
        cluster.assert_fails(&stage.place("c2"), &To::new(address(nobody), 80, &[]), "timed out");
    }
}

/// "[sig-network] Services should respect internalTrafficPolicy=Local Pod to Pod"
pub(crate) fn should_respect_internal_policy_local_pod_to_pod(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("local") {
        let from = |name| stage.place(name);
        cluster.assert_served(&from("c1b"), &To::new(vip, 80, &["c1"]), |_| stage.own("c1b", vip));
        cluster.assert_served(&from("c2"), &To::new(vip, 80, &["c2"]), |_| stage.node("node2"));
        cluster.assert_fails(&from("c3"), &To::new(vip, 80, &[]), "timed out");
    }
}

/// "[sig-network] Services should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod"
pub(crate) fn should_respect_internal_policy_local_host_network_to_pod(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("local") {
        for (node, name) in [("node1", "c1"), ("node2", "c2")] {
            let to = To::new(vip, 80, std::slice::from_ref(&name));
            cluster.assert_served(&Place::host(node), &to, |_| stage.node(node));
        }
        cluster.assert_fails(&Place::host("node3"), &To::new(vip, 80, &[]), "timed out");
    }
}

/// "[sig-network] Services should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)"
pub(crate) fn should_respect_internal_policy_local_to_host_network(cluster: &mut Cluster, stage: &mut Stage) {
    let [v4, v6] = cluster.on_lan("node1");
    let more = json!({ "internalTrafficPolicy": "Local", "endpoints": [v4.to_string(), v6.to_string()] });
    stage.have(cluster, &[service("host", &[], more)]);
    cluster.serve(&Place::host("node1"));
    for vip in cluster.cluster_ips("host") {
        let to = To::new(vip, 80, &["node1"]).by(&["tcp"]);
        cluster.assert_served(&stage.place("c1"), &to, |_| stage.own("c1", vip));
        cluster.assert_served(&Place::host("node1"), &to, |_| stage.node("node1"));
        for from in [stage.place("c2"), Place::host("node2")] {
            cluster.assert_fails(&from, &to, "timed out");
        }
    }
}
