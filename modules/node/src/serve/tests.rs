//! Sessions against a fake machine that can be told to fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use homelab_model::{
    Address, Change, Facts, History, Key, Link, LinkKind, Module, NodeObject, Object, Observed, Scope, Spec,
    Unit, diff,
};
use homelab_protocol::{Hello, PROTOCOL, Request, Response, read_frame, write_frame};

use super::session;
use crate::host::{ApplyFailure, Host};

#[derive(Default)]
struct Fake {
    objects: BTreeMap<Key, NodeObject>,
    /// Creating this object fails.
    broken: Option<Key>,
    /// Deleting it fails too.
    stuck: bool,
    locked: Arc<AtomicUsize>,
    units_changed_under_lock: bool,
    others_changed_without_lock: bool,
    said_farewell: bool,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Host for Fake {
    fn observe(&mut self, _: &Scope) -> Result<Observed, String> {
        let objects = self.objects.values().cloned().collect();
        Ok(Observed { facts: Facts::default(), objects, spec: None, history: History::default() })
    }

    fn apply(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyFailure> {
        let held = self.locked.load(Ordering::SeqCst) > 0;
        for (done, change) in changes.iter().enumerate() {
            match change.key() {
                Key::Unit(_) => self.units_changed_under_lock |= held,
                _ => self.others_changed_without_lock |= !held,
            }
            let fails = match change {
                Change::Delete { .. } => self.stuck,
                _ => self.broken.as_ref() == Some(&change.key()),
            };
            if fails {
                return Err(ApplyFailure { object: change.key().to_string(), message: "it broke".into() });
            }
            self.objects.remove(&change.key());
            if let Some(after) = change.after() {
                self.objects.insert(after.key(), after.clone());
            }
            progress(done + 1);
        }
        Ok(())
    }

    fn lock_apply(&mut self) -> Result<Box<dyn Send>, String> {
        Ok(Box::new(()))
    }

    fn lock(&mut self) -> Result<Box<dyn Send>, String> {
        self.locked.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Guard(self.locked.clone())))
    }

    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn farewell(&mut self) -> Result<(), String> {
        self.said_farewell = true;
        Ok(())
    }

    fn binary_sha256(&self) -> Result<String, String> {
        Ok("ab".repeat(32))
    }
}

fn objects(mtu: u32) -> Vec<NodeObject> {
    let object = |module, spec| NodeObject { module, spec };
    vec![
        object(
            Module::Cni,
            Spec::Link(Link {
                name: "homelab0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu,
                up: true,
                alias: "homelab".into(),
                kind: LinkKind::Bridge { stp: false },
            }),
        ),
        object(
            Module::Cni,
            Spec::Address(Address {
                link: "homelab0".into(),
                address: "10.244.0.1/24".parse().expect("net"),
            }),
        ),
        object(
            Module::Agent,
            Spec::Unit(Unit {
                name: "homelab-node.service".into(),
                enabled: true,
                state: "active".into(),
                reload_needed: false,
                running: "ab".repeat(32),
                config: String::new(),
            }),
        ),
    ]
}

fn hello() -> Request {
    Request::Hello(Hello { protocol: PROTOCOL, version: "0".into(), sha256: String::new() })
}

fn apply(changes: Vec<Change<NodeObject>>, farewell: bool) -> Request {
    Request::Apply { changes, scope: Scope::default(), farewell, by: "me@here".into() }
}

/// Runs a whole session and gives the answers.
fn talk(fake: &mut Fake, requests: &[Request]) -> Vec<Response> {
    let mut input = Vec::new();
    for request in requests {
        write_frame(&mut input, request).expect("frame");
    }
    answers(fake, &input)
}

fn answers(fake: &mut Fake, input: &[u8]) -> Vec<Response> {
    let mut output = Vec::new();
    session(fake, &mut &input[..], &mut output).expect("session");
    let mut reader = &output[..];
    std::iter::from_fn(|| read_frame(&mut reader).ok()).collect()
}

#[test]
fn applies_and_looks_again() {
    let mut fake = Fake::default();
    let changes = diff(&[], &objects(1450));
    let responses = talk(&mut fake, &[hello(), apply(changes, false), Request::Bye]);
    assert!(matches!(&responses[0], Response::Hello(h) if h.protocol == PROTOCOL && h.sha256.len() == 64));
    let done: Vec<usize> = responses
        .iter()
        .filter_map(|r| if let Response::Progress { done } = r { Some(*done) } else { None })
        .collect();
    assert_eq!(done, [1, 2, 3]);
    let Some(Response::Applied(applied)) = responses.last() else { panic!("{responses:?}") };
    assert_eq!(applied.observed.objects, objects(1450));
    assert!(!fake.said_farewell);
}

#[test]
fn the_agent_is_locked_out_except_while_its_unit_changes() {
    let mut fake = Fake::default();
    talk(&mut fake, &[hello(), apply(diff(&[], &objects(1450)), false)]);
    talk(&mut fake, &[hello(), apply(diff(&objects(1450), &[]), true)]);
    assert!(!fake.units_changed_under_lock);
    assert!(!fake.others_changed_without_lock);
    assert!(fake.said_farewell);
    assert_eq!(fake.locked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failure_in_the_middle_is_undone() {
    let mut fake = Fake::default();
    talk(&mut fake, &[hello(), apply(diff(&[], &objects(1450)[..1]), false)]);
    let before = fake.objects.clone();
    let all = objects(1400);
    fake.broken = Some(all[1].key());
    let held: Vec<NodeObject> = fake.objects.values().cloned().collect();
    let responses = talk(&mut fake, &[hello(), apply(diff(&held, &all), false)]);
    let Some(Response::Failed(failure)) = responses.last() else { panic!("{responses:?}") };
    assert_eq!(failure.object, "address 10.244.0.1/24 dev homelab0");
    assert_eq!(failure.message, "it broke");
    assert!(failure.undone);
    assert_eq!(fake.objects, before);
}

#[test]
fn what_cannot_be_undone_is_named() {
    let all = objects(1450);
    let mut fake = Fake { broken: Some(all[1].key()), stuck: true, ..Fake::default() };
    let responses = talk(&mut fake, &[hello(), apply(diff(&[], &all), false)]);
    let Some(Response::Failed(failure)) = responses.last() else { panic!("{responses:?}") };
    assert!(!failure.undone);
    assert_eq!(failure.left, ["link homelab0: it broke"]);
}

#[test]
fn the_connection_may_end_while_changes_are_made() {
    struct Gone;
    impl std::io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut fake = Fake::default();
    let done = super::apply(&mut fake, &mut Gone, &diff(&[], &objects(1450)), &Scope::default(), false);
    assert!(matches!(done, Response::Applied(_)), "{done:?}");
    assert_eq!(fake.objects.len(), 3);
}

#[test]
fn no_work_before_the_greeting() {
    let mut fake = Fake::default();
    let responses = talk(&mut fake, &[apply(diff(&[], &objects(1450)), false)]);
    assert!(matches!(&responses[0], Response::Failed(f) if f.message.contains("greeting")), "{responses:?}");
    assert!(fake.objects.is_empty());
}

#[test]
fn a_request_of_a_newer_laptop_gets_an_answer_and_the_session_goes_on() {
    let mut input = Vec::new();
    write_frame(&mut input, &hello()).expect("frame");
    write_frame(&mut input, &serde_json::json!({"request": "teleport"})).expect("frame");
    write_frame(&mut input, &Request::Observe { scope: Scope::default() }).expect("frame");
    let responses = answers(&mut Fake::default(), &input);
    assert!(
        matches!(&responses[1], Response::Failed(f) if f.message.contains("does not know")),
        "{responses:?}"
    );
    assert!(matches!(&responses[2], Response::Observed(_)), "{responses:?}");
}
