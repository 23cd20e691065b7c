//! Ports of the node that lead to pods, with real packets: the scenarios of the reference plugin portmap, and what it is
//! known to get wrong. The node has a machine beside it on a LAN, and the ruleset that the agent would load.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
#[path = "../../linux/tests/common/raw.rs"]
#[allow(clippy::unwrap_used, reason = "another crate's helper")]
mod raw;
mod stage;

use std::io::Read;
use std::net::UdpSocket;
use std::process::Stdio;
use std::time::{Duration, Instant};

use homelab_linux::pod::in_netns;
use homelab_model::NodeSpec;
use homelab_model::service::Protocol;
use pods::talk::{Client, Server, tcp};
use pods::{Pod, run};
use serde_json::{Value, json};
use stage::{
    CLIENT, CLIENT6, NODE, NODE6, OTHER, Stage, assert_clean, elements, load, on_a_stage, said, spec, web,
};

/// portmap: "forwards a TCP port on ipv4", "... ipv6", "forwards a UDP port", and from where: the source is kept but for
/// the pod itself and the node's loopback.
#[test]
fn ports_lead_to_the_pod_from_everywhere() {
    on_a_stage(|stage| {
        let (web, other) = (Pod::new("web"), Pod::new("other"));
        let mappings = json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 8080, "containerPort": 80, "protocol": "udp" },
        ]);
        let own = stage.add(&web, &mappings);
        let others = stage.add(&other, &json!([]));
        let _server = Server::start(Some(&web), "web", 80);
        let gateways = ["10.244.0.1", "fd00:10:244::1"];
        for (v6, node, client) in
            [(0, format!("{NODE}:8080"), CLIENT), (1, format!("[{NODE6}]:8080"), CLIENT6)]
        {
            let node_itself = [NODE, NODE6][v6];
            for (place, from) in [
                (Some(&stage.client), client),
                (Some(&other), others[v6].as_str()),
                (Some(&web), gateways[v6]),
                (None, node_itself),
            ] {
                assert_eq!(tcp(place, &node, true), said("web", from), "TCP {node} for {from}");
                let datagram = Client::new(place, &node).ask(true);
                assert_eq!(datagram, said("web", from), "UDP {node} for {from}");
            }
            // The pod itself, by its own address and port, is none of the node's business.
            let direct = if v6 == 0 { format!("{}:80", own[0]) } else { format!("[{}]:80", own[1]) };
            assert_eq!(stage.lan(&direct), said("web", client));
        }
        // The gateway is an address of the node as well; so is its loopback, for itself.
        assert_eq!(tcp(Some(&other), "10.244.0.1:8080", true), said("web", &others[0]));
        assert_eq!(tcp(None, "127.0.0.1:8080", true), said("web", "10.244.0.1"));
        assert_eq!(Client::new(None, "127.0.0.1:8080").ask(true), said("web", "10.244.0.1"));
        // Another port, and another node's address, are not meant.
        stage.silent(&format!("{NODE}:8081"));
        stage.del(&web);
        stage.silent(&format!("{NODE}:8080"));
        stage.del(&other);
        assert_clean(stage);
    });
}

/// portmap: "forwards a TCP port bound to a specific hostIP", wildcards of one family, loopback only.
#[test]
fn host_ip_says_which_addresses_lead() {
    on_a_stage(|stage| {
        let pods: Vec<Pod> = ["one", "two", "local", "four", "six"].map(Pod::new).into_iter().collect();
        for (pod, port, host) in [
            (&pods[0], 8080, NODE),
            (&pods[1], 8080, OTHER),
            (&pods[2], 8080, "127.0.0.1"),
            (&pods[3], 8081, "0.0.0.0"),
            (&pods[4], 8081, "::"),
        ] {
            stage.add(pod, &web(port, json!({ "hostIP": host })));
        }
        let _servers: Vec<Server> = pods.iter().map(|pod| Server::start(Some(pod), &pod.id, 80)).collect();
        assert_eq!(stage.lan(&format!("{NODE}:8080")), said("one", CLIENT));
        assert_eq!(stage.lan(&format!("{OTHER}:8080")), said("two", CLIENT));
        assert_eq!(tcp(None, "127.0.0.1:8080", true), said("local", "10.244.0.1"));
        stage.silent(&format!("[{NODE6}]:8080"));
        assert_eq!(stage.lan(&format!("{OTHER}:8081")), said("four", CLIENT));
        assert_eq!(stage.lan(&format!("[{NODE6}]:8081")), said("six", CLIENT6));
        pods.iter().for_each(|pod| stage.del(pod));
        assert_clean(stage);
    });
}

#[test]
fn conflicts_are_refused_with_the_holders_name() {
    on_a_stage(|stage| {
        let (first, late) = (Pod::new("first"), Pod::new("late"));
        stage.add(&first, &web(8080, json!({ "hostIP": NODE })));
        let before = (elements(), stage.node.entries(), stage.node.ports());
        for extra in [json!({}), json!({ "hostIP": NODE }), json!({ "hostIP": "0.0.0.0" })] {
            // An earlier version counted no ports.
            let _ = std::fs::remove_file(stage.node.data.path().join(".hostports/ports"));
            let answer = stage.try_add(&late, &web(8080, extra.clone()));
            assert!(
                answer.text.contains("192.168.7.1:8080") || answer.text.contains("0.0.0.0:8080"),
                "{}",
                answer.text
            );
            assert!(answer.text.contains("home/first"), "{}", answer.text);
            assert_eq!(answer.code(), 110, "{extra}");
            assert_eq!((elements(), stage.node.entries(), stage.node.ports()), before);
        }
        // Another address, protocol, family or port is no conflict.
        for (number, extra) in [
            json!({ "hostIP": OTHER }),
            json!({ "protocol": "UDP" }),
            json!({ "hostIP": "::" }),
            json!({ "hostPort": 8081 }),
        ]
        .into_iter()
        .enumerate()
        {
            let pod = Pod::new(&format!("p{number}"));
            stage.add(&pod, &web(8080, extra));
            stage.del(&pod);
        }
        // A second ADD of the holder is refused as ever, and takes nothing from it.
        let _server = Server::start(Some(&first), "first", 80);
        assert_eq!(stage.try_add(&first, &web(8080, json!({}))).code(), 102);
        assert_eq!(stage.lan(&format!("{NODE}:8080")), said("first", CLIENT));
        stage.del(&first);
        stage.add(&late, &web(8080, json!({})));
        stage.del(&late);
        assert_clean(stage);
    });
}

#[test]
fn bad_mappings_are_refused() {
    on_a_stage(|stage| {
        let pod = Pod::new("p");
        for extra in [
            json!({ "hostPort": 0 }),
            json!({ "containerPort": 65536 }),
            json!({ "protocol": "icmp" }),
            json!({ "hostIP": "here" }),
        ] {
            assert_eq!(stage.try_add(&pod, &web(8080, extra.clone())).code(), 7, "{extra}");
        }
        let twice = json!([
            { "hostPort": 80, "containerPort": 80 }, { "hostPort": 80, "containerPort": 81, "protocol": "tcp" },
        ]);
        assert_eq!(stage.try_add(&pod, &twice).code(), 7);
        assert_clean(stage);
    });
}

/// portmap: "DEL of one container never removes another's rules".
#[test]
fn del_of_one_keeps_the_other() {
    on_a_stage(|stage| {
        let (one, two) = (Pod::new("one"), Pod::new("two"));
        let many: Vec<Value> = (9000..9100)
            .map(|port| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" }))
            .collect();
        stage.add(&one, &json!(many));
        stage.add(&two, &web(8080, json!({})));
        let _servers = [Server::start(Some(&one), "one", 80), Server::start(Some(&two), "two", 80)];
        assert_eq!(elements(), 2 * 100 + 2 + 2 + 2);
        assert_eq!(stage.lan(&format!("{NODE}:9099")), said("one", CLIENT));
        stage.del(&one);
        stage.del(&one);
        assert_eq!(elements(), 4);
        stage.silent(&format!("{NODE}:9099"));
        assert_eq!(stage.lan(&format!("{NODE}:8080")), said("two", CLIENT));
        stage.del(&two);
        assert_clean(stage);
    });
}

/// k8s#59368, portmap's "UDP: stale conntrack entries": who asked before the pod was there, and who asked its
/// predecessor, is answered by the pod that has the port now.
#[test]
fn stale_conntrack_entries_of_udp_are_cleared() {
    on_a_stage(|stage| {
        let mappings = web(5353, json!({ "protocol": "udp" }));
        for to in [format!("{NODE}:5353"), format!("[{NODE6}]:5353")] {
            let client = Client::new(Some(&stage.client), &to);
            assert_eq!(client.ask(false), None, "nobody is there yet");
            let from = if to.starts_with('[') { CLIENT6 } else { CLIENT };
            for round in 0..3 {
                let pod = Pod::new(&format!("p{round}"));
                stage.add(&pod, &mappings);
                {
                    let _server = Server::start(Some(&pod), &pod.id, 80);
                    assert_eq!(client.ask(true), said(&pod.id, from), "{to}");
                }
                stage.del(&pod);
                assert_eq!(client.ask(false), None, "{to}: the pod is gone");
            }
        }
        assert_clean(stage);
    });
}

/// A flow to the same port of somebody else goes on: the port is cleared of the node's own flows only.
#[test]
fn flows_to_others_are_left_alone() {
    on_a_stage(|stage| {
        let beside = Pod::new("beside");
        let address = stage.add(&beside, &json!([]))[0].clone();
        let _server = Server::start(Some(&beside), "beside", 5353);
        let client = Client::new(Some(&stage.client), &format!("{address}:5353"));
        assert_eq!(client.ask(true), said("beside", CLIENT));
        let flows =
            || run("conntrack -L -p udp --dport 5353 -o id 2>/dev/null || cat /proc/net/nf_conntrack");
        let of = |text: String| {
            text.lines()
                .filter(|l| l.contains(&address))
                .map(|l| l.split("id=").nth(1).map(str::to_owned))
                .collect::<Vec<_>>()
        };
        let before = of(flows());
        assert!(!before.is_empty());
        let pod = Pod::new("dns");
        stage.add(&pod, &web(5353, json!({ "protocol": "udp" })));
        stage.del(&pod);
        assert_eq!(of(flows()), before);
    });
}

/// Protocols that this kernel may have no sockets for: what arrives in the pod is seen by a raw socket.
#[test]
fn sctp_is_forwarded() {
    on_a_stage(|stage| {
        let pod = Pod::new("sctp");
        // The raw packet has no checksum.
        run("echo 0 > /proc/sys/net/netfilter/nf_conntrack_checksum");
        stage.add(&pod, &web(7777, json!({ "protocol": "sctp" })));
        let ear = in_netns(&pod.path(), || {
            let protocol = socket2::Protocol::from(132);
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(protocol)).expect("socket")
        })
        .expect("namespace");
        ear.set_read_timeout(Some(Duration::from_millis(200))).expect("socket");
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut ear: std::fs::File = std::os::fd::OwnedFd::from(ear).into();
        let port = loop {
            in_netns(&stage.client.path(), || {
                let (from, to) = (CLIENT.parse().expect("address"), NODE.parse().expect("address"));
                raw::Sender::open().send(from, to, Protocol::Sctp, 4000, 7777);
            })
            .expect("namespace");
            let mut packet = [0; 200];
            match ear.read(&mut packet) {
                Ok(length) if length >= 24 => break u16::from_be_bytes([packet[22], packet[23]]),
                _ => assert!(Instant::now() < deadline, "nothing arrives"),
            }
        };
        assert_eq!(port, 80);
        stage.del(&pod);
        assert_clean(stage);
    });
}

/// The route to 127.0.0.1 that the node's own clients need is none for pods (CVE-2020-8558).
#[test]
fn no_pod_reaches_the_nodes_loopback() {
    on_a_stage(|stage| {
        let (web_pod, evil) = (Pod::new("web"), Pod::new("evil"));
        stage.add(&web_pod, &web(8080, json!({})));
        stage.add(&evil, &json!([]));
        assert_eq!(run("cat /proc/sys/net/ipv4/conf/homelab0/route_localnet").trim(), "1");
        let secret = UdpSocket::bind("127.0.0.1:9999").expect("bind");
        secret.set_read_timeout(Some(Duration::from_millis(200))).expect("socket");
        let heard = || secret.recv(&mut [0; 100]).is_ok();
        evil.run("sh -c 'echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet'");
        evil.run("ip route del local 127.0.0.0/8 dev lo table local");
        evil.run("ip route del local 127.0.0.1 dev lo table local");
        evil.run("ip route add 127.0.0.1 via 10.244.0.1 dev eth0");
        let client = Client::new(Some(&evil), "127.0.0.1:9999");
        client.ask(false);
        assert!(!heard());
        // That the pod does try, and only the guard keeps it out.
        run("nft flush chain inet homelab-hostport guard");
        client.ask(false);
        assert!(heard());
    });
}

#[test]
fn check_finds_ports_that_lead_nowhere() {
    on_a_stage(|stage| {
        let pod = Pod::new("p");
        let mut conf = stage.conf(&web(8080, json!({})));
        conf["prevResult"] = stage.try_add(&pod, &web(8080, json!({}))).ok();
        stage.node.call("CHECK", &pod, &conf).ok();
        let mut more = conf.clone();
        more["runtimeConfig"]["portMappings"] = web(8081, json!({}));
        let answer = stage.node.call("CHECK", &pod, &more);
        assert!(answer.text.contains("tcp port 8081 of the node is not the pod's"), "{}", answer.text);
        assert_eq!(answer.code(), 104);
        run("nft flush map inet homelab-hostport any4");
        let answer = stage.node.call("CHECK", &pod, &conf);
        assert!(answer.text.contains("any4"), "{}", answer.text);
        assert_eq!(answer.code(), 104);
        // Elements that are gone are none to take away.
        stage.del(&pod);
        assert_clean(stage);
    });
}

/// Nobody calls DEL for pods that vanish: who wants their port next gets it, and GC takes what is left.
#[test]
fn ports_of_vanished_pods_are_free() {
    on_a_stage(|stage| {
        for round in 0..3 {
            let pod = Pod::new(&format!("p{round}"));
            stage.add(&pod, &web(8080, json!({})));
            let _server = Server::start(Some(&pod), &pod.id, 80);
            assert_eq!(stage.lan(&format!("{NODE}:8080")), said(&pod.id, CLIENT), "round {round}");
            run(&format!(
                "ip link del {}",
                stage.node.ports().iter().find(|p| p.starts_with("hl")).expect("port")
            ));
        }
        let mut conf = stage.conf(&json!([]));
        conf["cni.dev/valid-attachments"] = json!([]);
        stage.node.call("GC", &Pod::new("gc"), &conf).ok();
        assert_clean(stage);
    });
}

/// After a reboot nothing holds a port, whatever is on the disk.
#[test]
fn claims_of_an_earlier_boot_are_void() {
    on_a_stage(|stage| {
        let (old, new) = (Pod::new("old"), Pod::new("new"));
        stage.add(&old, &web(8080, json!({})));
        run("nft flush ruleset");
        for port in stage.node.ports().iter().filter(|port| port.starts_with("hl")) {
            run(&format!("ip link del {port}"));
        }
        load();
        let boot = stage.node.data.path().with_extension("boot");
        std::fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n").expect("file");
        let line = format!("mount --bind {} /proc/sys/kernel/random/boot_id", boot.display());
        let call = |command: &str, pod: &Pod| {
            let process = stage.node.command(command, pod, Some(&line));
            stage.node.finish(pods::start(process, &stage.conf(&web(8080, json!({}))))).ok()
        };
        call("ADD", &new);
        let _server = Server::start(Some(&new), "new", 80);
        assert_eq!(stage.lan(&format!("{NODE}:8080")), said("new", CLIENT));
        // A late DEL of the old boot's pod takes nothing.
        call("DEL", &old);
        assert_eq!(stage.lan(&format!("{NODE}:8080")), said("new", CLIENT));
        call("DEL", &new);
        assert_clean(stage);
        std::fs::remove_file(&boot).expect("file");
    });
}

/// Without the agent's table no port is opened, and ADD does not say that it is.
#[test]
fn without_the_table_add_fails_and_leaves_nothing() {
    on_a_stage(|stage| {
        run("nft delete table inet homelab-hostport");
        let pod = Pod::new("p");
        let answer = stage.try_add(&pod, &web(8080, json!({})));
        assert!(answer.text.contains("inet homelab-hostport"), "{}", answer.text);
        assert_eq!(answer.code(), 11);
        assert!(!pod.can("ip link show dev eth0"));
        load();
        assert_clean(stage);
        // Pods without ports need no table.
        run("nft delete table inet homelab-hostport");
        stage.add(&pod, &json!([]));
        stage.del(&pod);
    });
}

/// The agent on the stage, in a mount namespace of its own where it finds a node's files.
struct Agent(std::process::Child);

impl Agent {
    fn start(stage: &Stage<'_>) -> Agent {
        let spec = NodeSpec {
            interface: "lan".into(),
            address: NODE.parse().expect("address"),
            // Below a place that is covered on every machine.
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            ..spec()
        };
        let file = stage.node.data.path().with_extension("spec");
        std::fs::write(&file, spec.to_file()).expect("file");
        let data = stage.node.data.path();
        // Nothing of this machine's is written to.
        let places = "for place in /run /etc /opt /var/lib /usr/local/lib; do \
                      mount -t tmpfs none $place || exit 1; done";
        let line = format!(
            "exec 3< {spec}; mkdir -p /mnt && mount -t tmpfs none /mnt && mkdir /mnt/data && \
             mount --bind {data} /mnt/data && {places} && \
             mkdir -p /etc/homelab /run/homelab /var/lib/homelab/ipam && cat <&3 > /etc/homelab/node.json && \
             mount --bind /mnt/data /var/lib/homelab/ipam && exec {plugin} agent",
            spec = file.display(),
            data = data.display(),
            plugin = pods::PLUGIN,
        );
        let child = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &line])
            .stdin(Stdio::null())
            .spawn()
            .expect("agent");
        Agent(child)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, happens: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happens() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What somebody flushes, or takes out, comes back; what a vanished pod left goes without a DEL.
#[test]
fn the_agent_keeps_ports_after_a_flush() {
    on_a_stage(|stage| {
        let (pod, gone) = (Pod::new("web"), Pod::new("gone"));
        stage.add(&pod, &web(8080, json!({})));
        stage.add(&gone, &web(8081, json!({})));
        let _server = Server::start(Some(&pod), "web", 80);
        // One that sends by its own addresses only: what guards it comes back and goes with it, too.
        let guarded = Pod::new("guarded");
        let mut conf = stage.conf(&json!([]));
        conf["macspoofchk"] = json!(true);
        stage.node.call("ADD", &guarded, &conf).ok();
        let guards = || run("nft list set bridge homelab macs").contains("elements");
        assert!(guards());
        let _agent = Agent::start(stage);
        let serves = || tcp(Some(&stage.client), &format!("{NODE}:8080"), false) == said("web", CLIENT);
        eventually("the agent is there", || run("nft list tables").contains("inet homelab-proxy"));
        for round in 0..3 {
            run("nft flush ruleset");
            eventually(&format!("round {round}"), || serves() && guards());
        }
        // By the timer: elements have no events.
        run("nft flush map inet homelab-hostport any4");
        eventually("elements come back", serves);
        let before = elements();
        for pod in ["gone", "guarded"] {
            let links = run("ip -o link show");
            let link = links.lines().find(|l| l.contains(&format!("homelab-pod:{pod}/"))).expect("link");
            let link = link.split(": ").nth(1).and_then(|name| name.split('@').next()).expect("name");
            assert!(stage.node.ports().iter().any(|port| port == link));
            run(&format!("ip link del {link}"));
        }
        eventually("a vanished pod's ports go", || elements() == before - 4 && !guards());
        assert!(serves());
    });
}
