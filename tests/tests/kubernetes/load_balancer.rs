//! Addresses on the LAN: given, shown in the status, announced, and taken back before the Service is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use homelab_tests::{Cluster, Place, SERVICES, To, until};
use serde_json::{Value, json};

use crate::policies::{affinity, assert_affinity, cycles};
use crate::stage::{Is, NODES, Stage, load_balancer, ports, with};

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// "[sig-network] LoadBalancers should handle load balancer cleanup finalizer for service": it has the finalizer as long as
/// it has an address, and goes when nobody answers for that any more.
pub(crate) fn should_handle_cleanup_finalizer(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.service("balanced", &load_balancer(numbers));
    stage.endpoints("balanced", &[Is::Ready("c1"), Is::Ready("c3")]);
    let (address, owner) = stage.announced(cluster, "balanced");
    let path = format!("{SERVICES}/balanced");
    let service = stage.kube.get(&path).expect("the Service");
    assert_eq!(service["metadata"]["finalizers"], json!([FINALIZER]), "{service}");
    assert_eq!(service["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP", "{service}");
    let client = Place::host("client");
    stage.assert_answers(cluster, &client, &To::new(address, 80, &["c1", "c3"]));
    let mut resolver = cluster.resolver("client", "eth0");
    let mac = cluster.sh(&owner, "cat /sys/class/net/eth0/address");
    assert_eq!(resolver.ask(&[address])[&address], BTreeSet::from([mac]));
    stage.kube.delete(&path);
    until("the Service is gone", || stage.kube.get(&path).is_none());
    let claims = resolver.ask(&[address]);
    assert!(claims.get(&address).is_none_or(BTreeSet::is_empty), "withdrawn before: {claims:?}");
    stage.delete("balanced");
    stage.withdrawn(cluster, address);
}

/// Two that come at once have two addresses of the pool; `spec.loadBalancerIP` is honoured; what is freed is given again.
pub(crate) fn addresses_are_of_the_pool_and_each_given_once(cluster: &mut Cluster, stage: &mut Stage) {
    let wanted: IpAddr = "192.168.50.217".parse().expect("an address");
    for name in ["one", "two", "three"] {
        let mut spec = load_balancer(stage.numbers());
        if name == "three" {
            spec["loadBalancerIP"] = json!(wanted);
        }
        stage.service(name, &spec);
        stage.endpoints(name, &[Is::Ready("c2")]);
    }
    let all = ["one", "two", "three"].map(|name| stage.allocated(name));
    let pool = 200..=220;
    let last = |address: IpAddr| address.to_string().strip_prefix("192.168.50.").and_then(|n| n.parse().ok());
    assert!(all.iter().all(|a| last(*a).is_some_and(|n: u8| pool.contains(&n))), "{all:?}");
    assert_eq!(BTreeSet::from(all).len(), 3, "{all:?}");
    assert_eq!(all[2], wanted);
    stage.delete("three");
    stage.withdrawn(cluster, wanted);
    let spec = with(load_balancer(stage.numbers()), json!({ "loadBalancerIP": wanted }));
    stage.service("four", &spec);
    stage.endpoints("four", &[Is::Ready("c3")]);
    let (address, _) = stage.announced(cluster, "four");
    assert_eq!(address, wanted);
    stage.assert_answers(cluster, &Place::host("client"), &To::new(wanted, 80, &["c3"]));
    let events = stage.kube.get("/api/v1/namespaces/default/events").expect("a list");
    let about = |event: &&Value| event["involvedObject"]["name"] == "four";
    let reasons: Vec<&Value> = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(about)
        .map(|event| &event["reason"])
        .collect();
    assert!(!reasons.is_empty(), "{events}");
    for name in ["one", "two", "four"] {
        stage.delete(name);
    }
}

/// "[sig-network] LoadBalancers should only allow access from service loadbalancer source ranges"
pub(crate) fn should_only_allow_access_from_source_ranges(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    let of = |ranges: Value| with(load_balancer(numbers), json!({ "loadBalancerSourceRanges": ranges }));
    stage.service("ranged", &of(json!(["192.168.50.0/30"])));
    stage.endpoints("ranged", &[Is::Ready("c2")]);
    let (address, _) = stage.announced(cluster, "ranged");
    let (client, to) = (Place::host("client"), To::new(address, 80, &["c2"]));
    cluster.assert_fails(&client, &to, "timed out");
    stage.service("ranged", &of(json!(["192.168.50.100/32"])));
    stage.carried_out(cluster);
    stage.assert_answers(cluster, &client, &to);
    stage.delete("ranged");
}

/// Manifests for MetalLB keep working: a pool of its kind is one of ours beside those of homelab.yaml.
pub(crate) fn pools_of_metallb_are_read(cluster: &mut Cluster, stage: &mut Stage) {
    let metallb = "/apis/metallb.io/v1beta1/namespaces/default";
    stage.kube.metallb();
    let pool = json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": { "name": "theirs" },
        "spec": { "addresses": ["192.168.50.230-192.168.50.231"], "autoAssign": false },
    });
    stage.kube.put(&format!("{metallb}/ipaddresspools"), &pool);
    let l2 = json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement", "metadata": { "name": "theirs" },
        "spec": { "ipAddressPools": ["theirs"] },
    });
    stage.kube.put(&format!("{metallb}/l2advertisements"), &l2);
    let numbers = stage.numbers();
    let metadata = json!({ "name": "of-metallb", "annotations": { "metallb.io/address-pool": "theirs" } });
    stage.kube.put(SERVICES, &json!({ "metadata": metadata, "spec": load_balancer(numbers) }));
    stage.endpoints("of-metallb", &[Is::Ready("c2")]);
    let (address, _) = stage.announced(cluster, "of-metallb");
    assert!(["192.168.50.230", "192.168.50.231"].contains(&&*address.to_string()), "{address}");
    stage.assert_answers(cluster, &Place::host("client"), &To::new(address, 80, &["c2"]));
    stage.delete("of-metallb");
}

/// "[sig-network] LoadBalancers should have session affinity work for LoadBalancer service with Cluster traffic policy", "[...]
/// with Local traffic policy", "[...] should be able to switch session affinity for LoadBalancer service with [...]" (2)
pub(crate) fn should_be_able_to_switch_session_affinity(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    let all: [(&str, &[&str]); 2] = [("Cluster", &["c1", "c2", "c3"]), ("Local", &["c1", "c1b"])];
    for (policy, names) in all {
        let of = |word: &str| {
            let policy = json!({ "externalTrafficPolicy": policy });
            with(with(load_balancer(numbers), policy), affinity(word))
        };
        stage.service("sticky-lb", &of("ClientIP"));
        stage.endpoints("sticky-lb", &names.iter().copied().map(Is::Ready).collect::<Vec<_>>());
        let (address, _) = stage.announced(cluster, "sticky-lb");
        if policy == "Local" {
            cluster.lb_until(&NODES, "their node", |owners| {
                owners.get(&address).is_some_and(|owner| owner == "node1")
            });
            stage.carried_out(cluster);
        }
        let to = To::new(address, 80, names).by(&["tcp"]);
        for word in ["ClientIP", "None", "ClientIP"] {
            stage.service("sticky-lb", &of(word));
            stage.carried_out(cluster);
            assert_affinity(cluster, stage, &Place::host("client"), &to, word == "ClientIP");
        }
    }
    stage.delete("sticky-lb");
}

/// "[sig-network] LoadBalancers should be able to create LoadBalancer Service without NodePort and change it"
pub(crate) fn should_be_able_to_create_without_node_port_and_change_it(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    let numbers = stage.numbers();
    let without = json!({ "allocateLoadBalancerNodePorts": false, "ports": ports(None) });
    stage.service("no-port", &with(load_balancer(numbers), without));
    stage.endpoints("no-port", &[Is::Ready("c2")]);
    let (address, _) = stage.announced(cluster, "no-port");
    let (client, names) = (Place::host("client"), ["c2"]);
    let at_node = To::new(cluster.on_lan("node1")[0], numbers.node_port, &names);
    stage.assert_answers(cluster, &client, &To::new(address, 80, &names));
    cluster.assert_fails(&client, &at_node.by(&["tcp"]), "refused");
    stage.service("no-port", &load_balancer(numbers));
    stage.carried_out(cluster);
    assert_eq!(stage.ingress("no-port"), Some(address));
    for to in [To::new(address, 80, &names), at_node] {
        stage.assert_answers(cluster, &client, &to);
    }
    stage.delete("no-port");
}

/// "[sig-network] LoadBalancers should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on
/// different nodes", "[...] on the same nodes": the address is at one of the nodes that the server comes to.
pub(crate) fn should_preserve_udp_for_a_load_balancer_service(cluster: &mut Cluster, stage: &mut Stage) {
    let spec = load_balancer(stage.numbers());
    stage.service("udp-lb", &spec);
    stage.endpoints("udp-lb", &[]);
    let (address, _) = stage.announced(cluster, "udp-lb");
    cycles(cluster, stage, "udp-lb", &Place::host("client"), (address, 80));
}
