//! Many pods come and go at once, processes are killed anywhere, the disk is full: no address is ever on two pods, and
//! afterwards nothing is left.

mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use pods::{Node, Pod, on_a_node, run, start};
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

/// Which addresses are on which live pod. A pod's are noted after its ADD, however that ended, and crossed out before its
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

/// How many requests ended how.
#[derive(Default)]
struct Counts {
    added: AtomicUsize,
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
                    match request(node, "ADD", &pod, conf, kill(&mut random)) {
                        Some((0, _)) => more(&counts.added),
                        Some((_, code)) => {
                            *counts.refused.lock().expect("lock").entry(code).or_default() += 1
                        }
                        None => more(&counts.killed),
                    }
                    let addresses = on_pod(&pod);
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
        let mut conf = node.conf("1.1.0");
        // Room for those that live, not for those that are gone as well.
        conf["ranges"] = json!(["10.244.1.0/25", "fd00:10:1::/64"]);
        let counts = storm(node, &conf, 500, true);
        let refused = counts.refused.lock().expect("lock").clone();
        let summary = format!(
            "{} added, {} killed, {} vanished, refused {refused:?}",
            counts.added.load(Ordering::Relaxed),
            counts.killed.load(Ordering::Relaxed),
            counts.vanished.load(Ordering::Relaxed),
        );
        eprintln!("{summary}");
        assert!(counts.added.load(Ordering::Relaxed) >= 100, "{summary}");
        assert!(counts.killed.load(Ordering::Relaxed) >= 10, "{summary}");
        // Full of those that are gone while others come: that passes. Nothing else is refused.
        assert!(refused.keys().all(|code| *code == 11), "{summary}");
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
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([]);
        node.call("GC", &last, &gc).ok();
        node.assert_clean();
        assert_eq!(files(node), BTreeSet::from(["lock".to_owned(), "adding".to_owned()]), "{left:?}");
        assert_eq!(run("ip -o link show master homelab0"), "");
    });
}

#[test]
fn a_full_disk() {
    on_a_node(|node| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a new mount namespace");
        let data = node.data.path().display().to_string();
        run("mount --make-rprivate /");
        let conf = node.conf("1.1.0");
        // From room for nothing to room for some entries.
        for inodes in [1, 2, 3, 4, 5, 12] {
            run(&format!("mount -t tmpfs -o size=64k,nr_inodes={inodes} none {data}"));
            let counts = storm(node, &conf, if inodes == 12 { 200 } else { WORKERS }, inodes == 12);
            let refused = counts.refused.lock().expect("lock").clone();
            let added = counts.added.load(Ordering::Relaxed);
            eprintln!("{inodes} inodes: {added} added, refused {refused:?}");
            assert!(refused.keys().all(|code| *code == 5), "{refused:?}");
            assert!(refused.values().sum::<usize>() > 0, "the disk was never full");
            assert_eq!(added > 0, inodes > 5, "{added} with {inodes}");
            wait_for_no_pairs(node);
            let mut gc = conf.clone();
            gc["cni.dev/valid-attachments"] = json!([]);
            node.call("GC", &Pod::new("gc"), &gc).ok();
            node.assert_clean();
            run(&format!("umount {data}"));
        }
        // And none at all: read-only.
        run(&format!("mount -t tmpfs -o ro none {data}"));
        let pod = Pod::new("ro");
        assert_eq!(node.call("ADD", &pod, &conf).code(), 5);
        node.call("DEL", &pod, &conf).ok();
        node.call("STATUS", &pod, &conf).ok();
        node.assert_clean();
        run(&format!("umount {data}"));
    });
}
