//! Time: what a transaction waits for, and how long.

use std::time::Duration;

use homelab_model::{History, Phase};
use homelab_protocol::{Fault, Request, Response, Transaction};

use super::kill_anywhere::{FAULTS, nothing_left};
use super::scenarios::{KINDS, Scenario};
use crate::fake::World;
use crate::fake::laptop::{Known, Step, TIMEOUT, apply, hello, lock, send, talk};
use crate::host::Host;
use crate::transaction::{Ended, expire, history};

fn first() -> Scenario {
    (KINDS[0].make)()
}

/// Begins and runs a transaction, and the laptop is never heard of again.
fn left_open(world: &World, transaction: &Transaction) {
    let begin = send(Request::Begin(Box::new(transaction.clone())));
    let heard = talk(world, vec![hello(), lock(), begin, send(Request::Run)]);
    assert!(matches!(heard.last(), Some(Response::Applied(_))), "{heard:?}");
}

fn one(world: &World, request: Request) -> Response {
    talk(world, vec![hello(), send(request)]).pop().expect("an answer")
}

fn told(world: &World) -> History {
    history(&mut world.process())
}

#[test]
fn nobody_confirms() {
    let Scenario { world, transaction, .. } = first();
    left_open(&world, &transaction);
    let began = world.0.borrow().time;
    let open = told(&world).open.expect("it is open");
    assert_eq!((open.phase, open.changes), (Phase::Applied, transaction.changes.len()));
    assert!((TIMEOUT - 1..=TIMEOUT).contains(&open.remaining), "{open:?}");
    world.elapse();
    assert!(world.observed().is_empty());
    let took = world.0.borrow().time - began;
    assert!((TIMEOUT * 1000 - 1000..=TIMEOUT * 1000 + 2000).contains(&took), "{took} ms");
    let reverted = told(&world).reverted.expect("it says so");
    assert_eq!(reverted.reason, "nobody confirmed it within 60 s");
    assert_eq!(reverted.left, [""; 0]);
    // Where nothing of ours was before, a reboot takes that note, too.
    assert!(world.0.borrow().disk.reverted.is_none());
    let Response::Failed(failure) = one(&world, Request::Confirm { id: transaction.id.clone() }) else {
        panic!("confirmed after all");
    };
    assert_eq!(failure.fault, Fault::NoTransaction);
}

#[test]
fn a_try_is_held_for_its_own_time() {
    // Longer than the timeout, and shorter.
    for seconds in [600, 4] {
        let Scenario { world, transaction, .. } = first();
        left_open(&world, &transaction);
        let id = transaction.id.clone();
        assert_eq!(one(&world, Request::Hold { id: id.clone(), seconds }), Response::Confirmed);
        let began = world.0.borrow().time;
        assert_eq!(told(&world).open.map(|o| o.phase), Some(Phase::Held));
        // Another apply does not take it for a dead one.
        let other = Transaction { id: "ff".into(), ..transaction.clone() };
        assert_eq!(apply(&world, &other), Known::Refused(Fault::Open));
        world.elapse();
        assert!(world.observed().is_empty());
        let took = world.0.borrow().time - began;
        assert!((seconds * 1000 - 1000..=seconds * 1000 + 2000).contains(&took), "{seconds} s: {took} ms");
        assert_eq!(told(&world).reverted.map(|r| r.reason), Some("the time to try it is over".to_owned()));
    }
}

/// A try that nobody confirms is over in time, whatever happens while the node is told of it.
#[test]
fn every_fault_at_every_point_of_a_hold() {
    let mut runs = 0;
    for seconds in [600, 4] {
        let Scenario { world, transaction, .. } = first();
        left_open(&world, &transaction);
        let hold = || Request::Hold { id: transaction.id.clone(), seconds };
        let calm = world.fork();
        calm.strike(&[]);
        assert_eq!(one(&calm, hold()), Response::Confirmed);
        let points = calm.0.borrow().points.clone();
        for (number, point) in points.iter().enumerate() {
            for fault in FAULTS {
                let what = format!("{seconds} s, {fault:?} at {number} {point}");
                let world = world.fork();
                world.strike(&[(number, *fault)]);
                let began = world.0.borrow().time;
                talk(&world, vec![hello(), send(hold())]);
                world.elapse();
                assert_eq!(world.0.borrow().strikes_done, 1, "{what}");
                assert!(world.observed().is_empty(), "{what}: it stays");
                nothing_left(&world, false, &what);
                // Either the time of the try, or that of the beginning where the node did not hear of a try.
                let took = world.0.borrow().time - began;
                let limit = TIMEOUT.max(seconds) * 1000 + 2000;
                let down = world.0.borrow().boots * 25_000;
                assert!(took <= limit + down, "{what}: {took} ms");
                runs += 1;
            }
        }
        assert!(seconds > TIMEOUT || points.iter().any(|p| p.starts_with("hold.timer")), "{points:?}");
    }
    println!("{runs} faults in holds, 0 kept");
}

#[test]
fn a_try_can_be_confirmed_and_twice() {
    let Scenario { world, transaction, .. } = first();
    left_open(&world, &transaction);
    let id = transaction.id.clone();
    one(&world, Request::Hold { id: id.clone(), seconds: 600 });
    for _ in 0..2 {
        assert_eq!(one(&world, Request::Confirm { id: id.clone() }), Response::Confirmed);
    }
    world.elapse();
    assert_eq!(world.observed().len(), transaction.changes.len());
    let history = told(&world);
    assert_eq!((history.open, history.reverted), (None, None));
    assert_eq!(history.confirmed.map(|c| (c.id, c.revertible, c.spec.is_some())), Some((id, true, true)));
}

#[test]
fn what_a_dead_laptop_left_is_taken_back_by_the_next_apply() {
    let Scenario { world, transaction, .. } = first();
    left_open(&world, &transaction);
    // Its plan was made for the changed node: after the undo that is another one.
    let other = Transaction { id: "ff".into(), changes: transaction.changes.clone(), ..transaction.clone() };
    assert_eq!(apply(&world, &other), Known::Confirmed);
    assert_eq!(told(&world).confirmed.map(|c| c.id), Some("ff".to_owned()));
}

#[test]
fn a_slow_apply_is_waited_for_and_a_hung_one_is_not() {
    for hung in [false, true] {
        let Scenario { world, transaction, .. } = first();
        left_open(&world, &transaction);
        let mut busy = world.process();
        let guard = busy.lock_apply(Duration::ZERO).expect("locks work").expect("it is free");
        busy.touch_progress();
        let began = world.0.borrow().time;
        let mut at_work = Some((busy, guard));
        // A machine on which somebody is at work for three minutes while the timer waits.
        let ended = {
            let mut timer = Slow {
                inner: world.process(),
                world: &world,
                busy: &mut at_work,
                hung,
                until: began + 180_000,
            };
            timer.expire(&transaction.id)
        };
        let took = world.0.borrow().time - began;
        assert!(matches!(ended, Ok(Ended::TakenBack(_))), "{ended:?}");
        if hung {
            assert!((TIMEOUT * 1000..TIMEOUT * 1000 + 2000).contains(&took), "killed after {took} ms");
        } else {
            assert!(took >= 180_000, "taken back after {took} ms");
        }
        assert!(world.observed().is_empty());
    }
}

/// Moves the clock, and the work of the one that is at work, whenever the timer sleeps.
struct Slow<'a> {
    inner: crate::fake::Process,
    world: &'a World,
    busy: &'a mut Option<(crate::fake::Process, crate::host::Guard)>,
    hung: bool,
    until: u64,
}

impl Slow<'_> {
    fn expire(&mut self, id: &str) -> Result<Ended, String> {
        let (world, hung, until) = (self.world.clone(), self.hung, self.until);
        let mut busy = self.busy.take();
        self.inner.on_sleep = Some(Box::new(move || {
            if let Some((process, _)) = &mut busy
                && !hung
            {
                process.touch_progress();
            }
            if world.0.borrow().time >= until {
                busy = None;
            }
        }));
        expire(&mut self.inner, id)
    }
}

#[test]
fn silence_costs_the_lock_and_not_the_node() {
    let Scenario { world, transaction, .. } = first();
    let begin = || send(Request::Begin(Box::new(transaction.clone())));
    let heard = talk(&world, vec![hello(), lock(), Step::Silence, begin()]);
    let Some(Response::Failed(failure)) = heard.last() else { panic!("{heard:?}") };
    assert_eq!(failure.fault, Fault::NotLocked);
    // Between the two, what was begun is the timer's.
    let heard = talk(&world, vec![hello(), lock(), begin(), Step::Silence, send(Request::Run)]);
    let Some(Response::Failed(failure)) = heard.last() else { panic!("{heard:?}") };
    assert_eq!(failure.fault, Fault::NotLocked);
    world.elapse();
    assert!(world.observed().is_empty());
    assert_eq!(told(&world).open, None);
    // Words without an answer count as words.
    let heard = talk(&world, vec![hello(), lock(), send(Request::Beat), begin(), send(Request::Run)]);
    assert!(matches!(heard.last(), Some(Response::Applied(_))), "{heard:?}");
}
