//! SCTP. This kernel has no sockets for it; its nftables and conntrack know it. `tests/files/sctp.py` does an
//! association's first four packets by raw sockets, and both ends verify the checksums that translation has to mend.

use homelab_tests::{Cluster, Place, To};
use serde_json::json;

use crate::conntrack::{Cycle, cycles};
use crate::stage::{LB_CLUSTER, PORT_SCTP, Stage, address, ports, standing};

const SCTP: &[&str] = &["sctp"];

/// "[sig-network] SCTP [LinuxOnly] should allow creating a basic SCTP service with pod and endpoints": pods of the same
/// and of another node keep their addresses, by both families; nodes have theirs.
pub(crate) fn should_allow_creating_a_basic_sctp_service(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("three") {
        // c1 is beside c1b, c3 is elsewhere.
        let to = To::new(vip, 80, &["c1", "c3"]).by(SCTP);
        cluster.assert_served(&stage.place("c1b"), &to, |_| stage.own("c1b", vip));
        cluster.assert_served(&stage.place("c1"), &to, |answering| match answering {
            "c1" => stage.node("node1"),
            _ => stage.own("c1", vip),
        });
        cluster.assert_served(&Place::host("node2"), &to, |_| stage.node("node2"));
    }
}

/// A client on the LAN is seen under a node's address.
pub(crate) fn node_ports_and_load_balancers(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    let client = Place::host("client");
    for node in ["node1", "node2"] {
        for address in cluster.on_lan(node) {
            let to = To::new(address, PORT_SCTP, &["c2"]).by(SCTP);
            cluster.assert_served(&client, &to, |_| stage.node(node));
        }
    }
    cluster.via(LB_CLUSTER, "node1");
    let to = To::new(address(LB_CLUSTER), 80, &["c3"]).by(SCTP);
    cluster.assert_served(&client, &to, |_| stage.node("node1"));
}

pub(crate) fn should_be_rejected_when_no_endpoints_exist_by_sctp(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("empty") {
        cluster.assert_fails(&stage.place("c1"), &To::new(vip, 80, &[]).by(SCTP), "refused");
    }
}

/// conntrack keeps an association for minutes (days in older kernels) and would send a new one from the same port to the
/// same endpoint.
pub(crate) fn conntrack_of_a_vanished_endpoint_is_cleared(cluster: &mut Cluster, stage: &mut Stage) {
    let more = json!({ "ports": ports(&["SCTP"], None) });
    let cycle = Cycle { kind: "sctp", more, client: stage.place("c1"), nodes: ["node2", "node3"] };
    cycles(cluster, stage, cycle, |cluster| (cluster.cluster_ips("cycle")[1], 80));
}
