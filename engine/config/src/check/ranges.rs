//! Ranges that must not meet: pods, services, pools, and the nodes' own addresses.

use std::net::IpAddr;

use super::{network, nodes, services};
use crate::problem::{Fault, Span};

struct Claim {
    what: String,
    text: String,
    first: IpAddr,
    last: IpAddr,
    span: Option<Span>,
    pool: bool,
}

impl Claim {
    fn holds(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }

    fn meets(&self, other: &Claim) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    fn title(&self) -> String {
        let default = if self.span.is_none() { "default " } else { "" };
        format!("the {default}{} {}", self.what, self.text)
    }
}

pub(super) fn overlaps(
    nodes: &[nodes::Parsed],
    network: &network::Parsed,
    pools: &services::Pools,
    faults: &mut Vec<Fault>,
) {
    let range = |what: &str, r: &network::Range| Claim {
        what: what.into(),
        text: r.net.to_string(),
        first: r.net.network(),
        last: r.net.broadcast(),
        span: r.span,
        pool: false,
    };
    let mut claims: Vec<Claim> = network.pods.iter().map(|r| range("pod range", r)).collect();
    claims.extend(network.services.iter().map(|r| range("service range", r)));
    for pool in &pools.pools {
        for entry in &pool.ranges {
            claims.push(Claim {
                what: format!("range of pool `{}`", pool.title()),
                text: entry.value.0.clone(),
                first: entry.value.1.first,
                last: entry.value.1.last,
                span: Some(entry.span),
                pool: true,
            });
        }
    }
    for (index, claim) in claims.iter().enumerate() {
        for earlier in &claims[..index] {
            if claim.meets(earlier) {
                meet(earlier, claim, faults);
            }
        }
        addresses(claim, nodes, faults);
    }
}

fn meet(earlier: &Claim, later: &Claim, faults: &mut Vec<Fault>) {
    let (at, other) = match (earlier.span, later.span) {
        (_, Some(span)) => (span, earlier),
        (Some(span), None) => (span, later),
        (None, None) => return,
    };
    let mut fault = Fault::new("overlap", at, format!("{} overlaps {}", later.title(), earlier.title()));
    if let Some(span) = other.span {
        fault = fault.also(span, "overlaps this");
    }
    let help = match (earlier.pool, later.pool) {
        (true, true) => "an address belongs to one pool only",
        (false, true) => "a pool holds free addresses of your LAN",
        _ if other.span.is_none() => "choose another range, or write both in the file",
        _ => "choose ranges that share no address",
    };
    faults.push(fault.help(help));
}

/// Addresses of nodes inside a range: one problem, however many.
fn addresses(claim: &Claim, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) {
    let inside: Vec<_> = nodes
        .iter()
        .flat_map(|n| n.addresses.iter().map(move |a| (n, a)))
        .filter(|(_, a)| claim.holds(a.value))
        .collect();
    let Some((node, address)) = inside.first() else { return };
    let more = if inside.len() > 1 { format!(" and of {} more", inside.len() - 1) } else { String::new() };
    let message = format!("{} contains the address of {}{more}", claim.title(), node.title());
    let at = claim.span.unwrap_or(address.span);
    let mut fault = Fault::new(if claim.pool { "pool-holds-node" } else { "overlap" }, at, message);
    for (node, address) in inside.iter().take(5).filter(|(_, a)| a.span != at) {
        fault = fault.also(address.span, node.title());
    }
    faults.push(fault.help(if claim.pool {
        "a pool holds free addresses of your LAN; leave out those of nodes"
    } else {
        "pods and services need ranges of their own, away from the LAN"
    }));
}
