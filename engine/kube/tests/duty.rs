//! The controller against an API server: addresses come and go in order, controllers follow one another, and nothing that
//! fails in between gives an address twice.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use homelab_kube::{Duty, network_is_there};
use homelab_kubernetes::controller::Board;
use homelab_model::{KubernetesSpec, Pool, PoolRange};
use homelab_test_api::{Api, Resource};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const NAMESPACE: &str = "homelab-system";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// A loaded machine needs a while.
const PATIENCE: Duration = Duration::from_secs(120);

/// A controller, and what it has in sight.
type One = (Duty, Rc<RefCell<Board>>);

fn candidate(node: &str) -> One {
    let settings = json!({
        "servers": [], "serviceAccount": format!("homelab-{node}"), "namespace": NAMESPACE, "loadBalancerClass": "homelab",
    });
    let settings = serde_json::from_value(settings).unwrap();
    let board = Rc::new(RefCell::new(Board::new(KubernetesSpec::clone(&settings))));
    (Duty::new(node, &settings, Rc::clone(&board)), board)
}

struct Scene {
    api: Api,
    client: Client,
    pools: Vec<Pool>,
}

impl Scene {
    fn new() -> Scene {
        let api = Api::start("127.0.0.1:0").unwrap();
        let mut config = Config::new(format!("http://{}", api.address()).parse().unwrap());
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        let range =
            PoolRange { first: "192.168.50.200".parse().unwrap(), last: "192.168.50.202".parse().unwrap() };
        let pool = Pool {
            name: "lan".into(),
            addresses: vec![range],
            auto_assign: true,
            avoid_buggy_ips: false,
            service_allocation: None,
        };
        Scene { api, client, pools: vec![pool] }
    }

    fn create(&self, name: &str) {
        let service = json!({
            "metadata": { "name": name },
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
                "ports": [{ "port": 80, "protocol": "TCP" }],
            },
        });
        self.api.create(&Resource::SERVICES, service).unwrap();
    }

    fn get(&self, name: &str) -> Option<Value> {
        self.api.get(&Resource::SERVICES, Some("default"), name).ok()
    }

    fn address(&self, name: &str) -> Option<String> {
        let ingress = self.get(name)?["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
        ingress.as_str().map(str::to_owned)
    }

    /// What a controller that has just listed sees.
    fn list(&self, one: &One) {
        let mut board = one.1.borrow_mut();
        board.begin();
        for service in self.api.list(&Resource::SERVICES) {
            board.object(&serde_json::from_value(service).unwrap());
        }
        board.complete();
    }

    async fn round(&self, one: &mut One) -> homelab_kube::Round {
        one.0.round(&self.client, &self.pools, &BTreeMap::new()).await.unwrap()
    }

    /// Goes on until something is so.
    async fn until(&self, one: &mut One, what: &str, holds: impl Fn(&Scene) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:#?}", self.api.list(&Resource::SERVICES));
            self.list(one);
            let round = self.round(one).await;
            assert_eq!(round.refused, [""; 0]);
            self.check();
            sleep(round.wait.min(Duration::from_millis(100))).await;
        }
    }

    /// No address twice.
    fn check(&self) {
        let services = self.api.list(&Resource::SERVICES);
        let all =
            services.iter().filter_map(|one| one["status"]["loadBalancer"]["ingress"][0]["ip"].as_str());
        let all: Vec<&str> = all.collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    }

    fn ledger(&self) -> Value {
        self.api.get(&Resource::CONFIG_MAPS, Some(NAMESPACE), "homelab-addresses").unwrap()["data"].clone()
    }
}

#[tokio::test]
async fn addresses_come_and_go_in_order() {
    let scene = Scene::new();
    let mut duty = candidate("node1");
    for name in ["a", "b", "c", "d"] {
        scene.create(name);
    }
    let all = |scene: &Scene| ["a", "b", "c"].iter().all(|name| scene.address(name).is_some());
    scene.until(&mut duty, "addresses", all).await;
    assert_eq!(scene.address("a").as_deref(), Some("192.168.50.200"));
    assert_eq!(scene.address("d"), None);
    let a = scene.get("a").unwrap();
    assert_eq!(a["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(a["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"], "lan");
    assert_eq!(a["status"]["loadBalancer"]["ingress"], json!([{ "ip": "192.168.50.200", "ipMode": "VIP" }]));
    let events = scene.api.list(&Resource::CORE_EVENTS);
    let said = |name: &str, reason: &str| {
        let about = |e: &&Value| e["involvedObject"]["name"] == name && e["reason"] == reason;
        events.iter().filter(about).count()
    };
    assert_eq!((said("a", "IPAllocated"), said("d", "AllocationFailed")), (1, 1), "{events:#?}");

    scene.api.delete(&Resource::SERVICES, Some("default"), "b").unwrap();
    assert!(scene.get("b").is_some(), "it is held by its finalizer");
    scene.until(&mut duty, "d has the address", |scene| scene.address("d").is_some()).await;
    assert_eq!((scene.get("b"), scene.address("d").as_deref()), (None, Some("192.168.50.201")));
    let names: Vec<String> = scene.ledger().as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["default.a", "default.c", "default.d"]);
}

#[tokio::test]
async fn another_takes_over_with_nothing_but_the_api() {
    let scene = Scene::new();
    let [mut first, mut second] = ["node1", "node2"].map(candidate);
    scene.create("a");
    scene.until(&mut first, "a", |scene| scene.address("a").is_some()).await;
    let round = scene.round(&mut second).await;
    assert_eq!((round.active, round.holder.as_deref(), round.written), (false, Some("node1"), 0));
    first.0.leave(&scene.client).await;
    assert!(!first.0.is_active());
    scene.create("b");
    scene.until(&mut second, "b", |scene| scene.address("b").is_some()).await;
    let lease = scene.api.get(&Resource::LEASES, Some(NAMESPACE), "homelab-controller").unwrap();
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
        (&json!("node2"), &json!(1))
    );
    assert_eq!(scene.address("a").as_deref(), Some("192.168.50.200"));
    let a = scene.get("a").unwrap();
    scene.list(&second);
    assert_eq!(scene.round(&mut second).await.written, 0);
    assert_eq!(scene.get("a").unwrap(), a);
}

#[tokio::test]
async fn what_is_seen_late_or_gone_is_decided_anew() {
    let scene = Scene::new();
    let mut duty = candidate("node1");
    scene.create("a");
    scene.list(&duty);
    // The claim, on a version that is soon an old one.
    let start = Instant::now();
    while scene.round(&mut duty).await.written == 0 {
        assert!(start.elapsed() < PATIENCE);
    }
    let mut a = scene.get("a").unwrap();
    a["metadata"]["labels"] = json!({ "somebody": "writes" });
    scene.api.update(&Resource::SERVICES, a).unwrap();
    // The watch says nothing of it: it is the refusal that tells.
    while scene.address("a").is_none() {
        assert!(start.elapsed() < PATIENCE);
        scene.round(&mut duty).await;
    }
    assert_eq!(scene.get("a").unwrap()["metadata"]["labels"]["somebody"], "writes");
    // Somebody takes the ledger away: it is made again, from the statuses.
    scene.api.delete(&Resource::CONFIG_MAPS, Some(NAMESPACE), "homelab-addresses").unwrap();
    let mut next = candidate("node1");
    scene.create("b");
    scene.until(&mut next, "b", |scene| scene.address("b").is_some()).await;
    assert_eq!(scene.address("b").as_deref(), Some("192.168.50.201"));
    assert!(scene.ledger()["default.a"].as_str().unwrap().ends_with(" 192.168.50.200"));
    // Somebody takes the finalizer and the service away by force.
    let mut b = scene.get("b").unwrap();
    b["metadata"]["finalizers"] = json!([]);
    scene.api.update(&Resource::SERVICES, b).unwrap();
    scene.api.delete(&Resource::SERVICES, Some("default"), "b").unwrap();
    scene.until(&mut next, "the ledger", |scene| scene.ledger()["default.b"].is_null()).await;
}

#[tokio::test]
async fn a_server_that_is_away_empties_nothing() {
    let scene = Scene::new();
    let mut duty = candidate("node1");
    scene.create("a");
    scene.until(&mut duty, "a", |scene| scene.address("a").is_some()).await;
    let mut config = Config::new("http://127.0.0.1:1".parse().unwrap());
    config.default_retry = false;
    let away = Client::try_from(config).unwrap();
    let start = Instant::now();
    // It goes on until it has to see to the Lease, and then says what is wrong.
    let error = loop {
        assert!(start.elapsed() < PATIENCE);
        match duty.0.round(&away, &scene.pools, &BTreeMap::new()).await {
            Ok(_) => sleep(Duration::from_millis(100)).await,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, homelab_kube::DutyError::Broken(_)), "{error:?}");
    assert_eq!(scene.address("a").as_deref(), Some("192.168.50.200"));
}

#[tokio::test]
async fn the_network_of_a_node_is_said_to_be_there_once() {
    let scene = Scene::new();
    let node = json!({
        "metadata": { "name": "node1" },
        "status": { "conditions": [
            { "type": "NetworkUnavailable", "status": "True" }, { "type": "Ready", "status": "True" },
        ] },
    });
    scene.api.create(&Resource::NODES, node).unwrap();
    let seen = || scene.api.get(&Resource::NODES, None, "node1").unwrap();
    let read = |node: Value| serde_json::from_value(node).unwrap();
    assert_eq!(network_is_there(&scene.client, &read(seen())).await, Ok(true));
    assert_eq!(network_is_there(&scene.client, &read(seen())).await, Ok(false));
    let node = seen();
    let conditions = node["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 2);
    assert_eq!(
        (&conditions[0]["status"], &conditions[0]["reason"]),
        (&json!("False"), &json!("HomelabIsUp"))
    );
    assert!(conditions[0]["lastTransitionTime"].is_string());
}
