//! BGP: the package, its absence, and the peers' passwords.
#![cfg(test)]

mod fake;

use fake::{Lan, Laptop, THREE, cluster};
use homelab_driver::{Goal, NEW_KEYS, NodeError, Outcome};
use homelab_model::{
    BgpAdvertisement, BgpPeer, BgpSettings, BgpSpec, Cluster, FrrFact, Key, PasswordFile, Passwords, Pool,
    Selector, ours,
};

const ADDRESSES: [&str; 3] = ["192.168.50.11", "192.168.50.12", "192.168.50.13"];
const WEAK: &str = "cisco";

fn peer(name: &str, address: &str) -> BgpPeer {
    BgpPeer::new(name, address.parse().unwrap(), 64513)
}

fn only(node: &str) -> Vec<Selector> {
    let label = (homelab_model::LABEL_HOSTNAME.to_owned(), node.to_owned());
    vec![Selector { match_labels: [label].into_iter().collect(), ..Selector::default() }]
}

/// Three nodes with these routers.
fn home(peers: Vec<BgpPeer>) -> Cluster {
    let mut home = cluster(&THREE);
    home.load_balancer.pools = vec![Pool {
        name: "lan".into(),
        addresses: Vec::new(),
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }];
    let all = BgpAdvertisement {
        name: "all".into(),
        aggregation_length: 32,
        aggregation_length_v6: 128,
        ..BgpAdvertisement::default()
    };
    let spec = BgpSpec { my_asn: 64512, peers, advertisements: vec![all], bfd_profiles: Vec::new() };
    home.load_balancer.bgp = Some(BgpSettings { spec, ..BgpSettings::default() });
    home
}

fn passwords(pairs: &[(&str, &str)]) -> Option<Passwords> {
    let mut all = Passwords::default();
    for (peer, text) in pairs {
        all.add(peer, text).unwrap();
    }
    Some(all)
}

fn units(lan: &Lan, address: &str) -> Vec<String> {
    lan.with(address, |m| {
        let unit = |key: &Key| if let Key::Unit(name) = key { Some(name.clone()) } else { None };
        m.objects.keys().filter_map(unit).filter(|name| name != ours::UNIT).collect()
    })
}

fn has_package(lan: &Lan, address: &str) -> bool {
    lan.with(address, |m| m.objects.contains_key(&Key::Package("frr".into())))
}

fn file(lan: &Lan, address: &str) -> Option<PasswordFile> {
    lan.with(address, |m| {
        let text = m.texts.get(&m.secret_summary(ours::BGP_PASSWORDS)?)?;
        Some(PasswordFile::parse(text).unwrap())
    })
}

#[test]
fn only_nodes_with_a_router_get_frr_and_lose_it_again() {
    let laptop = Laptop::new(Lan::three());
    let mut router = peer("router", "192.168.50.1");
    router.node_selectors = [only("node1"), only("node2")].concat();
    let bgp = home(vec![router]);
    let plan = laptop.plan(&bgp);
    let warned = plan
        .warnings
        .iter()
        .any(|w| w == "node3: no BGP peer is for this node, so it tells no router of addresses");
    assert!(warned, "{:?}", plan.warnings);
    let made: Vec<&str> = plan.nodes[0]
        .outcome
        .as_ref()
        .unwrap()
        .changes
        .iter()
        .map(|c| c.object.as_str())
        .filter(|object| object.contains("frr") || object.contains("bgp"))
        .collect();
    assert_eq!(
        made,
        [
            "file /etc/systemd/system/homelab-bgp-zebra.service",
            "file /etc/systemd/system/homelab-bgp.service",
            "package frr",
            "unit homelab-bgp-zebra.service",
            "unit homelab-bgp.service",
        ]
    );
    let report = laptop.apply(&bgp);
    assert!(report.succeeded(), "{report:?}");
    for (address, expected) in ADDRESSES.iter().zip([true, true, false]) {
        assert_eq!(has_package(&laptop.lan, address), expected);
        assert_eq!(units(&laptop.lan, address).len(), if expected { 2 } else { 0 });
        laptop.lan.with(address, |m| {
            let names: Vec<&str> = m.log.iter().map(|(_, name)| name.as_str()).collect();
            let place = |what: &str| names.iter().position(|name| *name == what);
            assert_eq!(place("Install").is_some(), expected, "{names:?}");
            assert!(place("Install") < place("Begin"), "{names:?}");
        });
    }
    assert!(laptop.plan(&bgp).is_empty());
    assert!(laptop.apply(&cluster(&THREE)).succeeded());
    assert!(ADDRESSES.iter().all(|a| !has_package(&laptop.lan, a) && units(&laptop.lan, a).is_empty()));
}

#[test]
fn where_frr_cannot_be_had_nothing_is_changed_anywhere() {
    let laptop = Laptop::new(Lan::three());
    let bgp = home(vec![peer("router", "192.168.50.1")]);
    laptop.lan.with(ADDRESSES[1], |m| m.apt = false);
    let plan = laptop.plan(&bgp);
    assert!(
        matches!(&plan.nodes[1].outcome, Err(NodeError::Blocked(p)) if p[0].message.contains("no apt-get")),
        "{:?}",
        plan.nodes[1].outcome
    );
    laptop.lan.with(ADDRESSES[1], |m| m.says_apt = true);
    let report = laptop.apply(&bgp);
    let outcomes: Vec<&Outcome> = report.nodes.iter().map(|n| &n.outcome).collect();
    assert!(matches!(outcomes[0], Outcome::NotStarted), "{report:?}");
    let Outcome::Failed(error) = outcomes[1] else { panic!("{report:?}") };
    assert!(error.to_string().contains("Unable to locate package frr"), "{error}");
    laptop.lan.unlocked();
    for address in ADDRESSES {
        laptop.lan.with(address, |m| {
            assert!(m.objects.keys().all(|key| matches!(key, Key::Package(_))), "{:?}", m.objects.keys());
            assert!(m.open.is_none());
        });
    }
    // What came before the failure is known to be ours.
    laptop.lan.with(ADDRESSES[1], |m| m.apt = true);
    assert!(laptop.apply(&bgp).succeeded());
    assert!(laptop.destroy(&bgp).succeeded());
    assert!(ADDRESSES.iter().all(|a| laptop.lan.with(a, |m| m.is_bare())));
}

#[test]
fn the_users_own_frr_is_left_alone_and_told_of_where_it_disturbs() {
    let laptop = Laptop::new(Lan::three());
    let mut router = peer("router", "192.168.50.1");
    router.bfd_profile = Some("fast".into());
    let bgp = home(vec![router]);
    let neighbors = vec!["192.168.50.1".parse().unwrap(), "192.168.50.99".parse().unwrap()];
    let own = FrrFact { bfd: true, bgpd: true, bfdd: true, neighbors, ..FrrFact::default() };
    laptop.lan.with(ADDRESSES[0], |m| m.own_frr = Some(own.clone()));
    laptop.lan.with(ADDRESSES[1], |m| m.own_frr = Some(FrrFact { bfd: false, bgpd: true, ..own.clone() }));
    let plan = laptop.plan(&bgp);
    assert!(plan.nodes[1].outcome.is_err(), "bfdd is missing there");
    let of_first: Vec<&String> = plan.warnings.iter().filter(|w| w.starts_with("node1: another")).collect();
    assert_eq!(of_first.len(), 2, "{:?}", plan.warnings);
    assert!(of_first[0].contains("has 192.168.50.1 among its neighbours"), "{}", of_first[0]);
    laptop.lan.with(ADDRESSES[1], |m| m.own_frr = None);
    assert!(laptop.apply(&bgp).succeeded());
    assert_eq!(ADDRESSES.map(|a| has_package(&laptop.lan, a)), [false, true, true]);
    assert!(ADDRESSES.iter().all(|a| units(&laptop.lan, a).len() == 3));
    assert!(laptop.plan(&bgp).is_empty());
}

#[test]
fn each_node_holds_the_passwords_of_its_own_peers_and_they_are_never_shown() {
    let mut laptop = Laptop::new(Lan::three());
    let mut routers =
        vec![peer("router", "192.168.50.1"), peer("edge", "192.168.50.2"), peer("open", "192.168.50.3")];
    routers[0].password = true;
    routers[1].password = true;
    routers[1].node_selectors = only("node2");
    let bgp = home(routers);
    laptop.options.passwords = passwords(&[("router", WEAK), ("edge", "b")]);
    let prepared = laptop.prepare(&bgp, Goal::Desired);
    let mut said = format!("{:?} {:?}", prepared.plan, laptop.options);
    assert!(said.contains(&format!("for edge, router: {NEW_KEYS}")), "{said}");
    for node in &prepared.plan.nodes {
        said.push_str(&serde_json::to_string(node.outcome.as_ref().unwrap()).unwrap());
    }
    said.push_str(&format!("{:?}", laptop.apply(&bgp)));
    let peers = |address: &str| -> Vec<String> {
        file(&laptop.lan, address).unwrap().passwords().peers().map(str::to_owned).collect()
    };
    assert_eq!(ADDRESSES.map(peers), [vec!["router"], vec!["edge", "router"], vec!["router"]]);
    let files = ADDRESSES.map(|a| file(&laptop.lan, a).unwrap());
    assert_ne!(files[0].summary(), files[2].summary(), "each has a salt of its own");
    let plan = laptop.plan(&bgp);
    assert!(plan.is_empty(), "{plan:?}");
    // Without the passwords at hand, too.
    let known = laptop.options.passwords.take();
    assert!(laptop.plan(&bgp).is_empty());
    laptop.options.passwords = known;

    // One changes: only nodes that have that peer.
    laptop.options.passwords = passwords(&[("router", WEAK), ("edge", "changed")]);
    let plan = laptop.plan(&bgp);
    assert_eq!((plan.changed_nodes(), plan.summary().update), (1, 1), "{plan:?}");
    said.push_str(&format!("{plan:?}"));
    assert!(laptop.apply(&bgp).succeeded());
    assert_eq!(file(&laptop.lan, ADDRESSES[1]).unwrap().passwords().get("edge"), Some("changed"));
    // And back to what the node has kept.
    let engine = laptop.engine();
    let report =
        engine.apply(engine.prepare_apply(&bgp, Goal::Previous, &["node2".into()]).unwrap()).unwrap();
    assert!(report.succeeded(), "{report:?}");
    assert_eq!(file(&laptop.lan, ADDRESSES[1]).unwrap(), files[1]);
    assert!(!said.contains(WEAK) && !said.contains("changed\""), "{said}");

    // A new file needs the text.
    laptop.lan.with(ADDRESSES[0], |m| drop(m.objects.remove(&Key::File(ours::BGP_PASSWORDS.into()))));
    laptop.options.passwords = None;
    let drift = laptop.prepare(&bgp, Goal::Desired).drift("node1").unwrap();
    assert_eq!(drift.changes.len(), 1, "{drift:?}");
    let engine = laptop.engine();
    let error = engine.apply(engine.prepare_apply(&bgp, Goal::Desired, &[]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "node1: the password of the BGP peer router is not at hand");
    laptop.options.passwords = passwords(&[("router", WEAK), ("edge", "b")]);
    assert!(laptop.apply(&bgp).succeeded());
    assert!(laptop.destroy(&bgp).succeeded());
    assert!(ADDRESSES.iter().all(|a| laptop.lan.with(a, |m| m.is_bare())));
}

#[test]
fn a_peer_without_a_node_is_told() {
    let laptop = Laptop::new(Lan::three());
    let mut lost = peer("lost", "192.168.50.1");
    lost.node_selectors = only("node9");
    let plan = laptop.plan(&home(vec![lost, peer("router", "192.168.50.2")]));
    let told: Vec<&String> = plan.warnings.iter().filter(|w| w.contains("BGP")).collect();
    assert_eq!(told, ["BGP peer lost: no node fits its `nodeSelectors`, so nobody has a session with it"]);
}
