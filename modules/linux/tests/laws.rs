//! The laws of the object model, on the real kernel.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::{in_new_netns, run};
use homelab_linux::{Kinds, Node, Root};
use homelab_model::{
    Address, Change, Fdb, Hook, Link, LinkKind, Module, Neighbour, NftChain, NftTable, NodeObject, Object,
    Route, Scope, Spec, diff, invert, ours,
};
use proptest::prelude::*;
use proptest::sample::subsequence;

const VXLANS: [(&str, u32); 2] = [("hv0", 7), ("hv.1", 17)];
const BRIDGE: &str = "hb0";
/// Several of one subnet: the first one that a link gets is the primary, and takes the others with it.
const ADDRESSES: [&str; 7] = [
    "10.9.1.1/24",
    "10.9.1.2/24",
    "10.9.1.3/24",
    "10.9.7.7/32",
    "fd00:9::1/64",
    "fd00:9::2/64",
    "fd00:9:7::7/128",
];
const DESTINATIONS: [&str; 5] =
    ["10.77.0.0/24", "10.77.0.0/16", "10.77.0.9/32", "fd77::/64", "fd77:0:0:1::/64"];
const MACS: [&str; 4] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "33:33:00:00:00:01", "00:00:00:00:00:00"];
const RULES: [&str; 6] = [
    "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade fully-random",
    "ip6 saddr fd00::/48 accept",
    "counter accept comment \"a { b ; c } # d — ünïcode 日本 'e' $f `g` %s\"",
    "ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.51.100.7 } drop",
    "meta l4proto vmap { 6 : accept, 17 : drop }",
    "oifname \"hv.1\" meta mark & 0x00004000 == 0x00004000 return",
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[derive(Debug, Clone)]
struct LinkSeed {
    mac: u8,
    mtu: u32,
    up: bool,
    other_vni: bool,
    underlay6: bool,
    learning: bool,
    offload: bool,
    addresses: Vec<usize>,
    neighbours: BTreeMap<u8, u8>,
    fdb: BTreeSet<(usize, u8)>,
}

fn link_seed() -> impl Strategy<Value = LinkSeed> {
    let flags = (prop::bool::weighted(0.8), any::<[bool; 4]>());
    let addresses = subsequence((0..ADDRESSES.len()).collect::<Vec<_>>(), 0..=ADDRESSES.len());
    let neighbours = prop::collection::btree_map(0..6_u8, 0..3_u8, 0..4);
    let fdb = prop::collection::btree_set((0..MACS.len(), 0..3_u8), 0..5);
    let mtu = prop::sample::select(vec![1280_u32, 1400, 1450, 1500]);
    (0..3_u8, mtu, flags, addresses, neighbours, fdb).prop_map(
        |(mac, mtu, (up, b), addresses, neighbours, fdb)| {
            let [other_vni, underlay6, learning, offload] = b;
            // Most worlds differ in small things.
            LinkSeed {
                mac,
                mtu,
                up,
                other_vni: other_vni && underlay6,
                underlay6: underlay6 && learning,
                learning: learning && offload,
                offload,
                addresses,
                neighbours,
                fdb,
            }
        },
    )
}

#[derive(Debug, Clone)]
struct RouteSeed {
    link: usize,
    source: bool,
    kind: usize,
    gateway: u8,
}

#[derive(Debug, Clone)]
struct World {
    links: [Option<LinkSeed>; 3],
    routes: BTreeMap<(usize, bool), RouteSeed>,
    table: bool,
    chains: BTreeMap<u8, (u8, Vec<usize>, Vec<u8>)>,
}

fn world() -> impl Strategy<Value = World> {
    let link = || prop::option::weighted(0.8, link_seed());
    let route = (0..3_usize, any::<bool>(), 0..6_usize, 1..4_u8)
        .prop_map(|(link, source, kind, gateway)| RouteSeed { link, source, kind, gateway });
    let routes = prop::collection::btree_map((0..DESTINATIONS.len(), any::<bool>()), route, 0..6);
    let rules = subsequence((0..RULES.len()).collect::<Vec<_>>(), 0..=3);
    let chain = (0..4_u8, rules, prop::collection::vec(0..4_u8, 0..3));
    let chains = prop::collection::btree_map(0..4_u8, chain, 0..4);
    ([link(), link(), link()], routes, any::<bool>(), chains)
        .prop_map(|(links, routes, table, chains)| World { links, routes, table, chains })
}

impl World {
    fn objects(&self) -> Vec<NodeObject> {
        let mut specs = Vec::new();
        let names = [VXLANS[0].0, VXLANS[1].0, BRIDGE];
        for (at, seed) in self.links.iter().enumerate() {
            if let Some(seed) = seed {
                specs.extend(link_objects(names[at], VXLANS.get(at).map(|v| v.1), seed));
            }
        }
        for (&(destination, metric), seed) in &self.routes {
            specs.extend(self.route(names[seed.link], destination, metric, seed));
        }
        if self.table || !self.chains.is_empty() {
            specs.push(Spec::NftTable(NftTable { name: ours::NFT_TABLE.into(), sets: Vec::new() }));
        }
        specs.extend(self.chains.iter().map(|(&name, chain)| Spec::NftChain(self.chain(name, chain))));
        let bridge = |o: &Spec| match o {
            Spec::Link(l) => l.name == BRIDGE,
            Spec::Address(a) => a.link == BRIDGE,
            _ => false,
        };
        let module = |o: &Spec| if bridge(o) { Module::Cni } else { Module::Vtep };
        let mut objects: Vec<NodeObject> =
            specs.into_iter().map(|spec| NodeObject { module: module(&spec), spec }).collect();
        objects.sort_by_key(Object::key);
        objects
    }

    fn route(&self, link: &str, destination: usize, metric: bool, seed: &RouteSeed) -> Option<Spec> {
        let destination: ipnet::IpNet = DESTINATIONS[destination].parse().unwrap();
        let v4 = destination.addr().is_ipv4();
        let kind = ["unicast", "unicast", "unicast", "unicast", "unreachable", "blackhole"][seed.kind];
        let below = self.links[seed.link].as_ref().filter(|l| l.up);
        let unicast = kind == "unicast";
        if unicast && below.is_none() {
            return None;
        }
        let family = |i: &&usize| ADDRESSES[**i].contains('.') == v4;
        let source = below.filter(|_| unicast && seed.source).and_then(|l| l.addresses.iter().find(family));
        let gateway =
            if v4 { format!("10.200.0.{}", seed.gateway) } else { format!("fd20::{}", seed.gateway) };
        Some(Spec::Route(Route {
            destination,
            metric: match (v4, metric) {
                (true, false) => 0,
                (false, false) => 1024,
                (_, true) => 77,
            },
            via: unicast.then(|| ip(&gateway)),
            link: unicast.then(|| link.to_owned()),
            onlink: unicast,
            source: source.map(|&i| ADDRESSES[i].parse::<ipnet::IpNet>().unwrap().addr()),
            r#type: kind.into(),
        }))
    }

    fn chain(&self, name: u8, (base, rules, jumps): &(u8, Vec<usize>, Vec<u8>)) -> NftChain {
        let hook = |r#type: &str, hook: &str, priority, policy: &str| {
            Some(Hook { r#type: r#type.into(), hook: hook.into(), priority, policy: policy.into() })
        };
        let hook = match base {
            0 => hook("nat", "postrouting", 100, "accept"),
            1 => hook("filter", "forward", -5, "drop"),
            _ => None,
        };
        let nat = *base == 0;
        // Masquerading is for nat chains; jumps go to later, hookless chains without it.
        let mut rules: Vec<String> =
            rules.iter().filter(|&&r| r != 0 || nat).map(|&r| RULES[r].into()).collect();
        let target = |j: &&u8| **j > name && self.chains.get(j).is_some_and(|c| c.0 > 1);
        rules.extend(jumps.iter().filter(target).map(|j| format!("jump c-{j}")));
        NftChain { table: ours::NFT_TABLE.into(), name: format!("c-{name}"), hook, rules }
    }
}

fn link_objects(name: &str, vni: Option<u32>, seed: &LinkSeed) -> Vec<Spec> {
    let remote = |n: u8| if seed.underlay6 { ip(&format!("fd01::{n}")) } else { ip(&format!("192.0.2.{n}")) };
    let kind = match vni {
        Some(vni) => LinkKind::Vxlan {
            vni: vni + u32::from(seed.other_vni),
            port: 8472,
            local: remote(200),
            learning: seed.learning,
            checksum_offload: seed.offload,
        },
        None => LinkKind::Bridge { stp: seed.learning },
    };
    let mut specs = vec![Spec::Link(Link {
        name: name.into(),
        mac: format!("02:aa:00:00:00:{:02x}", seed.mac),
        mtu: seed.mtu,
        up: seed.up,
        alias: ours::LINK_ALIAS.into(),
        kind,
    })];
    if !seed.up {
        return specs;
    }
    let link = || name.to_owned();
    specs.extend(
        seed.addresses
            .iter()
            .map(|&i| Spec::Address(Address { link: link(), address: ADDRESSES[i].parse().unwrap() })),
    );
    if vni.is_some() {
        for (&n, &mac) in &seed.neighbours {
            let address = if n < 3 { format!("10.8.0.{n}") } else { format!("fd08::{n}") };
            let mac = format!("02:bb:00:00:00:{mac:02x}");
            specs.push(Spec::Neighbour(Neighbour { link: link(), address: ip(&address), mac }));
        }
        let mut seen = BTreeSet::new();
        for &(mac, to) in &seed.fdb {
            // One station is behind one VTEP; groups may be behind several.
            if seen.insert(mac) || mac >= 2 {
                specs.push(Spec::Fdb(Fdb { link: link(), mac: MACS[mac].into(), remote: remote(to + 1) }));
            }
        }
    }
    specs
}

const FOREIGN: &str = "
    ip link add br-x type bridge && ip link set br-x addrgenmode none && ip link set br-x alias somebody up && ip addr add 10.50.0.1/24 dev br-x
    ip link add vx-x type vxlan id 99 dstport 4789 local 192.0.2.99 nolearning && ip link set vx-x addrgenmode none && ip link set vx-x up
    bridge fdb append 02:cc:00:00:00:01 dev vx-x dst 192.0.2.98
    ip neigh add 10.50.0.9 lladdr 02:cc:00:00:00:02 dev br-x nud permanent
    ip route add 10.77.0.0/24 via 10.50.0.2 dev br-x metric 5 proto static
    ip route add 10.60.0.0/16 via 10.50.0.2 dev br-x
    nft add table inet other && nft add chain inet other c '{ type filter hook input priority 0; }' && nft add rule inet other c accept
    nft add table ip homelab && nft add chain ip homelab c
";

fn foreign() -> String {
    // Without the numbers that run down.
    run("ip -d link show br-x | sed 's/_timer *[0-9.]*//g'; ip -d link show vx-x; ip addr show dev br-x; bridge fdb show dev vx-x;
         ip neigh show dev br-x; ip route show dev br-x; nft list table inet other; nft list table ip homelab")
}

fn observed(node: &mut Node) -> Vec<NodeObject> {
    let mut objects = node.observe_objects(&Scope::default(), Kinds::KERNEL).unwrap();
    objects.sort_by_key(Object::key);
    objects
}

fn apply(node: &mut Node, changes: &[Change<NodeObject>]) {
    if let Err(error) = node.apply_all(changes, &mut |_| {}) {
        panic!("{error}\n{changes:#?}");
    }
}

#[track_caller]
fn assert_same(node: &mut Node, wanted: &[NodeObject], when: &str) {
    let left = diff(&observed(node), wanted);
    assert!(left.is_empty(), "{when}: {left:#?}");
}

/// Each takes some tenths of a second.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_laws_hold(a in world(), b in world(), at in any::<prop::sample::Index>()) {
        in_new_netns(|| {
            run(FOREIGN);
            let others = foreign();
            let directory = tempfile::tempdir().unwrap();
            let mut node = Node::open(Root::at(directory.path())).unwrap();
            let (a, b) = (a.objects(), b.objects());
            apply(&mut node, &diff(&[], &a));
            assert_same(&mut node, &a, "from nothing to a");
            let changes = diff(&observed(&mut node), &b);
            apply(&mut node, &changes);
            assert_same(&mut node, &b, "from a to b");
            apply(&mut node, &changes);
            assert_same(&mut node, &b, "twice is once");
            apply(&mut node, &invert(&changes));
            assert_same(&mut node, &a, "back to a");

            // A change in the middle fails.
            let stop = at.index(changes.len() + 1);
            let mut list = changes.clone();
            let route = Route {
                destination: "10.66.0.0/16".parse().unwrap(), metric: 0, via: None, link: Some("missing".into()),
                onlink: false, source: None, r#type: "unicast".into(),
            };
            let bad = NodeObject { module: Module::Vtep, spec: Spec::Route(route) };
            list.insert(stop, Change::Create { after: bad });
            let error = node.apply_all(&list, &mut |_| {}).unwrap_err();
            assert_eq!(error.index, stop, "{error}");
            apply(&mut node, &invert(&list[..=stop]));
            assert_same(&mut node, &a, "after a failure in the middle");

            let all = observed(&mut node);
            apply(&mut node, &diff(&all, &[]));
            assert_same(&mut node, &[], "to nothing");
            assert_eq!(foreign(), others, "what is not ours is untouched");
        });
    }
}

/// A route waits for its new source address while the kernel drops it for want of the old one, which another link has, too:
/// what waits counts.
#[test]
fn a_route_that_waits_is_not_made_again_as_it_was() {
    let link = |address| {
        Some(LinkSeed {
            mac: 0,
            mtu: 1280,
            up: true,
            other_vni: false,
            underlay6: false,
            learning: false,
            offload: false,
            addresses: vec![address],
            neighbours: BTreeMap::new(),
            fdb: BTreeSet::new(),
        })
    };
    let world = |links| World {
        links,
        routes: [((1, false), RouteSeed { link: 1, source: true, kind: 0, gateway: 1 })].into(),
        table: false,
        chains: BTreeMap::new(),
    };
    in_new_netns(move || {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let a = world([link(3), link(2), None]).objects();
        let b = world([None, link(3), None]).objects();
        apply(&mut node, &diff(&[], &a));
        let changes = diff(&observed(&mut node), &b);
        apply(&mut node, &changes);
        assert_same(&mut node, &b, "from a to b");
        apply(&mut node, &invert(&changes));
        assert_same(&mut node, &a, "back to a");
    });
}
