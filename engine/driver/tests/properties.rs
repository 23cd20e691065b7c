//! Laws over many clusters: an apply leaves an empty plan, and nodes keep their pod ranges.
#![cfg(test)]

mod fake;

use std::collections::BTreeMap;

use fake::{Lan, Laptop, Machine, cluster};
use ipnet::IpNet;
use proptest::prelude::*;

/// What a user does to the file, or what happens to a machine.
#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Remove(u8),
    Rename(u8, u8),
    Reverse,
    Down(u8),
    Up,
    /// The machine's objects are lost, as by a re-install.
    Wipe(u8),
    /// Some objects are lost.
    Drift(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1_u8..8).prop_map(Step::Add),
        1 => any::<u8>().prop_map(Step::Remove),
        2 => (any::<u8>(), 0_u8..4).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => Just(Step::Reverse),
        2 => any::<u8>().prop_map(Step::Down),
        2 => Just(Step::Up),
        1 => any::<u8>().prop_map(Step::Wipe),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Drift(a, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_stable_and_applies_converge(steps in prop::collection::vec(step(), 1..12)) {
        let laptop = Laptop::new(Lan::three());
        let mut file: Vec<(String, String)> =
            fake::THREE.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect();
        let mut known: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for step in std::iter::once(Step::Up).chain(steps) {
            let pick = |i: u8| usize::from(i) % file.len();
            // What nobody who answers remembers is lost: two machines of three are gone then.
            let remembered = |i: u8| {
                let own = &file[pick(i)].1;
                file.iter().filter(|(_, address)| address != own).any(|(_, address)| {
                    laptop.lan.with(address, |m| {
                        let spec = m.spec().filter(|_| !m.fault.down);
                        spec.is_some_and(|s| s.peers.iter().any(|p| p.address.to_string() == *own))
                    })
                })
            };
            match step {
                // What nodes that are all silent hold, nobody can tell a new one.
                Step::Add(_) if file.iter().all(|(_, a)| laptop.lan.with(a, |m| m.fault.down)) => {}
                Step::Add(i) => {
                    let (name, address) = (format!("new{i}"), format!("192.168.50.2{i}"));
                    if !file.iter().any(|(n, a)| *n == name || *a == address) {
                        laptop.lan.add(Machine::new(&name, &address));
                        file.insert(usize::from(i) % (file.len() + 1), (name, address));
                    }
                }
                Step::Remove(i) if file.len() > 2 => {
                    let (_, address) = file.remove(pick(i));
                    known.remove(&address);
                }
                Step::Rename(i, to) => {
                    let (index, name) = (pick(i), format!("name{to}"));
                    if !file.iter().any(|(n, _)| *n == name) {
                        file[index].0 = name;
                    }
                }
                Step::Reverse => file.reverse(),
                Step::Down(i) => laptop.lan.with(&file[pick(i)].1, |m| m.fault.down = true),
                Step::Up => {
                    for (_, address) in &file {
                        laptop.lan.with(address, |m| m.fault.down = false);
                    }
                }
                Step::Drift(i, _) if !remembered(i) => {}
                Step::Wipe(i) => {
                    let address = file[pick(i)].1.clone();
                    laptop.lan.with(&address, |m| {
                        m.objects.clear();
                        m.previous = None;
                    });
                    // Its range was known to its peers only, and one that is down cannot be asked.
                    if file.iter().any(|(_, a)| laptop.lan.with(a, |m| m.fault.down)) {
                        known.remove(&address);
                    }
                }
                Step::Drift(i, n) => laptop.lan.with(&file[pick(i)].1, |m| {
                    let keys: Vec<_> = m.objects.keys().cloned().collect();
                    for key in keys.iter().skip(usize::from(n) % 7).step_by(5) {
                        m.objects.remove(key);
                    }
                }),
                Step::Remove(_) => {}
            }
            let nodes: Vec<(&str, &str)> = file.iter().map(|(n, a)| (n.as_str(), a.as_str())).collect();
            let home = cluster(&nodes);
            laptop.apply(&home);
            let plan = laptop.plan(&home);
            prop_assert!(plan.is_empty(), "not empty after an apply: {plan:?}");
            let mut all = Vec::new();
            for (_, address) in &file {
                let spec = laptop.lan.with(address, |m| if m.fault.down { None } else { m.spec() });
                let Some(spec) = spec else { continue };
                if let Some(before) = known.get(address) {
                    prop_assert_eq!(before, &spec.pod_cidrs, "range of {}", address);
                }
                known.insert(address.clone(), spec.pod_cidrs.clone());
                all.extend(spec.pod_cidrs);
            }
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(count, all.len(), "a range is used twice");
        }
    }
}
