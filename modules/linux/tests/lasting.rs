//! What lasts through changes of services and what does not: connections, session affinity, flows of UDP.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::proxy::{change, node, service, view, with_ruleset};
use common::wire::{Answerers, Heard, Line, Listeners, Wire, client, endpoint, masquerade};
use common::{in_new_netns, run};
use homelab_linux::conntrack::{self, Family};
use homelab_linux::netlink::{Attributes, Message, Socket};
use homelab_linux::nft::elements::dump;
use homelab_linux::{Connections, Node, Synced};
use homelab_model::service::{Affinity, Service, Type};
use homelab_proxy::element::Set;
use homelab_proxy::{Elements, compile};

const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
const NODE_PORT: u16 = 30080;
const CHANGES: u32 = 1000;
const SERVERS: [u8; 3] = [11, 12, 13];

fn compiled<'a>(services: impl IntoIterator<Item = &'a Service>) -> Elements {
    let (elements, conflicts) = compile(&services.into_iter().cloned().collect::<Vec<_>>(), &view());
    assert_eq!(conflicts, []);
    elements
}

/// A service of both families with these endpoints, also by a node port.
fn of_both(name: &str, protocol: &str, vips: [&str; 2], servers: &[u8], node_port: Option<u16>) -> Service {
    let all = [true, false].into_iter().flat_map(|v4| servers.iter().map(move |n| endpoint(v4, *n)));
    let all: Vec<String> = all.map(|at| at.to_string()).collect();
    let mut service = service(name, protocol, &vips, &all.iter().map(String::as_str).collect::<Vec<_>>());
    if node_port.is_some() {
        service.r#type = Type::NodePort;
        service.ports[0].node_port = node_port;
    }
    service
}

/// Other services after so many changes, each of one of them: it comes, goes, gets other endpoints, is sticky or not.
fn others(changes: u32) -> Vec<Service> {
    const COUNT: u32 = 12;
    let state = |number: u32| {
        let version = (changes + COUNT - 1 - number) / COUNT;
        let endpoints: Vec<String> = (0..=version % 4)
            .flat_map(|n| {
                let last = version % 50 + n;
                [format!("10.244.7.{last}:8080"), format!("[fd00:10:244:7::{last}]:8080")]
            })
            .collect();
        let vips = [format!("10.96.7.{number}"), format!("fd00:10:96::7:{number}")];
        let mut other = service(
            &format!("other{number}"),
            if number.is_multiple_of(2) { "TCP" } else { "UDP" },
            &vips.each_ref().map(String::as_str),
            &endpoints.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        if version.is_multiple_of(3) {
            other.session_affinity = Affinity::ClientIp;
        }
        (!version.is_multiple_of(5)).then_some(other)
    };
    (0..COUNT).filter_map(state).collect()
}

/// Makes the changes of [`others`] beside `fixed`, one by one, and calls `after` with the number of each.
fn change_others(node: &mut Node, fixed: &Service, mut after: impl FnMut(u32, &mut Node)) -> Elements {
    let mut state = Elements::new();
    for number in 1..=CHANGES {
        state = compiled(others(number).iter().chain([fixed]));
        let synced = node.sync_services(&state, Connections::OfChange).unwrap();
        assert!(synced.added + synced.deleted > 0 && synced.ended == 0, "{number}: {synced:?}");
        after(number, node);
    }
    state
}

/// Conntrack's numbers of the flows from some clients (`CTA_ID`): a later flow of the same ports has another one.
fn ids(protocol: u8, of: impl Fn(SocketAddr) -> bool) -> BTreeMap<(SocketAddr, SocketAddr), u32> {
    let mut socket = Socket::netfilter().unwrap();
    let mut flows = conntrack::dump(&mut socket, Family::V4, protocol).unwrap();
    flows.extend(conntrack::dump(&mut socket, Family::V6, protocol).unwrap());
    let ours = flows.into_iter().filter(|flow| of(flow.original.source));
    ours.map(|flow| ((flow.original.source, flow.original.destination), flow.id.unwrap())).collect()
}

/// The number that each transaction of nftables raises.
fn generation() -> u32 {
    const GETGEN: u16 = (10 << 8) | 16;
    const GEN_ID: u16 = 1;
    let answers = Socket::netfilter().unwrap().query(Message::new(GETGEN, 0, &[0; 4])).unwrap();
    let id = answers.iter().find_map(|body| Attributes::after(body, 4).find(|(kind, _)| *kind == GEN_ID));
    u32::from_be_bytes(id.unwrap().1.try_into().unwrap())
}

/// Entries of session affinity, and when each ends.
fn remembered(v4: bool) -> BTreeMap<(Vec<u8>, Option<Vec<u8>>), Duration> {
    let mut socket = Socket::netfilter().unwrap();
    let entries = dump(&mut socket, "homelab-proxy", &Set::Affinity.name(v4)).unwrap();
    entries.into_iter().map(|e| ((e.key, e.data), e.expires.unwrap())).collect()
}

#[test]
fn connections_outlive_a_thousand_changes_of_other_services() {
    in_new_netns(|| {
        let wire = Wire::new(&[21, 22], &SERVERS);
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        let web = of_both("web", "TCP", VIPS, &SERVERS, Some(NODE_PORT));
        node.sync_services(&compiled([&web]), Connections::All).unwrap();
        let both: Vec<SocketAddr> =
            [true, false].into_iter().flat_map(|v4| SERVERS.map(|n| endpoint(v4, n))).collect();
        let listeners = Listeners::new(&wire, &both);
        let mut lines: Vec<Line> = Vec::new();
        for v4 in [true, false] {
            let at = usize::from(!v4);
            let vip = SocketAddr::new(VIPS[at].parse().unwrap(), 80);
            let by_node = SocketAddr::new(view().addresses[at], NODE_PORT);
            for number in [21, 21, 22, 22] {
                let line = listeners.connect(&wire, client(v4, number), vip);
                assert_eq!(
                    line.source,
                    client(v4, number),
                    "a pod keeps its address on its way to a service"
                );
                lines.push(line);
            }
            let line = listeners.connect(&wire, client(v4, 21), by_node);
            assert_eq!(line.source, masquerade(v4), "a node port hides it: the endpoint is elsewhere");
            lines.push(line);
        }
        let from: BTreeSet<SocketAddr> = lines.iter().map(|line| line.from).collect();
        let before = ids(6, |source| from.contains(&source));
        assert_eq!(before.len(), lines.len());
        let state = change_others(&mut node, &web, |number, _| {
            for line in lines.iter_mut().filter(|_| number % 10 == 0) {
                line.exchange(number);
            }
        });
        // An agent that starts anew.
        let generation_before = generation();
        let synced = self::node(&directory).sync_services(&state, Connections::All).unwrap();
        assert_eq!((synced, generation()), (Synced::default(), generation_before));
        lines.iter_mut().for_each(|line| line.exchange(CHANGES + 1));
        assert_eq!(ids(6, |source| from.contains(&source)), before);
    });
}

#[test]
fn clients_stay_with_their_endpoint_through_a_thousand_changes_of_other_services() {
    in_new_netns(|| {
        let numbers: Vec<u8> = (20..60).collect();
        let wire = Wire::new(&numbers, &SERVERS);
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        let mut web = of_both("web", "TCP", VIPS, &SERVERS, None);
        web.session_affinity = Affinity::ClientIp;
        node.sync_services(&compiled([&web]), Connections::All).unwrap();
        let both: Vec<SocketAddr> =
            [true, false].into_iter().flat_map(|v4| SERVERS.map(|n| endpoint(v4, n))).collect();
        let listeners = Listeners::new(&wire, &both);
        let visit = || -> BTreeMap<IpAddr, SocketAddr> {
            let one = |v4: bool, number: u8| {
                let vip = SocketAddr::new(VIPS[usize::from(!v4)].parse().unwrap(), 80);
                (client(v4, number), listeners.connect(&wire, client(v4, number), vip).endpoint)
            };
            [true, false].into_iter().flat_map(|v4| numbers.iter().map(move |n| one(v4, *n))).collect()
        };
        let first = visit();
        let all: BTreeSet<SocketAddr> = both.iter().copied().collect();
        assert_eq!(first.values().copied().collect::<BTreeSet<_>>(), all, "clients have all endpoints");
        let state = change_others(&mut node, &web, |number, _| {
            if number % 100 == 0 {
                assert_eq!(visit(), first, "after {number} changes");
            }
        });
        // An agent that starts anew, with clients that are remembered and nothing to do.
        let (before, generation_before) = ([true, false].map(remembered), generation());
        assert_eq!(before.each_ref().map(BTreeMap::len), [numbers.len(); 2]);
        let synced = self::node(&directory).sync_services(&state, Connections::All).unwrap();
        assert_eq!((synced, generation()), (Synced::default(), generation_before));
        for (before, after) in before.iter().zip([true, false].map(remembered)) {
            assert!(before.keys().eq(after.keys()));
            assert!(after.iter().all(|(entry, expires)| *expires <= before[entry]), "none was made anew");
        }
        assert_eq!(visit(), first, "after a start");
        // One endpoint less: its clients alone go.
        let gone = endpoint(true, SERVERS[0]);
        web.endpoints.retain(|e| e.address != gone.ip());
        node.sync_services(&compiled(others(CHANGES).iter().chain([&web])), Connections::OfChange).unwrap();
        for (client, now) in visit() {
            assert!(
                if first[&client] == gone { now != gone } else { now == first[&client] },
                "{client}: {now}"
            );
        }
    });
}

/// One client of a service by one of its addresses, through all that can become of endpoints, always from the same port.
fn datagrams(wire: &Wire, node: &mut Node, answerers: &Answerers, v4: bool, by_node: bool) {
    let at = usize::from(!v4);
    let to = match by_node {
        true => SocketAddr::new(view().addresses[at], NODE_PORT),
        false => SocketAddr::new(VIPS[at].parse().unwrap(), 53),
    };
    let dns = |servers: &[u8]| of_both("dns", "UDP", VIPS, servers, Some(NODE_PORT));
    let other = of_both("other", "UDP", ["10.96.0.11", "fd00:10:96::11"], &SERVERS, None);
    let mut sync = |service: Option<Service>| {
        node.sync_services(&compiled([&other].into_iter().chain(&service)), Connections::OfChange).unwrap()
    };
    sync(Some(dns(&SERVERS)));
    let client = client(v4, 21);
    let (asker, source) = (wire.udp(client, to), if by_node { masquerade(v4) } else { client });
    let port = asker.local_addr().unwrap();
    let ask = || match answerers.ask(&asker) {
        Heard::By(endpoint, from) => {
            assert_eq!((from, asker.local_addr().unwrap()), (source, port), "{to}");
            Some(endpoint)
        }
        Heard::Refused => None,
    };
    let first = ask().unwrap();
    assert_eq!([ask(), ask()], [Some(first); 2], "{to}: a flow stays");

    // Flows that all this is none of: another service's, of no service, and of this one to an endpoint that stays.
    let dead = *SERVERS.iter().find(|n| endpoint(v4, **n) == first).unwrap();
    let left: Vec<u8> = SERVERS.into_iter().filter(|n| *n != dead).collect();
    let unrelated = [wire.udp(client, SocketAddr::new(other.cluster_ips[at], 53)), wire.udp(client, first)];
    let stays = (0..200).map(|_| wire.udp(client, to)).find(|s| answerers.endpoint_of(s) != first).unwrap();
    let held: Vec<SocketAddr> = unrelated.iter().map(|socket| answerers.endpoint_of(socket)).collect();
    let sources: BTreeSet<SocketAddr> = unrelated.iter().map(|s| s.local_addr().unwrap()).collect();
    let before = ids(17, |source| sources.contains(&source));
    let stays_at = stays.local_addr().unwrap();
    let stayed = ids(17, |source| source == stays_at);
    assert_eq!((before.len(), stayed.len()), (2, 1), "{to}");

    // Its endpoint dies.
    let synced = sync(Some(dns(&left)));
    let second = ask().unwrap();
    assert!(synced.ended >= 1 && second != first, "{to}: {synced:?}, {second}");
    assert_eq!(ids(17, |source| source == stays_at), stayed, "{to}: one to an endpoint that is left stays");

    // A process changes the sets and is killed before it ends what that leaves stale: the next one does it.
    let both = |servers: &[u8]| compiled([&other, &dns(servers)]);
    let kept = *left.iter().find(|n| endpoint(v4, **n) != second).unwrap();
    change("homelab-proxy", &both(&left), &both(&[kept]));
    assert_eq!(ask(), Some(second), "{to}: the flow goes on to where it should not");
    let start = |state: &Elements| {
        let directory = tempfile::tempdir().unwrap();
        self::node(&directory).sync_services(state, Connections::All).unwrap()
    };
    let synced = start(&both(&[kept]));
    assert!((synced.added, synced.deleted) == (0, 0) && synced.ended >= 1, "{to}: {synced:?}");
    assert_eq!(ask(), Some(endpoint(v4, kept)), "{to}: a start mends it");
    assert_eq!(start(&both(&[kept])), Synced::default(), "{to}: and the next finds nothing to do");

    // To none and back, while the client goes on sending.
    sync(Some(dns(&[])));
    assert_eq!([ask(), ask()], [None; 2], "{to}: without endpoints");
    sync(Some(dns(&[dead])));
    assert_eq!(ask(), Some(first), "{to}: scaled up again");

    // The service goes, and comes back with another endpoint.
    let synced = sync(None);
    assert!(synced.ended >= 1, "{to}: {synced:?}");
    if by_node {
        assert_eq!([ask(), ask()], [None; 2], "{to}: nobody listens on the node");
    } else {
        for _ in 0..3 {
            asker.send(b"ping").unwrap();
        }
        assert_eq!(ids(17, |source| source == port), BTreeMap::new(), "{to}: dropped, and not remembered");
    }
    sync(Some(dns(&left[..1])));
    assert_eq!(ask(), Some(endpoint(v4, left[0])), "{to}: made again");

    let now: Vec<SocketAddr> = unrelated.iter().map(|socket| answerers.endpoint_of(socket)).collect();
    assert_eq!((now, ids(17, |source| sources.contains(&source))), (held, before), "{to}: unrelated flows");
}

#[test]
fn clients_of_udp_leave_a_dead_endpoint_within_one_sync() {
    in_new_netns(|| {
        let wire = Wire::new(&[21], &SERVERS);
        // Every datagram that is refused has to be heard of.
        run("echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit");
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        let both: Vec<SocketAddr> =
            [true, false].into_iter().flat_map(|v4| SERVERS.map(|n| endpoint(v4, n))).collect();
        let answerers = Answerers::new(&wire, &both);
        for (v4, by_node) in [(true, false), (false, false), (true, true), (false, true)] {
            datagrams(&wire, &mut node, &answerers, v4, by_node);
        }
    });
}
