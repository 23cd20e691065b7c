//! Decisions about addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_cni::Code;
use homelab_cni::ipam::{
    Claim, Entry, Holder, Pool, Reservation, gateway, owner, remembered_name, reserve, runtime_mark,
};
use ipnet::IpNet;
use proptest::prelude::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("net")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// A reservation for who has no wishes.
fn plain(ranges: &[IpNet], entries: &[Entry], last: Option<u32>, owner: &str) -> Reservation {
    reserve(Pool { ranges, exclude: &[] }, entries, last, Claim { owner, ..Claim::default() })
        .expect("no wishes")
}

fn new(ranges: &[IpNet], entries: &[Entry], last: Option<u32>, owner: &str) -> Option<(Entry, u32)> {
    match plain(ranges, entries, last, owner) {
        Reservation::New(entry, offset) => Some((entry, offset.expect("its turn"))),
        Reservation::Full => None,
        other => panic!("{other:?}"),
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
        assert_eq!(new(&[net(range)], &[], None, "hl").is_some(), room, "{range}");
    }
    // IPv6 has no broadcast address.
    for (range, room) in [("fd00::/126", true), ("fd00::/127", false), ("fd00::/128", false)] {
        assert_eq!(gateway(net(range)).is_some(), room, "{range}");
    }
    assert!(gateway(net("10.0.0.0/0")).is_some() && gateway(net("::/0")).is_some(), "no overflow");
    assert_eq!(plain(&[], &[], None, "hl"), Reservation::Full);
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
    assert_eq!(plain(&ranges, &full, None, "hl1"), Reservation::Full, "IPv6 alone is not given");
}

#[test]
fn what_a_killed_add_left_is_used_again() {
    let ranges = [net("10.0.0.0/29"), net("fd00::/64")];
    let (left, _) = new(&ranges, &[], None, "hl1").expect("address");
    assert_eq!(plain(&ranges, std::slice::from_ref(&left), None, "hl1"), Reservation::Held(left.clone()));
    // The node's range has changed since.
    let other = [net("10.9.0.0/29"), net("fd00::/64")];
    let (fresh, _) = new(&other, &[left], None, "hl1").expect("address");
    assert_eq!(texts(&fresh), ["10.9.0.2", "fd00::2"], "its own is no other's");
}

/// host-local: "should allocate ips in round robin", its table. Theirs of several ranges of one family have no meaning here.
#[test]
fn should_allocate_ips_in_round_robin() {
    for (range, taken, last, expected) in [
        ("10.0.0.0/29", &[][..], None, "10.0.0.2"),
        ("2001:db8:1::/64", &[], None, "2001:db8:1::2"),
        ("10.0.0.0/30", &[], None, "10.0.0.2"),
        ("10.0.0.0/29", &[2], None, "10.0.0.3"),
        // After the last one, over those that are taken.
        ("10.0.0.0/29", &[], Some(5), "10.0.0.6"),
        ("10.0.0.0/29", &[4, 5], Some(3), "10.0.0.6"),
        // Round to the beginning.
        ("10.0.0.0/29", &[6], Some(5), "10.0.0.2"),
        // The last one is of another range.
        ("10.0.0.0/29", &[2], Some(128), "10.0.0.3"),
        // All are taken but the last one.
        ("10.0.0.0/29", &[2, 4, 5, 6], Some(3), "10.0.0.3"),
    ] {
        let held: Vec<Entry> =
            taken.iter().map(|n| entry(&format!("hl{n}"), &[&format!("10.0.0.{n}")])).collect();
        let (given, _) = new(&[net(range)], &held, last, "hl").expect("address");
        assert_eq!(texts(&given), [expected], "{range} {taken:?} {last:?}");
    }
}

fn entry(owner: &str, addresses: &[&str]) -> Entry {
    Entry { owner: owner.to_owned(), addresses: addresses.iter().map(|text| address(text)).collect() }
}

#[test]
fn addresses_that_are_asked_for() {
    let ranges = [net("10.0.0.0/28"), net("fd00::/64")];
    let pool = Pool { ranges: &ranges, exclude: &[] };
    let ask = |entries: &[Entry], asked: &[&str]| {
        let asked: Vec<IpAddr> = asked.iter().map(|text| address(text)).collect();
        reserve(pool, entries, Some(4), Claim { owner: "hl1", asked: &asked, ..Claim::default() })
    };
    let given = |entries: &[Entry], asked: &[&str]| match ask(entries, asked).expect("possible") {
        Reservation::New(entry, None) => texts(&entry),
        other => panic!("{other:?}"),
    };
    assert_eq!(given(&[], &["10.0.0.9", "fd00::77"]), ["10.0.0.9", "fd00::77"]);
    assert_eq!(given(&[], &["fd00::77", "10.0.0.9"]), ["10.0.0.9", "fd00::77"], "in the order of the ranges");
    // The other family follows, or takes the next one.
    assert_eq!(given(&[], &["10.0.0.9"]), ["10.0.0.9", "fd00::9"]);
    assert_eq!(given(&[entry("hl2", &["fd00::9"])], &["10.0.0.9"]), ["10.0.0.9", "fd00::5"]);
    assert_eq!(given(&[], &["fd00::ffff"]), ["10.0.0.5", "fd00::ffff"]);
    let holder = entry("hl2", &["10.0.0.9", "fd00::9"]);
    let taken = Reservation::Taken(address("fd00::9"), holder.clone());
    assert_eq!(ask(std::slice::from_ref(&holder), &["fd00::9"]), Ok(taken));
    // A killed ADD left it: it is the same wish, or it is not.
    let left = entry("hl1", &["10.0.0.9", "fd00::9"]);
    assert_eq!(ask(std::slice::from_ref(&left), &["10.0.0.9"]), Ok(Reservation::Held(left.clone())));
    assert_eq!(given(&[left], &["10.0.0.10"]), ["10.0.0.10", "fd00::a"]);
    for impossible in
        ["10.0.0.0", "10.0.0.1", "10.0.0.15", "10.0.0.16", "192.0.2.1", "fd00::", "fd00::1", "fd00::1:0:0:0"]
    {
        assert_eq!(ask(&[], &[impossible]).expect_err("refused").code, Code::Config, "{impossible}");
    }
}

#[test]
fn excluded_addresses_are_for_those_who_ask() {
    let ranges = [net("10.0.0.0/28"), net("fd00::/64")];
    let exclude = [net("10.0.0.2/32"), net("10.0.0.4/30"), net("fd00::8/125"), net("10.0.0.0/31")];
    let pool = Pool { ranges: &ranges, exclude: &exclude };
    let mut entries = Vec::new();
    let mut last = None;
    loop {
        let name = format!("hl{}", entries.len());
        let claim = Claim { owner: &name, ..Claim::default() };
        match reserve(pool, &entries, last, claim).expect("no wishes") {
            Reservation::New(entry, offset) => {
                entries.push(entry);
                last = offset;
            }
            other => break assert_eq!(other, Reservation::Full),
        }
    }
    let given: Vec<String> = entries.iter().flat_map(texts).collect();
    assert_eq!(given, ["10.0.0.3", "fd00::3"], "4 to 7 of one family and 8 to 15 of the other are left out");
    let asked = [address("10.0.0.4")];
    let claim = Claim { owner: "hl9", asked: &asked, ..Claim::default() };
    let Ok(Reservation::New(entry, None)) = reserve(pool, &[], None, claim) else { panic!("refused") };
    assert_eq!(texts(&entry), ["10.0.0.4", "fd00::4"]);
    // As large as nothing can be counted through.
    let wide = [net("fd00::/1"), net("fd00::/64")];
    let pool = Pool { ranges: &ranges[1..], exclude: &wide[..1] };
    assert_eq!(reserve(pool, &[], None, Claim::default()), Ok(Reservation::Full));
}

#[test]
fn a_name_keeps_its_addresses_while_there_are_others() {
    let ranges = [net("10.0.0.0/29"), net("fd00::/64")];
    let pool = Pool { ranges: &ranges, exclude: &[] };
    let remembered = [entry("web-0", &["10.0.0.3", "fd00::3"]), entry("web-1", &["10.0.0.2", "fd00::2"])];
    let claim = |owner, name| Claim { owner, name, remembered: &remembered, ..Claim::default() };
    let given = |entries: &[Entry], owner, name| match reserve(pool, entries, None, claim(owner, name)) {
        Ok(Reservation::New(entry, _)) => texts(&entry),
        other => panic!("{other:?}"),
    };
    assert_eq!(given(&[], "hl1", "web-0"), ["10.0.0.3", "fd00::3"]);
    assert_eq!(
        given(&[], "hl2", "else"),
        ["10.0.0.4", "fd00::4"],
        "what is remembered for others comes last"
    );
    let full: Vec<Entry> =
        (4..=6).map(|n| entry(&format!("hl{n}"), &[&format!("10.0.0.{n}"), &format!("fd00::{n}")])).collect();
    assert_eq!(given(&full, "hl1", "else"), ["10.0.0.2", "fd00::2"], "but it is no reservation");
    // Somebody has one of them: as much as is left.
    let half = [entry("hl7", &["10.0.0.3"])];
    assert_eq!(given(&half, "hl1", "web-0")[1], "fd00::3");
    // The node's range has changed since.
    let moved = [net("10.9.0.0/29")];
    let Ok(Reservation::New(fresh, _)) =
        reserve(Pool { ranges: &moved, exclude: &[] }, &[], None, claim("hl1", "web-0"))
    else {
        panic!("refused")
    };
    assert_eq!(texts(&fresh), ["10.9.0.2"]);
    // A wish is stronger than a memory.
    let asked = [address("10.0.0.6")];
    let Ok(Reservation::New(fresh, None)) =
        reserve(pool, &[], None, Claim { asked: &asked, ..claim("hl1", "web-0") })
    else {
        panic!("refused")
    };
    assert_eq!(texts(&fresh), ["10.0.0.6", "fd00::3"]);
    let name = remembered_name("default/web-0", "eth0");
    assert_eq!(name.len(), 32);
    assert_ne!(name, remembered_name("default/web-0", "net1"));
}

#[test]
fn targets_of_entries() {
    let mark = runtime_mark("0::/system.slice/containerd.service\n");
    assert_eq!(mark.len(), 8);
    assert_ne!(mark, runtime_mark("0::/system.slice/crio.service\n"));
    let with_mark = format!("c1/eth0/home/web-0//{mark}");
    for (target, pod, runtime) in [
        ("c1/eth0", None, None),
        ("c1/eth0/web-0", Some("web-0"), None),
        ("c1/eth0/home/web-0", Some("home/web-0"), None),
        (&with_mark, Some("home/web-0"), Some(mark.as_str())),
        ("c1/eth0//00000000", None, Some("00000000")),
    ] {
        let holder = Holder::parse(target).expect("a holder");
        assert_eq!((holder.container.as_str(), holder.interface.as_str()), ("c1", "eth0"), "{target}");
        assert_eq!((holder.pod.as_deref(), holder.runtime.as_deref()), (pod, runtime), "{target}");
        assert_eq!(holder.target(), target);
    }
    assert_eq!(Holder::parse("c1"), None);
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
    /// Pods come and go in any order, some with wishes and some with names: no address is ever held twice, none outside the
    /// ranges, and a new pod finds one as long as there is one.
    #[test]
    fn no_address_twice(
        steps in proptest::collection::vec((any::<bool>(), 0_u8..20, proptest::option::of(2_u8..15)), 1..200),
        dual: bool,
        sticky: bool,
    ) {
        let mut ranges = vec![net("10.0.0.0/28")];
        if dual {
            ranges.push(net("fd00::/124"));
        }
        let exclude = [net("10.0.0.14/32")];
        let pool = Pool { ranges: &ranges, exclude: &exclude };
        let mut held: BTreeMap<String, Entry> = BTreeMap::new();
        let mut remembered: Vec<Entry> = Vec::new();
        let mut last = None;
        for (add, pod, asked) in steps {
            let name = format!("hl{pod}");
            if !add {
                held.remove(&name);
                continue;
            }
            let asked: Vec<IpAddr> = asked.into_iter().map(|n| IpAddr::from([10, 0, 0, n])).collect();
            let entries: Vec<Entry> = held.values().cloned().collect();
            let memory: &[Entry] = if sticky { &remembered } else { &[] };
            let claim = Claim { owner: &name, asked: &asked, remembered: memory, name: &name };
            match reserve(pool, &entries, last, claim).expect("possible") {
                Reservation::Held(entry) => prop_assert_eq!(&entry, &held[&name]),
                Reservation::New(entry, offset) => {
                    prop_assert_eq!(Entry::parse(&entry.name()), Some(entry.clone()));
                    prop_assert!(asked.iter().all(|address| entry.addresses.contains(address)));
                    last = offset.or(last);
                    remembered.retain(|other| other.owner != name);
                    remembered.push(entry.clone());
                    held.insert(name, entry);
                }
                Reservation::Taken(address, holder) => {
                    prop_assert!(holder.owner != name && held[&holder.owner].addresses.contains(&address));
                }
                Reservation::Full => {
                    let others = held.iter().filter(|(owner, _)| **owner != name).count();
                    // Wishes may leave gaps where the families differ.
                    prop_assert!(dual || others >= 12, "{others}");
                }
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
