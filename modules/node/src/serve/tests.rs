//! Sessions against the fake machine.

use homelab_model::service::Protocol;
use homelab_model::{
    Change, Content, File, Key, Module, NodeObject, NodeSpec, Object, Spec, TraceOutcome, TracePacket, ours,
};
use homelab_protocol::{Fault, PROTOCOL, Request, Response, Transaction};

use crate::fake::World;
use crate::fake::laptop::{Known, Step, apply, hello, holder, lock, send, talk, transaction};
use crate::fake::objects::spec;

fn observe<'a>() -> Step<'a> {
    send(Request::Observe { scope: Default::default() })
}

fn begun(world: &World) -> Transaction {
    transaction(world, "0a", &homelab_desired::desired(&spec(1, 1, 1)))
}

fn run<'a>(transaction: &Transaction) -> Vec<Step<'a>> {
    vec![hello(), lock(), send(Request::Begin(Box::new(transaction.clone()))), send(Request::Run)]
}

fn failure(response: Option<&Response>) -> &homelab_protocol::Failure {
    match response {
        Some(Response::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn applies_and_looks_again() {
    let world = World::new();
    let transaction = begun(&world);
    let heard = talk(&world, run(&transaction));
    assert!(matches!(&heard[0], Response::Hello(h) if h.protocol == PROTOCOL && h.sha256.len() == 64));
    assert_eq!(heard[1..3], [Response::Locked { waited: false }, Response::Armed]);
    let done: Vec<usize> = heard
        .iter()
        .filter_map(|r| if let Response::Progress { done } = r { Some(*done) } else { None })
        .collect();
    assert_eq!(done, (1..=transaction.changes.len()).collect::<Vec<_>>());
    let Some(Response::Applied(applied)) = heard.last() else { panic!("{heard:?}") };
    assert_eq!(applied.observed.objects, world.observed());
    assert_eq!(applied.observed.history.open.as_ref().map(|o| o.id.as_str()), Some("0a"));
    assert_eq!(applied.observed.history.holder, None);
    assert!(!world.0.borrow().lock_misused);
}

#[test]
fn a_failure_in_the_middle_is_undone() {
    let world = World::new();
    assert_eq!(apply(&world, &begun(&world)), Known::Confirmed);
    let before = world.observed();
    let next = transaction(&world, "0b", &homelab_desired::desired(&spec(1, 2, 2)));
    let new = |key: &Key| matches!(key, Key::Route(..)) && before.iter().all(|o| o.key() != *key);
    let route = next.changes.iter().map(|c| c.key()).find(new).expect("there is a new node");
    world.0.borrow_mut().broken = Some((route.clone(), "it broke".into()));
    let broken = talk(&world, run(&next));
    let failure = failure(broken.last());
    assert_eq!((failure.object.as_str(), failure.message.as_str()), (&*route.to_string(), "it broke"));
    assert!(failure.undone, "{failure:?}");
    assert_eq!(world.observed(), before);
}

#[test]
fn what_cannot_be_undone_is_named() {
    let world = World::new();
    let transaction = begun(&world);
    {
        let mut state = world.0.borrow_mut();
        state.broken =
            Some((Key::Symlink(format!("{}/{}", ours::CNI_BIN_DIR, ours::CNI_PLUGIN)), "no".into()));
    }
    let heard = talk(&world, run(&transaction));
    assert!(failure(heard.last()).undone);
    // Now what was made cannot be taken away.
    let made = transaction.changes[0].key();
    let later = transaction.changes.last().expect("changes").key();
    assert_ne!(made, later);
    let mut state = world.0.borrow_mut();
    state.broken = None;
    drop(state);
    talk(&world, run(&transaction));
    world.0.borrow_mut().broken = Some((made.clone(), "it is stuck".into()));
    world.0.borrow_mut().stuck = true;
    let request = Request::Rollback { id: "0a".into(), reason: "why not".into() };
    let heard = talk(&world, vec![hello(), send(request.clone())]);
    let left = vec![format!("{made}: it is stuck")];
    assert_eq!(heard.last(), Some(&Response::RolledBack { left: left.clone() }));
    // Asked again it says the same, and so does the next look.
    assert_eq!(
        talk(&world, vec![hello(), send(request)]).last(),
        Some(&Response::RolledBack { left: left.clone() })
    );
    let heard = talk(&world, vec![hello(), observe()]);
    let Some(Response::Observed(seen)) = heard.last() else { panic!("{heard:?}") };
    let reverted = seen.history.reverted.as_ref().expect("it was taken back");
    assert_eq!((reverted.left.as_slice(), reverted.reason.as_str()), (left.as_slice(), "why not"));
}

#[test]
fn no_work_before_the_greeting_and_none_without_the_lock() {
    let world = World::new();
    let begin = || send(Request::Begin(Box::new(begun(&world))));
    let heard = talk(&world, vec![begin(), hello(), begin(), send(Request::Run), lock(), send(Request::Run)]);
    assert!(failure(heard.first()).message.contains("greeting"));
    assert_eq!(failure(heard.get(2)).fault, Fault::NotLocked);
    assert_eq!(failure(heard.get(3)).fault, Fault::NotLocked);
    assert_eq!(failure(heard.get(5)).fault, Fault::NoTransaction);
    assert!(world.observed().is_empty());
}

#[test]
fn one_session_has_the_lock() {
    let world = World::new();
    let inner = world.clone();
    let second = move |_: &[Response]| {
        let heard = talk(&inner, vec![hello(), lock(), observe(), send(Request::Unlock), lock()]);
        assert_eq!(heard[1], Response::Busy(holder("apply")));
        let Response::Observed(seen) = &heard[2] else { panic!("{heard:?}") };
        assert_eq!(seen.history.holder, Some(holder("apply")));
        assert_eq!(heard[3], Response::Unlocked { holder: Some(holder("apply")) });
        assert_eq!(heard[4], Response::Locked { waited: false });
    };
    let heard = talk(&world, vec![hello(), lock(), observe(), Step::Then(Box::new(second))]);
    let Response::Observed(seen) = &heard[2] else { panic!("{heard:?}") };
    assert_eq!(seen.history.holder, None, "one's own is not somebody else's");
    assert_eq!(talk(&world, vec![hello(), send(Request::Unlock)])[1], Response::Unlocked { holder: None });
}

#[test]
fn a_plan_for_another_state_is_refused_by_the_names_of_what_differs() {
    let world = World::new();
    let transaction = begun(&world);
    let path = ours::SYSCTL_FILE.to_owned();
    let content = Content::Text("mine".into());
    let file = File { path: path.clone(), mode: 0o644, owner: "0:0".into(), content };
    let object = NodeObject { module: Module::Vtep, spec: Spec::File(file) };
    world.0.borrow_mut().disk.files.insert(object.key(), object.clone());
    let heard = talk(&world, run(&transaction));
    let stale = failure(heard.get(2));
    assert_eq!((stale.fault, stale.left.as_slice()), (Fault::Stale, &[format!("file {path}")][..]));
    assert_eq!(world.observed(), [object]);
    assert!(world.0.borrow().volatile.timer.is_none());
}

#[test]
fn what_could_not_be_taken_back_is_not_begun() {
    let world = World::new();
    let transaction = begun(&world);
    world.0.borrow_mut().disk.full = true;
    let heard = talk(&world, run(&transaction));
    let refused = failure(heard.get(2));
    assert_eq!(refused.fault, Fault::Irreversible);
    assert!(refused.message.contains("no space left"), "{}", refused.message);
    assert!(world.observed().is_empty());
    let state = world.0.borrow();
    assert!(state.volatile.timer.is_none() && !state.disk.boot_unit && !state.disk.reserve);
}

#[test]
fn a_package_comes_before_the_transaction_and_stays_when_that_is_taken_back() {
    let world = World::new();
    let install = |package: &str| send(Request::Install { package: package.into() });
    let heard = talk(&world, vec![hello(), install("frr"), lock(), install("missing"), install("frr")]);
    assert_eq!(failure(heard.get(1)).fault, Fault::NotLocked);
    assert!(failure(heard.get(3)).message.contains("Unable to locate package"));
    assert_eq!(heard[4], Response::Installed);

    let told = NodeSpec { packages: vec!["frr".into()], ..spec(1, 1, 1) };
    let mut transaction = transaction(&world, "0a", &homelab_desired::desired(&told));
    // The plan was made before it came.
    let package = world.observed().into_iter().find(|o| matches!(o.spec, Spec::Package(_))).expect("frr");
    transaction.changes.insert(0, Change::Create { after: package.clone() });
    let back = send(Request::Rollback { id: "0a".into(), reason: "of me".into() });
    let mut steps = run(&transaction);
    steps.push(back);
    let heard = talk(&world, steps);
    assert!(matches!(heard.last(), Some(Response::RolledBack { left }) if left.is_empty()), "{heard:?}");
    assert_eq!(world.observed(), [package]);

    assert_eq!(apply(&world, &transaction), Known::Confirmed);
    let gone = self::transaction(&world, "0b", &homelab_desired::desired(&spec(1, 1, 1)));
    assert_eq!(apply(&world, &gone), Known::Confirmed);
    assert!(world.0.borrow().disk.packages.is_empty() && !world.0.borrow().lock_misused);
}

#[test]
fn secrets_and_probes() {
    let world = World::new();
    let ask = |path: &str| send(Request::Secret { path: path.into() });
    let targets = vec!["10.0.0.1".parse().expect("v4"), "fd00::1".parse().expect("v6")];
    let heard =
        talk(&world, vec![hello(), ask("/etc/shadow"), ask(ours::KEYS), send(Request::Probe { targets })]);
    assert!(failure(heard.get(1)).message.contains("/etc/shadow"));
    assert!(matches!(&heard[2], Response::Secret(s) if s.text == "text"));
    assert_eq!(heard[3], Response::Reached { reached: vec![true, false] });
}

#[test]
fn services_and_traces_say_what_the_kernel_holds() {
    let world = World::new();
    let pod = "10.244.1.9".parse().expect("an address");
    let to = |destination: &str| {
        let destination = destination.parse().expect("an address");
        send(Request::Trace(TracePacket { source: pod, destination, protocol: Protocol::Tcp, port: 80 }))
    };
    let heard = talk(&world, vec![hello(), send(Request::Services), to("10.96.0.1")]);
    assert_eq!(heard[1], Response::Services { services: Vec::new() });
    assert!(failure(heard.get(2)).message.contains("run homelab apply"));
    let mut told = spec(1, 1, 1);
    told.cluster_cidrs = vec!["10.244.0.0/16".parse().expect("a range")];
    told.services = vec![
        serde_json::from_value(serde_json::json!({
            "namespace": "default", "name": "web", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}],
            "endpoints": [{"address": "10.244.2.5", "ports": {"": 8080}}],
        }))
        .expect("a service"),
    ];
    let transaction = transaction(&world, "0a", &homelab_desired::desired(&told));
    assert_eq!(apply(&world, &transaction), Known::Confirmed);
    let look = || talk(&world, vec![hello(), send(Request::Services), to("10.96.0.1"), to("fd00::1")]);
    let heard = look();
    let Response::Services { services } = &heard[1] else { panic!("{heard:?}") };
    assert_eq!((services.len(), services[0].name.as_str()), (1, "default/web"));
    assert!(services[0].agrees(), "{services:?}");
    let Response::Traced(traced) = &heard[2] else { panic!("{heard:?}") };
    assert_eq!(traced.service.as_deref(), Some("default/web"));
    assert!(matches!(&traced.outcome, TraceOutcome::Translated { endpoints } if endpoints.len() == 1));
    assert!(traced.warnings.is_empty(), "{traced:?}");
    assert!(failure(heard.get(3)).message.contains("different families"));
    // What the kernel holds counts, not what it should.
    {
        let mut state = world.0.borrow_mut();
        state.volatile.agent = None;
        let ours = |key: &Key| matches!(key, Key::Service(_) | Key::NftChain(..));
        state.volatile.kernel.retain(|key, _| !ours(key));
    }
    let heard = look();
    let Response::Services { services } = &heard[1] else { panic!("{heard:?}") };
    assert!(!services[0].missing.is_empty() && services[0].extra.is_empty(), "{services:?}");
    let Response::Traced(traced) = &heard[2] else { panic!("{heard:?}") };
    assert!(!matches!(traced.outcome, TraceOutcome::Translated { .. }), "{traced:?}");
    assert!(traced.warnings[0].contains("chain"), "{traced:?}");
}

#[test]
fn a_node_is_cordoned_once_its_agent_shows_it() {
    let world = World::new();
    let cordon = |on| send(Request::Cordon { on, by: holder("cordon") });
    let ask = |steps: Vec<Step<'_>>| {
        let heard = talk(&world, [hello()].into_iter().chain(steps).collect());
        heard.into_iter().skip(1).collect::<Vec<_>>()
    };
    // A machine that belongs to no cluster gets no file of ours.
    assert!(failure(ask(vec![cordon(true)]).first()).message.contains("run homelab apply"));
    assert!(matches!(&ask(vec![cordon(false)])[..], [Response::Cordoned { changed: false, .. }]));
    assert_eq!(apply(&world, &begun(&world)), Known::Confirmed);
    // An agent that announces nothing has nothing to show.
    let heard = ask(vec![cordon(true), cordon(true), send(Request::LoadBalancers), observe(), cordon(false)]);
    assert!(
        matches!(&heard[0], Response::Cordoned { changed: true, node } if node.cordoned == Some(holder("cordon")))
    );
    assert!(matches!(&heard[1], Response::Cordoned { changed: false, .. }));
    assert!(matches!(&heard[2], Response::LoadBalancers(n) if n.cordoned.is_some() && n.agent && !n.told));
    assert!(matches!(&heard[3], Response::Observed(o) if o.facts.cordoned == Some(holder("cordon"))));
    assert!(matches!(&heard[4], Response::Cordoned { changed: true, node } if node.cordoned.is_none()));
    // One that announces shows it before the answer comes.
    world.0.borrow_mut().volatile.speaker = Some(false);
    let heard = ask(vec![cordon(true)]);
    let Response::Cordoned { changed: true, node } = &heard[0] else { panic!("{heard:?}") };
    assert_eq!((node.shows_cordoned(), node.cordoned.is_some()), (Some(true), true));
    // The file is gone already, by hand, and the agent has not heard of it.
    world.0.borrow_mut().disk.cordoned = None;
    let heard = ask(vec![cordon(false)]);
    let Response::Cordoned { changed: false, node } = &heard[0] else { panic!("{heard:?}") };
    assert_eq!(node.shows_cordoned(), Some(false));
    // An agent that is stuck: the file stays, and the answer says so.
    world.0.borrow_mut().volatile.agent_locked = true;
    let heard = ask(vec![cordon(true)]);
    assert!(failure(heard.first()).message.contains("from its agent's next start"), "{heard:?}");
    assert!(world.0.borrow().disk.cordoned.is_some());
    // None runs: nobody is waited for.
    world.0.borrow_mut().volatile.agent_locked = false;
    world.0.borrow_mut().volatile.agent = None;
    let heard = ask(vec![cordon(false)]);
    assert!(matches!(&heard[0], Response::Cordoned { changed: true, node } if !node.agent), "{heard:?}");
    world.0.borrow_mut().disk.full = true;
    assert!(failure(ask(vec![cordon(true)]).first()).message.contains("no space left"));
}

#[test]
fn secrets_do_not_get_into_journals() {
    let world = World::new();
    let ring = homelab_model::KeyRing::first([0x5a; 32]);
    let (object, secret) = crate::fake::objects::keys(&ring);
    let mut transaction = transaction(&world, "0c", &[object]);
    transaction.secrets.extend([secret]);
    talk(&world, run(&transaction));
    let hidden = "5a".repeat(32);
    let journal = String::from_utf8(world.0.borrow().disk.journal.clone().expect("open")).expect("text");
    assert!(journal.contains(&ring.summary()) && !journal.contains(&hidden), "{journal}");
    talk(&world, vec![hello(), send(Request::Confirm { id: "0c".into() })]);
    let record = String::from_utf8(world.0.borrow().disk.confirmed.clone().expect("there")).expect("text");
    assert!(!record.contains(&hidden), "{record}");
}

#[test]
fn a_request_of_a_newer_laptop_gets_an_answer_and_the_session_goes_on() {
    let heard = talk(&World::new(), vec![hello(), Step::Garbled, observe()]);
    assert!(failure(heard.get(1)).message.contains("does not know"));
    assert!(matches!(&heard[2], Response::Observed(_)), "{heard:?}");
}
