//! The objects of a node, written down: `UPDATE_GOLDEN=1` rewrites them.
#![allow(clippy::disallowed_methods, reason = "golden files")]

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::path::Path;

use fixtures::{nets, peer};
use homelab_model::{
    BgpPeer, BgpSpec, Content, File, NodeSpec, Pool, PoolRange, SpeakerNode, SpeakerSpec, Spec, ours,
    plan_node,
};

fn spec(dual: bool) -> NodeSpec {
    let cidrs = nets("10.244.1.0/24", "fd00:10:244:1::/64", dual);
    NodeSpec { peers: vec![peer("node2", "192.168.50.12", cidrs)], ..fixtures::spec(dual) }
}

fn check(name: &str, spec: &NodeSpec) {
    let objects = homelab_desired::desired(spec);
    let mut text = String::new();
    for planned in plan_node("node1", &[], &objects).changes {
        let after = serde_json::to_string_pretty(&planned.change.after()).expect("json");
        text.push_str(&format!("# {} {}\n{after}\n", planned.module.as_str(), planned.object));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        std::fs::write(&path, &text).expect("write");
    }
    let golden = std::fs::read_to_string(&path).expect("golden file; UPDATE_GOLDEN=1 writes it");
    assert_eq!(golden, text);
    // Every object has a key of its own, or diff would lose one.
    let keys: std::collections::BTreeSet<_> = objects.iter().map(|o| o.spec.key()).collect();
    assert_eq!(keys.len(), objects.len());
}

#[test]
fn ipv4() {
    check("ipv4.txt", &spec(false));
}

#[test]
fn dual_stack() {
    check("dual-stack.txt", &spec(true));
}

#[test]
fn without_ipv6_in_the_kernel() {
    check("without-ipv6.txt", &NodeSpec { ipv6_disabled: true, ..spec(false) });
}

#[test]
fn routers_are_kept() {
    let links = vec!["eth0".to_owned(), "eth1.7".to_owned()];
    check("router-advertisements.txt", &NodeSpec { router_advertisements: links, ..spec(true) });
}

#[test]
fn only_an_agent_that_announces_addresses_may_send_frames() {
    let unit = |speaker| {
        let objects = homelab_desired::desired(&NodeSpec { speaker, ..spec(false) });
        let text = objects.into_iter().find_map(|o| match o.spec {
            Spec::File(File { path, content: Content::Text(text), .. }) if path == ours::UNIT_FILE => {
                Some(text)
            }
            _ => None,
        });
        text.expect("a unit file")
    };
    let more = |speaker: SpeakerSpec| -> Vec<String> {
        let (without, with) = (unit(None), unit(Some(speaker)));
        with.lines().filter(|line| !without.lines().any(|l| l == *line)).map(str::to_owned).collect()
    };
    let timely = [
        "# A node that answers its peers late is taken for dead. Nice is for kernels without the cgroup's weight.",
        "Nice=-10",
        "CPUWeight=1000",
    ];
    // Members tell each other of containers by UDP.
    assert_eq!(more(SpeakerSpec::default()), timely);
    assert_eq!(
        more(SpeakerSpec { pools: vec![pool()], ..SpeakerSpec::default() }),
        [
            timely[0],
            timely[1],
            timely[2],
            "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE",
            "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6 AF_PACKET",
        ]
    );
}

fn pool() -> Pool {
    let address = |text: &str| text.parse().expect("address");
    Pool {
        name: "lan".into(),
        addresses: vec![PoolRange { first: address("192.168.50.200"), last: address("192.168.50.220") }],
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }
}

/// A speaker with one router for all nodes.
fn bgp(bfd: bool) -> SpeakerSpec {
    let peer = BgpPeer {
        bfd_profile: bfd.then(|| "fast".to_owned()),
        ..BgpPeer::new("router", "192.168.50.1".parse().expect("address"), 64513)
    };
    let nodes = vec![SpeakerNode {
        name: "node1".into(),
        address: "192.168.50.11".parse().expect("address"),
        labels: Default::default(),
    }];
    SpeakerSpec {
        nodes,
        pools: vec![pool()],
        bgp: Some(BgpSpec { my_asn: 64512, peers: vec![peer], ..BgpSpec::default() }),
        ..SpeakerSpec::default()
    }
}

#[test]
fn routers() {
    let speaker = Some(bgp(true));
    check("bgp.txt", &NodeSpec { speaker, packages: vec!["frr".to_owned()], ..spec(false) });
}

#[test]
fn only_nodes_with_sessions_have_daemons_and_only_watched_ones_bfdd() {
    let units = |speaker: SpeakerSpec, node: &str| -> Vec<String> {
        let spec = NodeSpec { speaker: Some(speaker), node: node.to_owned(), ..spec(false) };
        let objects = homelab_desired::desired(&spec).into_iter();
        objects
            .filter_map(|o| match o.spec {
                Spec::Unit(unit) if unit.name != ours::UNIT => Some(unit.name),
                _ => None,
            })
            .collect()
    };
    assert_eq!(units(bgp(false), "node1"), ["homelab-bgp-zebra.service", "homelab-bgp.service"]);
    assert_eq!(units(bgp(true), "node1").len(), 3);
    assert_eq!(units(bgp(true), "node2"), [""; 0], "a node that the speakers do not know");
    assert_eq!(units(SpeakerSpec::default(), "node1"), [""; 0]);
}

#[test]
fn objects_survive_the_wire() {
    let objects = homelab_desired::desired(&spec(true));
    let text = serde_json::to_string(&objects).expect("json");
    let back: Vec<homelab_model::NodeObject> = serde_json::from_str(&text).expect("objects");
    assert_eq!(back, objects);
}

#[test]
fn parameters_of_links_do_not_depend_on_the_address_families() {
    // A parameter of a link that stays cannot be taken away again.
    let keys = |dual: bool| {
        let keys = homelab_desired::desired(&spec(dual)).into_iter().map(|o| o.spec.key());
        keys.filter(|k| matches!(k, homelab_model::Key::LinkSysctl(..)))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(keys(false), keys(true));
}
