//! What peers and advertisements mean together, and with pools and nodes.

use std::net::IpAddr;

use homelab_model::PoolRange;
use ipnet::IpNet;

use super::bgp::{Advertisement, Peer};
use super::nodes;
use super::pools::ParsedPool;
use crate::problem::Fault;
use crate::spanned::Spanned;

/// Peers that cannot be on one node together, or on a node at all. MetalLB refuses the same in FRR mode.
pub(super) fn peers(peers: &[Peer], nodes: &[nodes::Parsed], pools: &[ParsedPool], faults: &mut Vec<Fault>) {
    for (index, peer) in peers.iter().enumerate() {
        alone(peer, nodes, pools, faults);
        for earlier in &peers[..index] {
            if let Some(node) = shared(&peer.nodes, &earlier.nodes) {
                together(earlier, peer, &nodes[node].title(), faults);
            }
        }
    }
}

/// The first node of both.
fn shared(a: &Option<Vec<usize>>, b: &Option<Vec<usize>>) -> Option<usize> {
    let (a, b) = (a.as_ref()?, b.as_ref()?);
    a.iter().copied().find(|node| b.binary_search(node).is_ok())
}

fn together(earlier: &Peer, later: &Peer, node: &str, faults: &mut Vec<Fault>) {
    if let (Some(first), Some(again)) = (&earlier.address, &later.address)
        && first.value == again.value
    {
        faults.push(
            Fault::new(
                "duplicate-peer",
                again.span,
                format!("{node} would have two sessions with {}", again.value),
            )
            .label("again here")
            .also(first.span, "first here")
            .help("keep one, or give them `nodeSelectors` that choose different nodes"),
        );
    }
    if let (Some(first), Some(other)) = (&earlier.router_id, &later.router_id)
        && first.value != other.value
    {
        faults.push(
            Fault::new(
                "router-id",
                other.span,
                format!("{node} would have two router IDs, {} and {}", first.value, other.value),
            )
            .also(first.span, "the other")
            .help("a node has one router ID for all its sessions: write the same, or leave it out"),
        );
    }
}

fn alone(peer: &Peer, nodes: &[nodes::Parsed], pools: &[ParsedPool], faults: &mut Vec<Fault>) {
    let on: Vec<&nodes::Parsed> = peer.nodes.iter().flatten().map(|node| &nodes[*node]).collect();
    if let Some(address) = &peer.address {
        let own = |node: &&&nodes::Parsed| node.addresses.iter().any(|a| a.value == address.value);
        if let Some(node) = on.iter().find(own) {
            faults.push(
                Fault::new(
                    "peer-is-node",
                    address.span,
                    format!("{} is the address of {} itself", address.value, node.title()),
                )
                .help("a node has no session with itself; leave it out by `nodeSelectors`"),
            );
        }
        let holds = |range: &&Spanned<(String, PoolRange)>| holds(range.value.1, address.value);
        for pool in pools {
            if let Some(range) = pool.ranges.iter().find(holds) {
                let message = format!(
                    "{} of pool `{}` contains the router's address {}",
                    range.value.0,
                    pool.title(),
                    address.value
                );
                faults.push(
                    Fault::new("pool-holds-peer", range.span, message)
                        .also(address.span, "the router")
                        .help("a pool holds free addresses; leave out that of the router"),
                );
            }
        }
    }
    let [first, second, ..] = on.as_slice() else { return };
    let both = format!("{} and {}", first.title(), second.title());
    if let Some(id) = &peer.router_id {
        faults.push(
            Fault::new("router-id", id.span, format!("{both} would have the same router ID {}", id.value))
                .help("leave it out: each node then has its own; or choose one node by `nodeSelectors`")
                .warning(),
        );
    }
    if let Some(source) = &peer.source {
        faults.push(
            Fault::new(
                "source-address",
                source.span,
                format!("{both} cannot both have the address {}", source.value),
            )
            .help("leave it out: the node's routes choose one; or choose one node by `nodeSelectors`")
            .warning(),
        );
    }
}

fn holds(range: PoolRange, address: IpAddr) -> bool {
    range.first.is_ipv4() == address.is_ipv4() && range.first <= address && address <= range.last
}

/// Advertisements beside each other, and with the addresses that they are for.
pub(super) fn advertisements(
    advertisements: &[Advertisement<'_>],
    peers: &[Peer],
    my_asn: Option<u32>,
    nodes: &[nodes::Parsed],
    pools: &[ParsedPool],
    faults: &mut Vec<Fault>,
) {
    for (index, one) in advertisements.iter().enumerate() {
        aggregation(one, peers, nodes, pools, faults);
        preference(one, peers, my_asn, faults);
        for earlier in &advertisements[..index] {
            conflict(earlier, one, peers, my_asn, nodes, pools, faults);
        }
    }
    let told = |peer: &Peer| {
        let name = peer.name.as_ref().map(|n| n.value.as_str());
        advertisements.is_empty()
            || name.is_none_or(|name| advertisements.iter().any(|one| one.model.is_to(name)))
    };
    for peer in peers.iter().filter(|peer| !told(peer)) {
        let (span, name) = peer.name.as_ref().map_or((peer.span, "?"), |n| (n.span, n.value.as_str()));
        faults.push(
            Fault::new("not-told", span, format!("no advertisement is for peer `{name}`"))
                .help("there is a session, and nothing is told on it: add it to the `peers` of one")
                .warning(),
        );
    }
}

/// The pools that an advertisement is for.
fn of<'a>(one: &Advertisement<'_>, pools: &'a [ParsedPool]) -> impl Iterator<Item = &'a ParsedPool> {
    let names = one.model.ip_address_pools.clone();
    let is_for = move |pool: &&ParsedPool| names.is_empty() || names.iter().any(|name| name == pool.title());
    pools.iter().filter(is_for)
}

/// Peers that an advertisement is for, and of the nodes' own AS.
fn internal<'a>(one: &Advertisement<'_>, peers: &'a [Peer], my_asn: Option<u32>) -> Vec<&'a Peer> {
    let to = |peer: &Peer| peer.name.as_ref().is_some_and(|name| one.model.is_to(&name.value));
    peers.iter().filter(|peer| peer.asn.is_some() && peer.asn == my_asn && to(peer)).collect()
}

/// LOCAL_PREF that no router hears.
fn preference(one: &Advertisement<'_>, peers: &[Peer], my_asn: Option<u32>, faults: &mut Vec<Fault>) {
    let sure = my_asn.is_some() && peers.iter().all(|peer| peer.asn.is_some() && peer.name.is_some());
    if let Some(preference) = one.raw.local_pref.as_ref().filter(|_| sure && !peers.is_empty())
        && internal(one, peers, my_asn).is_empty()
    {
        faults.push(
            Fault::new(
                "local-pref",
                preference.span,
                "`localPref` is told to routers of the same AS only, and this advertisement is for none",
            )
            .help("leave it out; routers of another AS can be told by `communities` what to prefer")
            .warning(),
        );
    }
}

/// Different LOCAL_PREFs for the same prefix, node and router. Where different services are selected the highest wins.
fn conflict(
    earlier: &Advertisement<'_>,
    later: &Advertisement<'_>,
    peers: &[Peer],
    my_asn: Option<u32>,
    nodes: &[nodes::Parsed],
    pools: &[ParsedPool],
    faults: &mut Vec<Fault>,
) {
    let (a, b) = (&earlier.model, &later.model);
    if a.local_pref == b.local_pref || a.service_selectors != b.service_selectors {
        return;
    }
    let same_prefix = |pool: &&ParsedPool| {
        pool.ranges.iter().any(|r| a.length(r.value.1.first) == b.length(r.value.1.first))
            && of(earlier, pools).any(|other| std::ptr::eq(*pool, other))
    };
    let Some(pool) = of(later, pools).find(same_prefix) else { return };
    let theirs = internal(earlier, peers, my_asn);
    let both = internal(later, peers, my_asn)
        .into_iter()
        .filter(|peer| theirs.iter().any(|p| std::ptr::eq(*p, *peer)));
    let on = |peer: &Peer| {
        let also = |nodes: &Option<Vec<usize>>, node: &usize| {
            nodes.as_ref().is_some_and(|all| all.binary_search(node).is_ok())
        };
        peer.nodes
            .iter()
            .flatten()
            .copied()
            .find(|node| also(&earlier.nodes, node) && also(&later.nodes, node))
    };
    let Some((peer, node)) = both.filter_map(|peer| Some((peer, on(peer)?))).next() else { return };
    let written = |one: &Advertisement<'_>| one.raw.local_pref.as_ref().map_or(one.span, |p| p.span);
    let say =
        |one: Option<u32>| one.map_or_else(|| "no `localPref`".to_owned(), |p| format!("`localPref` {p}"));
    let router = peer.name.as_ref().map_or("?", |n| &n.value);
    let message = format!(
        "{} would tell `{router}` the same prefixes of pool `{}` with {} and with {}",
        nodes[node].title(),
        pool.title(),
        say(a.local_pref),
        say(b.local_pref)
    );
    faults.push(
        Fault::new("local-pref", written(later), message)
            .label("one")
            .also(written(earlier), "the other")
            .help("write the same, or choose different pools, nodes, peers or lengths"),
    );
}

/// Prefixes that hold more than addresses of the pool.
fn aggregation(
    one: &Advertisement<'_>,
    peers: &[Peer],
    nodes: &[nodes::Parsed],
    pools: &[ParsedPool],
    faults: &mut Vec<Fault>,
) {
    for (v4, written, key) in [
        (true, &one.raw.aggregation_length, "aggregationLength"),
        (false, &one.raw.aggregation_length_v6, "aggregationLengthV6"),
    ] {
        let Some(length) = written.as_ref().filter(|l| l.value < if v4 { 32 } else { 128 }) else { continue };
        if let Some(selectors) = one.raw.service_selectors.as_ref().and_then(|list| list.first()) {
            faults.push(
                Fault::new(
                    "aggregation",
                    length.span,
                    format!("`{key}` and `serviceSelectors` do not go together"),
                )
                .also(selectors.span, "chooses services")
                .help("a prefix stands for the addresses of all services in it: leave one of the two out"),
            );
            continue;
        }
        for pool in of(one, pools) {
            let spills: Vec<(bool, IpNet)> =
                merged(pool, v4).into_iter().flat_map(|range| spills(range, length.value)).collect();
            let inhabitant = |net: &IpNet| {
                let node =
                    |n: &nodes::Parsed| n.addresses.iter().any(|a| net.contains(&a.value)).then(|| n.title());
                let router = |p: &Peer| {
                    p.address
                        .as_ref()
                        .filter(|a| net.contains(&a.value))
                        .map(|a| format!("the router {}", a.value))
                };
                nodes.iter().find_map(node).or_else(|| peers.iter().find_map(router))
            };
            let who = spills.iter().find_map(|(_, net)| Some((net, inhabitant(net)?)));
            let fault = |message| Fault::new("aggregation", length.span, message);
            let title = pool.title();
            let help = "write a longer prefix, or fill the pool up; `avoidBuggyIPs` leaves out .0 and .255";
            if let Some((net, who)) = who {
                faults.push(
                    fault(format!("{net} for pool `{title}` also holds the address of {who}")).help(help),
                );
            } else if let Some((_, net)) = spills.iter().find(|(whole, _)| !whole) {
                faults.push(
                    fault(format!(
                        "no /{} fits into pool `{title}`: {net} holds other addresses too",
                        length.value
                    ))
                    .help(help),
                );
            } else if let Some((_, net)) = spills.first() {
                faults.push(
                    fault(format!("{net} also holds addresses that are not of pool `{title}`"))
                        .help(help)
                        .warning(),
                );
            }
        }
    }
}

/// Ranges of a pool, of one family, joined where they touch.
fn merged(pool: &ParsedPool, v4: bool) -> Vec<PoolRange> {
    let mut ranges: Vec<PoolRange> =
        pool.ranges.iter().map(|r| r.value.1).filter(|r| r.first.is_ipv4() == v4).collect();
    ranges.sort_by_key(|r| r.first);
    let mut merged: Vec<PoolRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if number(range.first) <= number(last.last).saturating_add(1) => {
                last.last = last.last.max(range.last)
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// Prefixes of a length that hold addresses of a range and others; and whether any prefix of that length fits into the range.
fn spills(range: PoolRange, length: u8) -> Vec<(bool, IpNet)> {
    let net = |address| IpNet::new(address, length).ok().map(|net| net.trunc());
    let (Some(first), Some(last)) = (net(range.first), net(range.last)) else { return Vec::new() };
    let (low, high) = (number(range.first), number(range.last));
    let size = number(first.broadcast()) - number(first.network());
    let aligned =
        if number(first.network()) == low { Some(low) } else { number(first.broadcast()).checked_add(1) };
    let whole = aligned.and_then(|start| start.checked_add(size)).is_some_and(|end| end <= high);
    let mut spills: Vec<(bool, IpNet)> = Vec::new();
    if number(first.network()) < low || (first == last && number(first.broadcast()) > high) {
        spills.push((whole, first));
    }
    if number(last.broadcast()) > high && first != last {
        spills.push((whole, last));
    }
    spills
}
