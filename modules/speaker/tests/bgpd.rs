//! How bgpd's running configuration becomes what it should be. `frr/bgpd.conf`, `bfdd.conf` and `neighbors.json` are what
//! FRR 8.4.4 of Debian 12 showed after it had been told these very settings.
#![allow(clippy::unwrap_used)]

mod frr;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use frr::Frr;
use homelab_model::{BfdProfile, BgpCommunity, BgpPeer, BgpSpec, Passwords, SpeakerNode, SpeakerSpec};
use homelab_speaker::bgp::{Attributes, Config, Route, Wanted, commands, config, sessions};
use proptest::prelude::*;

fn peer(name: &str, address: &str, asn: u32) -> BgpPeer {
    BgpPeer::new(name, address.parse().unwrap(), asn)
}

fn profile(name: &str) -> BfdProfile {
    BfdProfile {
        name: name.into(),
        receive_interval: BfdProfile::INTERVAL,
        transmit_interval: BfdProfile::INTERVAL,
        detect_multiplier: BfdProfile::DETECT_MULTIPLIER,
        echo_interval: BfdProfile::ECHO_INTERVAL,
        echo_mode: false,
        passive_mode: false,
        minimum_ttl: BfdProfile::MINIMUM_TTL,
    }
}

fn spec(peers: Vec<BgpPeer>) -> SpeakerSpec {
    let node = SpeakerNode {
        name: "node1".into(),
        address: "192.168.50.11".parse().unwrap(),
        labels: BTreeMap::new(),
    };
    let fast = BfdProfile {
        receive_interval: 100,
        transmit_interval: 100,
        detect_multiplier: 5,
        echo_interval: 60,
        echo_mode: true,
        passive_mode: true,
        minimum_ttl: 250,
        ..profile("fast")
    };
    let bgp = BgpSpec {
        my_asn: 64512,
        peers,
        bfd_profiles: vec![fast, profile("std"), profile("unused")],
        ..BgpSpec::default()
    };
    SpeakerSpec { nodes: vec![node], bgp: Some(bgp), ..SpeakerSpec::default() }
}

fn passwords() -> Passwords {
    let mut passwords = Passwords::default();
    passwords.add("x", "s3cret#!").unwrap();
    passwords.add("y", "other").unwrap();
    passwords
}

fn route(prefix: &str, peers: &[(&str, &Attributes)]) -> Route {
    let prefix: ipnet::IpNet = prefix.parse().unwrap();
    Route {
        prefix,
        addresses: vec![prefix.addr()],
        peers: peers.iter().map(|(peer, of)| ((*peer).to_owned(), (*of).clone())).collect(),
    }
}

fn render(spec: &SpeakerSpec, routes: &[Route]) -> Config {
    let address: IpAddr = "192.168.50.11".parse().unwrap();
    config(Wanted { node: "node1", address, spec, passwords: &passwords(), routes })
}

/// Every setting once.
fn full() -> (SpeakerSpec, Vec<Route>) {
    let peers = vec![
        BgpPeer { bfd_profile: Some("std".into()), ..peer("router", "192.168.50.1", 64513) },
        BgpPeer { hold_time: 9, keepalive_time: 3, ..peer("router6", "fd50::1", 64513) },
        BgpPeer {
            password: true,
            peer_port: 1179,
            source_address: Some("192.168.50.11".parse().unwrap()),
            ebgp_multi_hop: true,
            bfd_profile: Some("fast".into()),
            enable_graceful_restart: true,
            ..peer("x", "192.168.50.7", 64520)
        },
        BgpPeer {
            password: true,
            hold_time: 0,
            keepalive_time: 0,
            connect_time: 120,
            ebgp_multi_hop: true,
            router_id: Some("9.9.9.9".parse().unwrap()),
            ..peer("y", "192.168.50.8", 64512)
        },
    ];
    let plain = Attributes::default();
    let mut communities: Vec<BgpCommunity> = [(0, 0), (64512, 100), (65535, 65281), (65535, 666)]
        .map(|(a, b)| BgpCommunity::Standard(a, b))
        .into();
    communities.extend([BgpCommunity::Large(64512, 1, 2), BgpCommunity::Large(64513, 1, 1)]);
    communities.sort();
    let marked = Attributes { local_pref: None, communities };
    let internal = Attributes { local_pref: Some(200), ..marked.clone() };
    let all = [("router", &plain), ("x", &plain), ("y", &plain)];
    let wide = [("router", &marked), ("x", &marked), ("y", &internal)];
    let routes = vec![
        route("10.9.0.0/24", &wide),
        route("10.9.0.1/32", &all),
        route("10.9.0.2/32", &all),
        route("fd99::/64", &[("router6", &marked)]),
        route("fd99::1/128", &[("router6", &plain)]),
    ];
    (spec(peers), routes)
}

const NONE: &[String] = &[];

#[test]
fn frr_shows_what_is_rendered() {
    let (spec, routes) = full();
    let rendered = render(&spec, &routes);
    for (ours, shown) in
        [(&rendered.bgpd, include_str!("frr/bgpd.conf")), (&rendered.bfdd, include_str!("frr/bfdd.conf"))]
    {
        assert_eq!(commands(shown, ours), NONE);
        assert_eq!(commands(ours, shown), NONE);
        // Line by line, in whatever order.
        let lines = |text: &str| -> BTreeSet<String> {
            let all = text.lines().map(str::to_owned);
            all.filter(|line| !line.is_empty() && !line.contains("onfiguration")).collect()
        };
        let more: Vec<_> = lines(shown).difference(&lines(ours)).cloned().collect();
        let of_host = ["frr version", "frr defaults", "hostname", "bgp no-rib"];
        assert!(more.iter().all(|line| of_host.iter().any(|start| line.starts_with(start))), "{more:?}");
        assert_eq!(lines(ours).difference(&lines(shown)).count(), 0);
    }
}

#[test]
fn what_is_no_longer_told_comes_first_and_sessions_begin_last() {
    let (spec, routes) = full();
    let before = render(&spec, &routes);
    let mut fewer = spec.clone();
    let bgp = fewer.bgp.as_mut().unwrap();
    bgp.peers.retain(|peer| peer.name != "y");
    bgp.peers.push(peer("z", "192.168.50.9", 64513));
    bgp.peers[0].router_id = Some("9.9.9.9".parse().unwrap());
    let after = render(&fewer, &routes[1..]);
    let commands = commands(&before.bgpd, &after.bgpd);
    let at = |line: &str| {
        let found = commands.iter().position(|command| command == line);
        found.unwrap_or_else(|| panic!("{line} in\n{}", commands.join("\n")))
    };
    assert_eq!(
        commands[..4],
        [
            "router bgp 64512",
            "no neighbor 192.168.50.8",
            "address-family ipv4 unicast",
            "no network 10.9.0.0/24"
        ]
    );
    assert!(at("neighbor 192.168.50.9 remote-as 64513") + 1 == at("neighbor 192.168.50.9 shutdown"));
    assert!(at("neighbor 192.168.50.9 route-map out-z out") < at("no neighbor 192.168.50.9 shutdown"));
    assert!(at("route-map out-z deny 65535") < at("neighbor 192.168.50.9 remote-as 64513"));
    assert!(at("no neighbor 192.168.50.9 shutdown") < at("no route-map out-y deny 65535"));
    for others in ["192.168.50.1 ", "192.168.50.7 ", "fd50::1 "] {
        assert!(!commands.iter().any(|line| line.contains(others)), "{others} in\n{}", commands.join("\n"));
    }
}

#[test]
fn a_route_more_or_less_is_said_in_a_few_lines() {
    let (spec, mut routes) = full();
    let before = render(&spec, &routes);
    let plain = Attributes::default();
    routes.push(route("10.9.0.77/32", &[("router", &plain)]));
    let after = render(&spec, &routes);
    let more = commands(&before.bgpd, &after.bgpd);
    let (first, rest) = more.split_first().unwrap();
    assert!(
        first.starts_with("ip prefix-list router-") && first.ends_with(" permit 10.9.0.77/32"),
        "{first}"
    );
    let network = [
        "router bgp 64512",
        "address-family ipv4 unicast",
        "network 10.9.0.77/32",
        "exit-address-family",
        "exit",
    ];
    assert_eq!(rest, network);
    let less = commands(&after.bgpd, &before.bgpd);
    assert_eq!(less[2], "no network 10.9.0.77/32");
    assert_eq!(less[5..], [format!("no {first}")]);
}

#[test]
fn a_peer_without_its_password_gets_no_session() {
    let (spec, routes) = full();
    let address: IpAddr = "fd50::11".parse().unwrap();
    let none = Passwords::default();
    let wanted = Wanted { node: "node1", address, spec: &spec, passwords: &none, routes: &routes };
    assert_eq!(wanted.sessions().1, ["x", "y"]);
    let text = config(wanted).bgpd;
    assert!(!text.contains("192.168.50.7") && !text.contains("out-x"), "{text}");
    // Without an IPv4 address it has an identifier all the same, and always the same one.
    let id = text.lines().find_map(|line| line.strip_prefix(" bgp router-id ")).unwrap();
    assert!(
        id.parse::<std::net::Ipv4Addr>().is_ok_and(|id| !id.is_unspecified() && !id.is_multicast()),
        "{id}"
    );
    let nobody = Wanted { node: "node9", ..wanted };
    assert_eq!(config(nobody), Config::default());
    assert!(!format!("{:?}", render(&spec, &routes)).contains("s3cret"));
}

#[test]
fn another_autonomous_system_is_another_router() {
    let (spec, routes) = full();
    let mut renamed = spec.clone();
    renamed.bgp.as_mut().unwrap().my_asn = 64999;
    let (before, after) = (render(&spec, &routes).bgpd, render(&renamed, &routes).bgpd);
    let mut frr = Frr::default();
    frr.take(&commands(&frr.show(), &before));
    frr.take(&commands(&frr.show(), &after));
    assert_eq!(commands(&frr.show(), &after), NONE);
    assert!(!frr.show().contains("router bgp 64512"), "{}", frr.show());
}

#[test]
fn sessions_are_read_from_what_bgpd_says() {
    let (spec, _) = full();
    let peers: Vec<&BgpPeer> = spec.bgp.as_ref().unwrap().peers.iter().collect();
    let unknown = peer("new", "192.168.50.77", 65000);
    let asked: Vec<&BgpPeer> = peers.into_iter().chain([&unknown]).collect();
    let found = sessions(include_str!("frr/neighbors.json"), &asked).unwrap();
    let short: Vec<_> = found
        .iter()
        .map(|s| (s.router.as_str(), s.state.as_str(), s.routes_sent, s.bfd.as_deref()))
        .collect();
    assert_eq!(
        short,
        [
            ("192.168.50.1 AS64513", "Established", 3, Some("Up")),
            ("fd50::1 AS64513", "Established", 2, None),
            ("192.168.50.7 AS64520", "Active", 0, Some("Down")),
            ("192.168.50.8 AS64512", "Active", 0, None),
            ("192.168.50.77 AS65000", "Idle", 0, None),
        ]
    );
    assert_eq!(found[0].since_unix_ms, Some(1_796_043_442_000));
    assert_eq!((found[0].dropped, found[2].dropped), (1, 0));
    assert_eq!(found[2].last_reset.as_deref(), Some("Waiting for peer OPEN"));
    assert!(sessions("% bgpd is busy", &asked).is_err());
    assert!(sessions("{}", &asked).unwrap().iter().all(|session| session.state == "Idle"));
}

/// Settings as they may follow one another.
fn settings() -> impl Strategy<Value = (SpeakerSpec, Vec<Route>)> {
    let one = |number: usize| {
        let asn = prop_oneof![Just(64512_u32), Just(64513), Just(64514)];
        let bfd = prop::option::of(prop_oneof![Just("fast".to_owned()), Just("std".to_owned())]);
        let times = prop_oneof![Just((90_u16, 30_u16)), Just((9, 3)), Just((0, 0))];
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let made = (asn, bfd, times, flags).prop_map(move |(asn, bfd, (hold, keepalive), flags)| {
            let (name, address) =
                [("x", "192.168.50.7"), ("y", "fd50::8"), ("router", "192.168.50.1")][number];
            BgpPeer {
                bfd_profile: bfd,
                hold_time: hold,
                keepalive_time: keepalive,
                password: flags.0 && number < 2,
                enable_graceful_restart: flags.1,
                ebgp_multi_hop: flags.2,
                peer_port: if flags.3 { 1179 } else { BgpPeer::PORT },
                ..peer(name, address, asn)
            }
        });
        prop::option::weighted(0.8, made)
    };
    let peers =
        (one(0), one(1), one(2)).prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect::<Vec<_>>());
    let attributes = (prop::option::of(0_u32..3), prop::collection::btree_set(0_u16..3, 0..3)).prop_map(
        |(local_pref, values)| {
            let communities =
                values.into_iter().map(|value| BgpCommunity::Standard(65535, 65281 + value)).collect();
            Attributes { local_pref, communities }
        },
    );
    let told =
        prop::collection::btree_map(prop_oneof![Just("x"), Just("y"), Just("router")], attributes, 1..3);
    let routes = prop::collection::btree_map(0_usize..6, told, 0..6);
    (peers, routes).prop_map(|(peers, routes)| {
        let prefix = ["10.9.0.0/24", "10.9.0.1/32", "10.9.0.2/32", "fd99::/64", "fd99::1/128", "fd99::2/128"];
        let told = |(number, peers): (usize, BTreeMap<&str, Attributes>)| {
            route(prefix[number], &peers.iter().map(|(peer, of)| (*peer, of)).collect::<Vec<_>>())
        };
        (spec(peers), routes.into_iter().map(told).collect())
    })
}

proptest! {
    /// From any settings to any others; and back from wherever somebody was interrupted.
    #[test]
    fn any_settings_follow_any_others(
        steps in prop::collection::vec((settings(), prop::option::of(0_usize..60)), 1..4),
    ) {
        let (mut bgpd, mut bfdd) = (Frr::default(), Frr::default());
        let mut before: Option<(SpeakerSpec, Vec<Route>)> = None;
        for ((spec, routes), interrupted) in steps {
            let wanted = render(&spec, &routes);
            for (daemon, wanted) in [(&mut bgpd, &wanted.bgpd), (&mut bfdd, &wanted.bfdd)] {
                let needed = commands(&daemon.show(), wanted);
                if let Some((before, _)) = &before {
                    // Sessions that stay as they are hear nothing of it.
                    let (old, new) = (before.bgp.as_ref().unwrap(), spec.bgp.as_ref().unwrap());
                    for same in new.peers.iter().filter(|peer| old.peers.contains(peer)) {
                        let about = format!("neighbor {} ", same.peer_address);
                        let gone = format!("no neighbor {}", same.peer_address);
                        let said = needed.iter().any(|line| line.contains(&about) || *line == gone);
                        prop_assert!(!said, "{}", needed.join("\n"));
                    }
                }
                if let Some(count) = interrupted {
                    let mut half = daemon.clone();
                    half.take_some(&needed, count);
                    let rest = commands(&half.show(), wanted);
                    half.take(&rest);
                    prop_assert_eq!(commands(&half.show(), wanted), NONE);
                }
                daemon.take(&needed);
                prop_assert_eq!(commands(&daemon.show(), wanted), NONE, "after\n{}", needed.join("\n"));
                prop_assert_eq!(commands(wanted, &daemon.show()), NONE);
                prop_assert!(!daemon.show().contains(" shutdown"));
            }
            before = Some((spec, routes));
        }
    }
}
