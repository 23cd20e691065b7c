//! Pods that are kept apart: `portIsolation` and `macspoofchk`, with frames that a pod forges itself.
//!
//! Frames of a test go to addresses of their own, `02:aa:00:00:00:<case>`. A rule behind the guard notes those that come
//! through it; the last frame of a test is an honest one, so what is not noted when that is there was dropped.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use homelab_linux::l2::Port;
use homelab_linux::parse_mac;
use pods::{Node, Pod, addresses, on_a_node, ruleset, run};
use serde_json::{Value, json};

const HONEST: u8 = 0xff;

/// An entry in the set of what came through.
const WATCH: &str = "table bridge watch {
    set seen { type ether_addr; flags dynamic; size 256; }
    chain seen { type filter hook prerouting priority -305;
        ether daddr & ff:ff:00:00:00:00 == 02:aa:00:00:00:00 add @seen { ether daddr }
    }
}";

fn on_a_stage(work: impl FnOnce(&Node) + Send) {
    on_a_node(|node| {
        ruleset::load();
        run(&format!("nft '{WATCH}'"));
        run("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        work(node);
    });
}

/// The node's own list, with options of isolation.
fn conf(node: &Node, options: Value) -> Value {
    let spec = ruleset::spec();
    let mut conf = node.conf("1.1.0");
    conf["bridgeMac"] = json!(homelab_cni::bridge_mac(&spec.cluster, &spec.node));
    conf["ranges"] = json!(spec.pod_cidrs);
    if let (Some(conf), Value::Object(options)) = (conf.as_object_mut(), options) {
        conf.extend(options);
    }
    conf
}

/// A pod as ADD made it.
struct Attached {
    pod: Pod,
    conf: Value,
    port: String,
    mac: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Attached {
    fn new(node: &Node, id: &str, options: Value) -> Attached {
        let (pod, mut conf) = (Pod::new(id), conf(node, options));
        let result = node.call("ADD", &pod, &conf).ok();
        let found = addresses(&result);
        let mac = result["interfaces"][2]["mac"].as_str().and_then(parse_mac).expect("mac");
        let port = result["interfaces"][1]["name"].as_str().expect("name").to_owned();
        conf["prevResult"] = result;
        let (v4, v6) = (found[0].parse().expect("IPv4"), found[1].parse().expect("IPv6"));
        Attached { pod, conf, port, mac, v4, v6 }
    }

    /// The address that its kernel made of its MAC address.
    fn link_local(&self) -> Ipv6Addr {
        let shown = self.pod.run("ip -6 -o address show dev eth0 scope link");
        let word = shown.split_whitespace().find(|word| word.starts_with("fe80::")).expect("link-local");
        word.split('/').next().expect("address").parse().expect("address")
    }

    /// The cases that come through of these frames, each without the destination.
    fn pass(&self, frames: Vec<(u8, Vec<u8>)>) -> BTreeSet<u8> {
        run("nft flush set bridge watch seen");
        self.pod.within(|| {
            let port = Port::open("eth0").expect("port");
            for (case, frame) in frames.iter().chain([&(HONEST, self.ipv4(self.v4))]) {
                let frame = [&[2, 0xaa, 0, 0, 0, *case], &frame[..]].concat();
                port.send(&frame).expect("send");
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = seen();
            if seen.contains(&HONEST) {
                return seen.into_iter().filter(|case| *case != HONEST).collect();
            }
            assert!(Instant::now() < deadline, "the honest frame is lost");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ethernet(&self, kind: u16, rest: &[&[u8]]) -> Vec<u8> {
        [&self.mac[..], &kind.to_be_bytes(), &rest.concat()].concat()
    }

    fn ipv4(&self, source: Ipv4Addr) -> Vec<u8> {
        self.ethernet(0x800, &[&ipv4(source)])
    }

    fn arp(&self, mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
        // A reply to the gateway.
        let head = [0, 1, 8, 0, 6, 4, 0, 2];
        self.ethernet(0x806, &[&head, &mac, &sender.octets(), &[0; 6], &[10, 244, 0, 1], &[0; 18]])
    }

    fn ipv6(&self, source: Ipv6Addr, next: u8, rest: &[u8]) -> Vec<u8> {
        self.ethernet(0x86dd, &[&ipv6(source, next, rest)])
    }

    /// ICMPv6 of a type about a target, e.g. an advertisement.
    fn about(&self, kind: u8, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        self.ipv6(source, 58, &icmp6(kind, target))
    }
}

fn ipv4(source: Ipv4Addr) -> Vec<u8> {
    let head = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    [&head[..], &source.octets(), &[10, 244, 0, 1], &[0, 9, 0, 9, 0, 8, 0, 0]].concat()
}

fn ipv6(source: Ipv6Addr, next: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    let to: Ipv6Addr = "fd00:10:244::1".parse().expect("address");
    [&[0x60, 0, 0, 0][..], &length, &[next, 255], &source.octets(), &to.octets(), rest].concat()
}

fn icmp6(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets()].concat()
}

/// Cases in the set.
fn seen() -> BTreeSet<u8> {
    let listed: Value = serde_json::from_str(&run("nft -j list set bridge watch seen")).expect("JSON");
    let items = listed["nftables"].as_array().expect("list");
    let elements = items.iter().filter_map(|item| item["set"]["elem"].as_array()).flatten();
    let case = |element: &Value| {
        let mac = element.as_str().or_else(|| element["elem"]["val"].as_str()).and_then(parse_mac);
        mac.expect("MAC address")[5]
    };
    elements.map(case).collect()
}

/// Elements of the guard.
fn guarded() -> usize {
    homelab_cni::GUARD_SETS.iter().map(|set| ruleset::elements_of(&format!("set bridge homelab {set}"))).sum()
}

#[test]
fn macspoofchk_a_guarded_pod_sends_by_its_own_addresses_only() {
    on_a_stage(|node| {
        let pod = Attached::new(node, "one", json!({ "macspoofchk": true }));
        let other = Attached::new(node, "two", json!({}));
        let local = pod.link_local();
        let gateway: Ipv6Addr = "fd00:10:244::1".parse().expect("address");
        let own = vec![
            (1, pod.ipv4(pod.v4)),
            (2, pod.ipv6(pod.v6, 59, &[])),
            (3, pod.ipv6(local, 59, &[])),
            (4, pod.arp(pod.mac, pod.v4)),
            (5, pod.about(135, pod.v6, gateway)),
            (6, pod.about(136, pod.v6, pod.v6)),
            (7, pod.about(136, local, local)),
        ];
        assert_eq!(pod.pass(own), (1..=7).collect());
        let tagged = |rest: Vec<u8>| pod.ethernet(0x8100, &[&[0, 5, 8, 0], &rest]);
        let foreign_mac = [&other.mac[..], &[8, 0], &ipv4(pod.v4)].concat();
        let stranger: Ipv6Addr = "fe80::1".parse().expect("address");
        let behind_options = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &icmp6(136, other.v6)].concat();
        let forged = vec![
            (10, foreign_mac),
            (11, pod.ipv4(other.v4)),
            (12, pod.ipv6(other.v6, 59, &[])),
            (13, pod.ipv6(stranger, 59, &[])),
            (14, pod.arp(pod.mac, other.v4)),
            (15, pod.arp(pod.mac, "10.244.0.1".parse().expect("address"))),
            (16, pod.arp(other.mac, pod.v4)),
            (17, pod.about(136, pod.v6, other.v6)),
            (18, pod.about(136, local, gateway)),
            (19, pod.about(136, other.v6, other.v6)),
            (20, pod.about(134, local, gateway)),
            (21, pod.about(137, local, gateway)),
            (22, tagged(ipv4(pod.v4))),
            (23, tagged(ipv4(other.v4))),
            (24, pod.ethernet(0x88b5, &[&[0; 46]])),
            // Hop-by-hop options before an advertisement.
            (25, pod.ipv6(pod.v6, 0, &behind_options)),
        ];
        assert_eq!(pod.pass(forged), BTreeSet::new());
        // Who is not guarded may do as before.
        let free = vec![(11, other.ipv4(pod.v4)), (14, other.arp(other.mac, pod.v4))];
        assert_eq!(other.pass(free), BTreeSet::from([11, 14]));
    });
}

#[test]
fn a_guarded_pod_talks_and_leaves_no_element() {
    on_a_stage(|node| {
        let one = Attached::new(node, "one", json!({ "macspoofchk": true, "portIsolation": false }));
        let two = Attached::new(node, "two", json!({ "macspoofchk": true }));
        for to in [two.v4.to_string(), two.v6.to_string(), "10.244.0.1".into(), "fd00:10:244::1".into()] {
            assert!(one.pod.can(&format!("ping -c1 -W2 {to}")), "{to}");
        }
        run(&format!("ping -c1 -W2 {}", one.v4));
        node.call("CHECK", &one.pod, &one.conf).ok();
        assert_eq!(guarded(), 2 * 6);
        // An asked-for MAC address is the pod's own.
        let asked = Attached::new(
            node,
            "asked",
            json!({ "macspoofchk": true, "args": { "cni": { "mac": "02:11:22:33:44:55" } } }),
        );
        assert_eq!(asked.mac, [2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert!(asked.pod.can(&format!("ping -c1 -W2 {}", two.v4)));
        node.call("CHECK", &asked.pod, &asked.conf).ok();
        node.call("DEL", &asked.pod, &asked.conf).ok();
        // By a list that knows nothing of it; with the pod's link gone; and twice.
        let mut plain = one.conf.clone();
        plain.as_object_mut().expect("object").remove("macspoofchk");
        node.call("DEL", &one.pod, &plain).ok();
        assert_eq!(guarded(), 6);
        run("nft flush set bridge homelab guarded");
        let answer = node.call("CHECK", &two.pod, &two.conf);
        assert!(answer.text.contains("may send by addresses that are not its own"), "{}", answer.text);
        assert_eq!(answer.code(), 104);
        run(&format!("ip link del {}", two.port));
        node.call("DEL", &two.pod, &two.conf).ok();
        node.call("DEL", &two.pod, &two.conf).ok();
        assert_eq!(guarded(), 0);
        // Without the table no pod starts that should be guarded.
        run("nft delete table bridge homelab");
        let pod = Pod::new("three");
        assert_eq!(node.call("ADD", &pod, &conf(node, json!({ "macspoofchk": true }))).code(), 11);
        node.assert_clean();
    });
}

#[test]
fn port_isolation_keeps_pods_of_a_node_apart() {
    on_a_stage(|node| {
        let isolated = || json!({ "portIsolation": true });
        let (one, two) = (Attached::new(node, "one", isolated()), Attached::new(node, "two", isolated()));
        let free = Attached::new(node, "free", json!({}));
        assert!(run(&format!("ip -d link show dev {}", one.port)).contains("isolated on"));
        assert!(run(&format!("ip link show dev {}", one.port)).contains("one/eth0 isolated"));
        let reaches = |from: &Attached, to: &str| from.pod.can(&format!("ping -c1 -W1 {to}"));
        for to in [two.v4.to_string(), two.v6.to_string()] {
            assert!(!reaches(&one, &to), "{to}");
            assert!(reaches(&free, &to), "{to}");
        }
        assert!(reaches(&one, &free.v4.to_string()) && reaches(&one, "10.244.0.1"));
        // As a service's address leads to it: the answer is for a pod that the other cannot find.
        run(&format!(
            "nft 'table ip t {{\n chain p {{\n type nat hook prerouting priority -100;\n ip daddr 10.96.0.9 dnat to {}\n }}\n}}'",
            two.v4
        ));
        assert!(!reaches(&one, "10.96.0.9"));
        assert!(reaches(&free, "10.96.0.9"));
        node.call("CHECK", &one.pod, &one.conf).ok();
        run(&format!("bridge link set dev {} isolated off", one.port));
        assert_eq!(node.call("CHECK", &one.pod, &one.conf).code(), 104);
        let wrong = node.call("ADD", &Pod::new("x"), &conf(node, json!({ "portIsolation": "yes" })));
        assert_eq!(wrong.code(), 7);
    });
}

/// Who makes the bridge anew.
#[derive(Clone, Copy)]
enum Maker {
    /// Apply, which the agent does as well.
    Apply,
    /// The next ADD, where no agent is there.
    Add,
}

/// The bridge is deleted under running pods: CHECK says it, and who makes it anew gives every pod its place back.
#[test]
fn isolation_and_guard_come_back_with_a_bridge_that_was_deleted() {
    for maker in [Maker::Apply, Maker::Add] {
        on_a_stage(|node| {
            let apart = || json!({ "portIsolation": true, "macspoofchk": true });
            let (one, two) = (Attached::new(node, "one", apart()), Attached::new(node, "two", apart()));
            let free = Attached::new(node, "free", json!({}));
            run("ip link del homelab0");
            let answer = node.call("CHECK", &one.pod, &one.conf);
            assert!(answer.text.contains("bridge homelab0 is missing"), "{}", answer.text);
            assert_eq!(answer.code(), 104);
            assert!(!one.pod.can("ping -c1 -W1 10.244.0.1"));
            match maker {
                Maker::Apply => {
                    let of_bridge = |object: &homelab_model::NodeObject| match &object.spec {
                        homelab_model::Spec::Link(link) => link.name == "homelab0",
                        homelab_model::Spec::Address(address) => address.link == "homelab0",
                        _ => false,
                    };
                    let objects: Vec<_> =
                        homelab_cni::objects(&ruleset::spec()).into_iter().filter(of_bridge).collect();
                    let files = tempfile::tempdir().expect("directory");
                    let root = homelab_linux::Root::at(files.path());
                    let mut kernel = homelab_linux::Node::open(root).expect("node");
                    let changes = homelab_model::diff(&[], &objects);
                    kernel.apply_all(&changes, &mut |_| {}).expect("apply");
                }
                Maker::Add => drop(Attached::new(node, "late", json!({}))),
            }
            for pod in [&one, &two, &free] {
                node.call("CHECK", &pod.pod, &pod.conf).ok();
            }
            let reaches = |from: &Attached, to: &str| from.pod.can(&format!("ping -c3 -i0.2 -W2 {to}"));
            for to in [free.v4.to_string(), free.v6.to_string(), "10.244.0.1".into(), "fd00:10:244::1".into()]
            {
                assert!(reaches(&one, &to), "{to}");
            }
            for to in [two.v4.to_string(), two.v6.to_string()] {
                assert!(!one.pod.can(&format!("ping -c1 -W1 {to}")), "{to}");
                assert!(reaches(&free, &to), "{to}");
            }
            assert_eq!(one.pass(vec![(1, one.ipv4(one.v4)), (2, one.ipv4(free.v4))]), BTreeSet::from([1]));
        });
    }
}
