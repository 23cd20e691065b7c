//! Ranges that must not meet: pods, services, pools, and the nodes' own addresses.

use std::net::IpAddr;

use super::{network, nodes, pools};
use crate::problem::{Fault, Span};

struct Claim {
    /// `pod`, `service`, or the pool's name.
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
        match (self.pool, self.span) {
            (true, _) => format!("{} of pool `{}`", self.text, self.what),
            (_, Some(_)) => format!("the {} range {}", self.what, self.text),
            (_, None) => format!("the default {} range {}", self.what, self.text),
        }
    }

    /// The key that sets it.
    fn key(&self) -> &'static str {
        if self.what == "pod" { "network.podCIDR" } else { "network.serviceCIDR" }
    }
}

pub(super) fn overlaps(
    nodes: &[nodes::Parsed],
    network: &network::Parsed,
    pools: &pools::Pools,
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
    let mut claims: Vec<Claim> = network.pods.iter().map(|r| range("pod", r)).collect();
    claims.extend(network.services.iter().map(|r| range("service", r)));
    for pool in &pools.pools {
        for entry in &pool.ranges {
            claims.push(Claim {
                what: pool.title().to_owned(),
                text: entry.value.0.clone(),
                first: entry.value.1.first,
                last: entry.value.1.last,
                span: Some(entry.span),
                pool: true,
            });
        }
    }
    for (index, claim) in claims.iter().enumerate() {
        let mut pools = 0;
        for earlier in claims[..index].iter().filter(|e| claim.meets(e)) {
            pools += usize::from(earlier.pool);
            // One pool range in the way is enough to know.
            if pools <= 1 {
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
        (true, true) if earlier.what == later.what => "write each address once".to_owned(),
        (true, true) => "an address belongs to one pool only".to_owned(),
        (false, true) => "a pool holds free addresses of your LAN".to_owned(),
        _ if other.span.is_none() => format!("choose another range, or set `{}` too", other.key()),
        _ => "choose ranges that share no address".to_owned(),
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
    let Some((_, address)) = inside.first() else { return };
    let mut names: Vec<String> = inside.iter().map(|(n, _)| n.title()).collect();
    names.dedup();
    let who = match names.as_slice() {
        [one] => format!("the address of {one}"),
        [rest @ .., last] if rest.len() <= 3 => format!("the addresses of {} and {last}", rest.join(", ")),
        all => format!("the addresses of {} and {} more nodes", all[..3].join(", "), all.len() - 3),
    };
    let message = format!("{} contains {who}", claim.title());
    let at = claim.span.unwrap_or(address.span);
    let mut fault = Fault::new(if claim.pool { "pool-holds-node" } else { "overlap" }, at, message);
    for (node, address) in inside.iter().take(5).filter(|(_, a)| a.span != at) {
        fault = fault.also(address.span, node.title());
    }
    faults.push(fault.help(match (claim.pool, claim.span) {
        (true, _) => "a pool holds free addresses of your LAN; leave out those of nodes".to_owned(),
        (_, Some(_)) => "pods and services need ranges of their own, away from the LAN".to_owned(),
        (_, None) => format!("set `{}` to a range away from your LAN", claim.key()),
    }));
}
