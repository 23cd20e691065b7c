//! Scenarios of the reference plugins' own tests (containernetworking/plugins) that no other test here has, by their names.
//! book/src/reference/cni-tests.md says where each of theirs is carried out, or why it is not.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
mod stage;

use std::collections::BTreeSet;
use std::process::Stdio;

use homelab_model::{Module, NodeObject};
use pods::talk::{Client, Server, tcp};
use pods::{Pod, addresses, on_a_node, run, start};
use serde_json::{Value, json};
use stage::{CLIENT, CLIENT6, NODE, NODE6, assert_clean, elements, load_of, on_a_stage, said, spec};

/// bridge: "creates a bridge with a stable MAC addresses". A bridge without one of its own takes its smallest port's, and every
/// pod that comes or goes could change it under its neighbours.
#[test]
fn creates_a_bridge_with_a_stable_mac_address() {
    on_a_node(|node| {
        for fixed in [true, false] {
            let mut conf = node.conf("1.0.0");
            if !fixed {
                conf.as_object_mut().expect("object").remove("bridgeMac");
            }
            let pods: Vec<Pod> = (0..4).map(|n| Pod::new(&format!("c{n}"))).collect();
            let mut seen = BTreeSet::new();
            for pod in &pods {
                seen.insert(
                    node.call("ADD", pod, &conf).ok()["interfaces"][0]["mac"]
                        .as_str()
                        .expect("mac")
                        .to_owned(),
                );
            }
            for pod in &pods {
                node.del(pod);
                let line = run("ip -o link show dev homelab0");
                seen.insert(
                    line.split("link/ether ")
                        .nth(1)
                        .and_then(|l| l.split(' ').next())
                        .expect("mac")
                        .to_owned(),
                );
            }
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert_eq!(seen.contains("02:00:00:00:00:01"), fixed);
            run("ip link del homelab0");
        }
    });
}

/// bridge: "uses an explicit MAC addresses for the container iface" (from CNI_ARGS, from Args, from RuntimeConfig).
#[test]
fn uses_an_explicit_mac_address_for_the_container_interface() {
    on_a_node(|node| {
        let mac = "c2:11:22:33:44:55";
        for version in ["0.1.0", "0.4.0", "1.1.0"] {
            for (args, field, value) in [
                (format!("IgnoreUnknown=true;MAC={mac}"), "sticky", json!(false)),
                ("IgnoreUnknown=true".to_owned(), "args", json!({ "cni": { "mac": mac } })),
                ("MAC=c2:11:22:33:44:66".to_owned(), "runtimeConfig", json!({ "mac": mac })),
            ] {
                let pod = Pod::new("dummy");
                let mut conf = node.conf(version);
                conf[field] = value;
                node.call_with("ADD", &pod, &conf, &[("CNI_ARGS", &args)]).ok();
                assert!(pod.run("ip link show dev eth0").contains(mac), "{version} {field}");
                node.call("DEL", &pod, &conf).ok();
            }
        }
        node.assert_clean();
    });
}

/// bridge: "checks ip release in case of error", at each place where ADD can fail after it has an address.
#[test]
fn checks_ip_release_in_case_of_error() {
    on_a_stage(|stage| {
        let holder = Pod::new("holder");
        let port = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        stage.add(&holder, &port);
        let before = (stage.node.entries(), stage.node.ports(), elements());
        let pod = Pod::new("dummy");
        // Its port is taken; its interface is there.
        assert_eq!(stage.try_add(&pod, &port).code(), 110);
        pod.run("ip link add eth0 type bridge");
        assert_eq!(stage.try_add(&pod, &json!([])).code(), 102);
        pod.run("ip link del eth0");
        // The node's end cannot be made: somebody has the name that it would get.
        let name =
            stage.try_add(&pod, &json!([])).ok()["interfaces"][1]["name"].as_str().expect("name").to_owned();
        stage.del(&pod);
        run(&format!("ip link add {name} type bridge"));
        assert_eq!(stage.try_add(&pod, &json!([])).code(), 102);
        run(&format!("ip link del {name}"));
        // Addresses cannot be given: the pod takes none of IPv6.
        pod.run("sh -c 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'");
        assert_eq!(stage.try_add(&pod, &json!([])).code(), 103);
        pod.run("sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6'");
        // As killed ADDs leave them, entries of links that are gone may stay until somebody needs them; none does here.
        assert_eq!((stage.node.entries(), stage.node.ports(), elements()), before);
        stage.del(&holder);
        assert_clean(stage);
    });
}

/// bridge: "configures a bridge and ipMasq rules": who is outside sees the node, who is inside the pod. The rule is the
/// node's and no pod's.
#[test]
fn configures_a_bridge_and_masquerades() {
    on_a_stage(|stage| {
        let of_tunnel = |object: &NodeObject| object.module == Module::Vtep;
        load_of(homelab_desired::foundation(&spec()).into_iter().filter(of_tunnel).collect());
        let before = run("nft -s list table inet homelab");
        let (pod, other) = (Pod::new("dummy"), Pod::new("other"));
        let (own, others) = (stage.add(&pod, &json!([])), stage.add(&other, &json!([])));
        assert_eq!(run("nft -s list table inet homelab"), before);
        let _servers =
            [Server::start(Some(&stage.client), "lan", 80), Server::start(Some(&other), "other", 80)];
        for (outside, node, inside, from) in [
            (format!("{CLIENT}:80"), NODE, format!("{}:80", others[0]), &own[0]),
            (format!("[{CLIENT6}]:80"), NODE6, format!("[{}]:80", others[1]), &own[1]),
        ] {
            assert_eq!(tcp(Some(&pod), &outside, true), said("lan", node));
            assert_eq!(Client::new(Some(&pod), &outside).ask(true), said("lan", node));
            assert_eq!(tcp(Some(&pod), &inside, true), said("other", from));
            assert_eq!(Client::new(Some(&pod), &inside).ask(true), said("other", from));
        }
        stage.del(&pod);
        stage.del(&other);
        assert_clean(stage);
    });
}

/// host-local: "does not output an error message upon initial subnet creation"; bridge and host-local print nothing on DEL.
#[test]
fn does_not_output_an_error_message_upon_initial_creation() {
    on_a_node(|node| {
        let pod = Pod::new("dummy");
        for command in ["ADD", "DEL", "DEL"] {
            let mut process = node.command(command, &pod, None);
            process.stderr(Stdio::piped());
            let output = start(process, &node.conf("1.0.0")).wait_with_output().expect("output");
            assert!(output.status.success());
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
            assert_eq!(output.stdout.is_empty(), command == "DEL");
        }
    });
}

/// host-local: "allocates and releases addresses on specific interface with ADD/DEL", "repeat allocating addresses on specific
/// interface for same container ID with ADD", "doesn't error when passed an unknown ID on DEL".
#[test]
fn allocates_and_releases_addresses_on_specific_interfaces() {
    on_a_node(|node| {
        let (pod, conf) = (Pod::new("dummy"), node.conf("1.0.0"));
        let on =
            |command: &str, ifname: &str| node.call_with(command, &pod, &conf, &[("CNI_IFNAME", ifname)]);
        let first = addresses(&on("ADD", "eth0").ok());
        let second = addresses(&on("ADD", "eth1").ok());
        assert_ne!(first, second);
        assert_eq!(on("ADD", "eth1").code(), 102, "the same again");
        assert_eq!(node.entries().len(), 2);
        on("DEL", "eth1").ok();
        on("DEL", "eth2").ok();
        assert_eq!(node.entries().len(), 1, "the other interface keeps its address");
        node.call("DEL", &Pod::new("unknown"), &conf).ok();
        assert!(pod.can("ping -c1 -W5 10.244.1.1"));
        on("DEL", "eth0").ok();
        node.assert_clean();
    });
}

/// portmap: "deletes chains idempotently in parallel": many pods with ports at once, two of them with the same one.
#[test]
fn ports_of_many_pods_at_once() {
    on_a_stage(|stage| {
        let pods: Vec<Pod> = (0..24).map(|n| Pod::new(&format!("c{n}"))).collect();
        let mappings = |n: usize| {
            // The last two want the same.
            let n = n.min(22);
            let port =
                |i: usize| json!({ "hostPort": 9000 + 10 * n + i, "containerPort": 80, "protocol": "tcp" });
            json!([port(0), port(1), port(2)])
        };
        let all = |command: &str| -> Vec<pods::Answer> {
            let run = |(n, pod): (usize, &Pod)| {
                start(stage.node.command(command, pod, None), &stage.conf(&mappings(n)))
            };
            let children: Vec<_> = pods.iter().enumerate().map(run).collect();
            children.into_iter().map(|child| stage.node.finish(child)).collect()
        };
        let refused: Vec<Value> = all("ADD")
            .into_iter()
            .filter(|answer| answer.status != Some(0))
            .map(|answer| serde_json::from_str(&answer.text).expect("error"))
            .collect();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0]["code"], 110, "{refused:?}");
        // Both families.
        assert_eq!(elements(), 23 * 3 * 2 + 23 * 2);
        let _server = Server::start(Some(&pods[7]), "c7", 80);
        assert_eq!(stage.lan(&format!("{NODE}:9071")), said("c7", CLIENT));
        for _ in 0..2 {
            assert!(all("DEL").iter().all(|answer| answer.status == Some(0)));
        }
        assert_clean(stage);
    });
}

/// bandwidth: "does not apply ingress when disabled", "does not apply egress when disabled", "works with a Veth pair using
/// runtime config"; integration: "limits traffic only on the restricted bandwidth veth device". How fast it is then is
/// measured in bandwidth.rs.
#[test]
fn limits_only_where_it_is_asked_to() {
    on_a_node(|node| {
        let rate = json!(8_000_000);
        for (bandwidth, to_pod, from_pod) in [
            (
                json!({ "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate }),
                true,
                true,
            ),
            (
                json!({ "ingressRate": 0, "ingressBurst": 0, "egressRate": rate, "egressBurst": rate }),
                false,
                true,
            ),
            (
                json!({ "ingressRate": rate, "ingressBurst": rate, "egressRate": 0, "egressBurst": 0 }),
                true,
                false,
            ),
            (json!({}), false, false),
            (Value::Null, false, false),
        ] {
            let (shaped, plain) = (Pod::new("shaped"), Pod::new("plain"));
            let mut conf = node.conf("1.0.0");
            node.call("ADD", &plain, &conf).ok();
            conf["runtimeConfig"] = json!({ "bandwidth": bandwidth });
            let result = node.call("ADD", &shaped, &conf).ok();
            let host = result["interfaces"][1]["name"].as_str().expect("name");
            let limited = [run(&format!("tc qdisc show dev {host}")), shaped.run("tc qdisc show dev eth0")];
            assert_eq!(limited.map(|queue| queue.contains("tbf")), [to_pod, from_pod], "{bandwidth}");
            assert!(!plain.run("tc qdisc show dev eth0").contains("tbf"));
            assert_eq!(
                run("tc qdisc show").matches("tbf").count(),
                usize::from(to_pod),
                "the others' are free"
            );
            assert_eq!(run("ip -o link show type ifb"), "");
            node.del(&shaped);
            node.del(&plain);
            node.assert_clean();
        }
    });
}
