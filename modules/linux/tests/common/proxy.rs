//! The proxy's sets, through the `nft` command.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element};
use homelab_linux::nft::rules;
use homelab_linux::{Node, Root};
use homelab_model::service::Service;
use homelab_model::{Change, Module, NodeObject};
use homelab_proxy::bytes::Bytes;
use homelab_proxy::delta::Delta;
use homelab_proxy::{Elements, NodeView, ruleset, text};

use super::{load, run};

/// Name of the table in tests.
pub(crate) const TABLE: &str = "homelab";

/// Loads the ruleset and more text for nft, in the caller's network namespace: the way of a node, nft first and then
/// netlink.
pub(crate) fn load_ruleset(view: &NodeView, more: &str) {
    load(&format!("{}{more}", text::for_nft("homelab", view)));
    rules::append(&mut Socket::netfilter().unwrap(), "homelab", &text::for_netlink(view)).unwrap();
}

/// A file for nft with all elements.
pub(crate) fn elements_text(elements: &Elements) -> String {
    let mut by_set: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (service, elements) in elements {
        for element in elements {
            by_set.entry(element.set().name(element.is_ipv4())).or_default().push(element.to_nft(service));
        }
    }
    let add = |(set, elements): (&String, &Vec<String>)| {
        format!("add element inet homelab {set} {{ {} }}\n", elements.join(", "))
    };
    by_set.iter().map(add).collect()
}

/// A transaction for nft that makes a difference.
pub(crate) fn delta_text(delta: &Delta<'_>) -> String {
    let mut text = String::new();
    for (_, element) in &delta.delete {
        let set = element.set().name(element.is_ipv4());
        text += &format!("delete element inet homelab {set} {{ {} }}\n", element.key());
    }
    for (service, element) in &delta.add {
        let set = element.set().name(element.is_ipv4());
        text += &format!("add element inet homelab {set} {{ {} }}\n", element.to_nft(service));
    }
    text
}

/// Carries out the difference between two states as one batch.
pub(crate) fn change(table: &str, before: &Elements, after: &Elements) {
    let raw = |service: &str, element: &homelab_proxy::element::Element| {
        let Bytes { key, key_end, data } = Bytes::from(element);
        Element { key, key_end, data, comment: service.to_owned(), expires: None }
    };
    let change = homelab_proxy::delta::delta(before, after);
    let mut batch = Batch::new(table);
    for (service, element) in &change.delete {
        batch.delete(&element.set().name(element.is_ipv4()), &raw(service, element)).unwrap();
    }
    for (service, element) in &change.add {
        batch.add(&element.set().name(element.is_ipv4()), &raw(service, element)).unwrap();
    }
    if !batch.is_empty() {
        batch.commit(&mut Socket::netfilter().unwrap()).unwrap();
    }
}

/// What the sets of the table hold, comments too, by set.
pub(crate) fn held() -> BTreeMap<String, BTreeSet<String>> {
    let listing = run("nft --numeric list table inet homelab");
    let mut held: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for block in listing.split("\n\t}\n") {
        let Some(name) = block.lines().find_map(|l| l.strip_prefix("\tset ").or(l.strip_prefix("\tmap ")))
        else {
            continue;
        };
        let elements = block.split_once("elements = {").map_or("", |(_, elements)| elements);
        let elements = elements.trim_end().trim_end_matches('}').split(',').map(str::trim).map(str::to_owned);
        held.insert(name.to_owned(), elements.filter(|element| !element.is_empty()).collect());
    }
    held
}

/// A node of pod network 10.244.0.0/16 and fd00:10:244::/48.
pub(crate) fn view() -> NodeView {
    NodeView {
        name: "node1".to_owned(),
        addresses: vec!["192.168.50.11".parse().unwrap(), "fd00:50::11".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..NodeView::default()
    }
}

pub(crate) fn node(directory: &tempfile::TempDir) -> Node {
    Node::open(Root::at(directory.path())).unwrap()
}

/// A node with the empty ruleset of [`view`], in the caller's network namespace.
pub(crate) fn with_ruleset(directory: &tempfile::TempDir) -> Node {
    let mut node = node(directory);
    let create = |spec| Change::Create { after: NodeObject { module: Module::Proxy, spec } };
    let changes: Vec<_> = ruleset(&view()).into_iter().map(create).collect();
    node.apply_all(&changes, &mut |_| {}).unwrap();
    node
}

/// A service of one port, 80 or for UDP 53, with endpoints `address:port`, all on another node.
pub(crate) fn service(name: &str, protocol: &str, addresses: &[&str], endpoints: &[&str]) -> Service {
    let endpoint = |endpoint: &&str| {
        let at: SocketAddr = endpoint.parse().unwrap();
        serde_json::json!({ "address": at.ip(), "node": "node2", "ports": { "": at.port() } })
    };
    let port = if protocol == "UDP" { 53 } else { 80 };
    serde_json::from_value(serde_json::json!({
        "namespace": "default", "name": name, "clusterIPs": addresses,
        "ports": [{ "protocol": protocol, "port": port }],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    }))
    .unwrap()
}
