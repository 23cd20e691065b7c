//! Many pods come and go at once, processes are killed anywhere, the disk is full: no address and no port of the node is
//! ever on two pods, and afterwards nothing is left.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use pods::{Node, Pod, on_a_node, ruleset, run, start};
use serde_json::{Value, json};

const WORKERS: usize = 64;

/// xorshift64*, a sequence for each worker.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Which addresses and ports are on which live pod. A pod's are noted after its ADD, however that ended, and crossed out before its
/// DEL begins or its namespace goes: two holders at one time meet here.
#[derive(Default)]
struct Held(Mutex<BTreeMap<String, String>>);

impl Held {
    fn note(&self, pod: &Pod, addresses: &[String]) {
        let mut held = self.0.lock().expect("lock");
        for address in addresses {
            if let Some(other) = held.insert(address.clone(), pod.id.clone()) {
                panic!("{address} is on {other} and on {}", pod.id);
            }
        }
    }

    fn cross_out(&self, addresses: &[String]) {
        let mut held = self.0.lock().expect("lock");
        for address in addresses {
            held.remove(address);
        }
    }
}

/// What the kernel has on eth0 of a pod; link-local addresses left out.
fn on_pod(pod: &Pod) -> Vec<String> {
    let text = pod.run("ip -o addr show scope global");
    text.lines()
        .filter(|line| line.contains("eth0"))
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next().map(str::to_owned))
        .collect()
}

/// A request that may be killed; its exit code and error code, None where it was.
fn request(
    node: &Node,
    command: &str,
    pod: &Pod,
    conf: &Value,
    kill: Option<Duration>,
) -> Option<(i32, u64)> {
    let mut child = start(node.command(command, pod, None), conf);
    if let Some(after) = kill {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    let answer = node.finish(child);
    let error: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    Some((answer.status?, error["code"].as_u64().unwrap_or(0)))
}

/// Some of few ports of the node, so that pods meet: none, or one to three.
fn some_ports(random: &mut Random) -> Vec<u16> {
    let first = 20_000 + u16::try_from(random.below(60)).expect("a small number");
    let count = random.below(6).saturating_sub(2);
    (first..).take(usize::try_from(count).expect("a small number")).collect()
}

/// What a runtime asks for.
fn with_ports(conf: &Value, ports: &[u16]) -> Value {
    let mut conf = conf.clone();
    if !ports.is_empty() {
        let mapping = |port: &u16| json!({ "hostPort": port, "containerPort": 80, "protocol": "udp" });
        conf["runtimeConfig"]["portMappings"] = ports.iter().map(mapping).collect();
    }
    conf
}

/// How many requests ended how.
#[derive(Default)]
struct Counts {
    added: AtomicUsize,
    ported: AtomicUsize,
    killed: AtomicUsize,
    vanished: AtomicUsize,
    refused: Mutex<BTreeMap<u64, usize>>,
}

fn more(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// `rounds` pods by [`WORKERS`] runtimes at once. Some requests are killed if `kills`, and some pods end without a DEL.
fn storm(node: &Node, conf: &Value, rounds: usize, kills: bool) -> Counts {
    let (held, counts, next) = (Held::default(), Counts::default(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (held, counts, next) = (&held, &counts, &next);
            scope.spawn(move || {
                let mut random = Random(0x5eed + worker as u64 * 7919);
                loop {
                    let round = next.fetch_add(1, Ordering::Relaxed);
                    if round >= rounds {
                        break;
                    }
                    let pod = Pod::new(&format!("c{round}"));
                    let kill = |random: &mut Random| {
                        (kills && random.below(2) == 0).then(|| Duration::from_micros(random.below(15_000)))
                    };
                    let able = conf["capabilities"]["portMappings"] == json!(true);
                    let mut ports = if able { some_ports(&mut random) } else { Vec::new() };
                    let wish = with_ports(conf, &ports);
                    match request(node, "ADD", &pod, &wish, kill(&mut random)) {
                        Some((0, _)) => {
                            more(&counts.added);
                            if !ports.is_empty() {
                                more(&counts.ported);
                            }
                        }
                        Some((_, code)) => {
                            ports.clear();
                            *counts.refused.lock().expect("lock").entry(code).or_default() += 1
                        }
                        None => {
                            ports.clear();
                            more(&counts.killed);
                        }
                    }
                    let mut addresses = on_pod(&pod);
                    addresses.extend(ports.iter().map(|port| format!("port {port}")));
                    held.note(&pod, &addresses);
                    std::thread::sleep(Duration::from_micros(random.below(20_000)));
                    held.cross_out(&addresses);
                    if kills && random.below(6) == 0 {
                        // Nobody calls DEL.
                        more(&counts.vanished);
                        continue;
                    }
                    if let Some(kill) = kill(&mut random) {
                        request(node, "DEL", &pod, conf, Some(kill));
                    }
                    assert_eq!(request(node, "DEL", &pod, conf, None), Some((0, 0)));
                }
            });
        }
    });
    counts
}

/// Pairs go with their namespaces a moment later, if nothing holds these.
fn wait_for_no_pairs(node: &Node) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !node.ports().is_empty() {
        assert!(Instant::now() < deadline, "namespaces are held: {:?}", node.ports());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything below the store, by name.
fn files(node: &Node) -> BTreeSet<String> {
    run(&format!("find {} -mindepth 1 -not -type d -printf '%f\\n'", node.data.path().display()))
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn five_hundred_pods_sixty_four_at_once_and_kills() {
    on_a_node(|node| {
        let conf = node.conf("1.1.0");
        let counts = storm_and_nothing_left(node, conf, &["lock", "adding"]);
        // Full of those that are gone while others come: that passes. Nothing else is refused.
        let refused = counts.refused.lock().expect("lock").clone();
        assert!(refused.keys().all(|code| *code == 11), "{refused:?}");
        assert_eq!(run("ip -o link show master homelab0"), "");
    });
}

#[test]
fn five_hundred_pods_with_ports_of_the_node_and_kills() {
    on_a_node(|node| {
        ruleset::load();
        let conf = ruleset::conf(node, &json!([]));
        let counts = storm_and_nothing_left(node, conf, &["lock", "adding", "ports"]);
        let refused = counts.refused.lock().expect("lock").clone();
        // Taken by another pod, as it may be.
        assert!(refused.keys().all(|code| [11, 110].contains(code)), "{refused:?}");
        assert!(refused.contains_key(&110), "{refused:?}");
        assert!(counts.ported.load(Ordering::Relaxed) >= 50);
        assert_eq!(ruleset::elements(), 0, "{}", run("nft list table inet homelab-hostport"));
        // All ports can be had, and each once.
        let (one, two) = (Pod::new("one"), Pod::new("two"));
        let wish = with_ports(&ruleset::conf(node, &json!([])), &(20_000..20_062).collect::<Vec<_>>());
        node.call("ADD", &one, &wish).ok();
        assert_eq!(node.call("ADD", &two, &wish).code(), 110);
        node.call("DEL", &one, &wish).ok();
        node.assert_clean();
    });
}

/// A storm with kills, after which no file but those of `names` is there, and no pair.
fn storm_and_nothing_left(node: &Node, mut conf: Value, names: &[&str]) -> Counts {
    // Room for those that live, not for those that are gone as well.
    conf["ranges"] = json!(["10.244.1.0/25", "fd00:10:1::/64"]);
    let counts = storm(node, &conf, 500, true);
    let refused = counts.refused.lock().expect("lock").clone();
    let summary = format!(
        "{} added, {} of them with ports, {} killed, {} vanished, refused {refused:?}",
        counts.added.load(Ordering::Relaxed),
        counts.ported.load(Ordering::Relaxed),
        counts.killed.load(Ordering::Relaxed),
        counts.vanished.load(Ordering::Relaxed),
    );
    eprintln!("{summary}");
    assert!(counts.added.load(Ordering::Relaxed) >= 100, "{summary}");
    assert!(counts.killed.load(Ordering::Relaxed) >= 10, "{summary}");
    wait_for_no_pairs(node);
    // What nobody called DEL for goes with the next sweep: the agent's, or that of an ADD that finds no address.
    let mut small = conf.clone();
    small["ranges"] = json!(["10.244.1.0/30"]);
    let last = Pod::new("last");
    for _ in 0..2 {
        node.call("ADD", &last, &small).ok();
        node.call("DEL", &last, &small).ok();
    }
    let left = node.entries();
    let mut gc = conf;
    gc["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", &last, &gc).ok();
    node.assert_clean();
    assert_eq!(files(node), names.iter().map(|name| (*name).to_owned()).collect(), "{left:?}");
    counts
}

#[test]
fn a_full_disk() {
    on_a_node(|node| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a new mount namespace");
        let data = node.data.path().display().to_string();
        run("mount --make-rprivate /");
        ruleset::load();
        let (plain, ported) = (node.conf("1.1.0"), ruleset::conf(node, &json!([])));
        // From room for nothing to room for some entries; with ports there are more files.
        let few = [1, 2, 3, 4, 5].map(|inodes| (&plain, inodes, false));
        let few_more = [6, 7, 8].map(|inodes| (&ported, inodes, false));
        for (conf, inodes, some) in
            few.into_iter().chain([(&plain, 12, true)]).chain(few_more).chain([(&ported, 20, true)])
        {
            run(&format!("mount -t tmpfs -o size=64k,nr_inodes={inodes} none {data}"));
            let counts = storm(node, conf, if some { 200 } else { WORKERS }, some);
            let refused = counts.refused.lock().expect("lock").clone();
            let added = counts.added.load(Ordering::Relaxed);
            eprintln!("{inodes} inodes: {added} added, refused {refused:?}");
            assert!(refused.keys().all(|code| [5, 110].contains(code)), "{refused:?}");
            assert!(refused.contains_key(&5), "the disk was never full");
            if inodes <= 5 || some {
                assert_eq!(added > 0, some, "{added} with {inodes}");
            }
            wait_for_no_pairs(node);
            let mut gc = conf.clone();
            gc["cni.dev/valid-attachments"] = json!([]);
            node.call("GC", &Pod::new("gc"), &gc).ok();
            node.assert_clean();
            assert_eq!(ruleset::elements(), 0);
            run(&format!("umount {data}"));
        }
        // And none at all: read-only.
        run(&format!("mount -t tmpfs -o ro none {data}"));
        let pod = Pod::new("ro");
        assert_eq!(node.call("ADD", &pod, &plain).code(), 5);
        node.call("DEL", &pod, &plain).ok();
        node.call("STATUS", &pod, &plain).ok();
        node.assert_clean();
        run(&format!("umount {data}"));
    });
}
