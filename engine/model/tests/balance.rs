//! Load-balancer addresses: what is not in MetalLB's tests, or differs from it.

#![allow(clippy::unwrap_used, reason = "addresses of the tests are good")]

#[path = "services/balancers.rs"]
mod balancers;
mod services;

use balancers::{
    BOTH, again, allocation, balancer, dual, fixing, fresh, got, manual, quiet, sharing, single, told, two,
    with,
};
use homelab_model::service::{Service, Type};
use homelab_model::{Declared, Pool};
use services::{ingress, ip, pool, port};

#[test]
fn pools_give_in_order_and_a_service_without_an_address_is_served() {
    let mut buggy = pool("b", &[("192.168.60.254", "192.168.61.1"), ("fd00:50::1", "fd00:50::1")]);
    buggy.avoid_buggy_ips = true;
    let pools = [manual("c", &["192.168.70.5"]), single("a", &["192.168.50.200"], None), buggy];
    let all = [balancer("a"), balancer("b"), balancer("c"), balancer("d"), fixing("e", &["192.168.70.5"])];
    let assigned = fresh(&all, &pools);
    assert_eq!(got(&assigned, "a"), ["192.168.50.200"]);
    assert_eq!(got(&assigned, "b"), ["192.168.60.254"]);
    assert_eq!(got(&assigned, "c"), ["192.168.61.1"]);
    assert_eq!(got(&assigned, "d"), [""; 0]);
    assert_eq!(got(&assigned, "e"), ["192.168.70.5"]);
    let d = assigned.services.iter().find(|s| s.name == "d").unwrap();
    assert_eq!(
        (d.cluster_ips.len(), d.ports[0].node_port.is_some(), d.r#type),
        (1, true, Type::LoadBalancer)
    );
    assert_eq!(
        told(&assigned),
        "service default/d has no IPv4 load-balancer address: every one of the pools is taken; add addresses to a pool \
         in `loadBalancer.pools`"
    );
    let assigned = fresh(&[balancer("a")], &[]);
    assert_eq!(assigned.services.len(), 1);
    assert!(told(&assigned).contains("no pool gives one"), "{assigned:?}");
}

#[test]
fn what_is_asked_for_and_cannot_be_had_is_told_and_the_service_is_served() {
    let pools = [
        pool("default", &[("192.168.50.200", "192.168.50.220"), ("fd00:50::1", "fd00:50::9")]),
        Pool {
            avoid_buggy_ips: true,
            ..pool("buggy", &[("192.168.60.0", "192.168.60.255"), ("fd00:60::1", "fd00:60::9")])
        },
        single("shop", &["192.168.70.1"], allocation(0, &["shop"], &[])),
    ];
    let asking = |pool: &'static str| move |d: &mut Declared| d.request.pool = Some(pool.into());
    let both = |addresses: &[&str]| {
        let mut one = fixing("x", addresses);
        one.families = BOTH.to_vec();
        one
    };
    for (one, why) in [
        (fixing("x", &["192.168.50.1"]), "192.168.50.1 is in no pool"),
        (fixing("x", &["192.168.60.0"]), "192.168.60.0 is in no pool"),
        (fixing("x", &["192.168.60.255"]), "192.168.60.255 is in no pool"),
        (fixing("x", &["fd00:50::1"]), "fd00:50::1 is of a family that it does not have"),
        (fixing("x", &["192.168.70.1"]), "pool shop is for other services"),
        (fixing("x", &["192.168.50.200", "192.168.50.201"]), "more than one of a family"),
        (both(&["192.168.50.200", "fd00:60::1"]), "are of two pools"),
        (with("x", asking("none")), "there is no pool none"),
        (with("x", asking("shop")), "pool shop is for other services"),
    ] {
        let assigned = fresh(&[one], &pools);
        assert_eq!(assigned.services.len(), 1, "{why}: {assigned:?}");
        assert_eq!(got(&assigned, "x"), [""; 0], "{why}");
        assert!(told(&assigned).contains(why), "{why}: {}", told(&assigned));
    }
    let mut other = fixing("x", &["192.168.60.5"]);
    other.request.pool = Some("default".into());
    assert!(told(&fresh(&[other], &pools)).contains("it asks for pool default"));
    let assigned = fresh(&[both(&["fd00:60::1", "192.168.60.1"])], &pools);
    assert_eq!(got(&assigned, "x"), ["192.168.60.1", "fd00:60::1"]);
    quiet(&assigned);
}

/// MetalLB refuses it with PreferDualStack too; but `loadBalancerIP` cannot name two.
#[test]
fn one_fixed_address_of_two_families_is_completed_from_its_pool() {
    let pools = [single("one", &["192.168.60.1"], None), two()];
    let with_families = |address: &str| {
        let mut one = fixing("x", &[address]);
        one.families = BOTH.to_vec();
        one
    };
    let mut one = with_families("192.168.11.100");
    let assigned = fresh(&[one.clone(), dual("y")], &pools);
    assert_eq!(got(&assigned, "x"), ["192.168.11.100", "fc00:f853:ccd:e800::"]);
    // It keeps the second one too, whatever others want.
    let others = ["a", "b", "z"].map(dual);
    let all = [others.as_slice(), &[one.clone()]].concat();
    assert_eq!(got(&again(&all, &assigned, &pools), "x"), got(&assigned, "x"));
    let alone = fresh(&[with_families("192.168.60.1")], &pools);
    assert_eq!(got(&alone, "x"), ["192.168.60.1"]);
    quiet(&alone);
    one.request.require_dual_stack = true;
    let refused = fresh(&[one], &pools);
    assert_eq!(got(&refused, "x"), [""; 0]);
    assert!(told(&refused).contains("wants an IPv6 address beside 192.168.11.100"), "{refused:?}");
}

#[test]
fn an_asked_pool_gives_without_auto_assign_and_moves_those_that_ask_later() {
    let pools = [single("auto", &["192.168.50.200"], None), manual("manual", &["192.168.60.1"])];
    let asking = with("a", |d| d.request.pool = Some("manual".into()));
    let before = fresh(&[balancer("a")], &pools);
    assert_eq!(got(&before, "a"), ["192.168.50.200"]);
    let after = again(std::slice::from_ref(&asking), &before, &pools);
    assert_eq!(got(&after, "a"), ["192.168.60.1"]);
    quiet(&fresh(&[asking], &pools));
    // Once given it stays, also where it would not be given by itself.
    assert_eq!(got(&again(&[balancer("a")], &after, &pools), "a"), ["192.168.60.1"]);
}

#[test]
fn requested_beats_remembered() {
    let pools = [pool("default", &[("192.168.50.200", "192.168.50.201")])];
    let before = fresh(&[balancer("a"), balancer("b")], &pools);
    let after = again(&[balancer("a"), balancer("b"), fixing("z", &["192.168.50.200"])], &before, &pools);
    assert_eq!(got(&after, "z"), ["192.168.50.200"]);
    assert_eq!(got(&after, "b"), ["192.168.50.201"]);
    assert_eq!(got(&after, "a"), [""; 0]);
    assert_eq!(
        after.warnings,
        [
            "service default/a gives the load-balancer address 192.168.50.200 to default/z and gets another",
            "service default/a has no IPv4 load-balancer address: every one of the pools is taken; add addresses to a \
             pool in `loadBalancer.pools`",
        ]
    );
    // Of two that fix the same, the one that has it keeps it.
    let after = again(&[fixing("a", &["192.168.50.201"]), fixing("b", &["192.168.50.201"])], &before, &pools);
    assert_eq!((got(&after, "a"), got(&after, "b")), (vec![], vec!["192.168.50.201".to_owned()]));
    assert!(told(&after).contains("192.168.50.201 belongs to service default/b"), "{after:?}");
}

#[test]
fn an_external_address_is_not_given_and_its_ports_are_not_shared() {
    let pools = [pool("default", &[("192.168.50.200", "192.168.50.202")])];
    let external = with("ext", |d| {
        d.service.external_ips = vec![ip("192.168.50.200")];
        d.service.r#type = Type::ClusterIp;
    });
    let mut other = fixing("other", &["192.168.50.200"]);
    other.service.ports = vec![port(443)];
    let all = [external.clone(), balancer("a"), fixing("same", &["192.168.50.200"]), other];
    let assigned = fresh(&all, &pools);
    assert_eq!(got(&assigned, "a"), ["192.168.50.201"]);
    assert_eq!(got(&assigned, "other"), ["192.168.50.200"]);
    assert_eq!(got(&assigned, "same"), [""; 0]);
    assert!(told(&assigned).contains("its TCP port 80 belongs to service default/ext"), "{assigned:?}");
    let before = fresh(&[balancer("a")], &pools);
    let after = again(&[balancer("a"), external], &before, &pools);
    assert_eq!(got(&after, "a"), ["192.168.50.201"]);
    assert!(told(&after).contains("gives the load-balancer address 192.168.50.200 to default/ext"));
}

/// What the status of an exported Service has counts where the nodes remember nothing.
#[test]
fn a_status_is_memory_and_no_demand() {
    let pools = [pool("default", &[("192.168.50.200", "192.168.50.220")])];
    let given = |addresses: &'static [&'static str]| {
        move |d: &mut Declared| d.request.given = addresses.iter().map(|a| ingress(a)).collect()
    };
    let all = [
        with("a", given(&["192.168.50.207"])),
        with("klipper", given(&["192.168.50.11", "192.168.50.12"])),
        fixing("z", &["192.168.50.208"]),
        with("b", given(&["192.168.50.208"])),
    ];
    let assigned = fresh(&all, &pools);
    assert_eq!(got(&assigned, "a"), ["192.168.50.207"]);
    assert_eq!(got(&assigned, "klipper"), ["192.168.50.201"]);
    assert_eq!(got(&assigned, "b"), ["192.168.50.200"]);
    assert_eq!(
        assigned.warnings,
        [
            "service default/b gives the load-balancer address 192.168.50.208 to default/z and gets another",
            "service default/klipper loses the load-balancer address 192.168.50.11: no pool gives it any more",
        ]
    );
    let later = with("a", given(&["192.168.50.209"]));
    assert_eq!(got(&again(&[later], &assigned, &pools), "a"), ["192.168.50.207"]);
}

#[test]
fn a_service_that_becomes_single_stack_keeps_the_address_of_its_family() {
    let pools = [pool("p", &[("192.168.11.100", "192.168.11.109"), ("fc00::", "fc00::f")])];
    let before = fresh(&[dual("a"), dual("svc")], &pools);
    assert_eq!(got(&again(&[balancer("svc")], &before, &pools), "svc"), ["192.168.11.101"]);
}

/// As users mean it: who gives two services one key gets one address, wherever free ones are.
#[test]
fn one_that_may_share_shares() {
    let pools = [pool("default", &[("192.168.50.200", "192.168.50.209")])];
    let before = fresh(&[balancer("a"), sharing("b", "key", 80)], &pools);
    assert_eq!(got(&before, "b"), ["192.168.50.201"]);
    let after = again(&[sharing("b", "key", 80), sharing("c", "key", 81)], &before, &pools);
    assert_eq!(got(&after, "c"), ["192.168.50.201"]);
}

#[test]
fn a_large_pool_of_many_services_is_given_in_order() {
    let pools =
        [pool("six", &[("fd00:50::", "fd00:50::ffff")]), pool("four", &[("10.0.0.0", "10.0.255.255")])];
    let all: Vec<Declared> = (0..5000).map(|n| with(&format!("s{n:04}"), |d| d.node_ports = false)).collect();
    let assigned = fresh(&all, &pools);
    assert_eq!(assigned.warnings, [""; 0]);
    let last: &Service = assigned.services.last().unwrap();
    assert_eq!(last.load_balancer, [ingress("10.0.19.135")]);
}
