//! A router of the LAN that the kernel learned from its advertisements, while forwarding is switched on and off.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::objects::{objects, spec};
use common::{OtherNetns, in_new_netns, run};
use homelab_linux::{Node, Root};
use homelab_model::{Change, Key, NodeObject, Object, diff, invert};

/// An unsolicited advertisement (RFC 4861) of a default router for 30 minutes, out of the link `r0`.
const ADVERTISE: &str = r#"
import socket, struct
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, socket.if_nametoindex("r0")))
"#;

/// A LAN with a router in a namespace of its own: `eth0` here, `r0` there.
struct Lan {
    router: String,
    _netns: OtherNetns,
}

impl Lan {
    fn new() -> Lan {
        let netns = OtherNetns::new();
        let router = netns.path.display().to_string().replace("self", &std::process::id().to_string());
        run("ip link add eth0 type veth peer name r0");
        run(&format!("ip link set r0 netns {router}"));
        let lan = Lan { router, _netns: netns };
        run("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up");
        lan.on_router("echo 0 > /proc/sys/net/ipv6/conf/r0/accept_dad; ip link set r0 up");
        lan
    }

    fn on_router(&self, script: &str) {
        run(&format!("nsenter --net={} sh -c '{script}'", self.router));
    }

    /// Whether an advertisement gives `eth0` a default route within a moment.
    fn is_heard(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            run(&format!("nsenter --net={} python3 -c '{ADVERTISE}'", self.router));
            if has_router() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

fn has_router() -> bool {
    run("ip -6 route show default").contains("proto ra")
}

fn apply(node: &mut Node, changes: &[Change<NodeObject>]) {
    node.apply_all(changes, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
}

fn accept_ra() -> String {
    run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim().to_owned()
}

/// Forwards with `links` as [`homelab_model::NodeSpec::router_advertisements`]; whether the router is kept.
fn keeps_router(links: &[&str]) -> bool {
    in_new_netns(|| {
        let lan = Lan::new();
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let fact = |node: &mut Node| {
            let links = node.facts().unwrap().links;
            links.into_iter().find(|l| l.name == "eth0").unwrap().kernel_ra
        };
        assert!(lan.is_heard(), "the kernel must learn the router first");
        // A veth stands for hardware here, and facts leave veths out.
        assert!(!fact(&mut node));
        let mut spec = spec(1);
        spec.router_advertisements = links.iter().map(|&l| l.to_owned()).collect();
        // The order of all objects, but only those of the machine itself.
        let wanted: Vec<NodeObject> = objects(&spec)
            .into_iter()
            .filter(|o| matches!(o.key(), Key::AcceptRa(_) | Key::Sysctl(_)))
            .collect();
        let plan = diff(&[], &wanted);
        apply(&mut node, &plan);
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/eth0/forwarding").trim(), "1");
        let kept = has_router();
        // Later ones count, too.
        run("ip -6 route flush default");
        assert_eq!(lan.is_heard(), kept);
        apply(&mut node, &invert(&plan));
        assert_eq!(accept_ra(), "1");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/eth0/forwarding").trim(), "0");
        assert!(!kept || has_router(), "not even destroy loses it");
        kept
    })
}

#[test]
fn forwarding_keeps_the_router_that_the_kernel_learned() {
    assert!(keeps_router(&["eth0"]));
}

#[test]
fn without_accept_ra_2_it_is_lost() {
    assert!(!keeps_router(&[]));
}

#[test]
fn facts_say_where_the_kernel_takes_advertisements() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        run("ip link add lan.7 type bridge; ip link set lan.7 up");
        let mut fact = |script: &str| {
            run(script);
            let links = node.facts().unwrap().links;
            links.into_iter().find(|l| l.name == "lan.7").unwrap().kernel_ra
        };
        assert!(fact("true"));
        assert!(!fact("echo 0 > /proc/sys/net/ipv6/conf/lan.7/accept_ra"), "networkd does it");
        assert!(!fact("echo 2 > /proc/sys/net/ipv6/conf/lan.7/accept_ra"), "it takes them anyway");
        assert!(
            !fact(
                "echo 1 > /proc/sys/net/ipv6/conf/lan.7/accept_ra
                       echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
            ),
            "it does not take them now"
        );
    });
}
