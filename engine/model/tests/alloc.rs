//! Allocation of pod ranges: stable without a state file.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::{BTreeMap, BTreeSet};

use fixtures::net;
use homelab_model::{AllocError, Cluster, Memory, allocate, subnet_at};
use ipnet::IpNet;
use proptest::prelude::*;

fn cluster(names: &[String], range: &str, prefix: u8) -> Cluster {
    let addresses: Vec<String> = (0..names.len()).map(|i| format!("192.168.50.{}", 10 + i)).collect();
    let nodes: Vec<(&str, &str)> =
        names.iter().zip(&addresses).map(|(name, address)| (name.as_str(), address.as_str())).collect();
    let mut cluster = fixtures::cluster(&nodes);
    cluster.network.pod_cidrs = vec![net(range)];
    cluster.network.node_prefixes = vec![prefix];
    cluster
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|&n| n.to_owned()).collect()
}

fn remember(held: &BTreeMap<String, Vec<IpNet>>) -> Memory {
    Memory { own: held.clone(), ..Memory::default() }
}

#[test]
fn subnets_count_from_the_ranges_start() {
    assert_eq!(subnet_at(net("10.244.0.0/16"), 24, 0), Some(net("10.244.0.0/24")));
    assert_eq!(subnet_at(net("10.244.0.0/16"), 24, 255), Some(net("10.244.255.0/24")));
    assert_eq!(subnet_at(net("10.244.0.0/16"), 24, 256), None);
    assert_eq!(subnet_at(net("fd00::/56"), 64, 255), Some(net("fd00:0:0:ff::/64")));
    assert_eq!(subnet_at(net("10.0.0.0/24"), 24, 0), Some(net("10.0.0.0/24")));
    assert_eq!(subnet_at(net("10.0.0.0/24"), 16, 0), None);
    assert_eq!(subnet_at(net("0.0.0.0/0"), 32, 7), Some(net("0.0.0.7/32")));
    assert_eq!(subnet_at(net("::/0"), 128, 7), Some(net("::7/128")));
}

#[test]
fn a_renamed_node_keeps_its_range_by_its_address() {
    let first =
        allocate(&cluster(&names(&["a", "b"]), "10.244.0.0/16", 24), &Memory::default()).expect("fits");
    let memory = Memory {
        by_address: [("192.168.50.11".parse().expect("address"), first["b"].clone())].into(),
        ..Memory::default()
    };
    let renamed = allocate(&cluster(&names(&["a", "z"]), "10.244.0.0/16", 24), &memory).expect("fits");
    assert_eq!(renamed["z"], first["b"]);
}

#[test]
fn the_file_wins_over_what_a_node_remembers() {
    let mut wanted = cluster(&names(&["a", "b"]), "10.244.0.0/16", 24);
    let held = allocate(&wanted, &Memory::default()).expect("fits");
    wanted.nodes[1].pod_cidrs = held["a"].clone();
    let moved = allocate(&wanted, &remember(&held)).expect("fits");
    assert_eq!(moved["b"], held["a"]);
    assert_ne!(moved["a"], held["a"]);
}

#[test]
fn exhaustion_and_double_ranges_name_the_nodes() {
    let many: Vec<String> = (0..5).map(|i| format!("n{i}")).collect();
    let error = allocate(&cluster(&many, "10.244.0.0/22", 24), &Memory::default()).expect_err("too many");
    assert!(matches!(&error, AllocError::Exhausted { node, .. } if node == "n4"), "{error}");
    let mut twice = cluster(&names(&["a", "b"]), "10.244.0.0/16", 24);
    for node in &mut twice.nodes {
        node.pod_cidrs = vec![net("10.244.7.0/24")];
    }
    let error = allocate(&twice, &Memory::default()).expect_err("same range");
    assert!(
        matches!(&error, AllocError::Twice { first, second, .. } if first == "a" && second == "b"),
        "{error}"
    );
}

proptest! {
    /// Nodes come and go, and the file is reordered: whoever stays keeps its range, and no range is given twice.
    #[test]
    fn who_stays_keeps_its_range(
        steps in proptest::collection::vec(proptest::collection::btree_set(0_u8..12, 1..12), 1..8),
        reverse in any::<bool>(),
    ) {
        let mut held: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for step in steps {
            let mut list: Vec<String> = step.iter().map(|i| format!("n{i}")).collect();
            if reverse {
                list.reverse();
            }
            let given = allocate(&cluster(&list, "10.244.0.0/20", 24), &remember(&held)).expect("16 fit");
            let distinct: BTreeSet<&IpNet> = given.values().flatten().collect();
            prop_assert_eq!(distinct.len(), list.len());
            for (name, nets) in &given {
                if let Some(before) = held.get(name) {
                    prop_assert_eq!(before, nets);
                }
            }
            held = given;
        }
    }
}
