//! Chains of plugins as a runtime with `libcni` carries them out, with those of Debian's containernetworking-plugins before
//! and after ours.

mod pods;
mod runtime;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use pods::{Node, Pod, addresses, on_a_node, run};
use runtime::Runtime;
use serde_json::{Value, json};

/// A list with plugins after ours.
fn list(node: &Node, version: &str, others: &[Value]) -> Value {
    let mut ours = node.conf(version);
    ours.as_object_mut().expect("object").retain(|key, _| key != "name" && key != "cniVersion");
    let mut plugins = vec![ours];
    plugins.extend_from_slice(others);
    json!({ "cniVersion": version, "name": "home", "plugins": plugins })
}

fn host_end(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    let ours = interfaces.iter().find(|i| i["name"].as_str().is_some_and(|name| name.starts_with("hl")));
    ours.expect("ours")["name"].as_str().expect("name").to_owned()
}

fn code(answer: Result<impl std::fmt::Debug, pods::Answer>) -> u64 {
    answer.expect_err("refused").code()
}

#[test]
fn tuning_after_ours() {
    on_a_node(|node| {
        let state = tempfile::tempdir().expect("directory");
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let mut runtime = Runtime::new();
            let tuning = json!({
                "type": "tuning", "capabilities": { "mac": true }, "mtu": 1400, "dataDir": state.path(),
                "sysctl": { "net.core.somaxconn": "500" },
            });
            let list = list(node, version, &[tuning]);
            runtime.capabilities = json!({ "mac": "c2:11:22:33:44:55", "portMappings": [{ "hostPort": 1 }] });
            let pod = Pod::new("c1");
            let result = runtime.add(node, &list, &pod, "eth0").expect("ADD");
            assert_eq!(addresses(&result).len(), 2);
            let link = pod.run("ip link show dev eth0");
            assert!(link.contains("c2:11:22:33:44:55") && link.contains("mtu 1400"), "{link}");
            assert_eq!(pod.run("cat /proc/sys/net/core/somaxconn").trim(), "500");
            assert!(pod.can("ping -c1 -W2 10.244.1.1") && pod.can("ping -6 -c1 -W2 fd00:10:1::1"));
            if version >= "0.4.0" {
                runtime.check(node, &list, &pod, "eth0").expect("what tuning changed is no fault");
                pod.run("ip link set eth0 address 02:00:00:00:00:99");
                assert_eq!(
                    code(runtime.check(node, &list, &pod, "eth0")),
                    104,
                    "what nobody's result has is one"
                );
            }
            runtime.del(node, &list, &pod, "eth0");
            runtime.del(node, &list, &pod, "eth0");
            node.assert_clean();
        }
    });
}

#[test]
fn firewall_and_portmap_after_ours() {
    on_a_node(|node| {
        let mut runtime = Runtime::new();
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let list = list(node, "1.0.0", &[json!({ "type": "firewall", "backend": "iptables" }), portmap]);
        runtime.capabilities =
            json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
        let pod = Pod::new("c1");
        let result = runtime.add(node, &list, &pod, "eth0").expect("ADD");
        let own = addresses(&result);
        let rules = run("nft list ruleset");
        // nft has no words for what the modules of iptables do.
        assert!(rules.contains("CNI-DN-"), "portmap's: {rules}");
        assert!(rules.contains("CNI-FORWARD") || rules.contains("CNI-ADMIN"), "firewall's: {rules}");
        // Without portmap, whose CHECK (1.1.1) looks for IPv4's rules in the table of IPv6.
        let mut two = list.clone();
        two["plugins"].as_array_mut().expect("plugins").pop();
        runtime.check(node, &two, &pod, "eth0").expect("CHECK");
        // A connection to the host's port reaches the pod.
        pod.within(|| {
            let server = TcpListener::bind("0.0.0.0:80").expect("bind");
            std::thread::spawn(move || {
                let (mut client, _) = server.accept().expect("accept");
                client.write_all(b"pod").expect("write");
            });
        });
        let mut said = String::new();
        TcpStream::connect("10.244.1.1:8080").expect("connect").read_to_string(&mut said).expect("read");
        assert_eq!(said, "pod");
        runtime.del(node, &list, &pod, "eth0");
        node.assert_clean();
        let rules = run("nft list ruleset");
        let left = |address: &String| rules.contains(&format!("{address} ")) || rules.contains("CNI-DN-");
        assert!(!own.iter().any(left), "{rules}");
    });
}

#[test]
fn bandwidth_after_ours() {
    on_a_node(|node| {
        let runtime = Runtime::new();
        let shaping = json!({
            "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000,
            "egressBurst": 8_000_000,
        });
        let list = list(node, "1.0.0", &[shaping]);
        let pod = Pod::new("c1");
        let result = runtime.add(node, &list, &pod, "eth0").expect("ADD");
        let port = host_end(&result);
        assert!(run(&format!("tc qdisc show dev {port}")).contains("tbf"));
        assert_eq!(run("ip -o link show type ifb").lines().count(), 1);
        assert!(pod.can("ping -c1 -W2 10.244.1.1"));
        runtime.check(node, &list, &pod, "eth0").expect("CHECK");
        runtime.del(node, &list, &pod, "eth0");
        assert_eq!(run("ip -o link show type ifb"), "");
        node.assert_clean();
    });
}

/// Source-based routing moves our default route to a table of its own.
#[test]
fn sbr_after_ours() {
    on_a_node(|node| {
        let runtime = Runtime::new();
        let list = list(node, "1.0.0", &[json!({ "type": "sbr" })]);
        let pod = Pod::new("c1");
        runtime.add(node, &list, &pod, "eth0").expect("ADD");
        assert!(pod.run("ip rule").contains("lookup 100"));
        assert!(!pod.run("ip route show table main").contains("default"));
        assert!(pod.run("ip route show table 100").contains("default via 10.244.1.1"));
        runtime.check(node, &list, &pod, "eth0").expect("a route in another table is one");
        pod.run("ip route del default table 100");
        assert_eq!(code(runtime.check(node, &list, &pod, "eth0")), 104);
        runtime.del(node, &list, &pod, "eth0");
        node.assert_clean();
    });
}

/// Ours in the middle: what the plugin before it says stays, with its interface's index, and so do its own routes.
#[test]
fn loopback_before_ours() {
    on_a_node(|node| {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let runtime = Runtime::new();
            let mut list = list(node, version, &[json!({ "type": "tuning", "sysctl": {} })]);
            list["plugins"].as_array_mut().expect("plugins").insert(0, json!({ "type": "loopback" }));
            let pod = Pod::new("c1");
            let result = runtime.add(node, &list, &pod, "eth0").expect("ADD");
            let names: Vec<&str> = result["interfaces"]
                .as_array()
                .expect("list")
                .iter()
                .filter_map(|i| i["name"].as_str())
                .collect();
            assert_eq!((names.len(), names[0], names[3]), (4, "lo", "eth0"), "{names:?}");
            let ips: Vec<(&str, u64)> = result["ips"]
                .as_array()
                .expect("list")
                .iter()
                .map(|ip| {
                    (ip["address"].as_str().expect("address"), ip["interface"].as_u64().expect("index"))
                })
                .collect();
            assert!(ips.contains(&("127.0.0.1/8", 0)), "{ips:?}");
            assert_eq!(ips.iter().filter(|(_, index)| *index == 3).count(), 2, "{ips:?}");
            if version >= "0.4.0" {
                runtime.check(node, &list, &pod, "eth0").expect("CHECK");
            }
            runtime.del(node, &list, &pod, "eth0");
            node.assert_clean();
        }
    });
}

/// A later plugin refuses: the runtime calls DEL for all of them, and nothing stays.
#[test]
fn a_chain_that_fails_behind_ours() {
    on_a_node(|node| {
        let runtime = Runtime::new();
        let list = list(node, "1.0.0", &[json!({ "type": "tuning", "sysctl": { "net.core.nothing": "1" } })]);
        let pod = Pod::new("c1");
        runtime.add(node, &list, &pod, "eth0").expect_err("no such sysctl");
        assert_eq!(node.entries().len(), 1, "ours was made");
        runtime.del(node, &list, &pod, "eth0");
        node.assert_clean();
    });
}

/// The cache is lost, the namespace is gone, both; DEL comes twice.
#[test]
fn del_without_what_the_runtime_knew() {
    on_a_node(|node| {
        let runtime = Runtime::new();
        let list = list(node, "1.0.0", &[json!({ "type": "tuning", "sysctl": {} })]);
        for keep in [true, false] {
            let pod = Pod::new("c1");
            runtime.add(node, &list, &pod, "eth0").expect("ADD");
            runtime.forget(&list, &pod, "eth0");
            assert_eq!(code(runtime.check(node, &list, &pod, "eth0")), 7, "CHECK needs it");
            let late = if keep { pod } else { Pod::new("c1") };
            runtime.del(node, &list, &late, "eth0");
            runtime.del(node, &list, &late, "eth0");
            node.assert_clean();
        }
    });
}

/// Two networks of one pod: each has its interface and its result, the first the default routes.
#[test]
fn two_networks_of_one_pod() {
    on_a_node(|node| {
        let runtime = Runtime::new();
        let first = list(node, "1.1.0", &[]);
        let mut second = list(node, "1.1.0", &[]);
        second["name"] = json!("storage");
        second["plugins"][0]["bridge"] = json!("homelab9");
        second["plugins"][0]["ranges"] = json!(["10.99.0.0/24", "fd00:99::/64"]);
        let pod = Pod::new("c1");
        let one = runtime.add(node, &first, &pod, "eth0").expect("ADD");
        let two = runtime.add(node, &second, &pod, "net1").expect("ADD");
        assert_eq!(one["routes"].as_array().map(Vec::len), Some(2));
        assert_eq!(two["routes"], json!([]), "only what was made is said");
        assert!(pod.can("ping -c1 -W2 10.99.0.1") && pod.can("ping -c1 -W2 10.244.1.1"));
        for (list, ifname) in [(&first, "eth0"), (&second, "net1")] {
            runtime.check(node, list, &pod, ifname).expect("CHECK");
        }
        assert_eq!(code(runtime.add(node, &second, &pod, "eth0")), 102, "the name is taken");
        runtime.check(node, &first, &pod, "eth0").expect("and nothing was harmed");
        // What the runtime names stays, in its own network alone.
        let valid = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        assert!(runtime.gc(node, &first, &valid).is_empty());
        runtime.check(node, &second, &pod, "net1").expect("another network's");
        assert!(runtime.gc(node, &second, &valid).is_empty());
        assert!(!pod.can("ip link show dev net1"));
        runtime.status(node, &first).expect("STATUS");
        runtime.del(node, &second, &pod, "net1");
        runtime.del(node, &first, &pod, "eth0");
        node.assert_clean();
    });
}

#[test]
fn versions_of_all_of_them() {
    on_a_node(|node| {
        let runtime = Runtime::new();
        let ours = runtime.versions(node, "homelab");
        for plugin in ["tuning", "firewall", "bandwidth", "portmap", "sbr", "loopback"] {
            let theirs = runtime.versions(node, plugin);
            assert!(!theirs.is_empty());
            let missing: Vec<_> = theirs.iter().filter(|version| !ours.contains(version)).collect();
            assert!(missing.is_empty(), "{plugin} speaks {missing:?} and ours does not");
        }
    });
}
