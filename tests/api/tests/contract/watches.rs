//! Watches and streaming lists.

use homelab_test_api::{Api, Resource};
use serde_json::json;

use crate::Contract;
use crate::client::{Client, MAPS, map, map_path, of_test, unique, version};

pub(crate) const CONTRACTS: &[Contract] = &[
    ("a_watch_goes_on_from_a_version", a_watch_goes_on),
    ("a_watch_from_zero_begins_with_what_there_is", |client| {
        begins_with_what_there_is(client, "&resourceVersion=0")
    }),
    ("a_watch_follows_its_selector", a_watch_follows_its_selector),
    ("a_watch_of_what_is_forgotten_has_expired", a_forgotten_version),
    ("a_watch_ends_after_its_time", a_watch_ends),
];

/// What an API server answers whose etcd says how far it is.
pub(crate) const NEWEST: &[Contract] = &[
    ("a_streaming_list_says_where_it_ends", a_streaming_list),
    ("a_watch_without_a_version_begins_with_what_there_is", |client| begins_with_what_there_is(client, "")),
];

fn a_watch_goes_on(client: &Client<'_>) {
    let test = unique();
    let (a, b) = (format!("{test}-a"), format!("{test}-b"));
    let first = client.must("POST", MAPS, &map(&a, &test, "1"));
    client.must("POST", MAPS, &map(&b, &test, "1"));
    let watch = client.watch(MAPS, &format!("&resourceVersion={}{}", version(&first), of_test(&test)));
    let added = watch.expect("ADDED", &b);
    assert_eq!((&added["kind"], &added["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    let written = client.must("PUT", &map_path(&a), &map(&a, &test, "2"));
    client.must("DELETE", &map_path(&b), &json!({}));
    let modified = watch.expect("MODIFIED", &a);
    assert_eq!((version(&modified), &modified["data"]["a"]), (version(&written), &json!("2")));
    let deleted = watch.expect("DELETED", &b);
    assert_eq!(deleted["data"]["a"], "1");
    assert!(version(&deleted) > version(&modified));
    // Who reads again from the middle is told the same.
    let again = client.watch(MAPS, &format!("&resourceVersion={}{}", version(&added), of_test(&test)));
    assert_eq!(version(&again.expect("MODIFIED", &a)), version(&modified));
    assert_eq!(version(&again.expect("DELETED", &b)), version(&deleted));
}

fn begins_with_what_there_is(client: &Client<'_>, query: &str) {
    let test = unique();
    let (a, b) = (format!("{test}-a"), format!("{test}-b"));
    client.must("POST", MAPS, &map(&a, &test, "1"));
    let watch = client.watch(MAPS, &format!("{query}{}", of_test(&test)));
    watch.expect("ADDED", &a);
    client.must("POST", MAPS, &map(&b, &test, "1"));
    watch.expect("ADDED", &b);
}

fn a_watch_follows_its_selector(client: &Client<'_>) {
    let (test, other) = (unique(), unique());
    let first = client.must("POST", MAPS, &map(&test, &test, "1"));
    let from = format!("&resourceVersion={}", version(&first));
    let watch = client.watch(MAPS, &format!("{from}{}", of_test(&test)));
    let by_name = client.watch(MAPS, &format!("{from}&fieldSelector=metadata.name%3D{test}"));
    let away = client.must("PUT", &map_path(&test), &map(&test, &other, "2"));
    let gone = watch.expect("DELETED", &test);
    // As it was when it still matched, at the version of the change.
    assert_eq!((version(&gone), &gone["data"]["a"]), (version(&away), &json!("1")));
    client.must("PUT", &map_path(&test), &map(&test, &other, "3"));
    client.must("PUT", &map_path(&test), &map(&test, &test, "4"));
    let back = watch.expect("ADDED", &test);
    assert_eq!(back["data"]["a"], "4");
    for value in ["2", "3", "4"] {
        assert_eq!(by_name.expect("MODIFIED", &test)["data"]["a"], value);
    }
}

fn a_streaming_list(client: &Client<'_>) {
    let asked = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for newest in [false, true] {
        let test = unique();
        let (a, b) = (format!("{test}-a"), format!("{test}-b"));
        let first = client.must("POST", MAPS, &map(&a, &test, "1"));
        let from = if newest { String::new() } else { format!("&resourceVersion={}", version(&first)) };
        let watch = client.watch(MAPS, &format!("{asked}{from}{}", of_test(&test)));
        watch.expect("ADDED", &a);
        let (kind, end) = watch.next();
        let typed = json!({ "kind": end["kind"], "apiVersion": end["apiVersion"], "type": kind });
        assert_eq!(typed, json!({ "kind": "ConfigMap", "apiVersion": "v1", "type": "BOOKMARK" }));
        assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true", "{end}");
        assert!(version(&end) >= version(&first));
        client.must("POST", MAPS, &map(&b, &test, "1"));
        watch.expect("ADDED", &b);
        // From that bookmark on nothing is missed and nothing comes twice.
        let after = client.watch(MAPS, &format!("&resourceVersion={}{}", version(&end), of_test(&test)));
        after.expect("ADDED", &b);
    }
    for query in ["watch=1&sendInitialEvents=true", "sendInitialEvents=true"] {
        client.refused("GET", &format!("{MAPS}?{query}"), &json!({}), 422, "Invalid");
    }
}

fn a_forgotten_version(client: &Client<'_>) {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = |name: &str| json!({ "metadata": { "name": name } });
    let (a, b, c) = (unique(), unique(), unique());
    let first = client.must("POST", leases, &lease(&a));
    let open = client.watch(leases, &format!("&resourceVersion={}", version(&first)));
    let second = client.must("POST", leases, &lease(&b));
    open.expect("ADDED", &b);
    client.compact(version(&second));
    let late = client.watch(leases, &format!("&resourceVersion={}", version(&first) - 1));
    let (kind, status) = late.next();
    assert_eq!(kind, "ERROR", "{status}");
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")), "{status}");
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")), "{status}");
    late.ends();
    // Who is up to date notices nothing.
    client.must("POST", leases, &lease(&c));
    open.expect("ADDED", &c);
}

fn a_watch_ends(client: &Client<'_>) {
    let test = unique();
    let first = client.must("POST", MAPS, &map(&test, &test, "1"));
    let from = format!("&resourceVersion={}", version(&first));
    client.watch(MAPS, &format!("&timeoutSeconds=1{from}{}", of_test(&test))).ends();
}

/// Only where they can be asked for: the real server sends them once a minute.
pub(crate) fn bookmarks_come_when_told() {
    let api = Api::start("127.0.0.1:0").unwrap();
    let client = Client::of(&api);
    let first = client.must("POST", MAPS, &map("a", "a", "1"));
    let from = format!("&resourceVersion={}", version(&first));
    let asked = client.watch(MAPS, &format!("{from}&allowWatchBookmarks=true"));
    let silent = client.watch(MAPS, &from);
    // Both are there before bookmarks are sent.
    let second = client.must("POST", MAPS, &map("b", "a", "1"));
    asked.expect("ADDED", "b");
    silent.expect("ADDED", "b");
    let node = api.create(&Resource::NODES, json!({ "metadata": { "name": "node1" } })).unwrap();
    api.send_bookmarks();
    let (kind, bookmark) = asked.next();
    // What happens to other resources counts, and is what bookmarks are for.
    assert_eq!((kind.as_str(), version(&bookmark)), ("BOOKMARK", version(&node)));
    assert!(version(&bookmark) > version(&second));
    assert_eq!(bookmark["metadata"]["annotations"], json!(null));
    client.must("POST", MAPS, &map("c", "a", "1"));
    asked.expect("ADDED", "c");
    silent.expect("ADDED", "c");
}
