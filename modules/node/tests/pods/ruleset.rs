//! The plugin's tables, as the agent loads them, and what is in them.

#[path = "../../../../tests/fixtures/mod.rs"]
pub(crate) mod fixtures;

use std::io::Write;
use std::process::{Command, Stdio};

use homelab_linux::nft::{Tables, script};
use homelab_model::{Change, NodeObject, NodeSpec, Spec};
use serde_json::{Value, json};

use super::{Node, run};

/// A node of both families.
pub(crate) fn spec() -> NodeSpec {
    fixtures::spec(true)
}

/// Loads the tables.
pub(crate) fn load() {
    load_of(homelab_cni::objects(&spec()));
}

/// Loads the rules among these objects.
pub(crate) fn load_of(objects: Vec<NodeObject>) {
    let is_nft = |object: &NodeObject| matches!(object.spec, Spec::NftTable(_) | Spec::NftChain(_));
    let changes: Vec<Change<NodeObject>> =
        objects.into_iter().filter(is_nft).map(|after| Change::Create { after }).collect();
    let script = script(&changes.iter().collect::<Vec<_>>(), &Tables::new()).expect("script");
    assert!(script.by_netlink.is_empty(), "{:?}", script.by_netlink);
    // The redirects' table is the tunnel's, too.
    let text = format!("add table inet homelab\n{}", script.text);
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
    assert!(nft.wait().expect("nft").success(), "{text}");
}

/// A configuration that fits them.
pub(crate) fn conf(node: &Node, mappings: &Value) -> Value {
    let spec = spec();
    let mut conf = node.conf("1.1.0");
    conf["bridgeMac"] = json!(homelab_cni::bridge_mac(&spec.cluster, &spec.node));
    conf["ranges"] = json!(spec.pod_cidrs);
    conf["capabilities"] = json!({ "portMappings": true, "bandwidth": true });
    conf["runtimeConfig"] = json!({ "portMappings": mappings });
    conf
}

/// How many elements the sets of host ports have.
pub(crate) fn elements() -> usize {
    elements_of("table inet homelab-hostport")
}

/// How many elements a set has, or the sets of a table: `set bridge homelab x`.
pub(crate) fn elements_of(what: &str) -> usize {
    let json: Value = serde_json::from_str(&run(&format!("nft -j list {what}"))).expect("JSON");
    let items = json["nftables"].as_array().expect("list");
    let of = |item: &Value| {
        ["set", "map"].iter().find_map(|kind| item[kind]["elem"].as_array().map(Vec::len)).unwrap_or(0)
    };
    items.iter().map(of).sum()
}
