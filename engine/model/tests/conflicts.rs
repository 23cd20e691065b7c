//! What of a node's own state blocks ours.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use fixtures::cluster;
use homelab_model::{
    AddressFact, Facts, Link, LinkFact, LinkKind, Module, NodeObject, Observed, RouteFact, Spec, conflicts,
    ours,
};

fn link(name: &str, kind: &str, alias: &str, vxlan: Option<(u32, u16)>) -> LinkFact {
    LinkFact {
        name: name.into(),
        kind: kind.into(),
        mtu: 1500,
        up: true,
        alias: alias.into(),
        vxlan,
        ..LinkFact::default()
    }
}

fn clean() -> Facts {
    Facts {
        systemd: Some("252".into()),
        nft: Some("present".into()),
        links: vec![
            link("eth0", "", "", None),
            link("homelab.1", "vxlan", ours::LINK_ALIAS, Some((1, 8472))),
            link("homelab0", "bridge", ours::LINK_ALIAS, None),
        ],
        addresses: vec![
            AddressFact { link: "eth0".into(), address: "192.168.50.11/24".parse().expect("net") },
            AddressFact { link: "homelab0".into(), address: "10.244.0.1/24".parse().expect("net") },
        ],
        routes: vec![RouteFact {
            destination: "10.244.1.0/24".parse().expect("net"),
            link: Some("homelab.1".into()),
            protocol: ours::ROUTE_PROTOCOL,
        }],
        ..Facts::default()
    }
}

fn messages(facts: &Facts) -> Vec<String> {
    let observed = Observed { facts: facts.clone(), ..Observed::default() };
    let address = "192.168.50.11".parse().expect("address");
    conflicts(&cluster(&[]), address, facts, &observed.our_links(&[]), None)
        .into_iter()
        .map(|p| p.message)
        .collect()
}

#[test]
fn our_own_state_is_no_conflict() {
    assert_eq!(messages(&clean()), Vec::<String>::new());
}

#[test]
fn every_blocker_is_named_at_once() {
    let mut facts = clean();
    facts.nft = None;
    facts.links[1].alias.clear();
    facts.links.push(link("flannel.1", "vxlan", "", Some((1, 8472))));
    facts.links.push(link("cni0", "bridge", "", None));
    facts.addresses.push(AddressFact { link: "cni0".into(), address: "10.244.3.1/24".parse().expect("net") });
    facts.routes.push(RouteFact {
        destination: "10.244.9.0/24".parse().expect("net"),
        link: Some("eth0".into()),
        protocol: 3,
    });
    let found = messages(&facts).join("\n");
    for part in [
        "nft is missing",
        "link homelab.1",
        "flannel.1",
        "10.244.3.1/24 on cni0",
        "route 10.244.9.0/24 dev eth0",
    ] {
        assert!(found.contains(part), "{part} not in:\n{found}");
    }
}

#[test]
fn a_wrong_machine_is_noticed() {
    let mut facts = clean();
    facts.addresses.remove(0);
    assert!(messages(&facts)[0].contains("no interface has the address 192.168.50.11"));
}

#[test]
fn a_link_that_lost_its_mark_is_still_ours_while_it_is_what_the_record_says() {
    let object = |mac: &str, alias: &str| NodeObject {
        module: Module::Vtep,
        spec: Spec::Link(Link {
            name: "homelab0".into(),
            mac: mac.into(),
            mtu: 1450,
            up: true,
            alias: alias.into(),
            kind: LinkKind::Bridge { stp: false },
        }),
    };
    let mut facts = clean();
    facts.links[2].alias.clear();
    let observed =
        |mac: &str| Observed { facts: facts.clone(), objects: vec![object(mac, "")], ..Observed::default() };
    let recorded = [object("02:00:00:00:00:01", ours::LINK_ALIAS)];
    let blocked = |observed: &Observed, recorded: &[NodeObject]| {
        let address = "192.168.50.11".parse().expect("address");
        !conflicts(&cluster(&[]), address, &observed.facts, &observed.our_links(recorded), None).is_empty()
    };
    assert!(!blocked(&observed("02:00:00:00:00:01"), &recorded));
    assert!(blocked(&observed("02:00:00:00:00:01"), &[]), "no record");
    assert!(blocked(&observed("02:00:00:00:00:02"), &recorded), "another link under the same name");
}

#[test]
fn a_foreign_route_in_the_place_of_ours_is_named_with_its_owner_and_the_peer() {
    let mut facts = clean();
    let mut record = fixtures::spec(false);
    record.peers.push(fixtures::peer("node2", "192.168.50.12", vec![fixtures::net("10.244.1.0/24")]));
    let owned = Observed { facts: facts.clone(), ..Observed::default() }.our_links(&[]);
    let found = |facts: &Facts, record| {
        let address = "192.168.50.11".parse().expect("address");
        let problems = conflicts(&cluster(&[]), address, facts, &owned, record);
        problems.into_iter().map(|p| format!("{}; {}", p.message, p.help)).collect::<Vec<_>>()
    };
    let foreign =
        RouteFact { destination: fixtures::net("10.244.1.0/24"), link: Some("eth0".into()), protocol: 3 };
    // Beside ours, with another metric, it is one that overlaps.
    facts.routes.push(foreign.clone());
    let beside = found(&facts, Some(&record));
    assert!(matches!(&beside[..], [one] if one.contains("overlaps")), "{beside:?}");
    facts.routes = vec![foreign];
    let instead = found(&facts, Some(&record));
    assert!(
        matches!(&instead[..], [one] if one.contains("the place of its route to node2: 10.244.1.0/24 dev eth0, protocol 3")
            && one.contains("ip route del 10.244.1.0/24 dev eth0")),
        "{instead:?}"
    );
    // Nothing of ours was ever there.
    assert!(found(&facts, None)[0].contains("overlaps"));
}
