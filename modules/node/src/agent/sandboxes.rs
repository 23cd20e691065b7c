//! Addresses of pods that ended without a DEL.
//!
//! A pod whose network namespace is gone has lost its link: its entry is free. Where a runtime lost a pod and left the
//! namespace behind, only the runtime can say so. Therefore an entry that a runtime made by CRI is freed if that very
//! runtime answers and does not list its sandbox, nor does any other, in every look for [`APART`]. Whoever asked
//! otherwise (ctr, podman, nerdctl) or does not answer, or is not known, frees nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use homelab_cri::Client;
use homelab_linux::{Node, Root, cri_sockets};
use homelab_model::ours;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::metrics::Metrics;
use crate::cni::{self, Sandboxed};

/// Addresses of pods that ended without a DEL are looked for this often. Tests of binaries with fault points do not wait.
pub(super) const EVERY: Duration = Duration::from_secs(if cfg!(feature = "fault-points") { 2 } else { 60 });
/// A sandbox counts as gone when it was in no look for this long: containerd lists one only after its network is made, and
/// kubelet gives it 4 minutes for all.
const APART: Duration = Duration::from_secs(if cfg!(feature = "fault-points") { 20 } else { 300 });
/// How long a runtime may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// What the runtimes said at one time.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// The sandboxes that had entries before anybody was asked.
    held: BTreeSet<Sandboxed>,
    /// Marks of the runtimes that answered.
    answered: BTreeSet<String>,
    /// The sandboxes that they listed.
    listed: BTreeSet<String>,
    /// What the others said.
    errors: Vec<String>,
}

/// Since when sandboxes have been in no look.
#[derive(Debug, Default)]
struct Absences(BTreeMap<Sandboxed, Instant>);

impl Absences {
    /// Takes a look into account; gives the sandboxes that are gone.
    fn judge(&mut self, now: Instant, look: &Look) -> BTreeSet<Sandboxed> {
        let absent = |sandbox: &Sandboxed| {
            let (container, runtime) = sandbox;
            look.held.contains(sandbox) && look.answered.contains(runtime) && !look.listed.contains(container)
        };
        self.0.retain(|sandbox, _| absent(sandbox));
        for sandbox in look.held.iter().filter(|sandbox| absent(sandbox)) {
            self.0.entry(sandbox.clone()).or_insert(now);
        }
        let gone = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= APART);
        gone.map(|(sandbox, _)| sandbox.clone()).collect()
    }
}

/// The agent's looks.
pub(super) struct Sandboxes {
    absences: Absences,
    /// Why entries stay that may be nobody's.
    trouble: Vec<String>,
    looking: bool,
    sender: mpsc::Sender<Look>,
    looks: mpsc::Receiver<Look>,
}

impl Sandboxes {
    pub(super) fn new() -> Sandboxes {
        let (sender, looks) = mpsc::channel(1);
        Sandboxes { absences: Absences::default(), trouble: Vec::new(), looking: false, sender, looks }
    }

    /// Frees what has no link, and asks the runtimes for the rest, unless they are still being asked.
    pub(super) fn sweep(&mut self, metrics: &Metrics) {
        match cni::sweep(Path::new(ours::IPAM)) {
            Ok(0) => {}
            Ok(freed) => {
                info!(freed, "addresses of vanished pods are free again");
                metrics.freed("link", freed);
            }
            Err(error) => warn!(%error, "cannot look for addresses of vanished pods"),
        }
        recover(metrics);
        if self.looking {
            return;
        }
        match cni::sandboxes(Path::new(ours::IPAM)) {
            // Nothing to ask for.
            Ok(held) if held.is_empty() => self.absences = Absences::default(),
            Ok(held) => {
                self.looking = true;
                let sender = self.sender.clone();
                // Not awaited: a runtime that hangs keeps the agent from nothing.
                tokio::spawn(async move { sender.send(look(held).await).await });
            }
            Err(error) => warn!(%error, "cannot look for pods that their runtimes forgot"),
        }
    }

    /// The next look, once the runtimes have been asked.
    pub(super) async fn next(&mut self) -> Look {
        match self.looks.recv().await {
            Some(look) => look,
            // We have a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Frees what the runtimes know no more.
    pub(super) fn take(&mut self, look: &Look, metrics: &Metrics) {
        self.looking = false;
        let silent = look.held.iter().any(|(_, runtime)| !look.answered.contains(runtime));
        let trouble = if silent { look.errors.clone() } else { Vec::new() };
        if !trouble.is_empty() && trouble != self.trouble {
            warn!(
                reasons = trouble.join("; "),
                "a runtime does not say which pods it knows; their addresses stay"
            );
        }
        self.trouble = trouble;
        let gone = self.absences.judge(Instant::now(), look);
        if gone.is_empty() {
            return;
        }
        let (freed, result) = cni::forget(Path::new(ours::IPAM), &gone);
        let sandboxes: Vec<&str> = gone.iter().map(|(container, _)| container.as_str()).collect();
        if freed > 0 {
            info!(
                freed,
                sandboxes = sandboxes.join(" "),
                "pods that their runtime does not know are detached"
            );
            metrics.freed("sandbox", freed);
        }
        if let Err(error) = result {
            warn!(%error, "cannot detach a pod that its runtime does not know");
        }
    }
}

/// Gives pods whose reservations were lost new ones, and takes away links that are no pod's any more.
fn recover(metrics: &Metrics) {
    let cluster = || Some(Node::open(Root::system()).ok()?.spec()?.cluster);
    match cni::recover(Path::new(ours::IPAM), cluster) {
        Ok(found) => {
            if found.reserved > 0 {
                info!(found.reserved, "pods whose reservations were lost have new ones");
            }
            if found.deleted > 0 {
                info!(found.deleted, "left-over links of pods are deleted");
                metrics.freed("returned", found.deleted);
            }
            if !found.doubled.is_empty() {
                let links = found.doubled.join(" ");
                warn!(
                    links,
                    "the addresses of these pods were given to others as well; start one of each anew"
                );
            }
        }
        Err(error) => warn!(%error, "cannot look for pods whose reservations were lost"),
    }
}

/// Asks every runtime of the node.
async fn look(held: BTreeSet<Sandboxed>) -> Look {
    let mut look = Look { held, ..Look::default() };
    for (name, path) in cri_sockets(&Root::system()) {
        match Client::new(path, LIMIT).list().await {
            Ok(found) => {
                look.listed.extend(found.items.into_iter().map(|sandbox| sandbox.id));
                match found.pid.and_then(|pid| cni::mark_of(&pid.to_string())) {
                    Some(mark) => drop(look.answered.insert(mark)),
                    None => look.errors.push(format!("{name}: the kernel does not say who listens")),
                }
            }
            Err(error) => look.errors.push(format!("{name}: {error}")),
        }
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(held: &[(&str, &str)], answered: &[&str], listed: &[&str]) -> Look {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Look {
            held: held
                .iter()
                .map(|(container, mark)| ((*container).to_owned(), (*mark).to_owned()))
                .collect(),
            answered: owned(answered),
            listed: owned(listed),
            errors: Vec::new(),
        }
    }

    fn names(gone: BTreeSet<Sandboxed>) -> Vec<String> {
        gone.into_iter().map(|(container, _)| container).collect()
    }

    #[test]
    fn a_sandbox_is_gone_when_its_runtime_did_not_list_it_for_long_enough() {
        let mut absences = Absences::default();
        let start = Instant::now();
        let held = [("a", "crio"), ("b", "crio")];
        let seen = look(&held, &["crio"], &["a"]);
        assert_eq!(names(absences.judge(start, &seen)), [""; 0]);
        assert_eq!(names(absences.judge(start + APART - Duration::from_secs(1), &seen)), [""; 0]);
        assert_eq!(names(absences.judge(start + APART, &seen)), ["b"]);
        // If it could not be freed, the next look says it again; then it has no entry.
        assert_eq!(names(absences.judge(start + APART, &seen)), ["b"]);
        assert_eq!(names(absences.judge(start + APART, &look(&[("a", "crio")], &["crio"], &["a"]))), [""; 0]);
    }

    #[test]
    fn whoever_does_not_answer_frees_nothing_and_the_time_begins_anew() {
        let held = [("a", "crio")];
        let absent = look(&held, &["crio"], &[]);
        let between = [
            // It does not answer, alone or beside another one.
            look(&held, &[], &[]),
            look(&held, &["containerd"], &[]),
            // It lists the sandbox after all; or another one does.
            look(&held, &["crio"], &["a"]),
            look(&held, &["crio", "containerd"], &["a"]),
            // The entry was made anew meanwhile.
            look(&[], &["crio"], &[]),
        ];
        for other in between {
            let mut absences = Absences::default();
            let start = Instant::now();
            assert!(absences.judge(start, &absent).is_empty());
            assert!(absences.judge(start + APART, &other).is_empty(), "{other:?}");
            assert!(absences.judge(start + APART, &absent).is_empty(), "{other:?}");
            assert_eq!(names(absences.judge(start + 2 * APART, &absent)), ["a"], "{other:?}");
        }
    }
}
