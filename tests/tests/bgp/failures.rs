//! What happens to nodes, and what a client beyond the router notices of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_lab::BgpProgram;
use homelab_tests::{Cluster, measured};
use serde_json::json;

use crate::stage::{NODES, Stage, of, report, router, until};

/// Withdrawn within a second, with every answer given: the node still forwards what is on its way to it.
pub(crate) fn drain(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    stage.spread(cluster, &NODES);
    stage.gaps.since();
    let start = Instant::now();
    cluster.homelab_ok(&["cordon", "node1"]);
    let ordered = start.elapsed();
    stage.web_told(cluster, &["node2", "node3"]);
    measured(format_args!("drained: {ordered:?} for the order, withdrawn after {:?}", start.elapsed()));
    stage.spread(cluster, &["node2", "node3"]);
    // A drained node stays drained when its agent or its bgpd starts again.
    cluster.sh("node1", "systemctl restart homelab-bgp homelab-node");
    let sessions = stage.all_up(cluster);
    until(
        "the agent is back",
        || report(cluster, "node1"),
        |bgp| {
            bgp.as_ref().is_some_and(|bgp| {
                bgp.routes.is_empty() && bgp.sessions.iter().all(|s| s.state == "Established")
            })
        },
    );
    stage.web_told(cluster, &["node2", "node3"]);
    cluster.homelab_ok(&["uncordon", "node1"]);
    stage.web_told(cluster, &NODES);
    stage.spread(cluster, &NODES);
    stage.nobody_noticed();
    assert_eq!(of(cluster, &sessions, &NODES[1..]), of(cluster, &before, &NODES[1..]));
    assert_eq!(stage.sessions(cluster), sessions, "routes come and go, sessions stay");
    // The exclude label does the same.
    cluster.file.set("nodes.2.labels", json!({ homelab_model::LABEL_EXCLUDE: "" }));
    cluster.apply();
    stage.web_told(cluster, &["node1", "node2"]);
    cluster.file.set("nodes.2.labels", json!({}));
    cluster.apply();
    stage.web_told(cluster, &NODES);
    stage.nobody_noticed();
    assert_eq!(stage.sessions(cluster), sessions);
}

/// The agent may be restarted, killed, or away: bgpd goes on, and so does the kernel.
pub(crate) fn agents(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    stage.gaps.since();
    let is_back = |cluster: &Cluster, node: &str, since: u64| {
        until(
            node,
            || cluster.lb(node),
            |report| {
                report.as_ref().is_some_and(|report| {
                    report.time_unix_ms > since
                        && report.bgp.as_ref().is_some_and(|bgp| bgp.routes.len() == 2)
                })
            },
        );
    };
    for signal in ["restart", "kill --signal=KILL"] {
        for node in NODES {
            let since = cluster.lb(node).expect("a report").time_unix_ms;
            cluster.sh(node, &format!("systemctl {signal} homelab-node"));
            is_back(cluster, node, since);
        }
    }
    cluster.everywhere("systemctl stop homelab-node");
    std::thread::sleep(Duration::from_secs(2));
    stage.web_told(cluster, &NODES);
    cluster.everywhere("systemctl start homelab-node");
    for node in NODES {
        is_back(cluster, node, 0);
    }
    stage.web_told(cluster, &NODES);
    assert_eq!(stage.sessions(cluster), before, "no session was lost");
    stage.nobody_noticed();
}

/// A bgpd that dies is started again and given its routes; the router knows at once, since the kernel closes the connection.
pub(crate) fn bgpd(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    stage.gaps.since();
    cluster.sh("node2", "systemctl kill --signal=KILL homelab-bgp");
    let other = |sessions: &homelab_lab::BgpSessions| of(cluster, sessions, &["node2"]);
    until(
        "another session",
        || stage.sessions(cluster),
        |now| {
            other(now).values().all(Option::is_some)
                && other(now).iter().all(|(address, s)| before[address] != *s)
        },
    );
    stage.web_told(cluster, &NODES);
    let after = stage.all_up(cluster);
    assert_eq!(of(cluster, &after, &["node1", "node3"]), of(cluster, &before, &["node1", "node3"]));
    measured(format_args!("bgpd killed: {}", stage.outage()));
    stage.own_untouched(cluster);
    // Somebody who meddles with ours is put right.
    cluster.sh(
        "node3",
        "vtysh -N homelab -c 'configure terminal' -c 'router bgp 64512' -c 'address-family ipv4 unicast' \
         -c 'no network 192.168.60.1/32'",
    );
    stage.told(cluster, "192.168.60.1/32", &["node1", "node2"]);
    stage.web_told(cluster, &NODES);
    stage.flows();
}

/// RFC 4724: while a node's FRR is away its routes stay, as stale, and the kernel forwards. Then they are told anew.
pub(crate) fn graceful(cluster: &mut Cluster, stage: &mut Stage) {
    stage.begin(cluster);
    let first = cluster.file.clone();
    for peer in [0, 1] {
        cluster.file.set(&format!("loadBalancer.bgp.peers.{peer}.enableGracefulRestart"), json!(true));
    }
    stage.quiet(cluster);
    cluster.apply();
    let of_node2: BTreeSet<IpAddr> = cluster.on_lan("node2").into_iter().collect();
    let others = ["node1", "node3"];
    // Both help whoever asks for it, unless they are told not to.
    for program in [BgpProgram::Frr, BgpProgram::Bird] {
        stage.route(cluster, router(cluster, program));
        let before = stage.all_well(cluster);
        let kept = |cluster: &Cluster| cluster.lab.bgp_kept(program).expect("the router answers");
        assert!(kept(cluster).is_empty(), "{program:?}: nobody is away");
        for daemons in ["homelab-bgp", "homelab-bgp homelab-bgp-zebra"] {
            stage.gaps.since();
            // It does not come back before somebody has looked.
            let kill = "systemctl kill --signal=KILL $daemons; systemctl stop $daemons";
            cluster.sh("node2", &format!("daemons={daemons:?}; {kill}"));
            until("its routes are kept", || kept(cluster), |all| *all == of_node2);
            stage.web_told(cluster, &NODES);
            stage.spread(cluster, &NODES);
            cluster.sh("node2", &format!("systemctl start {daemons}"));
            let start = Instant::now();
            let after = stage.all_up(cluster);
            until("they are told anew", || kept(cluster), BTreeSet::is_empty);
            measured(format_args!("{program:?}, {daemons} killed: told anew after {:?}", start.elapsed()));
            stage.web_told(cluster, &NODES);
            stage.spread(cluster, &NODES);
            stage.nobody_noticed();
            assert_eq!(of(cluster, &after, &others), of(cluster, &before, &others), "{program:?}: {daemons}");
        }
        // A node that is drained has no routes to be kept.
        cluster.homelab_ok(&["cordon", "node2"]);
        stage.web_told(cluster, &others);
        cluster.homelab_ok(&["uncordon", "node2"]);
        stage.web_told(cluster, &NODES);
    }
    // One that cannot help loses the routes, and gets them again.
    stage.route(cluster, router(cluster, BgpProgram::Gobgp));
    stage.all_up(cluster);
    cluster.sh("node2", "systemctl kill --signal=KILL homelab-bgp; systemctl stop homelab-bgp");
    stage.web_told(cluster, &others);
    cluster.sh("node2", "systemctl start homelab-bgp");
    stage.web_told(cluster, &NODES);
    stage.quiet(cluster);
    cluster.file = first;
    cluster.apply();
    stage.as_at_first(cluster);
    stage.own_untouched(cluster);
}

/// A node that goes in order says so to the router, and comes back by itself.
pub(crate) fn reboot(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    stage.gaps.since();
    cluster.lab.reboot("node3").expect("reboot");
    let after = stage.as_at_first(cluster);
    assert_eq!(of(cluster, &after, &NODES[..2]), of(cluster, &before, &NODES[..2]));
    stage.gaps.since();
    let _ = cluster.lab.sh("node1", "systemctl --no-block poweroff");
    stage.web_told(cluster, &["node2", "node3"]);
    until("it is off", || cluster.lab.leader("node1").is_err(), |off| *off);
    measured(format_args!("a node shuts down: {}", stage.outage()));
    cluster.lab.start("node1").expect("start");
    stage.web_told(cluster, &NODES);
    measured(format_args!("and starts: {}", stage.outage()));
    stage.as_at_first(cluster);
}

/// The hold time is a minute and a half: only BFD can be that fast.
pub(crate) fn bfd(cluster: &mut Cluster, stage: &mut Stage) {
    stage.begin(cluster);
    let first = cluster.file.clone();
    let profile =
        json!([{ "name": "fast", "receiveInterval": 100, "transmitInterval": 100, "detectMultiplier": 3 }]);
    cluster.file.set("loadBalancer.bgp.bfdProfiles", profile);
    for peer in [0, 1] {
        cluster.file.set(&format!("loadBalancer.bgp.peers.{peer}.bfdProfile"), json!("fast"));
    }
    cluster.apply();
    for program in [BgpProgram::Bird, BgpProgram::Frr] {
        let mut watched = router(cluster, program);
        watched.neighbors.iter_mut().for_each(|neighbor| neighbor.bfd = true);
        stage.route(cluster, watched);
        for node in NODES {
            let watched = |bgp: &Option<homelab_model::LbBgp>| {
                let up =
                    |s: &homelab_model::LbSession| s.state == "Established" && s.bfd.as_deref() == Some("Up");
                bgp.as_ref().is_some_and(|bgp| bgp.sessions.len() == 2 && bgp.sessions.iter().all(up))
            };
            until(node, || report(cluster, node), watched);
        }
        let before = stage.all_well(cluster);
        stage.own_untouched(cluster);
        for (how, begin, end) in
            [("power cut", cut as fn(&Cluster), start as fn(&Cluster)), ("parted from everybody", part, heal)]
        {
            stage.gaps.since();
            begin(cluster);
            stage.web_told(cluster, &["node1", "node2"]);
            std::thread::sleep(Duration::from_millis(300));
            measured(format_args!("{program:?}, {how}, with BFD: {}", stage.outage()));
            end(cluster);
            let after = stage.all_well(cluster);
            assert_eq!(
                of(cluster, &after, &NODES[..2]),
                of(cluster, &before, &NODES[..2]),
                "{program:?}: {how}"
            );
        }
    }
    // Without it, its daemon goes.
    cluster.file = first;
    cluster.apply();
    let left = cluster.everywhere("pgrep -xa bfdd | grep -e '-N homelab' || true").concat();
    assert_eq!(left, "");
    stage.as_at_first(cluster);
    stage.own_untouched(cluster);
}

fn cut(cluster: &Cluster) {
    cluster.lab.power_cut(&["node3"]).expect("power cut");
}

fn start(cluster: &Cluster) {
    cluster.lab.start("node3").expect("start");
}

fn part(cluster: &Cluster) {
    cluster.lab.partition("node3").expect("partition");
}

fn heal(cluster: &Cluster) {
    cluster.lab.heal("node3").expect("heal");
}
