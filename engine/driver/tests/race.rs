//! Several laptops at once.
#![cfg(test)]

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fake::{Lan, Laptop, THREE, cluster};
use homelab_driver::{ApplyError, Goal, LockOutcome};

#[test]
fn laptops_that_race_never_meet_on_a_node() {
    const ADDRESSES: [&str; 3] = ["192.168.50.11", "192.168.50.12", "192.168.50.13"];
    let lan = Lan::three();
    for address in ADDRESSES {
        lan.with(address, |m| m.fault.slow = Duration::from_micros(200));
    }
    let (won, busy) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for index in 0..12_u8 {
            let (lan, won, busy) = (&lan, &won, &busy);
            scope.spawn(move || {
                let mut laptop = Laptop::new(lan.another_laptop());
                laptop.options.by = format!("user{index}@laptop");
                // Some wait, some leave.
                laptop.options.lock_wait = Duration::from_secs(if index % 3 == 0 { 0 } else { 60 });
                let mut nodes = THREE;
                // The order of the file is nobody's order of locks.
                nodes.rotate_left(usize::from(index) % 3);
                let mut home = cluster(&nodes);
                home.network.service_cidrs = vec![format!("10.{}.0.0/16", 100 + index).parse().unwrap()];
                for _ in 0..3 {
                    let engine = laptop.engine();
                    let mut prepared = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
                    match engine.lock(&mut prepared) {
                        Ok(LockOutcome::Held) => {}
                        Ok(LockOutcome::Waited) => engine.refresh(&mut prepared).unwrap(),
                        Err(ApplyError::Busy { holder, .. }) => {
                            assert!(holder.who.ends_with("@laptop") && holder.who != laptop.options.by);
                            busy.fetch_add(1, Ordering::SeqCst);
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    }
                    // Between its look and its locks another one may have come and gone: then nothing is changed.
                    let report = engine.apply(prepared).unwrap();
                    if report.succeeded() {
                        won.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    lan.unlocked();
    let seen: Vec<_> = ADDRESSES
        .iter()
        .map(|a| {
            lan.with(a, |m| {
                assert_eq!(m.collisions, 0);
                assert!(m.open.is_none());
                m.spec().unwrap().service_cidrs
            })
        })
        .collect();
    // No mixture: the last one had all nodes.
    assert!(seen.iter().all(|s| *s == seen[0]), "{seen:?}");
    let (won, busy) = (won.into_inner(), busy.into_inner());
    assert!(won >= 8, "won {won}, busy {busy}");
    println!("36 runs: {won} went through, {busy} left with the holder's name");
}
