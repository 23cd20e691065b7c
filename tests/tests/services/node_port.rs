//! Ports of all nodes.

use homelab_tests::{Cluster, Place, To};

use crate::stage::{PORT_CLUSTER, PORT_LOCAL, Stage, address, standing};

/// "[sig-network] Services should be able to create a functioning NodePort service": from anywhere to any endpoint, under
/// the node's name; pods are short-circuited.
pub(crate) fn should_be_able_to_create_a_functioning_node_port_service(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    stage.have(cluster, &standing());
    for node in cluster.nodes() {
        for address in cluster.on_lan(&node) {
            let to = To::new(address, PORT_CLUSTER, &["c1", "c2"]);
            cluster.assert_served(&Place::host("client"), &to, |_| stage.node(&node));
            let sources = [stage.node("node1"), stage.node(&node), stage.own("c1b", address)].concat();
            cluster.assert_served(&stage.place("c1b"), &to, |_| sources.clone());
        }
    }
}

/// "[sig-network] Services should support externalTrafficPolicy=Local for type=NodePort": only where an endpoint is, and
/// the client's address stays.
pub(crate) fn should_support_external_policy_local_for_node_port(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let client = Place::host("client");
    for node in cluster.nodes() {
        for (address, own) in cluster.on_lan(&node).into_iter().zip(cluster.on_lan("client")) {
            let to = To::new(address, PORT_LOCAL, &["c2"]);
            if node == "node2" {
                cluster.assert_served(&client, &to, |_| vec![own]);
            } else {
                cluster.assert_fails(&client, &to, "timed out");
            }
        }
    }
}

/// kube-proxy in nftables mode does not serve node ports there either.
pub(crate) fn not_on_loopback(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let to = To::new(address("127.0.0.1"), PORT_CLUSTER, &[]).by(&["tcp"]);
    cluster.assert_fails(&Place::host("node1"), &to, "refused");
}
