//! Throughput from pod to pod across nodes, beside a VXLAN made by hand between the same nodes.

use homelab_lab::{Lab, LabGuard, LabOptions};
use serde_json::Value;

use super::figures::Report;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SECONDS: u32 = 3;

pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
    let lab = LabGuard::up(LabOptions::unique("bt").nodes(2))?;
    for node in lab.nodes() {
        lab.wait_settled(node)?;
    }
    let mut apply = super::homelab(&lab, &lab.config_path(), &["apply", "--yes"])?;
    let apply = super::figures::cost(&mut apply)?;
    if apply.code != 0 {
        return Err(format!("homelab apply: {}", apply.text).into());
    }
    let ours = [pod(&lab, "node1")?, pod(&lab, "node2")?];
    let plain = [by_hand(&lab, "node1", 1, "node2", 2)?, by_hand(&lab, "node2", 2, "node1", 1)?];
    for (streams, name) in [(1, "1 TCP stream"), (8, "8 TCP streams")] {
        let (mut tunnel, mut hand) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            tunnel.push(throughput(&lab, "ours", &ours[1], streams)?);
            hand.push(throughput(&lab, "hand", &plain[1], streams)?);
        }
        let task = format!("pod to pod across nodes, {name}");
        report.add(&task, "homelab", "Gbit/s", tunnel);
        report.add(&task, "floor: kernel VXLAN made by hand", "Gbit/s", hand);
    }
    lab.down()?;
    Ok(())
}

/// A namespace `ours` on the node, attached by the installed plugin with the installed conflist; its address.
fn pod(lab: &Lab, node: &str) -> Result<String> {
    let script = "set -e; ip netns add ours
        jq '.plugins[0] + {cniVersion, name}' /etc/cni/net.d/05-homelab.conflist |
        CNI_COMMAND=ADD CNI_CONTAINERID=ours CNI_NETNS=/run/netns/ours CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
        /opt/cni/bin/homelab | jq -r '.ips[0].address' | cut -d/ -f1
        ip netns exec ours iperf3 -s -D";
    Ok(lab.sh(node, script)?.ok()?.stdout.trim().to_owned())
}

/// The same by hand: namespace, veth, bridge, VXLAN with other VNI and port; its address.
fn by_hand(lab: &Lab, node: &str, own: u32, peer_node: &str, peer: u32) -> Result<String> {
    let script = format!(
        "set -e; ip link add hand.1 address 02:60:00:00:00:0{own} mtu 1450 type vxlan id 77 dstport 4790 nolearning local {local}
        ip link set hand.1 up; ip addr add 10.99.{own}.0/32 dev hand.1
        ip link add hand0 mtu 1450 type bridge; ip link set hand0 up; ip addr add 10.99.{own}.1/24 dev hand0
        bridge fdb append 02:60:00:00:00:0{peer} dev hand.1 dst {remote}
        ip neigh add 10.99.{peer}.0 lladdr 02:60:00:00:00:0{peer} dev hand.1 nud permanent
        ip route add 10.99.{peer}.0/24 via 10.99.{peer}.0 dev hand.1 onlink
        ip netns add hand; ip link add handv mtu 1450 type veth peer name eth0 mtu 1450 netns hand
        ip link set handv master hand0 up; ip -n hand link set lo up; ip -n hand link set eth0 up
        ip -n hand addr add 10.99.{own}.2/24 dev eth0; ip -n hand route add default via 10.99.{own}.1
        ip netns exec hand iperf3 -s -D",
        local = lab.address(node)?,
        remote = lab.address(peer_node)?,
    );
    lab.sh(node, &script)?.ok()?;
    Ok(format!("10.99.{own}.2"))
}

fn throughput(lab: &Lab, netns: &str, to: &str, streams: u32) -> Result<f64> {
    let script = format!("ip netns exec {netns} iperf3 -J -t {SECONDS} -P {streams} -c {to}");
    let output = lab.sh("node1", &script)?.ok()?;
    let result: Value = serde_json::from_str(&output.stdout)?;
    let bits = result["end"]["sum_received"]["bits_per_second"].as_f64().ok_or("iperf3 printed no sum")?;
    Ok(bits / 1e9)
}
