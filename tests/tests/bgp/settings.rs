//! What the file says of routers and routes, as the router sees it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use homelab_lab::{BgpProgram, BgpSessions};
use homelab_model::LbWhere;
use homelab_tests::{Cluster, Place, SERVER, To};
use serde_json::{Value, json};

use crate::stage::{NODES, NODES_ASN, Stage, report, router, service, until, web};

/// Nodes without an endpoint do not tell the address, and the client's own address arrives.
pub(crate) fn local(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    let pods = [cluster.container("node1", "local1"), cluster.container("node2", "local2")];
    let address: IpAddr = "192.168.60.3".parse().expect("an address");
    let have = |cluster: &mut Cluster, pods: &[homelab_tests::Pod]| {
        let endpoints: Vec<Value> =
            pods.iter().map(|pod| json!({ "node": pod.node, "container": pod.name })).collect();
        let mut local = service("local", "192.168.60.3", &json!(endpoints));
        local["ipFamilyPolicy"] = json!("SingleStack");
        local["externalTrafficPolicy"] = json!("Local");
        cluster.file.set("services", json!([web(), local]));
        cluster.apply();
    };
    have(cluster, &pods);
    stage.told(cluster, "192.168.60.3/32", &["node1", "node2"]);
    let (wan, client) = (Place::host("wan"), cluster.lab.address("wan").expect("an address").into());
    cluster.assert_served(&wan, &To::new(address, 80, &["local1", "local2"]).by(&["tcp"]), |_| vec![client]);
    have(cluster, &pods[1..]);
    stage.told(cluster, "192.168.60.3/32", &["node2"]);
    cluster.assert_served(&wan, &To::new(address, 80, &["local2"]).by(&["tcp"]), |_| vec![client]);
    have(cluster, &[]);
    stage.told(cluster, "192.168.60.3/32", &[]);
    cluster.file.set("services", json!([web()]));
    cluster.apply();
    assert_eq!(stage.as_at_first(cluster), before);
}

fn v4(sessions: &BgpSessions) -> BgpSessions {
    sessions.iter().filter(|(address, _)| address.is_ipv4()).map(|(a, s)| (*a, s.clone())).collect()
}

/// A router more or less, or another setting of one, is nothing to the other's session.
pub(crate) fn peers(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    let first = cluster.file.clone();
    let both = first.0["loadBalancer"]["bgp"]["peers"].clone();
    stage.gaps.since();
    // It is taken away.
    cluster.file.set("loadBalancer.bgp.peers", json!([both[0]]));
    cluster.apply();
    let sixes_are = |up: bool| {
        move |all: &BgpSessions| all.iter().filter(|(a, _)| a.is_ipv6()).all(|(_, s)| s.is_some() == up)
    };
    until("gone", || stage.sessions(cluster), sixes_are(false));
    stage.told(cluster, "fd00:60::1/128", &[]);
    // Only some nodes have it.
    cluster.file = first.clone();
    cluster.file.set("nodes.0.labels", json!({ "rack": "a" }));
    cluster.file.set("loadBalancer.bgp.peers.1.nodeSelectors", json!([{ "matchLabels": { "rack": "a" } }]));
    cluster.apply();
    stage.told(cluster, "fd00:60::1/128", &["node1"]);
    assert_eq!(report(cluster, "node2").map(|bgp| bgp.sessions.len()), Some(1));
    // It is as it was, with other times.
    cluster.file = first.clone();
    cluster.file.set("loadBalancer.bgp.peers.1.holdTime", json!("30s"));
    cluster.apply();
    stage.told(cluster, "fd00:60::1/128", &NODES);
    cluster.file = first;
    cluster.apply();
    let after = stage.all_up(cluster);
    assert_eq!(v4(&after), v4(&before), "the other router's sessions");
    let lost = stage.gaps.since()[0].lost;
    assert_eq!(lost, 0, "the other router's traffic");
    stage.as_at_first(cluster);
}

/// A password is the nodes' and the router's, and nobody else's.
pub(crate) fn passwords(cluster: &mut Cluster, stage: &mut Stage) {
    const SECRET: &str = "s3cret-of-the-router";
    let before = stage.begin(cluster);
    let first = cluster.file.clone();
    let file = cluster.lab.dir().join("bgp.password");
    std::fs::write(&file, format!("{SECRET}\n")).expect("a file");
    cluster.file.set("loadBalancer.bgp.peers.0.passwordFile", json!("bgp.password"));
    let plan = cluster.homelab_ok(&["plan", "--verbose"]);
    let applied = cluster.apply();
    // The router knows of none yet.
    let down = |all: &BgpSessions| v4(all).values().all(Option::is_none);
    until("kept out", || stage.sessions(cluster), down);
    until(
        "said so",
        || report(cluster, "node1"),
        |bgp| {
            bgp.as_ref().is_some_and(|bgp| {
                bgp.sessions.iter().any(|s| s.peer == "router" && s.state != "Established")
            })
        },
    );
    let six = |all: &BgpSessions| -> BgpSessions {
        all.iter().filter(|(address, _)| address.is_ipv6()).map(|(a, s)| (*a, s.clone())).collect()
    };
    assert_eq!(six(&stage.sessions(cluster)), six(&before), "the other router");
    let mut knows = router(cluster, BgpProgram::Frr);
    for neighbor in knows.neighbors.iter_mut().filter(|neighbor| neighbor.address.is_ipv4()) {
        neighbor.password = Some(SECRET.into());
    }
    stage.route(cluster, knows);
    stage.all_well(cluster);
    cluster.assert_converged();
    let status = cluster.homelab_ok(&["status", "lb"]);
    for output in [plan, applied, status] {
        assert!(!(output.stdout + &output.stderr).contains(SECRET), "{}", output.command);
    }
    // One file of root's has it, and what bgpd remembers; no process was ever given it as an argument.
    for text in cluster.everywhere(&format!(
        "grep -rl {SECRET} /etc /run /var/lib/homelab 2>/dev/null; stat -c '%a %U' /var/lib/homelab/bgp-passwords; \
         journalctl --no-pager --boot | grep -c {SECRET}; true"
    )) {
        assert_eq!(text, "/var/lib/homelab/bgp-passwords\n600 root\n0");
    }
    // Another one.
    std::fs::write(&file, "another-one\n").expect("a file");
    let plan = cluster.homelab_ok(&["plan"]);
    let said = plan.stdout + &plan.stderr;
    assert!(said.contains("password") && !said.contains("another-one"), "{said}");
    cluster.apply();
    until("kept out again", || stage.sessions(cluster), down);
    cluster.file = first;
    cluster.apply();
    stage.as_at_first(cluster);
    cluster.everywhere("! ls /var/lib/homelab/bgp-passwords 2>/dev/null");
}

/// A router by an address that is not on the nodes' network has no session before it is said that it is further away.
pub(crate) fn multihop(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    let first = cluster.file.clone();
    let far = ["192.0.2.1", "2001:db8:2::1"];
    for (peer, address) in far.iter().enumerate() {
        cluster.file.set(&format!("loadBalancer.bgp.peers.{peer}.peerAddress"), json!(address));
    }
    cluster.apply();
    let sessions_of = |up: bool| {
        move |bgp: &Option<homelab_model::LbBgp>| {
            let established = |s: &homelab_model::LbSession| (s.state == "Established") == up;
            bgp.as_ref().is_some_and(|bgp| bgp.sessions.len() == 2 && bgp.sessions.iter().all(established))
        }
    };
    let down = |all: &BgpSessions| all.values().all(Option::is_none);
    until("the near sessions are gone", || stage.sessions(cluster), down);
    // They would be there within a second.
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(down(&stage.sessions(cluster)));
    }
    for node in NODES {
        until(node, || report(cluster, node), sessions_of(false));
    }
    for peer in 0..far.len() {
        cluster.file.set(&format!("loadBalancer.bgp.peers.{peer}.ebgpMultiHop"), json!(true));
    }
    cluster.apply();
    for program in [BgpProgram::Frr, BgpProgram::Bird] {
        stage.route(cluster, router(cluster, program));
        stage.all_well(cluster);
        stage.spread(cluster, &NODES);
        for node in NODES {
            let bgp = until(node, || report(cluster, node), sessions_of(true)).expect("it was there");
            let routers: BTreeSet<String> = bgp.sessions.into_iter().map(|s| s.router).collect();
            assert_eq!(
                routers,
                far.map(|address| format!("{address} AS{}", crate::stage::ROUTER_ASN)).into()
            );
        }
    }
    stage.quiet(cluster);
    cluster.file = first;
    cluster.apply();
    assert_eq!(stage.as_at_first(cluster).len(), before.len());
}

/// What advertisements say, as the router hears it.
pub(crate) fn attributes(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    let first = cluster.file.clone();
    cluster.file.set("loadBalancer.bgp.communities", json!([{ "name": "vip", "value": "64512:100" }]));
    cluster.file.set(
        "loadBalancer.bgp.advertisements",
        json!([
            { "name": "hosts", "communities": ["vip", "64512:1:2", "no-export"] },
            { "name": "all", "aggregationLength": 28, "aggregationLengthV6": 124, "communities": ["64512:7"] },
            { "name": "more", "aggregationLength": 28, "communities": ["64512:8"], "peers": ["router"],
              "nodeSelectors": [{ "matchLabels": { "kubernetes.io/hostname": "node1" } }] },
        ]),
    );
    cluster.apply();
    let told = |stage: &Stage, cluster: &Cluster, prefix: &str, communities: &[&str]| {
        let expected: BTreeSet<String> = communities.iter().map(|text| (*text).to_owned()).collect();
        until(
            prefix,
            || stage.told(cluster, prefix, &NODES),
            |paths| paths.iter().all(|p| p.communities == expected),
        );
    };
    let hosts = ["64512:100", "64512:1:2", "65535:65281"];
    told(stage, cluster, "192.168.60.1/32", &hosts);
    told(stage, cluster, "fd00:60::1/128", &hosts);
    told(stage, cluster, "fd00:60::/124", &["64512:7"]);
    // Communities of the same prefix are joined.
    let node1: IpAddr = cluster.on_lan("node1")[0];
    until(
        "joined",
        || stage.told(cluster, "192.168.60.0/28", &NODES),
        |paths| {
            paths.iter().all(|path| {
                let expected: &[&str] =
                    if path.from == node1 { &["64512:7", "64512:8"] } else { &["64512:7"] };
                path.communities.iter().map(String::as_str).eq(expected.iter().copied())
            })
        },
    );
    assert_eq!(stage.sessions(cluster), before, "routes change, sessions stay");
    // LOCAL_PREF, inside one AS.
    cluster.file = first.clone();
    for peer in [0, 1] {
        cluster.file.set(&format!("loadBalancer.bgp.peers.{peer}.peerASN"), json!(NODES_ASN));
    }
    let advertisements = json!([{ "name": "hosts", "localPref": 300, "communities": ["64512:100"] }]);
    cluster.file.set("loadBalancer.bgp.advertisements", advertisements);
    stage.quiet(cluster);
    cluster.apply();
    let mut inside = router(cluster, BgpProgram::Frr);
    inside.asn = NODES_ASN;
    stage.route(cluster, inside);
    stage.web_told(cluster, &NODES);
    for path in stage.paths(cluster, "192.168.60.1/32") {
        assert_eq!((path.local_pref, path.as_path.len()), (Some(300), 0), "{path:?}");
    }
    stage.quiet(cluster);
    cluster.file = first;
    cluster.apply();
    stage.as_at_first(cluster);
}

/// An address of the LAN: neighbours resolve it, the router is told.
pub(crate) fn both(cluster: &mut Cluster, stage: &mut Stage) {
    let before = stage.begin(cluster);
    let first = cluster.file.clone();
    let address: IpAddr = "192.168.50.201".parse().expect("an address");
    let pools = json!([
        { "name": "routed", "addresses": ["192.168.60.0/28", "fd00:60::/124"] },
        { "name": "lan", "addresses": ["192.168.50.200-192.168.50.220"] },
    ]);
    cluster.file.set("loadBalancer.pools", pools);
    cluster.file.set("loadBalancer.l2Advertisements", json!([{ "name": "lan", "ipAddressPools": ["lan"] }]));
    let mut both = service("both", "192.168.50.201", &json!(["192.0.2.2"]));
    both["ipFamilyPolicy"] = json!("SingleStack");
    both["ports"] = json!([{ "port": 80, "targetPort": SERVER }]);
    cluster.file.set("services", json!([web(), both]));
    cluster.apply();
    let paths = stage.told(cluster, "192.168.50.201/32", &NODES);
    assert_eq!(paths.len(), 3);
    let owner = |cluster: &Cluster| {
        let report = until(
            "an owner",
            || cluster.lb("node1"),
            |report| {
                report
                    .as_ref()
                    .is_some_and(|r| r.addresses.iter().any(|a| a.address == address && a.owner.is_some()))
            },
        );
        let report = report.expect("it was there");
        report.addresses.into_iter().find(|a| a.address == address).and_then(|a| a.owner).expect("an owner")
    };
    let announced = |cluster: &Cluster, node: &str| {
        let mine = |a: &homelab_model::LbAddress| a.address == address && a.state() == LbWhere::Announced;
        until(
            node,
            || cluster.lb(node),
            |report| report.as_ref().is_some_and(|r| r.addresses.iter().any(mine)),
        );
    };
    let mut who = owner(cluster);
    announced(cluster, &who);
    cluster.serve(&Place::host("wan"));
    let to = To::new(address, 80, &["wan"]).by(&["tcp"]);
    let of_nodes: Vec<IpAddr> = NODES.iter().map(|node| cluster.on_lan(node)[0]).collect();
    cluster.assert_served(&Place::host("client"), &to, |_| of_nodes.clone());
    // Both hand over from a node that is drained.
    let victim = who.clone();
    cluster.homelab_ok(&["cordon", &victim]);
    let rest: Vec<&str> = NODES.into_iter().filter(|node| *node != victim).collect();
    stage.told(cluster, "192.168.50.201/32", &rest);
    who = until("another owner", || owner(cluster), |now| *now != victim);
    announced(cluster, &who);
    cluster.assert_served(&Place::host("client"), &to, |_| of_nodes.clone());
    cluster.homelab_ok(&["uncordon", &victim]);
    stage.told(cluster, "192.168.50.201/32", &NODES);
    cluster.file = first;
    cluster.apply();
    stage.told(cluster, "192.168.50.201/32", &[]);
    assert_eq!(stage.as_at_first(cluster), before);
}
