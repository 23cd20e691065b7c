//! Frames of the LAN on a real interface: what wakes the agent, and what does not.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use common::{OtherNetns, in_netns_of, in_new_netns, run};
use homelab_linux::l2::{Lan, Port, interfaces};
use homelab_linux::netlink::Socket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const OURS: [&str; 3] = ["192.168.50.200", "fd00:50::200", "192.168.50.201"];

/// A node with `eth0`, whose other end is `lan` in a namespace of its own, both up.
fn lan() -> OtherNetns {
    let other = OtherNetns::new();
    let task = other.path.to_string_lossy().replace("/ns/net", "");
    let thread = task.rsplit('/').next().unwrap();
    run(&format!("ip link add eth0 type veth peer name lan netns {thread}; ip link set eth0 up"));
    run("ip addr add 192.168.50.11/24 dev eth0; ip addr add fd00:50::11/64 dev eth0 nodad");
    in_netns_of(&other, || {
        run(
            "ip link set lan up; ip addr add 192.168.50.100/24 dev lan; ip addr add fd00:50::100/64 dev lan nodad",
        );
    });
    other
}

fn is_ready(port: &impl AsFd, wait: u16) -> bool {
    let mut fds = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(wait)).unwrap() == 1
}

/// An ARP request or reply (RFC 826).
fn arp(operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mac = [2, 0, 0, 0, 0, 9];
    let mut frame = [[0xff; 6], mac].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend([&mac[..], &sender.octets(), &[0; 6], &target.octets()].concat());
    frame
}

/// ICMPv6 of this type about a target, from the other host's address to all nodes.
fn icmp6(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let from: Ipv6Addr = "fd00:50::100".parse().unwrap();
    let to: Ipv6Addr = "ff02::1".parse().unwrap();
    let mut frame = [[0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
    frame.extend([&from.octets()[..], &to.octets(), &[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()].concat());
    frame
}

fn addresses() -> Vec<IpAddr> {
    OURS.map(|a| a.parse().unwrap()).to_vec()
}

/// All that the port has within a moment.
fn heard(port: &mut Port) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while is_ready(port, 200) {
        while let Some(frame) = port.receive().unwrap() {
            frames.push(frame.to_vec());
        }
    }
    frames
}

#[test]
fn only_what_is_about_our_addresses_wakes_the_agent() {
    in_new_netns(|| {
        let other = lan();
        let mut port = Port::open("eth0").unwrap();
        let v4 = |n: u8| Ipv4Addr::new(192, 168, 50, n);
        let v6 = |n: u16| Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, n);
        let about_us = [
            arp(1, v4(100), v4(200)),
            arp(2, v4(201), v4(201)),
            arp(1, v4(200), v4(77)),
            icmp6(135, v6(0x200)),
            icmp6(136, v6(0x200)),
        ];
        let others: Vec<Vec<u8>> = (0..50)
            .map(|n| arp(1, v4(100), v4(n)))
            .chain((1..50).map(|n| icmp6(135, v6(n))))
            // The right target in a message of another type, or in another protocol.
            .chain([icmp6(128, v6(0x200)), icmp6(134, v6(0x200)), {
                let mut udp = icmp6(135, v6(0x200));
                udp[20] = 17;
                udp
            }])
            .collect();
        let send = |frames: &[Vec<u8>]| {
            in_netns_of(&other, || {
                let port = Port::open("lan").unwrap();
                frames.iter().for_each(|frame| port.send(frame).unwrap());
            });
        };
        send(&about_us);
        assert!(!is_ready(&port, 200), "it was told of no address");

        port.hear(&addresses()).unwrap();
        send(&others);
        assert!(!is_ready(&port, 300), "woken for {:?}", port.receive());
        send(&about_us);
        let mut frames = heard(&mut port);
        frames.sort();
        let mut expected = about_us.to_vec();
        expected.sort();
        assert_eq!(frames, expected);

        // Its own frames are not news.
        port.send(&arp(1, v4(200), v4(200))).unwrap();
        assert!(!is_ready(&port, 200));

        port.hear(&[]).unwrap();
        send(&about_us);
        assert!(!is_ready(&port, 200));
    });
}

#[test]
fn a_flood_is_read_in_parts_and_silences_nobody() {
    in_new_netns(|| {
        let other = lan();
        let mut lan = Lan::new().unwrap();
        assert!(lan.hear(&BTreeMap::from([("eth0".to_owned(), addresses())])).is_empty());
        let question = icmp6(135, "fd00:50::200".parse().unwrap());
        let asks = |sender: u16| {
            let [high, low] = sender.to_be_bytes();
            arp(1, Ipv4Addr::new(10, 0, high, low), Ipv4Addr::new(192, 168, 50, 200))
        };
        let mut honest = asks(7);
        for at in [11, 27] {
            honest[at] = 0x77;
        }
        let mut parts = |frames: &[Vec<u8>]| {
            in_netns_of(&other, || {
                let port = Port::open("lan").unwrap();
                frames.iter().for_each(|frame| port.send(frame).unwrap());
            });
            let mut parts = Vec::new();
            while is_ready(&lan, 200) {
                let mut part = Vec::new();
                let left_out = lan.receive(&mut |_, frame| part.push(frame.to_vec()));
                parts.push((part, left_out));
            }
            parts
        };
        // The kernel keeps as many; of what is alike one is enough.
        let same = parts(&[vec![asks(1); 2000], vec![question.clone(), honest.clone()]].concat());
        assert_eq!(same.len(), 2);
        let all: Vec<&Vec<u8>> = same.iter().flat_map(|(part, _)| part).collect();
        assert_eq!(all.iter().filter(|frame| ***frame == asks(1)).count(), 2, "one in each part");
        assert!(same[0].0.contains(&question), "the other protocol has its turn");
        assert!(all.contains(&&honest));
        // One machine in the name of many: who asks little is among the first who are answered.
        let many: Vec<Vec<u8>> =
            (0..1500).map(asks).chain([honest.clone()]).chain((1500..2000).map(asks)).collect();
        let many = parts(&many);
        let sizes: Vec<(usize, usize)> =
            many.iter().map(|(part, left_out)| (part.len(), *left_out)).collect();
        assert_eq!(sizes, [(256, 768), (977, 0)]);
        assert_eq!(many[1].0[1], honest);
    });
}

#[test]
fn what_a_real_kernel_asks_is_heard() {
    in_new_netns(|| {
        let other = lan();
        let mut port = Port::open("eth0").unwrap();
        port.hear(&addresses()).unwrap();
        in_netns_of(&other, || {
            for address in OURS {
                run(&format!("ping -c 1 -W 1 {address} > /dev/null || true"));
            }
        });
        let frames = heard(&mut port);
        let of = |kind: [u8; 2], at: usize, bytes: &[u8]| {
            frames.iter().any(|f| f[12..14] == kind && f[at..at + bytes.len()] == *bytes)
        };
        assert!(of([8, 6], 38, &[192, 168, 50, 200]), "{frames:?}");
        assert!(of([8, 6], 38, &[192, 168, 50, 201]), "{frames:?}");
        let six: Ipv6Addr = OURS[1].parse().unwrap();
        assert!(of([0x86, 0xdd], 62, &six.octets()), "{frames:?}");
        // Switches and network cards are told by MLD whose frames to pass.
        let groups = run("cat /proc/net/igmp6");
        let group = "ff0200000000000000000001ff000200";
        assert!(groups.lines().any(|l| l.contains("eth0") && l.contains(group)), "{groups}");
        port.hear(&[]).unwrap();
        assert!(!run("cat /proc/net/igmp6").contains(group));
    });
}

#[test]
fn an_interface_that_goes_is_an_error_and_no_silence() {
    in_new_netns(|| {
        let _other = lan();
        let mut port = Port::open("eth0").unwrap();
        port.hear(&addresses()).unwrap();
        run("ip link del eth0");
        let frame = arp(1, Ipv4Addr::new(192, 168, 50, 200), Ipv4Addr::new(192, 168, 50, 200));
        assert!(port.send(&frame).is_err());
        assert!(is_ready(&port, 1000), "the agent is not woken");
        assert!(port.receive().is_err());
        assert_eq!(Port::open("eth0").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    });
}

#[test]
fn interfaces_of_the_lan_are_told_from_the_rest() {
    in_new_netns(|| {
        let _other = lan();
        run(
            "ip link add br0 type bridge; ip link add port0 type veth peer name port1; ip link set port0 master br0 up",
        );
        run(
            "ip link set port1 up alias homelab-pod:x; ip link add homelab0 type bridge; ip link set homelab0 alias homelab",
        );
        run("ip link add quiet type veth peer name quiet1; ip link set quiet arp off up");
        run("ip addr add 10.9.0.1/16 dev br0; ip link set br0 up");
        let found = interfaces(&mut Socket::route().unwrap()).unwrap();
        let mut names: Vec<&str> = found.iter().map(|i| i.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["br0", "eth0", "quiet1"],
            "bridge ports, pods, ours, lo and links without ARP are left out"
        );
        let eth0 = found.iter().find(|i| i.name == "eth0").unwrap();
        let networks: Vec<String> = eth0.networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["192.168.50.11/24", "fd00:50::11/64"]);
        assert!(eth0.operational);
        let shown = run("ip -o link show eth0");
        assert!(shown.contains(&format!("link/ether {} ", homelab_linux::mac_text(&eth0.mac))), "{shown}");
        let quiet1 = found.iter().find(|i| i.name == "quiet1").unwrap();
        assert!(!quiet1.operational, "down");
        // Duplicates are searched for, a second or two: until then nothing can be sent from an address.
        let tentative = || {
            let found = interfaces(&mut Socket::route().unwrap()).unwrap();
            found.iter().find(|i| i.name == "eth0").unwrap().tentative
        };
        let is_over = || {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while tentative() {
                assert!(std::time::Instant::now() < deadline, "{}", run("ip addr show dev eth0"));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        };
        is_over();
        run("ip addr add fd00:50::77/64 dev eth0");
        assert!(tentative());
        is_over();
        run("ip link set eth0 down");
        let found = interfaces(&mut Socket::route().unwrap()).unwrap();
        assert!(!found.iter().find(|i| i.name == "eth0").unwrap().operational);
    });
}
