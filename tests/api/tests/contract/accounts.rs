//! Server-side apply, tokens of ServiceAccounts, and what roles let them do: what the laptop builds on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Contract;
use crate::client::{Client, assert_refusal, unique};

pub(crate) const CONTRACTS: &[Contract] = &[
    ("applied_fields_come_change_and_go", apply),
    ("fields_of_others_are_taken_by_force_alone", others),
    ("whom_a_binding_names_may_do_what_its_role_says", roles),
    ("a_token_ends_with_its_account", tokens),
];

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn applied(client: &Client<'_>, path: &str, how: &str, object: &Value) -> (u16, Value) {
    client.raw("PATCH", &format!("{path}?{how}"), "application/apply-patch+yaml", &object.to_string())
}

fn role(name: &str, labels: Value, rules: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": name, "labels": labels }, "rules": rules,
    })
}

fn rule(resource: &str, verbs: &[&str]) -> Value {
    json!({ "apiGroups": [""], "resources": [resource], "verbs": verbs })
}

fn apply(client: &Client<'_>) {
    let name = unique();
    let path = format!("{RBAC}/clusterroles/{name}");
    let first = role(&name, json!({ "a": "1", "b": "1" }), json!([rule("pods", &["get"])]));
    let (code, said) = applied(client, &path, "force=true", &first);
    assert_refusal(code, &said, 422, "Invalid");
    let how = "fieldManager=tests&force=true";
    let (code, made) = applied(client, &path, how, &first);
    assert_eq!((code, &made["rules"]), (201, &first["rules"]), "{made}");
    let (code, same) = applied(client, &path, how, &first);
    assert_eq!(
        (code, &same["metadata"]["resourceVersion"]),
        (200, &made["metadata"]["resourceVersion"]),
        "{same}"
    );
    let second = role(&name, json!({ "a": "2" }), json!([rule("nodes", &["list"])]));
    let (code, changed) = applied(client, &path, how, &second);
    assert_eq!(code, 200, "{changed}");
    assert_eq!(changed["rules"], second["rules"], "a list is of one piece");
    assert_eq!(changed["metadata"]["labels"], json!({ "a": "2" }), "what is no longer applied goes");
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
    let other = role(&unique(), json!({}), json!([]));
    let (code, said) = applied(client, &path, how, &other);
    assert_refusal(code, &said, 400, "BadRequest");
}

fn others(client: &Client<'_>) {
    let name = unique();
    let path = format!("{RBAC}/clusterroles/{name}");
    let how = "fieldManager=tests";
    let ours = role(&name, json!({}), json!([rule("pods", &["get"])]));
    assert_eq!(applied(client, &path, how, &ours).0, 201);
    let mut theirs = client.must("GET", &path, &json!({}));
    theirs["rules"][0]["verbs"] = json!(["get", "delete"]);
    theirs["metadata"]["labels"] = json!({ "theirs": "1" });
    client.must("PUT", &path, &theirs);
    let (code, said) = applied(client, &path, how, &ours);
    assert_refusal(code, &said, 409, "Conflict");
    let (code, after) = applied(client, &path, &format!("{how}&force=true"), &ours);
    assert_eq!((code, &after["rules"]), (200, &ours["rules"]), "{after}");
    assert_eq!(after["metadata"]["labels"], json!({ "theirs": "1" }), "what nobody applies stays");
    // Nor is a binding turned to another role.
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
    });
    let bindings = format!("{RBAC}/clusterrolebindings");
    let mut binding = client.must("POST", &bindings, &binding);
    binding["roleRef"]["name"] = json!("other");
    client.refused("PUT", &format!("{bindings}/{name}"), &binding, 422, "Invalid");
}

/// The same client by another token; None: by none.
fn by<'a>(client: &Client<'a>, token: Option<&str>) -> Client<'a> {
    let mut arguments = client.arguments.clone();
    arguments.truncate(arguments.len() - 2);
    if let Some(token) = token {
        arguments.extend(["--header".to_owned(), format!("Authorization: Bearer {token}")]);
    }
    Client { base: client.base.clone(), arguments, side: client.side }
}

fn request(seconds: u64) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": seconds },
    })
}

/// A new account and a token of it.
fn account(client: &Client<'_>) -> (String, String) {
    let name = unique();
    client.must("POST", ACCOUNTS, &json!({ "metadata": { "name": name } }));
    let answer = client.must("POST", &format!("{ACCOUNTS}/{name}/token"), &request(3600));
    (name, answer["status"]["token"].as_str().unwrap().to_owned())
}

/// What the server knows of roles comes a moment after they are written.
fn eventually(what: &str, happens: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !happens() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn roles(client: &Client<'_>) {
    let (name, token) = account(client);
    let agent = by(client, Some(&token));
    let nobody = by(client, None);
    for who in [&agent, &nobody] {
        let said = who.refused("GET", "/api/v1/services", &json!({}), 403, "Forbidden");
        assert!(said["message"].as_str().unwrap().contains("cannot list resource \"services\""), "{said}");
    }
    let of = |kind: &str, rules: Value| json!({ "metadata": { "name": name, "namespace": if kind == "Role" { "default" } else { "" } }, "rules": rules });
    let binding = |kind: &str| {
        json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
            "subjects": [{ "kind": "ServiceAccount", "namespace": "default", "name": name }],
        })
    };
    let everywhere = json!([
        rule("services", &["list", "watch"]),
        rule("services/status", &["patch"]),
        rule("nodes", &["list"])
    ]);
    client.must("POST", &format!("{RBAC}/clusterroles"), &of("ClusterRole", everywhere));
    client.must("POST", &format!("{RBAC}/clusterrolebindings"), &binding("ClusterRole"));
    let mut one = rule("configmaps", &["get", "patch"]);
    one["resourceNames"] = json!([name]);
    let here = format!("{RBAC}/namespaces/default");
    client.must("POST", &format!("{here}/roles"), &of("Role", json!([one, rule("configmaps", &["create"])])));
    client.must("POST", &format!("{here}/rolebindings"), &binding("Role"));
    eventually("the roles count", || {
        agent.get("/api/v1/services").0 == 200
            && agent.ask("POST", crate::client::MAPS, &json!({ "metadata": { "name": name } })).0 != 403
    });
    agent.must("GET", "/api/v1/namespaces/default/services", &json!({}));
    agent.must("GET", "/api/v1/services?watch=1&timeoutSeconds=1", &json!({}));
    agent.must("GET", &format!("{}/{name}", crate::client::MAPS), &json!({}));
    // Allowed, and there is none.
    let (code, said) = agent.raw(
        "PATCH",
        "/api/v1/namespaces/default/services/none/status",
        "application/merge-patch+json",
        "{}",
    );
    assert_refusal(code, &said, 404, "NotFound");
    let none = json!({});
    let maps = crate::client::MAPS;
    let token = format!("{ACCOUNTS}/{name}/token");
    for (method, path, body) in [
        ("GET", "/api/v1/namespaces/default/services/none", &none),
        ("GET", "/api/v1/nodes?watch=1", &none),
        ("GET", maps, &none),
        ("GET", &format!("{maps}/other"), &none),
        ("DELETE", &format!("{maps}/{name}"), &none),
        ("POST", "/api/v1/namespaces/default/services", &json!({ "metadata": { "name": "x" } })),
        ("POST", "/api/v1/namespaces/kube-public/configmaps", &json!({ "metadata": { "name": "x" } })),
        ("POST", &token, &request(3600)),
    ] {
        agent.refused(method, path, body, 403, "Forbidden");
    }
}

fn tokens(client: &Client<'_>) {
    by(client, Some("nonsense")).refused("GET", "/api/v1/services", &json!({}), 401, "Unauthorized");
    let (name, token) = account(client);
    let path = format!("{ACCOUNTS}/{name}");
    client.refused("POST", &format!("{path}/token"), &request(599), 422, "Invalid");
    client.refused("POST", &format!("{ACCOUNTS}/none/token"), &request(600), 404, "NotFound");
    let answer = client.must("POST", &format!("{path}/token"), &request(600));
    assert_eq!(
        (&answer["kind"], &answer["spec"]["expirationSeconds"]),
        (&json!("TokenRequest"), &json!(600))
    );
    assert!(answer["status"]["expirationTimestamp"].as_str().unwrap().ends_with('Z'), "{answer}");
    let agent = by(client, Some(&token));
    agent.refused("GET", "/api/v1/services", &json!({}), 403, "Forbidden");
    // One of the same name is another account.
    client.must("DELETE", &path, &json!({}));
    client.must("POST", ACCOUNTS, &json!({ "metadata": { "name": name } }));
    eventually("the old token is refused", || agent.get("/api/v1/services").0 == 401);
    agent.refused("GET", "/api/v1/services", &json!({}), 401, "Unauthorized");
}
