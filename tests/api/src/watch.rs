//! Watches: a line of JSON for each event.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::Failure;
use crate::body::Body;
use crate::query::Query;
use crate::server::Shared;
use crate::store::Scope;

/// Batches of events that wait for the client to read.
const WAITING: usize = 4;
/// A watch that nobody ends.
const FOREVER: Duration = Duration::from_secs(3600);

/// The lines of one watch.
struct Watch {
    scope: Scope,
    bookmarks: bool,
    /// All until this version is said.
    version: u64,
}

/// Begins to watch. A version that is forgotten is said as an event, as the real server does.
pub(crate) fn start(shared: &Arc<Shared>, scope: Scope, query: &Query) -> Result<Body, Failure> {
    let mut watch = Watch { scope, bookmarks: query.bookmarks, version: 0 };
    let mut lines = Vec::new();
    let mut ticks = shared.ticks();
    let seen = *ticks.borrow_and_update();
    {
        let store = shared.store();
        let current = store.version();
        let asked = query.version.filter(|version| *version > 0);
        match query.initial {
            Some(true) => {
                if let Some(wanted) = asked.filter(|wanted| *wanted > current) {
                    return Err(Failure::TooLarge(wanted, current));
                }
            }
            Some(false) => watch.version = asked.unwrap_or(current),
            None => watch.version = asked.unwrap_or_default(),
        }
        if watch.version == 0 {
            store.list(&watch.scope).for_each(|object| line(&mut lines, "ADDED", object));
            watch.version = current;
            if query.initial.is_some() {
                watch.bookmark(&mut lines, true);
            }
        }
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let end = Instant::now() + query.timeout.map_or(FOREVER, Duration::from_secs);
    let shared = Arc::clone(shared);
    let mut bookmarks = seen.bookmarks;
    tokio::spawn(async move {
        loop {
            let more = watch.events(&shared, &mut lines);
            let tick = *ticks.borrow_and_update();
            let over = Instant::now() >= end || tick.ends != seen.ends;
            if more && (over || tick.bookmarks != bookmarks) {
                watch.bookmark(&mut lines, false);
            }
            bookmarks = tick.bookmarks;
            if !lines.is_empty() && sender.send(Bytes::from(std::mem::take(&mut lines))).await.is_err() {
                return;
            }
            if !more || over {
                return;
            }
            tokio::select! {
                changed = ticks.changed() => if changed.is_err() { return },
                () = sleep_until(end) => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(Body::Stream(receiver))
}

impl Watch {
    /// Adds what has happened since; false if that is forgotten, and the watch at its end.
    fn events(&mut self, shared: &Shared, lines: &mut Vec<u8>) -> bool {
        let store = shared.store();
        match store.since(self.version, &self.scope) {
            Ok(events) => {
                events.for_each(|(kind, object)| line(lines, kind, &object));
                // One that began in the future waits for it.
                self.version = self.version.max(store.version());
                true
            }
            Err(expired) => {
                line(lines, "ERROR", &expired.status());
                false
            }
        }
    }

    /// Says up to which version all is said. `initial`: that the initial events end here.
    fn bookmark(&self, lines: &mut Vec<u8>, initial: bool) {
        if !self.bookmarks {
            return;
        }
        let mut metadata = json!({ "resourceVersion": self.version.to_string() });
        if initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let resource = &self.scope.resource;
        let object =
            json!({ "kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata });
        line(lines, "BOOKMARK", &object);
    }
}

fn line(lines: &mut Vec<u8>, kind: &str, object: &Value) {
    lines.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").as_bytes());
}
