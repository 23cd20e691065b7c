//! Load-balancer addresses that a router is told of by BGP: with three kinds of router, under all that happens to nodes.

mod failures;
mod settings;
mod stage;

use std::time::{Duration, Instant};

use homelab_lab::BgpProgram;
use homelab_tests::{Cluster, measured, run_on_stage};

use stage::{NODES, OWN_FRR, Stage, report, router, set, until};

fn main() {
    run_on_stage(
        "bgp",
        set,
        &[
            ("sessions_and_routes_with_frr_bird_and_gobgp", programs),
            ("a_drained_node_is_left_out_and_nobody_notices", failures::drain),
            ("a_restart_of_the_agent_is_no_flap", failures::agents),
            ("a_killed_bgpd_comes_back_with_its_routes", failures::bgpd),
            ("with_graceful_restart_nobody_notices_a_killed_frr", failures::graceful),
            ("a_reboot_and_a_shutdown_in_order", failures::reboot),
            ("a_dead_node_is_found_by_bfd", failures::bfd),
            ("peers_change_without_harm_to_other_sessions", settings::peers),
            ("passwords", settings::passwords),
            ("a_router_behind_another_hop", settings::multihop),
            ("communities_local_preference_and_aggregation", settings::attributes),
            ("by_arp_and_bgp_at_once", settings::both),
            ("destroy_leaves_nothing", destroy),
            ("a_node_that_cannot_get_frr_is_not_changed", no_apt),
            // The last: its containers stay.
            ("policy_local_is_told_by_nodes_with_endpoints", settings::local),
        ],
    )
}

/// FRR, BIRD and GoBGP hear every address from every node; the first two forward over all of them.
fn programs(cluster: &mut Cluster, stage: &mut Stage) {
    cluster.serve(&homelab_tests::Place::host("client"));
    for program in BgpProgram::ALL {
        let start = Instant::now();
        stage.route(cluster, router(cluster, program));
        let up = stage.all_up(cluster);
        stage.web_told(cluster, &NODES);
        measured(format_args!("{program:?}: sessions and routes after {:?}", start.elapsed()));
        for prefix in ["192.168.60.1/32", "fd00:60::1/128"] {
            for path in stage.paths(cluster, prefix) {
                assert_eq!(
                    (&path.as_path[..], path.communities.len()),
                    (&[stage::NODES_ASN][..], 0),
                    "{path:?}"
                );
            }
        }
        for node in NODES {
            let established = |bgp: &Option<homelab_model::LbBgp>| {
                bgp.as_ref().is_some_and(|bgp| {
                    let established =
                        |s: &homelab_model::LbSession| s.state == "Established" && s.routes_sent == 1;
                    bgp.problem.is_none() && bgp.sessions.len() == 2 && bgp.sessions.iter().all(established)
                })
            };
            let bgp = until(node, || report(cluster, node), established).expect("it was there");
            let routes: Vec<String> = bgp.routes.iter().map(|route| route.prefix.to_string()).collect();
            assert_eq!(routes, ["192.168.60.1/32", "fd00:60::1/128"]);
        }
        if program != BgpProgram::Gobgp {
            stage.flows();
            stage.spread(cluster, &NODES);
        }
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(stage.sessions(cluster), up, "{program:?}: nothing comes and goes");
    }
    let said = cluster.homelab_ok(&["status", "lb"]).stdout;
    assert!(said.contains("Established") && said.contains("router6"), "{said}");
    cluster.assert_converged();
    stage.own_untouched(cluster);
}

/// Nodes are as they were before the first apply. Debian's packages leave their accounts behind.
#[track_caller]
fn as_before(cluster: &Cluster, stage: &Stage, nodes: &[&str]) {
    let accounts = ["passwd", "group", "shadow", "gshadow"]
        .map(|name| [format!("/etc/{name}"), format!("/etc/{name}-")]);
    let mut left: Vec<&str> = accounts.iter().flatten().map(String::as_str).collect();
    // The lock of whoever asked last is there until a reboot.
    left.extend(["/var/lib/dpkg/status-old", "/run/homelab", "/run/homelab/session.lock"]);
    for (node, before) in NODES.iter().zip(&stage.before).filter(|(node, _)| nodes.contains(node)) {
        let changed =
            before.clone().without_entries(&left).diff(&cluster.snapshot(node).without_entries(&left));
        assert!(changed.is_empty(), "on {node}:\n{changed}");
    }
}

/// The package, its units and its files go, where it was us who brought them.
fn destroy(cluster: &mut Cluster, stage: &mut Stage) {
    stage.begin(cluster);
    cluster.homelab_ok(&["destroy", "--yes", homelab_tests::DISRUPTIVE]);
    until("no sessions", || stage.sessions(cluster), |all| all.values().all(Option::is_none));
    as_before(cluster, stage, &NODES);
    for node in NODES {
        let daemons = cluster.sh(node, "ps -eo args | grep -c '[-]N homelab' || true");
        assert_eq!(daemons, "0", "{node}");
        let installed =
            cluster.sh(node, "dpkg-query --show --showformat '${db:Status-Abbrev}' frr 2>/dev/null || true");
        assert_eq!(installed.starts_with("ii"), node == OWN_FRR, "{node}: {installed}");
    }
    stage.own_untouched(cluster);
}

/// A node that cannot get FRR stops the roll-out before it began.
fn no_apt(cluster: &mut Cluster, stage: &mut Stage) {
    cluster.homelab_ok(&["destroy", "--yes", homelab_tests::DISRUPTIVE]);
    cluster.sh("node1", "mv /opt/apt /run/away");
    let output = cluster.homelab(&["apply", "--yes", homelab_tests::DISRUPTIVE]);
    let said = output.stdout + &output.stderr;
    assert!(output.code != 0 && said.contains("frr") && said.contains("node1"), "{said}");
    cluster.sh("node1", "mv /run/away /opt/apt");
    as_before(cluster, stage, &["node1"]);
    // The others have got the package meanwhile, and nothing else; destroy knows whose it is.
    cluster.homelab_ok(&["destroy", "--yes", homelab_tests::DISRUPTIVE]);
    as_before(cluster, stage, &NODES);
    stage.own_untouched(cluster);
    cluster.apply();
    stage.begin(cluster);
}
