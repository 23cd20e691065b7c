//! Stopping a node's program at a named point of its work, and what can be done to it there.
//!
//! The node binary that `cargo xtask dist` builds into `target/debug/faults` stops itself (SIGSTOP) where
//! `/run/homelab-fault` on the node says.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use homelab_lab::NodeSnapshot;

use crate::{Cluster, Plan};

/// Holds the name of the point to stop at, or its beginning and a `*`.
const ARMED: &str = "/run/homelab-fault";
/// Holds pid and point of the process that stopped.
const REACHED: &str = "/run/homelab-fault.reached";
/// There as long as a transaction is neither confirmed nor taken back.
pub const JOURNAL: &str = "/var/lib/homelab/transaction/journal.json";

/// What is there while a transaction is open, by its path below the root directory.
const OPEN: [&str; 3] = [
    "var/lib/homelab/transaction",
    "etc/systemd/system/homelab-recovery.service",
    "usr/local/lib/homelab/recovery",
];

/// Ends every ssh connection of a node, from the node's side.
const DROP: &str = "kill $(ss -Htnp state established sport = :22 | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -u) 2>/dev/null || true";

/// Something that goes wrong while a node's program stands at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The laptop's `homelab` is killed.
    LaptopKilled,
    /// The node loses its SSH connections.
    ConnectionCut,
    /// The node's program is killed.
    NodeProgramKilled,
    /// The node loses power, and gets it back.
    PowerCut,
    /// Nothing more can be written to the node's disk.
    DiskFull,
    /// The node is cut off in the switch.
    Partition,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 6] = [
        Fault::LaptopKilled,
        Fault::ConnectionCut,
        Fault::NodeProgramKilled,
        Fault::PowerCut,
        Fault::DiskFull,
        Fault::Partition,
    ];
}

/// A process of a node that stands at a point.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// Its process id on the node.
    pub pid: u32,
    /// The point.
    pub point: String,
}

impl Cluster {
    /// From now on until the end of the scenario, `homelab` installs the node binary with fault points.
    #[track_caller]
    pub fn with_fault_points(&mut self) {
        let directory = Self::fault_binaries().expect("checked at the start");
        assert!(
            directory.join("homelab-node.json").is_file(),
            "{} is missing: run cargo xtask dist",
            directory.display()
        );
        self.binaries = Some(directory);
    }

    /// Has the next program of ours that comes to `point` stop there; `effect.*` is any point that begins so.
    #[track_caller]
    pub fn stop_at(&self, node: &str, point: &str) {
        // Renamed into place: a program that looks in between must not see half a name.
        self.sh(
            node,
            &format!("rm -f {REACHED}; printf %s '{point}' >{ARMED}.new && mv {ARMED}.new {ARMED}"),
        );
    }

    /// No program stops any more.
    #[track_caller]
    pub fn disarm(&self, node: &str) {
        self.sh(node, &format!("rm -f {ARMED} {REACHED}"));
    }

    /// Waits for a program to come to the point; None if none did within `limit`.
    pub fn reached(&self, node: &str, limit: Duration) -> Option<Stopped> {
        let start = Instant::now();
        loop {
            if let Some(stopped) = self.stopped(node) {
                return Some(stopped);
            }
            if start.elapsed() >= limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stopped(&self, node: &str) -> Option<Stopped> {
        let text = std::fs::read_to_string(self.on_node(node, REACHED)?).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let point = words.next()?.to_owned();
        // The file is there a moment before the process stands still.
        let state = std::fs::read_to_string(self.on_node(node, &format!("/proc/{pid}/stat"))?).ok()?;
        let state = state.rsplit_once(") ")?.1;
        state.starts_with('T').then_some(Stopped { pid, point })
    }

    /// Lets a program that stands at a point go on, if there still is one.
    pub fn go_on(&self, node: &str, stopped: &Stopped) {
        let _ = self.lab.sh(node, &format!("rm -f {REACHED}; kill -CONT {}", stopped.pid));
    }

    /// Path on this machine of a file of a running node, for looking often without starting a program.
    pub fn on_node(&self, node: &str, path: &str) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/proc/{}/root{path}", self.lab.leader(node).ok()?)))
    }

    /// Ends every SSH connection of a node, from the node's side.
    #[track_caller]
    pub fn cut_connections(&self, node: &str) {
        self.sh(node, DROP);
    }

    /// Whether there is anything left of a transaction that is neither confirmed nor taken back, or of the means to
    /// take it back. A node that is off has what its disk has.
    #[track_caller]
    pub fn is_open(&self, node: &str) -> bool {
        let root = self.lab.root_of(node).expect("a node has a disk");
        OPEN.iter().any(|path| root.join(path).symlink_metadata().is_ok())
    }

    /// Waits until no transaction is open and nothing that could take one back is left; gives how long that took.
    #[track_caller]
    pub fn closed_within(&self, node: &str, limit: Duration) -> Duration {
        let start = Instant::now();
        // The boot unit, which has ended and whose file is gone, stays in systemd's memory as dead.
        let units = "systemctl list-units --all --no-legend 'homelab-revert*'; systemctl list-units --no-legend homelab-recovery.service";
        let mut last = String::new();
        loop {
            if !self.is_open(node) {
                let time = start.elapsed();
                last =
                    self.lab.sh(node, units).map_or_else(|error| error.to_string(), |output| output.stdout);
                if last.is_empty() {
                    return time;
                }
            }
            // systemd takes a moment to forget what has ended.
            let limit = limit + Duration::from_secs(1);
            assert!(
                start.elapsed() < limit,
                "after {limit:?} {node} still has {}{last}",
                self.left_open(node)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn left_open(&self, node: &str) -> String {
        let script = format!(
            "cd /; ls -d {} 2>/dev/null; head -c 600 {JOURNAL}; journalctl --boot --no-pager --output cat -u 'homelab-revert*' -u homelab-recovery | tail -20",
            OPEN.join(" ")
        );
        self.lab.sh(node, &script).map_or_else(|error| error.to_string(), |output| output.stdout)
    }

    /// Whether somebody holds the node's lock.
    #[track_caller]
    pub fn is_locked(&self, node: &str) -> bool {
        self.sh(node, "test ! -e /run/homelab/session.lock || flock --nonblock /run/homelab/session.lock true && echo free || echo held") == "held"
    }

    /// A node as far as a change can be seen on it: its snapshot without what homelab notes of its own work.
    #[track_caller]
    pub fn state(&self, node: &str) -> NodeSnapshot {
        let snapshot = self.snapshot(node).without_idle_units();
        let paths: Vec<&str> = snapshot.section("file").map(|(path, _)| path).collect();
        let notes: Vec<String> =
            paths.iter().filter(|path| is_note(path, &paths)).map(|path| (*path).to_owned()).collect();
        snapshot.without_entries(&notes.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The states of all nodes, at once.
    #[track_caller]
    pub fn states(&self) -> Vec<NodeSnapshot> {
        self.of_all(|node| self.state(node))
    }

    /// Asserts that a node is as it was.
    #[track_caller]
    pub fn assert_state(&self, node: &str, before: &NodeSnapshot, when: &str) {
        assert_same(node, before, &self.state(node), when);
    }

    /// Asserts that all nodes are as they were.
    #[track_caller]
    pub fn assert_states(&self, before: &[NodeSnapshot], when: &str) {
        for ((node, before), now) in self.nodes().iter().zip(before).zip(self.states()) {
            assert_same(node, before, &now, when);
        }
    }

    /// The plan of one node alone.
    #[track_caller]
    pub fn plan_of_node(&self, node: &str) -> Plan {
        self.plan_of(&["--nodes", node])
    }
}

#[track_caller]
fn assert_same(node: &str, before: &NodeSnapshot, now: &NodeSnapshot, when: &str) {
    let diff = before.diff(now);
    assert!(diff.is_empty(), "{when}: {node} is not as before:\n{diff}");
}

/// Records of past transactions, locks, and what is kept for `homelab rollback`: they tell of work, and change
/// nothing. What is kept for a transaction that is open (`.homelab-undo`) is none of these: it must go.
fn is_note(path: &str, all: &[&str]) -> bool {
    const RECORDS: [&str; 3] = ["confirmed.json", "reverted.json", "previous.json"];
    let kept = |path: &str| path.ends_with(".homelab-previous");
    let within = format!("{path}/");
    let mut inside = all.iter().filter(|other| other.starts_with(&within)).peekable();
    path.strip_prefix("/var/lib/homelab/").is_some_and(|name| RECORDS.contains(&name))
        || path.starts_with("/run/homelab/")
        || kept(path)
        // A directory that is there for what is kept in it.
        || (inside.peek().is_some() && inside.all(|other| kept(other)))
}
