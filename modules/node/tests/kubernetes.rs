//! The agent as a client of Kubernetes, with a kernel of its own to serve: what the API says is there, and what happens
//! when it says nothing.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use std::net::TcpListener;

use homelab_model::NodeSpec;
use homelab_test_api::{Api, Resource};
use pods::agent::{ADDRESS as NODE, Agent, again, eventually, spec};
use pods::ruleset::fixtures;
use pods::{on_a_node, run};
use serde_json::{Value, json};

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
        let spec = NodeSpec { services: vec![fixtures::service("of-file", 80)], ..spec(&server) };
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
