//! Who may announce an address, and who does.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cluster::{Cluster, all, endpoint, ip, node, pool, prefer, selector, service};
use homelab_model::service::Policy;
use homelab_model::{L2Advertisement, LABEL_EXCLUDE, LbUnfit};
use homelab_speaker::announce::Wanted;
use homelab_speaker::candidates::{Interfaces, candidates};
use homelab_speaker::election::{Owned, elect, fitness, wanted};
use proptest::prelude::*;
use serde_json::json;

const VIP: &str = "192.168.50.200";

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn only_load_balancer_addresses_that_nodes_take_are_candidates() {
    let mut cluster = Cluster::of(2);
    let ingress = json!([{ "ip": "192.168.50.201", "ipMode": "Proxy" }, { "ip": VIP }, { "ip": VIP }]);
    cluster.services = vec![
        service("cluster", &["192.168.50.202"], json!({ "type": "ClusterIP" })),
        service("proxied", &[], json!({ "loadBalancer": ingress })),
        service("six", &["fd00:50::f:1"], json!({})),
    ];
    let all = candidates(&cluster.services, &cluster.speaker);
    let addresses: Vec<IpAddr> = all.iter().map(|candidate| candidate.address).collect();
    assert_eq!(addresses, [ip(VIP), ip("fd00:50::f:1")]);
    assert_eq!(all[0].services, ["default/proxied"]);
}

#[test]
fn an_address_of_no_pool_is_announced_by_nobody() {
    for address in ["192.168.50.199", "192.168.50.251", "fd00:50::e:ffff", "fd00:50::10:0"] {
        let cluster = Cluster::of(1).with(service("lb", &[address], json!({})));
        let candidate = cluster.candidate(address);
        assert_eq!(candidate.pool, None);
        assert_eq!(candidate.placement.excluded, [("node1".to_owned(), LbUnfit::NoAdvertisement)]);
        assert_eq!(cluster.owner(address), None);
    }
    for address in [VIP, "192.168.50.250", "fd00:50::f:0", "fd00:50::f:ffff"] {
        let cluster = Cluster::of(1).with(service("lb", &[address], json!({})));
        assert_eq!(cluster.candidate(address).pool.as_deref(), Some("l2-test"));
        assert!(cluster.owner(address).is_some());
    }
}

#[test]
fn a_local_endpoint_is_one_of_the_addresss_family() {
    let endpoints =
        [endpoint("10.244.1.7", "node1", json!({})), endpoint("fd00:10:244:2::7", "node2", json!({}))];
    let more = json!({ "externalTrafficPolicy": "Local", "endpoints": endpoints });
    let cluster = Cluster::of(3).with(service("lb", &[VIP, "fd00:50::f:1"], more));
    assert_eq!(cluster.owner(VIP).as_deref(), Some("node1"));
    assert_eq!(cluster.owner("fd00:50::f:1").as_deref(), Some("node2"));
}

#[test]
fn the_default_is_the_interface_with_a_network_of_the_address() {
    let mut cluster = Cluster::of(1);
    let [six, sixty, far] = ["fd00:50::f:1", "192.168.60.200", "10.9.9.9"];
    cluster.speaker.pools.push(pool("more", &[(sixty, sixty), (far, far)]));
    cluster = cluster.with(service("lb", &[VIP, six, sixty, far], json!({})));
    assert_eq!(cluster.owned(VIP).interfaces, ["eth0"]);
    assert_eq!(cluster.owned(six).interfaces, ["eth0"]);
    assert_eq!(cluster.owned(sixty).interfaces, ["eth1"]);
    assert_eq!(cluster.owned(far).interfaces, ["eth0"], "none: the one with the node's LAN address");
    // Two links into one LAN.
    cluster.member("node1").interfaces[1].networks.push("192.168.50.9/24".parse().unwrap());
    assert_eq!(cluster.owned(VIP).interfaces, ["eth0", "eth1"]);
    assert_eq!(cluster.owned(far).interfaces, ["eth0"]);
    // The LAN interface is down.
    cluster.member("node1").interfaces.remove(0);
    assert_eq!(cluster.owned(VIP).interfaces, ["eth1"]);
    assert_eq!(cluster.owned(far), Owned { address: ip(far), owner: None, interfaces: vec![] });
    // Named ones are taken whatever their networks.
    cluster.advertise(vec![L2Advertisement { interfaces: names(&["eth1", "eth9"]), ..all() }]);
    assert_eq!(cluster.owned(far).interfaces, ["eth1"]);
}

#[test]
fn services_that_share_an_address_are_announced_where_both_may_be() {
    let mut cluster = Cluster::of(2);
    cluster.services = ["a", "b"].map(|n| service(n, &[VIP], json!({ "labels": { "app": n } }))).to_vec();
    let on = |app, interfaces: &[&str]| L2Advertisement {
        service_selectors: vec![selector(&[("app", app)])],
        interfaces: names(interfaces),
        ..all()
    };
    cluster.advertise(vec![on("a", &["eth0", "eth1"]), on("b", &["eth1", "eth2"])]);
    assert_eq!(cluster.owned(VIP).interfaces, ["eth1"]);
    cluster.advertise(vec![on("a", &[]), on("b", &["eth1"])]);
    assert_eq!(cluster.owned(VIP).interfaces, ["eth1"]);
    cluster.advertise(vec![on("a", &["eth0"]), on("b", &["eth1"])]);
    assert!(cluster.why(VIP).iter().all(|(_, why)| *why == LbUnfit::NoCommonInterface));
    assert_eq!(cluster.owner(VIP), None);

    // An advertisement that is for both counts once.
    let both = L2Advertisement { preferred_node_selectors: vec![prefer(60, node("node1"))], ..all() };
    let one = L2Advertisement { preferred_node_selectors: vec![prefer(70, node("node2"))], ..on("b", &[]) };
    cluster.advertise(vec![both, one]);
    let weights: Vec<u32> = cluster.candidate(VIP).placement.nodes.iter().map(|n| n.weight).collect();
    assert_eq!(weights, [60, 70]);
}

#[test]
fn a_node_that_cannot_says_why() {
    let mut cluster = Cluster::of(1).with(service("lb", &[VIP], json!({})));
    let eligible = cluster.candidate(VIP).placement.nodes[0].clone();
    let unfit = |cluster: &Cluster| fitness(&eligible, ip(VIP), &cluster.members).err();
    assert_eq!(unfit(&cluster), None);
    let interfaces = std::mem::take(&mut cluster.member("node1").interfaces);
    assert_eq!(unfit(&cluster), Some(LbUnfit::NoInterface));
    cluster.member("node1").interfaces = interfaces;
    cluster.member("node1").cordoned = true;
    assert_eq!(unfit(&cluster), Some(LbUnfit::Cordoned));
    cluster.member("node1").ready = false;
    assert_eq!(unfit(&cluster), Some(LbUnfit::NotReady));
    cluster.members.clear();
    assert_eq!(unfit(&cluster), Some(LbUnfit::Away));
}

#[test]
fn a_node_without_an_address_of_the_family_cannot_have_it() {
    let six = "fd00:50::f:1";
    let mut cluster = Cluster::of(1).with(service("lb", &[VIP, six], json!({})));
    let owner = |cluster: &Cluster, address: &str| {
        let owned = elect(&candidates(&cluster.services, &cluster.speaker), &cluster.members);
        owned.into_iter().find(|o| o.address == ip(address)).and_then(|o| o.owner)
    };
    // Of no network of the node: the interface with its LAN address would do.
    let interface = &mut cluster.member("node1").interfaces[0];
    interface.networks.retain(|network| network.addr().is_ipv4());
    assert_eq!(owner(&cluster, VIP), Some("node1".to_owned()));
    assert_eq!(owner(&cluster, six), None);
    cluster.member("node1").interfaces[0].networks.push("fd00:77::11/64".parse().unwrap());
    assert_eq!(owner(&cluster, six), Some("node1".to_owned()));
}

#[test]
fn what_a_peer_announced_is_taken_over() {
    let addresses = [VIP, "192.168.50.201"];
    let cluster = Cluster::of(1).with(service("lb", &addresses, json!({})));
    let owned = elect(&candidates(&cluster.services, &cluster.speaker), &cluster.members);
    let on = |takeover| Wanted { interfaces: BTreeSet::from(["eth0".to_owned()]), takeover };
    let expected: BTreeMap<IpAddr, Wanted> =
        [true, false].into_iter().zip(addresses).map(|(t, a)| (ip(a), on(t))).collect();
    let announced = BTreeSet::from([ip(VIP)]);
    assert_eq!(wanted(&owned, "node1", &announced), expected);
    assert_eq!(wanted(&owned, "node2", &announced), BTreeMap::new());
}

/// How far counts are from an even share (Pearson's chi-square).
fn chi_square(counts: &BTreeMap<String, u32>, shares: usize) -> f64 {
    let even = f64::from(counts.values().sum::<u32>()) / shares as f64;
    let held: f64 = counts.values().map(|n| (f64::from(*n) - even).powi(2) / even).sum();
    held + even * (shares - counts.len()) as f64
}

fn counts(owned: &[Owned]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for owner in owned.iter().filter_map(|owned| owned.owner.clone()) {
        *counts.entry(owner).or_default() += 1;
    }
    counts
}

/// Of a thousand addresses `10.1.0.0` to `.3.231`.
fn thousand(cluster: &mut Cluster) {
    cluster.speaker.pools = vec![pool("many", &[("10.1.0.0", "10.1.3.255")])];
    let address = |n: u32| format!("10.1.{}.{}", n / 256, n % 256);
    cluster.services = (0..1000).map(|n| service(&format!("s{n}"), &[&address(n)], json!({}))).collect();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The bound is passed by chance once in ten million times (nine degrees of freedom).
    #[test]
    fn addresses_are_spread_and_only_those_of_a_node_that_goes_move(
        nodes in 3_u8..=10,
        prefix in "[a-z]{1,12}",
        gone in any::<prop::sample::Index>(),
    ) {
        let mut cluster = Cluster::of(nodes);
        thousand(&mut cluster);
        let rename = |name: &str| name.replace("node", &prefix);
        cluster.speaker.nodes.iter_mut().for_each(|node| node.name = rename(&node.name));
        cluster.members = cluster.members.iter().map(|(name, state)| (rename(name), state.clone())).collect();

        let candidates = candidates(&cluster.services, &cluster.speaker);
        let before = elect(&candidates, &cluster.members);
        prop_assert_eq!(before.len(), 1000);
        let held = counts(&before);
        prop_assert_eq!(held.values().sum::<u32>(), 1000);
        prop_assert!(chi_square(&held, usize::from(nodes)) < 50.0, "{held:?}");

        let gone = cluster.speaker.nodes[gone.index(usize::from(nodes))].name.clone();
        let mut left = cluster.members.clone();
        left.remove(&gone);
        let after = elect(&candidates, &left);
        let (mut moved, mut stayed) = (Vec::new(), 0);
        for (before, after) in before.iter().zip(after) {
            if before.owner.as_ref() == Some(&gone) {
                moved.push(after);
            } else {
                prop_assert_eq!(before, &after);
                stayed += 1;
            }
        }
        prop_assert_eq!(stayed + moved.len(), 1000);
        prop_assert!(chi_square(&counts(&moved), usize::from(nodes) - 1) < 50.0);
        // And back.
        prop_assert_eq!(elect(&candidates, &cluster.members), before);
    }

    #[test]
    fn the_highest_weight_wins(weights in prop::collection::vec(1_u8..=100, 1..8), ready in any::<[bool; 8]>()) {
        let mut cluster = Cluster::of(u8::try_from(weights.len()).unwrap()).with(service("lb", &[VIP], json!({})));
        let preferred = (1..).zip(&weights).map(|(n, weight)| prefer(*weight, node(&format!("node{n}"))));
        cluster.advertise(vec![L2Advertisement { preferred_node_selectors: preferred.collect(), ..all() }]);
        for (state, ready) in cluster.members.values_mut().zip(ready) {
            state.ready = ready;
        }
        let most = weights.iter().zip(ready).filter(|(_, ready)| *ready).map(|(weight, _)| *weight).max();
        let weight = cluster.owner(VIP).map(|owner| weights[owner[4..].parse::<usize>().unwrap() - 1]);
        prop_assert_eq!(weight, most);
    }
}

/// A few labels, so that selectors match now and then.
fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["a", "b"][..])
}

fn subset(of: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let max = of.len();
    prop_oneof![
        Just(vec![]),
        prop::sample::subsequence(of, 0..=max)
            .prop_map(|names| names.into_iter().map(str::to_owned).collect())
    ]
}

fn selectors() -> impl Strategy<Value = Vec<homelab_model::Selector>> {
    let one = key().prop_map(|key| selector(&[(key, "")]));
    prop_oneof![Just(vec![]), prop::collection::vec(one, 1..3)]
}

fn advertisement() -> impl Strategy<Value = L2Advertisement> {
    let preferred = (1_u8..=100, key()).prop_map(|(weight, key)| prefer(weight, selector(&[(key, "")])));
    let preferred = prop::collection::vec(preferred, 0..3);
    let interfaces = subset(&["eth0", "eth1", "eth2"]);
    (subset(&["p0", "p1", "ghost"]), selectors(), preferred, selectors(), interfaces).prop_map(
        |(ip_address_pools, node_selectors, preferred_node_selectors, service_selectors, interfaces)| {
            L2Advertisement {
                name: "random".to_owned(),
                ip_address_pools,
                node_selectors,
                preferred_node_selectors,
                service_selectors,
                interfaces,
            }
        },
    )
}

prop_compose! {
    fn random()(
        advertisements in prop::collection::vec(advertisement(), 0..4),
        labels in prop::collection::vec(subset(&["a", "b", LABEL_EXCLUDE]), 4),
        services in prop::collection::vec(
            (0_usize..4, subset(&["a", "b"]), any::<bool>(), prop::collection::vec((1_u8..5, any::<bool>()), 0..4)),
            1..8,
        ),
    ) -> Cluster {
        let mut cluster = Cluster::of(4);
        cluster.advertise(advertisements);
        // The last address is of no pool.
        let addresses = ["192.168.50.200", "192.168.50.201", "fd00:50::f:1", "192.168.50.203"];
        cluster.speaker.pools = vec![
            pool("p1", &[(addresses[1], addresses[1]), (addresses[2], addresses[2])]),
            pool("p0", &[(addresses[0], addresses[0])]),
        ];
        for (number, labels) in (1..).zip(labels) {
            for key in labels {
                cluster.label(&format!("node{number}"), &key, Some(""));
            }
        }
        for (number, (address, labels, local, endpoints)) in services.into_iter().enumerate() {
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|(node, v4)| endpoint(if *v4 { "10.0.0.1" } else { "fd00::1" }, &format!("node{node}"), json!({})))
                .collect();
            let labels: BTreeMap<String, String> = labels.into_iter().map(|key| (key, String::new())).collect();
            let policy = if local { "Local" } else { "Cluster" };
            let more = json!({ "labels": labels, "externalTrafficPolicy": policy, "endpoints": endpoints });
            cluster.services.push(service(&format!("s{number}"), &[addresses[address]], more));
        }
        cluster
    }
}

proptest! {
    /// The same, told anew without indices, caches and short cuts: one node, one address, one service at a time.
    #[test]
    fn placements_are_what_the_rules_say(cluster in random()) {
        let chosen = |selectors: &[homelab_model::Selector], labels| {
            selectors.is_empty() || selectors.iter().any(|selector| selector.matches(labels))
        };
        for candidate in candidates(&cluster.services, &cluster.speaker) {
            let address = candidate.address;
            let holders: Vec<_> =
                cluster.services.iter().filter(|s| s.load_balancer.iter().any(|i| i.ip == address)).collect();
            prop_assert_eq!(&candidate.services, &holders.iter().map(|s| s.full_name()).collect::<Vec<_>>());
            let of_pool = |a: &&L2Advertisement| match &candidate.pool {
                Some(pool) => a.ip_address_pools.is_empty() || a.ip_address_pools.contains(pool),
                None => false,
            };
            for node in &cluster.speaker.nodes {
                let local = |service: &&homelab_model::service::Service| {
                    service.endpoints.iter().any(|e| {
                        e.node.as_ref() == Some(&node.name) && e.address.is_ipv4() == address.is_ipv4()
                    })
                };
                let mut why = BTreeSet::new();
                let mut weights = BTreeMap::new();
                let mut interfaces: Option<BTreeSet<String>> = None;
                for service in &holders {
                    let for_service = |a: &&L2Advertisement| of_pool(a) && chosen(&a.service_selectors, &service.labels);
                    let mine = cluster.speaker.advertisements.iter().enumerate().filter(|(_, a)| for_service(a));
                    let mine: Vec<_> = mine.collect();
                    let here: Vec<_> =
                        mine.iter().filter(|(_, a)| chosen(&a.node_selectors, &node.labels)).collect();
                    if mine.is_empty() {
                        why.insert(LbUnfit::NoAdvertisement);
                    } else if node.labels.contains_key(LABEL_EXCLUDE) {
                        why.insert(LbUnfit::ExcludeLabel);
                    } else if here.is_empty() {
                        why.insert(LbUnfit::NotSelected);
                    } else if service.external_traffic_policy == Policy::Local && !local(service) {
                        why.insert(LbUnfit::NoLocalEndpoint);
                    }
                    for (index, a) in &here {
                        let sum: u32 = a
                            .preferred_node_selectors
                            .iter()
                            .filter(|p| p.preference.matches(&node.labels))
                            .map(|p| u32::from(p.weight))
                            .sum();
                        weights.insert(*index, sum);
                    }
                    if here.iter().all(|(_, a)| !a.interfaces.is_empty()) {
                        let these: BTreeSet<String> = here.iter().flat_map(|(_, a)| a.interfaces.clone()).collect();
                        interfaces = Some(interfaces.map_or(these.clone(), |before| &before & &these));
                    }
                }
                if why.is_empty() && interfaces.as_ref().is_some_and(BTreeSet::is_empty) {
                    why.insert(LbUnfit::NoCommonInterface);
                }
                let found = candidate.placement.nodes.iter().find(|eligible| eligible.node == node.name);
                let excluded = candidate.placement.excluded.iter().find(|(name, _)| *name == node.name);
                prop_assert_eq!(excluded.map(|(_, why)| why), why.first());
                prop_assert_eq!(found.is_some(), why.is_empty());
                if let Some(eligible) = found {
                    prop_assert_eq!(eligible.weight, weights.values().sum::<u32>());
                    let expected = interfaces.map_or(Interfaces::ByNetwork, Interfaces::Named);
                    prop_assert_eq!(&eligible.interfaces, &expected);
                }
            }
        }
    }

    /// The order of services, nodes and advertisements means nothing, and an owner is always one that may.
    #[test]
    fn order_means_nothing(cluster in random()) {
        let owned = |cluster: &Cluster| elect(&candidates(&cluster.services, &cluster.speaker), &cluster.members);
        let mut turned = cluster.clone();
        turned.services.reverse();
        turned.speaker.nodes.reverse();
        turned.speaker.advertisements.reverse();
        turned.speaker.pools.reverse();
        prop_assert_eq!(
            candidates(&cluster.services, &cluster.speaker),
            candidates(&turned.services, &turned.speaker)
        );
        prop_assert_eq!(owned(&cluster), owned(&turned));
        for (candidate, owned) in candidates(&cluster.services, &cluster.speaker).iter().zip(owned(&cluster)) {
            let fit = |name: &String| {
                let eligible = candidate.placement.nodes.iter().find(|eligible| eligible.node == *name);
                eligible.map(|eligible| fitness(eligible, candidate.address, &cluster.members))
            };
            match &owned.owner {
                Some(owner) => prop_assert_eq!(fit(owner).unwrap().unwrap(), owned.interfaces),
                None => {
                    let all = &candidate.placement.nodes;
                    prop_assert!(all.iter().all(|eligible| fit(&eligible.node).unwrap().is_err()));
                }
            }
        }
    }
}
