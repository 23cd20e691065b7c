//! The proxy's ruleset in a real kernel: it loads, nft lists it in the very words that it is rendered in, and real
//! packets go where kube-proxy's own tests send them.
//!
//! The node is a network namespace. Packets with any source come in over a veth from raw sockets in another namespace
//! (or, when they are the node's own, leave from a raw socket in it). A table of the test's at the very end of
//! postrouting notes what would leave and drops it: no endpoint need exist.
#![allow(clippy::unwrap_used)]

#[path = "../../proxy/tests/cases/mod.rs"]
mod cases;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use common::proxy::{delta_text, elements_text, load_ruleset};
use common::raw::Sender;
use common::{OtherNetns, in_netns_of, in_new_netns, load, run};
use homelab_linux::netlink::Socket as Netlink;
use homelab_linux::nft::elements::{Batch, Element, dump};
use homelab_linux::nft::rules::needs_netlink;
use homelab_model::service::Protocol;
use homelab_proxy::bytes::Bytes;
use homelab_proxy::delta::delta;
use homelab_proxy::element::{Frontend, Set};
use homelab_proxy::evaluate::Outcome;
use homelab_proxy::ladder::{TIMEOUTS, rungs};
use homelab_proxy::rules::chains;
use homelab_proxy::stale::{Remembered, forgotten};
use homelab_proxy::{NodeView, compile, text};

/// What a packet looked like at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    source: IpAddr,
    to: IpAddr,
    protocol: u8,
    port: u16,
}

const OBSERVER: &str = "table inet observer {
    set seen4 { typeof ip saddr . ip daddr . meta l4proto . th dport; flags dynamic; size 65535; }
    set seen6 { typeof ip6 saddr . ip6 daddr . meta l4proto . th dport; flags dynamic; size 65535; }
    chain last { type filter hook postrouting priority 300; policy accept;
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept
        add @seen4 { ip saddr . ip daddr . meta l4proto . th dport } drop
        add @seen6 { ip6 saddr . ip6 daddr . meta l4proto . th dport } drop
    }
}
";

/// Makes the namespace that this thread is in a node, with `clients` on the other side.
fn make_node(view: &NodeView, clients: &OtherNetns) {
    run("ip link set lo up");
    let pid = clients.path.to_string_lossy().replace("/ns/net", "");
    let tid = pid.rsplit('/').next().unwrap().to_owned();
    run(&format!("ip link add in type veth peer name client netns {tid}"));
    run(&format!("ip link add out type veth peer name beyond netns {tid}"));
    for key in ["all", "default", "in", "out"] {
        run(&format!("echo 0 > /proc/sys/net/ipv4/conf/{key}/rp_filter"));
        run(&format!("echo 0 > /proc/sys/net/ipv6/conf/{key}/accept_dad"));
    }
    run("ip link set in up; ip link set out up");
    run("ip addr add 169.254.77.1/30 dev in; ip addr add 169.254.78.1/30 dev out");
    run("ip -6 addr add fe80::77:1/64 dev in nodad; ip -6 addr add fe80::78:1/64 dev out nodad");
    for address in &view.addresses {
        run(&format!("ip addr add {address}/{} dev out", if address.is_ipv4() { "32" } else { "128 nodad" }));
    }
    // What IPv6 masquerades with: the address nearest to pods, none of the node's.
    run("ip addr add fd00:10:244:ffff::1/128 dev out nodad");
    run("ip route add default via 169.254.78.2 dev out; ip -6 route add default via fe80::78:2 dev out");
    run("ip neigh add 169.254.78.2 lladdr 02:00:00:00:00:02 dev out nud permanent");
    run("ip -6 neigh add fe80::78:2 lladdr 02:00:00:00:00:02 dev out nud permanent");
    run("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    run("echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit");
    run(
        "echo 100000 > /proc/sys/net/ipv4/icmp_msgs_per_sec; echo 100000 > /proc/sys/net/ipv4/icmp_msgs_burst",
    );
    let mac = run("ip -br link show in | awk '{print $3}'");
    in_netns_of(clients, || {
        run("ip link set lo up; ip link set client up; ip link set beyond up");
        run("ip addr add 169.254.77.2/30 dev client; ip -6 addr add fe80::77:2/64 dev client nodad");
        run(&format!("ip neigh add 169.254.77.1 lladdr {} dev client nud permanent", mac.trim()));
        run(&format!("ip -6 neigh add fe80::77:1 lladdr {} dev client nud permanent", mac.trim()));
        run(
            "ip route add default via 169.254.77.1 dev client; ip -6 route add default via fe80::77:1 dev client",
        );
    });
}

/// What was seen of a family since the last time.
fn take_seen(v4: bool) -> BTreeSet<Seen> {
    let set = if v4 { "seen4" } else { "seen6" };
    let listing =
        run(&format!("nft --numeric list set inet observer {set}; nft flush set inet observer {set}"));
    let Some((_, elements)) = listing.split_once("elements = {") else { return BTreeSet::new() };
    let element = |text: &str| {
        let fields: Vec<&str> = text.trim().split(" . ").collect();
        let [source, to, protocol, port] = fields[..] else { panic!("{listing}") };
        Seen {
            source: source.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: protocol.parse().unwrap(),
            port: port.parse().unwrap(),
        }
    };
    elements.split('}').next().unwrap().split(',').map(element).collect()
}

/// What the kernel does with such packets: sent until all that is expected was seen, and some more.
fn outcome(sender: impl Fn(u16), flow: &cases::Flow, expected: &Outcome) -> Result<Outcome, String> {
    let mut seen = BTreeSet::new();
    let own = SocketAddr::new(flow.to, flow.port);
    for round in 0..40_u16 {
        // Else a client with session affinity would see one endpoint alone.
        if let Outcome::Translated(_) = expected {
            run(&format!("nft flush map inet homelab affinity{}", if flow.to.is_ipv4() { 4 } else { 6 }));
        }
        for number in 0..16 {
            sender(20000 + round * 16 + number);
        }
        seen.extend(take_seen(flow.to.is_ipv4()));
        let mut targets = BTreeMap::new();
        let (mut rejected, mut untouched) = (false, false);
        for packet in &seen {
            let to = SocketAddr::new(packet.to, packet.port);
            // Answers go to the client: TCP resets, and ICMP, whose second word is no port.
            if packet.to == flow.from && packet.source == flow.to {
                rejected = true;
            } else if packet.protocol == 1 || packet.protocol == 58 {
                rejected |= packet.to == flow.from;
            } else if to == own {
                untouched = true;
            } else {
                targets.insert(to, packet.source != flow.from);
            }
        }
        let found = match (targets.is_empty(), rejected, untouched) {
            (false, false, false) => Outcome::Translated(targets),
            (true, true, false) => Outcome::Rejected,
            (true, false, true) => Outcome::Untouched,
            (true, false, false) => Outcome::Dropped,
            _ => return Err(format!("{seen:?}")),
        };
        match (expected, &found) {
            (Outcome::Translated(all), Outcome::Translated(some)) if some.len() < all.len() => {}
            _ => return Ok(found),
        }
    }
    Err(format!("only {seen:?}"))
}

#[test]
fn the_ruleset_is_in_the_words_of_nft() {
    let view = cases::cases().remove("cluster-ip").unwrap().node;
    for masquerade_all in [false, true] {
        let view = NodeView { masquerade_all, ..view.clone() };
        let ruleset = text::to_nft(common::proxy::TABLE, &view);
        let listed = in_new_netns(|| {
            load_ruleset(&view, "");
            run("nft --stateless --numeric list table inet homelab")
        });
        let listed: Vec<&str> = listed.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(listed, ruleset.lines().collect::<Vec<_>>());
    }
}

/// The rules that go by netlink are those that nft cannot be given, and no others.
#[test]
fn nft_and_netlink_share_the_rules() {
    let view = cases::cases().remove("cluster-ip").unwrap().node;
    let mut by_netlink = 0;
    for rule in chains(&view).iter().flat_map(|chain| &chain.rules) {
        assert_eq!(needs_netlink(&rule.to_nft()), rule.needs_netlink(), "{rule:?}");
        by_netlink += usize::from(rule.needs_netlink());
    }
    let families_and_pools = 4;
    let draws = rungs().len() * families_and_pools;
    assert_eq!(by_netlink, TIMEOUTS.len() * Protocol::ALL.len() + draws + 2);
    assert_eq!(text::for_netlink(&view).len(), by_netlink);
}

/// What the kernel remembers of a family.
fn remembered(netlink: &mut Netlink, v4: bool) -> Vec<(Element, Remembered)> {
    let entries = dump(netlink, common::proxy::TABLE, &Set::Affinity.name(v4)).unwrap();
    let client = |entry: Element| {
        let bytes = Bytes { key: entry.key.clone(), key_end: None, data: entry.data.clone() };
        let client = bytes.remembered(v4).unwrap_or_else(|| panic!("{bytes:?}"));
        (entry, client)
    };
    entries.into_iter().map(client).collect()
}

/// Sends packets of a few connections from so many clients and says which endpoints each of them got.
fn visit(sender: &Sender, flow: &cases::Flow, clients: u8) -> BTreeMap<IpAddr, BTreeSet<SocketAddr>> {
    let client = |number: u8| match flow.from {
        IpAddr::V4(from) => IpAddr::from([from.octets()[0], from.octets()[1], 9, number]),
        IpAddr::V6(from) => {
            let [a, b, c, ..] = from.segments();
            IpAddr::from([a, b, c, 9, 0, 0, 0, u16::from(number)])
        }
    };
    let mut seen: BTreeMap<IpAddr, BTreeSet<SocketAddr>> = BTreeMap::new();
    for from in (1..=clients).map(client) {
        // Ports of their own for each visit: else conntrack would remember the connection.
        static PORT: AtomicU16 = AtomicU16::new(20000);
        for _ in 0..10 {
            sender.send(from, flow.to, flow.protocol, PORT.fetch_add(1, Ordering::Relaxed), flow.port);
        }
        let to = take_seen(flow.to.is_ipv4()).into_iter().map(|s| SocketAddr::new(s.to, s.port));
        seen.insert(from, to.collect());
    }
    seen
}

#[test]
fn a_client_stays_with_its_endpoint() {
    const CLIENTS: u8 = 40;
    let case = cases::cases().remove("session-affinity").unwrap();
    let (elements, _) = compile(&case.services, &case.node);
    in_new_netns(|| {
        let clients = OtherNetns::new();
        make_node(&case.node, &clients);
        load_ruleset(&case.node, &format!("{}{OBSERVER}", elements_text(&elements)));
        let sender = in_netns_of(&clients, Sender::open);
        let mut netlink = Netlink::netfilter().unwrap();
        for (name, seconds) in [
            ("pod to the cluster address", 600),
            ("pod to the cluster address, IPv6", 600),
            ("policy Local, pod to the load balancer", 10800),
            ("policy Local, pod to the load balancer, IPv6", 10800),
        ] {
            let flow = case.flows.iter().find(|f| f.name == name).unwrap();
            let v4 = flow.to.is_ipv4();
            let map = Set::Affinity.name(v4);
            let endpoints = &flow.expect.endpoints;
            assert_eq!(endpoints.len(), 2, "{name}");
            run(&format!("nft flush map inet homelab {map}"));

            // Connections of a client have one endpoint, clients have all of them, and the kernel's entries say so.
            let chosen = visit(&sender, flow, CLIENTS);
            assert!(chosen.values().all(|endpoints| endpoints.len() == 1), "{name}: {chosen:?}");
            assert_eq!(&chosen.values().flatten().copied().collect::<BTreeSet<_>>(), endpoints, "{name}");
            let frontend = Frontend { address: flow.to, protocol: flow.protocol, port: flow.port };
            let entries = remembered(&mut netlink, v4);
            let by_kernel: BTreeMap<IpAddr, BTreeSet<SocketAddr>> =
                entries.iter().map(|(_, r)| (r.client, [r.endpoint].into())).collect();
            assert_eq!((by_kernel, entries.len()), (chosen.clone(), usize::from(CLIENTS)), "{name}");
            assert!(entries.iter().all(|(_, r)| r.frontend == frontend), "{name}: {entries:?}");
            let listing = run(&format!("nft --numeric list map inet homelab {map}"));
            let timeouts = listing.matches(&format!(" timeout {seconds}s expires ")).count();
            assert_eq!(timeouts, usize::from(CLIENTS), "{name}: {listing}");

            // Without an endpoint its clients alone are forgotten, and go to the other one.
            let gone = *endpoints.first().unwrap();
            let mut services = case.services.clone();
            services.iter_mut().for_each(|s| s.endpoints.retain(|e| e.address != gone.ip()));
            let (after, _) = compile(&services, &case.node);
            load(&delta_text(&delta(&elements, &after)));
            let all: Vec<Remembered> = entries.iter().map(|(_, r)| *r).collect();
            let forgotten = forgotten(&all, &after);
            assert!(!forgotten.is_empty() && forgotten.iter().all(|r| r.endpoint == gone), "{name}");
            let mut batch = Batch::new(common::proxy::TABLE);
            for (entry, _) in entries.iter().filter(|(_, r)| forgotten.contains(r)) {
                batch.delete(&map, entry).unwrap();
            }
            batch.commit(&mut netlink).unwrap();
            let other = BTreeSet::from([*endpoints.last().unwrap()]);
            let moved = visit(&sender, flow, CLIENTS);
            assert!(moved.values().all(|endpoints| *endpoints == other), "{name}: {moved:?}");
            let entries = remembered(&mut netlink, v4);
            assert!(entries.iter().all(|(_, r)| other.contains(&r.endpoint)), "{name}: {entries:?}");

            // The endpoint comes back: nobody leaves the one that they have.
            load(&delta_text(&delta(&after, &elements)));
            assert_eq!(visit(&sender, flow, CLIENTS), moved, "{name}");
        }
    });
}

#[test]
fn packets_go_where_kube_proxy_sends_them() {
    let (mut sent, mut skipped, mut wrong) = (0, Vec::new(), Vec::new());
    for (file, case) in cases::cases() {
        let (elements, conflicts) = compile(&case.services, &case.node);
        assert_eq!(conflicts, [], "{file}");
        in_new_netns(|| {
            let clients = OtherNetns::new();
            make_node(&case.node, &clients);
            load_ruleset(&case.node, &format!("{}{OBSERVER}", elements_text(&elements)));
            // Packets are checked by whoever they are for; SCTP's checksums we do not make.
            run("echo 0 > /proc/sys/net/netfilter/nf_conntrack_checksum");
            let from_node = Sender::open();
            let from_client = in_netns_of(&clients, Sender::open);
            for flow in &case.flows {
                let own = |address: IpAddr| case.node.addresses.contains(&address) || address.is_loopback();
                let expected = flow.expect.outcome();
                // The node itself answers: nobody at the end of postrouting can tell that from a reject of ours.
                let to_itself = flow.expect.endpoints.iter().any(|e| own(e.ip()));
                if to_itself || (expected == Outcome::Untouched && own(flow.to)) {
                    skipped.push(format!("{file}: {}", flow.name));
                    continue;
                }
                sent += 1;
                let sender = if own(flow.from) { &from_node } else { &from_client };
                let send = |port| sender.send(flow.from, flow.to, flow.protocol, port, flow.port);
                let found = outcome(send, flow, &expected);
                if found.as_ref() != Ok(&expected) {
                    wrong.push(format!(
                        "{file}: {}\n  expected {expected:?}\n  got      {found:?}",
                        flow.name
                    ));
                }
            }
        });
    }
    assert!(wrong.is_empty(), "{} of {sent} flows are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sent >= 200 && skipped.len() <= 30, "{sent} flows sent; skipped: {skipped:#?}");
}
