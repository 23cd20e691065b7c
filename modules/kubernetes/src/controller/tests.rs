//! The controller step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use homelab_model::{KubernetesSpec, Pool, PoolRange};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::*;

pub(super) fn pool(name: &str, first: &str, last: &str) -> Pool {
    Pool {
        name: name.to_owned(),
        addresses: vec![PoolRange { first: first.parse().unwrap(), last: last.parse().unwrap() }],
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }
}

fn object(name: &str, uid: &str, version: u64) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "metadata": { "namespace": namespace, "name": name, "uid": uid, "resourceVersion": version.to_string() },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.5"], "ipFamilies": ["IPv4"],
            "ports": [{ "port": 80, "protocol": "TCP" }],
        },
    })
}

fn read(object: Value) -> Watched {
    let service: Service = serde_json::from_value(object).unwrap();
    Watched::of(&service, &settings()).unwrap()
}

pub(super) fn settings() -> KubernetesSpec {
    KubernetesSpec::new(Vec::new(), "node1")
}

/// A load balancer of the default class that has nothing yet.
pub(super) fn service(name: &str, uid: &str, version: u64) -> Watched {
    read(object(name, uid, version))
}

/// The Service that it was read from, as far as it matters.
pub(super) fn to_service(watched: &Watched) -> Service {
    serde_json::from_value(object(&watched.full_name(), &watched.uid, watched.version)).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A controller and what it sees; all writes go through.
pub(super) struct Scene {
    controller: Controller,
    pub(super) services: BTreeMap<String, Watched>,
    ledger: Ledger,
    gone: BTreeSet<String>,
    pub(super) pools: Vec<Pool>,
    taken: BTreeMap<IpAddr, String>,
    now: Duration,
}

impl Scene {
    pub(super) fn new(services: impl IntoIterator<Item = Watched>) -> Scene {
        Scene {
            controller: Controller::default(),
            services: services.into_iter().map(|one| (one.full_name(), one)).collect(),
            ledger: Ledger::default(),
            gone: BTreeSet::new(),
            pools: vec![pool("lan", "192.168.50.200", "192.168.50.201")],
            taken: BTreeMap::new(),
            now: Duration::ZERO,
        }
    }

    fn decide(&mut self) -> Decision {
        let settings = Settings { class: "homelab", pools: &self.pools, taken: &self.taken };
        let view = View { services: &self.services, ledger: &self.ledger, gone: &self.gone };
        self.controller.decide(settings, view, self.now)
    }

    /// Decides and carries out; what was written, in short.
    pub(super) fn step(&mut self) -> Vec<String> {
        let decision = self.decide();
        decision.writes.iter().map(|write| self.write(write)).collect()
    }

    fn write(&mut self, write: &Write) -> String {
        match write {
            Write::Ledger { changes, .. } => {
                let mut data: BTreeMap<String, String> = self
                    .ledger
                    .entries
                    .iter()
                    .map(|(n, entry)| (n.replace('/', "."), entry.text()))
                    .collect();
                for (key, value) in changes {
                    match value {
                        Some(value) => data.insert(key.clone(), value.clone()),
                        None => data.remove(key),
                    };
                }
                self.ledger = Ledger::read(Some("1".into()), &data);
                let told = changes.iter().map(|(k, v)| format!(" {k}={}", v.as_deref().unwrap_or("-")));
                format!("ledger{}", told.collect::<String>())
            }
            Write::Status(status) => {
                let Some(watched) = self.services.get_mut(&status.service) else { panic!("{status:?}") };
                assert_eq!((&status.uid, status.version), (&watched.uid, watched.version));
                watched.version += 1;
                let mut told = format!("status {}", status.service);
                if let Some(addresses) = &status.addresses {
                    watched.status = addresses.clone();
                    watched.foreign_status = false;
                    told += &format!(" {addresses:?}");
                }
                if let Some(finalizers) = &status.finalizers {
                    watched.finalizers = finalizers.clone();
                    told += &format!(" finalizers {}", finalizers.len());
                }
                if let Some(pool) = &status.pool {
                    watched.noted_pool = pool.clone();
                    told += &format!(" pool {}", pool.as_deref().unwrap_or("-"));
                }
                if let Some(said) = &status.then {
                    told += &format!(" ({}: {})", said.reason, said.text);
                }
                if watched.deleting && watched.finalizers.is_empty() {
                    self.services.remove(&status.service);
                }
                told
            }
            Write::Inquire { service, uid } => {
                self.gone.insert(uid.clone());
                format!("inquire {service} {uid}")
            }
            Write::Event(said) => format!("{}: {}", said.reason, said.text),
        }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Watched)) {
        let watched = self.services.get_mut(name).unwrap();
        change(watched);
        watched.version += 10;
    }
}

const NOTHING: [String; 0] = [];

#[test]
fn an_address_is_noted_then_written_with_the_finalizer_and_goes_in_the_other_order() {
    let mut scene = Scene::new([service("default/web", "u1", 5)]);
    assert_eq!(scene.step(), ["ledger default.web=u1 5 192.168.50.200"]);
    assert_eq!(
        scene.step(),
        [
            "status default/web [192.168.50.200] finalizers 1 pool lan (IPAllocated: Assigned IP [\"192.168.50.200\"])"
        ]
    );
    assert_eq!(scene.step(), NOTHING);
    scene.change("default/web", |web| web.deleting = true);
    assert_eq!(scene.step(), ["status default/web [] pool -"]);
    // Agents withdraw it meanwhile.
    let decision = scene.decide();
    assert_eq!((decision.writes, decision.again), (vec![], Some(SETTLE)));
    scene.now += SETTLE;
    assert_eq!(scene.step(), ["status default/web finalizers 0"]);
    assert_eq!(scene.step(), ["inquire default/web u1"]);
    assert_eq!(scene.step(), ["ledger default.web=-"]);
    assert_eq!(scene.step(), NOTHING);
}

#[test]
fn the_patch_is_of_the_status_path_and_on_one_version() {
    let mut scene = Scene::new([service("default/web", "u1", 5)]);
    scene.step();
    let decision = scene.decide();
    let [Write::Status(status)] = decision.writes.as_slice() else { panic!("{decision:?}") };
    assert_eq!(
        status.patch(),
        json!({
            "metadata": {
                "uid": "u1", "resourceVersion": "5",
                "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
                "annotations": { "metallb.io/ip-allocated-from-pool": "lan" },
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.168.50.200", "ipMode": "VIP" }] } },
        })
    );
    let cleared = StatusWrite {
        addresses: Some(vec![]),
        finalizers: None,
        pool: Some(None),
        fence: true,
        ..status.clone()
    };
    assert_eq!(
        cleared.patch(),
        json!({
            "metadata": {
                "uid": "u1", "resourceVersion": "5",
                "annotations": { "metallb.io/ip-allocated-from-pool": null, "homelab/fence": "5" },
            },
            "status": { "loadBalancer": { "ingress": null } },
        })
    );
    let changes = BTreeMap::from([("a.b".to_owned(), Some("u 1".to_owned())), ("a.c".to_owned(), None)]);
    let body = Write::ledger_body("homelab-system", None, &changes);
    assert_eq!(body["data"], json!({ "a.b": "u 1" }));
    let body = Write::ledger_body("homelab-system", Some("9"), &changes);
    assert_eq!(
        (&body["data"], &body["metadata"]["resourceVersion"]),
        (&json!({ "a.b": "u 1", "a.c": null }), &json!("9"))
    );
}

#[test]
fn what_metallb_gave_is_kept() {
    let mut web = object("default/web", "u1", 5);
    web["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.168.50.201", "ipMode": "VIP" }] } });
    web["metadata"]["annotations"] = json!({ "metallb.universe.tf/ip-allocated-from-pool": "lan" });
    // It comes first by name, and would get that address otherwise if it were the only one.
    let mut scene = Scene::new([service("default/a", "u2", 6), read(web)]);
    scene.pools = vec![pool("lan", "192.168.50.201", "192.168.50.202")];
    assert_eq!(scene.step(), ["ledger default.a=u2 6 192.168.50.202 default.web=u1 5 192.168.50.201"]);
    let written = scene.step();
    assert_eq!(
        written,
        [
            "status default/a [192.168.50.202] finalizers 1 pool lan (IPAllocated: Assigned IP [\"192.168.50.202\"])",
            // Nothing new is said of it: it only gets the finalizer.
            "status default/web [192.168.50.201] finalizers 1",
        ]
    );
    assert_eq!(scene.step(), NOTHING);
}

#[test]
fn only_classes_that_are_ours_are_served_and_nobody_elses_address_is_given() {
    let mut other = object("default/other", "u1", 5);
    other["spec"]["loadBalancerClass"] = json!("example.org/cloud");
    other["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.168.50.200" }] } });
    let mut ours = object("default/ours", "u2", 6);
    ours["spec"]["loadBalancerClass"] = json!("homelab");
    let mut inner = object("default/inner", "u3", 7);
    inner["spec"]["type"] = json!("ClusterIP");
    inner["spec"]["externalIPs"] = json!(["192.168.50.201"]);
    let mut scene = Scene::new([read(other), read(ours), read(inner)]);
    scene.taken.insert(ip("192.168.50.202"), "default/of-the-file".into());
    scene.pools = vec![pool("lan", "192.168.50.200", "192.168.50.203")];
    assert_eq!(scene.step(), ["ledger default.ours=u2 6 192.168.50.203"]);
}

#[test]
fn a_service_that_is_no_load_balancer_any_more_is_cleaned_up_and_comes_back() {
    let mut scene = Scene::new([service("default/web", "u1", 5)]);
    scene.step();
    scene.step();
    scene.change("default/web", |web| web.class = Class::None);
    assert_eq!(scene.step(), ["status default/web [] pool -"]);
    assert_eq!(scene.step(), NOTHING);
    scene.now += SETTLE;
    assert_eq!(scene.step(), ["status default/web finalizers 0"]);
    assert_eq!(scene.step(), NOTHING);
    scene.now += SETTLE;
    assert_eq!(scene.step(), ["ledger default.web=-"]);
    scene.change("default/web", |web| web.class = Class::Default);
    assert_eq!(scene.step().len(), 1);
    assert!(scene.step()[0].starts_with("status default/web [192.168.50.200]"));
    // A finalizer of others' load balancers is theirs.
    let mut cloud = service("default/cloud", "u9", 5);
    (cloud.class, cloud.finalizers) = (Class::None, vec![FINALIZER.to_owned()]);
    assert_eq!(Scene::new([cloud]).step(), NOTHING);
}

#[test]
fn what_cannot_be_had_is_said_once() {
    let all = ["a", "b", "c"].map(|name| service(&format!("default/{name}"), name, 5));
    let mut scene = Scene::new(all);
    let said = scene.step();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[1].starts_with("AllocationFailed: service default/c has no IPv4 load-balancer address"),
        "{said:?}"
    );
    scene.step();
    assert_eq!(scene.step(), NOTHING);
    // One goes: after its time the other gets the address.
    scene.change("default/a", |a| a.deleting = true);
    for _ in 0..8 {
        scene.step();
        scene.now += SETTLE;
    }
    assert_eq!(scene.services["default/c"].status, [ip("192.168.50.200")]);
    assert_eq!(scene.step(), NOTHING);
    let mut odd = object("default/odd", "u7", 5);
    odd["spec"]["loadBalancerIP"] = json!("192.168.50.x");
    let said = Scene::new([read(odd)]).step();
    assert_eq!(
        said,
        [
            "AllocationFailed: service default/odd gets no other load-balancer address: it asks for `192.168.50.x`, which is no address"
        ]
    );
}

#[test]
fn an_address_that_somebody_asks_for_changes_hands_in_order() {
    let mut scene = Scene::new([service("default/a", "u1", 5)]);
    scene.step();
    scene.step();
    let mut b = object("default/b", "u2", 50);
    b["metadata"]["annotations"] = json!({ "metallb.io/loadBalancerIPs": "192.168.50.200" });
    scene.services.insert("default/b".into(), read(b));
    let mut seen = Vec::new();
    for _ in 0..8 {
        seen.extend(scene.step());
        let [a, b] = ["default/a", "default/b"].map(|name| scene.services[name].status.clone());
        assert!(a.is_empty() || a != b, "{seen:#?}");
        scene.now += SETTLE;
    }
    assert_eq!(scene.services["default/a"].status, [ip("192.168.50.201")], "{seen:#?}");
    assert_eq!(scene.services["default/b"].status, [ip("192.168.50.200")], "{seen:#?}");
    assert!(seen.iter().any(|line| line.starts_with("AddressConflict: ")), "{seen:#?}");
}

#[test]
fn services_share_an_address_by_key() {
    let shared = |name: &str, uid: &str, port: u16| {
        let mut one = object(name, uid, 5);
        one["metadata"]["annotations"] = json!({ "metallb.io/allow-shared-ip": "dns" });
        one["spec"]["ports"][0]["port"] = json!(port);
        read(one)
    };
    let mut scene = Scene::new([shared("default/a", "u1", 53), shared("default/b", "u2", 853)]);
    for _ in 0..3 {
        scene.step();
    }
    let statuses: Vec<_> = scene.services.values().map(|one| one.status.clone()).collect();
    assert_eq!(statuses, vec![vec![ip("192.168.50.200")]; 2]);
    assert_eq!(scene.step(), NOTHING);
}

#[test]
fn a_claim_that_is_given_up_makes_writes_under_way_fail() {
    let mut scene = Scene::new([service("default/web", "u1", 5)]);
    scene.step();
    // Another controller has seen the claim and is about to write the status on version 5. Then the pools change.
    let under_way = scene.decide();
    scene.pools = vec![pool("lan", "192.168.50.240", "192.168.50.240")];
    let written = scene.step();
    assert_eq!(written[..2], ["ledger default.web=u1 5 192.168.50.200 192.168.50.240", "status default/web"]);
    assert!(written[2..].iter().all(|line| line.starts_with("AddressLost: ")), "{written:?}");
    let [Write::Status(late)] = under_way.writes.as_slice() else { panic!("{under_way:?}") };
    assert!(late.version < scene.services["default/web"].version);
    assert_eq!(late.addresses, Some(vec![ip("192.168.50.200")]));
    for _ in 0..4 {
        scene.now += SETTLE;
        scene.step();
    }
    let entry = &scene.ledger.entries["default/web"];
    assert_eq!(entry.addresses, BTreeSet::from([ip("192.168.50.240")]));
    assert_eq!(scene.services["default/web"].status, [ip("192.168.50.240")]);
}
