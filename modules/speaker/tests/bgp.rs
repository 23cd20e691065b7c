//! What nodes tell routers.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cluster::{Cluster, endpoint, ip, node, pool, selector, service};
use homelab_model::service::{Policy, Service};
use homelab_model::{BgpAdvertisement, BgpCommunity, BgpPeer, BgpSpec, LABEL_EXCLUDE, LbUnfit, Selector};
use homelab_speaker::bgp::{Attributes, Can, Route, peers_of, routes, unfit};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::json;

const VIP: &str = "192.168.50.200";
const NEXT: &str = "192.168.50.201";
const SIX: &str = "fd00:50::f:1";
const CAN: Can = Can { ready: true, cordoned: false };

/// An advertisement of all pools by all nodes to all.
fn told(name: &str) -> BgpAdvertisement {
    BgpAdvertisement {
        name: name.to_owned(),
        aggregation_length: 32,
        aggregation_length_v6: 128,
        ..BgpAdvertisement::default()
    }
}

fn peer(name: &str, address: &str, asn: u32) -> BgpPeer {
    BgpPeer::new(name, address.parse().unwrap(), asn)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A cluster in AS 64512 with the routers `out` and `six` of another AS, and `in` of its own.
fn cluster(nodes: u8, advertisements: Vec<BgpAdvertisement>) -> Cluster {
    let mut cluster = Cluster::of(nodes);
    let peers = vec![
        peer("out", "192.168.50.254", 64513),
        peer("in", "10.0.0.1", 64512),
        peer("six", "fd00:50::fe", 64513),
    ];
    cluster.speaker.bgp = Some(BgpSpec { my_asn: 64512, peers, advertisements, bfd_profiles: vec![] });
    cluster
}

fn bgp(cluster: &mut Cluster) -> &mut BgpSpec {
    cluster.speaker.bgp.as_mut().unwrap()
}

fn of(cluster: &Cluster, node: &str) -> Vec<Route> {
    routes(&cluster.speaker, node, &cluster.services, CAN)
}

/// Prefixes with the peers that are told.
fn says(cluster: &Cluster, node: &str) -> Vec<(String, Vec<String>)> {
    let all = of(cluster, node).into_iter();
    all.map(|route| (route.prefix.to_string(), route.peers.into_keys().collect())).collect()
}

fn route(prefix: &str, peers: &[&str]) -> (String, Vec<String>) {
    (prefix.to_owned(), strings(peers))
}

#[test]
fn every_node_tells_every_router_of_the_family() {
    let cluster = cluster(3, vec![told("all")]).with(service("lb", &[VIP, SIX, NEXT], json!({})));
    for node in ["node1", "node2", "node3"] {
        let want = [
            route("192.168.50.200/32", &["in", "out"]),
            route("192.168.50.201/32", &["in", "out"]),
            route("fd00:50::f:1/128", &["six"]),
        ];
        assert_eq!(says(&cluster, node), want);
    }
    assert_eq!(of(&cluster, "node4"), []);
}

#[test]
fn a_node_that_cannot_serve_tells_nothing() {
    let mut cluster = cluster(2, vec![told("all")]).with(service("lb", &[VIP], json!({})));
    for (ready, cordoned) in [(false, false), (true, true), (false, true)] {
        assert_eq!(routes(&cluster.speaker, "node1", &cluster.services, Can { ready, cordoned }), []);
    }
    cluster.label("node1", LABEL_EXCLUDE, Some(""));
    assert_eq!(of(&cluster, "node1"), []);
    assert_eq!(of(&cluster, "node2").len(), 1);
    cluster.label("node1", LABEL_EXCLUDE, None);
    assert_eq!(of(&cluster, "node1").len(), 1);
    cluster.speaker.bgp = None;
    assert_eq!(of(&cluster, "node1"), []);
}

#[test]
fn why_nobody_tells_an_address() {
    let mut cluster = cluster(2, vec![told("all")])
        .with(service("lb", &[VIP, "10.8.8.8"], json!({})))
        .with(service("local", &[NEXT], json!({ "externalTrafficPolicy": "Local" })));
    cluster.label("node1", LABEL_EXCLUDE, Some(""));
    let why = |cluster: &Cluster| unfit(&cluster.speaker, &cluster.services);
    let all = [
        (ip(VIP), BTreeSet::from([LbUnfit::ExcludeLabel])),
        (ip(NEXT), BTreeSet::from([LbUnfit::ExcludeLabel, LbUnfit::NoLocalEndpoint])),
    ];
    assert_eq!(why(&cluster), BTreeMap::from(all), "the address of no pool is somebody else's");
    cluster.label("node1", LABEL_EXCLUDE, None);
    assert!(why(&cluster)[&ip(VIP)].is_empty());
    bgp(&mut cluster).advertisements[0].ip_address_pools = strings(&["other"]);
    assert_eq!(why(&cluster)[&ip(VIP)], BTreeSet::from([LbUnfit::NoAdvertisement]));
    cluster.speaker.bgp = None;
    assert_eq!(why(&cluster), BTreeMap::new());
}

#[test]
fn only_load_balancer_addresses_of_pools_are_told() {
    let proxied = json!({ "loadBalancer": [{ "ip": NEXT, "ipMode": "Proxy" }] });
    let mut cluster = cluster(1, vec![told("all")])
        .with(service("none", &["192.168.50.199"], json!({})))
        .with(service("cluster", &[VIP], json!({ "type": "ClusterIP" })))
        .with(service("proxied", &[], proxied));
    assert_eq!(of(&cluster, "node1"), []);
    cluster.speaker.pools.push(pool("more", &[("192.168.50.199", "192.168.50.199")]));
    assert_eq!(says(&cluster, "node1"), [route("192.168.50.199/32", &["in", "out"])]);
    bgp(&mut cluster).advertisements[0].ip_address_pools = strings(&["l2-test"]);
    assert_eq!(of(&cluster, "node1"), []);
}

#[test]
fn selectors_choose_nodes_services_and_peers() {
    let one = BgpAdvertisement {
        node_selectors: vec![node("node1")],
        service_selectors: vec![selector(&[("app", "a")])],
        peers: strings(&["out"]),
        ..told("one")
    };
    let mut cluster = cluster(2, vec![one])
        .with(service("a", &[VIP], json!({ "labels": { "app": "a" } })))
        .with(service("b", &[NEXT], json!({ "labels": { "app": "b" } })));
    assert_eq!(says(&cluster, "node1"), [route("192.168.50.200/32", &["out"])]);
    assert_eq!(of(&cluster, "node2"), []);

    bgp(&mut cluster)
        .advertisements
        .push(BgpAdvertisement { node_selectors: vec![node("node2")], ..told("two") });
    assert_eq!(says(&cluster, "node1"), [route("192.168.50.200/32", &["out"])]);
    bgp(&mut cluster).peers[0].node_selectors = vec![node("node1")];
    let names =
        |node: &str| peers_of(&cluster.speaker, node).iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!((names("node1"), names("node2")), (strings(&["out", "in", "six"]), strings(&["in", "six"])));
    assert_eq!(names("node9"), strings(&[]));
    let both = [route("192.168.50.200/32", &["in"]), route("192.168.50.201/32", &["in"])];
    assert_eq!(says(&cluster, "node2"), both);
}

#[test]
fn local_traffic_needs_a_ready_endpoint_of_the_family() {
    let endpoints = [
        endpoint("10.244.1.7", "node1", json!({})),
        endpoint("fd00:10:244:2::7", "node2", json!({})),
        endpoint("10.244.3.7", "node3", json!({ "ready": false, "serving": true, "terminating": true })),
        endpoint("10.244.4.7", "node4", json!({ "ready": false, "serving": true })),
    ];
    let local = json!({ "externalTrafficPolicy": "Local", "endpoints": endpoints });
    let cluster = cluster(4, vec![told("all")]).with(service("lb", &[VIP, SIX], local));
    let prefixes = |node| of(&cluster, node).iter().map(|r| r.prefix.to_string()).collect::<Vec<_>>();
    assert_eq!(prefixes("node1"), ["192.168.50.200/32"]);
    assert_eq!(prefixes("node2"), ["fd00:50::f:1/128"]);
    assert_eq!(prefixes("node3"), ["192.168.50.200/32"], "what terminates still serves");
    assert_eq!(prefixes("node4"), [""; 0]);
}

#[test]
fn services_that_share_an_address_agree_on_the_router() {
    let to = |app: &str, peers: &[&str], length| BgpAdvertisement {
        service_selectors: vec![selector(&[("app", app)])],
        peers: strings(peers),
        aggregation_length: length,
        ..told(app)
    };
    let mut cluster = cluster(1, vec![to("a", &["out", "in"], 32), to("b", &["in"], 28)]);
    cluster.services = ["a", "b"].map(|n| service(n, &[VIP], json!({ "labels": { "app": n } }))).to_vec();
    assert_eq!(
        says(&cluster, "node1"),
        [route("192.168.50.192/28", &["in"]), route("192.168.50.200/32", &["in"])]
    );
    // One of them has no endpoint here.
    cluster.services[1].external_traffic_policy = Policy::Local;
    assert_eq!(of(&cluster, "node1"), []);
    cluster.services.pop();
    assert_eq!(says(&cluster, "node1"), [route("192.168.50.200/32", &["in", "out"])]);
    bgp(&mut cluster).advertisements.remove(0);
    assert_eq!(of(&cluster, "node1"), []);
}

#[test]
fn addresses_of_one_prefix_are_one_route() {
    let wide = BgpAdvertisement { aggregation_length: 28, aggregation_length_v6: 112, ..told("wide") };
    let local = json!({ "externalTrafficPolicy": "Local", "endpoints": [endpoint("10.244.1.7", "node1", json!({}))] });
    let mut cluster = cluster(2, vec![wide])
        .with(service("b", &["192.168.50.207", SIX], json!({})))
        .with(service("a", &[VIP], local))
        .with(service("c", &["192.168.50.208"], json!({})));
    let first = &of(&cluster, "node1")[0];
    assert_eq!(
        (first.prefix.to_string().as_str(), &first.addresses),
        ("192.168.50.192/28", &vec![ip(VIP), ip("192.168.50.207")])
    );
    let all = ["192.168.50.192/28", "192.168.50.208/28", "fd00:50::f:0/112"];
    let prefixes =
        |cluster: &Cluster, node| of(cluster, node).iter().map(|r| r.prefix.to_string()).collect::<Vec<_>>();
    assert_eq!(prefixes(&cluster, "node1"), all);
    // It is told as long as one of its addresses is.
    assert_eq!(prefixes(&cluster, "node2"), all);
    assert_eq!(of(&cluster, "node2")[0].addresses, [ip("192.168.50.207")]);
    cluster.services.remove(0);
    assert_eq!(prefixes(&cluster, "node2"), all[1..2]);
}

#[test]
fn attributes_of_one_prefix_are_joined_for_each_router() {
    let [a, b] = [BgpCommunity::Standard(64512, 2), BgpCommunity::Standard(64512, 1)];
    let large = BgpCommunity::Large(64512, 0, 0);
    let with = |name, local_pref, communities: &[BgpCommunity], peers: &[&str]| BgpAdvertisement {
        local_pref,
        communities: communities.to_vec(),
        peers: strings(peers),
        ..told(name)
    };
    let list = vec![
        with("x", Some(200), &[large, a], &[]),
        with("y", Some(100), &[a, b], &["in"]),
        with("z", None, &[], &["out"]),
    ];
    let cluster = cluster(1, list).with(service("lb", &[VIP], json!({})));
    let route = &of(&cluster, "node1")[0];
    let want = [
        ("in".to_owned(), Attributes { local_pref: Some(200), communities: vec![b, a, large] }),
        ("out".to_owned(), Attributes { local_pref: None, communities: vec![a, large] }),
    ];
    assert_eq!(route.peers, BTreeMap::from(want));
}

/// What a node tells a peer of an address, from the words of the documentation.
fn plainly(
    cluster: &Cluster,
    name: &str,
) -> BTreeMap<IpNet, BTreeMap<String, (BTreeSet<IpAddr>, Attributes)>> {
    let speaker = &cluster.speaker;
    let bgp = speaker.bgp.as_ref().unwrap();
    let node = speaker.nodes.iter().find(|n| n.name == name).unwrap();
    let mut all: BTreeMap<IpNet, BTreeMap<String, (BTreeSet<IpAddr>, Attributes)>> = BTreeMap::new();
    let addresses: BTreeSet<IpAddr> =
        cluster.services.iter().flat_map(|s| s.load_balancer.iter().map(|ingress| ingress.ip)).collect();
    for address in addresses {
        let sharing: Vec<&Service> =
            cluster.services.iter().filter(|s| s.load_balancer.iter().any(|i| i.ip == address)).collect();
        for peer in bgp.peers.iter().filter(|p| Selector::any(&p.node_selectors, &node.labels)) {
            let chosen = |one: &&BgpAdvertisement, service: &Service| {
                let pool = speaker.pools.iter().find(|pool| pool.holds(address));
                let local = service.endpoints.iter().any(|e| {
                    e.node.as_deref() == Some(name) && e.ready && e.address.is_ipv4() == address.is_ipv4()
                });
                pool.is_some_and(|p| {
                    one.ip_address_pools.is_empty() || one.ip_address_pools.contains(&p.name)
                }) && Selector::any(&one.node_selectors, &node.labels)
                    && Selector::any(&one.service_selectors, &service.labels)
                    && (one.peers.is_empty() || one.peers.contains(&peer.name))
                    && !node.labels.contains_key(LABEL_EXCLUDE)
                    && peer.peer_address.is_ipv4() == address.is_ipv4()
                    && (service.external_traffic_policy == Policy::Cluster || local)
            };
            let by = |service: &&Service| bgp.advertisements.iter().any(|one| chosen(&one, service));
            if !sharing.iter().all(by) {
                continue;
            }
            for one in bgp.advertisements.iter().filter(|one| sharing.iter().any(|s| chosen(one, s))) {
                let net = IpNet::new(address, one.length(address)).unwrap().trunc();
                let (told, attributes) = all.entry(net).or_default().entry(peer.name.clone()).or_default();
                told.insert(address);
                let communities: BTreeSet<BgpCommunity> =
                    attributes.communities.iter().chain(&one.communities).copied().collect();
                attributes.communities = communities.into_iter().collect();
                if peer.peer_asn == bgp.my_asn {
                    attributes.local_pref = attributes.local_pref.max(one.local_pref);
                }
            }
        }
    }
    all
}

/// Selectors of `KEY: a`, of `KEY: b`, of both or none.
fn selectors(key: &'static str) -> impl Strategy<Value = Vec<Selector>> {
    let one = prop::sample::select(vec!["a", "b"]).prop_map(move |value| selector(&[(key, value)]));
    prop_oneof![3 => Just(vec![]), 2 => prop::collection::vec(one, 1..3)]
}

fn advertisements() -> impl Strategy<Value = Vec<BgpAdvertisement>> {
    let some = |names: &'static [&'static str]| {
        prop::collection::btree_set(prop::sample::select(names), 0..3)
            .prop_map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let community = prop_oneof![
        (0..3_u16).prop_map(|n| BgpCommunity::Standard(64512, n)),
        (0..3_u32).prop_map(|n| BgpCommunity::Large(64512, n, 0)),
    ];
    let one = (
        some(&["l2-test", "more"]),
        (24..=32_u8, 112..=128_u8),
        prop::option::of(0..3_u32),
        prop::collection::btree_set(community, 0..3),
        (selectors("rack"), selectors("app")),
        some(&["out", "in", "six"]),
    );
    let one = one.prop_map(|(pools, (v4, v6), local_pref, communities, (nodes, services), peers)| {
        BgpAdvertisement {
            name: String::new(),
            ip_address_pools: pools,
            aggregation_length: v4,
            aggregation_length_v6: v6,
            local_pref,
            communities: communities.into_iter().collect(),
            node_selectors: nodes,
            service_selectors: services,
            peers,
        }
    });
    prop::collection::vec(one, 0..5)
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    let addresses = prop::collection::btree_set(
        prop::sample::select(vec![VIP, NEXT, "192.168.50.240", SIX, "10.9.9.9", "10.8.8.8"]),
        1..4,
    );
    let one = (
        addresses,
        any::<bool>(),
        prop::sample::select(vec!["a", "b", "c"]),
        prop::collection::vec(1..4_u8, 0..4),
    );
    let one = one.prop_map(|(addresses, local, app, nodes)| {
        let address =
            |n: &u8| if n.is_multiple_of(2) { format!("fd00::{n}") } else { format!("10.244.{n}.7") };
        let endpoints: Vec<_> =
            nodes.iter().map(|n| endpoint(&address(n), &format!("node{}", n % 3 + 1), json!({}))).collect();
        let policy = if local { "Local" } else { "Cluster" };
        let more =
            json!({ "labels": { "app": app }, "externalTrafficPolicy": policy, "endpoints": endpoints });
        let addresses: Vec<&str> = addresses.into_iter().collect();
        service("lb", &addresses, more)
    });
    prop::collection::vec(one, 0..6).prop_map(|mut services| {
        for (service, n) in services.iter_mut().zip(0..) {
            service.name = format!("lb{n}");
        }
        services
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn routes_are_what_the_documentation_says(
        advertisements in advertisements(),
        services in services(),
        on in prop::collection::vec(selectors("rack"), 3),
        racks in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 3),
        turn in 0..6_usize,
    ) {
        let mut cluster = cluster(3, advertisements);
        cluster.services = services;
        cluster.speaker.pools.push(pool("more", &[("10.9.9.0", "10.9.9.255")]));
        for (peer, selectors) in bgp(&mut cluster).peers.iter_mut().zip(on) {
            peer.node_selectors = selectors;
        }
        for (n, rack) in (1..).zip(racks) {
            match rack {
                "" => cluster.label(&format!("node{n}"), LABEL_EXCLUDE, Some("")),
                rack => cluster.label(&format!("node{n}"), "rack", Some(rack)),
            };
        }
        for name in ["node1", "node2", "node3"] {
            let found = of(&cluster, name);
            prop_assert!(found.is_sorted_by(|a, b| a.prefix < b.prefix));
            let want = plainly(&cluster, name);
            prop_assert_eq!(found.len(), want.len());
            for (route, (prefix, peers)) in found.iter().zip(&want) {
                prop_assert_eq!(&route.prefix, prefix);
                let addresses: BTreeSet<IpAddr> = peers.values().flat_map(|(addresses, _)| addresses).copied().collect();
                prop_assert_eq!(&route.addresses, &addresses.into_iter().collect::<Vec<_>>());
                let attributes: BTreeMap<String, Attributes> =
                    peers.iter().map(|(peer, (_, attributes))| (peer.clone(), attributes.clone())).collect();
                prop_assert_eq!(&route.peers, &attributes);
            }
            // The order of services, and one that stands there twice, mean nothing.
            let mut turned = cluster.clone();
            let count = turned.services.len();
            if count > 0 {
                turned.services.rotate_left(turn % count);
                turned.services.push(turned.services[0].clone());
            }
            prop_assert_eq!(of(&turned, name), found);
        }
    }
}
