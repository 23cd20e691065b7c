//! Questions about load-balancer addresses, and nodes that are to have none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use homelab_model::{LbNode, Pool, PoolRange, Scanned};
use homelab_protocol::{Request, Response};

use crate::connection::Line;
use crate::engine::{Engine, Prepared, is_chosen};
use crate::lb::is_known;
use crate::resolve::first_scope;
use crate::{ByNode, NodeError};

/// How long the nodes may take to hand addresses over after a node was cordoned, or may have some again.
const HANDOVER: Duration = Duration::from_secs(5);
/// Whether the user wants to stop is looked at this often.
const STEP: Duration = Duration::from_millis(20);
/// How long a node that is watched may take to answer.
const GLANCE: Duration = Duration::from_secs(3);

/// What came of cordoning a node, or of lifting that.
#[derive(Debug)]
pub struct Cordoned {
    /// Whether it was otherwise before.
    pub changed: bool,
    /// What it says.
    pub node: LbNode,
    /// What the nodes said before.
    pub before: ByNode<LbNode>,
    /// What they say now.
    pub after: ByNode<LbNode>,
    /// All agents that could be asked know it, and agree about who has which address.
    pub known: bool,
}

fn read(response: Response) -> Result<LbNode, Response> {
    match response {
        Response::LoadBalancers(node) => Ok(*node),
        other => Err(other),
    }
}

/// The ranges of pools that can be asked for one by one, and what is said of the others: /64 of IPv6 cannot.
fn scannable(pools: &[Pool]) -> (Vec<PoolRange>, Vec<String>) {
    let (mut ranges, mut said, mut left) = (Vec::new(), Vec::new(), Request::SCAN);
    for pool in pools {
        for range in &pool.addresses {
            match left.checked_sub(range.count()) {
                Some(rest) => {
                    left = rest;
                    ranges.push(*range);
                }
                None => said.push(format!(
                    "pool {}: {} to {} is not scanned: a scan asks for {} addresses at most",
                    pool.name,
                    range.first,
                    range.last,
                    Request::SCAN
                )),
            }
        }
    }
    (ranges, said)
}

/// Which addresses of the pools are in use by machines that are no nodes, by address.
fn in_use<E: std::fmt::Display>(
    pools: &[Pool],
    nodes: &[(String, Result<LbNode, E>)],
    heard: &[(String, Result<Vec<Scanned>, E>)],
) -> Vec<String> {
    let reports = nodes.iter().filter_map(|(_, node)| node.as_ref().ok()?.report.as_ref());
    let members = reports.flat_map(|report| &report.members).flat_map(|member| &member.interfaces);
    let ours: BTreeSet<&str> = members.map(|(_, mac)| mac.as_str()).collect();
    let mut found: BTreeMap<(IpAddr, &str), Vec<String>> = BTreeMap::new();
    let mut said = Vec::new();
    for (node, answer) in heard {
        match answer {
            Ok(all) => {
                for one in all.iter().filter(|one| !ours.contains(one.mac.as_str())) {
                    let askers = found.entry((one.address, &one.mac)).or_default();
                    askers.push(format!("{node} ({})", one.interface));
                }
            }
            Err(error) => said.push(format!("{node}: the pools were not scanned: {error}")),
        }
    }
    said.extend(found.into_iter().map(|((address, mac), askers)| {
        let pool = pools.iter().find(|pool| pool.holds(address)).map_or("?", |pool| pool.name.as_str());
        format!(
            "{address} of pool {pool} is used by another machine, {mac}, as heard by {}: take it out of the pool (and the pool \
             out of your router's DHCP range), or give that machine another address",
            askers.join(" and ")
        )
    }));
    said
}

impl Engine<'_> {
    /// What each reached node that was chosen says of load-balancer addresses.
    pub fn load_balancers(&self, prepared: &Prepared) -> ByNode<LbNode> {
        self.ask_each(prepared, &prepared.chosen, &Request::LoadBalancers, read)
    }

    /// Says which addresses of the pools other machines use, as the reached nodes that were chosen hear them.
    pub fn scan_pools(&self, prepared: &Prepared, pools: &[Pool]) -> Vec<String> {
        let (ranges, mut said) = scannable(pools);
        if ranges.is_empty() {
            return said;
        }
        let request = Request::Scan { ranges };
        let heard = self.ask_each(prepared, &prepared.chosen, &request, |response| match response {
            Response::Scanned { found } => Ok(found),
            other => Err(other),
        });
        said.extend(in_use(pools, &self.load_balancers(prepared), &heard));
        said
    }

    /// Cordons a node, or lifts that, and waits until the others know.
    pub fn cordon(&self, prepared: &Prepared, node: &str, on: bool) -> Result<Cordoned, NodeError> {
        let ask = || self.ask_each(prepared, &[], &Request::LoadBalancers, read);
        let before = ask();
        let request = Request::Cordon { on, by: self.options.holder() };
        let answers = self.ask_each(prepared, &[node.to_owned()], &request, |response| match response {
            Response::Cordoned { changed, node } => Ok((changed, *node)),
            other => Err(other),
        });
        // One that was not reached has an error in the plan.
        let (_, answer) = answers.into_iter().next().ok_or(NodeError::Cancelled)?;
        let (changed, own) = answer?;
        let end = Instant::now() + HANDOVER;
        loop {
            let after = ask();
            let known = is_known(&after, node, on);
            if known || self.cancelled() || Instant::now() > end {
                return Ok(Cordoned { changed, node: own, before, after, known });
            }
            self.rest();
        }
    }

    /// Asks each chosen node again and again, each by itself, so that one that is away holds up no other, and tells
    /// `hear`, until the run is cancelled. A session that breaks is opened anew.
    pub fn follow_load_balancers(
        &self,
        prepared: &mut Prepared,
        pause: Duration,
        hear: &(dyn Fn(&str, Result<LbNode, NodeError>) + Sync),
    ) {
        let scope = first_scope(&prepared.cluster, &self.binaries.digests());
        let scope = &scope;
        let chosen = &prepared.chosen;
        let targets = prepared.targets.iter().filter(|(name, _)| is_chosen(chosen, name));
        std::thread::scope(|threads| {
            for (name, target) in targets {
                let mut line: Option<Line> = prepared.live.get(name).map(|live| live.line.clone());
                threads.spawn(move || {
                    while !self.cancelled() {
                        let open = || Ok(self.reopen(target, scope, self.options.answer)?.line);
                        let answer = line.take().map_or_else(open, Ok).and_then(|open: Line| {
                            let response = open.get().ask(&Request::LoadBalancers, GLANCE)?;
                            line = Some(open);
                            match read(response) {
                                Ok(node) => Ok(node),
                                Err(Response::Failed(failure)) => Err(NodeError::Failed(failure)),
                                Err(_) => Err(NodeError::OutOfTurn),
                            }
                        });
                        hear(name, answer);
                        let next = Instant::now() + pause;
                        while !self.cancelled() && Instant::now() < next {
                            sleep(STEP);
                        }
                    }
                });
            }
        });
    }
}
