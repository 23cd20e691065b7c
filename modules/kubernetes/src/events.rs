//! Events on Services and Nodes (`core/v1` Event), as `kubectl describe` shows them: what happened to their addresses.
//!
//! The same thing said again counts up one object, and whoever says too much is cut off, as in client-go's EventCorrelator
//! (`tools/record/events_cache.go`): 25 at once for an object, then one in five minutes; more than ten of one reason in ten
//! minutes become one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use homelab_model::sha256_hex;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Who says it: `source.component`.
pub const COMPONENT: &str = "homelab";
/// So many at once for an object.
const BURST: u32 = 25;
/// And one more in this time.
const REFILL: Duration = Duration::from_secs(300);
/// So many of one reason in [`SIMILAR_TIME`] are told one by one.
const SIMILAR: usize = 10;
const SIMILAR_TIME: Duration = Duration::from_secs(600);
/// So long a text is remembered. The API server forgets Events after an hour.
const MEMORY: Duration = Duration::from_secs(3600);
/// Longest text that the API takes, bytes (`validation/events.go`).
const LONGEST: usize = 1024;

/// Whether it is good news: `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// As intended.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Kind::Normal => "Normal",
            Kind::Warning => "Warning",
        }
    }
}

/// Something to say about an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// `Service` or `Node`.
    pub about: &'static str,
    /// Namespace of the object; None for a Node, whose Events are in `default`.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Good news or not.
    pub kind: Kind,
    /// One word for machines: `IPAllocated`.
    pub reason: &'static str,
    /// A sentence.
    pub text: String,
}

impl Said {
    /// About a Service, by its full name.
    pub fn about_service(full_name: &str, uid: &str, kind: Kind, reason: &'static str, text: String) -> Said {
        let (namespace, name) = full_name.split_once('/').unwrap_or(("default", full_name));
        let (namespace, name, uid) = (Some(namespace.to_owned()), name.to_owned(), uid.to_owned());
        Said { about: "Service", namespace, name, uid, kind, reason, text }
    }

    /// A node has begun to announce an address of a Service: MetalLB's words. `before` is who announced it until then.
    pub fn announced(full_name: &str, uid: &str, node: &str, before: Option<&str>, protocol: &str) -> Said {
        match before {
            None => {
                let text = format!("announcing from node {node:?} with protocol {protocol:?}");
                Said::about_service(full_name, uid, Kind::Normal, "nodeAssigned", text)
            }
            Some(before) => {
                let text = format!(
                    "announcing from node {node:?} with protocol {protocol:?}, in place of node {before:?}"
                );
                Said::about_service(full_name, uid, Kind::Normal, "Failover", text)
            }
        }
    }

    /// Another machine answers for an address of a Service: it is not announced.
    pub fn conflict(full_name: &str, uid: &str, address: std::net::IpAddr, mac: &str) -> Said {
        let text = format!("{address} is not announced: another machine, {mac}, answers for it");
        Said::about_service(full_name, uid, Kind::Warning, "AddressConflict", text)
    }
}

/// A request that carries out what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventWrite {
    /// Creates the Event.
    Create {
        /// Namespace.
        namespace: String,
        /// The object.
        body: Value,
    },
    /// Counts it up, by a merge patch.
    Patch {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// The patch.
        body: Value,
    },
}

/// What has been said, so that it is not said too often.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    /// `source.host`: the node.
    host: String,
    /// By object and text.
    known: BTreeMap<Said, Known>,
    /// What is left of an object's burst, and since when, by uid.
    budget: BTreeMap<String, (u32, Timestamp)>,
    /// When texts of one reason were said about an object.
    similar: BTreeMap<(String, Kind, &'static str), VecDeque<Timestamp>>,
}

#[derive(Debug, Clone)]
struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

impl Recorder {
    /// Speaks for the agent of a node.
    pub fn new(node: &str) -> Recorder {
        Recorder { host: node.to_owned(), ..Recorder::default() }
    }

    /// What to write, if anything. `now` is the wall clock: it stands in the Event.
    pub fn record(&mut self, said: Said, now: Timestamp) -> Option<EventWrite> {
        self.forget(now);
        if !self.may(&said.uid, now) {
            return None;
        }
        let said = self.combined(said, now);
        let namespace = said.namespace.clone().unwrap_or_else(|| "default".to_owned());
        if let Some(known) = self.known.get_mut(&said) {
            known.count = known.count.saturating_add(1);
            known.last = now;
            let body = json!({ "count": known.count, "lastTimestamp": Time(now) });
            return Some(EventWrite::Patch { namespace, name: known.name.clone(), body });
        }
        let what = format!("{now} {} {} {} {}", self.host, said.uid, said.reason, said.text);
        let digest = sha256_hex(what.as_bytes());
        let name = format!("{}.{}", said.name, digest.get(..16).unwrap_or_default());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(said.about.to_owned()),
                namespace: said.namespace.clone(),
                name: Some(said.name.clone()),
                uid: Some(said.uid.clone()),
                ..ObjectReference::default()
            },
            type_: Some(said.kind.text().to_owned()),
            reason: Some(said.reason.to_owned()),
            message: Some(said.text.clone()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(COMPONENT.to_owned()),
                host: Some(self.host.clone()),
            }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        };
        self.known.insert(said, Known { name, count: 1, last: now });
        Some(EventWrite::Create { namespace, body: json!(event) })
    }

    /// The Event could not be counted up (the API has forgotten it): it is created the next time.
    pub fn forgotten(&mut self, event: &str) {
        self.known.retain(|_, known| known.name != event);
    }

    fn may(&mut self, uid: &str, now: Timestamp) -> bool {
        let (left, since) = self.budget.entry(uid.to_owned()).or_insert((BURST, now));
        let refill = u32::try_from(passed(*since, now).as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if refill > 0 {
            *left = left.saturating_add(refill).min(BURST);
            *since = now;
        }
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }

    /// The text itself, or one for many.
    fn combined(&mut self, mut said: Said, now: Timestamp) -> Said {
        let key = (said.uid.clone(), said.kind, said.reason);
        if !self.known.contains_key(&said) {
            let times = self.similar.entry(key).or_default();
            times.retain(|at| passed(*at, now) < SIMILAR_TIME);
            times.push_back(now);
            if times.len() > SIMILAR {
                said.text = "(combined from similar events)".to_owned();
            }
        }
        let end = (0..=LONGEST.min(said.text.len())).rev().find(|at| said.text.is_char_boundary(*at));
        said.text.truncate(end.unwrap_or_default());
        said
    }

    fn forget(&mut self, now: Timestamp) {
        self.known.retain(|_, known| passed(known.last, now) < MEMORY);
        self.similar.retain(|_, times| times.back().is_some_and(|at| passed(*at, now) < SIMILAR_TIME));
        let full = REFILL * BURST;
        self.budget.retain(|_, (_, since)| passed(*since, now) < full);
    }
}

/// Time between two readings of the wall clock; nothing where it was set back.
fn passed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        Said::about_service("shop/web", "u-1", Kind::Warning, "AllocationFailed", text.to_owned())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_same_again_counts_up_one_object() {
        let mut recorder = Recorder::new("node1");
        let Some(EventWrite::Create { namespace, body }) = recorder.record(said("full"), at(0)) else {
            panic!()
        };
        assert_eq!(namespace, "shop");
        assert_eq!(body["involvedObject"]["kind"], "Service");
        assert_eq!(body["involvedObject"]["uid"], "u-1");
        assert_eq!((&body["type"], &body["count"]), (&json!("Warning"), &json!(1)));
        assert_eq!(body["firstTimestamp"], "2027-01-15T08:00:00Z");
        let Some(EventWrite::Patch { name, body: patch, .. }) = recorder.record(said("full"), at(7)) else {
            panic!()
        };
        assert_eq!(body["metadata"]["name"], json!(name));
        assert_eq!(patch, json!({ "count": 2, "lastTimestamp": "2027-01-15T08:00:07Z" }));
        // The API has forgotten it.
        recorder.forgotten(&name);
        let Some(EventWrite::Create { body: again, .. }) = recorder.record(said("full"), at(8)) else {
            panic!()
        };
        assert_ne!(again["metadata"]["name"], body["metadata"]["name"]);
    }

    #[test]
    fn who_says_too_much_is_combined_and_then_cut_off() {
        let mut recorder = Recorder::new("node1");
        let texts: Vec<Option<EventWrite>> =
            (0..100).map(|n| recorder.record(said(&format!("text {n}")), at(n))).collect();
        let created = texts.iter().filter(|w| matches!(w, Some(EventWrite::Create { .. }))).count();
        let counted = texts.iter().filter(|w| matches!(w, Some(EventWrite::Patch { .. }))).count();
        assert_eq!((created, counted), (SIMILAR + 1, BURST as usize - SIMILAR - 1));
        // Others are still heard.
        let other = Said { uid: "u-2".into(), ..said("full") };
        assert!(recorder.record(other, at(100)).is_some());
        assert!(recorder.record(said("full"), at(100)).is_none());
        assert!(recorder.record(said("full"), at(100 + 300)).is_some());
        // A clock that goes back is no reason to fail.
        assert!(recorder.record(Said { uid: "u-3".into(), ..said("full") }, at(-5000)).is_some());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut recorder = Recorder::new("node1");
        let long = "ä".repeat(2000);
        let Some(EventWrite::Create { body, .. }) = recorder.record(said(&long), at(0)) else { panic!() };
        assert_eq!(body["message"].as_str().unwrap().len(), LONGEST);
    }
}
