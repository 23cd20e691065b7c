//! Peers of the tunnel that are Nodes of the Kubernetes API.
//!
//! Which they are is written to disk before the kernel hears of it, and what goes stays there until the kernel has lost it:
//! so whoever looks at the node can tell the agent's entries from anybody else's, and an agent that starts without an API
//! has its peers.

use std::collections::{BTreeMap, HashSet};
use std::io;

use homelab_kubernetes::peers::{Peers, peers};
use homelab_model::{Key, LivePeers, NodeSpec, Spec, ours};
use tracing::{info, warn};

use super::Agent;
use super::kubernetes::replace;

/// The peers that count, and how far they are in place.
pub(super) struct Live {
    /// Those that count.
    now: LivePeers,
    /// As on disk; None: there is no file.
    kept: Option<LivePeers>,
    found: Peers,
    /// Entries that are not yet as the Nodes say.
    moving: HashSet<Key>,
}

/// The agent's peers as they are kept; None: it has none.
pub(crate) fn kept() -> Option<LivePeers> {
    super::kept_json(ours::KUBERNETES_PEERS)
}

impl Live {
    pub(super) fn load() -> Live {
        let kept = kept();
        let now = kept.clone().unwrap_or_default();
        Live { now, kept, found: Peers::default(), moving: HashSet::new() }
    }

    /// What is wrong with Nodes.
    pub(super) fn complaints(&self) -> impl Iterator<Item = &String> {
        self.found.complaints.iter()
    }

    /// The peers for a report.
    pub(super) fn names(&self) -> Vec<String> {
        let mark = |name: &str| if self.found.flannel.iter().any(|n| n == name) { " (flannel)" } else { "" };
        self.now.peers.iter().map(|peer| format!("{}{}", peer.name, mark(&peer.name))).collect()
    }

    /// Whether an entry is on its way to what the Nodes say, and no longer: it is there now.
    pub(super) fn moves(&mut self, key: &Key) -> bool {
        self.moving.remove(key)
    }

    /// The kernel has been looked after: what is gone need not be known any longer.
    pub(super) fn settle(&mut self, failures: &[(Spec, String)]) {
        if !failures.iter().any(|(spec, _)| self.moving.contains(&spec.key())) {
            self.moving.clear();
            let now = self.now.clone();
            self.keep(now);
        }
    }

    fn keep(&mut self, peers: LivePeers) {
        let wanted = Some(peers).filter(|all| !all.peers.is_empty());
        if self.kept == wanted {
            return;
        }
        let path = ours::KUBERNETES_PEERS;
        let result = match &wanted {
            Some(peers) => replace(path, &serde_json::to_string(peers).unwrap_or_default()),
            None => std::fs::remove_file(path),
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, path, "the peers of Kubernetes cannot be kept on disk");
            }
            _ => self.kept = wanted,
        }
    }
}

impl Agent {
    /// Takes over what the Nodes of the API mean for the tunnel. True if it shall hold something else.
    pub(super) fn take_peers(&mut self, spec: &NodeSpec) -> bool {
        let live = &mut self.peers;
        let mac = |name: &str| homelab_desired::vtep_mac(&spec.cluster, name);
        // What was kept of the Nodes may be older than what was kept of the peers.
        let none = BTreeMap::new();
        let nodes = self.services.listed_nodes().unwrap_or(&none);
        let found = peers(spec, nodes, &live.now.peers, &mac);
        for complaint in found.complaints.iter().filter(|one| !live.found.complaints.contains(one)) {
            warn!("{complaint}");
        }
        self.services.annotate(found.annotations.clone());
        let device = spec.vtep.device.clone();
        let now = LivePeers { device: device.clone(), peers: found.peers.clone() };
        live.found = found;
        self.foundation = homelab_desired::foundation(spec);
        homelab_desired::with_peers(&mut self.foundation, &device, &now.peers);
        if now == live.now {
            return false;
        }
        live.moving.extend(homelab_desired::changed_entries(&device, &live.now.peers, &now.peers));
        let mut both = now.clone();
        let old = live.kept.iter().filter(|kept| kept.device == device).flat_map(|kept| &kept.peers);
        both.peers.extend(old.filter(|peer| !now.peers.contains(peer)).cloned());
        live.keep(both);
        if now.peers != live.now.peers {
            info!(peers = now.peers.len(), "the tunnel follows the Nodes of Kubernetes");
        }
        live.now = now;
        true
    }
}
