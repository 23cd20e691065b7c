//! Clients that ask on and on while something is changed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::script::Script;
use crate::{Check, Cluster, Place};

/// Clients at one place, each of which does its check again and again: [`Cluster::clients`].
#[derive(Debug)]
pub struct Clients(Script);

/// What came of one client's check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// How often it was done.
    pub asked: u64,
    /// How often it failed.
    pub failed: u64,
    /// Why, the first times.
    pub errors: Vec<String>,
    /// Who answered last.
    pub last: String,
    /// How often each server answered.
    pub names: BTreeMap<String, u64>,
    /// How often each source was seen by servers.
    pub peers: BTreeMap<String, u64>,
}

impl Cluster {
    /// Starts a client per check. One of kind `held` is a single connection that carries a byte every 10 ms until
    /// [`Clients::end`]. A datagram is given up after 0.3 s, so that the next one follows whatever becomes of it.
    #[track_caller]
    pub fn clients(&self, from: &Place, checks: &[Check]) -> Clients {
        let mut script = self.script(from, &["ask"]);
        let limit = |kind| if matches!(kind, "udp" | "sctp") { 0.3 } else { 20.0 };
        let list: Vec<Value> = checks.iter().map(|check| check.json(json!(limit(check.kind)))).collect();
        script.say(&Value::from(list).to_string());
        script.expect("asking");
        Clients(script)
    }

    /// Has a pod's server answer so many packets of its connections with packets that are not theirs.
    #[track_caller]
    pub fn boom(&self, place: &Place, count: u32) {
        self.script(place, &["boom", "7000", &count.to_string()]).expect("boom");
    }
}

impl Clients {
    #[track_caller]
    fn tell(&mut self, word: &str) -> Vec<Asked> {
        self.0.say(word);
        let line = self.0.line();
        let all: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e}: {line}", self.0.name));
        let counts = |value: &Value| -> BTreeMap<String, u64> {
            let entries = value.as_object().into_iter().flatten();
            entries.map(|(key, count)| (key.clone(), count.as_u64().unwrap_or_default())).collect()
        };
        let one = |value: &Value| Asked {
            asked: value["asked"].as_u64().unwrap_or_default(),
            failed: value["failed"].as_u64().unwrap_or_default(),
            errors: value["errors"].as_array().into_iter().flatten().map(ToString::to_string).collect(),
            last: value["last"].as_str().unwrap_or_default().to_owned(),
            names: counts(&value["names"]),
            peers: counts(&value["peers"]),
        };
        all.as_array().map(|all| all.iter().map(one).collect()).unwrap_or_default()
    }

    /// What came of it so far.
    #[track_caller]
    pub fn so_far(&mut self) -> Vec<Asked> {
        self.tell("")
    }

    /// Waits until `met` holds for every client. That it takes 30 s is a failure.
    #[track_caller]
    pub fn until(&mut self, what: &str, met: impl Fn(&Asked) -> bool) {
        self.until_all(what, |all| all.iter().all(&met));
    }

    /// Waits until `count` has grown for every client, by more than a question that was under way.
    #[track_caller]
    pub fn until_more(&mut self, what: &str, count: impl Fn(&Asked) -> u64) {
        let before: Vec<u64> = self.so_far().iter().map(&count).collect();
        self.until_all(what, |all| all.iter().zip(&before).all(|(one, before)| count(one) > before + 3));
    }

    #[track_caller]
    fn until_all(&mut self, what: &str, met: impl Fn(&[Asked]) -> bool) {
        let start = Instant::now();
        loop {
            let all = self.so_far();
            if met(&all) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{}: {what}: {all:#?}", self.0.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until every client has asked some times more.
    #[track_caller]
    pub fn go_on(&mut self) {
        self.until_more("they go on", |one| one.asked);
    }

    /// Ends them.
    #[track_caller]
    pub fn end(mut self) -> Vec<Asked> {
        self.tell("stop")
    }

    /// Ends them; nothing may have failed. Gives how often they asked.
    #[track_caller]
    pub fn none_failed(self, when: &str) -> u64 {
        let all = self.end();
        assert!(all.iter().all(|one| one.asked > 0 && one.failed == 0), "{when}: {all:#?}");
        all.iter().map(|one| one.asked).sum()
    }
}
