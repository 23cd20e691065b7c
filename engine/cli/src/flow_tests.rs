//! Commands from their words to their exit code, with the nodes of the driver's tests.

mod balancers;
mod kubernetes;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use homelab_model::{Cluster, Holder, Spec};
use serde_json::Value;

use crate::args::Cli;
use crate::commands::{self, Manner, Session};
use crate::error::CliError;
use crate::fake::{Api, Lan, THREE, binaries, cluster, wait_until};
use crate::signals::Signals;
use crate::terminal::Terminal;

const FIRST: &str = "192.168.50.11";
const SECOND: &str = "192.168.50.12";
/// For what another thread does: long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A laptop with a cluster file.
struct Desk {
    lan: Lan,
    cluster: Cluster,
    directory: tempfile::TempDir,
    api: Api,
}

/// What came of a command.
#[derive(Debug)]
struct Answer {
    code: u8,
    out: String,
    error: String,
}

impl Answer {
    fn events(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn names(&self) -> Vec<String> {
        self.events().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect()
    }
}

impl Desk {
    fn new() -> Desk {
        let directory = tempfile::tempdir().unwrap();
        Desk { lan: Lan::three(), cluster: cluster(&THREE), directory, api: Api::new() }
    }

    /// A desk on which everything is applied.
    fn applied() -> Desk {
        let desk = Desk::new();
        assert_eq!(desk.run(&["apply", "--yes", "--allow-disruptive"]).code, 0);
        desk
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    fn run(&self, words: &[&str]) -> Answer {
        self.run_and(words, |_| ())
    }

    /// The same while something else happens.
    fn run_and(&self, words: &[&str], meanwhile: impl FnOnce(&Signals) + Send) -> Answer {
        let cli = Cli::try_parse_from(["homelab", "--quiet"].iter().chain(words)).unwrap();
        let paper = Paper::default();
        let terminal = Terminal::fake(&cli.global, Box::new(paper.clone()));
        let manner = Manner::of(&cli.command);
        let mut session = Session::fake(
            &cli.global,
            &manner,
            self.cluster.clone(),
            Box::new(self.lan.another_laptop()),
            binaries(self.directory.path(), "x86_64"),
        );
        if manner.kubernetes && self.cluster.kubernetes.is_some() {
            session.api = Some(Box::new(self.api.clone()));
        }
        let signals = session.signals.clone();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| meanwhile(&signals));
            commands::on_nodes(&cli, &terminal, &session)
        });
        let (code, error) = match result {
            Ok(code) => (code, String::new()),
            Err(error) => {
                commands::report_error(&cli, &terminal, &error);
                let text = match &error {
                    CliError::Message { text, hints, .. } => format!("{text}\n{}", hints.join("\n")),
                    other => format!("{other:?}"),
                };
                (error.code(), text)
            }
        };
        let out = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        Answer { code, out, error }
    }

    /// Somebody changes the first route of a node by hand, and the object's name.
    fn by_hand(&self, address: &str) -> String {
        self.lan.with(address, |machine| {
            let route = |o: &&mut homelab_model::NodeObject| matches!(o.spec, Spec::Route(_));
            let object = machine.objects.values_mut().find(route).unwrap();
            if let Spec::Route(route) = &mut object.spec {
                route.via = Some("10.244.77.77".parse().unwrap());
            }
            object.spec.key().to_string()
        })
    }
}

#[test]
fn events_go_from_the_plan_to_the_result() {
    let desk = Desk::new();
    let result = desk.path("result.json");
    let answer = desk.run(&["apply", "--yes", "--format", "json", "--json-into", &result]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let names = answer.names();
    assert_eq!((names[0].as_str(), names.last().unwrap().as_str()), ("plan", "result"));
    for event in ["locking", "arming", "applying", "verifying", "confirming", "done"] {
        let of = |e: &Value| e["event"] == event;
        let nodes: std::collections::BTreeSet<String> =
            answer.events().iter().filter(|e| of(e)).map(|e| e["node"].to_string()).collect();
        assert_eq!(nodes.len(), 3, "{event}: {names:?}");
    }
    let last = answer.events().pop().unwrap();
    let written = desk.json("result.json");
    assert_eq!((&written["exit_code"], &written["nodes"]), (&Value::from(0), &last["nodes"]));
    assert_eq!(last["nodes"][0]["outcome"], "changed");
    // Again: nothing to do, and nothing is locked for it.
    let again = desk.run(&["apply", "--yes", "--format", "json"]);
    assert_eq!((again.code, again.names()), (0, vec!["plan".to_owned(), "result".to_owned()]));
    desk.lan.unlocked();
}

#[test]
fn a_plan_file_is_carried_out_once() {
    let desk = Desk::new();
    let file = desk.path("plan.json");
    assert_eq!(desk.run(&["plan", "--out", &file, "--detailed-exitcode"]).code, 2);
    let apply = || desk.run(&["apply", &file, "--yes", "--allow-disruptive"]);
    let first = apply();
    assert_eq!(first.code, 0, "{first:?}");
    assert_eq!(desk.run(&["plan", "--detailed-exitcode"]).code, 0);
    let confirms = desk.lan.with(FIRST, |m| m.confirms);
    let second = apply();
    assert_eq!(second.code, 1);
    assert!(second.error.contains("the nodes have changed since the plan was made: on node1"), "{second:?}");
    assert_eq!(desk.lan.with(FIRST, |m| m.confirms), confirms);
    desk.lan.unlocked();
}

#[test]
fn a_stale_plan_file_names_what_changed_and_touches_nothing() {
    let desk = Desk::applied();
    let mut other = desk.cluster.clone();
    other.network.service_cidrs = vec!["10.97.0.0/16".parse().unwrap()];
    let desk = Desk { cluster: other, ..desk };
    let file = desk.path("plan.json");
    assert_eq!(desk.run(&["plan", "--out", &file]).code, 0);
    let object = desk.by_hand(SECOND);
    let before = desk.lan.with(FIRST, |m| m.state());
    let answer = desk.run(&["apply", &file, "--yes", "--allow-disruptive"]);
    assert_eq!(answer.code, 1);
    assert!(answer.error.contains(&format!("on node2 {object} changed")), "{answer:?}");
    assert!(desk.lan.with(FIRST, |m| m.state()) == before);
    desk.lan.unlocked();
}

#[test]
fn a_tampered_plan_file_is_refused() {
    let desk = Desk::new();
    let file = desk.path("plan.json");
    desk.run(&["plan", "--out", &file]);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"mtu\": 1450"));
    std::fs::write(&file, text.replacen("\"mtu\": 1450", "\"mtu\": 9000", 1)).unwrap();
    let answer = desk.run(&["apply", &file, "--yes"]);
    assert_eq!(answer.code, 1);
    assert!(
        answer.error.contains("was altered") && answer.error.contains("9000 in the file and 1450"),
        "{answer:?}"
    );
    assert!(desk.lan.with(FIRST, |m| m.is_bare()));
}

#[test]
fn a_rollback_is_exit_code_3_and_says_why() {
    let desk = Desk::new();
    // Every change is made, and the node does not show it: it cannot be verified.
    desk.lan.with(SECOND, |m| m.fault.lazy = true);
    let answer = desk.run(&["apply", "--yes", "--format", "json"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    let last = answer.events().pop().unwrap();
    assert_eq!(last["exit_code"], 3);
    assert_eq!(last["nodes"][0]["outcome"], "changed");
    assert_eq!(last["nodes"][1]["outcome"], "rolled_back");
    assert!(answer.names().contains(&"rolled_back".to_owned()));
    desk.lan.unlocked();
}

#[test]
fn a_trial_is_confirmed_or_taken_back() {
    let desk = Desk::new();
    let trial = ["apply", "--yes", "--try", "10m"];
    let answer = desk.run(&trial);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.out.contains("on trial: taken back in 10 min"), "{}", answer.out);
    // Nobody applies over a change that is tried out.
    let over = desk.run(&["apply", "--yes"]);
    assert_eq!(over.code, 1);
    assert!(over.out.contains("homelab confirm keeps that change"), "{}", over.out);
    let status = desk.run(&["status"]);
    assert!(status.out.contains("on trial, taken back in"), "{}", status.out);
    let back = desk.run(&["rollback", "--yes"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(back.out.contains("3 open changes taken back."), "{}", back.out);
    assert!(desk.lan.with(FIRST, |m| m.is_bare()));
    // What has gone cannot be confirmed.
    assert_eq!(desk.run(&["confirm"]).code, 1);
    assert_eq!(desk.run(&trial).code, 0);
    let kept = desk.run(&["confirm"]);
    assert_eq!(kept.code, 0, "{kept:?}");
    assert!(kept.out.contains("3 nodes confirmed."), "{}", kept.out);
    assert_eq!(desk.run(&["plan", "--detailed-exitcode"]).code, 0);
    desk.lan.unlocked();
}

#[test]
fn the_last_apply_is_taken_back_once() {
    let desk = Desk::applied();
    let answer = desk.run(&["rollback", "--yes", "--allow-disruptive", "--format", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(answer.names().first().unwrap(), "plan");
    assert!(
        desk.lan.with(FIRST, |m| m.objects.is_empty()),
        "{:?}",
        desk.lan.with(FIRST, |m| m.objects.clone())
    );
    let again = desk.run(&["rollback", "--yes", "--allow-disruptive"]);
    assert_eq!(again.code, 1);
    assert!(again.error.contains("no apply that could be taken back"), "{again:?}");
    desk.lan.unlocked();
}

#[test]
fn locks_name_their_holder_and_can_be_taken_away() {
    let desk = Desk::new();
    let holder = Holder { who: "you@desk".into(), pid: 9, command: "apply".into(), since: 1_764_098_305 };
    let hold = |address| desk.lan.with(address, |m| m.lock = Some((u64::MAX, holder.clone())));
    hold(SECOND);
    let refused = desk.run(&["apply", "--yes"]);
    assert_eq!(refused.code, 1);
    assert!(refused.error.contains("node2 is locked by you@desk (homelab apply, process 9)"), "{refused:?}");
    assert!(refused.error.contains("homelab unlock --force"));
    let shown = desk.run(&["unlock"]);
    assert_eq!(shown.code, 1);
    assert!(
        shown.out.contains("locked by you@desk (homelab apply, process 9), since 2025-11-25"),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("homelab unlock --force takes the locks away"));
    let taken = desk.run(&["unlock", "--force", "--format", "json"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    let json: Value = serde_json::from_str(&taken.out).unwrap();
    assert_eq!(json["nodes"][1]["outcome"], "displaced");
    assert_eq!(json["nodes"][0]["outcome"], "free");
    assert_eq!(desk.run(&["unlock"]).code, 0);
    assert_eq!(desk.run(&["apply", "--yes"]).code, 0);
}

#[test]
fn after_waiting_the_plan_is_made_anew() {
    let desk = Desk::applied();
    let mut other = desk.cluster.clone();
    other.network.service_cidrs = vec!["10.97.0.0/16".parse().unwrap()];
    let desk = Desk { cluster: other, ..desk };
    let file = desk.path("plan.json");
    assert_eq!(desk.run(&["plan", "--out", &file]).code, 0);
    let holder = Holder { who: "you@desk".into(), pid: 9, command: "apply".into(), since: 1 };
    // Somebody holds a node, changes it once the other waits, and goes.
    let busy = |desk: &Desk, words: &[&str]| {
        let asked = || desk.lan.with(FIRST, |m| m.log.iter().filter(|(_, name)| name == "Lock").count());
        let before = asked();
        desk.lan.with(FIRST, |m| m.lock = Some((u64::MAX, holder.clone())));
        desk.run_and(words, |_| {
            wait_until("it waits for the lock", PATIENCE, || asked() >= before + 2);
            desk.by_hand(FIRST);
            desk.lan.with(FIRST, |m| m.lock = None);
        })
    };
    let stale = busy(&desk, &["apply", &file, "--yes", "--lock-timeout", "1m"]);
    assert_eq!(stale.code, 1, "{stale:?}");
    assert!(
        stale.error.contains("the nodes have changed since the plan was made: on node1 route"),
        "{stale:?}"
    );
    // The hand's work is in the way of this one, too, so it starts from a clean node.
    assert_eq!(desk.run(&["apply", "--yes"]).code, 0);
    let mut third = desk.cluster.clone();
    third.network.service_cidrs = vec!["10.98.0.0/16".parse().unwrap()];
    let desk = Desk { cluster: third, ..desk };
    let answer = busy(&desk, &["apply", "--yes", "--lock-timeout", "1m", "--format", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let names = answer.names();
    assert_eq!(names.iter().filter(|n| *n == "plan").count(), 2, "{names:?}");
    assert!(names.contains(&"waiting".to_owned()));
    assert_eq!(desk.run(&["plan", "--detailed-exitcode"]).code, 0);
    desk.lan.unlocked();
}

#[test]
fn drift_tells_a_hand_from_the_file() {
    let desk = Desk::applied();
    let clean = desk.run(&["drift", "--detailed-exitcode"]);
    assert_eq!(clean.code, 0, "{clean:?}");
    let mut other = desk.cluster.clone();
    other.network.service_cidrs = vec!["10.97.0.0/16".parse().unwrap()];
    let desk = Desk { cluster: other, ..desk };
    // The file changed, no hand did anything.
    let file = desk.run(&["drift", "--detailed-exitcode"]);
    assert_eq!(file.code, 0, "{file:?}");
    assert!(file.out.contains("the cluster file changed since"), "{}", file.out);
    let object = desk.by_hand(SECOND);
    let hand = desk.run(&["drift", "--detailed-exitcode"]);
    assert_eq!(hand.code, 2, "{hand:?}");
    assert!(
        hand.out.contains(&format!("~ {object}")) && hand.out.contains("-> 10.244.77.77"),
        "{}",
        hand.out
    );
    assert!(hand.out.contains("Changed by hand: node2."), "{}", hand.out);
    let plan = desk.run(&["plan", "--format", "markdown"]);
    assert!(
        plan.out.contains(&format!("node2: changed by hand since the last apply: {object}")),
        "{}",
        plan.out
    );
}

#[test]
fn the_key_is_replaced_and_never_shown() {
    let desk = Desk::applied();
    let before = desk.lan.with(FIRST, |m| m.key_summary()).unwrap();
    let answer = desk.run(&["rotate-key", "--yes"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.out.contains("The membership key was replaced"), "{}", answer.out);
    let after = desk.lan.with(FIRST, |m| m.key_summary()).unwrap();
    assert_ne!(before, after);
    let text = desk.lan.with(FIRST, |m| m.texts[&after].clone());
    let key = text.lines().last().unwrap();
    assert_eq!(key.len(), 64);
    let file = desk.path("plan.json");
    desk.run(&["plan", "--out", &file]);
    let plan = std::fs::read_to_string(&file).unwrap();
    assert!(plan.contains("/etc/homelab/membership.keys"));
    let status = desk.run(&["status", "--format", "json"]);
    for said in [&answer.out, &answer.error, &plan, &status.out] {
        assert!(!said.contains(key) && !said.contains(&key[..16]));
    }
}

#[test]
fn a_stopped_run_leaves_no_lock_and_no_half_state() {
    for (number, code) in [(2, 130), (15, 143), (1, 129)] {
        let desk = Desk::new();
        for (_, address) in THREE {
            desk.lan.with(address, |m| m.fault.slow = Duration::from_millis(20));
        }
        let begun = |address| desk.lan.with(address, |m| m.worker.is_some() || m.open.is_some());
        let answer = desk.run_and(&["apply", "--yes", "--format", "json"], |signals| {
            wait_until("the first node is being changed", PATIENCE, || begun(FIRST));
            signals.feign(number);
        });
        assert_eq!(answer.code, code, "{answer:?}");
        let last = answer.events().pop().unwrap();
        assert_eq!((&last["event"], &last["exit_code"]), (&"result".into(), &code.into()));
        let outcomes: Vec<&str> = (0..3).map(|i| last["nodes"][i]["outcome"].as_str().unwrap()).collect();
        assert!(matches!(outcomes[0], "changed" | "rolled_back"), "{outcomes:?}");
        assert_eq!(outcomes[1..], ["not_started", "not_started"]);
        desk.lan.closed();
        desk.lan.unlocked();
        assert_eq!(desk.lan.with(FIRST, |m| m.is_bare()), outcomes[0] == "rolled_back");
        assert!(desk.lan.with(SECOND, |m| m.is_bare()));
        for (_, address) in THREE {
            desk.lan.with(address, |m| m.fault.slow = Duration::ZERO);
        }
        assert_eq!(desk.run(&["apply", "--yes"]).code, 0);
    }
}

#[test]
fn services_and_traces_of_the_nodes_are_shown() {
    let desk = Desk::applied();
    let service: homelab_model::ServiceReport = serde_json::from_value(serde_json::json!({
        "name": "default/web", "told": null, "frontends": [], "missing": [], "extra": [],
    }))
    .unwrap();
    for (_, address) in THREE {
        desk.lan.with(address, |m| m.services = vec![service.clone()]);
    }
    let all = desk.run(&["status", "services", "web"]);
    assert_eq!((all.code, all.out.contains("default/web")), (0, true), "{all:?}");
    let none = desk.run(&["status", "services", "nobody"]);
    assert_eq!((none.code, none.error.contains("they know default/web")), (1, true), "{none:?}");
    desk.lan.with(SECOND, |m| m.services[0].missing = vec!["frontends4 x".into()]);
    let json = desk.run(&["status", "services", "--format", "json"]);
    let value: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, &value["agrees"]), (1, &Value::from(false)), "{json:?}");
    assert_eq!(value["services"][0]["nodes"][1]["differs"], "1 element missing");

    let to: std::net::IpAddr = "192.168.50.200".parse().unwrap();
    let traced: homelab_model::TraceReport = serde_json::from_value(serde_json::json!({
        "service": "default/web", "outcome": {"is": "dropped"}, "remembered": null, "steps": [], "warnings": [],
    }))
    .unwrap();
    desk.lan.with(FIRST, |m| m.traces.insert(to, traced.clone()));
    let names = |words: &[&str]| {
        let answer = desk.run(&[&["trace", "--format", "json"], words].concat());
        let value: Value = serde_json::from_str(&answer.out).unwrap_or_default();
        let nodes = value["nodes"].as_array().cloned().unwrap_or_default();
        let nodes =
            nodes.iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        (answer.code, nodes, answer.error)
    };
    // By the node that sends; by the one that is asked for; else by all, and some do not know.
    assert_eq!(names(&["node1", "192.168.50.200:80"]), (0, "node1".into(), String::new()));
    assert_eq!(names(&["192.168.50.9", "192.168.50.200:80", "--node", "node1"]).0, 0);
    assert_eq!(names(&["192.168.50.9", "192.168.50.200:80"]).1, "node1 node2 node3");
    assert_eq!(names(&["192.168.50.9", "192.168.50.200:80"]).0, 1);
    assert!(names(&["node1", "192.168.50.200:80", "--node", "node7"]).2.contains("node1, node2, node3"));
    let human = desk.run(&["trace", "node1", "192.168.50.200:80"]);
    assert!(human.out.contains("node1: default/web: dropped"), "{human:?}");
    desk.lan.unlocked();
}
