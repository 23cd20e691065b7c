//! The agent as a client of Kubernetes, with a kernel of its own to serve: what the API says is there, and what happens
//! when it says nothing.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use homelab_model::{L2Advertisement, NodeSpec, Pool, PoolRange, SpeakerNode, SpeakerSpec};
use homelab_test_api::{Api, Resource};
use pods::agent::{ADDRESS as NODE, Agent, again, eventually};
use pods::ruleset::fixtures;
use pods::{Pod, on_a_node, run};
use serde_json::{Value, json};

/// Where kube-proxy says its mode.
const PORT: u16 = 10249;

fn spec(server: &str) -> NodeSpec {
    let mut spec = NodeSpec { services: vec![fixtures::service("of-file", 80)], ..pods::agent::spec(server) };
    spec.kubernetes.as_mut().expect("kubernetes").metrics_port = PORT;
    spec
}

/// The table of services; empty if there is none.
fn kernel() -> String {
    run("nft list table inet homelab-proxy 2>/dev/null || true")
}

fn has(address: &str) -> bool {
    kernel().contains(&format!("{address} "))
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ports": [{ "port": 80, "protocol": "TCP" }],
        },
    })
}

fn slice(service: &str, address: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("{service}-1"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
    })
}

fn api(listener: TcpListener) -> Api {
    let api = Api::with(listener, &[]).expect("API");
    api.create(&Resource::NODES, json!({ "metadata": { "name": "node1" } })).expect("node");
    api
}

fn add(api: &Api, name: &str, address: &str, endpoint: &str) {
    api.create(&Resource::SERVICES, service(name, address)).expect("service");
    api.create(&Resource::ENDPOINT_SLICES, slice(name, endpoint)).expect("slice");
}

#[test]
fn an_agent_that_stops_keeps_what_it_heard_last() {
    on_a_node(|node| {
        run(&format!(
            "ip link add lan type veth peer name other && ip addr add {NODE}/24 dev lan && ip link set lan up && ip link set other up"
        ));
        let api = api(TcpListener::bind("127.0.0.1:0").expect("listener"));
        let server = format!("http://{}", api.address());
        add(&api, "web", "10.96.7.1", "10.244.0.11");
        let snapshot = node.data.path().join("kubernetes/snapshot");
        // The last news are some moments old, less than the time between two writes, whenever it is stopped.
        for round in 20..25 {
            let agent = Agent::start(node, &spec(&server));
            eventually("it is connected", || agent.connected() && has("10.96.7.1"));
            let address = format!("10.244.0.{round}");
            api.update(&Resource::ENDPOINT_SLICES, slice("web", &address)).expect("slice");
            eventually("a new endpoint", || has(&address));
            agent.stop();
            let kept = std::fs::read_to_string(&snapshot).expect("snapshot");
            assert!(kept.contains(&address), "{kept}");
        }
    });
}

#[test]
fn what_the_api_says_is_served_and_what_it_said_last_when_it_is_gone() {
    on_a_node(|node| {
        run(&format!(
            "ip link add lan type veth peer name other && ip addr add {NODE}/24 dev lan && ip link set lan up && ip link set other up"
        ));
        let first = api(TcpListener::bind("127.0.0.1:0").expect("listener"));
        let port = first.address().port();
        let server = format!("http://127.0.0.1:{port}");
        add(&first, "web", "10.96.7.1", "10.244.0.11");
        add(&first, "mail", "10.96.7.2", "10.244.0.12");
        // The file has a service of this name.
        add(&first, "of-file", "10.96.7.3", "10.244.0.13");
        let spec = spec(&server);
        let agent = Agent::start(node, &spec);
        eventually("the services of the API are in the kernel", || has("10.244.0.11") && has("10.244.0.12"));
        eventually("the file's too", || agent.connected() && !has("10.244.0.13"));
        let fact = agent.report().and_then(|report| report.kubernetes).expect("fact");
        assert_eq!((fact.services, fact.slices, fact.nodes, fact.known), (3, 3, 1, true));
        assert_eq!((fact.hidden, fact.troubles), (vec!["default/of-file".to_owned()], Vec::new()));

        // Single changes.
        first.update(&Resource::ENDPOINT_SLICES, slice("web", "10.244.0.21")).expect("slice");
        eventually("a new endpoint", || has("10.244.0.21") && !has("10.244.0.11"));
        first.delete(&Resource::SERVICES, Some("default"), "mail").expect("service");
        eventually("a service goes", || !has("10.96.7.2") && !has("10.244.0.12"));
        // A fresh service beside it, by which we see that what the API does not name is still looked after.
        add(&first, "late", "10.96.7.4", "10.244.0.14");
        eventually("a service comes", || has("10.244.0.14"));
        let snapshot = node.data.path().join("kubernetes/snapshot");
        eventually("it is kept on disk", || {
            std::fs::read_to_string(&snapshot).is_ok_and(|text| text.contains("10.244.0.14"))
        });

        // No API, and nothing is emptied; not even by an agent that starts then, on a machine that has just booted.
        drop(first);
        eventually("the agent sees that the API is gone", || !agent.connected());
        assert!(has("10.244.0.21") && has("10.244.0.14"));
        drop(agent);
        run("nft delete table inet homelab-proxy");
        let agent = Agent::start(node, &spec);
        eventually("what was known last is served", || has("10.244.0.21") && has("10.244.0.14"));
        eventually("and said", || {
            let fact = agent.report().and_then(|report| report.kubernetes);
            fact.is_some_and(|fact| fact.known && !fact.connected && !fact.troubles.is_empty())
        });
        drop(agent);

        // Also without the snapshot: what the kernel holds is somebody's traffic.
        std::fs::remove_file(&snapshot).expect("snapshot");
        let agent = Agent::start(node, &spec);
        eventually("an agent that knows nothing", || {
            let fact = agent.report().and_then(|report| report.kubernetes);
            fact.is_some_and(|fact| !fact.known && !fact.troubles.is_empty())
        });
        run("nft flush table inet homelab-proxy");
        eventually("it has looked at everything", || kernel().contains("dnat"));
        assert!(has("10.244.0.21") && has("10.244.0.14"));

        // An API that was restored from an older time: lower versions, other objects. It is right all the same.
        let restored = api(again(port));
        add(&restored, "web", "10.96.7.1", "10.244.0.31");
        eventually("the restored API counts", || {
            has("10.244.0.31") && !has("10.244.0.21") && !has("10.244.0.14")
        });
        eventually("and it is connected", || agent.connected());
    });
}

fn balancer(name: &str, address: &str) -> Value {
    let mut balancer = service(name, address);
    balancer["spec"]["type"] = json!("LoadBalancer");
    balancer
}

/// One node that announces two addresses of its LAN.
fn speaker() -> SpeakerSpec {
    let address = |text: &str| text.parse().expect("address");
    SpeakerSpec {
        port: SpeakerSpec::PORT,
        nodes: vec![SpeakerNode {
            name: fixtures::spec(true).node,
            address: address(NODE),
            labels: Default::default(),
        }],
        pools: vec![Pool {
            name: "lan".into(),
            addresses: vec![PoolRange { first: address(TAKEN), last: address(FREE) }],
            auto_assign: true,
            avoid_buggy_ips: false,
            service_allocation: None,
        }],
        advertisements: vec![L2Advertisement { name: "lan".into(), ..L2Advertisement::default() }],
        bgp: None,
    }
}

/// The answer to `/proxyMode`.
fn mode() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
    stream.write_all(b"GET /proxyMode HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    std::io::read_to_string(stream)
}

const TAKEN: &str = "192.168.7.200";
const FREE: &str = "192.168.7.201";

#[test]
fn what_becomes_of_an_address_stands_in_events_of_its_service() {
    on_a_node(|node| {
        // Somebody on the LAN has one of the two addresses already.
        let other = Pod::new("other");
        run(&format!("ip link add lan type veth peer name eth0 netns {}", other.path().display()));
        run(&format!("ip addr add {NODE}/24 dev lan && ip link set lan up"));
        other.run(&format!("ip addr add {TAKEN}/24 dev eth0"));
        other.run("ip link set eth0 up");
        let api = api(TcpListener::bind("127.0.0.1:0").expect("listener"));
        let mut own = api.get(&Resource::NODES, None, "node1").expect("node");
        own["status"] = json!({ "conditions": [{ "type": "NetworkUnavailable", "status": "True" }] });
        api.update(&Resource::NODES, own).expect("node");
        for (name, address) in [("a", "10.96.7.1"), ("b", "10.96.7.2")] {
            let mut service = balancer(name, address);
            if name == "b" {
                // Served by another proxy, and announced all the same.
                service["metadata"]["labels"] =
                    json!({ "service.kubernetes.io/service-proxy-name": "other" });
            }
            api.create(&Resource::SERVICES, service).expect("service");
            api.create(&Resource::ENDPOINT_SLICES, slice(name, "10.244.0.11")).expect("slice");
        }
        let events = |name: &str, reason: &str| -> Vec<String> {
            let all = api.list(&Resource::CORE_EVENTS).into_iter();
            let about = all.filter(|e| e["involvedObject"]["name"] == name && e["reason"] == reason);
            about.map(|e| format!("{}x {}", e["count"], e["message"].as_str().unwrap_or_default())).collect()
        };
        let announced = r#"1x announcing from node "node1" with protocol "layer2""#;
        let server = format!("http://{}", api.address());
        // A kube-proxy runs here.
        let taken = TcpListener::bind(("127.0.0.1", PORT)).expect("port");
        let agent = Agent::start(node, &NodeSpec { speaker: Some(speaker()), ..spec(&server) });
        eventually("addresses are given", || {
            ["a", "b"].iter().all(|name| events(name, "IPAllocated").len() == 1)
        });
        eventually("the free one is announced", || events("b", "nodeAssigned") == [announced]);
        eventually("our proxy serves its own", || has("10.96.7.1"));
        assert!(!has("10.96.7.2") && !has(FREE), "{}", kernel());
        eventually("the other is not", || events("a", "AddressConflict").len() == 1);
        let said = events("a", "AddressConflict").concat();
        let link: Value = serde_json::from_str(&other.run("ip -j link show eth0")).expect("JSON");
        let mac = link[0]["address"].as_str().expect("address");
        assert!(said.contains(TAKEN) && said.contains(mac), "{said}");
        assert_eq!(events("a", "nodeAssigned"), Vec::<String>::new());
        let condition =
            || api.get(&Resource::NODES, None, "node1").expect("node")["status"]["conditions"][0].clone();
        eventually("the network is there", || condition()["status"] == "False");

        let errors = || agent.report().map(|report| report.errors.join("; ")).unwrap_or_default();
        eventually("a taken port is said, and the rest goes on", || {
            errors().contains("cannot listen on 127.0.0.1:10249")
                && errors().contains("kubernetes.metricsPort")
        });
        drop(taken);
        eventually("what kube-proxy would say", || {
            mode().is_ok_and(|said| said.ends_with("\r\n\r\nnftables"))
        });

        other.run(&format!("ip addr del {TAKEN}/24 dev eth0"));
        eventually("it is announced when it is free", || events("a", "nodeAssigned") == [announced]);

        drop(agent);
    });
}
