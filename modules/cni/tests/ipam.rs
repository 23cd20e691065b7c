//! Decisions about addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_cni::ipam::{Entry, Reservation, gateway, owner, reserve};
use ipnet::IpNet;
use proptest::prelude::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("net")
}

fn new(ranges: &[IpNet], entries: &[Entry], last: Option<u32>, owner: &str) -> Option<(Entry, u32)> {
    match reserve(ranges, entries, last, owner)? {
        Reservation::New(entry, offset) => Some((entry, offset)),
        Reservation::Held(entry) => panic!("held {entry:?}"),
    }
}

fn texts(entry: &Entry) -> Vec<String> {
    entry.addresses.iter().map(IpAddr::to_string).collect()
}

#[test]
fn network_gateway_and_broadcast_are_never_given() {
    let ranges = [net("10.0.0.0/29")];
    let mut entries = Vec::new();
    let mut last = None;
    while let Some((entry, offset)) = new(&ranges, &entries, last, &format!("hl{}", entries.len())) {
        entries.push(entry);
        last = Some(offset);
    }
    let given: Vec<String> = entries.iter().flat_map(texts).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(gateway(ranges[0]), Some("10.0.0.1".parse().expect("address")));
}

#[test]
fn smallest_ranges() {
    for (range, room) in [("10.0.0.0/30", true), ("10.0.0.0/31", false), ("10.0.0.0/32", false)] {
        assert_eq!(gateway(net(range)).is_some(), room, "{range}");
        assert_eq!(reserve(&[net(range)], &[], None, "hl").is_some(), room, "{range}");
    }
    // IPv6 has no broadcast address.
    for (range, room) in [("fd00::/126", true), ("fd00::/127", false), ("fd00::/128", false)] {
        assert_eq!(gateway(net(range)).is_some(), room, "{range}");
    }
    assert!(gateway(net("10.0.0.0/0")).is_some() && gateway(net("::/0")).is_some(), "no overflow");
    assert_eq!(reserve(&[], &[], None, "hl"), None);
}

#[test]
fn an_address_rests_after_use() {
    let ranges = [net("10.0.0.0/29")];
    let (first, offset) = new(&ranges, &[], None, "hl1").expect("address");
    // hl1 is gone again, yet the next pod gets another address.
    let (second, offset) = new(&ranges, &[], Some(offset), "hl2").expect("address");
    assert_ne!(first.addresses, second.addresses);
    // Around the end, past the taken one.
    let taken = [Entry { owner: "hl9".into(), addresses: vec!["10.0.0.2".parse().expect("address")] }];
    let (wrapped, _) = new(&ranges, &taken, Some(6), "hl3").expect("address");
    assert_eq!(texts(&wrapped), ["10.0.0.3"]);
    assert_eq!(offset, 3);
    // A stored number of a larger range of before, or nonsense.
    for last in [7, 250, u32::MAX] {
        assert_eq!(texts(&new(&ranges, &[], Some(last), "hl4").expect("address").0), ["10.0.0.2"]);
    }
}

#[test]
fn both_families_get_the_same_offset_or_nothing() {
    let ranges = [net("10.0.0.0/29"), net("fd00::/64")];
    let half = [Entry { owner: "hl9".into(), addresses: vec!["fd00::2".parse().expect("address")] }];
    let (entry, _) = new(&ranges, &half, None, "hl1").expect("address");
    assert_eq!(texts(&entry), ["10.0.0.3", "fd00::3"]);
    let full: Vec<Entry> = (2..=6)
        .map(|n| Entry { owner: format!("hl{n}"), addresses: vec![IpAddr::from([10, 0, 0, n])] })
        .collect();
    assert_eq!(reserve(&ranges, &full, None, "hl1"), None, "IPv6 alone is not given");
}

#[test]
fn what_a_killed_add_left_is_used_again() {
    let ranges = [net("10.0.0.0/29"), net("fd00::/64")];
    let (left, _) = new(&ranges, &[], None, "hl1").expect("address");
    assert_eq!(
        reserve(&ranges, std::slice::from_ref(&left), None, "hl1"),
        Some(Reservation::Held(left.clone()))
    );
    // The node's range has changed since.
    let other = [net("10.9.0.0/29"), net("fd00::/64")];
    let (fresh, _) = new(&other, &[left], None, "hl1").expect("address");
    assert_eq!(fresh.addresses[0], IpAddr::from([10, 9, 0, 3]), "fd00::2 is taken");
}

#[test]
fn names_of_entries() {
    let entry = Entry::parse("hl0123456789abc,10.244.1.7,fd00::7").expect("entry");
    assert_eq!(entry.owner, "hl0123456789abc");
    assert_eq!(texts(&entry), ["10.244.1.7", "fd00::7"]);
    assert_eq!(entry.name(), "hl0123456789abc,10.244.1.7,fd00::7");
    for foreign in
        ["", "lock", "hl1", ",10.0.0.1", "hl1,", "hl1,10.0.0.1,", "hl1,10.0.0.256", "hl1,10.0.0.1~"]
    {
        assert_eq!(Entry::parse(foreign), None, "{foreign}");
    }
    let name = owner("home", "c1", "eth0");
    assert!(name.len() == 15 && name.starts_with("hl"), "{name}");
    let others = [owner("home", "c1", "eth1"), owner("home", "c2", "eth0"), owner("away", "c1", "eth0")];
    assert!(!others.contains(&name));
}

proptest! {
    /// Pods come and go in any order: no address is ever held twice, none outside the ranges, and a new pod finds
    /// one as long as there is one.
    #[test]
    fn no_address_twice(steps in proptest::collection::vec((any::<bool>(), 0_u8..20), 1..200), dual: bool) {
        let mut ranges = vec![net("10.0.0.0/28")];
        if dual {
            ranges.push(net("fd00::/124"));
        }
        let mut held: BTreeMap<String, Entry> = BTreeMap::new();
        let mut last = None;
        for (add, pod) in steps {
            let name = format!("hl{pod}");
            if !add {
                held.remove(&name);
                continue;
            }
            let entries: Vec<Entry> = held.values().cloned().collect();
            match reserve(&ranges, &entries, last, &name) {
                Some(Reservation::Held(entry)) => prop_assert_eq!(&entry, &held[&name]),
                Some(Reservation::New(entry, offset)) => {
                    prop_assert_eq!(Entry::parse(&entry.name()), Some(entry.clone()));
                    last = Some(offset);
                    held.insert(name, entry);
                }
                None => prop_assert_eq!(held.len(), 13),
            }
            let all: Vec<IpAddr> = held.values().flat_map(|entry| entry.addresses.clone()).collect();
            let distinct: BTreeSet<&IpAddr> = all.iter().collect();
            prop_assert_eq!(distinct.len(), all.len());
            for entry in held.values() {
                prop_assert_eq!(entry.addresses.len(), ranges.len());
                for (address, range) in entry.addresses.iter().zip(&ranges) {
                    prop_assert!(range.contains(address) && gateway(*range) != Some(*address));
                }
            }
        }
    }
}
