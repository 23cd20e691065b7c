//! A node with a LAN and a machine beside it, and the ruleset for ports of the node that the agent would load.
#![allow(dead_code, reason = "every test program uses another part")]

#[path = "../../../../tests/fixtures/mod.rs"]
pub(crate) mod fixtures;

use std::io::Write;
use std::process::Stdio;

use homelab_linux::nft::{Tables, script};
use homelab_model::{Change, NodeObject, NodeSpec, Spec};
use serde_json::{Value, json};

use crate::pods::talk::tcp;
use crate::pods::{Answer, Node, Pod, addresses, on_a_node, run};

pub(crate) const NODE: &str = "192.168.7.1";
pub(crate) const NODE6: &str = "fd07::1";
pub(crate) const OTHER: &str = "192.168.7.9";
pub(crate) const CLIENT: &str = "192.168.7.2";
pub(crate) const CLIENT6: &str = "fd07::2";

pub(crate) fn spec() -> NodeSpec {
    fixtures::spec(true)
}

/// The plugin's tables, as the agent loads them.
pub(crate) fn load() {
    load_of(homelab_cni::objects(&spec()));
}

/// The rules among these objects.
pub(crate) fn load_of(objects: Vec<NodeObject>) {
    let is_nft = |object: &NodeObject| matches!(object.spec, Spec::NftTable(_) | Spec::NftChain(_));
    let changes: Vec<Change<NodeObject>> =
        objects.into_iter().filter(is_nft).map(|after| Change::Create { after }).collect();
    let script = script(&changes.iter().collect::<Vec<_>>(), &Tables::new()).expect("script");
    assert!(script.by_netlink.is_empty(), "{:?}", script.by_netlink);
    // The redirects' table is the tunnel's, too.
    let text = format!("add table inet homelab\n{}", script.text);
    let mut nft =
        std::process::Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
    assert!(nft.wait().expect("nft").success(), "{text}");
}

pub(crate) struct Stage<'a> {
    pub(crate) node: &'a Node,
    pub(crate) client: Pod,
}

pub(crate) fn on_a_stage(work: impl FnOnce(&Stage<'_>) + Send) {
    on_a_node(|node| {
        load();
        let client = Pod::new("client");
        run(&format!("ip link add lan type veth peer name eth0 netns {}", client.path().display()));
        for address in [NODE, OTHER] {
            run(&format!("ip addr add {address}/24 dev lan"));
        }
        run(&format!("ip -6 addr add {NODE6}/64 dev lan nodad && ip link set lan up"));
        client.run(&format!("ip addr add {CLIENT}/24 dev eth0"));
        client.run(&format!("ip -6 addr add {CLIENT6}/64 dev eth0 nodad"));
        client.run("ip link set eth0 up");
        client.run("ip link set lo up");
        client.run(&format!("ip route add default via {NODE}"));
        client.run(&format!("ip -6 route add default via {NODE6}"));
        run("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        work(&Stage { node, client });
    });
}

impl Stage<'_> {
    pub(crate) fn conf(&self, mappings: &Value) -> Value {
        let spec = spec();
        let mut conf = self.node.conf("1.1.0");
        conf["bridgeMac"] = json!(homelab_cni::bridge_mac(&spec.cluster, &spec.node));
        conf["ranges"] = json!(spec.pod_cidrs);
        conf["capabilities"] = json!({ "portMappings": true, "bandwidth": true });
        conf["runtimeConfig"] = json!({ "portMappings": mappings });
        conf
    }

    pub(crate) fn try_add(&self, pod: &Pod, mappings: &Value) -> Answer {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=home;K8S_POD_NAME={}", pod.id);
        self.node.call_with("ADD", pod, &self.conf(mappings), &[("CNI_ARGS", &args)])
    }

    /// The pod's addresses.
    pub(crate) fn add(&self, pod: &Pod, mappings: &Value) -> Vec<String> {
        addresses(&self.try_add(pod, mappings).ok())
    }

    /// As runtimes call it whose state is lost: without the ports.
    pub(crate) fn del(&self, pod: &Pod) {
        self.node.call("DEL", pod, &self.node.conf("1.1.0")).ok();
    }

    /// What the LAN sees of a port by TCP.
    pub(crate) fn lan(&self, to: &str) -> Option<String> {
        tcp(Some(&self.client), to, true)
    }

    pub(crate) fn silent(&self, to: &str) {
        let said = tcp(Some(&self.client), to, false);
        assert_eq!(said, None, "{to}");
    }
}

pub(crate) fn web(host: u16, extra: Value) -> Value {
    let mut mapping = json!({ "hostPort": host, "containerPort": 80, "protocol": "tcp" });
    if let (Some(mapping), Value::Object(extra)) = (mapping.as_object_mut(), extra) {
        mapping.extend(extra);
    }
    json!([mapping])
}

/// Elements of the table's sets.
pub(crate) fn elements() -> usize {
    let text = run("nft -j list table inet homelab-hostport");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let items = json["nftables"].as_array().expect("list");
    let of = |item: &Value| {
        ["set", "map"].iter().find_map(|kind| item[kind]["elem"].as_array().map(Vec::len)).unwrap_or(0)
    };
    items.iter().map(of).sum()
}

/// Nothing of any pod is left, not in the ruleset and not on the disk.
pub(crate) fn assert_clean(stage: &Stage<'_>) {
    assert_eq!(elements(), 0, "{}", run("nft list table inet homelab-hostport"));
    assert_eq!(stage.node.entries(), Vec::<String>::new());
}

pub(crate) fn said(name: &str, from: &str) -> Option<String> {
    Some(format!("{name} {from}"))
}
