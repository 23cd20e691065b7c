//! Golden outputs of load-balancer addresses.

use homelab_driver::LbPicture;
use homelab_model::{Holder, LbBgp, LbNode, LbReport, LbRoute, LbSession, LbStanding, LbState, LbUnfit};

use super::*;
use crate::fake::says;

const OWNERS: [(&str, &str); 5] = [
    ("192.168.50.200", "node1"),
    ("192.168.50.201", "node1"),
    ("192.168.50.202", "node2"),
    ("192.168.50.203", "node2"),
    ("fd00::200", "node3"),
];

fn good() -> Vec<LbAnswer> {
    ["node1", "node2", "node3"].map(|node| (node.to_owned(), Ok(says(node, &OWNERS)))).to_vec()
}

fn node(nodes: &mut [LbAnswer], index: usize) -> &mut LbNode {
    nodes[index].1.as_mut().unwrap()
}

fn report(nodes: &mut [LbAnswer], index: usize) -> &mut LbReport {
    node(nodes, index).report.as_mut().unwrap()
}

/// All that can be wrong at once, but for a partition.
fn bad() -> Vec<LbAnswer> {
    let mut nodes = good();
    let own = &mut report(&mut nodes, 0).addresses[1];
    (own.conflict, own.interfaces[0].state) = (Some("02:99:00:00:00:01".into()), LbState::Conflict);
    for index in 0..3 {
        let report = report(&mut nodes, index);
        report.members[1].cordoned = true;
        let nobody = &mut report.addresses[2];
        (nobody.owner, nobody.since_unix_ms, nobody.interfaces) = (None, None, Vec::new());
        nobody.unfit = vec![
            ("node1".into(), LbUnfit::NoLocalEndpoint),
            ("node2".into(), LbUnfit::Cordoned),
            ("node3".into(), LbUnfit::NoLocalEndpoint),
        ];
        report.members[2].standing = LbStanding::Down;
    }
    let by = Holder { who: "me@laptop".into(), pid: 7, command: "cordon".into(), since: 1_764_098_305 };
    node(&mut nodes, 1).cordoned = Some(by);
    report(&mut nodes, 1).addresses[3].interfaces[0].state = LbState::Probing;
    let error =
        ErrorText { message: "cannot connect to 192.168.50.13:22".into(), hints: vec!["is it on?".into()] };
    nodes[2].1 = Err(error);
    nodes
}

#[test]
fn addresses_of_all_nodes_are_one_table() {
    let nodes = bad();
    let picture = LbPicture::of(&nodes);
    insta::assert_snapshot!(lb_human(&nodes, &picture, Paint(false)));
    insta::assert_snapshot!(lb_markdown(&nodes, &picture));
    insta::assert_snapshot!(Shown::json(&lb_json("home", &nodes, &picture)));
    let warnings = lb_warnings(&picture);
    assert_eq!(
        warnings,
        [
            "load-balancer address 192.168.50.201: another machine with the MAC 02:99:00:00:00:01 has it, so node1 \
             does not announce it; homelab status lb says more",
            "load-balancer address 192.168.50.202: no node can have it; homelab status lb says more"
        ]
    );
}

#[test]
fn addresses_that_are_well_need_no_words() {
    let nodes = good();
    let picture = LbPicture::of(&nodes);
    let shown = lb_human(&nodes, &picture, Paint(false));
    assert!(shown.ends_with("1 min 30 s  announced  0\n\n5 addresses on 3 nodes.\n"), "{shown}");
    assert!(lb_warnings(&picture).is_empty());
    assert_eq!(lb_json("home", &nodes, &picture)["healthy"], true);
    let none: Vec<LbAnswer> = vec![("node1".into(), Ok(LbNode::default()))];
    let shown = lb_human(&none, &LbPicture::of(&none), Paint(false));
    assert_eq!(&*shown, "No node is told to announce load-balancer addresses.\n");
}

/// Two nodes that tell a router of addresses, one of which nobody announces.
fn routed() -> Vec<LbAnswer> {
    let mut nodes = good();
    for index in 0..2 {
        let session = LbSession {
            peer: "router".into(),
            router: "192.168.50.1 AS64513".into(),
            state: LbSession::ESTABLISHED.into(),
            since_unix_ms: Some(report(&mut nodes, index).time_unix_ms - 61_000),
            routes_sent: 2,
            dropped: 1,
            last_reset: Some("Peer closed the session".into()),
            bfd: Some("Up".into()),
        };
        let route = |address: &str| LbRoute {
            prefix: format!("{address}/32").parse().unwrap(),
            addresses: vec![address.parse().unwrap()],
            peers: vec!["router".into()],
        };
        let routes = vec![route("192.168.50.200"), route("192.168.50.201")];
        report(&mut nodes, index).bgp = Some(LbBgp { problem: None, sessions: vec![session], routes });
    }
    for index in 0..3 {
        let address = &mut report(&mut nodes, index).addresses[1];
        (address.owner, address.since_unix_ms, address.interfaces) = (None, None, Vec::new());
        let why = LbUnfit::NoAdvertisement;
        address.unfit = ["node1", "node2", "node3"].map(|node| (node.to_owned(), why)).to_vec();
    }
    nodes
}

#[test]
fn sessions_with_routers_have_a_table_of_their_own() {
    let nodes = routed();
    let picture = LbPicture::of(&nodes);
    assert!(picture.is_good(), "{picture:?}");
    insta::assert_snapshot!(lb_human(&nodes, &picture, Paint(false)));
    let json = lb_json("home", &nodes, &picture);
    assert_eq!(json["addresses"][1]["state"], "routed");
    assert_eq!(json["addresses"][0]["told_by"][1], serde_json::json!({"node": "node2", "peers": ["router"]}));
    assert_eq!((&json["sessions"][0]["seconds"], &json["healthy"]), (&61.into(), &true.into()));
}

#[test]
fn lost_sessions_say_what_to_do() {
    let mut nodes = routed();
    let own = report(&mut nodes, 0).bgp.as_mut().unwrap();
    (own.sessions[0].state, own.sessions[0].since_unix_ms) = ("Active".into(), None);
    let other = report(&mut nodes, 1).bgp.as_mut().unwrap();
    other.sessions[0].bfd = Some("Down".into());
    other.problem = Some("bgpd does not run".into());
    let picture = LbPicture::of(&nodes);
    assert!(!picture.is_good());
    insta::assert_snapshot!(lb_human(&nodes, &picture, Paint(false)));
    insta::assert_snapshot!(lb_markdown(&nodes, &picture));
    assert_eq!(
        lb_warnings(&picture),
        [
            "node1 has no BGP session with router (192.168.50.1 AS64513): it is Active; homelab status lb says more",
            "node2: BFD does not hear router (192.168.50.1 AS64513); homelab status lb says more",
            "node2: BGP does not work as it should: bgpd does not run; homelab status lb says more",
        ]
    );
    // Nobody tells of it now: an address that is for routers alone is lost.
    report(&mut nodes, 1).bgp.as_mut().unwrap().sessions[0].state = "Idle".into();
    let picture = LbPicture::of(&nodes);
    assert!(lb_human(&nodes, &picture, Paint(false)).contains("192.168.50.201: no node can have it"));
}

#[test]
fn a_partition_is_told_from_both_sides() {
    let mut nodes = good();
    for (here, there) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
        report(&mut nodes, here).members[there].standing = LbStanding::Down;
    }
    let alone = says("node3", &OWNERS.map(|(address, _)| (address, "node3"))).report.unwrap();
    report(&mut nodes, 2).addresses = alone.addresses;
    let picture = LbPicture::of(&nodes);
    let first = LbPicture { addresses: picture.addresses[..1].to_vec(), ..picture };
    insta::assert_snapshot!(lb_human(&nodes, &first, Paint(false)));
}

#[test]
fn nodes_that_do_not_work_say_why() {
    let mut nodes = good();
    (node(&mut nodes, 0).agent, node(&mut nodes, 0).report) = (false, None);
    node(&mut nodes, 1).report = None;
    report(&mut nodes, 2).settled = false;
    report(&mut nodes, 2).members[2].ready = false;
    let shown = lb_human(&nodes, &LbPicture::of(&nodes), Paint(false));
    for text in [
        "node1: its agent does not run",
        "node2: its agent says nothing of addresses",
        "node3: its agent waits to hear of the others",
        "node3: its services are not in place",
    ] {
        assert!(shown.contains(text), "{shown}");
    }
}

#[test]
fn every_reason_has_words_and_what_can_be_done_a_hint() {
    let all = [
        (LbUnfit::NoAdvertisement, "loadBalancer"),
        (LbUnfit::ExcludeLabel, "take that label off node1"),
        (LbUnfit::NotSelected, "other nodes"),
        (LbUnfit::NoLocalEndpoint, "homelab status services"),
        (LbUnfit::NoCommonInterface, "share interfaces"),
        (LbUnfit::Away, "no member now"),
        (LbUnfit::NotReady, "homelab status services"),
        (LbUnfit::Cordoned, "is cordoned"),
        (LbUnfit::NoInterface, "same network"),
    ];
    for (why, words) in all {
        let mut nodes = good();
        for index in 0..3 {
            let address = &mut report(&mut nodes, index).addresses[0];
            (address.owner, address.unfit) = (None, vec![("node1".into(), why)]);
        }
        let shown = lb_human(&nodes, &LbPicture::of(&nodes), Paint(false));
        assert!(shown.contains("192.168.50.200: no node can have it\n  node1: "), "{shown}");
        assert!(shown.contains(words), "{why:?}: {shown}");
    }
}

#[test]
fn a_cordon_says_what_moved_and_what_did_not() {
    let before = LbPicture::of(&good());
    let owners = OWNERS.map(|(a, owner)| (a, if owner == "node1" { "node2" } else { owner }));
    let after: Vec<LbAnswer> = vec![("node2".into(), Ok(says("node2", &owners)))];
    let moved = moves(&before, &LbPicture::of(&after));
    assert_eq!(moved.len(), 2);
    let said = CordonSaid {
        node: "node1".into(),
        on: true,
        changed: true,
        agent: true,
        told: true,
        known: true,
        moved,
        kept: Vec::new(),
        silent: Vec::new(),
    };
    assert!(said.is_done());
    insta::assert_snapshot!(cordon_human(&said, Paint(false)));
    insta::assert_snapshot!(cordon_markdown(&said));
    let json = cordon_json(&said);
    assert_eq!((&json["format_version"], &json["cordoned"]), (&1.into(), &true.into()));
    assert_eq!(json["moved"][1]["to"], "node2");
    let stuck = CordonSaid {
        known: false,
        agent: false,
        moved: Vec::new(),
        kept: vec!["192.168.50.200".parse().unwrap()],
        silent: vec![("node3".into(), ErrorText { message: "it is away".into(), hints: Vec::new() })],
        ..said.clone()
    };
    assert!(!stuck.is_done());
    insta::assert_snapshot!(cordon_human(&stuck, Paint(false)));
    for (on, changed, words) in [
        (true, false, "node1 was cordoned already."),
        (false, true, "node1 is no longer cordoned"),
        (false, false, "node1 was not cordoned."),
    ] {
        let said = CordonSaid { on, changed, ..said.clone() };
        assert!(cordon_human(&said, Paint(false)).contains(words), "{words}");
    }
}
