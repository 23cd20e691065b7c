//! Locks: one laptop at a time on a node.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use homelab_model::Holder;
use homelab_protocol::{Request, Response};

use crate::connection::Line;
use crate::engine::{Engine, Live, Prepared};
use crate::{ApplyError, Event, NodeError, Target};

/// How often an idle session hears that the laptop is still there; far below the nodes' patience
/// ([`homelab_protocol::LOCK_PATIENCE`]).
const BEAT: Duration = Duration::from_secs(5);
/// A node is asked to wait this long at a time, so that the user can stop the waiting.
const SLICE: Duration = Duration::from_millis(500);
/// A session that has just ended may hold its lock for a moment yet: 18 ms were seen on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

/// How the locks were got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOutcome {
    /// At once: the plan still is what the nodes need.
    Held,
    /// Another holder was waited for, or a session had to be opened anew: what was seen before may be out of date,
    /// see [`Engine::refresh`].
    Waited,
}

/// Tells the nodes that the laptop is still there.
pub(crate) struct Heart {
    lines: Arc<Mutex<Vec<Line>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    pub(crate) fn new() -> Heart {
        let lines: Arc<Mutex<Vec<Line>>> = Arc::default();
        let (stop, stopped) = mpsc::channel();
        let shared = Arc::clone(&lines);
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                let lines = shared.lock().map(|lines| lines.clone()).unwrap_or_default();
                lines.iter().for_each(Line::beat);
            }
        });
        Heart { lines, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn watch(&self, line: &Line) {
        if let Ok(mut lines) = self.lines.lock() {
            lines.push(line.clone());
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once, or never began to panic.
            let _ = thread.join();
        }
    }
}

/// Why a node's lock was not got.
pub(crate) enum Unlocked {
    Busy(Holder),
    Cancelled,
    Lost(NodeError),
}

impl Engine<'_> {
    /// Locks all chosen nodes that can be changed, one after another by name, so that two laptops never wait for each
    /// other. If somebody else holds one beyond [`crate::Options::lock_wait`], everything is let go: `prepared` then
    /// is of no more use.
    pub fn lock(&self, prepared: &mut Prepared) -> Result<LockOutcome, ApplyError> {
        if prepared.heart.is_some() {
            return Ok(LockOutcome::Held);
        }
        let heart = Heart::new();
        let mut outcome = LockOutcome::Held;
        let mut names: Vec<String> = prepared.plan.nodes.iter().map(|n| n.name.clone()).collect();
        names.sort();
        for name in names {
            let Some(target) = prepared.targets.get(&name).cloned() else { continue };
            let Some(live) = prepared.live.get_mut(&name) else { continue };
            match self.lock_or_reopen(&target, live) {
                Ok(waited) => {
                    heart.watch(&live.line);
                    if waited {
                        outcome = LockOutcome::Waited;
                    }
                }
                Err(Unlocked::Lost(error)) => {
                    self.observer.event(&name, Event::Unreachable(&error));
                    prepared.live.remove(&name);
                    if let Some(node) = prepared.plan.nodes.iter_mut().find(|n| n.name == name) {
                        node.outcome = Err(error);
                    }
                }
                Err(refused) => {
                    drop(heart);
                    prepared.hang_up(self.options.parallel);
                    return Err(match refused {
                        Unlocked::Busy(holder) => ApplyError::Busy { node: name, holder },
                        _ => ApplyError::Cancelled,
                    });
                }
            }
        }
        prepared.heart = Some(heart);
        Ok(outcome)
    }

    /// Takes a node's lock; over a new session if the old one has died since the node was looked at.
    fn lock_or_reopen(&self, target: &Target, live: &mut Live) -> Result<bool, Unlocked> {
        self.observer.event(&target.name, Event::Locking);
        match self.take_lock(target, &live.line, self.options.lock_wait) {
            Err(Unlocked::Lost(NodeError::Broken { .. })) => {
                let fresh = self.reopen(target, &live.scope, self.options.answer).map_err(Unlocked::Lost)?;
                live.line = fresh.line;
                let changed = fresh.observed != live.observed;
                live.observed = fresh.observed;
                let waited = self.take_lock(target, &live.line, self.options.lock_wait)?;
                Ok(waited || changed)
            }
            other => other,
        }
    }

    /// Takes the lock over this session; whether somebody had to be waited for.
    pub(crate) fn take_lock(&self, target: &Target, line: &Line, wait: Duration) -> Result<bool, Unlocked> {
        let end = Instant::now() + wait.max(GRACE);
        let mut waited = false;
        let mut said = false;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let slice = if said { left.min(SLICE) } else { left.min(GRACE) };
            let wait_ms = u64::try_from(slice.as_millis()).unwrap_or(u64::MAX);
            let request = Request::Lock { holder: self.options.holder(), wait_ms };
            match line.get().ask(&request, slice + self.options.answer).map_err(Unlocked::Lost)? {
                Response::Locked { waited: there } => return Ok(waited || there),
                Response::Busy(holder) => {
                    waited = true;
                    if self.cancelled() {
                        return Err(Unlocked::Cancelled);
                    }
                    if Instant::now() >= end {
                        return Err(Unlocked::Busy(holder));
                    }
                    if !std::mem::replace(&mut said, true) {
                        self.observer.event(&target.name, Event::Waiting(&holder));
                    }
                    // A node that does not wait as it was asked to must not be asked all the time.
                    std::thread::sleep(Duration::from_millis(10));
                }
                Response::Failed(failure) => return Err(Unlocked::Lost(NodeError::Failed(failure))),
                _ => return Err(Unlocked::Lost(NodeError::OutOfTurn)),
            }
        }
    }
}
