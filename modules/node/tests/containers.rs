//! Services whose endpoints are containers, on two nodes with the agent and a kernel of their own: who starts, ends or dies is
//! followed by both.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use homelab_model::service::{Endpoint, Service};
use homelab_model::{ContainerName, NodeSpec, ServiceContainer, SpeakerNode, SpeakerSpec};
use pods::agent::{ADDRESS, Agent, eventually};
use pods::ruleset::fixtures;
use pods::{Node, Pod, addresses, on_a_node, run};
use serde_json::{Value, json};

const OTHER: &str = "192.168.7.2";

fn service() -> Service {
    let value = json!({
        "namespace": "default", "name": "web", "clusterIPs": ["10.96.0.80"], "ports": [{ "port": 80 }],
    });
    serde_json::from_value(value).expect("a service")
}

/// What a node is told: a service with the container `web` of either node, which the laptop has not seen.
fn told(node: &str, address: &str, range: &str, link: &str) -> NodeSpec {
    let of = |node: &str| {
        let endpoint: Value = json!({ "address": "0.0.0.0", "node": node, "ports": { "": 8080 } });
        ServiceContainer {
            service: "default/web".into(),
            name: ContainerName { node: node.into(), container: "web".into(), interface: "eth0".into() },
            endpoint: serde_json::from_value::<Endpoint>(endpoint).expect("an endpoint"),
            addresses: Vec::new(),
        }
    };
    let member = |(name, address): (&str, &str)| SpeakerNode {
        name: name.into(),
        address: address.parse().expect("address"),
        labels: Default::default(),
    };
    NodeSpec {
        node: node.into(),
        interface: link.into(),
        address: address.parse().expect("address"),
        pod_cidrs: vec![range.parse().expect("range")],
        cni_bin_dirs: vec!["/opt/cni/bin".into()],
        speaker: Some(SpeakerSpec {
            port: SpeakerSpec::PORT,
            nodes: [("node1", ADDRESS), ("node2", OTHER)].map(member).into(),
            ..SpeakerSpec::default()
        }),
        services: vec![service()],
        containers: vec![of("node1"), of("node2")],
        ..fixtures::spec(false)
    }
}

/// A node's containers, by the plugin.
struct Runtime<'a> {
    node: &'a Node,
    range: &'static str,
}

impl Runtime<'_> {
    fn conf(&self) -> Value {
        let mut conf = self.node.conf("1.1.0");
        conf["dataDir"] = json!(self.node.data.path().join("ipam"));
        conf["ranges"] = json!([self.range]);
        conf
    }

    /// Starts it as `web`; gives its address.
    fn start(&self, pod: &Pod) -> String {
        let args = [("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web")];
        addresses(&self.node.call_with("ADD", pod, &self.conf(), &args).ok()).remove(0)
    }

    fn end(&self, pod: &Pod) {
        self.node.call("DEL", pod, &self.conf()).ok();
    }
}

/// Endpoints in the kernel of a node; `line` runs a command there.
fn endpoints(line: impl Fn(&str) -> String) -> Vec<String> {
    let text = line("nft -j list map inet homelab-proxy endpoints4");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let map =
        all["nftables"].as_array().into_iter().flatten().find_map(|part| part["map"]["elem"].as_array());
    let to = |element: &Value| Some(element[1]["concat"][0].as_str()?.to_owned());
    let mut found: Vec<String> = map.into_iter().flatten().filter_map(to).collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn services_follow_their_containers_on_all_nodes() {
    on_a_node(|first| {
        let ns = Pod::new("node2");
        run(&format!("ip link add lan type veth peer name eth0 netns {}", ns.path().display()));
        run(&format!("ip addr add {ADDRESS}/24 dev lan && ip link set lan up"));
        ns.run(&format!("ip addr add {OTHER}/24 dev eth0"));
        ns.run("ip link set eth0 up");
        ns.run("ip link set lo up");
        let second = Node { data: tempfile::tempdir().expect("directory") };
        let (here, there) =
            (told("node1", ADDRESS, "10.244.1.0/24", "lan"), told("node2", OTHER, "10.244.2.0/24", "eth0"));
        let start_second = || ns.within(|| Agent::start(&second, &there));
        let (one, two) = (Agent::start(first, &here), start_second());
        let ready = |agent: &Agent| agent.report().is_some_and(|report| !report.config.is_empty());
        let try_run = |line: &str| run(&format!("{line} 2>/dev/null || echo '{{}}'"));
        let try_there = |line: &str| {
            run(&format!("nsenter --net={} {line} 2>/dev/null || echo '{{}}'", ns.path().display()))
        };
        eventually("both agents are there", || ready(&one) && ready(&two));
        let both = |what: &str, expected: &[&String]| {
            eventually(what, || endpoints(try_run).iter().eq(expected.iter().copied()));
            eventually(what, || endpoints(try_there).iter().eq(expected.iter().copied()));
        };

        let runtime = Runtime { node: first, range: "10.244.1.0/24" };
        let other = Runtime { node: &second, range: "10.244.2.0/24" };
        let (a, b, c) = (Pod::new("a"), Pod::new("b"), Pod::new("c"));
        let of_a = runtime.start(&a);
        both("a container starts on node1", &[&of_a]);
        let of_b = ns.within(|| other.start(&b));
        both("one starts on node2", &[&of_a, &of_b]);
        // Started anew: it has another address, and both know.
        let of_c = runtime.start(&c);
        runtime.end(&a);
        assert_ne!(of_a, of_c);
        both("that of node1 is started anew", &[&of_c, &of_b]);
        let differs =
            || one.status().lines().any(|line| line.starts_with("differs") && line.contains("default/web"));
        assert!(!differs(), "{}", one.status());

        // An agent that starts again goes on with what it knew, whoever is there to tell it.
        drop(two);
        one.stop();
        let one = Agent::start(first, &here);
        eventually("it runs again", || ready(&one));
        std::thread::sleep(homelab_proxy::follow::LOST_AFTER * 3);
        assert_eq!(endpoints(try_run), [&of_c, &of_b].map(String::clone));
        let two = start_second();
        eventually("both are members", || {
            let report = format!("/proc/{}/root/run/homelab/lb.json", one.pid());
            let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap_or_default())
                .unwrap_or_default();
            report["members"].as_array().is_some_and(|all| all.iter().any(|m| m["standing"] == "alive"))
        });
        // One that dies is out while there is another, also for an agent that has not seen it.
        drop(two);
        eventually("the dead node serves nobody", || endpoints(try_run) == [of_c.clone()]);
        one.stop();
        let one = Agent::start(first, &here);
        eventually("it runs again", || ready(&one));
        assert_eq!(endpoints(try_run), std::slice::from_ref(&of_c));
        // Gone without a DEL: with nobody else left, what may be dead is better than nothing.
        drop(c);
        eventually("nobody else is left", || endpoints(try_run) == [of_b.clone()]);
        let two = start_second();
        ns.within(|| other.end(&b));
        both("nothing runs", &[]);
        drop((one, two));
    });
}
