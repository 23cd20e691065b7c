//! What services leave open: fixed, else remembered, else the next free one.

#![allow(clippy::unwrap_used, reason = "addresses of the tests are good")]

mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_model::service::{Endpoint, Policy, Port, Protocol, Service, Type};
use homelab_model::{Assigned, ContainerEndpoint, Declared, Family, Ranges, Refusal};
use services::{assign, endpoint, ingress, ip, memory, pool, port, service};

fn ranges() -> Ranges {
    Ranges {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        node_ports: (30000, 32767),
        pools: vec![pool("default", &[("192.168.50.200", "192.168.50.220")])],
        taken: BTreeMap::new(),
    }
}

fn fresh(declared: &[Declared]) -> Assigned {
    assign(declared, &BTreeMap::new(), &ranges())
}

fn find<'a>(assigned: &'a Assigned, name: &str) -> &'a Service {
    assigned.services.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name}: {assigned:?}"))
}

fn reason<'a>(assigned: &'a Assigned, name: &str) -> &'a str {
    let full = format!("default/{name}");
    &assigned.refused.iter().find(|r| r.service == full).unwrap_or_else(|| panic!("{assigned:?}")).reason
}

#[test]
fn free_ones_begin_behind_the_static_bands() {
    let mut six = service("six", Type::ClusterIp);
    six.families = vec![Family::IPv6, Family::IPv4];
    let assigned = fresh(&[service("web", Type::NodePort), service("api", Type::LoadBalancer), six]);
    assert_eq!((&assigned.refused, &assigned.warnings), (&vec![], &vec![]));
    let names: Vec<_> = assigned.services.iter().map(Service::full_name).collect();
    assert_eq!(names, ["default/api", "default/six", "default/web"]);
    // KEP-3070: 256 addresses of a /12 and of a /112. KEP-3668: 86 of 2768 ports.
    assert_eq!(find(&assigned, "api").cluster_ips, [ip("10.96.1.1")]);
    assert_eq!(find(&assigned, "six").cluster_ips, [ip("fd00:10:96::101"), ip("10.96.1.2")]);
    assert_eq!(find(&assigned, "web").cluster_ips, [ip("10.96.1.3")]);
    assert_eq!(find(&assigned, "api").ports[0].node_port, Some(30086));
    assert_eq!(find(&assigned, "web").ports[0].node_port, Some(30087));
    assert_eq!(find(&assigned, "api").load_balancer, [ingress("192.168.50.200")]);
    assert_eq!(find(&assigned, "web").load_balancer, []);
    assert_eq!(find(&assigned, "six").ports[0].node_port, None);
}

/// Sizes, bands and order as the examples of KEP-3070 have them.
#[test]
fn the_static_band_is_used_last() {
    for (range, count, first, behind, last) in [
        ("10.96.0.0/28", 14, "10.96.0.1", "10.96.0.2", "10.96.0.14"),
        ("10.96.0.0/24", 254, "10.96.0.17", "10.96.0.18", "10.96.0.16"),
        ("10.96.0.0/20", 4094, "10.96.1.1", "10.96.1.2", "10.96.1.0"),
        ("10.96.0.0/30", 2, "10.96.0.1", "10.96.0.2", "10.96.0.2"),
        ("fd00::/124", 14, "fd00::1", "fd00::2", "fd00::e"),
    ] {
        let ranges = Ranges { service_cidrs: vec![range.parse().unwrap()], ..ranges() };
        let all: Vec<Declared> = (0..=count).map(|n| service(&format!("s{n:04}"), Type::ClusterIp)).collect();
        let assigned = assign(&all, &BTreeMap::new(), &ranges);
        let ips: Vec<IpAddr> = assigned.services.iter().map(|s| s.cluster_ips[0]).collect();
        assert_eq!((ips.len(), ips[0], ips[1]), (count, ip(first), ip(behind)), "{range}");
        assert_eq!(ips.last(), Some(&ip(last)), "{range}");
        assert_eq!(ips.iter().collect::<BTreeSet<_>>().len(), count, "{range}");
        let [Refusal { service, reason }] = assigned.refused.as_slice() else {
            panic!("{range}: {assigned:?}")
        };
        assert_eq!(*service, format!("default/s{count:04}"));
        assert!(reason.contains(range) && reason.contains("no free address"), "{reason}");
    }
}

#[test]
fn ranges_without_end_are_no_matter() {
    let ranges = Ranges {
        service_cidrs: vec!["fd00::/8".parse().unwrap()],
        node_ports: (65535, 65535),
        pools: vec![pool("all", &[("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")])],
        taken: BTreeMap::new(),
    };
    let assigned =
        assign(&[service("a", Type::LoadBalancer), service("b", Type::ClusterIp)], &BTreeMap::new(), &ranges);
    let a = find(&assigned, "a");
    assert_eq!((a.cluster_ips[0], a.ports[0].node_port), (ip("fd00::101"), Some(65535)));
    assert_eq!(find(&assigned, "b").cluster_ips, [ip("fd00::102")]);
    let none = Ranges { node_ports: (2, 1), ..ranges.clone() };
    let assigned = assign(&[service("a", Type::NodePort)], &BTreeMap::new(), &none);
    assert!(reason(&assigned, "a").contains("no node port of 2-1 is free"));
    let none = Ranges { service_cidrs: vec![], ..ranges };
    let assigned = assign(&[service("a", Type::ClusterIp)], &BTreeMap::new(), &none);
    assert!(reason(&assigned, "a").contains("set `network.serviceCIDR`"));
}

#[test]
fn what_is_fixed_goes_before_what_is_remembered() {
    let before = fresh(&[service("a", Type::LoadBalancer), service("b", Type::ClusterIp)]);
    let held = find(&before, "a").clone();
    // A new service fixes all that `a` has.
    let mut new = service("new", Type::LoadBalancer);
    new.service.cluster_ips = held.cluster_ips.clone();
    new.service.load_balancer = held.load_balancer.clone();
    new.service.ports[0].node_port = held.ports[0].node_port;
    let all = [service("a", Type::LoadBalancer), service("b", Type::ClusterIp), new];
    let after = assign(&all, &memory(&before), &ranges());
    assert_eq!(after.refused, []);
    assert_eq!(find(&after, "new").cluster_ips, held.cluster_ips);
    assert_eq!(find(&after, "b"), find(&before, "b"));
    let a = find(&after, "a");
    assert_eq!((a.cluster_ips[0], a.ports[0].node_port), (ip("10.96.1.3"), Some(30087)));
    assert_eq!(a.load_balancer, [ingress("192.168.50.201")]);
    assert_eq!(
        after.warnings,
        [
            "service default/a gives the cluster address 10.96.1.1 to default/new and gets another",
            "service default/a gives the node port 30086 to default/new and gets another",
            "service default/a gives the load-balancer address 192.168.50.200 to default/new and gets another",
        ]
    );
}

#[test]
fn of_two_that_fix_the_same_the_one_that_has_it_keeps_it() {
    let fixing = |name: &str| {
        let mut one = service(name, Type::NodePort);
        one.service.cluster_ips = vec![ip("10.96.0.80")];
        one.service.ports[0].node_port = Some(30080);
        one
    };
    let first = fresh(&[fixing("b"), fixing("a")]);
    assert_eq!(find(&first, "a").cluster_ips, [ip("10.96.0.80")]);
    assert_eq!(
        reason(&first, "b"),
        "its clusterIP 10.96.0.80 belongs to service default/a; choose another, or leave it out"
    );
    let held = fresh(&[fixing("b")]);
    let second = assign(&[fixing("a"), fixing("b")], &memory(&held), &ranges());
    assert_eq!(find(&second, "b"), find(&held, "b"));
    assert!(reason(&second, "a").contains("default/b"));
}

#[test]
fn what_cannot_be_had_is_refused_with_its_reason() {
    let with = |name: &str, change: &dyn Fn(&mut Declared)| {
        let mut one = service(name, Type::LoadBalancer);
        change(&mut one);
        one
    };
    let narrow = Ranges { service_cidrs: vec!["10.96.0.0/24".parse().unwrap()], ..ranges() };
    let all = [
        with("outside", &|d| d.service.cluster_ips = vec![ip("10.97.0.1")]),
        with("first", &|d| d.service.cluster_ips = vec![ip("10.96.0.0")]),
        with("last", &|d| d.service.cluster_ips = vec![ip("10.96.0.255")]),
        with("family", &|d| d.families = vec![Family::IPv4, Family::IPv6]),
        with("other", &|d| {
            d.families = vec![Family::IPv4];
            d.service.cluster_ips = vec![ip("fd00::1")];
        }),
        with("port", &|d| d.service.ports[0].node_port = Some(8080)),
        with("itself", &|d| {
            d.service.external_traffic_policy = Policy::Local;
            d.service.ports[0].node_port = Some(30001);
            d.service.health_check_node_port = Some(30001);
        }),
        with("two", &|d| d.service.cluster_ips = vec![ip("10.96.0.1"), ip("10.96.0.2")]),
        with("good", &|_| ()),
    ];
    let assigned = assign(&all, &BTreeMap::new(), &narrow);
    assert_eq!(assigned.services.len(), 1, "{assigned:?}");
    for (name, part) in [
        ("outside", "10.97.0.1 is outside 10.96.0.0/24"),
        ("first", "first or last address"),
        ("last", "first or last address"),
        ("family", "no IPv6 service range"),
        ("other", "fd00::1 is IPv6"),
        ("port", "8080 is outside 30000-32767"),
        ("itself", "30001 belongs to another port of its own"),
        ("two", "two addresses of one family"),
    ] {
        assert!(reason(&assigned, name).contains(part), "{name}: {}", reason(&assigned, name));
    }
}

#[test]
fn what_no_longer_fits_is_chosen_anew() {
    let mut local = service("a", Type::LoadBalancer);
    local.service.external_traffic_policy = Policy::Local;
    let before = fresh(std::slice::from_ref(&local));
    assert_eq!(find(&before, "a").health_check_node_port, Some(30087));
    let moved = Ranges {
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
        node_ports: (20000, 20009),
        pools: vec![pool("new", &[("192.168.50.100", "192.168.50.101")])],
        taken: BTreeMap::new(),
    };
    let after = assign(&[local.clone()], &memory(&before), &moved);
    let a = find(&after, "a");
    assert_eq!(a.cluster_ips, [ip("10.43.1.1")]);
    assert_eq!((a.ports[0].node_port, a.health_check_node_port), (Some(20000), Some(20001)));
    assert_eq!(a.load_balancer, [ingress("192.168.50.100")]);
    // A type that has less gets less, and what stays is kept.
    let mut cluster = service("a", Type::ClusterIp);
    cluster.service.ports = vec![port(80)];
    let after = assign(&[cluster], &memory(&before), &ranges());
    let a = find(&after, "a");
    assert_eq!(a.cluster_ips, find(&before, "a").cluster_ips);
    assert_eq!((a.ports[0].node_port, a.health_check_node_port, a.load_balancer.len()), (None, None, 0));
}

#[test]
fn ports_keep_their_numbers_by_number_and_by_name() {
    let mut web = service("web", Type::NodePort);
    web.service.ports = vec![port(80), port(443)];
    let before = fresh(std::slice::from_ref(&web));
    let numbers = |a: &Assigned| -> Vec<_> { find(a, "web").ports.iter().map(|p| p.node_port).collect() };
    assert_eq!(numbers(&before), [Some(30086), Some(30087)]);
    // Another order, another name, another number, one more.
    web.service.ports = vec![port(443), Port { port: 8080, ..port(80) }, port(90)];
    web.service.ports[0].name = "tls".into();
    let after = assign(&[web], &memory(&before), &ranges());
    assert_eq!(numbers(&after), [Some(30087), Some(30086), Some(30088)]);
}

#[test]
fn a_port_of_several_protocols_has_one_node_port() {
    let udp = |port: Port| Port { name: format!("{}-udp", port.name), protocol: Protocol::Udp, ..port };
    let mut dns = service("dns", Type::NodePort);
    dns.service.ports = vec![port(53), udp(port(53)), port(80)];
    let mut fixed = service("fixed", Type::NodePort);
    fixed.service.ports = vec![port(53), Port { node_port: Some(30053), ..udp(port(53)) }];
    let assigned = fresh(&[dns, fixed]);
    let numbers =
        |name| -> Vec<_> { find(&assigned, name).ports.iter().map(|p| p.node_port.unwrap()).collect() };
    assert_eq!(numbers("dns"), [30086, 30086, 30087]);
    assert_eq!(numbers("fixed"), [30053, 30053]);
}

#[test]
fn one_that_finds_nothing_free_holds_nothing() {
    // `a` fixes the only port that `b` fixes too, and has one more that is not to be had.
    let ranges = Ranges { node_ports: (30000, 30000), ..ranges() };
    let mut a = service("a", Type::NodePort);
    a.service.ports = vec![Port { node_port: Some(30000), ..port(80) }, port(81)];
    let mut b = service("b", Type::NodePort);
    b.service.ports[0].node_port = Some(30000);
    let assigned = assign(&[a, b], &BTreeMap::new(), &ranges);
    assert!(reason(&assigned, "a").contains("no node port of 30000-30000 is free"));
    assert_eq!(find(&assigned, "b").ports[0].node_port, Some(30000));
    assert_eq!(find(&assigned, "b").cluster_ips, [ip("10.96.1.1")]);
}

#[test]
fn a_name_that_stands_twice_is_taken_once() {
    let mut second = service("web", Type::NodePort);
    second.service.namespace = "shop".into();
    let assigned = fresh(&[service("web", Type::ClusterIp), service("web", Type::NodePort), second]);
    assert_eq!(assigned.services.len(), 2);
    assert_eq!(find(&assigned, "web").r#type, Type::ClusterIp);
    assert!(reason(&assigned, "web").contains("declared twice"));
}

#[test]
fn containers_become_endpoints() {
    let endpoint = Endpoint {
        node: Some("node1".into()),
        zone: Some("attic".into()),
        for_zones: vec!["attic".into()],
        ports: [("p80", 8080)].into_iter().collect(),
        ..endpoint("0.0.0.0")
    };
    let container = |name: &str| ContainerEndpoint {
        node: "node1".into(),
        container: name.into(),
        interface: "eth0".into(),
        endpoint: endpoint.clone(),
    };
    let mut web = service("web", Type::ClusterIp);
    web.service.endpoints = vec![Endpoint { address: ip("10.244.1.9"), ..endpoint.clone() }];
    web.containers = vec![container("up"), container("down"), container("up")];
    let addresses = |c: &ContainerEndpoint| match c.container.as_str() {
        "up" => vec![ip("10.244.1.5"), ip("fd00:10:244::5")],
        _ => vec![],
    };
    let assigned = homelab_model::assign(&[web], &BTreeMap::new(), &ranges(), &addresses);
    let found = &find(&assigned, "web").endpoints;
    let ips: Vec<_> = found.iter().map(|e| e.address).collect();
    assert_eq!(ips, [ip("10.244.1.9"), ip("10.244.1.5"), ip("fd00:10:244::5")]);
    assert_eq!(found[1], Endpoint { address: ip("10.244.1.5"), ..endpoint });
    // All of them stand beside it, wherever they are.
    let records: Vec<_> =
        assigned.containers.iter().map(|r| (r.service.as_str(), r.addresses.len())).collect();
    assert_eq!(records, [("default/web", 2), ("default/web", 0), ("default/web", 2)]);
    assert_eq!(assigned.containers[1].name.container, "down");
    assert_eq!(assigned.warnings, [""; 0]);
}
