//! What the laptop makes in a real API server with RBAC, and what an agent's token can do there: asked of the one in
//! KUBEBUILDER_ASSETS. Without it there are no tests here, and the run says so: nothing but Kubernetes' own authoriser
//! shows that a role suffices.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test without cargo's harness")]

#[allow(dead_code, reason = "shared with the contract tests, which use all of it")]
#[path = "../../../../tests/api/tests/contract/client.rs"]
mod client;
#[allow(dead_code, reason = "as above")]
#[path = "../../../../tests/api/tests/contract/real.rs"]
mod real;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use homelab_desired::kubernetes::{CONTROLLER_LEASE, LEDGER, api_objects};
use homelab_kube::{Access, Admin, Credential};
use homelab_model::{Action, ApiKind, ApiObject, Change, Object, Token, ours, plan_api};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

use client::Client;
use real::Server;

const SERVICE: &str = "/api/v1/namespaces/default/services/web";
const NODES: [&str; 2] = ["node1", "node2"];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let mut server = None;
    match if arguments.list { None } else { real::find() } {
        Some(assets) => {
            let real = Server::start(&assets).unwrap_or_else(|error| panic!("kube-apiserver: {error}"));
            println!("asked: {}", real.version);
            let real = Arc::new(real);
            let asked = Arc::clone(&real);
            trials.push(Trial::test("accounts_roles_and_tokens", move || {
                accounts_roles_and_tokens(&asked);
                Ok::<(), Failed>(())
            }));
            server = Some(real);
        }
        None => println!("no kube-apiserver in KUBEBUILDER_ASSETS: nothing is asked here"),
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(server);
    conclusion.exit();
}

/// What the API holds of ours, and what is to be done there.
fn plan(admin: &Admin) -> Vec<(Action, String, Change<ApiObject>)> {
    let state = admin.observe().unwrap();
    let ours: Vec<ApiObject> = state.objects.into_iter().filter(|o| o.is_of("home")).collect();
    let uid = |o: &ApiObject| Some((o.name.clone(), o.uid.clone()?));
    let uids: BTreeMap<String, String> = ours.iter().filter_map(uid).collect();
    let planned = plan_api(&ours, &api_objects("home", &NODES, &uids));
    planned.into_iter().map(|c| (c.action, c.object, c.change)).collect()
}

fn bearer<'a>(server: &'a Server, token: &str) -> Client<'a> {
    let mut client = server.client();
    client.arguments.pop();
    client.arguments.push(format!("Authorization: Bearer {token}"));
    client
}

fn accounts_roles_and_tokens(server: &Server) {
    let files = tempfile::tempdir().unwrap();
    let token_file = files.path().join("token");
    std::fs::write(&token_file, real::TOKEN).unwrap();
    let access = Access {
        credential: Credential::Token(token_file),
        servers: vec![server.base.clone()],
        ca: Some(server.certificate()),
    };
    let admin = Admin::new(&access).unwrap();
    let root = server.client();
    for (action, object, change) in plan(&admin) {
        assert_eq!(action, Action::Create, "{object}");
        admin.carry_out(&change).unwrap_or_else(|e| panic!("{object}: {e}"));
    }
    assert!(plan(&admin).is_empty(), "{:?}", plan(&admin));

    // Somebody widens a role.
    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/homelab:agent";
    let mut wide = root.must("GET", role, &json!({}));
    wide["rules"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] }));
    root.must("PUT", role, &wide);
    let drift = plan(&admin);
    assert_eq!(drift.len(), 1, "{drift:?}");
    assert_eq!((drift[0].0, drift[0].1.as_str()), (Action::Update, "ClusterRole homelab:agent"));
    admin.carry_out(&drift[0].2).unwrap();
    assert!(plan(&admin).is_empty(), "{:?}", plan(&admin));

    let token = admin.token("homelab-node1").unwrap();
    assert_eq!(
        (token.account.as_str(), token.namespace.as_str()),
        ("homelab-node1", ours::KUBERNETES_NAMESPACE)
    );
    assert!(token.expires > token.issued);
    what_a_token_can_do(server, &root, &token);
    what_is_taken_off_services(&admin, &root);

    // An account that is made anew: the old token is refused as soon as the server's cache forgets it.
    let accounts = |o: &ApiObject| o.kind == ApiKind::ServiceAccount && o.name == "homelab-node1";
    let before = admin.observe().unwrap().objects.into_iter().find(accounts).unwrap();
    let after = ApiObject { uid: None, ..before.clone() };
    admin.carry_out(&Change::Replace { before: before.clone(), after }).unwrap();
    let fresh = admin.token("homelab-node1").unwrap();
    assert_ne!(fresh.uid, token.uid);
    let (old, new) = (bearer(server, token.secret()), bearer(server, fresh.secret()));
    let end = Instant::now() + Duration::from_secs(120);
    while old.get("/api/v1/services").0 != 401 {
        assert!(Instant::now() < end, "the old token is still good");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(new.get("/api/v1/services").0, 200);

    let all = admin.observe().unwrap().objects.into_iter().filter(|o| o.is_of("home"));
    let mut all: Vec<ApiObject> = all.collect();
    all.sort_by_key(|o| std::cmp::Reverse(o.key()));
    for before in all {
        admin.carry_out(&Change::Delete { before: before.clone() }).unwrap();
        // Again, as after a cut connection.
        admin.carry_out(&Change::Delete { before }).unwrap();
    }
    // No controller manager runs here, so the namespace goes no further than this.
    let left: Vec<ApiKind> = admin.observe().unwrap().objects.iter().map(|o| o.kind).collect();
    assert!(left.iter().all(|kind| *kind == ApiKind::Namespace), "{left:?}");
}

/// Our controller has given `web` an address; without it the Service would never vanish.
fn what_is_taken_off_services(admin: &Admin, root: &Client<'_>) {
    let none = json!({});
    let uid = root.must("GET", SERVICE, &none)["metadata"]["uid"].as_str().unwrap().to_owned();
    let ledger = format!("/api/v1/namespaces/{}/configmaps/{LEDGER}", ours::KUBERNETES_NAMESPACE);
    let mut map = root.must("GET", &ledger, &none);
    map["data"] = json!({ "default.web": format!("{uid} 1 192.168.50.200") });
    root.must("PUT", &ledger, &map);
    let services = admin.observe().unwrap().services;
    let names: Vec<String> = services.iter().map(|one| one.full_name()).collect();
    assert_eq!(names, ["default/web"]);
    let change = services[0].release().unwrap();
    admin.carry_out(&change).unwrap();
    let web = root.must("GET", SERVICE, &none);
    assert_eq!(web["metadata"]["finalizers"], none["x"], "{web}");
    assert_eq!(web["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"], none["x"], "{web}");
    assert_eq!(web["status"]["loadBalancer"], none, "{web}");
    assert_eq!(admin.observe().unwrap().services[0].release(), None, "the ledger alone is no change");
    // Again, as after a cut connection, and of a Service that is gone.
    admin.carry_out(&change).unwrap();
    root.must("DELETE", SERVICE, &none);
    assert_eq!(root.get(SERVICE).0, 404);
    admin.carry_out(&change).unwrap();
}

fn what_a_token_can_do(server: &Server, root: &Client<'_>, token: &Token) {
    root.must(
        "POST",
        "/api/v1/namespaces/default/services",
        &json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80 }], "type": "LoadBalancer" } }),
    );
    root.must("POST", "/api/v1/namespaces/default/secrets", &json!({ "metadata": { "name": "s" } }));
    for name in NODES {
        root.must("POST", "/api/v1/nodes", &json!({ "metadata": { "name": name } }));
    }
    let agent = bearer(server, token.secret());
    let merge = |path: &str, body: &Value| {
        agent.raw("PATCH", path, "application/merge-patch+json", &body.to_string())
    };
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", ours::KUBERNETES_NAMESPACE);
    let lease = format!("{leases}/{CONTROLLER_LEASE}");
    let slices = "/apis/discovery.k8s.io/v1/endpointslices";

    // Every verb of the roles, by what uses it.
    assert_eq!(agent.get(SERVICE).0, 200);
    assert_eq!(agent.get("/api/v1/namespaces").0, 200);
    for path in ["/api/v1/services", "/api/v1/nodes", slices] {
        assert_eq!(agent.get(path).0, 200, "{path}");
        let (code, said) = agent.get(&format!("{path}?watch=1&timeoutSeconds=1"));
        assert_eq!(code, 200, "{path}: {said}");
    }
    // 404, not 403: MetalLB's resources are not installed here, and reading them is allowed.
    for kind in
        ["bfdprofiles", "bgpadvertisements", "bgppeers", "communities", "ipaddresspools", "l2advertisements"]
    {
        assert_eq!(agent.get(&format!("/apis/metallb.io/v1beta1/{kind}")).0, 404, "{kind}");
    }
    let finalizer = "service.kubernetes.io/load-balancer-cleanup";
    let status = json!({
        "metadata": { "finalizers": [finalizer], "annotations": { "metallb.io/ip-allocated-from-pool": "home" } },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.168.50.200", "ipMode": "VIP" }] } },
    });
    let (code, said) = merge(&format!("{SERVICE}/status"), &status);
    assert_eq!(code, 200, "{said}");
    assert_eq!(said["metadata"]["finalizers"], json!([finalizer]), "{said}");
    assert_eq!(said["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"], "home", "{said}");
    let event = json!({
        "metadata": { "name": "web.1", "namespace": "default" }, "reason": "Allocated", "type": "Normal", "message": "x",
        "involvedObject": { "kind": "Service", "namespace": "default", "name": "web" },
        "source": { "component": "homelab", "host": "node1" },
    });
    let events = "/api/v1/namespaces/default/events";
    agent.must("POST", events, &event);
    assert_eq!(merge(&format!("{events}/web.1"), &json!({ "count": 2 })).0, 200);
    agent.must("POST", &leases, &json!({ "metadata": { "name": CONTROLLER_LEASE }, "spec": {} }));
    let mut held = agent.must("GET", &lease, &json!({}));
    held["spec"]["holderIdentity"] = json!("node1");
    agent.must("PUT", &lease, &held);
    let maps = format!("/api/v1/namespaces/{}/configmaps", ours::KUBERNETES_NAMESPACE);
    let ledger = format!("{maps}/{LEDGER}");
    agent.must("POST", &maps, &json!({ "metadata": { "name": LEDGER } }));
    agent.must("GET", &ledger, &json!({}));
    assert_eq!(merge(&ledger, &json!({ "data": { "a": "b" } })).0, 200);
    let own = json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] } });
    assert_eq!(merge("/api/v1/nodes/node1/status", &own).0, 200);
    let (code, said) = merge(
        "/api/v1/nodes/node1/status",
        &json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/a": "b" } } }),
    );
    assert_eq!(
        (code, &said["metadata"]["annotations"]["flannel.alpha.coreos.com/a"]),
        (200, &json!("b")),
        "{said}"
    );
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", ours::KUBERNETES_NAMESPACE);
    let request = json!({ "spec": { "expirationSeconds": 3600 } });
    agent.must("POST", &format!("{accounts}/homelab-node1/token"), &request);

    // What a thief would want.
    let refused = |method: &str, path: &str, body: &Value| {
        agent.refused(method, path, body, 403, "Forbidden");
    };
    let none = json!({});
    let service = root.must("GET", SERVICE, &none);
    for path in [
        "/api/v1/secrets",
        "/api/v1/namespaces/default/secrets/s",
        "/api/v1/namespaces/default/configmaps",
        "/api/v1/pods",
        &format!("{leases}/other"),
        &format!("{maps}/other"),
    ] {
        refused("GET", path, &none);
    }
    refused("PUT", SERVICE, &service);
    refused("DELETE", SERVICE, &none);
    refused("POST", "/api/v1/namespaces/default/services", &json!({ "metadata": { "name": "x" } }));
    refused("POST", &format!("{accounts}/homelab-node2/token"), &request);
    refused(
        "POST",
        "/apis/coordination.k8s.io/v1/namespaces/default/leases",
        &json!({ "metadata": { "name": "x" } }),
    );
    refused(
        "POST",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        &json!({ "metadata": { "name": "x" } }),
    );
    for (path, body) in [
        (SERVICE, json!({ "spec": { "externalIPs": ["192.168.50.1"] } })),
        ("/api/v1/nodes/node1", json!({ "spec": { "unschedulable": true } })),
        ("/api/v1/nodes/node2", json!({ "metadata": { "labels": { "a": "b" } } })),
        ("/api/v1/nodes/node2/status", own),
    ] {
        let (code, said) = merge(path, &body);
        assert_eq!(code, 403, "{path}: {said}");
    }
    // By the path of the status, too, the spec stays.
    let (_, said) =
        merge(&format!("{SERVICE}/status"), &json!({ "spec": { "externalIPs": ["192.168.50.1"] } }));
    assert_eq!(said["spec"]["externalIPs"], Value::Null, "{said}");
}
