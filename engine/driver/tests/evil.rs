//! Nodes that answer nonsense, too much, too slowly or not at all cannot crash, hang or fill the laptop, and the others
//! are served.
#![cfg(test)]

mod fake;

use std::time::{Duration, Instant};

use fake::{Evil, Lan, Laptop, THREE, Trick, cluster};
use homelab_driver::{Goal, NodeError, Outcome};
use homelab_model::{Holder, NodeSpec, Observed, OpenTransaction, Phase, Reverted};
use homelab_protocol::{Request, Response, Secret};

const FIRST: &str = "192.168.50.11";
const SECOND: &str = "192.168.50.12";

fn bytes() -> Option<Trick> {
    Some(Trick::Bytes(b"Segmentation fault (core dumped)\n\x1b]0;pwned\x07".to_vec()))
}

fn garbage_run(r: &Request) -> Option<Trick> {
    if matches!(r, Request::Run) { bytes() } else { None }
}
fn garbage_begin(r: &Request) -> Option<Trick> {
    if matches!(r, Request::Begin(_)) { bytes() } else { None }
}
fn garbage_confirm(r: &Request) -> Option<Trick> {
    if matches!(r, Request::Confirm { .. }) { bytes() } else { None }
}
fn garbage_always(r: &Request) -> Option<Trick> {
    if matches!(r, Request::Hello(_)) { None } else { bytes() }
}
fn wrong_answers(r: &Request) -> Option<Trick> {
    let wrong = Some(Trick::Say(vec![Response::Reached { reached: vec![true; 100_000] }]));
    if matches!(r, Request::Hello(_) | Request::Observe { .. } | Request::Lock { .. }) { None } else { wrong }
}
fn progress_for_ever(r: &Request) -> Option<Trick> {
    matches!(r, Request::Run).then_some(Trick::Forever(Response::Progress { done: 1 }))
}
fn progress_beyond(r: &Request) -> Option<Trick> {
    matches!(r, Request::Run).then(|| Trick::Say(vec![Response::Progress { done: usize::MAX }]))
}
fn progress_without_begin(r: &Request) -> Option<Trick> {
    matches!(r, Request::Begin(_)).then(|| Trick::Say(vec![Response::Progress { done: 1 }]))
}
fn busy_for_ever(r: &Request) -> Option<Trick> {
    matches!(r, Request::Lock { .. }).then(|| Trick::Say(vec![Response::Busy(Holder::default())]))
}
fn drip_begin(r: &Request) -> Option<Trick> {
    matches!(r, Request::Begin(_)).then_some(Trick::Drip)
}
fn drip_lock(r: &Request) -> Option<Trick> {
    matches!(r, Request::Lock { .. }).then_some(Trick::Drip)
}
fn drip_observe(r: &Request) -> Option<Trick> {
    matches!(r, Request::Observe { .. }).then_some(Trick::Drip)
}
fn silent_confirm(r: &Request) -> Option<Trick> {
    matches!(r, Request::Confirm { .. }).then_some(Trick::Silence)
}
fn silent_probe(r: &Request) -> Option<Trick> {
    matches!(r, Request::Probe { .. }).then_some(Trick::Silence)
}
fn huge_observation(r: &Request) -> Option<Trick> {
    // 64 MiB and a bit: more than a message may have.
    matches!(r, Request::Observe { .. }).then(|| Trick::Bytes(vec![4, 0, 0, 1, b'{']))
}
fn many_links(r: &Request) -> Option<Trick> {
    matches!(r, Request::Observe { .. }).then(|| {
        let mut observed = Observed::default();
        observed.facts.links = vec![homelab_model::LinkFact::default(); 100_000];
        Trick::Say(vec![Response::Observed(Box::new(observed))])
    })
}
fn foreign_history(r: &Request) -> Option<Trick> {
    matches!(r, Request::Observe { .. }).then(|| {
        let by = Holder { who: "\u{1b}[2J".repeat(1000), ..Holder::default() };
        let mut observed = Observed::default();
        observed.history.open = Some(OpenTransaction {
            id: "'; rm -rf /".into(),
            by: by.clone(),
            phase: Phase::RollingBack,
            remaining: u64::MAX,
            changes: usize::MAX,
        });
        let left = vec![String::new(); 1000];
        observed.history.reverted =
            Some(Reverted { id: "x".into(), by, at: u64::MAX, reason: String::new(), left });
        Trick::Say(vec![Response::Observed(Box::new(observed))])
    })
}
fn another_spec(r: &Request) -> Option<Trick> {
    matches!(r, Request::Observe { .. }).then(|| {
        let text = r#"{"formatVersion":1,"cluster":"x","node":"node3","address":"192.168.50.13","interface":"../../etc",
            "podCidrs":["10.244.0.0/24"],"clusterCidrs":[],"serviceCidrs":[],"vtep":{"device":"/","vni":0,"port":0,"mtu":0,
            "mac":"zz","checksumOffload":true},"podMtu":0,"bridge":"","cniBinDirs":["../.."],"cniConfDirs":[],
            "binarySha256":"","peers":[]}"#;
        let spec: NodeSpec = serde_json::from_str(text).unwrap();
        let observed = Observed { spec: Some(spec), ..Observed::default() };
        Trick::Say(vec![Response::Observed(Box::new(observed))])
    })
}

/// The trick of one node of three: the laptop comes to an end, in time, and the others are as well as can be.
fn survives(name: &str, evil: fn(&Request) -> Option<Trick>, seconds: u64) -> Outcome {
    let mut laptop = Laptop::new(Lan::three());
    laptop.options.confirm_timeout = Duration::from_secs(1);
    laptop.options.answer = Duration::from_millis(300);
    laptop.lan.with(SECOND, |m| m.fault.evil = Some(Evil(evil)));
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let start = Instant::now();
    let prepared = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
    let result = engine.apply(prepared);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(seconds), "{name}: {took:?}");
    let mut report = match result {
        Ok(report) => report,
        Err(homelab_driver::ApplyError::Busy { node, .. }) => {
            assert_eq!(node, "node2");
            return Outcome::NotStarted;
        }
        Err(error) => panic!("{name}: {error}"),
    };
    assert!(matches!(report.nodes[0].outcome, Outcome::Changed(_)), "{name}: {report:?}");
    // It was in the same batch as the evil one.
    assert!(matches!(report.nodes[2].outcome, Outcome::Changed(_)), "{name}: {report:?}");
    report.nodes.remove(1).outcome
}

#[test]
fn whatever_a_node_says_the_laptop_survives_it() {
    type Check = fn(&Outcome) -> bool;
    fn seen(o: &Outcome) -> bool {
        matches!(o, Outcome::Unplanned(_))
    }
    fn undone(o: &Outcome) -> bool {
        matches!(o, Outcome::RolledBack { left, .. } if left.is_empty())
    }
    fn unsure_or_undone(o: &Outcome) -> bool {
        undone(o) || matches!(o, Outcome::Unsure(_))
    }
    fn failed(o: &Outcome) -> bool {
        matches!(o, Outcome::Failed(_))
    }
    type Answer = fn(&Request) -> Option<Trick>;
    let list: [(&str, Answer, Check); 18] = [
        ("garbage for run", garbage_run, undone),
        ("garbage for begin", garbage_begin, failed),
        ("garbage for confirm", garbage_confirm, unsure_or_undone),
        ("garbage always", garbage_always, seen),
        ("wrong answers", wrong_answers, |o| failed(o) || unsure_or_undone(o)),
        ("progress for ever", progress_for_ever, undone),
        ("progress beyond the end", progress_beyond, undone),
        ("progress without a begin", progress_without_begin, failed),
        ("busy for ever", busy_for_ever, |o| matches!(o, Outcome::NotStarted)),
        ("a dripped answer to begin", drip_begin, failed),
        ("a dripped answer to lock", drip_lock, seen),
        ("a dripped observation", drip_observe, seen),
        ("no answer to confirm", silent_confirm, unsure_or_undone),
        ("no answer to a probe", silent_probe, |o| matches!(o, Outcome::Changed(_))),
        ("an observation without end", huge_observation, seen),
        ("very many links", many_links, seen),
        ("a foreign history", foreign_history, seen),
        ("another node's record", another_spec, seen),
    ];
    std::thread::scope(|scope| {
        for (name, evil, check) in list {
            scope.spawn(move || {
                let outcome = survives(name, evil, 25);
                assert!(check(&outcome), "{name}: {outcome:?}");
            });
        }
    });
}

#[test]
fn a_key_that_is_not_what_it_claims_to_be_is_refused() {
    fn forged(r: &Request) -> Option<Trick> {
        let secret = Secret { summary: "generation 1: 000000000000 signs".into(), text: "\u{0}".repeat(100) };
        matches!(r, Request::Secret { .. }).then_some(Trick::Say(vec![Response::Secret(secret)]))
    }
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let only = vec!["node1".to_owned()];
    let engine = laptop.engine();
    assert!(engine.apply(engine.prepare_apply(&home, Goal::Desired, &only).unwrap()).unwrap().succeeded());
    laptop.lan.with(FIRST, |m| m.fault.evil = Some(Evil(forged)));
    let error = engine.apply(engine.prepare_apply(&home, Goal::Desired, &[]).unwrap()).unwrap_err();
    let homelab_driver::ApplyError::Keys { node, error } = error else { panic!("{error}") };
    assert!(node == "node1" && matches!(*error, NodeError::WrongKey));
}

#[test]
fn a_ring_that_was_changed_too_often_is_no_ring() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    laptop.lan.with(SECOND, |m| {
        let key = homelab_model::Key::File(homelab_model::ours::KEYS.to_owned());
        let Some(homelab_model::Spec::File(file)) = m.objects.get_mut(&key).map(|o| &mut o.spec) else {
            panic!()
        };
        file.content = homelab_model::Content::Secret(format!("generation {}: 000000000000 signs", u64::MAX));
    });
    // The others' ring wins.
    assert!(laptop.apply(&home).succeeded());
    assert!(laptop.plan(&home).is_empty());
}
