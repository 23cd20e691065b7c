//! Peers of the tunnel by the Nodes of Kubernetes, with the agent and a kernel of its own, beside machines whose tunnels are
//! set up as flannel's backend vxlan does it (pkg/backend/vxlan: newVXLANDevice, Configure, AddARP, AddFDB, RouteReplace).
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use std::net::TcpListener;

use homelab_model::{KubernetesSpec, NodeSpec, NodesFrom, stable_mac};
use homelab_test_api::{Api, Resource};
use pods::agent::{ADDRESS, Agent, again, eventually, spec};
use pods::{Pod, on_a_node, run};
use serde_json::{Value, json};

const PREFIX: &str = "flannel.alpha.coreos.com/";

/// A machine on the LAN with a tunnel that homelab did not make, and a pod on it.
struct Machine {
    ns: Pod,
    pod: Pod,
    device: &'static str,
    number: u8,
}

impl Machine {
    /// `192.168.7.N`, pods `10.244.N.0/24`.
    fn new(number: u8, device: &'static str, mac: &str) -> Machine {
        let ns = Pod::new(&format!("machine{number}"));
        let pod = Pod::new(&format!("pod{number}"));
        run(&format!("ip link add lan{number} type veth peer name eth0 netns {}", ns.path().display()));
        run(&format!("ip link set lan{number} master lan up"));
        let machine = Machine { ns, pod, device, number };
        machine.ns.run(&format!("ip addr add 192.168.7.{number}/24 dev eth0"));
        machine.ns.run("ip link set eth0 up");
        machine.ns.run("ip link set lo up");
        machine.ns.run("sysctl -q -w net.ipv4.ip_forward=1");
        machine.tunnel(mac);
        machine.ns.run(&format!(
            "ip link add cni0 type veth peer name eth0 netns {}",
            machine.pod.path().display()
        ));
        machine.ns.run(&format!("ip addr add 10.244.{number}.1/24 dev cni0"));
        machine.ns.run("ip link set cni0 up");
        machine.pod.run(&format!("ip addr add 10.244.{number}.5/24 dev eth0"));
        machine.pod.run("ip link set eth0 up");
        machine.pod.run(&format!("ip route add default via 10.244.{number}.1"));
        machine
    }

    /// Makes the tunnel, or makes it anew.
    fn tunnel(&self, mac: &str) {
        let (device, number) = (self.device, self.number);
        let _ = self.ns.can(&format!("ip link del {device} 2>/dev/null"));
        self.ns.run(&format!(
            "ip link add {device} address {mac} type vxlan id 1 dev eth0 local 192.168.7.{number} dstport 8472 nolearning"
        ));
        self.ns.run(&format!("ip link set {device} mtu 1450"));
        self.ns.run(&format!("sysctl -q -w net/ipv6/conf/{device}/accept_ra=0"));
        self.ns.run(&format!("ip addr add 10.244.{number}.0/32 dev {device}"));
        self.ns.run(&format!("ip link set {device} up"));
    }

    /// What flannel does for a lease of another node.
    fn add(&self, range: &str, public_ip: &str, mac: &str) {
        let device = self.device;
        let hop = range.split('/').next().expect("range");
        self.ns.run(&format!("ip neigh replace {hop} lladdr {mac} dev {device} nud permanent"));
        self.ns.run(&format!("bridge fdb replace {mac} dev {device} self permanent dst {public_ip}"));
        self.ns.run(&format!("ip route replace {range} via {hop} dev {device} onlink"));
    }
}

fn node(name: &str, number: u8, range: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": format!("192.168.7.{number}") }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// What flannel writes on a Node.
fn flannel(mut node: Value, public_ip: &str, vni: u32, mac: &str) -> Value {
    let data = format!("{{\"VNI\":{vni},\"VtepMAC\":\"{mac}\"}}");
    node["metadata"]["annotations"] = json!({
        format!("{PREFIX}backend-type"): "vxlan", format!("{PREFIX}backend-data"): data,
        format!("{PREFIX}public-ip"): public_ip, format!("{PREFIX}kube-subnet-manager"): "true",
    });
    node
}

fn mac(node: &str) -> String {
    stable_mac(&["homelab", "vtep", "home", node])
}

/// What flannel on other machines reads of a Node: public IP and MAC address (nodeToLease, handleSubnetEvents).
fn lease(api: &Api, name: &str) -> Option<(String, String)> {
    let node = api.get(&Resource::NODES, None, name).ok()?;
    let text =
        |key: &str| node["metadata"]["annotations"][format!("{PREFIX}{key}")].as_str().map(str::to_owned);
    let data: Value = serde_json::from_str(&text("backend-data")?).expect("JSON");
    assert_eq!(text("kube-subnet-manager").as_deref(), Some("true"));
    assert_eq!((text("backend-type").as_deref(), &data["VNI"]), (Some("vxlan"), &json!(1)));
    Some((text("public-ip")?, data["VtepMAC"].as_str()?.to_owned()))
}

/// Whether the tunnel has all three entries of a peer.
fn leads_to(number: u8, mac: &str) -> bool {
    let has = |command: &str, all: &[&str]| {
        run(&format!("{command} 2>/dev/null || true"))
            .lines()
            .any(|line| all.iter().all(|word| line.contains(word)))
    };
    let (hop, range, address) =
        (format!("10.244.{number}.0 "), format!("10.244.{number}.0/24 "), format!("192.168.7.{number}"));
    has("ip neigh show dev homelab.1", &[&hop, mac, "PERMANENT"])
        && has("ip route", &[&range, "homelab.1", "onlink"])
        && has("bridge fdb show dev homelab.1", &[mac, &format!("dst {address}")])
}

/// Whether it has any.
fn knows(number: u8) -> bool {
    let all = run("ip neigh show dev homelab.1; ip route; bridge fdb show dev homelab.1 || true");
    all.contains(&format!("10.244.{number}.0")) || all.contains(&format!("dst 192.168.7.{number} "))
}

/// A pod here, 10.244.0.9.
fn pod_here() -> Pod {
    let pod = Pod::new("here");
    run(&format!("ip link add here type veth peer name eth0 netns {}", pod.path().display()));
    run("ip link set here master homelab0 up");
    pod.run("ip addr add 10.244.0.9/24 dev eth0");
    pod.run("ip link set eth0 up");
    pod.run("ip route add default via 10.244.0.1");
    pod
}

/// Pods of both machines reach each other, and the machines themselves the other's pod.
fn talk(here: &Pod, other: &Machine) {
    let number = other.number;
    let ping = |to: &str| format!("ping -c 1 -W 1 {to}");
    let there = format!("10.244.{number}.5");
    eventually("a pod here reaches one there", || here.can(&ping(&there)));
    eventually("a pod there reaches one here", || other.pod.can(&ping("10.244.0.9")));
    eventually("this machine reaches a pod there", || Pod::can_here(&ping(&there)));
    eventually("that machine reaches a pod here", || other.ns.can(&ping("10.244.0.9")));
}

#[test]
fn nodes_of_the_api_are_peers_and_flannel_is_met() {
    on_a_node(|data| {
        run(&format!(
            "ip link add lan type bridge && ip addr add {ADDRESS}/24 dev lan && ip link set lan up"
        ));
        let api = Api::with(TcpListener::bind("127.0.0.1:0").expect("listener"), &[]).expect("API");
        let port = api.address().port();
        let told = spec(&format!("http://127.0.0.1:{port}"));
        let kubernetes =
            told.kubernetes.clone().map(|told| KubernetesSpec { nodes: NodesFrom::FromKubernetes, ..told });
        let told = NodeSpec { kubernetes, ..told };
        let flannels = "86:01:02:03:04:05";
        let two = Machine::new(2, "flannel.1", flannels);
        let node1 = || node("node1", 1, "10.244.0.0/24");
        let node2 = |mac: &str| flannel(node("node2", 2, "10.244.2.0/24"), "192.168.7.2", 1, mac);
        api.create(&Resource::NODES, node1()).expect("node");
        api.create(&Resource::NODES, node2(flannels)).expect("node");
        let agent = Agent::start(data, &told);
        eventually("the tunnel leads to flannel's node", || leads_to(2, flannels));
        // Flannel finds ours by what it reads of its Node.
        eventually("the annotations of our Node", || lease(&api, "node1").is_some());
        let (public_ip, own) = lease(&api, "node1").expect("lease");
        assert_eq!((public_ip.as_str(), own.clone()), (ADDRESS, mac("node1")));
        two.add("10.244.0.0/24", &public_ip, &own);
        eventually("the bridge", || Pod::can_here("ip link show homelab0 2>/dev/null"));
        let here = pod_here();
        talk(&here, &two);

        // A node that the file does not have, and that runs homelab. It is one also when it is not ready.
        let three = Machine::new(3, "homelab.1", &mac("node3"));
        three.add("10.244.0.0/24", ADDRESS, &own);
        let mut node3 = node("node3", 3, "10.244.3.0/24");
        api.create(&Resource::NODES, node3.clone()).expect("node");
        eventually("a new Node is a peer", || leads_to(3, &mac("node3")));
        talk(&here, &three);
        node3["status"]["conditions"][0]["status"] = json!("False");
        api.update(&Resource::NODES, node3.clone()).expect("node");

        // Flannel has made its link anew, with another MAC address.
        let flannels = "86:0a:0b:0c:0d:0e";
        two.tunnel(flannels);
        two.add("10.244.0.0/24", ADDRESS, &own);
        api.update(&Resource::NODES, node2(flannels)).expect("node");
        eventually("flannel's new MAC address", || leads_to(2, flannels));
        talk(&here, &two);
        assert!(leads_to(3, &mac("node3")) && !run("bridge fdb show dev homelab.1").contains("86:01"));

        // What no tunnel can be made of is said, and nothing else.
        let bad = [
            flannel(node("node4", 4, "10.244.4.0/24"), "192.168.7.4", 2, "86:00:00:00:00:04"),
            node("node5", 5, "0.0.0.0/0"),
            node("node6", 6, "10.244.3.128/25"),
        ];
        bad.iter().for_each(|node| drop(api.create(&Resource::NODES, node.clone()).expect("node")));
        let said = |words: &str| {
            agent.report().is_some_and(|report| report.errors.iter().any(|error| error.contains(words)))
        };
        eventually("it is said", || {
            said("Node node4: it runs flannel with VNI 2")
                && said("Node node5: its pod range 0.0.0.0/0")
                && said("Node node6: its pod range 10.244.3.128/25 is that of node3")
        });
        assert!(![4, 5, 6].iter().any(|number| knows(*number)));
        for name in ["node4", "node5", "node6"] {
            api.delete(&Resource::NODES, None, name).expect("node");
        }
        eventually("and no longer", || !said("Node node"));
        // Nobody plans to take away what the agent put there.
        let fact = agent.kubernetes().expect("fact");
        assert_eq!(fact.peers, ["node2 (flannel)", "node3"]);
        let status = agent.status();
        assert!(status.contains("peer     node3"), "{status}");
        let of_tunnel = |line: &&str| line.starts_with("differs") && line.contains("homelab.1");
        assert_eq!(status.lines().find(of_tunnel), None, "{status}");

        // No API: nothing changes, also for an agent that starts then on a machine that has just booted.
        drop(api);
        eventually("the agent sees that the API is gone", || !agent.connected());
        assert!(leads_to(2, flannels) && leads_to(3, &mac("node3")));
        drop(agent);
        run("ip link del homelab.1");
        let agent = Agent::start(data, &told);
        eventually("the peers that were known last", || leads_to(2, flannels) && leads_to(3, &mac("node3")));
        talk(&here, &two);

        // A control plane that was set up anew has no Nodes, and none of them is believed to be gone; once it has this one, its
        // list counts.
        let api = Api::with(again(port), &[]).expect("API");
        eventually("the new API is heard", || {
            agent.kubernetes().is_some_and(|fact| fact.connected && fact.nodes == 0)
        });
        assert!(leads_to(2, flannels) && leads_to(3, &mac("node3")));
        api.create(&Resource::NODES, node2(flannels)).expect("node");
        api.create(&Resource::NODES, node1()).expect("node");
        eventually("a Node that is gone is no peer", || !knows(3));
        assert!(leads_to(2, flannels));
        // That node moves to homelab, too: nobody needs the annotations any more.
        eventually("the annotations of our Node", || lease(&api, "node1").is_some());
        let moved = node("node2", 2, "10.244.2.0/24");
        api.update(&Resource::NODES, moved).expect("node");
        eventually("its MAC address is homelab's", || leads_to(2, &mac("node2")));
        eventually("nothing is written for flannel", || lease(&api, "node1").is_none());
        two.tunnel(&mac("node2"));
        two.add("10.244.0.0/24", ADDRESS, &own);
        talk(&here, &two);

        // The file says that Kubernetes' Nodes are none of its business.
        let file = data.data.path().join("kubernetes/peers");
        assert!(file.exists());
        agent.tell(&NodeSpec { kubernetes: spec(&format!("http://127.0.0.1:{port}")).kubernetes, ..told });
        eventually("no peers but the file's", || !knows(2) && !file.exists());
    });
}
