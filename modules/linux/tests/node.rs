//! The whole backend on the real kernel, with what the modules really want.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::objects::{objects, spec};
use common::{in_new_netns, run};
use homelab_linux::{Kinds, Node, Root};
use homelab_model::{Change, NodeObject, Scope, diff, invert};

/// A node whose files are under a temporary directory and whose sysctls are plain files there.
fn node(directory: &Path) -> Node {
    let proc = directory.join("proc");
    for key in ["net/ipv4/ip_forward", "net/ipv4/conf/all/send_redirects", "net/ipv6/conf/all/forwarding"] {
        let path = proc.join("sys").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "0\n").unwrap();
    }
    // Sysctls of links are the kernel's.
    for family in ["ipv4", "ipv6"] {
        for link in ["homelab.vx", "homelab0"] {
            let path = proc.join(format!("sys/net/{family}/conf/{link}"));
            let _ = std::fs::create_dir_all(path.parent().unwrap());
            std::os::unix::fs::symlink(
                format!("/proc/thread-self/root/proc/sys/net/{family}/conf/{link}"),
                path,
            )
            .unwrap();
        }
    }
    std::fs::create_dir_all(directory.join("root")).unwrap();
    Node::open(Root::at(directory.join("root")).with_proc(proc)).unwrap()
}

fn apply(node: &mut Node, changes: &[Change<NodeObject>]) {
    let mut done = 0;
    node.apply_all(changes, &mut |n| done = n).unwrap_or_else(|e| panic!("{e}\n{changes:#?}"));
    assert_eq!(done, changes.len());
}

fn observe(node: &mut Node, scope: &Scope) -> Vec<NodeObject> {
    node.observe(scope).unwrap().objects
}

#[test]
fn the_modules_objects_come_stay_and_go() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = node(directory.path());
        let wanted = objects(&spec(3));
        let scope = Scope::of(&wanted, "homelab.vx");
        let before = observe(&mut node, &scope);
        assert_eq!(before, [], "a fresh node has nothing of ours");

        let plan = diff(&before, &wanted);
        apply(&mut node, &plan);
        let after = observe(&mut node, &scope);
        assert_eq!(diff(&after, &wanted), [], "nothing is left to do");
        assert_eq!(diff(&wanted, &after), []);
        // A second time, over what is there already.
        apply(&mut node, &plan);
        assert_eq!(diff(&observe(&mut node, &scope), &wanted), []);

        let kernel = node.observe_objects(&scope, Kinds::KERNEL).unwrap();
        assert!(kernel.iter().all(|o| after.contains(o)) && kernel.len() > 10);

        apply(&mut node, &invert(&plan));
        assert_eq!(observe(&mut node, &scope), []);
        apply(&mut node, &invert(&plan));
        let left = run(&format!("find {} -mindepth 1", directory.path().join("root").display()));
        assert_eq!(left, "", "no file and no directory stays");
        assert_eq!(
            std::fs::read_to_string(directory.path().join("proc/sys/net/ipv4/ip_forward")).unwrap().trim(),
            "0"
        );
    });
}

/// `ipv6.disable=1` as far as a test can have it: a namespace cannot be without IPv6, so the parameters are missing from
/// the /proc that the node is given.
#[test]
fn a_kernel_without_ipv6() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = node(directory.path());
        std::fs::remove_dir_all(directory.path().join("proc/sys/net/ipv6")).unwrap();
        assert!(node.facts().unwrap().ipv6_disabled);

        let mut spec = spec(3);
        let only_ipv4 = |cidrs: &mut Vec<ipnet::IpNet>| cidrs.retain(|c| c.addr().is_ipv4());
        only_ipv4(&mut spec.pod_cidrs);
        only_ipv4(&mut spec.cluster_cidrs);
        spec.peers.iter_mut().for_each(|peer| only_ipv4(&mut peer.pod_cidrs));
        let unaware = objects(&spec);
        let fault = node.apply_all(&diff(&[], &unaware), &mut |_| {}).unwrap_err().to_string();
        assert!(fault.contains("net/ipv6"), "{fault}");
        let scope = Scope::of(&unaware, "homelab.vx");
        let left = observe(&mut node, &scope);
        apply(&mut node, &diff(&left, &[]));

        spec.ipv6_disabled = true;
        let wanted = objects(&spec);
        let plan = diff(&[], &wanted);
        apply(&mut node, &plan);
        assert_eq!(diff(&observe(&mut node, &scope), &wanted), []);
        apply(&mut node, &invert(&plan));
        assert_eq!(observe(&mut node, &scope), []);
    });
}

#[test]
fn a_kernel_with_ipv6() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        assert!(!node(directory.path()).facts().unwrap().ipv6_disabled);
    });
}

/// What somebody does to a node, and the objects that a plan then names, and no others.
const DRIFT: &[(&str, &[&str])] = &[
    ("bridge fdb del MAC1 dev VX dst 192.0.3.3", &["fdb MAC1 dst 192.0.3.3 dev VX"]),
    (
        "bridge fdb replace MAC1 dev VX dst 192.0.2.77",
        &["fdb MAC1 dst 192.0.2.77 dev VX", "fdb MAC1 dst 192.0.3.3 dev VX"],
    ),
    ("bridge fdb replace MAC1 dev VX dst 192.0.3.3 port 9999", &["fdb MAC1 dst 192.0.3.3 dev VX"]),
    (
        "bridge fdb append 00:00:00:00:00:00 dev VX dst 192.0.2.9",
        &["fdb 00:00:00:00:00:00 dst 192.0.2.9 dev VX"],
    ),
    (
        "bridge fdb add 02:00:00:00:00:99 dev VX dst 192.0.2.9",
        &["fdb 02:00:00:00:00:99 dst 192.0.2.9 dev VX"],
    ),
    ("ip neigh del 10.100.1.0 dev VX", &["neighbour 10.100.1.0 dev VX"]),
    (
        "ip neigh replace 10.100.1.0 lladdr 02:00:00:00:00:99 dev VX nud permanent",
        &["neighbour 10.100.1.0 dev VX"],
    ),
    ("ip neigh replace 10.100.1.0 lladdr MAC1 dev VX nud reachable", &["neighbour 10.100.1.0 dev VX"]),
    ("ip neigh add fd99::1 lladdr 02:00:00:00:00:99 dev VX nud permanent", &["neighbour fd99::1 dev VX"]),
    ("ip route del 10.100.1.0/24", &["route 10.100.1.0/24"]),
    ("ip -6 route del fd00:0:0:1::/64", &["route fd00:0:0:1::/64 metric 1024"]),
    ("ip route replace 10.100.1.0/24 dev VX proto 104", &["route 10.100.1.0/24"]),
    ("ip route replace 10.100.1.0/24 via 10.100.2.0 dev VX onlink proto 104", &["route 10.100.1.0/24"]),
    ("ip route add 10.100.1.0/24 dev br9 metric 9 proto 104", &["route 10.100.1.0/24 metric 9"]),
    ("ip route add blackhole 10.3.0.0/16 proto 104", &["route 10.3.0.0/16"]),
    ("ip addr add 10.4.0.1/24 dev homelab0", &["address 10.4.0.1/24 dev homelab0"]),
    ("ip addr del 10.100.0.1/24 dev homelab0", &["address 10.100.0.1/24 dev homelab0"]),
    (
        "ip addr del 10.100.0.0/32 dev VX",
        &["address 10.100.0.0/32 dev VX", "route 10.100.", "neighbour 10.100."],
    ),
    ("ip link set VX mtu 1300", &["link VX"]),
    ("ip link set VX address 02:00:00:00:00:98", &["link VX", "neighbour "]),
    ("ip link set homelab0 alias ''", &["link homelab0"]),
    ("ip link set VX alias 'mine now'", &["link VX"]),
    ("ip link set homelab0 type bridge stp_state 1", &["link homelab0"]),
    ("ip link set VX down", &["link VX", "route ", "neighbour ", "address fd00"]),
    (
        "ip link del VX",
        &[
            "link VX",
            "route ",
            "neighbour ",
            "address ",
            "fdb ",
            "sysctl net.ipv4.conf.homelab/vx",
            "sysctl net.ipv6.conf.homelab/vx",
        ],
    ),
    (
        "ip link del homelab0",
        &["link homelab0", "address ", "sysctl net.ipv4.conf.homelab0", "sysctl net.ipv6.conf.homelab0"],
    ),
    (
        "ip link set VX down && ip link set VX name vxlan9 && ip link set vxlan9 up",
        &["link ", "route ", "neighbour ", "address ", "fdb ", "sysctl net."],
    ),
    ("echo 1 > /proc/sys/net/ipv4/conf/VX/rp_filter", &["sysctl net.ipv4.conf.homelab/vx.rp_filter"]),
    ("nft flush chain inet homelab CHAIN", &["nft chain inet homelab CHAIN"]),
    ("nft add rule inet homelab CHAIN accept", &["nft chain inet homelab CHAIN"]),
    ("nft insert rule inet homelab CHAIN ip daddr 8.8.8.8 accept", &["nft chain inet homelab CHAIN"]),
    ("nft delete chain inet homelab CHAIN", &["nft chain inet homelab CHAIN"]),
    ("nft add chain inet homelab more", &["nft chain inet homelab more"]),
    ("nft add chain inet homelab CHAIN '{ policy drop; }'", &["nft chain inet homelab CHAIN"]),
    (
        "nft delete table inet homelab",
        &["nft table inet homelab", "nft chain inet homelab CHAIN", "nft chain inet homelab cni-output"],
    ),
    ("nft flush chain inet homelab-proxy proxy-pick4-8", &["nft chain inet homelab-proxy proxy-pick4-8"]),
    ("nft flush chain inet homelab-proxy proxy-remember6", &["nft chain inet homelab-proxy proxy-remember6"]),
    ("nft flush chain inet homelab-proxy proxy-service4", &["nft chain inet homelab-proxy proxy-service4"]),
    ("nft flush set inet homelab-proxy frontends4", &["service default/dns", "service default/web"]),
    (
        "nft add element inet homelab-proxy frontends4 '{ 9.9.9.9 . tcp . 9 comment \"x/y\" }'",
        &["service x/y"],
    ),
    (
        "nft add element inet homelab-proxy frontends4 '{ 9.9.9.9 . tcp . 9 }'",
        &["service (elements of none)"],
    ),
    (
        "nft delete table bridge homelab",
        &[
            "nft table bridge homelab",
            "nft chain bridge homelab cni-guard",
            "nft chain bridge homelab cni-own",
            "nft chain bridge homelab cni-own-target",
            "nft chain bridge homelab cni-own6",
            "nft chain bridge homelab cni-prerouting",
        ],
    ),
];

#[test]
fn drift_is_named_to_the_entry_and_repaired() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = node(directory.path());
        let spec = spec(3);
        let wanted = objects(&spec);
        let scope = Scope::of(&wanted, "homelab.vx");
        // A foreign link, so that routes may be where they should not.
        run(
            "ip link add br9 type bridge && ip link set br9 addrgenmode none && ip link set br9 up && ip addr add 10.9.9.1/24 dev br9",
        );
        apply(&mut node, &diff(&[], &wanted));
        let chain = wanted.iter().find_map(|o| match &o.spec {
            homelab_model::Spec::NftChain(chain) => Some(chain.name.clone()),
            _ => None,
        });
        let chain = chain.unwrap();
        let put_in = |text: &str| {
            text.replace("MAC1", &spec.peers[0].mac).replace("VX", "homelab.vx").replace("CHAIN", &chain)
        };
        for (command, named) in DRIFT {
            assert_eq!(diff(&observe(&mut node, &scope), &wanted), [], "before {command}");
            run(&put_in(command));
            let changes = diff(&observe(&mut node, &scope), &wanted);
            let seen: Vec<String> = changes.iter().map(|c| c.key().to_string()).collect();
            let named: Vec<String> = named.iter().map(|n| put_in(n)).collect();
            let whole = |n: &String| {
                !n.ends_with([' ', '.']) && !n.starts_with("address fd00") && !n.starts_with("sysctl")
            };
            for name in &named {
                assert!(seen.iter().any(|s| s.starts_with(name)), "{command}: {name} is not in {seen:?}");
            }
            for key in &seen {
                let known = |n: &String| if whole(n) { key == n } else { key.starts_with(n) };
                assert!(named.iter().any(known), "{command}: {key} is too much in {seen:?}");
            }
            apply(&mut node, &changes);
        }
        assert_eq!(diff(&observe(&mut node, &scope), &wanted), []);
    });
}

/// The median of some runs, in milliseconds.
fn milliseconds(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = std::time::Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
fn looking_is_cheap() {
    for peers in [3, 500] {
        in_new_netns(|| {
            let directory = tempfile::tempdir().unwrap();
            let wanted = objects(&spec(peers));
            let scope = Scope::of(&wanted, "homelab.vx");
            let mut first = node(directory.path());
            let start = std::time::Instant::now();
            apply(&mut first, &diff(&[], &wanted));
            let applied = start.elapsed().as_secs_f64() * 1000.0;
            let proc = directory.path().join("proc");
            let open =
                || Node::open(Root::at(directory.path().join("root")).with_proc(proc.clone())).unwrap();
            let whole = milliseconds(|| drop(open().observe(&scope).unwrap()));
            let again = milliseconds(|| drop(first.observe_objects(&scope, Kinds::KERNEL).unwrap()));
            println!(
                "{peers} peers, {} routes: apply {applied:.1} ms, open and observe {whole:.2} ms, kernel again {again:.2} ms",
                2 * peers
            );
            assert!(again < 500.0, "{again} ms");
        });
    }
}
