//! Objects: get, list, create, update, delete.

use serde_json::{Value, json};

use crate::Contract;
use crate::client::{Client, MAPS, assert_refusal, map, map_path, of_test, unique, version};

pub(crate) const CONTRACTS: &[Contract] = &[
    ("a_new_object_has_an_identity", a_new_object_has_an_identity),
    ("an_update_needs_the_version_that_is_there", an_update),
    ("what_is_deleted_is_gone", what_is_deleted),
    ("a_list_has_what_is_selected", a_list),
    ("a_list_is_not_older_than_asked", a_list_is_not_older),
    ("a_status_has_a_path_of_its_own", a_status),
    ("services_are_selected_by_their_fields", services_are_selected),
    ("namespaces_are_apart", namespaces_are_apart),
    ("requests_without_sense_are_refused", requests_without_sense),
];

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

fn a_new_object_has_an_identity(client: &Client<'_>) {
    let name = unique();
    let (code, made) = client.ask("POST", MAPS, &map(&name, &name, "1"));
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    let metadata = &made["metadata"];
    assert_eq!(metadata["namespace"], "default");
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36, "{metadata}");
    let created = metadata["creationTimestamp"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    let same = client.get(&map_path(&name));
    assert_eq!(same.0, 200);
    for key in ["uid", "creationTimestamp", "resourceVersion", "labels"] {
        assert_eq!(same.1["metadata"][key], metadata[key]);
    }
    let again = client.refused("POST", MAPS, &map(&name, &name, "2"), 409, "AlreadyExists");
    assert_eq!((&again["details"]["name"], &again["details"]["kind"]), (&json!(name), &json!("configmaps")));

    let mut generated = map("", &name, "1");
    generated["metadata"] = json!({ "generateName": "made-" });
    let made = client.must("POST", MAPS, &generated);
    let given = made["metadata"]["name"].as_str().unwrap();
    assert!(given.starts_with("made-") && given.len() == 10, "{given}");
    assert!(version(&made) > version(&same.1));
    client.refused("POST", MAPS, &json!({ "metadata": {} }), 422, "Invalid");
}

fn an_update(client: &Client<'_>) {
    let name = unique();
    let path = map_path(&name);
    let first = client.must("POST", MAPS, &map(&name, &name, "1"));
    let mut second = first.clone();
    second["data"]["a"] = json!("2");
    let written = client.must("PUT", &path, &second);
    assert!(version(&written) > version(&first));
    assert_eq!(written["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(written["data"]["a"], "2");

    let stale = client.refused("PUT", &path, &first, 409, "Conflict");
    assert_eq!(stale["details"]["name"], json!(name));
    assert_eq!(client.get(&path).1["data"]["a"], "2");

    // Nothing changes: nothing has happened.
    assert_eq!(version(&client.must("PUT", &path, &written)), version(&written));
    // Without a version the last one wins.
    let third = client.must("PUT", &path, &map(&name, &name, "3"));
    assert!(version(&third) > version(&written));
    assert_eq!(third["metadata"]["creationTimestamp"], first["metadata"]["creationTimestamp"]);

    let mut other = map(&name, &name, "4");
    other["metadata"]["uid"] = json!("01234567-89ab-4def-8123-456789abcdef");
    client.refused("PUT", &path, &other, 409, "Conflict");
    client.refused("PUT", &path, &map("another", &name, "4"), 400, "BadRequest");
    let missing = unique();
    client.refused("PUT", &map_path(&missing), &map(&missing, &name, "4"), 404, "NotFound");
}

fn what_is_deleted(client: &Client<'_>) {
    let name = unique();
    let path = map_path(&name);
    let made = client.must("POST", MAPS, &map(&name, &name, "1"));
    let (code, deleted) = client.ask("DELETE", &path, &json!({}));
    assert_eq!((code, &deleted["status"]), (200, &json!("Success")), "{deleted}");
    assert_eq!(deleted["details"]["uid"], made["metadata"]["uid"]);
    let missing = client.refused("GET", &path, &json!({}), 404, "NotFound");
    assert_eq!(
        (&missing["details"]["name"], &missing["details"]["kind"]),
        (&json!(name), &json!("configmaps"))
    );
    client.refused("DELETE", &path, &json!({}), 404, "NotFound");
    let again = client.must("POST", MAPS, &map(&name, &name, "1"));
    assert_ne!(again["metadata"]["uid"], made["metadata"]["uid"]);
}

fn a_list(client: &Client<'_>) {
    let test = unique();
    let all: Vec<String> = ["c", "a", "b"].iter().map(|letter| format!("{test}-{letter}")).collect();
    for name in &all {
        client.must("POST", MAPS, &map(name, &test, "1"));
    }
    let (code, list) = client.get(&format!("{MAPS}?{}", of_test(&test)));
    assert_eq!((code, &list["kind"], &list["apiVersion"]), (200, &json!("ConfigMapList"), &json!("v1")));
    assert_eq!(names(&list), [format!("{test}-a"), format!("{test}-b"), format!("{test}-c")]);
    let item = &list["items"][0];
    assert_eq!((&item["kind"], &item["apiVersion"]), (&Value::Null, &Value::Null));
    assert!(version(&list) >= version(item));
    let everywhere = client.get(&format!("/api/v1/configmaps?{}", of_test(&test))).1;
    assert_eq!(names(&everywhere), names(&list));
    for (query, expected) in [
        (format!("fieldSelector=metadata.name%3D{test}-b"), vec!["b"]),
        (format!("{}&fieldSelector=metadata.name%21%3D{test}-b", of_test(&test)), vec!["a", "c"]),
        (format!("labelSelector=test+in+%28{test}%29%2C%21other"), vec!["a", "b", "c"]),
        (format!("labelSelector=test%3D{test}%2Cother"), vec![]),
    ] {
        let list = client.get(&format!("{MAPS}?{query}")).1;
        let expected: Vec<String> = expected.iter().map(|letter| format!("{test}-{letter}")).collect();
        assert_eq!(names(&list), expected, "{query}");
    }
    for query in ["labelSelector=a+b", "fieldSelector=data.a%3D1", "resourceVersion=x"] {
        let (code, _) = client.get(&format!("{MAPS}?{query}"));
        assert_eq!(code, 400, "{query}");
    }
}

fn a_list_is_not_older(client: &Client<'_>) {
    let name = unique();
    let made = client.must("POST", MAPS, &map(&name, &name, "1"));
    for query in ["resourceVersion=0".to_owned(), format!("resourceVersion={}", version(&made))] {
        let (code, list) = client.get(&format!("{MAPS}?{query}{}", of_test(&name)));
        assert_eq!(code, 200, "{query}: {list}");
    }
    let query = format!("resourceVersion={}&resourceVersionMatch=NotOlderThan", version(&made));
    assert_eq!(names(&client.get(&format!("{MAPS}?{query}{}", of_test(&name))).1), [name]);
    let (code, future) = client.get(&format!("{MAPS}?resourceVersion={}", version(&made) + 1_000_000));
    assert_refusal(code, &future, 504, "Timeout");
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge", "{future}");
    client.refused("GET", &format!("{MAPS}?resourceVersionMatch=Exact"), &json!({}), 422, "Invalid");
}

fn a_status(client: &Client<'_>) {
    let name = unique();
    let services = "/api/v1/namespaces/default/services";
    let ingress = |ip: &str| json!({ "loadBalancer": { "ingress": [{ "ip": ip }] } });
    let address = |service: &Value| service["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    let service = json!({
        "metadata": { "name": name }, "status": ingress("192.0.2.1"),
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }] },
    });
    let mut made = client.must("POST", services, &service);
    assert_eq!(address(&made), Value::Null, "{made}");
    let path = format!("{services}/{name}");

    made["status"] = ingress("192.0.2.2");
    made["spec"]["ports"][0]["port"] = json!(81);
    let told = client.must("PUT", &format!("{path}/status"), &made);
    assert_eq!((address(&told), &told["spec"]["ports"][0]["port"]), (json!("192.0.2.2"), &json!(80)));
    assert_eq!(address(&client.get(&format!("{path}/status")).1), "192.0.2.2");

    let mut changed = told.clone();
    changed["status"] = ingress("192.0.2.3");
    changed["spec"]["ports"][0]["port"] = json!(82);
    let changed = client.must("PUT", &path, &changed);
    assert_eq!((address(&changed), &changed["spec"]["ports"][0]["port"]), (json!("192.0.2.2"), &json!(82)));
    client.refused("PUT", &format!("{path}/status"), &told, 409, "Conflict");

    let node = unique();
    let status = json!({ "addresses": [{ "type": "InternalIP", "address": "192.0.2.9" }] });
    let node = json!({ "metadata": { "name": node }, "status": status });
    let node = client.must("POST", "/api/v1/nodes", &node);
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.9");
}

fn services_are_selected(client: &Client<'_>) {
    let test = unique();
    let services = "/api/v1/namespaces/default/services";
    for (kind, address) in [("ClusterIP", None), ("ClusterIP", Some("None")), ("NodePort", None)] {
        let mut service = json!({
            "metadata": { "name": unique(), "labels": { "test": test, "is": address.unwrap_or(kind) } },
            "spec": { "type": kind, "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }] },
        });
        if let Some(address) = address {
            service["spec"]["clusterIP"] = json!(address);
        }
        client.must("POST", services, &service);
    }
    for (fields, expected) in [
        ("spec.clusterIP%21%3DNone", vec!["ClusterIP", "NodePort"]),
        ("spec.clusterIP%3DNone", vec!["None"]),
        ("spec.type%3DNodePort", vec!["NodePort"]),
        ("spec.type%21%3DNodePort", vec!["ClusterIP", "None"]),
    ] {
        let list = client.get(&format!("{services}?fieldSelector={fields}{}", of_test(&test))).1;
        let items = list["items"].as_array().unwrap().iter();
        let mut found: Vec<&str> =
            items.map(|item| item["metadata"]["labels"]["is"].as_str().unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{fields}");
    }
}

fn namespaces_are_apart(client: &Client<'_>) {
    let (name, other) = (unique(), unique());
    client.must("POST", "/api/v1/namespaces", &json!({ "metadata": { "name": other } }));
    assert_eq!(client.get(&format!("/api/v1/namespaces/{other}")).0, 200);
    let elsewhere = format!("/api/v1/namespaces/{other}/configmaps");
    client.must("POST", MAPS, &map(&name, &name, "1"));
    client.must("POST", &elsewhere, &map(&name, &name, "2"));
    let list = |path: &str| {
        let list = client.get(&format!("{path}?{}", of_test(&name))).1;
        list["items"].as_array().unwrap().iter().map(|item| item["data"]["a"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(list(MAPS), ["1"]);
    assert_eq!(list(&elsewhere), ["2"]);
    assert_eq!(list("/api/v1/configmaps"), ["1", "2"]);
    let mut wrong = map(&unique(), &name, "3");
    wrong["metadata"]["namespace"] = json!(other);
    client.refused("POST", MAPS, &wrong, 400, "BadRequest");
}

fn requests_without_sense(client: &Client<'_>) {
    let name = unique();
    let good = map(&name, &name, "1");
    for path in ["/api/v1/namespaces/default/widgets", "/apis/example.org/v1/widgets", "/api/v9/services"] {
        assert_eq!(client.get(path).0, 404, "{path}");
    }
    client.refused("PUT", MAPS, &good, 405, "MethodNotAllowed");
    client.refused("POST", &map_path(&name), &good, 405, "MethodNotAllowed");
    client.refused("POST", "/api/v1/configmaps", &good, 405, "MethodNotAllowed");
    assert_eq!(client.raw("POST", MAPS, "application/json", "{").0, 400);
    assert_eq!(client.raw("POST", MAPS, "text/plain", &good.to_string()).0, 415);
    let mut other = good.clone();
    other["kind"] = json!("Secret");
    client.refused("POST", MAPS, &other, 400, "BadRequest");
    assert_eq!(client.get("/readyz").0, 200);
    assert_eq!(client.get("/version").1["major"], "1");
}
