//! A laptop that dies, or a session that ends, at any message: every node ends as it was or as it shall be, the report
//! says which, and the next apply converges.
#![cfg(test)]

mod fake;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Cut, Lan, Laptop, State, THREE, calm, cluster, moved};
use homelab_driver::{Goal, Outcome, Silent};
use homelab_model::{Cluster, Content, Key, Spec, ours};

const ADDRESSES: [&str; 3] = ["192.168.50.11", "192.168.50.12", "192.168.50.13"];

/// The states of all nodes; the keys of one run are not those of another.
fn states(lan: &Lan) -> Vec<State> {
    let blank = |mut state: State| {
        if let Some(object) = state.objects.get_mut(&Key::File(ours::KEYS.to_owned()))
            && let Spec::File(file) = &mut object.spec
        {
            file.content = Content::Secret("some".to_owned());
        }
        state
    };
    ADDRESSES.iter().map(|a| blank(lan.with(a, |m| m.state()))).collect()
}

/// Where a change starts, what it aims at, and how many messages it takes.
struct Case {
    name: &'static str,
    start: Lan,
    home: Cluster,
    goal: Goal,
    old: Vec<State>,
    new: Vec<State>,
    messages: i64,
}

fn cases() -> Vec<Case> {
    let home = cluster(&THREE);
    let fresh = Lan::three();
    let done = Laptop::new(fresh.copy());
    assert!(done.apply(&home).succeeded());
    done.lan.unlocked();
    let list = [
        ("first", fresh, home.clone(), Goal::Desired),
        ("calm", done.lan.copy(), calm(&home), Goal::Desired),
        ("together", done.lan.copy(), moved(&home), Goal::Desired),
        ("destroy", done.lan.copy(), home, Goal::Destroyed),
    ];
    list.into_iter()
        .map(|(name, start, home, goal)| {
            let laptop = Laptop::new(start.copy());
            laptop.lan.breath.store(i64::from(i32::MAX), Ordering::SeqCst);
            assert!(laptop.reach(&home, goal).succeeded(), "{name}");
            let messages = i64::from(i32::MAX) - laptop.lan.breath.load(Ordering::SeqCst);
            let (old, new) = (states(&start), states(&laptop.lan));
            assert_ne!(old, new, "{name}");
            Case { name, start, home, goal, old, new, messages }
        })
        .collect()
}

/// Runs `work` for every message of every case, several at a time.
fn everywhere(work: impl Fn(&Case, i64) + Sync) -> i64 {
    let cases = cases();
    let all: Vec<(&Case, i64)> = cases.iter().flat_map(|c| (0..=c.messages).map(move |n| (c, n))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some((case, n)) = all.get(next.fetch_add(1, Ordering::SeqCst)) {
                    work(case, *n);
                }
            });
        }
    });
    i64::try_from(all.len()).unwrap()
}

fn laptop(case: &Case, n: i64, cut: Cut) -> Laptop {
    let mut lan = case.start.copy();
    lan.cut = cut;
    lan.breath.store(n, Ordering::SeqCst);
    let mut laptop = Laptop::new(lan);
    // Long enough for a busy machine; a dead laptop's nodes count faster.
    laptop.options.confirm_timeout = Duration::from_secs(if cut == Cut::Death { 1 } else { 8 });
    laptop
}

fn assert_old_or_new(case: &Case, lan: &Lan, n: i64) {
    lan.unlocked();
    lan.closed();
    for (index, state) in states(lan).iter().enumerate() {
        let good = *state == case.old[index] || *state == case.new[index];
        assert!(good, "{} cut at message {n}: node{} is neither old nor new", case.name, index + 1);
    }
}

fn assert_converges(case: &Case, lan: &Lan, n: i64) {
    let next = Laptop::new(lan.another_laptop());
    let report = next.reach(&case.home, case.goal);
    assert!(report.succeeded(), "{} after message {n}: {report:?}", case.name);
    assert!(states(lan) == case.new, "{} after message {n}", case.name);
    assert!(next.prepare(&case.home, case.goal).plan.is_empty());
}

#[test]
fn a_laptop_that_dies_at_any_message_leaves_every_node_old_or_new() {
    let count = everywhere(|case, n| {
        let laptop = laptop(case, n, Cut::Death);
        for address in ADDRESSES {
            laptop.lan.with(address, |m| m.second = Duration::from_millis(100));
        }
        // A dead process waits for nothing.
        let mut engine = laptop.watched(&Silent);
        engine.cancel = &laptop.lan.dead;
        if let Ok(prepared) = engine.prepare_apply(&case.home, case.goal, &[]) {
            let _ = engine.apply(prepared);
        }
        for address in ADDRESSES {
            laptop.lan.with(address, |m| m.second = Duration::from_secs(1));
        }
        assert_old_or_new(case, &laptop.lan, n);
        assert_converges(case, &laptop.lan, n);
    });
    println!("{count} deaths, 0 nodes lost");
}

#[test]
fn a_session_that_ends_at_any_message_is_reported_as_it_is() {
    for cut in [Cut::Before, Cut::After] {
        let count = everywhere(|case, n| {
            let laptop = laptop(case, n, cut);
            let report = laptop.reach(&case.home, case.goal);
            laptop.lan.unlocked();
            let states = states(&laptop.lan);
            let mut kinds = BTreeMap::new();
            for (index, node) in report.nodes.iter().enumerate() {
                let is = |wanted: &[State]| states[index] == wanted[index];
                let (kind, truth) = match &node.outcome {
                    Outcome::Changed(_) => ("changed", is(&case.new)),
                    Outcome::Unchanged => ("unchanged", is(&case.old) && is(&case.new)),
                    Outcome::RolledBack { left, .. } => ("rolled back", is(&case.old) && left.is_empty()),
                    Outcome::Failed(_) | Outcome::Unplanned(_) | Outcome::NotStarted => {
                        ("not changed", is(&case.old))
                    }
                    Outcome::Held { .. } | Outcome::Unsure(_) => ("odd", false),
                };
                *kinds.entry(kind).or_insert(0) += 1;
                assert!(truth, "{} cut {cut:?} message {n}: node{}: {report:?}", case.name, index + 1);
            }
            assert_old_or_new(case, &laptop.lan, n);
            assert_converges(case, &laptop.lan, n);
        });
        println!("{count} sessions cut ({cut:?}), 0 nodes lost, 0 false reports");
    }
}
