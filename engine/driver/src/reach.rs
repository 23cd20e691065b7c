//! Whether the nodes' tunnels reach each other, before and after a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use homelab_model::{LinkKind, NodeObject, Spec};
use homelab_protocol::{Request, Response};

use crate::connection::Line;
use crate::engine::Engine;
use crate::parallel;

/// Longest time for a probe: the node itself takes a second at most.
const PROBE: Duration = Duration::from_secs(3);

/// Addresses of a node's tunnel.
pub(crate) fn tunnel(objects: &[NodeObject]) -> Vec<IpAddr> {
    let vxlan = |o: &NodeObject| match &o.spec {
        Spec::Link(l) if matches!(l.kind, LinkKind::Vxlan { .. }) => Some(l.name.clone()),
        _ => None,
    };
    let links: Vec<String> = objects.iter().filter_map(vxlan).collect();
    let address = |o: &NodeObject| match &o.spec {
        Spec::Address(a) if links.contains(&a.link) => Some(a.address.addr()),
        _ => None,
    };
    objects.iter().filter_map(address).collect()
}

/// What is known of the tunnels while nodes are changed.
#[derive(Default)]
pub(crate) struct Reach {
    /// Pairs that reached each other before, each in order.
    worked: BTreeSet<(String, String)>,
    /// Nodes that are as they shall be, with the addresses of their tunnels.
    ready: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    /// Pairs that do not reach each other and never did.
    warnings: Mutex<BTreeMap<(String, String), String>>,
    /// UDP port of the tunnel.
    pub(crate) port: u16,
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a < b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

impl Reach {
    /// Counts a node among those that are as they shall be, and gives the others.
    fn join(&self, name: &str, addresses: Vec<IpAddr>) -> BTreeMap<String, Vec<IpAddr>> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = ready.clone();
        others.remove(name);
        if !addresses.is_empty() {
            ready.insert(name.to_owned(), addresses);
        }
        others
    }

    /// Counts a node among those that are as they shall be.
    pub(crate) fn is_ready(&self, name: &str, addresses: Vec<IpAddr>) {
        self.join(name, addresses);
    }

    /// No longer counts it: its change is taken back.
    pub(crate) fn is_not_ready(&self, name: &str) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(crate) fn warnings(self) -> Vec<String> {
        let warnings = self.warnings.into_inner().unwrap_or_else(PoisonError::into_inner);
        warnings.into_values().collect()
    }
}

/// Which of `peers` answer; all addresses of a peer must.
fn probe(line: &Line, peers: &BTreeMap<String, Vec<IpAddr>>, limit: Duration) -> BTreeSet<String> {
    let targets: Vec<IpAddr> = peers.values().flatten().copied().collect();
    if targets.is_empty() {
        return BTreeSet::new();
    }
    let answer = line.get().ask(&Request::Probe { targets: targets.clone() }, limit.min(PROBE));
    let Ok(Response::Reached { reached }) = answer else { return BTreeSet::new() };
    let good: BTreeSet<IpAddr> =
        targets.into_iter().zip(reached).filter(|(_, reached)| *reached).map(|(target, _)| target).collect();
    let all = |(_, addresses): &(&String, &Vec<IpAddr>)| addresses.iter().all(|a| good.contains(a));
    peers.iter().filter(all).map(|(name, _)| name.clone()).collect()
}

impl Engine<'_> {
    /// Asks every node of `tunnels` which of the others it reaches.
    pub(crate) fn reach_before(&self, tunnels: BTreeMap<String, (Line, Vec<IpAddr>)>) -> Reach {
        let addresses: BTreeMap<String, Vec<IpAddr>> = tunnels
            .iter()
            .filter(|(_, (_, a))| !a.is_empty())
            .map(|(n, (_, a))| (n.clone(), a.clone()))
            .collect();
        let nodes: Vec<(String, Line)> =
            tunnels.into_iter().filter(|(_, (_, a))| !a.is_empty()).map(|(n, (line, _))| (n, line)).collect();
        let probed = parallel::map(nodes, self.options.parallel, |(name, line)| {
            let mut peers = addresses.clone();
            peers.remove(&name);
            let reached = probe(&line, &peers, self.options.answer);
            (name, reached)
        });
        let mut worked = BTreeSet::new();
        for (name, reached) in probed {
            worked.extend(reached.iter().map(|peer| pair(&name, peer)));
        }
        Reach { worked, ..Reach::default() }
    }

    /// Whether a node that is as it shall be reaches the others that are; the ones that it reached before and does
    /// not any more. An answer needs the way there and back: one side asks for both.
    pub(crate) fn cut_off(
        &self,
        reach: &Reach,
        name: &str,
        line: &Line,
        addresses: Vec<IpAddr>,
    ) -> Vec<String> {
        if addresses.is_empty() {
            return Vec::new();
        }
        let peers = reach.join(name, addresses);
        let end = Instant::now() + self.options.settle;
        let mut missing: BTreeMap<String, Vec<IpAddr>> = peers;
        loop {
            for peer in probe(line, &missing, self.options.answer) {
                missing.remove(&peer);
            }
            let (lost, never): (Vec<String>, Vec<String>) =
                missing.keys().cloned().partition(|peer| reach.worked.contains(&pair(name, peer)));
            let over = Instant::now() >= end;
            if lost.is_empty() || over {
                let mut warnings = reach.warnings.lock().unwrap_or_else(PoisonError::into_inner);
                for peer in never {
                    let text = format!(
                        "pods of {name} do not reach {peer}: is UDP {} open between them?",
                        reach.port
                    );
                    warnings.insert(pair(name, &peer), text);
                }
                return lost;
            }
            std::thread::sleep(self.options.pause);
        }
    }
}
