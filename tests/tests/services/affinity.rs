//! Session affinity: one endpoint for each client.

use std::collections::BTreeMap;

use homelab_tests::{Check, Cluster, Place, SERVER, To};
use serde_json::{Value, json};

use crate::stage::{LB_CLUSTER, Stage, address, ports, service, standing, with};

const ALL: &[&str] = &["c1", "c2", "c3"];

/// All connections of a client have one endpoint, by each protocol; gives them.
#[track_caller]
fn assert_stays(cluster: &Cluster, from: &Place, to: &To<'_>) -> Vec<String> {
    let stays = |&kind: &&'static str| {
        // Connections that begin at the same moment may each find nothing remembered.
        let first = cluster.ask_once(from, kind, to);
        for answer in cluster.ask(from, kind, to) {
            assert_eq!((&answer.name, ""), (&first, answer.error.as_str()), "{} -> {to:?}", from.name);
        }
        first
    };
    to.kinds.iter().map(stays).collect()
}

/// "[sig-network] Services should have session affinity work for service with type clusterIP [LinuxOnly]"
pub(crate) fn should_work_for_cluster_ip(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for vip in cluster.cluster_ips("sticky") {
        for from in [stage.place("c1b"), Place::host("node3")] {
            assert_stays(cluster, &from, &To::new(vip, 80, ALL));
        }
    }
}

/// "[sig-network] Services should have session affinity work for NodePort service [LinuxOnly]"
pub(crate) fn should_work_for_node_port(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    for address in cluster.on_lan("node2") {
        for from in [stage.place("c1b"), Place::host("client")] {
            assert_stays(cluster, &from, &To::new(address, 30083, ALL));
        }
    }
}

/// "[sig-network] LoadBalancers should have session affinity work for LoadBalancer service with Cluster traffic policy",
/// "[...] with Local traffic policy", "[...] should be able to switch [...]"
pub(crate) fn should_work_for_load_balancer(cluster: &mut Cluster, stage: &mut Stage) {
    let client = Place::host("client");
    cluster.via(LB_CLUSTER, "node1");
    for (policy, names) in [("Cluster", &["c1", "c1b", "c2"][..]), ("Local", &["c1", "c1b"])] {
        for affinity in ["ClientIP", "None"] {
            let more = json!({
                "type": "LoadBalancer", "loadBalancerIP": LB_CLUSTER, "externalTrafficPolicy": policy,
                "sessionAffinity": affinity,
            });
            stage.have(cluster, &[service("lb", &["c1", "c1b", "c2"], more)]);
            let to = To::new(address(LB_CLUSTER), 80, names);
            if affinity == "None" {
                stage.assert_answers(cluster, &client, &to);
            } else {
                assert_stays(cluster, &client, &to);
            }
        }
    }
}

/// A client that has not come back in time may get another endpoint: seven clients are asked, until one of them does.
#[track_caller]
fn assert_times_out(cluster: &Cluster, stage: &Stage, to: &To<'_>) {
    let clients: Vec<Place> = ["c1", "c1b", "c2", "c3"]
        .map(|name| stage.place(name))
        .into_iter()
        .chain(["node1", "node3", "client"].map(Place::host))
        // A cluster address is none of the client's.
        .filter(|place| place.host != "client" || to.port != 80)
        .collect();
    let ask = || -> BTreeMap<String, String> {
        clients.iter().map(|from| (from.name.clone(), cluster.ask_once(from, "tcp", to))).collect()
    };
    let first = ask();
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        if ask() != first {
            return;
        }
    }
    panic!("nobody got another endpoint: {first:?}");
}

fn with_timeout(seconds: u32) -> Value {
    let more = json!({
        "type": "NodePort", "ports": ports(&["TCP"], Some(30084)), "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
    });
    service("short", ALL, more)
}

/// "[sig-network] Services should have session affinity timeout work for service with type clusterIP [LinuxOnly]"
pub(crate) fn timeout_should_work_for_cluster_ip(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &[with_timeout(1)]);
    for vip in cluster.cluster_ips("short") {
        assert_times_out(cluster, stage, &To::new(vip, 80, ALL));
    }
    // A longer one holds, and what was remembered with the short one is no obstacle.
    stage.have(cluster, &[with_timeout(600)]);
    let vip = cluster.cluster_ips("short")[0];
    let first = assert_stays(cluster, &stage.place("c1"), &To::new(vip, 80, ALL).by(&["tcp"]));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let to = To::new(vip, 80, ALL).by(&["tcp"]);
    assert_eq!(assert_stays(cluster, &stage.place("c1"), &to), first);
}

/// "[sig-network] Services should have session affinity timeout work for NodePort service [LinuxOnly]"
pub(crate) fn timeout_should_work_for_node_port(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &[with_timeout(1)]);
    for address in cluster.on_lan("node2") {
        assert_times_out(cluster, stage, &To::new(address, 30084, ALL));
    }
}

/// "[sig-network] Services should be able to switch session affinity for service with type clusterIP [LinuxOnly]", "[...]
/// for NodePort service [LinuxOnly]"
pub(crate) fn should_be_able_to_switch(cluster: &mut Cluster, stage: &mut Stage) {
    let of = |affinity: &str| {
        let more = json!({ "type": "NodePort", "ports": ports(&["TCP", "UDP"], Some(30085)) });
        service("switch", ALL, with(more, json!({ "sessionAffinity": affinity })))
    };
    let held = |cluster: &Cluster, stage: &Stage| {
        let vip = cluster.cluster_ips("switch")[0];
        let check = Check::new("held", &stage.pods[0].servers()[0]).port(SERVER);
        cluster.clients(&stage.place("c1b"), &[To::new(vip, 80, ALL).check("held"), check])
    };
    for (affinity, stays) in [("ClientIP", true), ("None", false), ("ClientIP", true)] {
        stage.have(cluster, &[of(affinity)]);
        let clients = held(cluster, stage);
        let mut places: Vec<(Place, To<'_>)> = Vec::new();
        for vip in cluster.cluster_ips("switch") {
            places.push((stage.place("c1b"), To::new(vip, 80, ALL)));
        }
        for address in cluster.on_lan("node2") {
            places.push((Place::host("client"), To::new(address, 30085, ALL)));
        }
        for (from, to) in &places {
            if stays {
                assert_stays(cluster, from, to);
            } else {
                stage.assert_answers(cluster, from, to);
            }
        }
        // A change of affinity is none of the connections that are there.
        stage.have(cluster, &[of(if stays { "None" } else { "ClientIP" })]);
        clients.none_failed("affinity changes");
    }
}
