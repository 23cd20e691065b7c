//! The roles of the agents allow what agents ask for, and nothing that none asks for. All that an agent says to an API goes
//! through this crate.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use homelab_desired::kubernetes::{AGENT, api_objects};
use homelab_kube::{Duty, Heard, Link, Patience, metallb, network_is_there, renewed, watch};
use homelab_kubernetes::controller::Board;
use homelab_kubernetes::events::{Kind, Said};
use homelab_model::kubernetes::service_account;
use homelab_model::{ApiKind, KubernetesSpec, Pool, PoolRange, Token};
use homelab_test_api::{Api, Asked, Grant, Resource, compare};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

const NODE: &str = "node1";
const PATIENCE: Duration = Duration::from_secs(120);
/// {"alg":"none"}, {"iat":1,"exp":2,"kubernetes.io":{"namespace":"homelab-system","serviceaccount":{"name":"homelab-node1","uid":"u-1"}}}
const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJpYXQiOjEsImV4cCI6Miwia3ViZXJuZXRlcy5pbyI6eyJuYW1lc3BhY2UiOiJob21lbGFiLXN5c3RlbSIsInNlcnZpY2VhY2NvdW50Ijp7Im5hbWUiOiJob21lbGFiLW5vZGUxIiwidWlkIjoidS0xIn19fQ.x";

/// The rules that hold for the account of a node.
fn grants() -> Vec<Grant> {
    let objects = api_objects("home", &[NODE, "node2"], &BTreeMap::new());
    let account = service_account(NODE);
    let roles = objects.iter().filter(|o| o.name == AGENT || o.name == account);
    let rules = roles.filter_map(|role| {
        let namespace = match role.kind {
            ApiKind::ClusterRole => None,
            ApiKind::Role => Some(role.namespace.clone()),
            _ => return None,
        };
        Some(Grant { namespace, rules: role.fields.get("rules")?.clone() })
    });
    rules.collect()
}

fn of_metallb(plural: &'static str, version: &'static str) -> Resource {
    Resource {
        group: "metallb.io",
        version,
        plural,
        kind: "Any",
        namespaced: true,
        status: false,
        fields: &[],
    }
}

fn balancer(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
            "ports": [{ "port": 80, "protocol": "TCP" }],
        },
    })
}

/// Watches until each of the three was listed and followed, by streams and in pages.
async fn watched(settings: &KubernetesSpec) {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let short = Duration::from_secs(1);
    let patience =
        Patience { answer: PATIENCE, watch: short, grace: PATIENCE, pause: short / 50, longest_pause: short };
    let link = Link::new(settings.clone(), token, patience);
    let asks = RefCell::new(BTreeMap::<&str, usize>::new());
    let tell = |heard: Heard| {
        let kind = match &heard {
            Heard::Service(homelab_kube::Told::Asks) => "services",
            Heard::Slice(homelab_kube::Told::Asks) => "slices",
            Heard::Node(homelab_kube::Told::Asks) => "nodes",
            _ => return,
        };
        *asks.borrow_mut().entry(kind).or_default() += 1;
    };
    let enough = async {
        // A watch that ends is followed by a list of one, to see whether the server has gone back.
        while asks.borrow().len() < 3 || asks.borrow().values().any(|count| *count < 3) {
            sleep(short / 50).await;
        }
    };
    let both = async {
        tokio::select! { () = watch(&link, &tell) => {}, () = enough => {} }
    };
    timeout(PATIENCE, both).await.unwrap();
}

/// Everything that the controller may have to do.
async fn controlled(api: &Api, client: &kube::Client, settings: &KubernetesSpec) {
    let board = Rc::new(RefCell::new(Board::new(settings.clone())));
    let mut duty = Duty::new(NODE, settings, Rc::clone(&board));
    let address = "192.168.50.200".parse().unwrap();
    let pools = [Pool {
        name: "lan".into(),
        addresses: vec![PoolRange { first: address, last: address }],
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }];
    let start = Instant::now();
    let mut until = async |holds: &dyn Fn() -> bool| {
        while !holds() {
            assert!(start.elapsed() < PATIENCE);
            {
                let mut board = board.borrow_mut();
                board.begin();
                for service in api.list(&Resource::SERVICES) {
                    board.object(&serde_json::from_value(service).unwrap());
                }
                board.complete();
            }
            duty.round(client, &pools, &BTreeMap::new()).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
    };
    let seen = |name: &str| api.get(&Resource::SERVICES, Some("default"), name).ok();
    let has = |name: &str| {
        seen(name).is_some_and(|one| one["status"]["loadBalancer"]["ingress"][0]["ip"].is_string())
    };
    api.create(&Resource::SERVICES, balancer("a")).unwrap();
    until(&|| has("a")).await;
    // Somebody takes it away by force: it is asked for by its name.
    let mut a = seen("a").unwrap();
    a["metadata"]["finalizers"] = json!([]);
    api.update(&Resource::SERVICES, a).unwrap();
    api.delete(&Resource::SERVICES, Some("default"), "a").unwrap();
    api.create(&Resource::SERVICES, balancer("b")).unwrap();
    until(&|| has("b")).await;
    // The Lease is renewed by now.
    let renewed = || api.asked().keys().any(|asked| asked.verb == "update" && asked.resource == "leases");
    until(&renewed).await;
    duty.leave(client).await;
    // The same twice counts up one Event.
    for _ in 0..2 {
        let said = Said::about_service("default/b", "u", Kind::Warning, "AddressConflict", "x".to_owned());
        duty.voice().say(client, said).await.unwrap();
    }
}

#[tokio::test]
async fn roles_allow_what_agents_ask_for_and_no_more() {
    let mut metallbs: Vec<Resource> =
        ["bfdprofiles", "bgpadvertisements", "communities", "ipaddresspools", "l2advertisements"]
            .map(|plural| of_metallb(plural, "v1beta1"))
            .into();
    metallbs.push(of_metallb("bgppeers", "v1beta2"));
    let api = Api::with(TcpListener::bind("127.0.0.1:0").unwrap(), &metallbs).unwrap();
    let settings = KubernetesSpec::new(vec![format!("http://{}", api.address())], NODE);
    let mut config = kube::Config::new(settings.servers[0].parse().unwrap());
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();

    let pools = metallbs.iter().find(|kind| kind.plural == "ipaddresspools").unwrap();
    let to = json!({ "namespaceSelectors": [{ "matchLabels": { "tier": "front" } }] });
    let spec = json!({ "addresses": ["192.168.60.0/30"], "serviceAllocation": to });
    api.create(pools, json!({ "metadata": { "name": "p", "namespace": "metallb-system" }, "spec": spec }))
        .unwrap();
    metallb(&client).await.unwrap();

    let node = json!({
        "metadata": { "name": NODE },
        "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "True" }] },
    });
    let node = api.create(&Resource::NODES, node).unwrap();
    assert_eq!(network_is_there(&client, &serde_json::from_value(node).unwrap()).await, Ok(true));
    // This server issues no tokens; asked it is.
    let old = Token::parse(TOKEN).unwrap();
    renewed(&client, &settings, &old).await.unwrap_err();
    watched(&settings).await;
    controlled(&api, &client, &settings).await;

    let asked = api.asked();
    let (missing, unused) = compare(&grants(), asked.keys());
    assert_eq!((missing, unused), (Vec::<String>::new(), Vec::<String>::new()));
    let writes: Vec<&Asked> = asked.keys().filter(|one| one.verb == "update").collect();
    assert_eq!(writes.len(), 1, "only the Lease is replaced as a whole: {writes:?}");
}
