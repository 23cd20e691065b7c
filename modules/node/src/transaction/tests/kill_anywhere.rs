//! Every fault at every point, and faults during the undo: the node ends in its old or in its new state, in time,
//! nothing of the transaction is left behind, and the next apply leads to the goal.

use homelab_model::{NodeObject, Object};
use homelab_protocol::{Request, Response};

use super::scenarios::{KINDS, Kind, Scenario};
use crate::fake::laptop::{Known, TIMEOUT, apply, hello, send, talk, transaction};
use crate::fake::{Fault, World};

pub(super) const FAULTS: &[Fault] = &[
    Fault::LaptopKill,
    Fault::Cut,
    Fault::NodeKill,
    Fault::AgentKill,
    Fault::Power,
    Fault::DiskFull,
    Fault::Partition,
];

fn sorted(mut objects: Vec<NodeObject>) -> Vec<NodeObject> {
    objects.sort_by_key(Object::key);
    objects
}

/// The two states in which a transaction may end, and what the old one becomes by itself at a reboot.
struct Ends {
    start: Scenario,
    old: Vec<Vec<NodeObject>>,
    new: Vec<NodeObject>,
    points: usize,
}

fn ends(kind: &Kind) -> Ends {
    let start = (kind.make)();
    let rebooted = start.world.fork();
    rebooted.boot();
    let old = vec![start.world.observed(), rebooted.observed()];
    let Scenario { world, transaction, desired } = start.fork();
    world.strike(&[]);
    assert_eq!(apply(&world, &transaction), Known::Confirmed, "{}", kind.name);
    let points = world.0.borrow().points.len();
    assert_eq!(world.observed(), sorted(desired), "{}", kind.name);
    nothing_left(&world, false, kind.name);
    Ends { start, old, new: world.observed(), points }
}

/// Nothing of a transaction is under way. `file_alone`: but for the copy of the binary.
pub(super) fn nothing_left(world: &World, file_alone: bool, what: &str) {
    let state = world.0.borrow();
    let disk = &state.disk;
    assert!(disk.journal.is_none(), "{what}: a journal is left");
    assert!(!disk.reserve, "{what}: the reserve is left");
    assert!(disk.undo.is_empty(), "{what}: asides are left: {:?}", disk.undo.keys());
    assert!(state.volatile.timer.is_none(), "{what}: a timer is left");
    assert!(!disk.boot_unit, "{what}: the boot unit is left");
    assert!(!disk.recovery || file_alone, "{what}: the recovery binary is left");
    assert!(!state.volatile.apply_locked && !state.volatile.agent_locked, "{what}: a lock is left");
    assert!(state.volatile.session.is_none(), "{what}: a session is left");
    assert!(!state.lock_misused, "{what}: a change with the agent where it must not be");
    if state.objects().is_empty() && disk.confirmed.is_none() {
        assert!(disk.reverted.is_none() && disk.previous.1.is_empty(), "{what}: records are left");
    }
}

/// One run with faults at the given points. Gives how many points were reached.
fn run(kind: &Kind, ends: &Ends, strikes: &[(usize, Fault)]) -> usize {
    let Scenario { world, transaction: first, desired } = ends.start.fork();
    world.strike(strikes);
    let known = apply(&world, &first);
    world.elapse();
    let named = |n: &usize| world.0.borrow().points.get(*n).cloned().unwrap_or_default();
    let faults: Vec<String> =
        strikes.iter().map(|(n, fault)| format!("{fault:?} at {n} {}", named(n))).collect();
    let what = format!("{}, {}: {known:?}", kind.name, faults.join(", "));

    let observed = world.observed();
    let (old, new) = (ends.old.contains(&observed), observed == ends.new);
    assert!(old || new, "{what}: half changed\n{}", difference(&observed, ends));
    match known {
        Known::Confirmed => assert!(new, "{what}: the laptop believes that it is new"),
        Known::Undone | Known::Refused(_) => assert!(old, "{what}: the laptop believes that it is old"),
        Known::Unknown => {}
    }
    // Who dies between the last unit and the file that it would have run leaves that file to the next apply.
    let dies = |(n, fault): &(usize, Fault)| {
        matches!(fault, Fault::NodeKill | Fault::Power) && named(n).starts_with("disarm.")
    };
    nothing_left(&world, strikes.iter().any(dies), &what);
    assert_eq!(world.0.borrow().strikes_done, strikes.len(), "{what}: a fault that never struck");
    if let Some(struck) = world.0.borrow().struck {
        // A process that was killed in the middle of an undo is started again after a second, and a machine that
        // went down there is not up for 20 s; what is left at boot has 5 s more.
        let again = (strikes.len() as u64 - 1) * 6_000;
        let down = world.0.borrow().boots * 20_000;
        let limit = TIMEOUT * 1000 + 2000 + again + down + 3 * 30_000 * u64::from(hung(strikes));
        let took = world.0.borrow().time - struck;
        assert!(took <= limit, "{what}: {took} ms");
    }
    let reached = world.0.borrow().points.len();

    // Whoever comes next finds a node like any other.
    {
        let mut state = world.0.borrow_mut();
        (state.laptop_dead, state.partition, state.disk.full) = (false, false, false);
    }
    world.strike(&[]);
    let heard = talk(&world, vec![hello(), send(Request::Observe { scope: Default::default() })]);
    let Some(Response::Observed(seen)) = heard.last() else { panic!("{what}: {heard:?}") };
    assert_eq!((&seen.history.open, &seen.history.holder), (&None, &None), "{what}");
    if old && !new && known == Known::Unknown && !first.changes.is_empty() {
        // Unless the power took the note with it, or nothing was begun.
        let reverted = seen.history.reverted.as_ref();
        assert!(reverted.is_none_or(|r| r.left.is_empty()), "{what}: {reverted:?}");
    }
    let mut next = transaction(&world, "99", &desired);
    next.secrets = first.secrets.clone();
    next.farewell = first.farewell;
    next.by = first.by.clone();
    if !next.changes.is_empty() {
        assert_eq!(apply(&world, &next), Known::Confirmed, "{what}: the next apply");
        world.elapse();
        nothing_left(&world, false, &format!("{what}: after the next apply"));
    }
    assert_eq!(world.observed(), sorted(desired), "{what}: after the next apply");
    reached
}

/// Whether a session may have waited for a word that never came.
fn hung(strikes: &[(usize, Fault)]) -> bool {
    strikes.iter().any(|(_, fault)| *fault == Fault::Partition)
}

fn difference(observed: &[NodeObject], ends: &Ends) -> String {
    let keys = |to: &[NodeObject]| {
        let changes = homelab_model::diff(observed, to);
        changes.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join("\n  ")
    };
    format!("to old:\n  {}\nto new:\n  {}", keys(&ends.old[0]), keys(&ends.new))
}

/// Runs all kinds, each in a thread of its own, and adds up what they count.
fn of_all_kinds(count: impl Fn(&Kind) -> (usize, usize) + Sync) -> (usize, usize) {
    std::thread::scope(|threads| {
        let count = &count;
        let started: Vec<_> = KINDS.iter().map(|kind| threads.spawn(move || count(kind))).collect();
        let counts = started.into_iter().map(|thread| thread.join().expect("a thread that failed said why"));
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    })
}

#[test]
fn every_fault_at_every_point() {
    let (points, runs) = of_all_kinds(|kind| {
        let ends = ends(kind);
        println!("{}: {} points", kind.name, ends.points);
        let mut runs = 0;
        for point in 0..ends.points {
            for fault in FAULTS {
                run(kind, &ends, &[(point, *fault)]);
                runs += 1;
            }
        }
        (ends.points, runs)
    });
    println!("{points} points x {} faults = {runs}, 0 lost", FAULTS.len());
}

/// The second fault strikes while the first one is being made good: at each point that is reached after it.
#[test]
fn a_second_fault_during_the_undo() {
    const SECOND: &[Fault] = &[Fault::NodeKill, Fault::Power, Fault::DiskFull, Fault::AgentKill];
    let (points, runs) = of_all_kinds(|kind| {
        let ends = ends(kind);
        let Scenario { world, transaction, .. } = ends.start.fork();
        world.strike(&[]);
        apply(&world, &transaction);
        let names = world.0.borrow().points.clone();
        let effects: Vec<usize> = (0..names.len()).filter(|n| names[*n].starts_with("effect.")).collect();
        // In the middle of the changes there is something to undo, and something that was not done.
        let first = effects[effects.len() / 2];
        let (mut points, mut runs) = (0, 0);
        for fault in [Fault::LaptopKill, Fault::NodeKill, Fault::Power, Fault::DiskFull] {
            let reached = run(kind, &ends, &[(first, fault)]);
            for second in first + 1..reached {
                points += 1;
                for again in SECOND {
                    run(kind, &ends, &[(first, fault), (second, *again)]);
                    runs += 1;
                }
            }
        }
        (points, runs)
    });
    println!("{points} points after a fault x {} further faults = {runs}, 0 lost", SECOND.len());
}
