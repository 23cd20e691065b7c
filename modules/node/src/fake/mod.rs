//! A machine for tests: a disk that outlasts everything, a kernel and processes that do not, a clock that only moves
//! when somebody waits, and faults that strike when the n-th point is reached.

mod effects;
mod host;
pub(crate) mod laptop;
pub(crate) mod objects;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use homelab_model::{Content, File, Holder, Key, NodeObject, NodeSpec, Spec, ours};

pub(crate) use host::Process;

use crate::transaction::{expire, recover};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The laptop's process is gone, and with it its connections.
    LaptopKill,
    /// Connections that are open end; the laptop may make new ones.
    Cut,
    /// The process that reached the point is gone.
    NodeKill,
    /// The agent's process is gone; systemd starts it again.
    AgentKill,
    /// The machine is dark, and starts again.
    Power,
    /// From now on nothing that needs room can be written.
    DiskFull,
    /// Nothing goes through the network any more, and nobody is told.
    Partition,
}

/// A process ended without a word. Never a failure of a test.
pub(crate) enum Crash {
    /// This one alone.
    Process,
    /// All of them.
    Machine,
}

/// What a power cut does not touch.
#[derive(Default, Clone)]
pub(crate) struct Disk {
    pub(crate) journal: Option<Vec<u8>>,
    pub(crate) reserve: bool,
    pub(crate) confirmed: Option<Vec<u8>>,
    pub(crate) reverted: Option<Vec<u8>>,
    /// Binaries, symbolic links, files.
    pub(crate) files: BTreeMap<Key, NodeObject>,
    /// Units that are started at boot.
    pub(crate) enabled: BTreeSet<String>,
    /// Packages that were installed for us.
    pub(crate) packages: BTreeSet<String>,
    /// What was set aside for the open transaction.
    pub(crate) undo: BTreeMap<Key, NodeObject>,
    /// What is kept of the last confirmed transaction, and its name.
    pub(crate) previous: (String, BTreeMap<Key, NodeObject>),
    /// Kernel parameters that were changed.
    pub(crate) originals: BTreeSet<String>,
    pub(crate) boot_unit: bool,
    pub(crate) recovery: bool,
    pub(crate) full: bool,
    pub(crate) cordoned: Option<Holder>,
}

/// What it does.
#[derive(Default, Clone)]
pub(crate) struct Volatile {
    pub(crate) reverted: Option<Vec<u8>>,
    /// Links and what hangs on them, rules, kernel parameters.
    pub(crate) kernel: BTreeMap<Key, NodeObject>,
    /// The agent: digests of its binary and of its configuration.
    pub(crate) agent: Option<(String, String)>,
    /// What the agent's speaker has read: whether the node is cordoned. None: it has none.
    pub(crate) speaker: Option<bool>,
    /// The agent was told to read again.
    pub(crate) told_again: bool,
    /// Transaction and time of the timer, absolute.
    pub(crate) timer: Option<(String, u64)>,
    pub(crate) apply_locked: bool,
    pub(crate) agent_locked: bool,
    pub(crate) session: Option<Holder>,
    pub(crate) progress: Option<u64>,
}

#[derive(Default, Clone)]
pub(crate) struct State {
    pub(crate) disk: Disk,
    pub(crate) volatile: Volatile,
    /// Absolute, milliseconds.
    pub(crate) time: u64,
    pub(crate) booted: u64,
    pub(crate) boots: u64,
    /// Digest of the binary that serve and revert run.
    pub(crate) digest: String,
    /// Connections opened before this number are dead.
    pub(crate) connections: usize,
    pub(crate) cut_below: usize,
    pub(crate) laptop_dead: bool,
    pub(crate) partition: bool,
    /// Points reached.
    pub(crate) points: Vec<String>,
    /// Faults by number of the point.
    pub(crate) strikes: Vec<(usize, Fault)>,
    /// How many of them struck.
    pub(crate) strikes_done: usize,
    /// When the last fault struck.
    pub(crate) struck: Option<u64>,
    /// Every change of this object fails with this message.
    pub(crate) broken: Option<(Key, String)>,
    /// Deletions fail too.
    pub(crate) stuck: bool,
    /// Units changed with the agent locked out, or anything else without.
    pub(crate) lock_misused: bool,
}

/// The machine; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct World(pub(crate) Rc<RefCell<State>>);

impl World {
    pub(crate) fn new() -> World {
        let world = World::default();
        world.0.borrow_mut().digest = objects::digest(1);
        world.0.borrow_mut().time = 1_000_000;
        world
    }

    /// Another machine that is like this one.
    pub(crate) fn fork(&self) -> World {
        World(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    /// Faults that strike at the n-th point from now on.
    pub(crate) fn strike(&self, strikes: &[(usize, Fault)]) {
        let mut state = self.0.borrow_mut();
        state.points.clear();
        state.strikes = strikes.to_vec();
        state.struck = None;
        state.strikes_done = 0;
    }

    pub(crate) fn reach(&self, name: &str) {
        let mut state = self.0.borrow_mut();
        let index = state.points.len();
        state.points.push(name.to_owned());
        let faults: Vec<Fault> =
            state.strikes.iter().filter(|(n, _)| *n == index).map(|(_, fault)| *fault).collect();
        for fault in faults {
            state.struck = Some(state.time);
            state.strikes_done += 1;
            match fault {
                Fault::LaptopKill => {
                    state.laptop_dead = true;
                    state.cut_below = state.connections;
                }
                Fault::Cut => state.cut_below = state.connections,
                Fault::Partition => state.partition = true,
                Fault::DiskFull => state.disk.full = true,
                Fault::AgentKill => {
                    if state.volatile.agent.is_some() {
                        state.start_agent();
                    }
                }
                Fault::NodeKill => {
                    drop(state);
                    // No message, no handlers: nothing but guards sees it.
                    resume_unwind(Box::new(Crash::Process));
                }
                Fault::Power => {
                    drop(state);
                    resume_unwind(Box::new(Crash::Machine));
                }
            }
        }
    }

    /// A process of our binary.
    pub(crate) fn process(&self) -> host::Process {
        host::Process::new(self.clone())
    }

    /// Runs something that may crash: None if it did. A dark machine starts again.
    pub(crate) fn survive<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(value) => Some(value),
            Err(payload) => {
                match payload.downcast::<Crash>() {
                    Ok(crash) if matches!(*crash, Crash::Machine) => self.boot(),
                    Ok(_) => {}
                    Err(payload) => resume_unwind(payload),
                }
                None
            }
        }
    }

    /// The machine starts: first what recovers, then the agent.
    pub(crate) fn boot(&self) {
        {
            let mut state = self.0.borrow_mut();
            state.volatile = Volatile::default();
            state.cut_below = state.connections;
            state.time += 20_000;
            state.booted = state.time;
            state.boots += 1;
            // systemd-sysctl.
            state.load_sysctls();
        }
        if self.0.borrow().disk.boot_unit {
            let crashed = self.survive(|| recover(&mut self.process())).is_none();
            if crashed && self.0.borrow().volatile.agent.is_some() {
                // It was the power again, and that start is over.
                return;
            }
        }
        {
            let mut state = self.0.borrow_mut();
            if state.disk.enabled.contains(ours::UNIT) {
                state.start_agent();
            }
        }
        self.agent();
    }

    /// The agent looks and mends, if it runs and is not locked out.
    pub(crate) fn agent(&self) {
        let mut state = self.0.borrow_mut();
        let Some(agent) = state.volatile.agent.clone() else { return };
        if state.volatile.agent_locked {
            return;
        }
        let Some(digest) = state.config() else { return };
        state.volatile.agent = Some((agent.0, digest));
        if std::mem::take(&mut state.volatile.told_again) && state.volatile.speaker.is_some() {
            state.volatile.speaker = Some(state.disk.cordoned.is_some());
        }
        state.converge();
    }

    /// Time passes until no timer is left. `step` sees the machine after each.
    pub(crate) fn elapse(&self) {
        for _ in 0..50 {
            self.agent();
            let Some((id, due)) = self.0.borrow().volatile.timer.clone() else { return };
            {
                let mut state = self.0.borrow_mut();
                state.time = state.time.max(due);
                // systemd: the timer has fired, and its service runs.
                state.volatile.timer = None;
            }
            let boots = self.0.borrow().boots;
            let ended = self.survive(|| expire(&mut self.process(), &id));
            let failed = !matches!(ended, Some(Ok(_)));
            let mut state = self.0.borrow_mut();
            if failed && state.boots == boots {
                // Restart=on-failure, RestartSec=1.
                state.volatile.timer = Some((id, state.time + 1000));
            }
        }
        panic!("timers never end");
    }

    /// Everything of ours.
    pub(crate) fn observed(&self) -> Vec<NodeObject> {
        self.0.borrow().objects()
    }
}

impl State {
    fn spec_text(&self) -> Option<&str> {
        let object = self.disk.files.get(&Key::File(ours::NODE_SPEC.to_owned()))?;
        let Spec::File(File { content: Content::Text(text), .. }) = &object.spec else { return None };
        Some(text)
    }

    /// The spec on the disk.
    pub(crate) fn spec(&self) -> Option<NodeSpec> {
        serde_json::from_str(self.spec_text()?).ok()
    }

    /// Its digest.
    pub(crate) fn config(&self) -> Option<String> {
        Some(homelab_model::sha256_hex(self.spec_text()?.as_bytes()))
    }

    /// What it says that the node should hold.
    pub(crate) fn desired(&self) -> Vec<NodeObject> {
        // Thousands of machines hold the same.
        thread_local!(static KNOWN: RefCell<BTreeMap<String, Vec<NodeObject>>> = RefCell::default());
        let Some(text) = self.spec_text() else { return Vec::new() };
        KNOWN.with_borrow_mut(|known| {
            if !known.contains_key(text) {
                let spec: Option<NodeSpec> = serde_json::from_str(text).ok();
                let objects = spec.map(|spec| homelab_desired::desired(&spec)).unwrap_or_default();
                known.insert(text.to_owned(), objects);
            }
            known.get(text).cloned().unwrap_or_default()
        })
    }
}
