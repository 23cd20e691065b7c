//! Changes of services by a node that knows what its sets hold.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../proxy/tests/random/mod.rs"]
mod random;

use std::net::Ipv4Addr;

use common::proxy::{node, view, with_ruleset};
use common::{in_new_netns, run};
use homelab_linux::{Connections, Kinds, Synced};
use homelab_model::service::{Protocol, Service};
use homelab_model::{Scope, Spec};
use homelab_proxy::delta::differing;
use homelab_proxy::element::{Element, Frontend};
use homelab_proxy::stale::{Connection, Remembered};
use homelab_proxy::{Elements, compile, ruleset, service_objects};
use proptest::prelude::*;
use random::services;

const SERVICES: Kinds = Kinds { services: true, ..Kinds::NONE };

/// What a node that has seen nothing yet finds in the kernel.
fn found(directory: &tempfile::TempDir) -> Vec<Spec> {
    let objects = node(directory).observe_objects(&Scope::of(&[], "vx0"), SERVICES).unwrap();
    objects.into_iter().map(|object| object.spec).collect()
}

fn objects(elements: &Elements) -> Vec<Spec> {
    service_objects(elements)
        .filter(|spec| matches!(spec, Spec::Service(service) if !service.elements.is_empty()))
        .collect()
}

/// What a node is told of a change from one state to the next.
fn changed(before: &Elements, after: &Elements) -> Elements {
    let (old, new) = differing(before, after);
    old.into_keys().map(|name| (name, Vec::new())).chain(new).collect()
}

fn compiled(services: &[Service]) -> Elements {
    compile(services, &view()).0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// A node that is told of changed services alone holds what one does that is told everything, also where others
    /// make transactions of their own.
    #[test]
    fn changed_services_alone_are_enough(states in prop::collection::vec(services(), 2..6)) {
        in_new_netns(|| {
            let directory = tempfile::tempdir().unwrap();
            let mut node = with_ruleset(&directory);
            let mut now = Elements::new();
            for (round, services) in states.iter().enumerate() {
                let next = compiled(services);
                node.sync_changed_services(&changed(&now, &next)).unwrap();
                now = next;
                prop_assert_eq!(found(&directory), objects(&now));
                run(&format!("nft add table ip foreign{round}"));
            }
            // Nothing is left for the one that looks at all.
            prop_assert_eq!(node.sync_services(&now, Connections::OfChange).unwrap(), Synced::default());
            let gone = changed(&now, &Elements::new());
            node.sync_changed_services(&gone).unwrap();
            prop_assert_eq!(found(&directory), vec![]);
            Ok(())
        })?;
    }
}

fn two() -> (Elements, Elements) {
    let service = |name: &str, vip: &str, endpoint: &str| -> Service {
        serde_json::from_value(serde_json::json!({
            "namespace": "default", "name": name, "clusterIPs": [vip], "ports": [{ "port": 80 }],
            "endpoints": [{ "address": endpoint, "ports": { "": 8080 } }],
        }))
        .unwrap()
    };
    let other = service("other", "10.96.0.6", "10.244.1.6");
    let before = compiled(&[service("web", "10.96.0.5", "10.244.1.5"), other.clone()]);
    (before, compiled(&[service("web", "10.96.0.5", "10.244.2.5"), other]))
}

#[test]
fn a_change_that_meets_another_looks_again() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        let (before, after) = two();
        node.sync_changed_services(&before).unwrap();
        // Another process is faster: what this one would delete is gone.
        let mut faster = common::proxy::node(&directory);
        faster.sync_services(&Elements::new(), Connections::OfChange).unwrap();
        let synced = node.sync_changed_services(&changed(&before, &after)).unwrap();
        assert_eq!((synced.deleted, synced.added), (0, after["default/web"].len()));
        let web = Elements::from([("default/web".to_owned(), after["default/web"].clone())]);
        assert_eq!(found(&directory), objects(&web));
    });
}

#[test]
fn what_nobody_told_is_found_by_the_one_that_looks_at_all() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        let (before, after) = two();
        node.sync_services(&before, Connections::OfChange).unwrap();
        run("nft delete element inet homelab-proxy cluster-addresses4 '{ 10.96.0.6 }'");
        node.sync_changed_services(&changed(&before, &after)).unwrap();
        let synced = node.sync_services(&after, Connections::OfChange).unwrap();
        assert_eq!((synced.deleted, synced.added), (0, 1));
        assert_eq!(found(&directory), objects(&after));
    });
}

#[test]
fn a_node_says_which_connections_and_clients_its_kernel_knows() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        let (elements, _) = two();
        node.sync_services(&elements, Connections::OfChange).unwrap();
        assert_eq!(node.held_services().unwrap().elements, elements);
        assert!(node.remembered_clients().unwrap().is_empty());
        run("ip link set lo up && ip address add 10.244.1.5/32 dev lo && ip route add 10.96.0.0/12 dev lo");
        assert!(node.addresses().unwrap().contains(&"10.244.1.5".parse().unwrap()));
        let endpoint: std::net::SocketAddr = "10.244.1.5:8080".parse().unwrap();
        let _listener = std::net::TcpListener::bind(endpoint).unwrap();
        let direct = std::net::TcpStream::connect(endpoint).unwrap();
        assert!(node.service_connections(&elements).unwrap().is_empty(), "{direct:?} is no service's");
        let stream = std::net::TcpStream::connect("10.96.0.5:80").unwrap();
        let to = Frontend { address: "10.96.0.5".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let connection = Connection { client: stream.local_addr().unwrap(), to, endpoint };
        assert_eq!(node.service_connections(&elements).unwrap(), [connection]);
        run("nft add element inet homelab-proxy affinity4 \
             '{ 10.96.0.5 . tcp . 80 . 10.244.1.9 timeout 60s : 10.244.1.5 . 8080 }'");
        let client = Remembered { frontend: to, client: "10.244.1.9".parse().unwrap(), endpoint };
        assert_eq!(node.remembered_clients().unwrap(), [client]);
        // The rules are listed as they were written: what differs is somebody else's work.
        let rules = Kinds { nft: true, services: false, ..SERVICES };
        let listed = node.observe_objects(&Scope::default(), rules).unwrap();
        assert!(ruleset(&view()).iter().all(|spec| listed.iter().any(|o| o.spec == *spec)));
        run("nft add element inet homelab-proxy no-endpoints4 '{ 9.9.9.9 . 99 . 9 }'");
        let strays = node.held_services().unwrap().stray_lines();
        assert!(strays[""][0].starts_with("no-endpoints4 #09090909"), "{strays:?}");
    });
}

/// So many elements are asked for one by one before they are read.
#[test]
fn a_large_set_is_looked_through() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let address = |n: u32| Element::ClusterAddress(Ipv4Addr::from(0x0a60_0000 + n).into());
        let target = Elements::from([("default/web".to_owned(), (1..66_000).map(address).collect())]);
        with_ruleset(&directory).sync_services(&target, Connections::OfChange).unwrap();
        let look = || {
            let synced = node(&directory).sync_services(&target, Connections::OfChange).unwrap();
            (synced.deleted, synced.added)
        };
        assert_eq!(look(), (0, 0));
        let set = "element inet homelab-proxy cluster-addresses4";
        run(&format!("nft add {set} '{{ 10.0.0.1 }}'"));
        assert_eq!(look(), (1, 0), "one too many");
        run(&format!("nft delete {set} '{{ 10.96.0.9 }}'; nft add {set} '{{ 10.0.0.1 }}'"));
        assert_eq!(look(), (1, 1), "as many, and others");
        run(&format!(
            "nft delete {set} '{{ 10.96.0.9 }}'; nft add {set} '{{ 10.96.0.9 comment \"default/dns\" }}'"
        ));
        assert_eq!(look(), (1, 1), "another service's");
        assert_eq!(look(), (0, 0));
    });
}
