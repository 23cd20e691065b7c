//! Trials, the way back, locks and drift, with in-process nodes.
#![cfg(test)]

mod fake;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Lan, Laptop, THREE, calm, cluster, moved};
use homelab_driver::{
    ApplyError, ConfirmOutcome, Event, Goal, LockOutcome, NodeError, Observer, Outcome, RollbackOutcome,
};
use homelab_model::{Content, Key, Phase, Spec, ours};

const ADDRESSES: [&str; 3] = ["192.168.50.11", "192.168.50.12", "192.168.50.13"];

#[test]
fn a_trial_is_held_confirmed_or_taken_back() {
    let mut laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    laptop.options.hold = Some(Duration::from_secs(600));
    let report = laptop.apply(&calm(&home));
    assert!(matches!(report.nodes[2].outcome, Outcome::Held { seconds: 600, .. }), "{report:?}");
    assert!(report.succeeded());
    laptop.options.hold = None;
    let plan = laptop.plan(&home);
    assert!(
        plan.warnings.iter().any(|w| w.starts_with("node1: me@laptop tries out a change")),
        "{:?}",
        plan.warnings
    );
    assert!(matches!(plan.nodes[0].history.open, Some(ref o) if o.phase == Phase::Held));
    assert!(laptop.prepare(&home, Goal::Desired).drift("node1").is_none(), "a trial is no work of a hand");
    let prepared = laptop.engine().prepare_apply(&home, Goal::Desired, &[]).unwrap();
    assert!(prepared.plan.nodes.iter().all(|n| matches!(n.outcome, Err(NodeError::Held { .. }))));
    prepared.close(3);
    let one = vec!["node1".to_owned()];
    let said = laptop.engine().confirm(&home, &one);
    assert!(matches!(&said[..], [(name, Ok(ConfirmOutcome::Confirmed(_)))] if name == "node1"), "{said:?}");
    laptop.lan.with(ADDRESSES[2], |m| m.fault.down = true);
    let said = laptop.engine().rollback_open(&home, &[]);
    assert!(matches!(said[0].1, Ok(RollbackOutcome::Nothing)));
    assert!(matches!(&said[1].1, Ok(RollbackOutcome::RolledBack { left, .. }) if left.is_empty()));
    assert!(matches!(said[2].1, Err(NodeError::Transport(_))));
    laptop.lan.with(ADDRESSES[2], |m| m.fault.down = false);
    laptop.engine().rollback_open(&home, &[]);
    let plan = laptop.plan(&home);
    assert_eq!(plan.changed_nodes(), 1, "{plan:?}");
}

#[test]
fn the_last_confirmed_change_is_taken_back() {
    let mut laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    let before: Vec<_> = ADDRESSES.iter().map(|a| laptop.lan.with(a, |m| m.state())).collect();
    assert!(laptop.apply(&moved(&home)).succeeded());
    laptop.options.command = "rollback".into();
    let report = laptop.reach(&home, Goal::Previous);
    assert!(report.succeeded(), "{report:?}");
    for (address, before) in ADDRESSES.iter().zip(&before) {
        laptop.lan.with(address, |m| assert!(m.state() == *before));
    }
    let again = laptop.prepare(&home, Goal::Previous);
    assert!(again.plan.is_empty());
    assert!(
        again.plan.warnings.iter().any(|w| w == "node1 has no confirmed change that could be taken back")
    );
    // Before the first change there was nothing.
    let laptop = Laptop::new(Lan::three());
    assert!(laptop.apply(&home).succeeded());
    assert!(laptop.reach(&home, Goal::Previous).succeeded());
    laptop.lan.with(ADDRESSES[1], |m| assert!(m.is_bare()));
}

#[test]
fn a_change_of_a_dead_laptop_is_taken_back_before_the_next() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    laptop.lan.with(ADDRESSES[0], |m| m.fault.slow = Duration::from_millis(1));
    // It dies when everything is made on the first node.
    struct Die<'a>(&'a Laptop);
    impl Observer for Die<'_> {
        fn event(&self, _: &str, event: Event<'_>) {
            if matches!(event, Event::Verifying) {
                self.0.lan.dead.store(true, Ordering::SeqCst);
                self.0.cancel.store(true, Ordering::SeqCst);
            }
        }
    }
    let die = Die(&laptop);
    let engine = laptop.watched(&die);
    let report = engine.apply(engine.prepare_apply(&home, Goal::Desired, &[]).unwrap()).unwrap();
    assert!(matches!(report.nodes[0].outcome, Outcome::Unsure(_)), "{report:?}");
    laptop.lan.unlocked();
    let other = Laptop::new(laptop.lan.another_laptop());
    let plan = other.plan(&home);
    let warning =
        plan.warnings.iter().find(|w| w.starts_with("node1 still has a change by me@laptop")).unwrap();
    assert!(warning.ends_with("apply takes it back at once"), "{warning}");
    let prepared = other.engine().prepare_apply(&home, Goal::Desired, &[]).unwrap();
    laptop.lan.with(ADDRESSES[0], |m| assert!(m.is_bare()));
    let notes = &prepared.plan.warnings;
    assert!(notes.iter().any(|w| w == "node1: a change by me@laptop that nobody confirmed was taken back"));
    assert!(other.engine().apply(prepared).unwrap().succeeded());
}

#[test]
fn locks_name_their_holder_are_waited_for_and_can_be_broken() {
    let mut laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let mut first = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
    assert_eq!(engine.lock(&mut first).unwrap(), LockOutcome::Held);
    let mut other = Laptop::new(laptop.lan.another_laptop());
    other.options.by = "you@desk".into();
    let mut second = other.engine().prepare_apply(&home, Goal::Desired, &[]).unwrap();
    assert!(
        second.plan.warnings.iter().any(|w| w == "node2 is locked by me@laptop (homelab apply, process 7)")
    );
    match other.engine().lock(&mut second) {
        Err(ApplyError::Busy { node, holder }) => assert_eq!((node.as_str(), holder.pid), ("node1", 7)),
        result => panic!("{result:?}"),
    }
    // It waits until the first one is through, and then plans anew.
    other.options.lock_wait = Duration::from_secs(10);
    let mut second = other.engine().prepare_apply(&home, Goal::Desired, &[]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(400));
            assert!(engine.apply(first).unwrap().succeeded());
        });
        let engine = other.engine();
        assert_eq!(engine.lock(&mut second).unwrap(), LockOutcome::Waited);
        assert!(!second.plan.is_empty());
        engine.refresh(&mut second).unwrap();
        assert!(second.plan.is_empty(), "{:?}", second.plan);
    });
    laptop.options.by = "third@pc".into();
    let names = |force| {
        let said = laptop.engine().unlock(&home, &[], force);
        said.into_iter().map(|(_, h)| h.unwrap().map(|h| h.who)).collect::<Vec<_>>()
    };
    assert_eq!(names(false), vec![Some("you@desk".to_owned()); 3]);
    assert_eq!(names(true), vec![Some("you@desk".to_owned()); 3]);
    assert_eq!(names(true), vec![None; 3]);
    second.close(3);
}

#[test]
fn ctrl_c_ends_the_wait_for_a_lock() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let mut first = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
    engine.lock(&mut first).unwrap();
    let mut other = Laptop::new(laptop.lan.another_laptop());
    other.options.lock_wait = Duration::from_secs(3600);
    let mut second = other.engine().prepare_apply(&home, Goal::Desired, &[]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            other.cancel.store(true, Ordering::Relaxed);
        });
        let start = Instant::now();
        assert!(matches!(other.engine().lock(&mut second), Err(ApplyError::Cancelled)));
        assert!(start.elapsed() < Duration::from_secs(60));
    });
    first.close(3);
}

#[test]
fn drift_is_what_was_changed_by_hand_and_not_what_the_file_asks_for() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.prepare(&home, Goal::Desired).drift("node1").is_none());
    assert!(laptop.apply(&home).succeeded());
    let prepared = laptop.prepare(&calm(&home), Goal::Desired);
    assert!(!prepared.plan.is_empty());
    assert!(prepared.drift("node2").unwrap().changes.is_empty());
    // By hand: the node's own record, and an object.
    laptop.lan.with(ADDRESSES[1], |m| {
        let file = m.objects.get_mut(&Key::File(ours::NODE_SPEC.to_owned())).unwrap();
        if let Spec::File(file) = &mut file.spec
            && let Content::Text(text) = &mut file.content
        {
            *text = text.replace("8472", "4789");
        }
        let neighbour = m.objects.keys().find(|k| matches!(k, Key::Neighbour(..))).cloned().unwrap();
        m.objects.remove(&neighbour);
    });
    let prepared = laptop.prepare(&calm(&home), Goal::Desired);
    let drift = prepared.drift("node2").unwrap();
    let objects: Vec<&str> = drift.changes.iter().map(|c| c.object.as_str()).collect();
    assert_eq!(objects.len(), 2, "{objects:?}");
    assert!(objects[0].contains(ours::NODE_SPEC) && objects[1].contains("neighbour"), "{objects:?}");
    assert!(prepared.drift("node1").unwrap().changes.is_empty());
}

#[test]
fn a_lock_is_kept_alive_while_the_user_thinks() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let mut prepared = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
    engine.lock(&mut prepared).unwrap();
    std::thread::sleep(Duration::from_millis(5500));
    for address in ADDRESSES {
        laptop.lan.with(address, |m| assert!(m.log.iter().any(|(_, name)| name == "Beat")));
    }
    assert!(engine.apply(prepared).unwrap().succeeded());
    laptop.lan.unlocked();
}

#[test]
fn what_a_laptop_leaves_that_dies_while_another_waits_is_taken_back() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    struct Die<'a>(&'a Laptop);
    impl Observer for Die<'_> {
        fn event(&self, _: &str, event: Event<'_>) {
            if matches!(event, Event::Verifying) {
                std::thread::sleep(Duration::from_millis(600));
                self.0.lan.dead.store(true, Ordering::SeqCst);
                self.0.cancel.store(true, Ordering::SeqCst);
            }
        }
    }
    let die = Die(&laptop);
    let mut other = Laptop::new(laptop.lan.another_laptop());
    other.options.lock_wait = Duration::from_secs(10);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let engine = laptop.watched(&die);
            let _ = engine.apply(engine.prepare_apply(&home, Goal::Desired, &[]).unwrap());
        });
        while laptop.lan.with(ADDRESSES[0], |m| m.open.is_none()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let engine = other.engine();
        let mut prepared = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
        assert_eq!(engine.lock(&mut prepared).unwrap(), LockOutcome::Waited);
        engine.refresh(&mut prepared).unwrap();
        let notes = &prepared.plan.warnings;
        assert!(notes.iter().any(|w| w.ends_with("that nobody confirmed was taken back")), "{notes:?}");
        assert!(engine.apply(prepared).unwrap().succeeded());
    });
}
