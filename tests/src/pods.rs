//! Pods: containers under containerd, and bare network namespaces that the plugin is called for by hand.

use std::net::IpAddr;

use serde_json::Value;

use crate::cluster::said;
use crate::{Check, Cluster, Place, Server};

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Name; also its container id.
    pub name: String,
    /// Node.
    pub node: String,
    /// Path of its network namespace on the node.
    pub netns: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// MTU of its interface, bytes.
    pub mtu: usize,
}

impl Pod {
    /// Its server at every one of its addresses.
    pub fn servers(&self) -> Vec<Server> {
        self.addresses.iter().map(|&address| Server { name: self.name.clone(), address }).collect()
    }

    /// Its address of the same family as `other`.
    #[track_caller]
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        *self.addresses.iter().find(|a| a.is_ipv4() == other.is_ipv4()).expect("an address of that family")
    }
}

/// Calls the plugin as a runtime does: `$1` command, `$2` container, `$3` interface.
const CALL: &str = r#"set -eu
list=/etc/cni/net.d/05-homelab.conflist
jq '.plugins[0] + {cniVersion, name}' "$list" |
  CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/homelab
"#;

impl Cluster {
    /// Calls the plugin for a network namespace of this name; gives its exit code and output.
    pub fn cni(&self, node: &str, command: &str, name: &str) -> homelab_lab::Output {
        self.lab.exec(node, &["sh", "-c", CALL, "sh", command, name]).expect("a shell starts")
    }

    /// A bare network namespace with the plugin's interface in it, and a server.
    #[track_caller]
    pub fn pod(&mut self, node: &str, name: &str) -> Pod {
        self.sh(node, &format!("ip netns add {name} && ip -n {name} link set lo up"));
        let output = self.cni(node, "ADD", name);
        assert!(output.success(), "CNI ADD on {node}: {}", said(&output));
        self.adopt(node, name, format!("/run/netns/{name}"))
    }

    /// Takes a bare pod away again, with all that runs in it.
    #[track_caller]
    pub fn remove_pod(&mut self, pod: &Pod) {
        let output = self.cni(&pod.node, "DEL", &pod.name);
        assert!(output.success(), "CNI DEL on {}: {}", pod.node, said(&output));
        let name = &pod.name;
        self.sh(
            &pod.node,
            &format!("ip netns pids {name} | xargs --no-run-if-empty kill; ip netns delete {name}"),
        );
    }

    /// One bare pod on every node: `pod1` on the first and so on.
    #[track_caller]
    pub fn pods(&mut self) -> Vec<Pod> {
        let nodes = self.nodes();
        nodes.iter().enumerate().map(|(i, node)| self.pod(node, &format!("pod{}", i + 1))).collect()
    }

    /// A container that containerd runs and that gets its network by the runtime's CNI configuration.
    #[track_caller]
    pub fn container(&mut self, node: &str, name: &str) -> Pod {
        let image = self.lab.containerd(node).expect("containerd starts");
        self.sh(node, &format!("ctr run --detach --cni {image} {name}"));
        let pid = self.sh(node, &format!("ctr task ls | awk '$1 == \"{name}\" {{ print $2 }}'"));
        assert!(!pid.is_empty(), "{name} does not run on {node}");
        self.adopt(node, name, format!("/proc/{pid}/ns/net"))
    }

    /// Reads a new pod's addresses and starts its server.
    #[track_caller]
    pub(crate) fn adopt(&mut self, node: &str, name: &str, netns: String) -> Pod {
        let text = self.sh(node, &format!("nsenter --net={netns} ip -json address show dev eth0"));
        let json: Value = serde_json::from_str(&text).expect("ip prints JSON");
        let mut addresses: Vec<IpAddr> = json[0]["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|a| a["scope"] == "global")
            .filter_map(|a| a["local"].as_str()?.parse().ok())
            .collect();
        addresses.sort();
        assert!(!addresses.is_empty(), "{name} on {node} has no address: {text}");
        let mtu = json[0]["mtu"].as_u64().and_then(|m| usize::try_from(m).ok()).unwrap_or_default();
        let pod = Pod { name: name.to_owned(), node: node.to_owned(), netns, addresses, mtu };
        self.serve(&Place::from(&pod));
        pod
    }

    /// Asserts that all pods reach each other by ping, TCP and UDP, each seen under its own address.
    #[track_caller]
    pub fn assert_mesh(&self, pods: &[Pod]) {
        self.assert_traffic(&mesh(pods));
    }

    /// Asserts the same where packets get lost: every way works at one of its attempts.
    #[track_caller]
    pub fn assert_mesh_despite_loss(&self, pods: &[Pod], limit: std::time::Duration) {
        self.assert_traffic_despite_loss(&mesh(pods), limit);
    }

    /// How long until all pods reach each other, tried again and again for `limit`.
    #[track_caller]
    pub fn mesh_within(&self, pods: &[Pod], limit: std::time::Duration) -> std::time::Duration {
        let start = std::time::Instant::now();
        loop {
            let wrong = self.wrong(&mesh(pods));
            if wrong.is_empty() {
                return start.elapsed();
            }
            assert!(start.elapsed() < limit, "after {limit:?}:\n{}", wrong.join("\n"));
        }
    }
}

/// Every ordered pair.
fn mesh(pods: &[Pod]) -> Vec<(Place, Vec<Check>)> {
    let from_one = |pod: &Pod| {
        let others = pods.iter().filter(|other| other.name != pod.name);
        let checks = others.flat_map(Pod::servers).flat_map(|server| Check::all(&server));
        checks
            .map(|check| {
                let source = pod.address_like(check.to.address);
                check.source(source)
            })
            .collect()
    };
    pods.iter().map(|pod| (Place::from(pod), from_one(pod))).collect()
}
