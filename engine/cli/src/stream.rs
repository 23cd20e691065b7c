//! Events for programs: one JSON object per line on stdout, each written at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use homelab_driver::{Event, NodeError, Observer};
use serde_json::{Map, Value, json};

use crate::planfile::utc_ms;
use crate::render::{ErrorText, Shown};
use crate::terminal::Terminal;

/// Version of the events' form.
pub(crate) const FORMAT: u32 = 1;

/// Writes events.
pub(crate) struct Stream<'a> {
    terminal: &'a Terminal,
    /// The last step of each node: one that repeats is written once.
    last: Mutex<BTreeMap<String, String>>,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(terminal: &'a Terminal) -> Stream<'a> {
        Stream { terminal, last: Mutex::default() }
    }

    /// Writes an event of the whole run. A reader that is gone does not stop what is being done to the nodes.
    pub(crate) fn send(&self, name: &str, fields: Value) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let time = utc_ms(u64::try_from(time).unwrap_or(u64::MAX));
        let _ = self.terminal.out(&Shown::json_line(&event(name, fields, &time)));
    }
}

impl Observer for Stream<'_> {
    fn event(&self, node: &str, event: Event<'_>) {
        let Some((name, fields)) = step(node, &event) else { return };
        let text = format!("{name} {fields}");
        let new = self.last.lock().is_ok_and(|mut last| {
            last.insert(node.to_owned(), text.clone()).is_none_or(|before| before != text)
        });
        if new {
            self.send(name, fields);
        }
    }
}

/// An event as it is written.
pub(crate) fn event(name: &str, fields: Value, time: &str) -> Value {
    let mut all = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    all.insert("format_version".into(), json!(FORMAT));
    all.insert("event".into(), json!(name));
    all.insert("time".into(), json!(time));
    Value::Object(all)
}

/// Name and fields of a step of one node; of an upload only its beginning and its end.
fn step(node: &str, event: &Event<'_>) -> Option<(&'static str, Value)> {
    let failed = |e: &NodeError| json!({"node": node, "error": ErrorText::of(e)});
    let bare = json!({"node": node});
    Some(match event {
        Event::Connecting => ("connecting", bare),
        Event::Uploading { sent, total } if *sent == 0 || sent == total => {
            ("uploading", json!({"node": node, "sent": sent, "total": total}))
        }
        Event::Uploading { .. } => return None,
        Event::Observed => ("observed", bare),
        Event::Unreachable(e) => ("unreachable", failed(e)),
        Event::Locking => ("locking", bare),
        Event::Waiting(holder) => ("waiting", json!({"node": node, "holder": holder})),
        Event::Installing(package) => ("installing", json!({"node": node, "package": package})),
        Event::Arming => ("arming", bare),
        Event::Applying { done, total } => ("applying", json!({"node": node, "done": done, "total": total})),
        Event::Verifying => ("verifying", bare),
        Event::Confirming => ("confirming", bare),
        Event::Reconnecting => ("reconnecting", bare),
        Event::RollingBack(reason) => ("rolling_back", json!({"node": node, "reason": reason})),
        Event::Done => ("done", bare),
        Event::Failed(e) => ("failed", failed(e)),
        Event::RolledBack(reason) => ("rolled_back", json!({"node": node, "reason": reason})),
    })
}

/// The line of a step; for tests.
#[cfg(test)]
pub(crate) fn line(node: &str, step_event: &Event<'_>) -> Option<Shown> {
    step(node, step_event).map(|(name, fields)| Shown::json_line(&event(name, fields, "")))
}

/// Tells two observers.
pub(crate) struct Both<'a>(pub(crate) Box<dyn Observer + 'a>, pub(crate) &'a dyn Observer);

impl Observer for Both<'_> {
    fn event(&self, node: &str, event: Event<'_>) {
        self.0.event(node, event);
        self.1.event(node, event);
    }
}

#[cfg(test)]
mod tests {
    use homelab_model::Holder;

    use super::*;

    #[test]
    fn every_event_is_one_line_that_names_its_node() {
        let error = NodeError::Unsettled(vec!["route\n\u{1b}[2J".into()]);
        let holder = Holder { who: "a@b".into(), pid: 7, command: "apply".into(), since: 1 };
        let events = [
            Event::Connecting,
            Event::Uploading { sent: 0, total: 9 },
            Event::Observed,
            Event::Unreachable(&error),
            Event::Locking,
            Event::Waiting(&holder),
            Event::Installing("frr"),
            Event::Arming,
            Event::Applying { done: 1, total: 2 },
            Event::Verifying,
            Event::Confirming,
            Event::Reconnecting,
            Event::RollingBack("why"),
            Event::Done,
            Event::Failed(&error),
            Event::RolledBack("why"),
        ];
        let mut lines = String::new();
        for one in &events {
            let (name, fields) = step("node1", one).unwrap();
            let line = Shown::json_line(&event(name, fields, "2026-01-01T00:00:00Z"));
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let back: Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&back["node"], &back["format_version"]), (&json!("node1"), &json!(1)));
            lines.push_str(&line);
        }
        insta::assert_snapshot!(lines);
        assert!(step("node1", &Event::Uploading { sent: 1, total: 9 }).is_none());
    }
}
