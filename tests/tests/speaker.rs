//! Load-balancer addresses on a real LAN: who answers for them, what a client notices when that changes, and what happens
//! when a foreign machine has one.
//!
//! `HOMELAB_TEST_RUNS=30` (`cargo xtask bench failover --runs 30`) has every kind of failover happen so many times.

#![allow(clippy::print_stdout, reason = "figures for a benchmark")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_model::{LABEL_EXCLUDE, LbUnfit, LbWhere};
use homelab_tests::{Cluster, Gaps, Owners, Place, SERVER, To, measured, run_on_stage};
use serde_json::{Value, json};

const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn main() {
    run_on_stage(
        "speaker",
        set,
        &[
            ("a_client_reaches_every_address_and_only_its_owner_answers", everywhere),
            ("announcements_are_as_the_rfcs_have_them", frames),
            ("failover_by_cordon_and_exclude_label", orders),
            ("failover_when_the_agent_is_killed_or_started_again", agents),
            ("failover_when_the_owner_shuts_down_or_reboots", shutdown),
            ("failover_when_the_cable_is_pulled_metallb_740", cable),
            ("failover_within_a_second_metallb_524", sudden),
            ("policy_local_needs_a_local_endpoint_metallb_825", local),
            ("an_address_of_a_foreign_machine_is_not_fought_over", conflict),
        ],
    )
}

struct Stage {
    gaps: Gaps,
    addresses: Vec<IpAddr>,
}

/// A service with an address of each family, and an endpoint that is no node: it survives whatever happens to them.
fn service(name: &str) -> Value {
    json!({
        "name": name, "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack",
        "ports": [{ "port": 53, "protocol": "UDP", "targetPort": SERVER }],
        "endpoints": ["192.0.2.2", "2001:db8:2::2"],
    })
}

fn set(cluster: &mut Cluster) -> Stage {
    cluster.file.dual_stack(&cluster.lab);
    let ranges = json!(["192.168.50.200-192.168.50.220", "fd00:50::200-fd00:50::220"]);
    cluster.file.set("loadBalancer.pools", json!([{ "name": "default", "addresses": ranges }]));
    cluster.file.set("services", (0..4).map(|n| service(&format!("s{n}"))).collect());
    cluster.apply();
    let owners = cluster.lb_settled(&NODES);
    let addresses: Vec<IpAddr> = owners.into_keys().collect();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    let to: Vec<(IpAddr, u16)> = addresses.iter().map(|address| (*address, 53)).collect();
    let gaps = cluster.gaps(&Place::host("client"), &to);
    Stage { gaps, addresses }
}

/// Starts the endpoint, which ended with the scenario before, and waits until the client has answers from all addresses.
fn begin(cluster: &mut Cluster, stage: &mut Stage) -> Owners {
    cluster.serve(&Place::host("wan"));
    let owners = cluster.lb_settled(&NODES);
    let start = Instant::now();
    loop {
        stage.gaps.since();
        std::thread::sleep(Duration::from_millis(300));
        let gaps = stage.gaps.since();
        if gaps.iter().all(|gap| gap.sent > 10 && gap.lost == 0) {
            return owners;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{gaps:?}");
    }
}

/// The MAC address of a node's LAN interface.
fn mac(cluster: &Cluster, node: &str) -> [u8; 6] {
    let text = cluster.sh(node, "cat /sys/class/net/eth0/address");
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

/// Target of a solicitation, sender of an ARP packet, target of an advertisement: whom a frame is about, and who says it.
fn claim(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
    if frame[12..14] == [8, 6] {
        let sender: [u8; 4] = frame[28..32].try_into().ok()?;
        return Some((sender.into(), mac(22)));
    }
    let target: [u8; 16] = frame[62..78].try_into().ok()?;
    (frame[54] == 136).then(|| (target.into(), mac(6)))
}

/// The client resolves and reaches every address; the owner alone answers, from its own MAC address.
fn everywhere(cluster: &mut Cluster, stage: &mut Stage) {
    let owners = begin(cluster, stage);
    let macs: BTreeMap<&str, [u8; 6]> = NODES.iter().map(|node| (*node, mac(cluster, node))).collect();
    let mut heard = cluster.hear(&Place::host("client"));
    stage.gaps.since();
    // It asks anew while it sends.
    cluster.sh("client", "ip neigh flush dev eth0; ip -6 neigh flush dev eth0");
    std::thread::sleep(Duration::from_secs(1));
    let mut answers: BTreeMap<IpAddr, BTreeSet<[u8; 6]>> = BTreeMap::new();
    for (address, who) in heard.since().iter().filter_map(|frame| claim(frame)) {
        answers.entry(address).or_default().insert(who);
    }
    for address in &stage.addresses {
        let owner = macs[owners[address].as_str()];
        assert_eq!(answers.get(address), Some(&BTreeSet::from([owner])), "{address}: {answers:?}");
    }
    let owning: BTreeSet<&String> = owners.values().collect();
    assert!(owning.len() > 1, "addresses are spread: {owners:?}");
    stage.gaps.since();
    std::thread::sleep(Duration::from_secs(1));
    nobody_noticed(stage);
}

/// RFC 826, RFC 5227 3 (both forms), RFC 4861 4.4 and 7.2.6, byte by byte, when an address moves.
fn frames(cluster: &mut Cluster, stage: &mut Stage) {
    let owners = begin(cluster, stage);
    let mut heard = cluster.hear(&Place::host("client"));
    let victim = owners[&stage.addresses[0]].clone();
    cordon(cluster, &victim, true);
    let after = cluster.lb_until(&NODES, "it has none", |owners| !has(owners, &victim));
    std::thread::sleep(Duration::from_secs(2));
    let frames = heard.since();
    cordon(cluster, &victim, false);
    let moved: Vec<&IpAddr> = stage.addresses.iter().filter(|a| owners[*a] == victim).collect();
    for address in moved {
        let mac = mac(cluster, &after[address]);
        let expected: Vec<Vec<u8>> = match address {
            IpAddr::V4(address) => [1_u8, 2]
                .into_iter()
                .map(|operation| {
                    // Ethernet, IPv4, lengths, operation; sender and target have the same address. The target's MAC
                    // address means nothing in a request and is the sender's, or everybody's, in a reply.
                    let mut frame = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
                    frame.extend([&mac[..], &address.octets()].concat());
                    frame
                })
                .collect(),
            IpAddr::V6(address) => {
                let to: std::net::Ipv6Addr = "ff02::1".parse().expect("all nodes");
                let mut frame =
                    [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]]
                        .concat();
                frame.extend([&address.octets()[..], &to.octets(), &[136, 0]].concat());
                vec![frame]
            }
        };
        for head in expected {
            let mut same: Vec<&Vec<u8>> = frames.iter().filter(|frame| frame.starts_with(&head)).collect();
            same.dedup();
            let all = frames.iter().filter(|frame| frame.starts_with(&head)).count();
            assert!(all >= 3, "{address}: a burst, of {head:02x?}: {all}");
            let tail = &same[0][head.len()..];
            match address {
                IpAddr::V4(address) => assert_eq!(tail[6..10], address.octets(), "the target is the sender"),
                IpAddr::V6(address) => {
                    // Checksum; flags: override alone; target; option 2 with the MAC address.
                    let rest = [&[0x20, 0, 0, 0][..], &address.octets(), &[2, 1], &mac].concat();
                    assert_eq!(tail[2..], rest);
                }
            }
        }
    }
    back_again(cluster, &owners);
}

fn has(owners: &Owners, node: &str) -> bool {
    owners.values().any(|owner| owner == node)
}

/// Waits until all is as it was.
#[track_caller]
fn back_again(cluster: &Cluster, owners: &Owners) {
    cluster.lb_until(&NODES, "all is as it was", |now| now == owners);
}

fn cordon(cluster: &Cluster, node: &str, on: bool) {
    cluster.homelab_ok(&[if on { "cordon" } else { "uncordon" }, node]);
}

#[track_caller]
fn nobody_noticed(stage: &mut Stage) {
    let gaps = stage.gaps.since();
    assert!(gaps.iter().all(|gap| gap.sent > 20 && gap.lost == 0), "{gaps:?}");
}

/// How often each kind of failover happens.
fn runs() -> usize {
    std::env::var("HOMELAB_TEST_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Something happens to the owner of the first address, and is over after `back`. Prints how long the client had no answer
/// from the addresses of that owner; nobody may miss another node's.
fn failover(
    cluster: &mut Cluster,
    stage: &mut Stage,
    what: &str,
    happens: &dyn Fn(&Cluster, &str),
    back: &dyn Fn(&Cluster, &str),
) -> Vec<Duration> {
    let mut all = Vec::new();
    let owners = cluster.lb_settled(&NODES);
    for run in 0..runs() {
        let victim = owners[&stage.addresses[run % stage.addresses.len()]].clone();
        let others: Vec<&str> = NODES.into_iter().filter(|node| *node != victim).collect();
        stage.gaps.since();
        std::thread::sleep(Duration::from_millis(300));
        happens(cluster, &victim);
        let after = cluster.lb_until(&others, "it has none", |owners| !has(owners, &victim));
        std::thread::sleep(Duration::from_millis(300));
        for (address, gap) in stage.addresses.iter().zip(stage.gaps.since()) {
            if owners[address] == victim {
                assert_ne!(after[address], victim);
                all.push(gap.longest);
            } else {
                assert_eq!(
                    (gap.lost, &after[address]),
                    (0, &owners[address]),
                    "{what}: {address} is not {victim}'s"
                );
            }
        }
        back(cluster, &victim);
        back_again(cluster, &owners);
        std::thread::sleep(Duration::from_secs(2));
        for (address, gap) in stage.addresses.iter().zip(stage.gaps.since()) {
            assert_eq!(gap.lost, 0, "{what}: {address} while {victim} came back");
        }
    }
    told(what, all)
}

/// Prints shortest, median and longest times without an answer, and gives them back sorted.
fn told(what: &str, mut all: Vec<Duration>) -> Vec<Duration> {
    if runs() > 1 {
        // For `cargo xtask bench failover`.
        let values: Vec<String> = all.iter().map(|gap| gap.as_millis().to_string()).collect();
        println!("FIGURE\t{what}\t{}", values.join(" "));
    }
    all.sort_unstable();
    let (min, median, max) = (all[0], all[all.len() / 2], all[all.len() - 1]);
    measured(format_args!("{what}: no answer for {min:?} / {median:?} / {max:?} (of {})", all.len()));
    all
}

fn sudden(cluster: &mut Cluster, stage: &mut Stage) {
    begin(cluster, stage);
    failover(
        cluster,
        stage,
        "owner's power cut",
        &|cluster, node| cluster.lab.power_cut(&[node]).expect("power cut"),
        &|cluster, node| cluster.lab.start(node).expect("start"),
    );
    failover(
        cluster,
        stage,
        "owner parted from everybody",
        &|cluster, node| cluster.lab.partition(node).expect("partition"),
        &|cluster, node| cluster.lab.heal(node).expect("heal"),
    );
    failover(
        cluster,
        stage,
        "owner frozen",
        &|cluster, node| {
            cluster.lab.partition(node).expect("partition");
            cluster.lab.freeze(node).expect("freeze");
        },
        &|cluster, node| {
            cluster.lab.thaw(node).expect("thaw");
            cluster.lab.heal(node).expect("heal");
        },
    );
}

/// metallb#740: none announces after the link is back.
fn cable(cluster: &mut Cluster, stage: &mut Stage) {
    begin(cluster, stage);
    failover(
        cluster,
        stage,
        "owner's cable pulled",
        &|cluster, node| drop(cluster.sh("lan", &format!("ip link set {node} down"))),
        &|cluster, node| drop(cluster.sh("lan", &format!("ip link set {node} up"))),
    );
}

/// The kernel goes on forwarding while the agent is away, so nobody notices.
fn agents(cluster: &mut Cluster, stage: &mut Stage) {
    begin(cluster, stage);
    let none = |gaps: Vec<Duration>| assert!(gaps.iter().all(Duration::is_zero), "{gaps:?}");
    none(failover(
        cluster,
        stage,
        "owner's agent killed",
        &|cluster, node| {
            cluster.sh(
                node,
                "systemctl mask --runtime --quiet homelab-node; systemctl kill -s KILL homelab-node",
            );
        },
        &|cluster, node| {
            cluster.sh(node, "systemctl unmask --runtime --quiet homelab-node; systemctl start homelab-node");
        },
    ));
    // One that is started again keeps its addresses.
    let owners = cluster.lb_settled(&NODES);
    let moves = |cluster: &Cluster| -> u64 {
        cluster.lb("node1").expect("a report").addresses.iter().map(|address| address.moves).sum()
    };
    let before = moves(cluster);
    stage.gaps.since();
    for _ in 0..3 {
        cluster.sh("node2", "systemctl restart homelab-node");
        back_again(cluster, &owners);
    }
    assert_eq!(moves(cluster), before, "nothing moves");
    nobody_noticed(stage);
}

fn shutdown(cluster: &mut Cluster, stage: &mut Stage) {
    let owners = begin(cluster, stage);
    let owner = owners[&stage.addresses[(runs() - 1) % stage.addresses.len()]].clone();
    failover(
        cluster,
        stage,
        "owner shuts down",
        &|cluster, node| {
            // The shutdown may take the command with it.
            let _ = cluster.lab.sh(node, "systemctl --no-block poweroff");
            let start = Instant::now();
            while cluster.lab.leader(node).is_ok() {
                assert!(start.elapsed() < Duration::from_secs(60), "{node} does not shut down");
                std::thread::sleep(Duration::from_millis(20));
            }
        },
        &|cluster, node| cluster.lab.start(node).expect("start"),
    );
    let handed = |cluster: &Cluster, node: &str| {
        let journal = cluster.sh(node, "journalctl --boot=-1 --unit=homelab-node --no-pager --output=cat");
        assert!(journal.contains("addresses are handed over"), "{node} took them along:\n{journal}");
    };
    handed(cluster, &owner);
    let owners = cluster.lb_settled(&NODES);
    let mut all = Vec::new();
    for run in 0..runs() {
        let node = NODES[(run + 2) % NODES.len()];
        stage.gaps.since();
        cluster.lab.reboot(node).expect("reboot");
        back_again(cluster, &owners);
        handed(cluster, node);
        all.extend(stage.gaps.since().into_iter().map(|gap| gap.longest));
    }
    told("a node is rebooted", all);
}

fn orders(cluster: &mut Cluster, stage: &mut Stage) {
    let owners = begin(cluster, stage);
    let victim = owners[&stage.addresses[0]].clone();
    cordon(cluster, &victim, true);
    let after = cluster.lb_until(&NODES, "it has none", |owners| !has(owners, &victim));
    let report = cluster.lb(&victim).expect("a report");
    let told = (victim.clone(), LbUnfit::Cordoned);
    assert!(report.addresses.iter().all(|address| address.unfit.contains(&told)), "{report:?}");
    // It holds over a restart of the agent.
    cluster.sh(&victim, "systemctl restart homelab-node");
    back_again(cluster, &after);
    cordon(cluster, &victim, false);
    back_again(cluster, &owners);
    nobody_noticed(stage);

    // metallb l2tests "NodeExcludeBalancers".
    let index = NODES.iter().position(|node| *node == victim).expect("a node");
    cluster.file.set(&format!("nodes.{index}.labels"), json!({ LABEL_EXCLUDE: "" }));
    let said = cluster.apply();
    let said = said.stdout + &said.stderr;
    assert!(said.contains(&format!("{victim} announces no load-balancer addresses")), "{said}");
    back_again(cluster, &after);
    cluster.file.set(&format!("nodes.{index}.labels"), json!({}));
    cluster.apply();
    back_again(cluster, &owners);
    nobody_noticed(stage);
}

/// metallb#825 and l2tests "externalTrafficPolicy Local": the owner is a node with an endpoint, the client's address is kept,
/// and without endpoints there is no owner.
fn local(cluster: &mut Cluster, _: &mut Stage) {
    let address: IpAddr = "192.168.50.219".parse().expect("an address");
    let pods = [cluster.container("node2", "local2"), cluster.container("node3", "local3")];
    let mut services: Vec<Value> = (0..4).map(|n| service(&format!("s{n}"))).collect();
    let client = cluster.on_lan("client")[0];
    let mut have = |cluster: &mut Cluster, endpoints: Value| {
        services.truncate(4);
        services.push(json!({
            "name": "local", "type": "LoadBalancer", "loadBalancerIP": address, "externalTrafficPolicy": "Local",
            "ports": [{ "port": 80, "targetPort": SERVER }], "endpoints": endpoints,
        }));
        cluster.file.set("services", json!(services));
        let output = cluster.apply();
        output.stdout + &output.stderr
    };
    for pod in &pods {
        have(cluster, json!([{ "node": pod.node, "container": pod.name }]));
        let is_owner = |owners: &Owners| owners.get(&address) == Some(&pod.node);
        cluster.lb_until(&NODES, "the endpoint's node has it", is_owner);
        let names = [pod.name.as_str()];
        let to = To::new(address, 80, &names).by(&["tcp"]);
        cluster.assert_served(&Place::host("client"), &to, |_| vec![client]);
    }
    let said = have(cluster, json!([]));
    assert!(said.contains("nobody announces its load-balancer address 192.168.50.219"), "[{said}]");
    let start = Instant::now();
    loop {
        let report = cluster.lb("node1").expect("a report");
        let found = report.addresses.iter().find(|a| a.address == address).expect("the address").clone();
        if found.state() == LbWhere::Nobody {
            let all = NODES.map(|node| (node.to_owned(), LbUnfit::NoLocalEndpoint));
            assert_eq!(found.unfit, all);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{found:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    services.truncate(4);
    cluster.file.set("services", json!(services));
    cluster.apply();
}

/// The router is the foreign machine: it has an address of the pool, lets go, takes it later.
fn conflict(cluster: &mut Cluster, _: &mut Stage) {
    let address: IpAddr = "192.168.50.218".parse().expect("an address");
    let foreign = cluster.sh("router", "ip -o link show lan | sed 's/.*link.ether //; s/ .*//'");
    cluster.sh("router", "ip addr add 192.168.50.218/32 dev lan");
    // The plan says so before anything is announced, and names no node as the foreign machine.
    let output = cluster.homelab_ok(&["plan", "--scan-pool"]);
    let said = output.stdout + &output.stderr;
    let told = format!("192.168.50.218 of pool default is used by another machine, {foreign}");
    assert!(said.contains(&told), "{said}");
    assert_eq!(said.matches("used by another machine").count(), 1, "{said}");
    let mut services: Vec<Value> = (0..4).map(|n| service(&format!("s{n}"))).collect();
    let mut contested = service("contested");
    contested["ipFamilyPolicy"] = json!("SingleStack");
    contested["loadBalancerIP"] = json!(address);
    services.push(contested);
    cluster.file.set("services", json!(services));
    cluster.apply();
    let wait = |what: &str, met: &dyn Fn(&homelab_model::LbAddress) -> bool| {
        let start = Instant::now();
        loop {
            let found: Vec<_> = NODES
                .iter()
                .filter_map(|node| cluster.lb(node)?.addresses.into_iter().find(|a| a.address == address))
                .collect();
            if found.len() == NODES.len() && found.iter().all(met) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{what}: {found:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let foreign_has_it = |a: &homelab_model::LbAddress| a.conflict.as_deref() == Some(foreign.as_str());
    wait("all nodes know who has it", &foreign_has_it);
    let resolves = |cluster: &Cluster| {
        cluster.sh("client", "ip neigh flush to 192.168.50.218; ping -c1 -W1 192.168.50.218 >/dev/null; ip neigh show 192.168.50.218")
    };
    assert!(resolves(cluster).contains(&foreign), "nobody else answers");
    cluster.sh("router", "ip addr del 192.168.50.218/32 dev lan");
    wait("it is taken when it is free", &|a| a.conflict.is_none() && a.owner.is_some());
    cluster.lb_settled(&NODES);
    assert!(!resolves(cluster).contains(&foreign));
    // It takes the address, and insists: a claim is answered once, and yielded to the second time.
    cluster.sh("router", "ip addr add 192.168.50.218/32 dev lan");
    cluster.sh("router", "arping -q -U -c 2 -I lan -s 192.168.50.218 192.168.50.218 || true");
    wait("yielded to", &foreign_has_it);
    cluster.sh("router", "ip addr del 192.168.50.218/32 dev lan");
    wait("and taken again", &|a| a.conflict.is_none() && a.owner.is_some());
    services.truncate(4);
    cluster.file.set("services", json!(services));
    cluster.apply();
    cluster.lb_settled(&NODES);
}
