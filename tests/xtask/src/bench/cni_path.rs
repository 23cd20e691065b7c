//! Throughput of pods as each way attaches them: pod to pod and pod to service on one node, and a client through a port of
//! the node.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::cni_inner::{figure, remark};
use super::cni_ways::{Pod, Way, shell};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SECONDS: u32 = 1;
const SERVICE: &str = "10.96.0.10";
/// The first pods of a node, which get its first addresses.
const PODS: [Pod; 2] =
    [Pod { number: 1, ports: 0, limited: false }, Pod { number: 2, ports: 1, limited: false }];

/// A lane a way: who goes where.
pub(super) fn run(ways: &[&Way], runs: usize) -> Result<()> {
    let lanes: Vec<&Way> = ways.iter().filter(|way| way.node != "flannel").copied().collect();
    let mut servers = Vec::new();
    for way in &lanes {
        for pod in PODS {
            way.within(|| way.call("ADD", pod))?;
        }
        if way.slow {
            services_by_iptables(way)?;
        }
        client(way)?;
        let mut server = Command::new("ip");
        server.args(["netns", "exec", &way.pod(2), "iperf3", "-s", "-p", "80"]);
        servers.push(server.stdout(Stdio::null()).spawn()?);
    }
    let measured = measure(&lanes, runs);
    for mut server in servers {
        server.kill()?;
        server.wait()?;
    }
    for way in &lanes {
        for pod in PODS {
            way.within(|| way.call("DEL", pod))?;
        }
    }
    measured
}

fn measure(lanes: &[&Way], runs: usize) -> Result<()> {
    for (task, from_pod, to, port) in [
        ("pod to pod on one node", true, "10.244.0.3", 80),
        ("pod to service on one node", true, SERVICE, 80),
        ("client to hostPort", false, "192.168.50.11", 10_020),
    ] {
        let mut figures: Vec<Vec<f64>> = lanes.iter().map(|_| Vec::new()).collect();
        for _ in 0..runs {
            for (way, values) in lanes.iter().zip(&mut figures) {
                let from = if from_pod { way.pod(1) } else { format!("{}-lan", way.node) };
                values.push(throughput(&from, to, port)?);
            }
        }
        for (way, values) in lanes.iter().zip(&figures) {
            figure(&format!("throughput, {task}, 1 TCP stream"), way.who, "Gbit/s", values);
        }
    }
    remark(
        "throughput beside the reference chain: its services are rules of the form of kube-proxy's iptables mode",
    );
    remark(
        "throughput beside the floor: the pods are attached by the bare process, the rulesets are homelab's",
    );
    Ok(())
}

/// A machine beside the node.
fn client(way: &Way) -> Result<()> {
    shell(&format!(
        "ip netns add {node}-lan; ip -n {node} link add eth0 type veth peer name eth0 netns {node}-lan
        ip -n {node} addr add 192.168.50.11/24 dev eth0; ip -n {node} link set eth0 up
        ip -n {node}-lan addr add 192.168.50.99/24 dev eth0; ip -n {node}-lan link set eth0 up",
        node = way.node
    ))
    .map(drop)
}

/// As kube-proxy in iptables mode has them, with what it needs where client and pod are on one bridge.
fn services_by_iptables(way: &Way) -> Result<()> {
    let rules = format!(
        "iptables -t nat -N KUBE-SERVICES; iptables -t nat -N KUBE-SVC-1; iptables -t nat -N KUBE-SEP-1
        iptables -t nat -I PREROUTING -j KUBE-SERVICES; iptables -t nat -I OUTPUT -j KUBE-SERVICES
        iptables -t nat -A KUBE-SERVICES -d {SERVICE}/32 -p tcp --dport 80 -j KUBE-SVC-1
        iptables -t nat -A KUBE-SVC-1 -j KUBE-SEP-1
        iptables -t nat -A KUBE-SEP-1 -p tcp -j DNAT --to-destination 10.244.0.3:80
        sysctl -qw net.bridge.bridge-nf-call-iptables=1 || true"
    );
    shell(&format!("ip netns exec {} sh -ec '{rules}'", way.node)).map(drop)
}

fn throughput(from: &str, to: &str, port: u16) -> Result<f64> {
    // The server may be just starting, or not done with the one before.
    let mut last = String::new();
    for _ in 0..10 {
        let script =
            format!("ip netns exec {from} iperf3 -J --connect-timeout 2000 -t {SECONDS} -c {to} -p {port}");
        let output = Command::new("sh").args(["-c", &script]).output()?;
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(bits) = result["end"]["sum_received"]["bits_per_second"].as_f64() {
            return Ok(bits / 1e9);
        }
        last = result["error"].to_string();
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    Err(format!("iperf3 from {from} to {to}:{port}: {last}").into())
}
