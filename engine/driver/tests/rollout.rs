//! Roll-out with armed rollback, with in-process nodes.
#![cfg(test)]

mod fake;

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Evil, Lan, Laptop, THREE, Trick, calm, cluster, moved};
use homelab_driver::{ApplyError, Batch, Event, Goal, NodeError, Observer, Outcome};
use homelab_model::{Impact, ours};
use homelab_protocol::{Failure, Fault, Request, Response};

const ADDRESSES: [&str; 3] = ["192.168.50.11", "192.168.50.12", "192.168.50.13"];

/// Hears the order of events.
#[derive(Default)]
struct Ear(Mutex<Vec<String>>);

impl Ear {
    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Ear {
    fn event(&self, node: &str, event: Event<'_>) {
        let text = format!("{event:?}");
        let word = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        self.0.lock().unwrap().push(format!("{node} {word}"));
    }
}

#[test]
fn the_first_node_is_confirmed_before_the_others_are_begun() {
    let laptop = Laptop::new(Lan::three());
    let ear = Ear::default();
    let engine = laptop.watched(&ear);
    let home = cluster(&THREE);
    let report = engine.apply(engine.prepare_apply(&home, Goal::Desired, &[]).unwrap()).unwrap();
    assert!(report.succeeded(), "{report:?}");
    let heard = ear.heard();
    let at = |text: &str| heard.iter().position(|h| h == text).unwrap_or_else(|| panic!("{text}: {heard:?}"));
    assert!(at("node1 Locking") < at("node2 Locking") && at("node2 Locking") < at("node3 Locking"));
    assert!(at("node3 Locking") < at("node1 Arming"));
    for pair in ["Arming", "Applying", "Verifying", "Confirming"].windows(2) {
        assert!(at(&format!("node1 {}", pair[0])) < at(&format!("node1 {}", pair[1])));
    }
    for other in ["node2", "node3"] {
        assert!(at("node1 Done") < at(&format!("{other} Arming")), "{heard:?}");
    }
    laptop.lan.unlocked();
    for address in ADDRESSES {
        laptop.lan.with(address, |m| assert_eq!((m.confirms, m.lock.is_some()), (1, false)));
    }
}

#[test]
fn a_confirmation_has_a_session_of_its_own_and_no_message_is_wasted() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    for address in ADDRESSES {
        laptop.lan.with(address, |m| m.log.clear());
    }
    assert!(laptop.apply(&calm(&home)).succeeded());
    laptop.lan.with(ADDRESSES[1], |m| {
        let session = |name: &str| m.log.iter().find(|(_, n)| n == name).unwrap().0;
        assert_eq!(session("Lock"), session("Run"));
        assert_ne!(session("Run"), session("Confirm"));
        let names: Vec<&str> = m.log.iter().map(|(_, n)| n.as_str()).filter(|n| *n != "Bye").collect();
        let all =
            ["Hello", "Observe", "Lock", "Probe", "Begin", "Run", "Hello", "Observe", "Probe", "Confirm"];
        assert_eq!(names, all);
    });
}

#[test]
fn a_failure_stops_the_roll_out_and_confirmed_nodes_stay() {
    let mut laptop = Laptop::new(Lan::three());
    laptop.options.batch = Some(Batch::Nodes(1));
    let home = cluster(&THREE);
    laptop.lan.with(ADDRESSES[1], |m| m.fault.fail_at = Some(9));
    let report = laptop.apply(&home);
    assert!(report.rolled_back() && !report.succeeded());
    assert!(matches!(report.nodes[0].outcome, Outcome::Changed(_)));
    assert!(matches!(&report.nodes[1].outcome, Outcome::RolledBack { left, .. } if left.is_empty()));
    assert!(matches!(report.nodes[2].outcome, Outcome::NotStarted));
    laptop.lan.with(ADDRESSES[0], |m| assert_eq!(m.confirms, 1));
    laptop.lan.unlocked();
    for address in &ADDRESSES[1..] {
        laptop.lan.with(address, |m| assert!(m.is_bare() && m.lock.is_none()));
    }
    laptop.lan.with(ADDRESSES[1], |m| m.fault.fail_at = None);
    let plan = laptop.plan(&home);
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("node2: the last change (by me@laptop, 60 s ago) was taken back"))
    );
    assert!(laptop.apply(&home).succeeded());
    assert!(laptop.plan(&home).is_empty());
}

#[test]
fn a_lost_confirmation_is_said_again() {
    let laptop = Laptop::new(Lan::three());
    for address in ADDRESSES {
        laptop.lan.with(address, |m| m.fault.lost_confirmations = 2);
    }
    let home = cluster(&THREE);
    let report = laptop.apply(&home);
    assert!(report.succeeded(), "{report:?}");
    // Of a farewell the node keeps no record at all.
    for address in ADDRESSES {
        laptop.lan.with(address, |m| m.fault.lost_confirmations = 1);
    }
    let report = laptop.destroy(&home);
    assert!(report.succeeded(), "{report:?}");
    for address in ADDRESSES {
        laptop.lan.with(address, |m| assert!(m.is_bare()));
    }
}

#[test]
fn a_confirmation_that_never_arrived_is_said_again() {
    let laptop = Laptop::new(Lan::three());
    fn deaf(request: &Request) -> Option<Trick> {
        use std::sync::atomic::AtomicUsize;
        static TIMES: AtomicUsize = AtomicUsize::new(0);
        (matches!(request, Request::Confirm { .. }) && TIMES.fetch_add(1, Ordering::SeqCst) < 2)
            .then_some(Trick::HangUp)
    }
    laptop.lan.with(ADDRESSES[0], |m| m.fault.evil = Some(Evil(deaf)));
    let report = laptop.apply(&cluster(&THREE));
    assert!(report.succeeded(), "{report:?}");
}

#[test]
fn a_node_that_is_lost_after_its_changes_and_found_in_time_is_confirmed() {
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with(ADDRESSES[0], |m| m.fault.lost_after_run = Some(Duration::from_millis(150)));
    let report = laptop.apply(&cluster(&THREE));
    assert!(report.succeeded(), "{report:?}");
}

#[test]
fn a_node_that_is_lost_too_long_takes_the_change_back_and_the_report_says_so() {
    let mut laptop = Laptop::new(Lan::three());
    laptop.options.confirm_timeout = Duration::from_secs(1);
    let home = cluster(&THREE);
    laptop.lan.with(ADDRESSES[0], |m| {
        m.second = Duration::from_millis(100);
        m.fault.lost_after_run = Some(Duration::from_millis(250));
    });
    let start = Instant::now();
    let report = laptop.apply(&home);
    assert!(start.elapsed() < Duration::from_secs(30));
    let Outcome::RolledBack { reason, error: Some(_), left } = &report.nodes[0].outcome else {
        panic!("{report:?}")
    };
    assert_eq!((reason.as_str(), left.len()), ("nobody confirmed it in time", 0));
    assert!(matches!(report.nodes[1].outcome, Outcome::NotStarted));
    laptop.lan.with(ADDRESSES[0], |m| {
        assert!(m.is_bare());
        m.second = Duration::from_secs(1);
    });
    laptop.options.confirm_timeout = Duration::from_secs(20);
    assert!(laptop.apply(&home).succeeded());
}

#[test]
fn a_node_that_never_comes_back_is_not_waited_for_for_ever_and_ctrl_c_ends_the_waiting() {
    let mut laptop = Laptop::new(Lan::three());
    laptop.options.confirm_timeout = Duration::from_secs(5);
    laptop.lan.with(ADDRESSES[0], |m| m.fault.lost_after_run = Some(Duration::from_secs(3600)));
    let start = Instant::now();
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            laptop.cancel.store(true, Ordering::Relaxed);
        });
        laptop.apply(&cluster(&THREE))
    });
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(matches!(report.nodes[0].outcome, Outcome::Unsure(NodeError::Broken { .. })), "{report:?}");
    assert!(matches!(report.nodes[1].outcome, Outcome::NotStarted));
}

#[test]
fn ctrl_c_finishes_the_node_in_hand_and_begins_no_other() {
    let laptop = Laptop::new(Lan::three());
    for address in ADDRESSES {
        laptop.lan.with(address, |m| m.fault.slow = Duration::from_millis(2));
    }
    struct Stop<'a>(&'a Laptop);
    impl Observer for Stop<'_> {
        fn event(&self, _: &str, event: Event<'_>) {
            if matches!(event, Event::Applying { done: 5, .. }) {
                self.0.cancel.store(true, Ordering::Relaxed);
            }
        }
    }
    let stop = Stop(&laptop);
    let engine = laptop.watched(&stop);
    let home = cluster(&THREE);
    let report = engine.apply(engine.prepare_apply(&home, Goal::Desired, &[]).unwrap()).unwrap();
    assert!(matches!(report.nodes[0].outcome, Outcome::Changed(_)), "{report:?}");
    for node in &report.nodes[1..] {
        assert!(matches!(node.outcome, Outcome::NotStarted));
    }
    laptop.lan.unlocked();
    for address in ADDRESSES {
        laptop.lan.with(address, |m| assert!(m.lock.is_none() && m.open.is_none()));
    }
}

#[test]
fn a_plan_that_is_out_of_date_changes_nothing() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let prepared = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
    let other = Laptop::new(laptop.lan.another_laptop());
    assert!(other.apply(&calm(&home)).succeeded());
    let report = engine.apply(prepared).unwrap();
    let Outcome::Failed(NodeError::Stale(left)) = &report.nodes[0].outcome else { panic!("{report:?}") };
    assert!(left.iter().any(|l| l.contains(ours::NODE_SPEC)), "{left:?}");
    assert!(other.plan(&calm(&home)).is_empty());
}

#[test]
fn what_all_nodes_must_do_at_once_is_done_together_or_not_at_all() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    let before: Vec<_> = ADDRESSES.iter().map(|a| laptop.lan.with(a, |m| m.state())).collect();
    laptop.lan.with(ADDRESSES[2], |m| m.fault.fail_at = Some(3));
    let report = laptop.apply(&moved(&home));
    assert!(report.rolled_back());
    laptop.lan.unlocked();
    for (node, before) in report.nodes.iter().zip(&before) {
        assert!(matches!(node.outcome, Outcome::RolledBack { .. }), "{report:?}");
        laptop.lan.with(&node.address.to_string(), |m| {
            assert!(m.state() == *before && m.open.is_none() && m.lock.is_none());
        });
    }
    let Outcome::RolledBack { reason, error: None, .. } = &report.nodes[0].outcome else {
        panic!("{report:?}")
    };
    assert_eq!(reason, "node3 failed, and only all nodes together can be changed");
    // A node that cannot even begin: nothing is changed anywhere.
    laptop.lan.with(ADDRESSES[2], |m| m.fault.fail_at = None);
    fn full(request: &Request) -> Option<Trick> {
        matches!(request, Request::Begin(_)).then_some(Trick::HangUp)
    }
    laptop.lan.with(ADDRESSES[2], |m| m.fault.evil = Some(Evil(full)));
    let report = laptop.apply(&moved(&home));
    assert!(matches!(report.nodes[0].outcome, Outcome::NotStarted), "{report:?}");
    assert!(matches!(report.nodes[2].outcome, Outcome::Failed(_)), "{report:?}");
    laptop.lan.with(ADDRESSES[2], |m| m.fault.evil = None);
    let ear = Ear::default();
    let engine = laptop.watched(&ear);
    let report = engine.apply(engine.prepare_apply(&moved(&home), Goal::Desired, &[]).unwrap()).unwrap();
    assert!(report.succeeded() && report.warnings.is_empty(), "{report:?}");
    let heard = ear.heard();
    let last_armed = heard.iter().rposition(|h| h.ends_with("Arming")).unwrap();
    assert!(heard.iter().position(|h| h.ends_with("Applying")).unwrap() > last_armed);
    let last_seen = heard.iter().rposition(|h| h.ends_with("Verifying")).unwrap();
    assert!(heard.iter().position(|h| h.ends_with("Confirming")).unwrap() > last_seen);
    assert!(laptop.plan(&moved(&home)).is_empty());
}

#[test]
fn a_change_that_cuts_the_tunnel_is_taken_back_and_one_that_never_worked_is_only_said() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    // node3's provider blocks the tunnel from the first day.
    laptop.lan.with(ADDRESSES[2], |m| assert!(m.walls.insert(ADDRESSES[0].parse().unwrap())));
    let report = laptop.apply(&home);
    assert!(report.succeeded());
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert!(report.warnings[0].starts_with("pods of node3 do not reach node1: is UDP 8472 open"));
    // The change closes the way between node1 and node2.
    struct Wall<'a>(&'a Lan);
    impl Observer for Wall<'_> {
        fn event(&self, node: &str, event: Event<'_>) {
            if node == "node2" && matches!(event, Event::Verifying) {
                self.0.with(ADDRESSES[1], |m| assert!(m.walls.insert(ADDRESSES[0].parse().unwrap())));
            }
        }
    }
    let wall = Wall(&laptop.lan);
    let engine = laptop.watched(&wall);
    let report = engine.apply(engine.prepare_apply(&calm(&home), Goal::Desired, &[]).unwrap()).unwrap();
    let Outcome::RolledBack { reason, error: Some(error), .. } = &report.nodes[1].outcome else {
        panic!("{report:?}")
    };
    assert_eq!(reason, "pods of node2 no longer reached node1");
    assert!(matches!(&**error, NodeError::CutOff(peers) if *peers == ["node1"]));
    assert!(matches!(report.nodes[0].outcome, Outcome::Changed(_)));
}

#[test]
fn at_most_so_many_nodes_are_out_of_service() {
    let mut laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    let mut larger = home.clone();
    larger.network.vxlan.mtu = homelab_model::Mtu::Bytes(1400);
    larger.network.vxlan.device = "other.1".into();
    assert_eq!(laptop.plan(&larger).impact(), Impact::Disruptive);
    laptop.options.max_unavailable = Some(Batch::Nodes(1));
    laptop.lan.with(ADDRESSES[2], |m| m.fault.down = true);
    let engine = laptop.engine();
    let prepared = engine.prepare_apply(&larger, Goal::Desired, &[]).unwrap();
    let error = engine.apply(prepared).unwrap_err();
    assert!(
        matches!(&error, ApplyError::TooManyUnavailable { unavailable, allowed: 1 } if *unavailable == ["node3"]),
        "{error}"
    );
    laptop.lan.with(ADDRESSES[2], |m| m.fault.down = false);
    // One at a time, though a batch could hold all.
    struct Most(Mutex<(usize, usize)>);
    impl Observer for Most {
        fn event(&self, _: &str, event: Event<'_>) {
            let mut count = self.0.lock().unwrap();
            match event {
                Event::Arming => count.0 += 1,
                Event::Confirming => count.0 -= 1,
                _ => {}
            }
            count.1 = count.1.max(count.0);
        }
    }
    let most = Most(Mutex::default());
    let engine = laptop.watched(&most);
    let report = engine.apply(engine.prepare_apply(&larger, Goal::Desired, &[]).unwrap()).unwrap();
    assert!(report.succeeded(), "{report:?}");
    assert_eq!(most.0.lock().unwrap().1, 1);
}

#[test]
fn nodes_that_can_only_be_changed_together_must_all_be_allowed_to_be_out_of_service() {
    let mut laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    laptop.options.max_unavailable = Some(Batch::Percent(67));
    let engine = laptop.engine();
    let error = engine.apply(engine.prepare_apply(&moved(&home), Goal::Desired, &[]).unwrap()).unwrap_err();
    let ApplyError::OnlyTogether { nodes, allowed: 2 } = &error else { panic!("{error}") };
    assert_eq!(*nodes, ["node1", "node2", "node3"]);
    assert!(!laptop.plan(&moved(&home)).is_empty());
    laptop.options.max_unavailable = Some(Batch::Percent(100));
    assert!(laptop.apply(&moved(&home)).succeeded());
}

#[test]
fn a_node_that_refuses_to_run_what_it_armed_is_disarmed() {
    fn refuses(request: &Request) -> Option<Trick> {
        let failure = Failure {
            fault: Fault::NotLocked,
            object: String::new(),
            message: "this session does not hold the lock any more".to_owned(),
            undone: true,
            left: Vec::new(),
        };
        matches!(request, Request::Run).then(|| Trick::Say(vec![Response::Failed(failure)]))
    }
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with(ADDRESSES[0], |m| m.fault.evil = Some(Evil(refuses)));
    let report = laptop.apply(&cluster(&THREE));
    let Outcome::RolledBack { error: Some(error), left, .. } = &report.nodes[0].outcome else {
        panic!("{report:?}")
    };
    assert!(
        left.is_empty() && error.to_string() == "this session does not hold the lock any more",
        "{error}"
    );
    laptop.lan.with(ADDRESSES[0], |m| assert!(m.is_bare()));
}

#[test]
fn a_confirmation_that_was_written_down_before_something_failed_stands() {
    fn fails_late(request: &Request) -> Option<Trick> {
        let failure = Failure {
            fault: Fault::Error,
            object: String::new(),
            message: "the disk is full".to_owned(),
            undone: false,
            left: Vec::new(),
        };
        matches!(request, Request::Confirm { .. }).then(|| Trick::Lie(Response::Failed(failure)))
    }
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    for address in ADDRESSES {
        laptop.lan.with(address, |m| m.fault.evil = Some(Evil(fails_late)));
    }
    let report = laptop.apply(&home);
    assert!(report.succeeded(), "{report:?}");
    assert!(laptop.plan(&home).is_empty());
    let report = laptop.destroy(&home);
    assert!(report.succeeded(), "{report:?}");
    laptop.lan.with(ADDRESSES[2], |m| assert!(m.is_bare()));
}
