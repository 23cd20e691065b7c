//! The Kubernetes API's part of plan, apply and destroy, and the nodes' tokens.
#![cfg(test)]

mod fake;

use fake::{Api, Lan, Laptop, THREE, cluster};
use homelab_driver::{Goal, KubernetesOutcome, NodeError};
use homelab_model::{
    Action, ApiError, ApiKind, ApiNode, ApiObject, ApiService, Cluster, KubernetesAccess, KubernetesSettings,
    NodesFrom, Object, Token, ours,
};
use serde_json::json;

const ADDRESSES: [&str; 3] = ["192.168.50.11", "192.168.50.12", "192.168.50.13"];

fn home() -> Cluster {
    let mut home = cluster(&THREE);
    home.kubernetes =
        Some(KubernetesSettings::new(KubernetesAccess::Kubeconfig { path: None, context: None }));
    home
}

fn laptop() -> Laptop {
    let mut laptop = Laptop::new(Lan::three());
    laptop.api = Some(Api::new());
    api(&laptop).with(|c| c.nodes = THREE.map(|(name, _)| node(name, None)).to_vec());
    laptop
}

fn api(laptop: &Laptop) -> &Api {
    laptop.api.as_ref().unwrap()
}

fn node(name: &str, range: Option<&str>) -> ApiNode {
    let pod_cidrs = range.map(|range| range.parse().unwrap()).into_iter().collect();
    ApiNode { name: name.into(), pod_cidrs, addresses: Vec::new() }
}

fn token(laptop: &Laptop, address: &str) -> Option<Token> {
    laptop.lan.with(address, |m| {
        let text = m.texts.get(&m.secret_summary(ours::KUBERNETES_TOKEN)?)?;
        Some(Token::parse(text).unwrap())
    })
}

fn actions(laptop: &Laptop, home: &Cluster) -> Vec<(Action, String)> {
    let plan = laptop.plan(home);
    let planned = plan.kubernetes.unwrap();
    planned.outcome.unwrap().into_iter().map(|c| (c.action, c.object)).collect()
}

#[test]
fn an_apply_makes_accounts_and_tokens_and_a_destroy_takes_them_away() {
    let laptop = laptop();
    let home = home();
    let foreign = ApiObject {
        managed_by: None,
        ..ApiObject::new(ApiKind::ClusterRole, "", "admin", "home", json!({}))
    };
    api(&laptop).with(|c| c.put(foreign.clone()));
    let plan = laptop.plan(&home);
    assert_eq!(plan.kubernetes.as_ref().unwrap().summary().create, 20);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let report = laptop.apply(&home);
    assert!(report.succeeded(), "{report:?}");
    assert!(matches!(&report.kubernetes, Some(KubernetesOutcome::Changed(s)) if s.create == 20));
    for ((name, address), n) in THREE.iter().zip(1..) {
        let token = token(&laptop, address).unwrap();
        assert_eq!(token.account, format!("homelab-{name}"), "{n}");
        laptop.lan.with(address, |m| {
            let spec = m.spec().unwrap();
            assert_eq!(spec.kubernetes.unwrap().service_account, format!("homelab-{name}"));
        });
    }
    let again = laptop.plan(&home);
    assert!(again.is_empty() && !again.has_failed(), "{again:?}");
    assert_eq!(api(&laptop).with(|c| c.issued.len()), 3);
    // Nothing of this says a token.
    let secret = token(&laptop, ADDRESSES[0]).unwrap().secret().to_owned();
    assert!(!format!("{plan:?}{report:?}{again:?}").contains(&secret));
    assert!(laptop.destroy(&home).succeeded());
    assert!(ADDRESSES.iter().all(|address| token(&laptop, address).is_none()));
    assert_eq!(api(&laptop).names(), [foreign.key().to_string()]);
}

#[test]
fn a_role_that_somebody_widened_is_drift_and_mended() {
    let laptop = laptop();
    let home = home();
    assert!(laptop.apply(&home).succeeded());
    api(&laptop).with(|c| {
        let role =
            c.objects.values_mut().find(|o| o.name == "homelab:agent" && o.kind == ApiKind::ClusterRole);
        role.unwrap().fields.insert("rules".into(), json!([{ "verbs": ["*"], "resources": ["*"] }]));
        c.log.clear();
    });
    assert_eq!(actions(&laptop, &home), [(Action::Update, "ClusterRole homelab:agent".to_owned())]);
    let report = laptop.apply(&home);
    assert!(report.succeeded(), "{report:?}");
    assert_eq!(api(&laptop).with(|c| c.log.clone()), ["ClusterRole homelab:agent"]);
    assert!(laptop.plan(&home).is_empty());
}

#[test]
fn an_expired_token_comes_with_a_new_account_and_a_renewed_one_is_no_difference() {
    let laptop = laptop();
    let home = home();
    api(&laptop).with(|c| c.expires = 5000);
    assert!(laptop.apply(&home).succeeded());
    let old = token(&laptop, ADDRESSES[1]).unwrap();
    // The agents of the others have renewed theirs.
    for address in [ADDRESSES[0], ADDRESSES[2]] {
        let held = token(&laptop, address).unwrap();
        let text = fake::token(&held.account, &held.uid, 900_000);
        laptop.lan.with(address, |m| m.texts.insert(held.summary(), text));
    }
    api(&laptop).with(|c| c.expires = 1_000_000);
    let replaced = (Action::Replace, "ServiceAccount homelab-system/homelab-node2".to_owned());
    assert_eq!(actions(&laptop, &home), [replaced]);
    let report = laptop.apply(&home);
    assert!(report.succeeded(), "{report:?}");
    let new = token(&laptop, ADDRESSES[1]).unwrap();
    assert!(new.uid != old.uid && new.expires == 1_000_000);
    assert_eq!(token(&laptop, ADDRESSES[0]).unwrap().expires, 900_000);
    assert!(laptop.plan(&home).is_empty());
}

#[test]
fn new_tokens_are_issued_when_asked_for() {
    let mut laptop = laptop();
    let home = home();
    assert!(laptop.apply(&home).succeeded());
    let old: Vec<_> = ADDRESSES.iter().map(|address| token(&laptop, address).unwrap().uid).collect();
    laptop.options.new_tokens = true;
    assert!(laptop.apply(&home).succeeded());
    let new: Vec<_> = ADDRESSES.iter().map(|address| token(&laptop, address).unwrap().uid).collect();
    assert!(old.iter().zip(&new).all(|(old, new)| old != new), "{old:?} {new:?}");
}

#[test]
fn without_the_api_nodes_keep_what_they_have_and_the_run_fails() {
    let laptop = laptop();
    let home = home();
    assert!(laptop.apply(&home).succeeded());
    let before = token(&laptop, ADDRESSES[0]).unwrap();
    let down = ApiError::Unreachable { server: "https://x".into(), reason: "refused".into() };
    api(&laptop).with(|c| c.down = Some(down.clone()));
    let plan = laptop.plan(&home);
    assert_eq!((plan.changed_nodes(), plan.failed_nodes(), plan.has_failed()), (0, 0, true));
    let calm = fake::calm(&home);
    let report = laptop.apply(&calm);
    assert!(report.nodes.iter().all(|n| n.outcome.is_good()), "{report:?}");
    assert!(matches!(&report.kubernetes, Some(KubernetesOutcome::Unplanned(e)) if *e == down));
    assert!(!report.succeeded());
    assert_eq!(token(&laptop, ADDRESSES[0]), Some(before));
}

#[test]
fn what_the_api_refuses_keeps_nodes_as_they_are() {
    let laptop = laptop();
    let home = home();
    api(&laptop).with(|c| c.refused = Some("ClusterRole homelab:agent".into()));
    let engine = laptop.engine();
    let prepared = engine.prepare_apply(&home, Goal::Desired, &[]).unwrap();
    let error = engine.apply(prepared).err().unwrap();
    assert!(error.to_string().contains("homelab:agent"), "{error}");
    assert!(ADDRESSES.iter().all(|address| token(&laptop, address).is_none()));
}

#[test]
fn objects_of_others_are_named_and_never_touched() {
    let laptop = laptop();
    let home = home();
    let theirs = ApiObject::new(ApiKind::ClusterRole, "", "homelab:agent", "other", json!({ "rules": [] }));
    let mut namespace = ApiObject::new(ApiKind::Namespace, "", ours::KUBERNETES_NAMESPACE, "home", json!({}));
    namespace.managed_by = None;
    api(&laptop).with(|c| c.put(theirs.clone()));
    let plan = laptop.plan(&home);
    let named = ApiError::Foreign(vec!["ClusterRole homelab:agent".into()]);
    assert_eq!(plan.kubernetes.unwrap().outcome.err(), Some(named));
    // A namespace that was there is used, and stays.
    api(&laptop).with(|c| {
        c.objects.clear();
        c.put(namespace.clone());
    });
    assert!(laptop.apply(&home).succeeded());
    assert!(laptop.plan(&home).is_empty());
    assert!(laptop.destroy(&home).succeeded());
    assert_eq!(api(&laptop).with(|c| c.objects.values().cloned().collect::<Vec<_>>()), [namespace]);
}

#[test]
fn pod_ranges_are_those_of_the_nodes_of_the_api() {
    let laptop = laptop();
    let mut home = home();
    home.nodes[2].pod_cidrs = vec!["10.244.3.0/24".parse().unwrap()];
    api(&laptop).with(|c| {
        c.nodes = vec![
            node("node1", Some("10.244.7.0/24")),
            node("node2", Some("10.99.0.0/24")),
            node("node3", Some("10.244.9.0/24")),
            node("node9", None),
        ];
    });
    let prepared = laptop.prepare(&home, Goal::Desired);
    assert_eq!(prepared.specs["node1"].pod_cidrs, ["10.244.7.0/24".parse().unwrap()]);
    let blocked = |index: usize| match &prepared.plan.nodes[index].outcome {
        Err(NodeError::Blocked(problems)) => problems[0].message.clone(),
        other => panic!("{other:?}"),
    };
    assert!(blocked(1).contains("no node's part"), "{}", blocked(1));
    assert!(blocked(2).contains("the cluster file says 10.244.3.0/24"), "{}", blocked(2));
    let warned = |text: &str| prepared.plan.warnings.iter().any(|w| w.contains(text));
    assert!(warned("node9"), "{:?}", prepared.plan.warnings);
    api(&laptop).with(|c| c.nodes.clear());
    assert!(laptop.plan(&home).warnings.iter().any(|w| w.starts_with("node1 is no Node")));
}

#[test]
fn nodes_that_the_agents_follow_are_none_of_the_laptops_business() {
    let laptop = laptop();
    let mut home = home();
    api(&laptop).with(|c| c.nodes.push(node("node9", Some("10.244.9.0/24"))));
    let warns = |home: &Cluster| laptop.plan(home).warnings.iter().any(|w| w.contains("node9"));
    assert!(warns(&home));
    home.kubernetes.as_mut().unwrap().nodes = NodesFrom::FromKubernetes;
    assert!(!warns(&home));
    assert!(laptop.apply(&home).succeeded());
    let spec = laptop.lan.with(ADDRESSES[0], |m| m.spec().unwrap());
    assert_eq!(spec.kubernetes.unwrap().nodes, NodesFrom::FromKubernetes);
    // The file's nodes stay peers of the file, so that a node starts with them without any API.
    assert_eq!(spec.peers.len(), 2);
    assert!(laptop.plan(&home).is_empty());
    // A Node that comes or goes changes no plan.
    api(&laptop).with(|c| c.nodes.retain(|node| node.name != "node9"));
    assert!(laptop.plan(&home).is_empty());
}

#[test]
fn a_destroy_of_one_node_takes_only_what_is_its_own() {
    let laptop = laptop();
    let home = home();
    assert!(laptop.apply(&home).succeeded());
    let all = api(&laptop).names().len();
    let engine = laptop.engine();
    let prepared = engine.prepare_apply(&home, Goal::Destroyed, &["node2".to_owned()]).unwrap();
    let report = engine.apply(prepared).unwrap();
    assert!(report.succeeded(), "{report:?}");
    let names = api(&laptop).names();
    assert_eq!(names.len(), all - 5, "{names:?}");
    assert!(!names.iter().any(|name| name.contains("node2")), "{names:?}");
    let bound = api(&laptop).with(|c| {
        let binding =
            c.objects.values().find(|o| o.kind == ApiKind::ClusterRoleBinding && o.name == "homelab:agent");
        binding.unwrap().fields["subjects"].as_array().unwrap().len()
    });
    assert_eq!(bound, 2);
}

#[test]
fn a_node_that_cannot_be_cleaned_keeps_its_account() {
    let laptop = laptop();
    let home = home();
    assert!(laptop.apply(&home).succeeded());
    let all = api(&laptop).names();
    laptop.lan.with(ADDRESSES[2], |m| m.fault.down = true);
    let report = laptop.destroy(&home);
    assert!(matches!(report.kubernetes, Some(KubernetesOutcome::NotStarted)), "{report:?}");
    assert_eq!(api(&laptop).names(), all);
}

/// Two Services: our controller has given one of them its address.
fn with_services(laptop: &Laptop) {
    let one = |name: &str, address: &str| ApiService {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("u-{name}"),
        addresses: vec![address.parse().unwrap()],
        ..ApiService::default()
    };
    let mut web = one("web", "192.168.50.200");
    (web.given, web.held) = (web.addresses.clone(), true);
    api(laptop).with(|c| c.services = vec![one("others", "192.168.50.201"), web]);
}

#[test]
fn what_the_controller_wrote_into_services_goes_first_and_only_with_the_last_node() {
    let web = "Service default/web";
    let mut other = home();
    other.kubernetes = None;
    for (goal, cluster) in [(Goal::Destroyed, home()), (Goal::Desired, other)] {
        let laptop = laptop();
        assert!(laptop.apply(&home()).succeeded());
        with_services(&laptop);
        let chosen = ["node1".to_owned()];
        let plan = laptop.engine().prepare(&cluster, goal, &chosen).unwrap().plan;
        let planned = plan.kubernetes.unwrap().outcome.unwrap();
        assert!(planned.iter().all(|change| !change.object.starts_with("Service ")), "{planned:?}");
        let plan = laptop.prepare(&cluster, goal).plan;
        let planned = plan.kubernetes.unwrap().outcome.unwrap();
        assert_eq!((planned[0].action, planned[0].object.as_str()), (Action::Update, web));
        assert!(planned[1..].iter().all(|change| change.action == Action::Delete), "{planned:?}");
        api(&laptop).with(|c| c.log.clear());
        let report = laptop.reach(&cluster, goal);
        assert!(report.succeeded(), "{report:?}");
        assert_eq!(api(&laptop).with(|c| c.log[0].clone()), web);
        assert!(api(&laptop).names().is_empty());
        assert!(ADDRESSES.iter().all(|address| token(&laptop, address).is_none()));
        assert!(laptop.plan(&cluster).kubernetes.is_none_or(|_| goal == Goal::Destroyed));
    }
}

#[test]
fn an_api_that_is_not_the_nodes_own_is_left_alone() {
    let laptop = laptop();
    let mut plain = home();
    plain.kubernetes = None;
    assert!(laptop.apply(&plain).succeeded());
    api(&laptop).with(|c| c.down = Some(ApiError::Config("asked".into())));
    assert!(laptop.plan(&plain).kubernetes.is_none());
}

#[test]
fn a_service_of_the_file_gets_no_address_that_one_of_the_api_has() {
    use homelab_model::service::Service;
    use homelab_model::{Declared, Request};
    let laptop = laptop();
    let mut home = home();
    let ip = |last: u8| format!("192.168.50.{last}").parse().unwrap();
    home.load_balancer.pools = vec![homelab_model::Pool {
        name: "lan".into(),
        addresses: vec![homelab_model::PoolRange { first: ip(200), last: ip(202) }],
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }];
    let service: Service = serde_json::from_value(json!({
        "namespace": "default", "name": "front", "type": "LoadBalancer", "clusterIPs": [], "endpoints": [],
        "ports": [{ "name": "", "port": 80 }],
    }))
    .unwrap();
    let declared = Declared {
        service,
        families: vec![],
        node_ports: false,
        containers: vec![],
        request: Request::default(),
    };
    home.services = vec![declared];
    with_services(&laptop);
    assert!(laptop.apply(&home).succeeded());
    let given = || {
        laptop.lan.with(ADDRESSES[0], |m| {
            let spec = m.spec().unwrap();
            spec.services[0].load_balancer.iter().map(|one| one.ip.to_string()).collect::<Vec<_>>()
        })
    };
    assert_eq!(given(), ["192.168.50.202"]);
    // What it has it keeps, whatever the API says: the controller there gives way.
    api(&laptop).with(|c| c.services[0].addresses = vec![ip(202)]);
    assert!(laptop.plan(&home).is_empty());
}
