//! Load-balancer addresses as MetalLB gives them: the cases of its e2etest/l2tests (assignment.go) and internal/allocator,
//! by the names in quotes. Not here: "with namespace and namespace labels", "with namespace with labels" (`namespaceSelectors`
//! is refused), "Pool Status" (there is no such object).

#![allow(clippy::unwrap_used, reason = "addresses of the tests are good")]

#[path = "services/balancers.rs"]
mod balancers;
mod services;

use balancers::{
    BOTH, again, allocation, balancer, dual, fresh, got, labels, quiet, sharing, single, told, two, v4, v6,
    with,
};
use homelab_model::service::{Policy, Port, Protocol, Type};
use homelab_model::{ContainerEndpoint, Declared, Family, Labels, Pool, ServiceAllocation};
use services::{endpoint, ingress, pool, port, service};

/// "should remove the ip from a service assign it to a free one when" "changing the service type to clusterIP" and
/// "deleting the service".
#[test]
fn metallb_an_address_that_comes_free_goes_to_one_that_waits() {
    let pools = [single("singleip-pool", &["192.168.5.1"], None)];
    let both = [balancer("singleip"), balancer("singleip1")];
    let before = fresh(&both, &pools);
    assert_eq!((got(&before, "singleip").len(), got(&before, "singleip1").len()), (1, 0));
    for rest in
        [vec![service("singleip", Type::ClusterIp), balancer("singleip1")], vec![balancer("singleip1")]]
    {
        let after = again(&rest, &before, &pools);
        assert_eq!(got(&after, "singleip1"), ["192.168.5.1"]);
        quiet(&after);
    }
}

/// "should preseve the same external ip after controller restart": with two services that wait, and five restarts.
#[test]
fn metallb_addresses_stay_after_a_restart() {
    let pools = [single("pool", &["192.168.10.100", "192.168.20.200"], None)];
    let mut all: Vec<Declared> = ["a", "b", "c", "d"].map(|n| balancer(&format!("service-{n}"))).into();
    let mut now = fresh(&all, &pools);
    for _ in 0..5 {
        assert_eq!(got(&now, "service-a"), ["192.168.10.100"]);
        assert_eq!(got(&now, "service-b"), ["192.168.20.200"]);
        assert_eq!((got(&now, "service-c").len(), got(&now, "service-d").len()), (0, 0));
        all.rotate_left(1);
        now = again(&all, &now, &pools);
    }
}

/// "removes all pools", "reallocates svc after deleting a pool".
#[test]
fn metallb_a_service_is_reallocated_when_its_pool_goes() {
    let pools = [
        single("test-ns-pool-1", &["192.168.5.0"], allocation(20, &["default"], &[])),
        single("test-ns-pool-2", &["192.168.10.0"], None),
    ];
    let before = fresh(&[balancer("svc")], &pools);
    assert_eq!(got(&before, "svc"), ["192.168.5.0"]);
    let after = again(&[balancer("svc")], &before, &pools[1..]);
    assert_eq!(got(&after, "svc"), ["192.168.10.0"]);
    assert_eq!(
        told(&after),
        "service default/svc loses the load-balancer address 192.168.5.0: no pool gives it any more"
    );
    let none = again(&[balancer("svc")], &before, &[]);
    assert_eq!(got(&none, "svc"), [""; 0]);
    assert_eq!(none.services[0].cluster_ips, before.services[0].cluster_ips);
    // Also when the pool stays and is now for others.
    let mut others = pools.clone();
    others[0].service_allocation = allocation(20, &["shop"], &[]);
    assert_eq!(got(&again(&[balancer("svc")], &before, &others), "svc"), ["192.168.10.0"]);
}

/// "Validate service allocation in address pools": three pools for one service each; the lower number first, none last.
fn priorities(first: Option<ServiceAllocation>, second: Option<ServiceAllocation>) {
    let pools = [
        single("low", &["192.168.5.0"], second),
        single("none", &["192.168.20.0"], allocation(0, &["default"], &[])),
        single("high", &["192.168.10.0"], first),
    ];
    let all = ["svc-1", "svc-2", "svc-3"].map(|n| with(n, |d| d.service.labels = labels("test=e2e")));
    let assigned = fresh(&all, &pools);
    quiet(&assigned);
    assert_eq!(got(&assigned, "svc-1"), ["192.168.10.0"]);
    assert_eq!(got(&assigned, "svc-2"), ["192.168.5.0"]);
    assert_eq!(got(&assigned, "svc-3"), ["192.168.20.0"]);
}

/// "with namespace".
#[test]
fn metallb_pools_by_namespace() {
    priorities(allocation(10, &["default"], &[]), allocation(20, &["default"], &[]));
}

/// "with service label".
#[test]
fn metallb_pools_by_service_label() {
    priorities(allocation(10, &[], &["test=e2e"]), allocation(20, &[], &["test=e2e"]));
}

/// "with namespace and service label".
#[test]
fn metallb_pools_by_namespace_and_service_label() {
    priorities(allocation(10, &[], &["test=e2e"]), allocation(20, &["default"], &[]));
}

/// internal/allocator "IP Pool compatibility": a namespace and a selector are both asked for; selectors one of them.
#[test]
fn metallb_pool_compatibility() {
    let asked = |to: Option<ServiceAllocation>, namespace: &str, label: &str| {
        let one = with("x", |d| {
            d.service.namespace = namespace.into();
            d.service.labels = labels(label);
            d.service.load_balancer = vec![ingress("1.2.5.10")];
        });
        got(&fresh(&[one], &[single("pinned", &["1.2.5.10"], to)]), "x").len() == 1
    };
    let both = || allocation(20, &["test-ns1"], &["team=metallb", "team=blue"]);
    assert!(asked(allocation(0, &["test-ns1"], &[]), "test-ns1", "team=red"));
    assert!(!asked(allocation(0, &["test-ns1"], &[]), "other", "team=red"));
    assert!(asked(allocation(0, &[], &["team=metallb"]), "other", "team=metallb"));
    assert!(!asked(allocation(0, &[], &["team=metallb"]), "other", "team=red"));
    assert!(asked(both(), "test-ns1", "team=metallb") && asked(both(), "test-ns1", "team=blue"));
    assert!(!asked(both(), "test-ns1", "team=red"));
    assert!(!asked(both(), "other", "team=metallb"));
}

/// Those for which a pool is ask it first; others never get of it, and they go on to the pools of all when it is full.
#[test]
fn metallb_pinned_pools_are_preferred_and_kept_from_others() {
    let pools = [
        single("all", &["192.168.5.1", "192.168.5.2"], None),
        single("pinned", &["192.168.10.1"], allocation(0, &[], &["team=a"])),
        Pool { auto_assign: false, ..single("asked", &["192.168.20.1"], allocation(1, &[], &["team=a"])) },
        // A number alone pins nothing: it is an order.
        single("first", &["192.168.30.1"], allocation(7, &[], &[])),
    ];
    let mine = |name: &str| with(name, |d| d.service.labels = labels("team=a"));
    let all = [balancer("a"), mine("b"), mine("c"), balancer("d"), balancer("e")];
    let assigned = fresh(&all, &pools);
    assert_eq!(got(&assigned, "a"), ["192.168.30.1"]);
    assert_eq!(got(&assigned, "b"), ["192.168.10.1"]);
    assert_eq!(got(&assigned, "c"), ["192.168.5.1"]);
    assert_eq!(got(&assigned, "d"), ["192.168.5.2"]);
    assert_eq!(got(&assigned, "e"), [""; 0]);
}

// MetalLB: PREFER DUALSTACK

/// "Should select dual-stack pool if available".
#[test]
fn metallb_prefer_dual_stack_selects_a_dual_stack_pool() {
    let assigned = fresh(&[dual("svc")], &[v4(), v6(), two()]);
    assert_eq!(got(&assigned, "svc"), ["192.168.11.100", "fc00:f853:ccd:e800::"]);
    quiet(&assigned);
}

/// "Should prefer primary ip ipv4 family among single-stack pools by default".
#[test]
fn metallb_prefer_dual_stack_prefers_ipv4_of_single_stack_pools() {
    let assigned = fresh(&[dual("svc")], &[v6(), v4()]);
    assert_eq!(got(&assigned, "svc"), ["192.168.10.100"]);
    quiet(&assigned);
}

/// "Should prefer primary ipv6 ip family among single-stack pools".
#[test]
fn metallb_prefer_dual_stack_prefers_the_first_family_of_the_service() {
    let one = with("svc", |d| d.families = vec![Family::IPv6, Family::IPv4]);
    assert_eq!(got(&fresh(&[one], &[v4(), v6()]), "svc"), ["fc00:f853:ccd:e799::"]);
}

/// "Additional ip should be assigned when the assigned 1-stack pool becomes dual-stack".
#[test]
fn metallb_a_second_address_comes_when_the_pool_becomes_dual_stack() {
    let to = || allocation(0, &["default"], &[]);
    let small = single("pool", &["192.168.10.100"], to());
    let before = fresh(&[dual("svc")], &[small]);
    assert_eq!(got(&before, "svc"), ["192.168.10.100"]);
    let large = Pool {
        service_allocation: to(),
        ..pool(
            "pool",
            &[("192.168.10.0", "192.168.10.255"), ("fc00:f853:ccd:e799::", "fc00:f853:ccd:e799::f")],
        )
    };
    let after = again(&[dual("svc")], &before, &[large]);
    assert_eq!(got(&after, "svc"), ["192.168.10.100", "fc00:f853:ccd:e799::"]);
    quiet(&after);
}

/// "Single-stack pool should assign based on svc changes between PreferDualStack and RequireDualStack".
#[test]
fn metallb_a_single_stack_pool_gives_nothing_to_require_dual_stack() {
    let before = fresh(&[dual("svc")], &[v4()]);
    assert_eq!(got(&before, "svc"), ["192.168.10.100"]);
    let mut required = dual("svc");
    required.request.require_dual_stack = true;
    let none = again(std::slice::from_ref(&required), &before, &[v4()]);
    assert_eq!(got(&none, "svc"), [""; 0]);
    assert!(
        told(&none).contains("has no IPv4 and IPv6 load-balancer address: no pool gives one"),
        "{none:?}"
    );
    assert_eq!(got(&again(&[dual("svc")], &none, &[v4()]), "svc"), ["192.168.10.100"]);
    // Two pools of one family each are none with both.
    let apart = fresh(std::slice::from_ref(&required), &[v4(), v6()]);
    assert!(told(&apart).contains("no pool has both"), "{apart:?}");
    let found = again(&[required], &before, &[v4(), two()]);
    assert_eq!(got(&found, "svc"), ["192.168.11.100", "fc00:f853:ccd:e800::"]);
}

/// "Svc assigned from single-stack pool should not jump to dual-stack pool when it's available".
#[test]
fn metallb_a_service_stays_with_its_single_stack_pool() {
    let before = fresh(&[dual("svc")], &[v4()]);
    let after = again(&[dual("svc")], &before, &[v4(), two()]);
    assert_eq!(got(&after, "svc"), ["192.168.10.100"]);
}

/// "When current dualstack pool becomes single-stack, svc should pick another dualstack pool if possible".
#[test]
fn metallb_another_dual_stack_pool_is_picked_when_the_pool_becomes_single_stack() {
    let first = single("first", &["192.168.10.100", "fc00:f853:ccd:e799::"], None);
    let before = fresh(&[dual("svc")], std::slice::from_ref(&first));
    let both = [first, two()];
    assert_eq!(got(&again(&[dual("svc")], &before, &both), "svc"), got(&before, "svc"));
    let less = single("first", &["fc00:f853:ccd:e799::"], None);
    let after = again(&[dual("svc")], &before, &[less.clone(), two()]);
    assert_eq!(got(&after, "svc"), ["192.168.11.100", "fc00:f853:ccd:e800::"]);
    // Where there is no other, what is left stays.
    assert_eq!(got(&again(&[dual("svc")], &before, &[less]), "svc"), ["fc00:f853:ccd:e799::"]);
}

// MetalLB: sharing

fn backend(name: &str, number: u16, selector: &str) -> Declared {
    let mut one = sharing(name, "key", number);
    one.service.external_traffic_policy = Policy::Local;
    one.request.selector = labels(selector);
    one
}

/// internal/allocator `sharingOK` and `checkSharing`, whole: who may have the address of `first`.
#[test]
fn metallb_sharing_table() {
    let endpoints = |mut one: Declared, addresses: &[&str]| {
        one.request.selector = Labels::new();
        one.service.endpoints = addresses.iter().map(|a| endpoint(a)).collect();
        one
    };
    let local = |name: &str, number| backend(name, number, "app=web");
    let udp = |mut one: Declared| {
        one.service.ports[0].protocol = Protocol::Udp;
        one
    };
    let container = |mut one: Declared, name: &str| {
        one.request.selector = Labels::new();
        one.containers = vec![ContainerEndpoint {
            node: "node1".into(),
            container: name.into(),
            interface: "eth0".into(),
            endpoint: endpoint("0.0.0.0"),
        }];
        one
    };
    for (first, second, shared) in [
        (sharing("a", "key", 80), sharing("b", "key", 443), None),
        (sharing("a", "key", 53), udp(sharing("b", "key", 53)), None),
        (sharing("a", "key", 80), sharing("b", "key", 80), Some("TCP port 80 belongs to service default/a")),
        (sharing("a", "key", 80), sharing("b", "other", 443), Some("same `metallb.io/allow-shared-ip`")),
        (sharing("a", "key", 80), sharing("b", "", 443), Some("same `metallb.io/allow-shared-ip`")),
        (sharing("a", "", 80), sharing("b", "", 443), Some("same `metallb.io/allow-shared-ip`")),
        (local("a", 80), local("b", 443), None),
        (local("a", 80), backend("b", 443, "app=api"), Some("same selector or endpoints")),
        (local("a", 80), sharing("b", "key", 443), Some("same selector or endpoints")),
        (sharing("a", "key", 80), local("b", 443), Some("same selector or endpoints")),
        (
            endpoints(local("a", 80), &["10.244.0.5", "10.244.1.5"]),
            endpoints(local("b", 443), &["10.244.1.5", "10.244.0.5"]),
            None,
        ),
        (
            endpoints(local("a", 80), &["10.244.0.5"]),
            endpoints(local("b", 443), &["10.244.1.5"]),
            Some("same selector or endpoints"),
        ),
        (endpoints(local("a", 80), &[]), local("b", 443), Some("same selector or endpoints")),
        (endpoints(local("a", 80), &[]), sharing("b", "key", 443), Some("same selector or endpoints")),
        (container(local("a", 80), "web"), container(local("b", 443), "web"), None),
        (
            container(local("a", 80), "web"),
            container(local("b", 443), "api"),
            Some("same selector or endpoints"),
        ),
    ] {
        let (mut a, mut b) = (first, second);
        let pools = [pool("default", &[("192.168.50.200", "192.168.50.201")])];
        // By itself a service takes an address that it may share, else one of its own.
        let free = fresh(&[a.clone(), b.clone()], &pools);
        assert_eq!(got(&free, "b") == got(&free, "a"), shared.is_none(), "{shared:?}: {free:?}");
        assert_eq!((got(&free, "a").len(), got(&free, "b").len()), (1, 1));
        a.service.load_balancer = vec![ingress("192.168.50.200")];
        b.service.load_balancer = vec![ingress("192.168.50.200")];
        let asked = fresh(&[a, b], &pools);
        assert_eq!(got(&asked, "a"), ["192.168.50.200"]);
        match shared {
            None => assert_eq!(got(&asked, "b"), ["192.168.50.200"]),
            Some(why) => {
                assert_eq!(got(&asked, "b"), [""; 0]);
                assert!(asked.warnings.iter().any(|w| w.contains(why)), "{why}: {asked:?}");
            }
        }
    }
}

/// internal/allocator "s4 changes its sharing key in place" and "s3 can't change its sharing key while keeping the same
/// IP": alone one may, beside others it moves.
#[test]
fn metallb_a_key_changes_alone_in_place_and_beside_others_moves() {
    let pools = [pool("default", &[("192.168.50.200", "192.168.50.209")])];
    let before = fresh(&[sharing("s4", "sharing", 80)], &pools);
    assert_eq!(got(&again(&[sharing("s4", "share", 80)], &before, &pools), "s4"), ["192.168.50.200"]);
    let all = [sharing("a", "share", 443), sharing("b", "share", 80), sharing("c", "share", 81)];
    let before = fresh(&all, &pools);
    assert_eq!(got(&before, "c"), ["192.168.50.200"]);
    let after = again(&[sharing("a", "other", 443), all[1].clone(), all[2].clone()], &before, &pools);
    assert_eq!(got(&after, "a"), ["192.168.50.201"]);
    assert_eq!((got(&after, "b"), got(&after, "c")), (got(&before, "b"), got(&before, "c")));
    assert!(told(&after).contains("default/a gives the load-balancer address"), "{after:?}");
}

/// internal/allocator "s3 can change its ports while keeping the same IP"; a port that another has moves the one that
/// asks for it, whatever the names.
#[test]
fn metallb_ports_change_in_place_and_a_taken_one_moves_who_asks() {
    let pools = [pool("default", &[("192.168.50.200", "192.168.50.209")])];
    let before = fresh(&[sharing("a", "key", 443), sharing("b", "key", 80)], &pools);
    let after = again(&[sharing("a", "key", 53), sharing("b", "key", 80)], &before, &pools);
    assert_eq!((got(&after, "a"), got(&after, "b")), (got(&before, "a"), got(&before, "b")));
    let mut more = sharing("a", "key", 443);
    more.service.ports.push(Port { name: "more".into(), ..port(80) });
    let after = again(&[more, sharing("b", "key", 80)], &before, &pools);
    assert_eq!(got(&after, "b"), ["192.168.50.200"]);
    assert_eq!(got(&after, "a"), ["192.168.50.201"]);
}

/// "should work for mixed-protocol services" and the shared address of l2.go: TCP and UDP of one port, one address, both
/// families.
#[test]
fn metallb_a_shared_address_of_two_protocols() {
    let pools = [single("other", &["192.168.5.1"], None), two()];
    let mut tcp = sharing("tcp", "dns", 53);
    let mut udp = sharing("udp", "dns", 53);
    udp.service.ports[0].protocol = Protocol::Udp;
    tcp.families = BOTH.to_vec();
    udp.families = BOTH.to_vec();
    let assigned = fresh(&[tcp, udp], &pools);
    assert_eq!(got(&assigned, "tcp"), ["192.168.11.100", "fc00:f853:ccd:e800::"]);
    assert_eq!(got(&assigned, "udp"), got(&assigned, "tcp"));
    quiet(&assigned);
}
