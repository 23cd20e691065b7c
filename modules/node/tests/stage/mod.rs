//! A node with a LAN and a machine beside it, and the ruleset for ports of the node that the agent would load.
#![allow(dead_code, reason = "every test program uses another part")]

use serde_json::{Value, json};

#[allow(unused_imports, reason = "every test program uses another part")]
pub(crate) use crate::pods::ruleset::{elements, load, load_of, spec};
use crate::pods::talk::tcp;
use crate::pods::{Answer, Node, Pod, addresses, on_a_node, ruleset, run};

pub(crate) const NODE: &str = "192.168.7.1";
pub(crate) const NODE6: &str = "fd07::1";
pub(crate) const OTHER: &str = "192.168.7.9";
pub(crate) const CLIENT: &str = "192.168.7.2";
pub(crate) const CLIENT6: &str = "fd07::2";

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
        ruleset::conf(self.node, mappings)
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

/// Nothing of any pod is left, not in the ruleset and not on the disk.
pub(crate) fn assert_clean(stage: &Stage<'_>) {
    assert_eq!(elements(), 0, "{}", run("nft list table inet homelab-hostport"));
    assert_eq!(stage.node.entries(), Vec::<String>::new());
}

pub(crate) fn said(name: &str, from: &str) -> Option<String> {
    Some(format!("{name} {from}"))
}
