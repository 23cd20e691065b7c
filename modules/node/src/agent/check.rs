//! One check: what differs is repaired, each part for itself.

use std::path::Path;
use std::time::{Duration, Instant as Start};

use homelab_linux::{Connections, Error, Kinds, Root};
use homelab_model::{Backend, Change, Module, NodeObject, NodeSpec, Scope, diff, ours};
use homelab_proxy::Elements;
use tracing::{info, warn};

use super::Agent;
use super::events::among;
use super::http::Moment;
use super::metrics::number;
use crate::transaction::is_nft;

impl Agent {
    /// Repairs what differs among `kinds`. False if an apply holds the lock.
    pub(super) fn check(&mut self, kinds: Kinds) -> bool {
        match homelab_linux::lock(&Root::system(), Duration::ZERO) {
            Err(Error::Locked(_)) => return false,
            Err(error) => warn!(%error, "cannot take the lock"),
            Ok(_lock) => {
                let start = Start::now();
                self.load();
                let kinds = Kinds { services: kinds.services || !self.settled, ..kinds };
                if let Some(spec) = self.spec.clone() {
                    self.converge(&spec, kinds);
                    if kinds.nft
                        && let Err(error) = self.node.note_ruleset()
                    {
                        warn!(%error, "cannot note what nft says");
                    }
                    if kinds.nft {
                        self.guard();
                        self.forward();
                    }
                    if kinds.services {
                        self.serve(None);
                    }
                }
                let scope = if kinds.links || kinds.nft || kinds.services { "kernel" } else { "files" };
                self.metrics.checks.with_label_values(&[scope]).observe(start.elapsed().as_secs_f64());
            }
        }
        true
    }

    fn converge(&mut self, spec: &NodeSpec, kinds: Kinds) {
        let mine = |o: &NodeObject| o.module != Module::Agent && among(kinds, &o.spec);
        let kinds = Kinds { services: false, ..kinds };
        let desired: Vec<_> = self.foundation.iter().filter(|o| mine(o)).cloned().collect();
        let scope = Scope::of(&desired, &spec.vtep.device);
        let observed = self.node.observe_objects(&scope, kinds);
        let mut observed = match observed {
            // A stranger's link under one of our names is in the way, and stays.
            Ok(observed) => homelab_linux::without_strangers(observed, &desired),
            Err(error) => {
                warn!(%error, "cannot look at the node");
                self.blind = Some(error.to_string());
                return;
            }
        };
        self.blind = None;
        observed.retain(mine);
        let known: Vec<String> = self.failures.iter().map(|(_, message)| message.clone()).collect();
        self.failures.retain(|(spec, _)| !among(kinds, spec));
        let (nft, others): (Vec<_>, Vec<_>) = diff(&observed, &desired).into_iter().partition(is_nft);
        for change in others {
            self.repair(&change, &known);
        }
        // Chains jump to each other: all of them at once, or, where that fails, as far as it goes.
        match self.node.apply_all(&nft, &mut |_| {}) {
            Ok(()) => nft.iter().for_each(|change| self.repaired(change)),
            Err(_) => nft.iter().for_each(|change| self.repair(change, &known)),
        }
        if kinds.links {
            self.peers.settle(&self.failures);
        }
    }

    /// Repairs one thing: a part that cannot be repaired must not keep the rest broken. What is `known` not to work is
    /// not said again.
    fn repair(&mut self, change: &Change<NodeObject>, known: &[String]) {
        match self.node.apply(change) {
            Ok(()) => self.repaired(change),
            Err(error) => {
                let object = change.key().to_string();
                let message = format!("{object}: {error}");
                if !known.contains(&message) {
                    warn!(object, %error, "cannot repair");
                }
                if let Some(object) = change.after().or(change.before()) {
                    self.failures.push((object.spec.clone(), message));
                }
            }
        }
    }

    fn repaired(&mut self, change: &Change<NodeObject>) {
        // What Kubernetes brings is no repair.
        if self.peers.moves(&change.key()) {
            info!(object = change.key().to_string(), "follows the Nodes of Kubernetes");
            return;
        }
        info!(object = change.key().to_string(), "repaired");
        self.count_repair();
    }

    fn count_repair(&mut self) {
        self.report.repairs += 1;
        self.metrics.repairs.inc();
    }

    /// Lets guarded pods send by their own addresses only.
    fn guard(&mut self) {
        match crate::cni::guard::sync() {
            Ok((0, 0)) => self.unguarded = None,
            Ok((added, deleted)) => {
                info!(added, deleted, "spoof protection of pods repaired");
                self.count_repair();
                self.unguarded = None;
            }
            Err(error) => {
                note(&mut self.unguarded, &error, "cannot keep pods to their own addresses");
            }
        }
    }

    /// Makes the node's ports lead to the pods that hold them.
    fn forward(&mut self) {
        match crate::cni::hostport::Claims::of(Path::new(ours::IPAM)).and_then(|claims| claims.sync()) {
            Ok(synced) => {
                if synced.added + synced.deleted > 0 {
                    info!(added = synced.added, deleted = synced.deleted, "host ports repaired");
                    self.count_repair();
                }
                if synced.freed > 0 {
                    info!(pods = synced.freed, "host ports of vanished pods are free again");
                }
                self.unforwarded = None;
            }
            Err(error) => {
                note(&mut self.unforwarded, &error, "cannot put host ports in place");
            }
        }
    }

    /// Makes the proxy's sets hold what they should; with `changed` only what they hold of these services.
    pub(super) fn serve(&mut self, changed: Option<&Elements>) {
        let connections = if self.settled { Connections::OfChange } else { Connections::All };
        let start = Start::now();
        let all = self.services.elements();
        let result = match changed {
            Some(changed) => self.node.sync_changed_services(changed),
            // What an earlier agent put there is served on until Kubernetes says what there is.
            None if !self.services.known() => self.node.sync_changed_services(all),
            None => self.node.sync_services(all, connections),
        };
        self.metrics.synced(start.elapsed(), result.as_ref().copied().map_err(drop));
        match result {
            Ok(synced) => {
                self.synced = Some(Moment::now());
                self.metrics.elements.set(number(self.services.element_count()));
                if synced.added + synced.deleted > 0 {
                    info!(added = synced.added, deleted = synced.deleted, "services in place");
                }
                if synced.ended + synced.released > 0 {
                    info!(
                        connections = synced.ended,
                        clients = synced.released,
                        "taken off endpoints that are gone"
                    );
                }
                // What a new configuration brings is no repair.
                if synced.added + synced.deleted > 0 && self.settled && changed.is_none() {
                    self.count_repair();
                }
                self.settled = true;
                self.unsynced = None;
            }
            Err(error) => {
                note(&mut self.unsynced, &error, "cannot put services in place");
                self.settled = false;
            }
        }
    }
}

/// Keeps why something does not work, and says it unless it was said.
fn note(kept: &mut Option<String>, error: &dyn std::fmt::Display, what: &str) {
    let message = error.to_string();
    if kept.as_ref() != Some(&message) {
        warn!(%error, "{what}");
    }
    *kept = Some(message);
}
