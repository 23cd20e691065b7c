//! The agent while services are used: it starts again, dies, and mends what others break.

use homelab_tests::{Check, Cluster, Place, To};
use serde_json::json;

use crate::stage::{LB_CLUSTER, PORT_CLUSTER, Stage, address, in_container, service, standing};

/// Waits until the agents of all nodes run and have looked at the node.
#[track_caller]
fn wait_for_agents(cluster: &Cluster) {
    cluster.everywhere(
        "for i in $(seq 300); do systemctl is-active -q homelab-node && break; sleep 0.1; done; sleep 1; \
         systemctl is-active homelab-node",
    );
}

/// "[sig-network] Services should work after restarting kube-proxy": no connection is dropped and none fails, no affinity is
/// reset, nothing is written.
pub(crate) fn should_work_after_restarting_kube_proxy(cluster: &mut Cluster, stage: &mut Stage) {
    stage.have(cluster, &standing());
    cluster.via(LB_CLUSTER, "node3");
    let (client, pod) = (Place::host("client"), stage.place("c1b"));
    let everybody = |name: &str| -> Vec<Check> {
        let vips = cluster.cluster_ips(name).into_iter().map(|vip| To::new(vip, 80, &[]));
        vips.flat_map(|to| ["held", "tcp"].map(|kind| to.check(kind))).collect()
    };
    let from_lan: Vec<Check> = [
        To::new(cluster.on_lan("node2")[0], PORT_CLUSTER, &[]),
        To::new(cluster.on_lan("node2")[1], PORT_CLUSTER, &[]),
        To::new(address(LB_CLUSTER), 80, &[]),
    ]
    .iter()
    .flat_map(|to| ["held", "tcp"].map(|kind| to.check(kind)))
    .collect();
    let mut clients = [
        cluster.clients(&pod, &everybody("web")),
        cluster.clients(&Place::host("node3"), &everybody("web")),
        cluster.clients(&client, &from_lan),
    ];
    let sticky = To::new(cluster.cluster_ips("sticky")[0], 80, &["c1", "c2", "c3"]);
    let first = cluster.ask_once(&pod, "tcp", &sticky);
    let held = |cluster: &Cluster| {
        cluster.sh(
            "node1",
            "nft --handle list set inet homelab-proxy plain-frontends4; nft list set inet homelab-proxy frontends4; nft list map inet homelab-proxy endpoints4",
        )
    };
    let before = held(cluster);
    for _ in 0..3 {
        cluster.everywhere("systemctl restart homelab-node");
        wait_for_agents(cluster);
        assert_eq!(cluster.sh("node1", "jq .repairs /run/homelab/agent.json"), "0");
        assert_eq!(held(cluster), before);
        assert_eq!(cluster.ask_once(&pod, "tcp", &sticky), first);
    }
    // Killed in the middle of whatever they do.
    for _ in 0..3 {
        cluster.everywhere("systemctl kill --signal=KILL homelab-node; sleep 0.3");
    }
    wait_for_agents(cluster);
    assert_eq!(held(cluster), before);
    assert_eq!(cluster.ask_once(&pod, "tcp", &sticky), first);
    clients.iter_mut().for_each(|clients| drop(clients.so_far()));
    for clients in clients {
        clients.none_failed("agents start again");
    }
    cluster.assert_converged();
}

/// Containers that end and start anew on other nodes, elsewhere than before, are followed by all nodes, without an apply; and
/// what was followed is no change.
pub(crate) fn containers_are_followed(cluster: &mut Cluster, stage: &mut Stage) {
    let server = json!({ "node": "node2", "container": "server" });
    let endpoints = json!([server, in_container("c3")]);
    let mut pod = cluster.pod("node2", "server");
    let alone = json!({ "endpoints": [server] });
    stage.have(
        cluster,
        &[service("alone", &[], alone), service("two", &[], json!({ "endpoints": endpoints }))],
    );
    let vips = cluster.cluster_ips("alone");
    let checks = vips.iter().zip(12345..).flat_map(|(vip, port)| {
        let to = || To::new(*vip, 80, &[]);
        // UDP from one port, whose connection is with the endpoint that is gone.
        [to().check("udp").from_port(port), to().check("tcp")]
    });
    // A client on a node that runs none of them.
    let mut clients = cluster.clients(&stage.place("c1"), &checks.collect::<Vec<_>>());
    clients.until("the first answers", |one| one.last == "server");
    for round in 1..=2 {
        cluster.remove_pod(&pod);
        clients.until_more("nobody answers", |one| one.failed);
        let status: serde_json::Value = serde_json::from_str(
            &cluster.homelab(&["status", "services", "alone", "--format", "json"]).stdout,
        )
        .expect("JSON");
        let absent = json!([{ "node": "node2", "container": "server", "why": "not-running" }]);
        assert_eq!(status["services"][0]["nodes"][0]["absent"], absent, "{status}");
        let before = pod.addresses.clone();
        pod = cluster.pod("node2", "server");
        assert_ne!(pod.addresses, before, "round {round}");
        clients.until_more("it answers again", |one| one.asked - one.failed);
        cluster.assert_converged();
    }
    drop(clients.end());
    // What others know of a node that cannot be heard is not good enough while somebody else is there.
    let two = || To::new(cluster.cluster_ips("two")[0], 80, &[]);
    let names = || -> std::collections::BTreeSet<String> {
        cluster.ask(&stage.place("c1"), "tcp", &two()).into_iter().map(|answer| answer.name).collect()
    };
    let start = std::time::Instant::now();
    let wait = |what: &str, expected: &[&str]| {
        while !names().iter().eq(expected) {
            assert!(start.elapsed().as_secs() < 120, "{what}: {:?}", names());
        }
    };
    wait("both answer", &["c3", "server"]);
    let deaf_and_dumb = "for hook in input output; do nft \"add table inet test-deaf; add chain inet test-deaf $hook { type filter hook \
                         $hook priority -300; }; add rule inet test-deaf $hook udp dport 7946 drop\"; done";
    cluster.sh("node2", deaf_and_dumb);
    wait("node2 is out of reach", &["c3"]);
    cluster.sh("node2", "nft delete table inet test-deaf");
    wait("node2 is back", &["c3", "server"]);
    cluster.assert_converged();
    cluster.remove_pod(&pod);
    stage.have(cluster, &[]);
}

/// Elements and rules that somebody takes away come back, what somebody adds goes.
pub(crate) fn what_a_hand_does_is_seen_and_undone(cluster: &mut Cluster, stage: &mut Stage) {
    let pods = stage.pods.clone();
    let more = json!({ "ipFamilyPolicy": "SingleStack" });
    stage.have(cluster, &[service("web", &["c2"], more)]);
    let vip = cluster.cluster_ips("web")[0];
    for hand in [
        "nft flush map inet homelab-proxy endpoints4",
        "nft flush set inet homelab-proxy plain-frontends4",
        "nft flush chain inet homelab-proxy proxy-pick4-8",
        "nft delete table inet homelab-proxy",
        "nft add element inet homelab-proxy no-endpoints4 '{ 9.9.9.9 . tcp . 9 }'",
        "nft delete table bridge homelab",
        "nft flush ruleset",
    ] {
        cluster.sh("node1", hand);
        let start = std::time::Instant::now();
        loop {
            let plan = cluster.plan();
            if plan.node("node1").changes.is_empty() {
                break;
            }
            assert!(start.elapsed().as_secs() < 60, "{hand}: {plan:?}");
        }
        let to = To::new(vip, 80, &["c2"]);
        for answer in cluster.ask(&Place::from(&pods[1]), "tcp", &to) {
            assert_eq!(answer.name, "c2", "{hand}: {answer:?}");
        }
    }
    // All at once: no rule was tried before the chain that it jumps to was there.
    assert_eq!(cluster.sh("node1", "journalctl --unit homelab-node | grep -c 'cannot repair' || true"), "0");
}
