//! MetalLB's resources as a cluster has them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::TcpListener;

use homelab_kube::metallb;
use homelab_kubernetes::metallb::{Resources, meaning};
use homelab_model::SpeakerSpec;
use homelab_test_api::{Api, Resource};
use kube::{Client, Config};
use serde_json::json;

const POOLS: Resource = Resource {
    group: "metallb.io",
    version: "v1beta1",
    plural: "ipaddresspools",
    kind: "IPAddressPool",
    namespaced: true,
    status: false,
    fields: &[],
};
const L2: Resource = Resource { plural: "l2advertisements", kind: "L2Advertisement", ..POOLS };

fn client(api: &Api) -> Client {
    let mut config = Config::new(format!("http://{}", api.address()).parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn a_cluster_without_metallb_has_none_of_its_resources() {
    let api = Api::start("127.0.0.1:0").unwrap();
    assert_eq!(metallb(&client(&api)).await.unwrap().resources, Resources::default());
}

#[tokio::test]
async fn what_is_there_is_read_also_where_other_kinds_are_missing() {
    let api = Api::with(TcpListener::bind("127.0.0.1:0").unwrap(), &[POOLS, L2]).unwrap();
    let create = |resource: &Resource, name: &str, spec: serde_json::Value| {
        let metadata = json!({ "name": name, "namespace": "metallb-system" });
        api.create(resource, json!({ "metadata": metadata, "spec": spec })).unwrap();
    };
    let to = json!({ "namespaceSelectors": [{ "matchLabels": { "tier": "front" } }] });
    create(&POOLS, "lan", json!({ "addresses": ["192.168.50.200/30"], "serviceAllocation": to }));
    create(&POOLS, "odd", json!({ "addresses": "192.168.60.0/24" }));
    create(&L2, "all", json!({}));
    let namespace = json!({ "metadata": { "name": "web", "labels": { "tier": "front" } } });
    api.create(&Resource::NAMESPACES, namespace).unwrap();
    let read = metallb(&client(&api)).await.unwrap();
    let notes: Vec<&str> = read.notes.iter().map(|note| note.resource.as_str()).collect();
    assert_eq!(notes, ["ipaddresspools odd"]);
    let meaning = meaning(&read.resources, &SpeakerSpec::default(), &read.namespaces);
    assert_eq!(meaning.pools[0].service_allocation.as_ref().unwrap().namespaces, ["web"]);
    assert_eq!(meaning.l2_advertisements[0].ip_address_pools, ["lan"]);
}
