//! Load-balancer addresses on a LAN with others on it: machines that send what they should not, networks that are not as
//! simple as one, and other programs with the same aim.
//!
//! `HOMELAB_TEST_MINUTES=10` (`cargo xtask bench failover --endure 10`) has it take so long without a false failover.

#![allow(clippy::print_stdout, reason = "figures for a benchmark")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use homelab_model::{LbReport, LbStanding, SpeakerSpec};
use homelab_tests::{Cluster, Owners, Place, Pod, Random, SERVER, Sender, To, measured, run_on_stage};
use serde_json::{Value, json};

const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// Addresses of the services `cluster` and `local`.
const CLUSTER: [&str; 2] = ["192.168.50.200", "fd00:50::200"];
const LOCAL: [&str; 2] = ["192.168.50.201", "fd00:50::201"];
/// The host beyond the router.
const WAN: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];
/// How long what is expected may take.
const LONG: Duration = Duration::from_secs(40);

fn main() {
    run_on_stage(
        "lan",
        set,
        &[
            ("forged_replayed_and_garbage_membership_changes_nothing_and_is_counted", membership),
            ("a_flood_of_arp_starves_no_speaker", flood),
            ("no_false_failover_when_cpu_is_short_and_packets_are_lost", endure),
            ("source_address_metallb_257_572_825", source_address),
            ("rp_filter_and_asymmetric_routing_metallb_319_533_610", rp_filter),
            ("another_load_balancer_k3s_269_metallb_1871", another),
            ("what_a_speaker_costs", costs),
        ],
    )
}

struct Stage {
    /// One on each node.
    pods: Vec<Pod>,
}

fn set(cluster: &mut Cluster) -> Stage {
    cluster.second_lan();
    cluster.file.dual_stack(&cluster.lab);
    let ranges = json!(["192.168.50.200-192.168.50.220", "fd00:50::200-fd00:50::220"]);
    cluster.file.set("loadBalancer.pools", json!([{ "name": "default", "addresses": ranges }]));
    cluster.apply();
    let pods: Vec<Pod> = NODES.iter().map(|node| cluster.container(node, &format!("of-{node}"))).collect();
    let endpoints: Vec<Value> =
        pods.iter().map(|pod| json!({ "node": pod.node, "container": pod.name })).collect();
    let service = |name: &str, policy: &str, addresses: [&str; 2], endpoints: &[Value]| {
        json!({
            "name": name, "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack",
            "externalTrafficPolicy": policy, "endpoints": endpoints,
            "annotations": { "metallb.io/loadBalancerIPs": addresses.join(",") },
            "ports": [{ "port": 80, "targetPort": SERVER }],
        })
    };
    let services = [
        service("cluster", "Cluster", CLUSTER, &endpoints),
        service("local", "Local", LOCAL, &endpoints[1..2]),
    ];
    cluster.file.set("services", json!(services));
    cluster.apply();
    cluster.lb_settled(&NODES);
    Stage { pods }
}

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().expect("an address"))
}

/// What must not change: owners and how often they changed, and who is a member.
type Standing = (BTreeMap<IpAddr, (Option<String>, u64)>, BTreeMap<String, bool>);

fn standing(report: &LbReport) -> Standing {
    let addresses = report.addresses.iter().map(|a| (a.address, (a.owner.clone(), a.moves)));
    let members = report.members.iter().map(|m| (m.name.clone(), m.standing.is_member()));
    (addresses.collect(), members.collect())
}

fn standings(cluster: &Cluster) -> Vec<Standing> {
    NODES.map(|node| standing(&cluster.lb(node).expect("a report"))).into()
}

/// What a node's speaker refused so far, by reason.
fn refused(cluster: &Cluster, node: &str) -> BTreeMap<String, u64> {
    let text = cluster
        .sh(node, "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:10256/metrics");
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("homelab_lb_refused_total{reason=\"")?.split_once("\"} "));
    lines.map(|(reason, count)| (reason.to_owned(), count.parse().expect("a count"))).collect()
}

/// A datagram to the membership port of a node, as it is on the wire, from whomever.
fn datagram(cluster: &Cluster, node: &str, from: IpAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, cluster.on_lan(node)[0]) else { panic!("IPv4") };
    let mac = cluster.sh(node, "cat /sys/class/net/eth0/address");
    let mac = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex"));
    let length = |bytes: usize| u16::try_from(bytes).expect("short").to_be_bytes();
    let mut ip = [&[0x45, 0][..], &length(28 + payload.len()), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    ip.extend([from.octets(), to.octets()].concat());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12]
        .copy_from_slice(&(!u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded")).to_be_bytes());
    let port = SpeakerSpec::PORT.to_be_bytes();
    let mut frame: Vec<u8> = mac.chain([0; 6]).chain([8, 0]).collect();
    // No checksum of UDP: IPv4 allows it.
    frame.extend([&ip[..], &port, &port, &length(8 + payload.len()), &[0, 0], payload].concat());
    frame
}

/// Sends them to a node, and waits until it has refused as many for one of these reasons.
fn refuses(cluster: &Cluster, sender: &mut Sender, node: &str, frames: &[Vec<u8>], reasons: &[&str]) {
    let count =
        |all: &BTreeMap<String, u64>| -> u64 { reasons.iter().filter_map(|reason| all.get(*reason)).sum() };
    let before = count(&refused(cluster, node));
    sender.send(frames);
    let start = Instant::now();
    loop {
        let now = refused(cluster, node);
        if count(&now) - before >= frames.len() as u64 {
            return;
        }
        assert!(
            start.elapsed() < LONG,
            "{node}, {reasons:?}, {before} before, {} sent: {now:?}",
            frames.len()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A machine on the LAN that hears all that nodes say to each other, and has not the cluster's key.
fn membership(cluster: &mut Cluster, _: &mut Stage) {
    cluster.lb_settled(&NODES);
    let before = standings(cluster);
    let mut sender = cluster.sender("client");
    let foreign = cluster.on_lan("client")[0];
    let mut random = Random::new();
    let mut heard = cluster.record("lan", "node2", SpeakerSpec::PORT);
    std::thread::sleep(Duration::from_secs(2));
    let said = heard.since();
    let to = |node: &str| -> Vec<(IpAddr, Vec<u8>)> {
        let own = cluster.on_lan(node)[0];
        said.iter()
            .filter(|(_, to, _)| *to == own)
            .map(|(from, _, payload)| (*from, payload.clone()))
            .collect()
    };
    let genuine = to("node1");
    assert!(genuine.len() > 20, "node2 pings node1 every 50 ms: {}", genuine.len());
    let (source, first) = genuine[0].clone();

    // Garbage of every length, from nobody and in a node's name.
    let garbage = |random: &mut Random, length: usize| -> Vec<u8> {
        (0..length).map(|_| random.number().to_be_bytes()[0]).collect()
    };
    for from in [foreign, source] {
        let frames: Vec<Vec<u8>> =
            (0..300).map(|n| datagram(cluster, "node1", from, &garbage(&mut random, n * 4))).collect();
        refuses(cluster, &mut sender, "node1", &frames, &["length", "version", "stranger", "key", "forged"]);
    }
    // One bit of a genuine one is another: wherever it is.
    let forged: Vec<Vec<u8>> = (0..first.len() * 8)
        .map(|bit| {
            let mut bytes = first.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            datagram(cluster, "node1", source, &bytes)
        })
        .collect();
    let why = ["length", "version", "stranger", "key", "forged"];
    refuses(cluster, &mut sender, "node1", &forged, &why);
    // Cut, and longer.
    let cut: Vec<Vec<u8>> = (0..first.len())
        .map(|length| datagram(cluster, "node1", source, &first[..length]))
        .chain([datagram(cluster, "node1", source, &[&first[..], &[0]].concat())])
        .collect();
    refuses(cluster, &mut sender, "node1", &cut, &why);
    // Word by word what node2 said: to node1 again, from node2's address and from another; to node3, for whom it is not.
    for from in [source, foreign] {
        let again: Vec<Vec<u8>> =
            genuine.iter().map(|(_, payload)| datagram(cluster, "node1", from, payload)).collect();
        refuses(cluster, &mut sender, "node1", &again, &["replayed"]);
    }
    let astray: Vec<Vec<u8>> =
        genuine.iter().map(|(_, payload)| datagram(cluster, "node3", source, payload)).collect();
    refuses(cluster, &mut sender, "node3", &astray, &["forged"]);
    cluster.lb_settled(&NODES);
    assert_eq!(standings(cluster), before, "nothing changes");

    // What it said before its agent was started again is of a session that is over.
    cluster.sh("node2", "systemctl restart homelab-node");
    cluster.lb_settled(&NODES);
    let before = standings(cluster);
    let old: Vec<Vec<u8>> =
        genuine.iter().map(|(_, payload)| datagram(cluster, "node1", source, payload)).collect();
    refuses(cluster, &mut sender, "node1", &old, &["unproven", "replayed"]);
    // Nor does a receiver that starts anew take it for news.
    cluster.sh("node1", "systemctl restart homelab-node");
    cluster.lb_settled(&NODES);
    let owners: Vec<_> =
        before.iter().map(|(addresses, _)| addresses.keys().cloned().collect::<Vec<_>>()).collect();
    refuses(cluster, &mut sender, "node1", &old, &["unproven", "replayed"]);
    cluster.lb_settled(&NODES);
    let now: Vec<_> = standings(cluster)
        .iter()
        .map(|(addresses, _)| addresses.keys().cloned().collect::<Vec<_>>())
        .collect();
    assert_eq!(now, owners);
}

/// 50,000 questions a second for addresses of the nodes, and for one of nobody.
fn flood(cluster: &mut Cluster, _: &mut Stage) {
    cluster.lb_settled(&NODES);
    let before = standings(cluster);
    let [asked, other] = [CLUSTER[0], LOCAL[0]].map(|text| text.parse().expect("an address"));
    let quiet = cluster.arp_latency("client", asked, 100);
    let nobody: IpAddr = Ipv4Addr::new(192, 168, 50, 250).into();
    for (what, addresses) in [("of nobody", vec![nobody]), ("of the nodes", vec![asked, other])] {
        // The router floods: the client's own kernel is to have time to ask.
        let flood = cluster.flood("router", "lan", 50_000, &addresses);
        let loud = cluster.arp_latency("client", asked, 200);
        let (sent, seconds) = flood.end();
        let answered = loud.iter().flatten().count();
        figure(&format!("ARP answer during a flood for an address {what}: median"), median(&loud), "us");
        let rate = sent as f64 / seconds;
        measured(format_args!(
            "ARP for an address {what}, {rate:.0}/s: answered {answered} of {}, {} us (quiet {} us), at most {} us",
            loud.len(),
            median(&loud),
            median(&quiet),
            loud.iter().flatten().max().copied().unwrap_or_default(),
        ));
        assert!(answered > 0, "nobody answers");
        // What the machine's queues drop is dropped; the agents live on, and know each other.
        cluster.lb_settled(&NODES);
        assert_eq!(standings(cluster), before, "nothing changes");
        cluster.everywhere("systemctl is-active homelab-node; curl -sf --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:10256/livez");
    }
}

fn median(all: &[Option<u32>]) -> u32 {
    let mut all: Vec<u32> = all.iter().flatten().copied().collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// metallb#257, #572, #825: policy Local keeps the client's address, and within the cluster the address works everywhere.
fn source_address(cluster: &mut Cluster, stage: &mut Stage) {
    let owners = cluster.lb_settled(&NODES);
    let only = [stage.pods[1].name.as_str()];
    for (number, address) in addresses(LOCAL).into_iter().enumerate() {
        assert_eq!(owners[&address], "node2");
        let to = To::new(address, 80, &only).by(&["tcp"]);
        for host in ["client", "wan"] {
            let own = if host == "wan" {
                WAN[number].parse().expect("an address")
            } else {
                cluster.on_lan(host)[number]
            };
            cluster.assert_served(&Place::host(host), &to, |_| vec![own]);
        }
        for (node, pod) in NODES.iter().zip(&stage.pods) {
            // Pods keep their address, and nodes have one of theirs, on nodes with an endpoint and without.
            let pods_own = [pod.address_like(address)];
            let nodes_own = cluster.addresses_of(node);
            let hairpin = [&pods_own[..], &nodes_own].concat();
            cluster.assert_served(&Place::from(pod), &to, |_| {
                if pod.name == only[0] { hairpin.clone() } else { pods_own.into() }
            });
            cluster.assert_served(&Place::host(node), &to, |_| nodes_own.clone());
        }
    }
}

/// metallb#319, #533, #610: with reverse path filters as strict as they come, clients of each LAN and from beyond the router
/// are answered on the way they came. One whose packets come in where answers to it do not go out is answered where
/// filters are loose, as Debian has them.
fn rp_filter(cluster: &mut Cluster, stage: &mut Stage) {
    let mut pools = cluster.file.0["loadBalancer"]["pools"].take();
    let second = ["192.168.60.200", "fd00:60::200"];
    let ranges = second.map(|address| format!("{address}-{address}"));
    pools
        .as_array_mut()
        .expect("pools")
        .push(json!({ "name": "second", "addresses": ranges, "autoAssign": false }));
    cluster.file.set("loadBalancer.pools", pools);
    let mut services = cluster.file.0["services"].take();
    let mut other = services[0].clone();
    (other["name"], other["annotations"]) = (json!("second"), json!({ "metallb.io/address-pool": "second" }));
    services.as_array_mut().expect("services").push(other);
    cluster.file.set("services", services);
    cluster.apply();
    let filter = |cluster: &Cluster, value: u8| {
        let script =
            ["all", "default", "eth0", "eth1"].map(|name| format!("net.ipv4.conf.{name}.rp_filter={value}"));
        cluster.everywhere(&format!("sysctl -qw {}", script.join(" ")));
    };
    filter(cluster, 1);
    let said = cluster.homelab_ok(&["plan"]);
    let said = said.stdout + &said.stderr;
    assert!(
        said.contains("node1: load-balancer addresses may be announced on eth1, where clients of other"),
        "{said}"
    );
    let known = |owners: &Owners| addresses(second).iter().all(|address| owners.contains_key(address));
    let owners = cluster.lb_until(&NODES, "the new service is known", known);
    let names: Vec<&str> = stage.pods.iter().map(|pod| pod.name.as_str()).collect();
    let any: Vec<IpAddr> = NODES.iter().flat_map(|node| cluster.addresses_of(node)).collect();
    let served = |cluster: &Cluster, host: &str, address: IpAddr| {
        let to = To::new(address, 80, &names).by(&["tcp"]);
        cluster.assert_served(&Place::host(host), &to, |_| any.clone());
    };
    let mut resolver = cluster.resolver("client", "eth1");
    for address in addresses(second) {
        // The network of eth1 holds it, so it is announced there without a word about interfaces.
        let mac = cluster.sh(&owners[&address], "cat /sys/class/net/eth1/address");
        // Half a second can be short on a busy machine.
        let mut tries = (0..10).map(|_| resolver.ask(&[address])[&address].clone());
        assert_eq!(tries.find(|claims| !claims.is_empty()), Some(BTreeSet::from([mac])));
        served(cluster, "client", address);
    }
    for address in addresses(CLUSTER) {
        served(cluster, "client", address);
        served(cluster, "wan", address);
    }
    // The client's packets come from its other LAN's address.
    let address = addresses(CLUSTER)[0];
    cluster.sh("client", &format!("ip route replace {address} dev eth0 src 192.168.60.100"));
    cluster.assert_fails(&Place::host("client"), &To::new(address, 80, &names).by(&["tcp"]), "timed out");
    filter(cluster, 2);
    served(cluster, "client", address);
    cluster.sh("client", &format!("ip route delete {address} dev eth0"));
    filter(cluster, 0);
}

/// metallb#1871, k3s#269: another program for services of type LoadBalancer is named, with what to do.
fn another(cluster: &mut Cluster, _: &mut Stage) {
    let plan = |cluster: &Cluster| {
        let said = cluster.homelab_ok(&["plan"]);
        said.stdout + &said.stderr
    };
    assert!(!plan(cluster).contains("from somebody else"));
    // By its name and what its manifest tells it.
    let start = "cp /bin/sleep /tmp/speaker; METALLB_NODE_NAME=node2 setsid /tmp/speaker 600 </dev/null >/dev/null 2>&1 &
        until grep -qs speaker /proc/$!/comm; do sleep 0.02; done; echo $!";
    let pid = cluster.sh("node2", start);
    let said = plan(cluster);
    assert_eq!(said.matches("from somebody else").count(), 1, "{said}");
    assert!(
        said.contains("node2: services of type LoadBalancer") && said.contains("daemonset speaker"),
        "{said}"
    );
    cluster.sh("node2", &format!("kill {pid}"));
}

/// How long to measure: `cargo xtask bench failover --endure MINUTES` sets it.
fn minutes() -> f64 {
    std::env::var("HOMELAB_TEST_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(0.25)
}

/// Busy loops in each node, three for every core of the machine, and each tenth packet between nodes is lost.
fn endure(cluster: &mut Cluster, _: &mut Stage) {
    cluster.lb_settled(&NODES);
    let loss = "table bridge loss { set nodes { type ether_addr; elements = { MACS }; }
        chain forward { type filter hook forward priority 10;
            ether saddr @nodes ether daddr @nodes numgen random mod 10 == 0 counter drop; }; }";
    let macs = cluster.everywhere("cat /sys/class/net/eth0/address").join(", ");
    cluster.sh("lan", &format!("nft -f - <<'END'\n{}\nEND", loss.replace("MACS", &macs)));
    let busy = "for core in $(seq $(nproc)); do for n in 1 2 3; do setsid sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & echo $!; done; done";
    let loops = cluster.everywhere(busy);
    let before = standings(cluster);
    let start = Instant::now();
    let (mut suspects, mut dead) = (0, 0);
    while start.elapsed().as_secs_f64() < 60.0 * minutes() {
        std::thread::sleep(Duration::from_secs(1));
        for node in NODES {
            let report = cluster.lb(node).expect("a report");
            suspects += report.members.iter().filter(|m| m.standing == LbStanding::Suspect).count();
            dead += report.members.iter().filter(|m| !m.standing.is_member()).count();
        }
    }
    let moves = total(&standings(cluster)) - total(&before);
    let lost = cluster.sh("lan", "nft list table bridge loss | sed -n 's/.*packets \\([0-9]*\\).*/\\1/p'");
    let load = cluster.sh("node1", "cut -d' ' -f1 /proc/loadavg");
    for (node, pids) in NODES.iter().zip(&loops) {
        cluster.sh(node, &format!("kill {}", pids.replace('\n', " ")));
    }
    cluster.sh("lan", "nft delete table bridge loss");
    figure("moves of owners while CPU is short and a tenth of the packets is lost", moves, "moves");
    measured(format_args!(
        "{:.1} min, load {load}, {lost} packets lost: {moves} moves of owners, {suspects} suspicions seen",
        start.elapsed().as_secs_f64() / 60.0
    ));
    assert!(lost.parse::<u64>().expect("a count") > 10);
    assert_eq!(moves, 0, "no false failover");
    assert_eq!(dead, 0, "no member was taken for dead");
}

/// Changes of owners, as all nodes count them.
fn total(all: &[Standing]) -> u64 {
    all.iter().flat_map(|(addresses, _)| addresses.values().map(|(_, moves)| moves)).sum()
}

/// For `cargo xtask bench`.
fn figure(what: &str, value: impl std::fmt::Display, unit: &str) {
    println!("FIGURE\t{what}\t{value}\t{unit}");
}

/// CPU time of the speaker's thread, seconds, and the agent's resident memory, MiB.
fn cost(cluster: &Cluster, node: &str) -> (f64, f64) {
    let text = cluster.sh(
        node,
        "pid=$(systemctl show --property=MainPID --value homelab-node)
        for task in /proc/$pid/task/*; do grep -q speaker $task/comm && cut -d' ' -f14,15 $task/stat; done
        getconf CLK_TCK; awk '/VmRSS/ { print $2 }' /proc/$pid/status",
    );
    let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let [user, system, ticks, kib] = numbers[..] else { panic!("{text}") };
    ((user + system) / ticks, kib / 1024.0)
}

/// With 1 and with 250 addresses, at rest: CPU, memory, and how long a client waits for an answer, which it always gets.
fn costs(cluster: &mut Cluster, _: &mut Stage) {
    let asked: IpAddr = "192.168.51.1".parse().expect("an address");
    for count in [1_u16, 250] {
        let pool = json!({ "name": "many", "addresses": ["192.168.51.1-192.168.51.250"] });
        cluster.file.set("loadBalancer.pools", json!([pool]));
        let service = |n: u16| {
            json!({
                "name": format!("s{n}"), "type": "LoadBalancer", "loadBalancerIP": format!("192.168.51.{n}"),
                "ports": [{ "port": 53, "protocol": "UDP" }], "endpoints": ["192.0.2.2"],
            })
        };
        cluster.file.set("services", (1..=count).map(service).collect());
        cluster.apply();
        let owners =
            cluster.lb_until(&NODES, "all are announced", |owners| owners.len() == usize::from(count));
        let owner = owners[&asked].clone();
        // The burst is over after two seconds.
        std::thread::sleep(Duration::from_secs(3));
        let (start, (before, _)) = (Instant::now(), cost(cluster, &owner));
        std::thread::sleep(Duration::from_secs_f64(if minutes() < 1.0 { 3.0 } else { 60.0 }));
        let (after, memory) = cost(cluster, &owner);
        let share = 100.0 * (after - before) / start.elapsed().as_secs_f64();
        let mut took = cluster.arp_latency("client", asked, 200);
        took.sort_unstable();
        let at = |per_cent: usize| took[took.len() * per_cent / 100].unwrap_or_default();
        measured(format_args!(
            "{count} addresses: speaker {share:.2} % of a core, agent {memory:.1} MiB; ARP {} us, p99 {} us",
            at(50),
            at(99)
        ));
        figure(&format!("speaker at rest, {count} addresses: CPU"), format_args!("{share:.2}"), "% core");
        figure(&format!("agent, {count} addresses: memory"), format_args!("{memory:.2}"), "MiB");
        figure(&format!("ARP answer, {count} addresses: median"), at(50), "us");
        figure(&format!("ARP answer, {count} addresses: 99th percentile"), at(99), "us");
        assert!(took.iter().all(Option::is_some), "every question is answered: {took:?}");
    }
}
