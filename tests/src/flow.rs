//! Packets between pods every 10 ms, and a count of those that got lost.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::script::Script;
use crate::{Cluster, Place, Pod};

/// UDP packets from every pod of a group to every other, each numbered, until [`Flow::end`].
#[derive(Debug)]
pub struct Flow(Vec<Script>);

/// What one direction of a flow came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// `pod1 -> pod2`.
    pub way: String,
    /// Packets sent.
    pub sent: u64,
    /// Packets that did not arrive.
    pub lost: u64,
    /// Packets that arrived twice.
    pub twice: u64,
    /// Most packets lost one after another; each stands for 10 ms.
    pub in_a_row: u64,
}

impl Cluster {
    /// Starts a flow: every pod sends to every other pod every 10 ms.
    #[track_caller]
    pub fn flow(&self, pods: &[&Pod]) -> Flow {
        let sender = |pod: &&Pod| self.script(&Place::from(*pod), &["flow", &pod.name]);
        let mut senders: Vec<Script> = pods.iter().map(sender).collect();
        // Only when all listen may the first one send.
        for sender in &mut senders {
            sender.expect("ready");
        }
        for sender in &mut senders {
            let peers: Vec<Value> = pods
                .iter()
                .filter(|other| other.name != sender.name)
                .map(|other| json!({ "name": other.name, "to": other.addresses[0].to_string() }))
                .collect();
            sender.say(&Value::from(peers).to_string());
        }
        for sender in &mut senders {
            sender.expect("sending");
        }
        Flow(senders)
    }
}

impl Flow {
    /// Ends the flow and counts.
    #[track_caller]
    pub fn end(mut self) -> Vec<Loss> {
        for sender in &mut self.0 {
            sender.say("stop");
        }
        for sender in &mut self.0 {
            sender.expect("stopped");
        }
        // Nobody sends any more: what has not arrived by now never will.
        for sender in &mut self.0 {
            sender.say("count");
        }
        let results: BTreeMap<String, Value> = self
            .0
            .iter_mut()
            .map(|sender| {
                let line = sender.line();
                let result =
                    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e}: {line}", sender.name));
                (sender.name.clone(), result)
            })
            .collect();
        let mut all = Vec::new();
        for (from, result) in &results {
            for (to, sent) in result["sent"].as_object().into_iter().flatten() {
                let got = &results[to]["received"][from];
                let number = |key: &str| got[key].as_u64().unwrap_or_default();
                let sent = sent.as_u64().unwrap_or_default();
                assert!(sent > 0, "{from} sent nothing to {to}: {result}");
                let lost = sent - number("count");
                // Lost at the end are in no gap between two that arrived.
                let tail = sent - number("next").min(sent);
                let in_a_row = number("gap").max(tail);
                let way = format!("{from} -> {to}");
                all.push(Loss { way, sent, lost, twice: number("twice"), in_a_row });
            }
        }
        all
    }

    /// Ends the flow and asserts that no packet got lost; gives how many were sent.
    #[track_caller]
    pub fn none_lost(self, when: &str) -> u64 {
        let all = self.end();
        let bad: Vec<&Loss> = all.iter().filter(|loss| loss.lost > 0 || loss.twice > 0).collect();
        assert!(bad.is_empty(), "{when}: {bad:#?}");
        all.iter().map(|loss| loss.sent).sum()
    }
}
