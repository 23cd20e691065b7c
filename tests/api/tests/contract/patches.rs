//! Patches, and what goes by the path of a status: what the controller of load-balancer addresses builds on.

use serde_json::{Value, json};

use crate::Contract;
use crate::client::{Client, MAPS, assert_refusal, map, map_path, unique, version};

pub(crate) const CONTRACTS: &[Contract] = &[
    ("a_patch_changes_what_it_names", a_patch),
    ("a_patch_of_the_status_takes_metadata_and_no_spec", a_patch_of_the_status),
    ("who_has_finalizers_stays_until_they_are_gone", finalizers),
    ("only_load_balancers_have_addresses", only_load_balancers),
    ("conditions_are_merged_by_their_type", conditions),
];

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn patch(client: &Client<'_>, kind: &str, path: &str, body: &Value) -> (u16, Value) {
    client.raw("PATCH", path, &format!("application/{kind}+json"), &body.to_string())
}

fn merge(client: &Client<'_>, path: &str, body: &Value) -> Value {
    let (code, answer) = patch(client, "merge-patch", path, body);
    assert_eq!(code, 200, "{path}: {answer}");
    answer
}

fn refused(client: &Client<'_>, path: &str, body: &Value, code: u16, reason: &str) -> Value {
    let (said, answer) = patch(client, "merge-patch", path, body);
    assert_refusal(said, &answer, code, reason);
    answer
}

fn balancer(client: &Client<'_>) -> (String, Value) {
    let name = unique();
    let spec =
        json!({ "type": "LoadBalancer", "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }] });
    let made = client.must("POST", SERVICES, &json!({ "metadata": { "name": name }, "spec": spec }));
    (format!("{SERVICES}/{name}"), made)
}

fn ingress(ip: &str) -> Value {
    json!({ "loadBalancer": { "ingress": [{ "ip": ip }] } })
}

fn a_patch(client: &Client<'_>) {
    let name = unique();
    let path = map_path(&name);
    refused(client, &path, &json!({ "data": { "b": "2" } }), 404, "NotFound");
    let made = client.must("POST", MAPS, &map(&name, &name, "1"));
    let changed = merge(client, &path, &json!({ "data": { "a": null, "b": "2" } }));
    assert_eq!(
        (&changed["data"], changed["metadata"]["labels"]["test"].as_str()),
        (&json!({ "b": "2" }), Some(&*name))
    );
    let stale = json!({ "metadata": { "resourceVersion": made["metadata"]["resourceVersion"] }, "data": { "c": "3" } });
    refused(client, &path, &stale, 409, "Conflict");
    let mut good = stale.clone();
    good["metadata"]["resourceVersion"] = changed["metadata"]["resourceVersion"].clone();
    assert_eq!(merge(client, &path, &good)["data"], json!({ "b": "2", "c": "3" }));
    let other =
        json!({ "metadata": { "uid": "01234567-89ab-4def-8123-456789abcdef" }, "data": { "c": "4" } });
    refused(client, &path, &other, 422, "Invalid");
    let (code, answer) = client.raw("PATCH", &path, "text/plain", "{}");
    assert_refusal(code, &answer, 415, "UnsupportedMediaType");
}

fn a_patch_of_the_status(client: &Client<'_>) {
    let (path, made) = balancer(client);
    let both = json!({
        "metadata": {
            "uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"],
            "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
            "annotations": { "metallb.io/ip-allocated-from-pool": "lan" },
        },
        "spec": { "ports": [{ "port": 81, "protocol": "TCP", "targetPort": 80 }] },
        "status": ingress("192.0.2.1"),
    });
    let told = merge(client, &format!("{path}/status"), &both);
    assert!(version(&told) > version(&made));
    assert_eq!(told["metadata"]["finalizers"], both["metadata"]["finalizers"]);
    assert_eq!(told["metadata"]["annotations"], both["metadata"]["annotations"]);
    assert_eq!(told["spec"]["ports"][0]["port"], 80);
    assert_eq!(told["status"]["loadBalancer"]["ingress"], json!([{ "ip": "192.0.2.1", "ipMode": "VIP" }]));
    refused(client, &format!("{path}/status"), &both, 409, "Conflict");
    let cleared = json!({
        "metadata": { "annotations": { "metallb.io/ip-allocated-from-pool": null, "homelab/fence": "1" } },
        "status": { "loadBalancer": { "ingress": null } },
    });
    let cleared = merge(client, &format!("{path}/status"), &cleared);
    assert_eq!(cleared["metadata"]["annotations"], json!({ "homelab/fence": "1" }));
    assert_eq!(cleared["status"]["loadBalancer"], json!({}));
    // By the other path the status does not change.
    let spec = merge(
        client,
        &path,
        &json!({ "status": ingress("192.0.2.2"), "metadata": { "labels": { "a": "b" } } }),
    );
    assert_eq!(
        (&spec["status"]["loadBalancer"], &spec["metadata"]["labels"]["a"]),
        (&json!({}), &json!("b"))
    );
    let finalizers = json!({ "metadata": { "finalizers": [] } });
    assert_eq!(merge(client, &format!("{path}/status"), &finalizers)["metadata"]["finalizers"], Value::Null);
}

fn finalizers(client: &Client<'_>) {
    let (path, _) = balancer(client);
    let held = json!({ "metadata": { "finalizers": ["example.org/a", "example.org/b"] }, "status": ingress("192.0.2.3") });
    let held = merge(client, &format!("{path}/status"), &held);
    let marked = client.must("DELETE", &path, &json!({}));
    assert!(version(&marked) > version(&held));
    assert_eq!(marked["metadata"]["name"], held["metadata"]["name"]);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    client.must("DELETE", &path, &json!({}));
    assert_eq!(client.get(&path).1["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.3");
    let more = json!({ "metadata": { "finalizers": ["example.org/a", "example.org/b", "example.org/c"] } });
    refused(client, &format!("{path}/status"), &more, 422, "Invalid");
    let one =
        merge(client, &format!("{path}/status"), &json!({ "metadata": { "finalizers": ["example.org/b"] } }));
    assert!(one["metadata"]["deletionTimestamp"].is_string());
    let name = one["metadata"]["name"].as_str().unwrap();
    let watch = client
        .watch(SERVICES, &format!("&resourceVersion={}&fieldSelector=metadata.name%3D{name}", version(&one)));
    merge(client, &format!("{path}/status"), &json!({ "metadata": { "finalizers": [] } }));
    let gone = watch.expect("DELETED", name);
    assert!(version(&gone) > version(&one));
    client.refused("GET", &path, &json!({}), 404, "NotFound");
    refused(client, &format!("{path}/status"), &json!({}), 404, "NotFound");
}

fn only_load_balancers(client: &Client<'_>) {
    let (path, _) = balancer(client);
    merge(client, &format!("{path}/status"), &json!({ "status": ingress("192.0.2.4") }));
    let changed = merge(client, &path, &json!({ "spec": { "type": "ClusterIP" } }));
    assert_eq!(
        (&changed["spec"]["type"], &changed["status"]),
        (&json!("ClusterIP"), &json!({ "loadBalancer": {} }))
    );
    refused(client, &format!("{path}/status"), &json!({ "status": ingress("192.0.2.4") }), 422, "Invalid");
}

fn conditions(client: &Client<'_>) {
    let name = unique();
    let node = json!({
        "metadata": { "name": name },
        "status": { "conditions": [
            { "type": "Ready", "status": "True" }, { "type": "NetworkUnavailable", "status": "True" },
        ] },
    });
    client.must("POST", "/api/v1/nodes", &node);
    let path = format!("/api/v1/nodes/{name}/status");
    let conditions = json!([{ "type": "NetworkUnavailable", "status": "False", "reason": "HomelabIsUp" }]);
    let body = json!({ "status": { "conditions": conditions } });
    let (code, node) = patch(client, "strategic-merge-patch", &path, &body);
    assert_eq!(code, 200, "{node}");
    let told: Vec<(&str, &str)> = node["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["type"].as_str().unwrap(), one["status"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("Ready", "True"), ("NetworkUnavailable", "False")]);
}
