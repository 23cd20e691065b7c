//! Pictures of three nodes.

use homelab_model::LbMember;

use super::*;

const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn member(of: &str, name: &str) -> LbMember {
    let itself = of == name;
    LbMember {
        name: name.into(),
        standing: if itself { LbStanding::Itself } else { LbStanding::Alive },
        since_unix_ms: (!itself).then_some(1_000),
        ready: true,
        cordoned: false,
        interfaces: vec![("eth0".into(), format!("02:00:00:00:00:0{}", &name[4..]))],
    }
}

/// What `node` says of one address of `owner`.
fn address(node: &str, last: u8, owner: Option<&str>) -> LbAddress {
    let interface = LbInterface {
        name: "eth0".into(),
        mac: Some("02:00:00:00:00:01".into()),
        state: LbState::Announced,
        since_unix_ms: 50_000,
        answered: 3,
        announcements: 9,
        claims: 0,
    };
    LbAddress {
        address: IpAddr::from([192, 168, 50, last]),
        services: vec![format!("default/web{last}")],
        pool: Some("home".into()),
        owner: owner.map(str::to_owned),
        // By each one's own clock.
        since_unix_ms: owner.map(|_| if owner == Some(node) { 40_000 } else { 7_000 }),
        moves: if owner == Some(node) { 1 } else { 2 },
        conflict: None,
        interfaces: if owner == Some(node) { vec![interface] } else { Vec::new() },
        unfit: Vec::new(),
    }
}

/// Three nodes; node1 has .200, node2 has .201, nobody has .202.
fn good() -> Vec<(String, Result<LbNode, ()>)> {
    let of = |node: &str| {
        let report = LbReport {
            bgp: None,
            node: node.into(),
            time_unix_ms: 90_000,
            settled: true,
            members: NODES.map(|name| member(node, name)).to_vec(),
            addresses: vec![address(node, 200, Some("node1")), address(node, 201, Some("node2"))],
        };
        LbNode { time_unix_ms: 100_000, cordoned: None, told: true, agent: true, report: Some(report) }
    };
    NODES.iter().map(|node| ((*node).to_owned(), Ok(of(node)))).collect()
}

fn report(answers: &mut [(String, Result<LbNode, ()>)], node: usize) -> &mut LbReport {
    answers[node].1.as_mut().unwrap().report.as_mut().unwrap()
}

#[test]
fn the_owners_word_counts() {
    let picture = LbPicture::of(&good());
    assert!(picture.is_good() && picture.is_used(), "{picture:?}");
    let [first, second] = &picture.addresses[..] else { panic!("{picture:?}") };
    assert_eq!((first.owner.as_deref(), second.owner.as_deref()), (Some("node1"), Some("node2")));
    assert_eq!((first.state, first.age, first.moves), (LbWhere::Announced, Some(60), 2));
    assert_eq!(first.interfaces[0].name, "eth0");
    assert_eq!(picture.nodes[2].interfaces, [("eth0".to_owned(), "02:00:00:00:00:03".to_owned())]);
    // What only counts is no news.
    let mut later = good();
    for (_, node) in &mut later {
        node.as_mut().unwrap().time_unix_ms += 2_000;
    }
    report(&mut later, 0).addresses[0].interfaces[0].answered += 1;
    let later = LbPicture::of(&later);
    assert_ne!(later, picture);
    assert_eq!(later.still(), picture.still());
}

#[test]
fn a_conflict_and_a_probe_are_the_owners_to_tell() {
    let mut answers = good();
    let own = &mut report(&mut answers, 0).addresses[0];
    (own.conflict, own.interfaces[0].state) = (Some("02:99:00:00:00:01".into()), LbState::Conflict);
    report(&mut answers, 1).addresses[1].interfaces[0].state = LbState::Probing;
    let picture = LbPicture::of(&answers);
    assert_eq!(picture.addresses[0].state, LbWhere::Conflict);
    assert_eq!(picture.addresses[0].conflict.as_deref(), Some("02:99:00:00:00:01"));
    assert_eq!(picture.addresses[1].state, LbWhere::Probing);
    assert!(!picture.is_good());
}

#[test]
fn an_owner_that_is_silent_is_known_from_the_others() {
    let mut answers = good();
    answers[0].1 = Err(());
    for node in [1, 2] {
        report(&mut answers, node).members[0].standing = LbStanding::Down;
    }
    report(&mut answers, 2).members[0].cordoned = true;
    let picture = LbPicture::of(&answers);
    let row = &picture.addresses[0];
    assert_eq!((row.owner.as_deref(), row.state, row.age), (Some("node1"), LbWhere::Elsewhere, Some(93)));
    let node = &picture.nodes[0];
    assert!(!node.answered && !node.is_good());
    let away: Vec<&str> = node.away.iter().map(|(by, _, _)| by.as_str()).collect();
    assert_eq!(away, ["node2", "node3"]);
    assert_eq!(node.interfaces.len(), 1, "as the others heard of it");
}

#[test]
fn a_partition_shows_on_both_sides() {
    let mut answers = good();
    for (node, other) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
        report(&mut answers, node).members[other].standing = LbStanding::Down;
    }
    let lone = report(&mut answers, 2);
    lone.addresses = vec![address("node3", 200, Some("node3")), address("node3", 201, Some("node3"))];
    let picture = LbPicture::of(&answers);
    let row = &picture.addresses[0];
    assert_eq!(row.owner.as_deref(), Some("node1"), "more nodes name it");
    assert_eq!(row.doubled, ["node1", "node3"]);
    let views = [
        (Some("node1".to_owned()), vec!["node1".to_owned(), "node2".to_owned()]),
        (Some("node3".to_owned()), vec!["node3".to_owned()]),
    ];
    assert_eq!(row.views, views);
    let away =
        |node: usize| picture.nodes[node].away.iter().map(|(by, _, _)| by.as_str()).collect::<Vec<_>>();
    assert_eq!([away(0), away(1), away(2)], [vec!["node3"], vec!["node3"], vec!["node1", "node2"]]);
}

#[test]
fn nobody_has_an_address_for_reasons() {
    let mut answers = good();
    for (index, name) in NODES.iter().enumerate() {
        let mut nobody = address(name, 202, None);
        nobody.unfit = vec![
            ("node1".into(), LbUnfit::NotReady),
            ("node2".into(), LbUnfit::Away),
            ("node3".into(), LbUnfit::NoInterface),
        ];
        report(&mut answers, index).addresses.push(nobody);
    }
    // It knows better why.
    report(&mut answers, 1).addresses[2].unfit[1].1 = LbUnfit::Cordoned;
    let picture = LbPicture::of(&answers);
    let row = &picture.addresses[2];
    assert_eq!((row.owner.as_deref(), row.state, row.since_unix_ms), (None, LbWhere::Nobody, None));
    assert_eq!(row.unfit[1], ("node2".to_owned(), LbUnfit::Cordoned));
    assert_eq!(row.unfit.len(), 3);
}

#[test]
fn one_that_has_just_started_has_no_say() {
    let mut answers = good();
    let fresh = report(&mut answers, 2);
    fresh.settled = false;
    fresh.addresses = vec![address("node3", 200, None), address("node3", 201, None)];
    for other in 0..2 {
        fresh.members[other].standing = LbStanding::Unknown;
    }
    let picture = LbPicture::of(&answers);
    assert!(picture.addresses.iter().all(LbRow::is_good), "{picture:?}");
    assert!(picture.nodes[0].is_good() && !picture.nodes[2].is_good());
    answers[2].1.as_mut().unwrap().report = None;
    assert_eq!(LbPicture::of(&answers).nodes[2].settled, None);
}

#[test]
fn a_cordon_is_known_once_all_say_so_and_agree() {
    let mut answers = good();
    assert!(is_known(&answers, "node2", false) && !is_known(&answers, "node2", true));
    answers[1].1.as_mut().unwrap().cordoned = Some(Holder::default());
    for node in 0..3 {
        report(&mut answers, node).members[1].cordoned = true;
    }
    assert!(!is_known(&answers, "node2", true), "it still has an address");
    for (index, name) in NODES.iter().enumerate() {
        report(&mut answers, index).addresses[1] = address(name, 201, Some("node3"));
    }
    assert!(is_known(&answers, "node2", true));
    let picture = LbPicture::of(&answers);
    assert!(picture.is_good() && picture.nodes[1].cordoned, "a cordoned node does what it was told");
    report(&mut answers, 2).addresses[1] = address("node3", 201, Some("node1"));
    assert!(!is_known(&answers, "node2", true), "two names");
    // Who says nothing is not waited for.
    answers[2].1 = Err(());
    assert!(is_known(&answers, "node2", true));
}
