//! `assignment.go`, "IP Assignment", and what `l2.go` and `loadbalancer_class.go` say of it. Namespaces are named where MetalLB's
//! tests select them by labels: "with namespace and namespace labels" and "with namespace with labels" are refused here.

use homelab_tests::Cluster;
use serde_json::{Value, json};

use crate::alloc::{Case, Ground, Step, given, run};
use crate::case::cases;
use crate::stage::{NODES, Problems, Stage};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        changing_the_service_type_to_cluster_ip,
        deleting_the_service,
        should_reconsider_services_when_sharing_the_ip_and_conditions_change,
        removes_all_pools,
        reallocates_svc_after_deleting_a_pool,
        with_namespace,
        with_service_label,
        with_namespace_and_service_label,
        loadbalancer_class_should_not_get_an_ip,
        address_pool_defined_by_address_range,
        address_pool_defined_by_network_prefix,
        validate_requesting_a_specific_address_pool,
    ];
    run(cluster, stage, CASES)
}

fn single(at: &Ground) -> [Value; 1] {
    [at.pool("singleip", &[at.v4(0)], None)]
}

fn plain(at: &Ground, name: &str) -> Value {
    at.service(name, &json!({}))
}

/// Two services for one address: the first has it, and the second when the first is altered.
fn waits(at: &Ground, after: &[Value]) -> Vec<Step> {
    vec![
        Step::new(&single(at), &[plain(at, "a"), plain(at, "b")]).gets("a", &[at.v4(0)]).gets("b", &[]),
        Step::new(&single(at), after).gets("b", &[at.v4(0)]),
    ]
}

/// "should remove the ip from a service assign it to a free one when", "changing the service type to clusterIP".
pub(crate) fn changing_the_service_type_to_cluster_ip(at: &Ground) -> Vec<Step> {
    let cluster_ip = at.service("a", &json!({ "type": "ClusterIP" }));
    waits(at, &[cluster_ip, plain(at, "b")])
}

/// "should remove the ip from a service assign it to a free one when", "deleting the service".
pub(crate) fn deleting_the_service(at: &Ground) -> Vec<Step> {
    waits(at, &[plain(at, "b")])
}

/// "should reconsider services when sharing the ip and conditions change". Services of a file have endpoints where
/// Kubernetes' have a selector.
pub(crate) fn should_reconsider_services_when_sharing_the_ip_and_conditions_change(at: &Ground) -> Vec<Step> {
    let one = |name: &str, port: u16, policy: &str, nodes: &[&str]| {
        let fields = json!({
            "annotations": { "metallb.io/allow-shared-ip": "share" }, "externalTrafficPolicy": policy,
            "ports": [{ "port": port }], "endpoints": Stage::endpoints(nodes),
        });
        at.service(name, &fields)
    };
    let step = |a: (&str, &[&str]), b: (&str, &[&str])| {
        Step::new(&single(at), &[one("a", 80, a.0, a.1), one("b", 81, b.0, b.1)])
    };
    let (address, less) = ([at.v4(0)], &["node1"][..]);
    let (policy, local) = (("Cluster", &NODES[..]), ("Local", &NODES[..]));
    vec![
        step(policy, policy).gets("a", &address).gets("b", &address),
        step(policy, local).gets("a", &address).gets("b", &[]),
        step(local, local).gets("a", &address).gets("b", &address),
        step(("Local", less), local).gets("a", &address).gets("b", &[]),
        step(("Local", less), ("Local", less)).gets("a", &address).gets("b", &address),
    ]
}

/// "removes all pools".
pub(crate) fn removes_all_pools(at: &Ground) -> Vec<Step> {
    vec![
        Step::new(&single(at), &[plain(at, "svc")]).gets("svc", &[at.v4(0)]),
        Step::new(&[], &[plain(at, "svc")]).gets("svc", &[]),
    ]
}

/// "reallocates svc after deleting a pool".
pub(crate) fn reallocates_svc_after_deleting_a_pool(at: &Ground) -> Vec<Step> {
    let (first, second) = (at.ranked("pool-1", at.v4(0), 20), at.pool("pool-2", &[at.v4(1)], None));
    vec![
        Step::new(&[second.clone(), first], &[plain(at, "svc")]).gets("svc", &[at.v4(0)]),
        Step::new(&[second], &[plain(at, "svc")]).gets("svc", &[at.v4(1)]),
    ]
}

/// Three pools for one service each; the lower number first, none last.
fn ranked(at: &Ground, low: Value, high: Value) -> Vec<Step> {
    let service = |name| at.service(name, &json!({ "labels": { "test": at.namespace() } }));
    let pools = [
        at.pool("low", &[at.v4(0)], Some(low)),
        at.pool("none", &[at.v4(2)], None),
        at.pool("high", &[at.v4(1)], Some(high)),
    ];
    let step = Step::new(&pools, &[service("svc-1"), service("svc-2"), service("svc-3")]);
    vec![step.gets("svc-1", &[at.v4(1)]).gets("svc-2", &[at.v4(0)]).gets("svc-3", &[at.v4(2)])]
}

fn by_namespace(at: &Ground, priority: u8) -> Value {
    json!({ "priority": priority, "namespaces": [at.namespace()] })
}

fn by_label(at: &Ground, priority: u8) -> Value {
    json!({ "priority": priority, "serviceSelectors": [{ "matchLabels": { "test": at.namespace() } }] })
}

/// "with namespace".
pub(crate) fn with_namespace(at: &Ground) -> Vec<Step> {
    ranked(at, by_namespace(at, 20), by_namespace(at, 10))
}

/// "with service label".
pub(crate) fn with_service_label(at: &Ground) -> Vec<Step> {
    ranked(at, by_label(at, 20), by_label(at, 10))
}

/// "with namespace and service label".
pub(crate) fn with_namespace_and_service_label(at: &Ground) -> Vec<Step> {
    ranked(at, by_namespace(at, 20), by_label(at, 10))
}

/// "LoadBalancer class": "should not get an ip".
pub(crate) fn loadbalancer_class_should_not_get_an_ip(at: &Ground) -> Vec<Step> {
    let foreign = at.service("svc", &json!({ "loadBalancerClass": "test.com/foo" }));
    vec![Step::new(&single(at), &[foreign]).gets("svc", &[])]
}

/// "AddressPool defined by address range".
pub(crate) fn address_pool_defined_by_address_range(at: &Ground) -> Vec<Step> {
    let mut pool = at.pool("range", &[], None);
    pool["addresses"] = json!([format!("{}-{}", at.v4(1), at.v4(2))]);
    let all = ["a", "b", "c"].map(|name| plain(at, name));
    vec![Step::new(&[pool], &all).gets("a", &[at.v4(1)]).gets("b", &[at.v4(2)]).gets("c", &[])]
}

/// "AddressPool defined by network prefix": a case's addresses are a /30.
pub(crate) fn address_pool_defined_by_network_prefix(at: &Ground) -> Vec<Step> {
    let mut pool = at.pool("prefix", &[], None);
    pool["addresses"] = json!([format!("{}/30", at.v4(0))]);
    let all = ["a", "b"].map(|name| plain(at, name));
    vec![Step::new(&[pool], &all).gets("a", &[at.v4(0)]).gets("b", &[at.v4(1)])]
}

/// "validate requesting a specific address pool for Loadbalancer service": IPv4 and IPv6, with and without autoAssign.
pub(crate) fn validate_requesting_a_specific_address_pool(at: &Ground) -> Vec<Step> {
    let step = |auto: bool| {
        let asked = [("test4", at.v4(1), "IPv4"), ("test6", at.v6(1), "IPv6")];
        let pools = asked.map(|(name, address, _)| {
            let mut pool = at.pool(name, &[address], None);
            pool["autoAssign"] = json!(auto);
            pool
        });
        let services = asked.map(|(name, _, family)| {
            let pool = format!("{}-{name}", at.namespace());
            at.service(
                name,
                &json!({ "ipFamilies": [family], "annotations": { "metallb.io/address-pool": pool } }),
            )
        });
        let first = at.pool("first", &[at.v4(0), at.v6(0)], None);
        let pools = [&[first][..], &pools].concat();
        Step::new(&pools, &services).gets("test4", &[at.v4(1)]).gets("test6", &[at.v6(1)])
    };
    vec![step(true), step(false)]
}

/// "with only priority".
pub(crate) fn with_only_priority(cluster: &mut Cluster, stage: &mut Stage) {
    fn only_priority(at: &Ground) -> Vec<Step> {
        let pool = |name, n, priority: u8| at.pool(name, &[at.v4(n)], Some(json!({ "priority": priority })));
        let pools = [pool("low", 0, 20), pool("high", 1, 10)];
        let step = Step::new(&pools, &[plain(at, "svc-1"), plain(at, "svc-2")]);
        vec![step.gets("svc-1", &[at.v4(1)]).gets("svc-2", &[at.v4(0)])]
    }
    let problems = run(cluster, stage, cases![only_priority]);
    assert!(problems.values().all(Vec::is_empty), "{problems:#?}");
}

/// "should preseve the same external ip after controller restart": five times, with services that wait. What decides here is
/// the laptop, so there is nothing to be started again but the agents; the services come in another order each time.
pub(crate) fn should_preserve_the_same_external_ip_after_controller_restart(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    fn four(at: &Ground) -> Vec<Step> {
        let pool = at.pool("reset", &[at.v4(0), at.v4(1)], None);
        let all = ["a", "b", "c", "d"].map(|name| plain(at, name));
        let step = Step::new(&[pool], &all);
        vec![step.gets("a", &[at.v4(0)]).gets("b", &[at.v4(1)]).gets("c", &[]).gets("d", &[])]
    }
    let problems = run(cluster, stage, cases![four]);
    assert!(problems.values().all(Vec::is_empty), "{problems:#?}");
    let owners = cluster.lb_settled(&NODES);
    let at = Ground::new(0);
    for _ in 0..5 {
        cluster.everywhere("systemctl restart homelab-node");
        let services = cluster.file.0["services"].as_array_mut().expect("services");
        services.rotate_left(1);
        cluster.apply();
        let given = ["a", "b", "c", "d"].map(|name| given(cluster, &at.namespace(), name));
        assert_eq!(given, [vec![at.v4(0)], vec![at.v4(1)], vec![], vec![]]);
        cluster.lb_until(&NODES, "nothing moves", |now| *now == owners);
    }
}
