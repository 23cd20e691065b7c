//! The agent's client with an API server: the real one where KUBEBUILDER_ASSETS has etcd and kube-apiserver, else the
//! tests' own. The run says which.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "tests")]

mod agent;
#[path = "../../../tests/api/tests/contract/client.rs"]
#[allow(dead_code, unreachable_pub, reason = "another test's helper")]
mod client;
#[path = "../../../tests/api/tests/contract/real.rs"]
#[allow(dead_code, unreachable_pub, reason = "another test's helper")]
mod real;

use std::time::Duration;

use homelab_kubernetes::Kind;
use homelab_test_api::Api;
use serde_json::{Value, json};

use agent::{Client, eventually, spec};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

fn slice(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
    })
}

#[test]
fn an_agent_sees_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, real::TOKEN).unwrap();
    let assets = real::find();
    let server = assets.map(|assets| real::Server::start(&assets).unwrap());
    let ours = server.is_none().then(|| Api::start("127.0.0.1:0").unwrap());
    let writer = match (&server, &ours) {
        (Some(server), _) => {
            println!("the server is {}", server.version);
            server.client()
        }
        (None, Some(ours)) => {
            println!("no kube-apiserver in KUBEBUILDER_ASSETS: the server is the tests' own");
            client::Client::of(ours)
        }
        (None, None) => unreachable!("there is one or the other"),
    };
    let mut told = spec(vec![writer.base.clone()]);
    told.ca = server.as_ref().map(|server| server.authority().unwrap());
    // More than a page.
    for number in 0..520 {
        if number % 100 == 0 {
            writer.must("POST", SERVICES, &service(&format!("s{number}")));
        }
        writer.must("POST", SLICES, &slice(&format!("s{number}"), "10.244.1.5"));
    }
    let client = Client::start(told, &token);
    let first = ["s0", "s100", "s200", "s300", "s400", "s500"];
    client.comes_to(&first);
    eventually("everything", || client.is_complete() && client.count(Kind::Slices) >= 520);
    let lists = client.lists();
    client.forget_troubles();
    // Over several watches, which the server ends.
    for round in 0..6 {
        std::thread::sleep(Duration::from_secs(1));
        writer.must("POST", SERVICES, &service("x"));
        eventually("a service", || client.services().len() == 7);
        writer.must("PUT", &format!("{SLICES}/s100"), &slice("s100", &format!("10.244.2.{round}")));
        writer.must("DELETE", &format!("{SERVICES}/x"), &json!({}));
        client.comes_to(&first);
    }
    assert_eq!(client.troubles(), Vec::<String>::new());
    assert_eq!(client.lists(), lists, "watches go on where they ended");
    eventually("the last endpoint", || {
        let mut seen = client.seen.lock().unwrap();
        seen.world.all().pieces().any(|piece| piece.contains("10.244.2.5"))
    });
}
