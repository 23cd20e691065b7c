//! What of a node's own state blocks ours.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use fixtures::cluster;
use homelab_model::{
    AddressFact, Facts, HeldAddress, Link, LinkFact, LinkKind, Module, NodeObject, Observed, RouteFact, Spec,
    adoption_notes, conflicts, ours,
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

/// `cni0` with flannel's range and this many pods.
fn with_cni0(pods: usize) -> Facts {
    let mut facts = clean();
    facts.links.push(link("cni0", "bridge", "", None));
    for number in 0..pods {
        let master = Some("cni0".to_owned());
        facts.links.push(LinkFact { master, ..link(&format!("veth{number}"), "veth", "", None) });
    }
    facts.addresses.push(AddressFact { link: "cni0".into(), address: "10.244.3.1/24".parse().expect("net") });
    facts
}

#[test]
fn another_plugins_bridge_is_named_with_its_pods_and_what_to_do() {
    let found = messages(&with_cni0(2));
    assert_eq!(
        found,
        [
            "address 10.244.3.1/24 on cni0, a bridge of flannel, k3s or another user of the plugin bridge, overlaps \
             the pod range 10.244.0.0/16; 2 containers are attached to it"
        ]
    );
    let observed = Observed { facts: with_cni0(0), ..Observed::default() };
    let address = "192.168.50.11".parse().expect("address");
    let problems = conflicts(&cluster(&[]), address, &observed.facts, &observed.our_links(&[]), None);
    assert!(!problems[0].message.contains("attached"));
    assert!(
        problems[0].help.contains("ip link set cni0 down && ip link set cni0 name homelab0 alias homelab up")
    );
    let notes = adoption_notes(&with_cni0(3));
    assert!(notes.len() == 1 && notes[0].starts_with("3 containers are attached to cni0"), "{notes:?}");
    assert_eq!(adoption_notes(&with_cni0(0)), Vec::<String>::new());
    // Docker's bridge with a range of its own is nobody's business.
    let mut docker = clean();
    docker.links.push(link("docker0", "bridge", "", None));
    docker.links.push(LinkFact { master: Some("docker0".into()), ..link("veth1", "veth", "", None) });
    docker
        .addresses
        .push(AddressFact { link: "docker0".into(), address: "172.17.0.1/16".parse().expect("net") });
    assert_eq!((messages(&docker), adoption_notes(&docker)), (vec![], vec![]));
}

#[test]
fn pods_of_others_on_our_bridge_keep_their_addresses() {
    let mut facts = clean();
    facts.links.push(LinkFact { master: Some("homelab0".into()), ..link("veth1", "veth", "", None) });
    let pod =
        LinkFact { master: Some("homelab0".into()), ..link("hl1", "veth", "homelab-pod:c1/eth0", None) };
    facts.links.push(pod);
    let held = |address: &str| HeldAddress {
        network: "cbr0".into(),
        container: "c".into(),
        address: address.parse().expect("address"),
    };
    facts.held_addresses = vec![held("10.244.0.7"), held("10.244.9.7")];
    assert_eq!(messages(&facts), Vec::<String>::new());
    assert_eq!(
        adoption_notes(&facts),
        [
            "1 container is attached to homelab0 by another CNI plugin: they keep their addresses until they are \
             started anew",
            "host-local holds 1 address for running containers (network cbr0): no new pod gets them before these are \
             gone"
        ]
    );
}

#[test]
fn our_bridge_inside_another_and_a_stranger_in_its_place_are_problems() {
    let mut facts = clean();
    facts.links[2].master = Some("bond0".into());
    assert_eq!(messages(&facts), ["the pods' bridge homelab0 was made a port of bond0"]);
    let mut facts = with_cni0(0);
    facts.links[2] = link("homelab0", "veth", "", None);
    facts.links[3].master = None;
    let found = messages(&facts);
    assert!(
        found[0].starts_with("a link homelab0 (veth) that homelab did not make is in the way"),
        "{found:?}"
    );
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
