use homelab_model::{BgpCommunity, BgpPeer};
use serde_json::{Value, json};

use super::*;

fn resources(list: Value) -> Resources {
    let mut resources = Resources::default();
    for (plural, objects) in list.as_object().unwrap() {
        for (name, spec) in objects.as_object().unwrap() {
            let labels = json!({ "of": name });
            let object = json!({ "metadata": { "name": name, "labels": labels }, "spec": spec });
            assert_eq!(resources.add(plural, object), None);
        }
    }
    resources
}

fn notes(meaning: &Meaning) -> Vec<String> {
    meaning.notes.iter().map(|note| format!("{}: {}", note.resource, note.text)).collect()
}

fn pool(name: &str, first: &str, last: &str) -> Pool {
    Pool {
        name: name.into(),
        addresses: vec![PoolRange { first: first.parse().unwrap(), last: last.parse().unwrap() }],
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }
}

#[test]
fn pools_and_their_announcements_mean_what_they_mean_to_metallb() {
    let all = resources(json!({
        "ipaddresspools": {
            "lan": { "addresses": ["192.168.50.200-192.168.50.210", "fd00:50::/120"], "avoidBuggyIPs": true },
            "shop": {
                "addresses": ["192.168.60.8/30"], "autoAssign": false,
                "serviceAllocation": {
                    "priority": 7, "namespaces": ["shop"],
                    "namespaceSelectors": [{ "matchLabels": { "tier": "front" } }],
                    "serviceSelectors": [{ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web"] }] }],
                },
            },
        },
        "l2advertisements": {
            "all": { "interfaces": ["eth0"] },
            "some": {
                "ipAddressPoolSelectors": [{ "matchLabels": { "of": "shop" } }],
                "nodeSelectors": [{ "matchLabels": { "kubernetes.io/hostname": "node1" } }],
            },
        },
    }));
    let namespaces = [("web", "front"), ("db", "back")]
        .map(|(name, tier)| (name.to_owned(), Labels::from([("tier".to_owned(), tier.to_owned())])))
        .into();
    let meaning = meaning(&all, &SpeakerSpec::default(), &namespaces);
    assert_eq!(notes(&meaning), [""; 0]);
    let [lan, shop] = meaning.pools.as_slice() else { panic!("{meaning:?}") };
    assert_eq!(lan.addresses[1].last, "fd00:50::ff".parse::<IpAddr>().unwrap());
    assert_eq!((lan.auto_assign, lan.avoid_buggy_ips, lan.service_allocation.as_ref()), (true, true, None));
    assert_eq!(shop.addresses, pool("shop", "192.168.60.8", "192.168.60.11").addresses);
    let to = shop.service_allocation.as_ref().unwrap();
    assert_eq!((shop.auto_assign, to.priority, to.namespaces.join(" ")), (false, 7, "shop web".to_owned()));
    assert!(to.service_selectors[0].matches(&Labels::from([("app".into(), "web".into())])));
    let [everything, some] = meaning.l2_advertisements.as_slice() else { panic!("{meaning:?}") };
    assert_eq!(
        (everything.ip_address_pools.join(" "), everything.interfaces.join(" ")),
        ("lan shop".into(), "eth0".into())
    );
    assert_eq!((some.ip_address_pools.join(" "), some.node_selectors.len()), ("shop".into(), 1));
    assert_eq!(meaning.bgp, None);
}

#[test]
fn the_file_counts_where_both_say_something_and_stays_for_its_own_pools() {
    let all = resources(json!({
        "ipaddresspools": {
            "default": { "addresses": ["192.168.70.0/24"] },
            "inside": { "addresses": ["192.168.50.205/32"] },
            "later": { "addresses": ["192.168.80.0/24"] },
            "meets": { "addresses": ["192.168.80.7-192.168.80.8"] },
            "odd": { "addresses": ["192.168.80"] },
            "back": { "addresses": ["192.168.90.9-192.168.90.1"] },
            "nobody": {
                "addresses": ["192.168.91.0/24"],
                "serviceAllocation": { "namespaceSelectors": [{ "matchLabels": { "no": "such" } }] },
            },
        },
        "l2advertisements": { "default": {}, "none": { "ipAddressPools": ["gone"] }, "mine": {} },
    }));
    let mut file = SpeakerSpec {
        pools: vec![pool("default", "192.168.50.200", "192.168.50.220")],
        advertisements: vec![L2Advertisement { name: "default".into(), ..L2Advertisement::default() }],
        ..SpeakerSpec::default()
    };
    let meaning = meaning(&all, &file, &BTreeMap::new());
    assert_eq!(
        notes(&meaning),
        [
            "IPAddressPool back: `192.168.90.9-192.168.90.1` is neither a prefix nor a range of addresses: the pool is left out",
            "IPAddressPool default: homelab.yaml has a pool of that name: that one counts",
            "IPAddressPool inside: pool default of homelab.yaml has some of its addresses: that one counts",
            "IPAddressPool meets: IPAddressPool later has some of its addresses: it is left out",
            "IPAddressPool odd: `192.168.80` is neither a prefix nor a range of addresses: the pool is left out",
            "L2Advertisement default: homelab.yaml has an advertisement of that name: that one counts",
            "L2Advertisement none: it is for no pool that there is: nothing is announced by it",
        ]
    );
    let nobody = meaning.pools.iter().find(|pool| pool.name == "nobody").unwrap();
    assert!(nobody.is_pinned(), "for no namespace is not for all");
    meaning.add_to(&mut file);
    let pools: Vec<&str> = file.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(pools, ["default", "later", "nobody"]);
    let advertised: Vec<String> =
        file.advertisements.iter().map(|one| one.ip_address_pools.join(" ")).collect();
    assert_eq!(advertised, ["default", "later nobody"]);
}

#[test]
fn bgp_is_understood_as_far_as_homelab_has_it() {
    let peer = |more: Value| {
        let mut spec = json!({ "myASN": 64512, "peerASN": 64513, "peerAddress": "192.168.50.1" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let all = resources(json!({
        "ipaddresspools": { "lan": { "addresses": ["192.168.50.200-192.168.50.210"] } },
        "bgppeers": {
            "a": peer(json!({ "holdTime": "30s", "bfdProfile": "fast", "peerPort": 1179, "routerID": "10.0.0.1" })),
            "b": peer(json!({ "password": "secret" })),
            "c": peer(json!({ "passwordSecret": { "name": "bgp" } })),
            "d": peer(json!({ "dynamicASN": "external" })),
            "e": peer(json!({ "myASN": 64999 })),
            "f": peer(json!({ "holdTime": "1500ms" })),
            "g": peer(json!({ "bfdProfile": "none" })),
            "h": peer(json!({ "passwordSecret": {}, "peerAddress": "192.168.50.2" })),
        },
        "bfdprofiles": { "fast": { "receiveInterval": 100 } },
        "communities": { "names": { "communities": [{ "name": "vip", "value": "64512:100" }] } },
        "bgpadvertisements": {
            "lan": {
                "communities": ["vip", "large:1:2:3", "no-export"], "localPref": 100, "aggregationLength": 24,
                "peers": ["a"],
            },
            "odd": { "communities": ["vipp"] },
        },
    }));
    // Without a peer of the file there is no FRR.
    let none = super::meaning(&all, &SpeakerSpec::default(), &BTreeMap::new());
    let without = notes(&none);
    assert!(
        without.iter().any(|note| note.starts_with("BGPPeer a: FRR comes to nodes by peers")),
        "{without:?}"
    );
    assert_eq!(none.bgp, None);
    let own = vec![BgpPeer::new("own", "192.168.50.9".parse().unwrap(), 64513)];
    let bgp = Some(BgpSpec { my_asn: 64512, peers: own, ..BgpSpec::default() });
    let with_peer = SpeakerSpec { bgp, ..SpeakerSpec::default() };
    let meaning = meaning(&all, &with_peer, &BTreeMap::new());
    let said = notes(&meaning);
    let about: Vec<&str> = said.iter().filter_map(|note| note.split(':').next()).collect();
    let expected: Vec<String> =
        ["b", "c", "d", "e", "f", "g"].iter().map(|name| format!("BGPPeer {name}")).collect();
    assert_eq!(about[..6], expected);
    assert!(said[6].contains("`vipp` is no community"), "{said:?}");
    assert!(said.iter().all(|note| !note.contains("secret")), "{said:?}");
    let bgp = meaning.bgp.clone().unwrap();
    assert_eq!((bgp.my_asn, bgp.peers.len(), bgp.advertisements.len()), (64512, 2, 1));
    let a = BgpPeer {
        hold_time: 30,
        keepalive_time: 10,
        peer_port: 1179,
        router_id: Some("10.0.0.1".parse().unwrap()),
        bfd_profile: Some("fast".into()),
        ..BgpPeer::new("a", "192.168.50.1".parse().unwrap(), 64513)
    };
    assert_eq!(bgp.peers[0], a);
    assert_eq!((bgp.bfd_profiles[0].receive_interval, bgp.bfd_profiles[0].minimum_ttl), (100, 254));
    let told = &bgp.advertisements[0];
    assert_eq!((told.aggregation_length, told.aggregation_length_v6, told.local_pref), (24, 128, Some(100)));
    let communities: Vec<String> = told.communities.iter().map(BgpCommunity::to_string).collect();
    assert_eq!(communities, ["64512:100", "65535:65281", "1:2:3"]);
    // Beside a file: its number, its peers.
    let mut file = SpeakerSpec {
        bgp: Some(BgpSpec {
            my_asn: 64512,
            peers: vec![BgpPeer::new("router", "192.168.50.1".parse().unwrap(), 64513)],
            ..BgpSpec::default()
        }),
        ..SpeakerSpec::default()
    };
    let beside = super::meaning(&all, &file, &BTreeMap::new());
    assert!(
        notes(&beside)[0].starts_with("BGPPeer a: peer router of homelab.yaml has the same address"),
        "{beside:?}"
    );
    beside.add_to(&mut file);
    let names: Vec<String> = file.bgp.unwrap().peers.into_iter().map(|peer| peer.name).collect();
    assert_eq!(names, ["h", "router"]);
}

#[test]
fn what_is_no_resource_is_told() {
    let mut resources = Resources::default();
    let object = json!({ "metadata": { "name": "lan" }, "spec": { "addresses": 7 } });
    let note = resources.add("ipaddresspools", object).unwrap();
    assert_eq!(note.resource, "ipaddresspools lan");
    assert!(note.text.starts_with("it cannot be understood: invalid type"), "{note:?}");
    assert_eq!(resources, Resources::default());
}
