//! What the World says of histories of the API, and of single objects.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use homelab_kubernetes::{HEADER, Kind, KubeService, Name, World};
use homelab_model::KubernetesSpec;
use homelab_model::service::{IpMode, Policy, Protocol, Service, Type};
use proptest::prelude::*;
use serde_json::{Value, json};

fn settings() -> KubernetesSpec {
    KubernetesSpec::new(Vec::new(), "node1")
}

fn service(name: &str, change: Value) -> Value {
    let mut service = json!({
        "metadata": { "name": name, "namespace": "default", "resourceVersion": "1" },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ipFamilies": ["IPv4"], "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 8080 }],
        },
    });
    merge(&mut service, change);
    service
}

fn slice(name: &str, service: &str, change: Value) -> Value {
    let mut slice = json!({
        "metadata": {
            "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.244.1.5"], "conditions": { "ready": true }, "nodeName": "node1" }],
    });
    merge(&mut slice, change);
    slice
}

/// Objects are merged; everything else replaces.
fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn apply(world: &mut World, kind: Kind, object: &Value) {
    match kind {
        Kind::Services => world.service(&serde_json::from_value(object.clone()).unwrap()),
        Kind::Slices => world.slice(&serde_json::from_value(object.clone()).unwrap()),
        Kind::Nodes => world.node(&serde_json::from_value(object.clone()).unwrap()),
    }
}

/// A world that has seen these lists.
fn seen(services: &[Value], slices: &[Value]) -> World {
    let mut world = World::new(settings());
    for (kind, objects) in [(Kind::Slices, slices), (Kind::Services, services), (Kind::Nodes, &[][..])] {
        world.begin(kind);
        objects.iter().for_each(|object| apply(&mut world, kind, object));
        world.complete(kind);
    }
    assert!(world.is_complete());
    world
}

/// The one service of a world.
fn only(services: &[Value], slices: &[Value]) -> Option<Service> {
    let changed = seen(services, slices).take_changed();
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["default/web"]);
    changed.into_values().next().unwrap().map(|service| service.service)
}

fn web(change: Value) -> Option<Service> {
    only(&[service("web", change)], &[])
}

#[test]
fn what_kube_proxy_skips_is_skipped() {
    assert!(web(json!({})).is_some());
    for skipped in [
        json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } }),
        json!({ "spec": { "clusterIP": "", "clusterIPs": null } }),
        json!({ "spec": { "type": "ExternalName", "externalName": "example.org" } }),
        json!({ "metadata": { "labels": { "service.kubernetes.io/service-proxy-name": "other" } } }),
        json!({ "metadata": { "labels": { "service.kubernetes.io/headless": "" } } }),
    ] {
        assert_eq!(web(skipped.clone()), None, "{skipped}");
    }
}

#[test]
fn a_service_proxy_name_of_our_own_chooses_its_services() {
    let mut world = World::new(KubernetesSpec { service_proxy_name: Some("homelab".into()), ..settings() });
    let label =
        |name| json!({ "metadata": { "labels": { "service.kubernetes.io/service-proxy-name": name } } });
    apply(&mut world, Kind::Services, &service("a", label("homelab")));
    apply(&mut world, Kind::Services, &service("b", label("other")));
    apply(&mut world, Kind::Services, &service("c", json!({})));
    let served: Vec<bool> = world.take_changed().into_values().map(|service| service.is_some()).collect();
    assert_eq!(served, [true, false, false]);
}

#[test]
fn the_fields_of_a_service_are_as_the_proxy_wants_them() {
    let full = web(json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["192.168.50.9", "not an address", "192.168.50.9"],
            "loadBalancerIP": "192.168.50.200",
            "loadBalancerSourceRanges": ["192.168.50.7/24", " 10.0.0.0/8 "],
            "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Local",
            "healthCheckNodePort": 30999,
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
            "trafficDistribution": "PreferSameZone",
            "ports": [
                { "name": "http", "port": 80, "nodePort": 30080, "targetPort": "web", "protocol": "TCP" },
                { "name": "dns", "port": 53, "nodePort": 0, "protocol": "UDP" },
                { "name": "odd", "port": 54, "protocol": "DCCP" },
            ],
        },
        "status": { "loadBalancer": { "ingress": [
            { "ip": "192.168.50.201", "ipMode": "VIP", "ports": [] },
            { "ip": "192.168.50.202", "ipMode": "Proxy" },
            { "hostname": "lb.example.org" },
            { "ip": "192.168.50.201" },
        ] } },
    }))
    .unwrap();
    assert_eq!((full.r#type, full.health_check_node_port), (Type::LoadBalancer, Some(30999)));
    assert_eq!((full.external_traffic_policy, full.internal_traffic_policy), (Policy::Local, Policy::Local));
    let text = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&full.cluster_ips), ["10.96.0.10", "fd00:96::10"]);
    assert_eq!(text(&full.external_ips), ["192.168.50.9"]);
    let ranges: Vec<String> = full.load_balancer_source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["192.168.50.0/24", "10.0.0.0/8"]);
    let given: Vec<(String, IpMode)> =
        full.load_balancer.iter().map(|i| (i.ip.to_string(), i.ip_mode)).collect();
    assert_eq!(given, [("192.168.50.201".into(), IpMode::Vip), ("192.168.50.202".into(), IpMode::Proxy)]);
    assert_eq!(full.session_affinity_timeout_seconds, 60);
    let ports: Vec<_> =
        full.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port, p.node_port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 80, Some(30080)), ("dns", Protocol::Udp, 53, None)]);
    // Addresses as old objects have them.
    assert_eq!(
        text(&web(json!({ "spec": { "externalIPs": ["010.001.02.3"] } })).unwrap().external_ips),
        ["10.1.2.3"]
    );
}

#[test]
fn addresses_of_other_classes_and_of_what_is_deleted_are_not_announced() {
    let announced = |change: Value| {
        let mut web = service("web", json!({ "spec": { "type": "LoadBalancer" } }));
        merge(&mut web, change);
        let mut world = World::new(settings());
        apply(&mut world, Kind::Services, &web);
        let read = world.take_changed().remove("default/web").unwrap();
        let read = read.expect("the proxy serves it, or the speaker announces it");
        let others = web["metadata"]["labels"].get("service.kubernetes.io/service-proxy-name").is_some();
        assert_eq!(read.proxied, !others);
        assert_eq!(world.all_joined().count(), usize::from(!others));
        read.announced
    };
    assert!(announced(json!({})));
    assert!(announced(json!({ "spec": { "loadBalancerClass": "homelab" } })));
    // The speaker does not depend on who serves it.
    let label = json!({ "metadata": { "labels": { "service.kubernetes.io/service-proxy-name": "other" } } });
    assert!(announced(label));
    assert!(!announced(json!({ "spec": { "loadBalancerClass": "other.example/lb" } })));
    assert!(!announced(json!({ "spec": { "type": "NodePort" } })));
    let deleted = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"] });
    assert!(!announced(json!({ "metadata": deleted })));
}

/// Addresses, whether they take new connections, whether they serve, whether they end; of one service.
fn endpoints(slices: &[Value]) -> Vec<(String, [bool; 3])> {
    let service = only(&[service("web", json!({}))], slices).unwrap();
    let row =
        |e: &homelab_model::service::Endpoint| (e.address.to_string(), [e.ready, e.serving, e.terminating]);
    service.endpoints.iter().map(row).collect()
}

#[test]
fn conditions_that_are_missing_mean_ready() {
    let of = |conditions: Value| {
        endpoints(&[slice(
            "s",
            "web",
            json!({ "endpoints": [{ "addresses": ["10.244.1.5"], "conditions": conditions }] }),
        )])[0]
            .1
    };
    assert_eq!(of(json!(null)), [true, true, false]);
    assert_eq!(of(json!({})), [true, true, false]);
    assert_eq!(of(json!({ "ready": false })), [false, false, false]);
    assert_eq!(of(json!({ "ready": false, "serving": true, "terminating": true })), [false, true, true]);
    assert_eq!(of(json!({ "ready": true, "serving": null, "terminating": null })), [true, true, false]);
}

#[test]
fn slices_of_several_writers_and_families_are_one_service() {
    let at = |address: &str, ready: bool| json!([{ "addresses": [address, "10.244.9.9"], "conditions": { "ready": ready } }]);
    let slices = [
        slice("a", "web", json!({ "endpoints": at("10.244.1.5", false) })),
        // The same address again, ready: it wins.
        slice("b", "web", json!({ "endpoints": at("10.244.1.5", true) })),
        slice("c", "web", json!({ "endpoints": at("10.244.1.6", true) })),
        slice("d", "web", json!({ "addressType": "IPv6", "endpoints": at("fd00::5", true) })),
        slice("e", "web", json!({ "addressType": "FQDN", "endpoints": at("pod.example.org", true) })),
        // An address that contradicts its type, another service's, nobody's.
        slice("f", "web", json!({ "addressType": "IPv6", "endpoints": at("10.244.1.7", true) })),
        slice(
            "g",
            "web",
            json!({ "ports": [{ "name": "other", "port": 1 }], "endpoints": at("10.244.1.8", true) }),
        ),
        slice(
            "h",
            "web",
            json!({ "ports": [{ "name": "", "port": null }], "endpoints": at("10.244.1.9", true) }),
        ),
    ];
    let ready = [true, true, false];
    assert_eq!(
        endpoints(&slices),
        [("10.244.1.5".into(), ready), ("10.244.1.6".into(), ready), ("fd00::5".into(), ready)]
    );
}

#[test]
fn named_ports_and_hints_are_the_slices() {
    let ports = json!([{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    let web = service("web", json!({ "spec": { "ports": ports } }));
    let slice = slice(
        "s",
        "web",
        json!({
            "ports": [
                { "name": "http", "port": 8080 }, { "name": "dns", "port": 5353, "protocol": "UDP" },
                { "name": "http", "port": 1, "protocol": "UDP" },
            ],
            "endpoints": [{
                "addresses": ["10.244.1.5"], "zone": "east", "nodeName": "node2",
                "hints": { "forZones": [{ "name": "east" }], "forNodes": [{ "name": "node2" }] },
            }],
        }),
    );
    let endpoint = only(&[web], &[slice]).unwrap().endpoints.remove(0);
    assert_eq!(endpoint.ports, BTreeMap::from([("http".into(), 8080), ("dns".into(), 5353)]).into());
    assert_eq!((endpoint.zone.as_deref(), endpoint.node.as_deref()), (Some("east"), Some("node2")));
    assert_eq!((endpoint.for_zones, endpoint.for_nodes), (vec!["east".to_owned()], vec!["node2".to_owned()]));
}

#[test]
fn nodes_say_what_the_tunnel_wants() {
    let mut world = World::new(settings());
    let mut node = json!({
        "metadata": {
            "name": "node2", "labels": { "topology.kubernetes.io/zone": "east" },
            "annotations": {
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"AA:bb:cc:00:11:22\"}",
                "flannel.alpha.coreos.com/public-ip": "192.168.50.12",
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            },
        },
        "spec": { "podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:244:2::/64"], "unschedulable": true },
        "status": {
            "addresses": [
                { "type": "Hostname", "address": "node2" },
                { "type": "InternalIP", "address": "192.168.50.12" },
                { "type": "ExternalIP", "address": "203.0.113.1" },
            ],
            "conditions": [
                { "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z" },
                { "type": "NetworkUnavailable", "status": "True" },
            ],
        },
    });
    apply(&mut world, Kind::Nodes, &node);
    assert!(world.take_nodes_changed());
    let read = world.nodes()["node2"].clone();
    assert_eq!(read.addresses, ["192.168.50.12".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(read.pod_cidrs.len(), 2);
    assert_eq!((read.zone(), read.ready, read.network_unavailable), (Some("east"), Some(true), true));
    let flannel = read.flannel.unwrap().v4.unwrap();
    assert_eq!((flannel.vni, flannel.mac.as_str()), (1, "aa:bb:cc:00:11:22"));
    // A heartbeat is no change.
    node["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-01-01T00:00:10Z");
    apply(&mut world, Kind::Nodes, &node);
    assert!(!world.take_nodes_changed());
    world.gone(Kind::Nodes, &Name::new("", "node2"));
    assert!(world.take_nodes_changed() && world.nodes().is_empty());
}

#[test]
fn an_endpoint_touches_its_service_alone() {
    let name = |n: usize| format!("s{n}");
    let services: Vec<Value> = (0..50).map(|n| service(&name(n), json!({}))).collect();
    let slices: Vec<Value> = (0..50).map(|n| slice(&format!("{}-x", name(n)), &name(n), json!({}))).collect();
    let mut world = seen(&services, &slices);
    assert_eq!(world.take_changed().len(), 50);
    let moved = json!({ "endpoints": [{ "addresses": ["10.244.2.7"] }] });
    apply(&mut world, Kind::Slices, &slice("s7-x", "s7", moved));
    let changed = world.take_changed();
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["default/s7"]);
    assert_eq!(
        changed["default/s7"].as_ref().unwrap().service.endpoints[0].address.to_string(),
        "10.244.2.7"
    );
    // What a controller writes beside the spec, and a list with nothing new, are no changes.
    let mut touched = services[3].clone();
    merge(&mut touched, json!({ "metadata": { "resourceVersion": "9", "finalizers": ["x"] } }));
    apply(&mut world, Kind::Services, &touched);
    assert!(!world.has_changed());
}

#[test]
fn nothing_is_emptied_without_a_complete_list() {
    let services = [service("a", json!({})), service("b", json!({}))];
    let mut world = seen(&services, &[]);
    world.take_changed();
    for _ in 0..2 {
        // Broken off after one object, or before the first.
        world.begin(Kind::Services);
        assert!(world.take_changed().is_empty());
        apply(&mut world, Kind::Services, &services[0]);
    }
    assert_eq!(world.count(Kind::Services), 2);
    world.complete(Kind::Services);
    assert_eq!(world.take_changed(), BTreeMap::from([("default/b".to_owned(), None)]));
}

#[test]
fn a_snapshot_is_all_or_nothing() {
    let balanced = json!({
        "spec": { "type": "LoadBalancer", "sessionAffinity": "ClientIP" },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.168.50.201" }] } },
    });
    let mut world = seen(&[service("web", balanced)], &[slice("s", "web", json!({}))]);
    let text = file(&mut world);
    let mut again = World::restore(settings(), text.as_bytes()).unwrap();
    assert!(!again.is_complete());
    assert_eq!(again.take_changed(), world.take_changed());
    assert_eq!(file(&mut again), text);
    assert!(world.take_unkept().is_none() && again.take_unkept().is_none());
    for broken in
        ["", "x", HEADER, &text[..text.len() - 1], &text.replace("web", "wex"), &text.replace("t 2", "t 3")]
    {
        assert!(World::restore(settings(), broken.as_bytes()).is_err(), "{broken:.60}");
    }
}

/// A file with everything and nothing after it.
fn file(world: &mut World) -> String {
    [HEADER.to_owned()].into_iter().chain(world.all().pieces()).collect()
}

#[test]
fn what_is_added_to_a_snapshot_is_what_changed() {
    let web = service("web", json!({}));
    let mut world = seen(std::slice::from_ref(&web), &[slice("s", "web", json!({}))]);
    let added =
        |world: &mut World| world.take_unkept().map(|batch| batch.pieces().skip(1).collect::<String>());
    let first = file(&mut world);
    apply(&mut world, Kind::Services, &web);
    apply(&mut world, Kind::Slices, &slice("s", "web", json!({ "metadata": { "resourceVersion": "9" } })));
    assert_eq!(added(&mut world), None, "nothing that matters");
    world.gone(Kind::Services, &Name::new("default", "web"));
    world.gone(Kind::Services, &Name::new("default", "unknown"));
    apply(&mut world, Kind::Nodes, &json!({ "metadata": { "name": "node1" } }));
    assert_eq!(
        added(&mut world).unwrap(),
        "{\"gone\":[\"services\",\"default/web\"]}\n{\"node\":[\"node1\",{\"addresses\":[]}]}\n",
    );
    assert!(first.contains("default/s"));
}

/// Something that the API says.
#[derive(Debug, Clone)]
enum Step {
    /// An object is written: which one, and in which of its versions.
    Put(Kind, u8, u8),
    Delete(Kind, u8),
    /// The connection is lost, and all is listed anew; what changes then is in the list.
    Relist(Kind, Vec<(u8, u8)>),
    /// A list begins, and the connection is lost again after some objects.
    Broken(Kind, u8),
    Take,
    /// It is written to disk: everything, or what changed.
    Keep(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop_oneof![Just(Kind::Services), Just(Kind::Slices)];
    prop_oneof![
        6 => (kind(), 0..4_u8, 0..6_u8).prop_map(|(kind, one, version)| Step::Put(kind, one, version)),
        3 => (kind(), 0..4_u8).prop_map(|(kind, one)| Step::Delete(kind, one)),
        1 => (kind(), prop::collection::vec((0..4_u8, 0..6_u8), 0..4)).prop_map(|(kind, all)| Step::Relist(kind, all)),
        1 => (kind(), 0..3_u8).prop_map(|(kind, some)| Step::Broken(kind, some)),
        2 => Just(Step::Take),
        3 => prop::bool::weighted(0.2).prop_map(Step::Keep),
    ]
}

/// An object in one of its versions: others of the same name differ in what matters.
fn object(kind: Kind, one: u8, version: u8) -> Value {
    match kind {
        Kind::Services => {
            let change = match version {
                0 => json!({ "spec": { "clusterIP": "None" } }),
                1 => json!({ "metadata": { "resourceVersion": "7" } }),
                2 => json!({ "spec": { "type": "NodePort" } }),
                3 => json!({ "spec": { "ports": [{ "name": "a", "port": 1 }] } }),
                _ => json!({}),
            };
            service(&format!("w{one}"), change)
        }
        _ => {
            let change = match version {
                0 => json!({ "addressType": "FQDN" }),
                1 => json!({ "endpoints": [] }),
                2 => json!({ "ports": [{ "name": "a", "port": 1 }] }),
                _ => json!({}),
            };
            // Slices of all versions go from one service to the other.
            slice(&format!("x{one}"), &format!("w{}", (one + version) % 4), change)
        }
    }
}

/// Everything that a world knows.
fn all(world: &World) -> String {
    world.clone().all().pieces().collect()
}

proptest! {
    /// In whatever order it comes: what was taken piece by piece is what one list of all objects gives.
    #[test]
    /// However its file is cut off, it holds what was known when some of it was written; all that was written by then.
    #[test]
    fn a_history_comes_to_what_its_end_says(steps in prop::collection::vec(step(), 1..60), cuts in prop::collection::vec(any::<prop::sample::Index>(), 8)) {
        let mut world = World::new(settings());
        let mut truth: BTreeMap<(Kind, u8), u8> = BTreeMap::new();
        let mut told: BTreeMap<String, KubeService> = BTreeMap::new();
        // With its lengths at which something was whole, and what that was.
        let mut file = file(&mut world);
        let mut states = vec![(file.len(), all(&world))];
        let take = |world: &mut World, told: &mut BTreeMap<String, KubeService>| {
            for (name, service) in world.take_changed() {
                match service {
                    Some(service) => told.insert(name, service),
                    None => told.remove(&name),
                };
            }
        };
        for step in steps {
            match step {
                Step::Put(kind, one, version) => {
                    truth.insert((kind, one), version);
                    apply(&mut world, kind, &object(kind, one, version));
                }
                Step::Delete(kind, one) => {
                    truth.remove(&(kind, one));
                    let letter = if kind == Kind::Services { 'w' } else { 'x' };
                    world.gone(kind, &Name::new("default", &format!("{letter}{one}")));
                }
                Step::Relist(kind, all) => {
                    truth.retain(|(of, _), _| *of != kind);
                    truth.extend(all.iter().map(|(one, version)| ((kind, *one), *version)));
                    world.begin(kind);
                    all.iter().for_each(|(one, version)| apply(&mut world, kind, &object(kind, *one, *version)));
                    world.complete(kind);
                }
                Step::Broken(kind, some) => {
                    world.begin(kind);
                    let there = truth.iter().filter(|((of, _), _)| *of == kind).take(some.into());
                    for ((_, one), version) in there {
                        apply(&mut world, kind, &object(kind, *one, *version));
                    }
                }
                Step::Take => take(&mut world, &mut told),
                Step::Keep(true) => {
                    file = self::file(&mut world);
                    states = vec![(file.len(), all(&world))];
                }
                Step::Keep(false) => {
                    file.extend(world.take_unkept().iter().flat_map(|batch| batch.pieces().collect::<Vec<_>>()));
                    states.push((file.len(), all(&world)));
                }
            }
        }
        take(&mut world, &mut told);
        let of = |kind| truth.iter().filter(move |((of, _), _)| *of == kind)
            .map(|((kind, one), version)| object(*kind, *one, *version)).collect::<Vec<_>>();
        let mut scratch = seen(&of(Kind::Services), &of(Kind::Slices));
        let expected: BTreeMap<String, KubeService> =
            scratch.take_changed().into_iter().filter_map(|(name, service)| Some((name, service?))).collect();
        prop_assert_eq!(&told, &expected);
        // Also through its file, wherever that ends.
        for cut in cuts.iter().map(|cut| cut.index(file.len() + 1)).chain(states.iter().map(|(length, _)| *length)) {
            let restored = World::restore(settings(), &file.as_bytes()[..cut]).ok();
            let kept = states.iter().rev().find(|(length, _)| *length <= cut);
            prop_assert_eq!(restored.map(|world| all(&world)), kept.map(|(_, state)| state.clone()));
        }
        file.extend(world.take_unkept().iter().flat_map(|batch| batch.pieces().collect::<Vec<_>>()));
        let mut again = World::restore(settings(), file.as_bytes()).unwrap();
        prop_assert_eq!(all(&again), all(&world));
        let restored: BTreeMap<String, KubeService> =
            again.take_changed().into_iter().filter_map(|(name, service)| Some((name, service?))).collect();
        prop_assert_eq!(restored, expected);
    }
}
