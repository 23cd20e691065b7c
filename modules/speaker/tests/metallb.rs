//! MetalLB's e2etest/l2tests on which node announces and where, by their names: what its tests read from the MAC address that a
//! client resolves, and from its ServiceL2Status, is the election's outcome here, and the announcer's frames where they are
//! about the wire. Allocation of addresses is tested where it is done.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use cluster::{Cluster, all, endpoint, ip, mac, node, prefer, selector, service};
use homelab_model::{L2Advertisement, LABEL_EXCLUDE, LbUnfit};
use homelab_speaker::announce::Announcer;
use homelab_speaker::arp::Arp;
use homelab_speaker::election::{fitness, wanted};
use homelab_speaker::mac::Mac;
use serde_json::json;

const VIP: &str = "192.168.50.200";

fn cluster() -> Cluster {
    Cluster::of(3).with(service("lb", &[VIP], json!({})))
}

fn on(interfaces: &[&str]) -> L2Advertisement {
    L2Advertisement { interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(), ..all() }
}

/// Who answers a client on this interface (0: eth0), after all nodes have been told what is theirs.
fn resolves(cluster: &Cluster, interface: u8) -> Vec<Mac> {
    let owned = [cluster.owned(VIP)];
    let client = Mac([4, 0, 0, 0, 0, 0x77]);
    let request =
        Arp::request(client, Ipv4Addr::new(192, 168, 50, 7), Ipv4Addr::new(192, 168, 50, 200)).build();
    let mut answers = Vec::new();
    for (number, name) in (1..).zip(cluster.others(&[])) {
        let mut announcer = Announcer::new();
        for index in 0..2 {
            let _ = announcer.interface(&format!("eth{index}"), Some(mac(number, index)), Duration::ZERO);
        }
        let _ = announcer.set(&wanted(&owned, &name, &BTreeSet::new()), Duration::ZERO);
        // Past the probes.
        for step in 1..30 {
            let _ = announcer.tick(Duration::from_millis(100) * step);
        }
        let name = format!("eth{interface}");
        let output = announcer.frame(&name, &request, Duration::from_secs(3)).unwrap();
        for (on, frame) in output.frames {
            assert_eq!(on, name);
            answers.push(Arp::parse(&frame).unwrap().sender_mac);
        }
    }
    answers
}

fn number(owner: Option<String>) -> u8 {
    owner.unwrap().trim_start_matches("node").parse().unwrap()
}

mod interface_selector {
    use super::*;

    #[test]
    fn validate_l2_service_status_interface() {
        let mut cluster = cluster();
        cluster.advertise(vec![on(&["eth0"])]);
        assert_eq!(cluster.owned(VIP).interfaces, ["eth0"]);
    }

    #[test]
    fn validate_the_lb_ips_mac() {
        let mut cluster = cluster();
        cluster.advertise(vec![on(&["eth0"])]);
        assert_eq!(resolves(&cluster, 0), [mac(number(cluster.owner(VIP)), 0)]);
    }

    #[test]
    fn modify_l2_interface() {
        let mut cluster = cluster();
        for (this, other) in [(0, 1), (1, 0)] {
            cluster.advertise(vec![on(&[&format!("eth{this}")])]);
            assert_eq!(resolves(&cluster, other), []);
            assert_eq!(resolves(&cluster, this), [mac(number(cluster.owner(VIP)), this)]);
        }
    }

    #[test]
    fn specify_not_existing_interfaces() {
        let mut cluster = cluster();
        cluster.advertise(vec![on(&["foo"])]);
        assert_eq!((resolves(&cluster, 0), resolves(&cluster, 1)), (vec![], vec![]));
        assert_eq!(cluster.owner(VIP), None);
        for eligible in &cluster.candidate(VIP).placement.nodes {
            assert_eq!(fitness(eligible, ip(VIP), &cluster.members), Err(LbUnfit::NoInterface));
        }
        // Theirs elects a node that cannot announce it. A node that has the interface wins here.
        cluster.member("node2").interfaces[1].name = "foo".to_owned();
        assert_eq!(cluster.owner(VIP).as_deref(), Some("node2"));
    }

    #[test]
    fn address_pool_connected_with_two_l2_advertisements() {
        let mut cluster = cluster();
        let of_pool =
            |interface| L2Advertisement { ip_address_pools: vec!["l2-test".to_owned()], ..on(&[interface]) };
        cluster.advertise(vec![of_pool("eth0"), of_pool("eth1")]);
        for interface in 0..2 {
            assert_eq!(resolves(&cluster, interface), [mac(number(cluster.owner(VIP)), interface)]);
        }
    }

    #[test]
    fn node_selector() {
        let mut cluster = cluster();
        for name in cluster.others(&[]) {
            cluster.advertise(vec![L2Advertisement { node_selectors: vec![node(&name)], ..on(&["eth0"]) }]);
            assert_eq!(cluster.owner(VIP), Some(name));
        }
    }
}

mod node_selector {
    use super::*;

    #[test]
    fn should_work_selecting_one_node() {
        let mut cluster = cluster();
        for name in cluster.others(&[]) {
            cluster.advertise(vec![L2Advertisement { node_selectors: vec![node(&name)], ..all() }]);
            let why = cluster.others(&[&name]).into_iter().map(|name| (name, LbUnfit::NotSelected));
            assert_eq!(cluster.why(VIP), why.collect::<Vec<_>>());
            assert_eq!(cluster.owner(VIP), Some(name));
        }
    }

    #[test]
    fn should_with_multiple_node_selectors() {
        let endpoints = json!([endpoint("10.244.1.7", "node1", json!({}))]);
        let more = json!({ "externalTrafficPolicy": "Local", "endpoints": endpoints });
        let mut cluster = Cluster::of(3).with(service("lb", &[VIP], more));
        cluster.advertise(vec![L2Advertisement { node_selectors: vec![node("node2")], ..all() }, all()]);
        assert_eq!(cluster.owner(VIP).as_deref(), Some("node1"));
    }

    #[test]
    fn should_work_when_adding_nodes() {
        let mut cluster = cluster();
        let node_selectors = vec![selector(&[("l2-node-selector-test", "true")])];
        cluster.advertise(vec![L2Advertisement { node_selectors, ..all() }]);
        assert_eq!((cluster.owner(VIP), resolves(&cluster, 0)), (None, vec![]));
        cluster.label("node1", "l2-node-selector-test", Some("true"));
        assert_eq!(cluster.owner(VIP).as_deref(), Some("node1"));
    }
}

mod preferred_node {
    use super::*;

    fn preferring(preferred: Vec<homelab_model::PreferredNode>) -> L2Advertisement {
        L2Advertisement { preferred_node_selectors: preferred, ..all() }
    }

    /// A cluster, its natural owner and the others.
    fn natural() -> (Cluster, String, Vec<String>) {
        let cluster = cluster();
        let natural = cluster.owner(VIP).unwrap();
        let others = cluster.others(&[&natural]);
        (cluster, natural, others)
    }

    #[test]
    fn should_prefer_the_labeled_node_and_fall_back_to_the_baseline_election_when_the_label_is_removed() {
        let (mut cluster, natural, others) = natural();
        cluster.advertise(vec![preferring(vec![prefer(100, selector(&[("preferred", "true")]))])]);
        cluster.label(&others[0], "preferred", Some("true"));
        assert_eq!(cluster.owner(VIP).as_ref(), Some(&others[0]));
        cluster.label(&others[0], "preferred", None);
        assert_eq!(cluster.owner(VIP), Some(natural));
    }

    #[test]
    fn should_behave_like_the_baseline_advertisement_when_no_node_matches_the_preferred_selector() {
        let (mut cluster, natural, _) = natural();
        let nobody = prefer(100, selector(&[("no", "match")]));
        cluster.advertise(vec![preferring(vec![nobody, prefer(10, selector(&[]))])]);
        assert_eq!(cluster.owner(VIP), Some(natural));
    }

    #[test]
    fn should_fail_over_when_the_preferred_node_becomes_unschedulable_and_reclaim_when_it_returns() {
        let (mut cluster, natural, others) = natural();
        cluster.advertise(vec![preferring(vec![prefer(100, node(&others[0]))])]);
        assert_eq!(cluster.owner(VIP).as_ref(), Some(&others[0]));
        cluster.label(&others[0], LABEL_EXCLUDE, Some(""));
        assert_eq!(cluster.owner(VIP).as_ref(), Some(&natural));
        cluster.label(&others[0], LABEL_EXCLUDE, None);
        assert_eq!(cluster.owner(VIP).as_ref(), Some(&others[0]));
        // Ours alone: the same by cordoning it.
        cluster.member(&others[0]).cordoned = true;
        assert_eq!(cluster.owner(VIP), Some(natural));
    }

    #[test]
    fn should_re_elect_when_the_l2advertisement_spec_changes_at_runtime() {
        let (mut cluster, natural, others) = natural();
        for name in &others {
            cluster.advertise(vec![preferring(vec![prefer(100, node(name))])]);
            assert_eq!(cluster.owner(VIP).as_ref(), Some(name));
        }
        cluster.advertise(vec![all()]);
        assert_eq!(cluster.owner(VIP), Some(natural));
    }

    #[test]
    fn should_respect_node_selectors_as_a_hard_filter_while_preferred_node_selectors_orders_the_eligible_set()
    {
        let mut cluster = cluster();
        let node_selectors = vec![selector(&[("eligible", "true")])];
        let preferred = vec![prefer(100, selector(&[("preferred", "true")]))];
        cluster.advertise(vec![L2Advertisement { node_selectors, ..preferring(preferred) }]);
        for name in ["node1", "node2"] {
            cluster.label(name, "eligible", Some("true"));
        }
        for name in ["node1", "node2"] {
            cluster.label(name, "preferred", Some("true"));
            assert_eq!(cluster.owner(VIP).as_deref(), Some(name));
            cluster.label(name, "preferred", None);
        }
    }

    #[test]
    fn should_announce_from_the_node_selectors_set_when_it_is_disjoint_from_preferred_node_selectors() {
        let mut cluster = cluster();
        let preferred = vec![prefer(100, node("node2"))];
        cluster.advertise(vec![L2Advertisement {
            node_selectors: vec![node("node1")],
            ..preferring(preferred)
        }]);
        assert_eq!(cluster.owner(VIP).as_deref(), Some("node1"));
        // Nor does an advertisement prefer a node that only another one is for.
        cluster.speaker.advertisements.push(L2Advertisement { node_selectors: vec![node("node3")], ..all() });
        assert!(cluster.candidate(VIP).placement.nodes.iter().all(|eligible| eligible.weight == 0));
    }

    #[test]
    fn should_sum_weights_across_multiple_l2advertisements_targeting_the_same_pool() {
        let mut cluster = cluster();
        let zone = preferring(vec![prefer(60, selector(&[("zone", "primary")]))]);
        let role = preferring(vec![prefer(50, selector(&[("role", "edge")]))]);
        cluster.advertise(vec![zone, role]);
        for (double, single) in [("node1", "node2"), ("node2", "node3"), ("node3", "node1")] {
            cluster.label(double, "zone", Some("primary")).label(double, "role", Some("edge"));
            cluster.label(single, "zone", Some("primary"));
            assert_eq!(cluster.owner(VIP).as_deref(), Some(double), "110 against 60");
            cluster.label(double, "zone", None);
            assert_eq!(cluster.owner(VIP).as_deref(), Some(single), "60 against 50");
            cluster.label(double, "role", None).label(single, "zone", None);
        }
    }

    #[test]
    fn should_scope_preferred_node_selectors_to_services_matching_service_selectors() {
        let other = "192.168.50.201";
        let (cluster, natural, others) = natural();
        let mut cluster =
            cluster.with(service("matched", &[other], json!({ "labels": { "app": "matched" } })));
        for name in others.iter().chain([&natural]) {
            let service_selectors = vec![selector(&[("app", "matched")])];
            let scoped = L2Advertisement { service_selectors, ..preferring(vec![prefer(100, node(name))]) };
            cluster.advertise(vec![all(), scoped]);
            assert_eq!(cluster.owner(other).as_ref(), Some(name));
            assert_eq!(cluster.owner(VIP).as_ref(), Some(&natural));
        }
    }
}

mod service_selector {
    use super::*;

    fn of_app(app: &str) -> L2Advertisement {
        L2Advertisement { service_selectors: vec![selector(&[("app", app)])], ..all() }
    }

    fn app(app: &str) -> Cluster {
        Cluster::of(3).with(service("lb", &[VIP], json!({ "labels": { "app": app } })))
    }

    #[test]
    fn should_only_advertise_services_matching_both_pool_and_service_selectors() {
        let (a, b) = ("192.168.50.1", "192.168.50.2");
        let mut cluster = app("web").with(service("a", &[a], json!({ "labels": { "app": "web" } })));
        cluster = cluster.with(service("b", &[b], json!({ "labels": { "app": "web" } })));
        cluster.speaker.pools = vec![cluster::pool("pool-a", &[(a, a)]), cluster::pool("pool-b", &[(b, b)])];
        let advertisement = L2Advertisement { ip_address_pools: vec!["pool-a".to_owned()], ..of_app("web") };
        cluster.advertise(vec![advertisement]);
        assert!(cluster.owner(a).is_some());
        assert_eq!(cluster.owner(b), None);
        assert!(cluster.why(b).iter().all(|(_, why)| *why == LbUnfit::NoAdvertisement));
        cluster.services[1].labels.clear();
        assert_eq!(cluster.owner(a), None);
        assert!(cluster.why(a).iter().all(|(_, why)| *why == LbUnfit::NoAdvertisement));
    }

    #[test]
    fn should_announce_from_exactly_one_node_when_both_advertisements_match_the_service() {
        let mut cluster = app("test");
        let of_node = |name| L2Advertisement { node_selectors: vec![node(name)], ..of_app("test") };
        cluster.advertise(vec![of_node("node1"), of_node("node2")]);
        let owner = cluster.owner(VIP).unwrap();
        assert!(["node1", "node2"].contains(&owner.as_str()));
        assert_eq!(resolves(&cluster, 0), [mac(number(Some(owner)), 0)]);
    }

    #[test]
    fn should_not_announce_when_no_advertisement_matches_both_service_and_node() {
        let mut cluster = app("web");
        let ghost = L2Advertisement { node_selectors: vec![node("non-existing-node")], ..of_app("web") };
        cluster.advertise(vec![of_app("other"), ghost]);
        assert_eq!((cluster.owner(VIP), resolves(&cluster, 0)), (None, vec![]));
        assert!(cluster.why(VIP).iter().all(|(_, why)| *why == LbUnfit::NotSelected));
    }

    #[test]
    fn should_use_or_logic_for_multiple_selectors() {
        let mut advertisement = of_app("nginx");
        advertisement.service_selectors.push(selector(&[("app", "apache")]));
        for (name, announced) in [("nginx", true), ("apache", true), ("other", false)] {
            let mut cluster = app(name);
            cluster.advertise(vec![advertisement.clone()]);
            assert_eq!(cluster.owner(VIP).is_some(), announced, "{name}");
        }
    }
}

mod l2 {
    use super::*;

    fn local(endpoints: &[(&str, serde_json::Value)]) -> Cluster {
        let endpoints = (7..).zip(endpoints);
        let endpoints =
            endpoints.map(|(n, (node, more))| endpoint(&format!("10.244.0.{n}"), node, more.clone()));
        let endpoints: Vec<_> = endpoints.collect();
        let more = json!({ "externalTrafficPolicy": "Local", "endpoints": endpoints });
        Cluster::of(3).with(service("lb", &[VIP], more))
    }

    #[test]
    fn should_work_for_external_traffic_policy_cluster() {
        assert!(cluster().owner(VIP).is_some());
    }

    #[test]
    fn should_work_for_external_traffic_policy_local() {
        for name in ["node1", "node2", "node3"] {
            let cluster = local(&[(name, json!({}))]);
            assert_eq!(cluster.owner(VIP).as_deref(), Some(name));
            let why = cluster.others(&[name]).into_iter().map(|name| (name, LbUnfit::NoLocalEndpoint));
            assert_eq!(cluster.why(VIP), why.collect::<Vec<_>>());
        }
        assert_eq!(local(&[]).owner(VIP), None);
        // Terminating but serving keeps the address (MetalLB's EndpointCanServe); not ready, or of no node of ours, is nothing.
        let leaving = json!({ "ready": false, "serving": true, "terminating": true });
        assert_eq!(local(&[("node2", leaving)]).owner(VIP).as_deref(), Some("node2"));
        let stopped = json!({ "ready": false, "serving": false, "terminating": true });
        let starting = json!({ "ready": false });
        assert_eq!(local(&[("node1", stopped), ("node2", starting), ("x", json!({}))]).owner(VIP), None);
    }

    /// Our proxy being in place is what their condition stands for.
    #[test]
    fn should_not_be_announced_from_a_node_with_a_network_unavailable_condition() {
        let mut cluster = cluster();
        let before = cluster.owner(VIP).unwrap();
        cluster.member(&before).ready = false;
        let meanwhile = cluster.owner(VIP).unwrap();
        assert_ne!(meanwhile, before);
        cluster.member(&before).ready = true;
        assert_eq!(cluster.owner(VIP), Some(before));
    }

    #[test]
    fn it_should_be_work_when_adding_node_exclude_balancers_label_to_a_node() {
        let mut cluster = cluster();
        let before = cluster.owner(VIP).unwrap();
        cluster.label(&before, LABEL_EXCLUDE, Some(""));
        assert_eq!(cluster.why(VIP), [(before.clone(), LbUnfit::ExcludeLabel)]);
        assert!(cluster.owner(VIP).is_some_and(|owner| owner != before));
        cluster.label(&before, LABEL_EXCLUDE, None);
        assert_eq!(cluster.owner(VIP), Some(before));
    }

    #[test]
    fn service_should_be_announced_only_from_expected_nodes_when_a_node_is_cordoned() {
        let mut cluster = cluster();
        let before = cluster.owner(VIP).unwrap();
        cluster.member(&before).cordoned = true;
        assert!(cluster.owner(VIP).is_some_and(|owner| owner != before));
        cluster.member(&before).cordoned = false;
        assert_eq!(cluster.owner(VIP), Some(before));
    }

    #[test]
    fn different_services_sharing_the_same_ip_should_advertise_from_the_same_node() {
        for vip in [VIP, "fd00:50::f:1"] {
            let mut cluster = Cluster::of(3);
            cluster.services =
                ["a", "b"].map(|name| service(name, &[vip], json!({ "labels": { "app": name } }))).to_vec();
            let candidate = cluster.candidate(vip);
            assert_eq!(candidate.services, ["default/a", "default/b"]);
            assert!(cluster.owner(vip).is_some());
            // Only where both may be announced.
            let of = |app, nodes: &[&str]| L2Advertisement {
                service_selectors: vec![selector(&[("app", app)])],
                node_selectors: nodes.iter().map(|name| node(name)).collect(),
                ..all()
            };
            cluster.advertise(vec![of("a", &["node1", "node2"]), of("b", &["node2", "node3"])]);
            assert_eq!(cluster.owner(vip).as_deref(), Some("node2"));
            cluster.services[1].labels.clear();
            assert!(cluster.why(vip).iter().all(|(_, why)| *why == LbUnfit::NoAdvertisement));
            assert_eq!(cluster.owner(vip), None);
        }
    }

    #[test]
    fn speaker_failover() {
        let mut cluster = cluster();
        let before = cluster.owner(VIP).unwrap();
        let state = cluster.members.remove(&before).unwrap();
        assert!(cluster.owner(VIP).is_some_and(|owner| owner != before));
        cluster.members.insert(before.clone(), state);
        assert_eq!(cluster.owner(VIP), Some(before));
        cluster.members.clear();
        assert_eq!(cluster.owner(VIP), None);
    }
}
