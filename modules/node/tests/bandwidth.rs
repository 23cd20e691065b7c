//! Rates of pods, measured.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pods::{Node, Pod, addresses, on_a_node, run};
use serde_json::{Value, json};

const RATE: u64 = 40_000_000;

fn conf(node: &Node, bandwidth: &Value) -> Value {
    let mut conf = node.conf("1.1.0");
    conf["runtimeConfig"] = json!({ "bandwidth": bandwidth });
    conf
}

/// iperf3's server, until the value goes.
struct Server(Child);

impl Server {
    fn start(pod: &Pod) -> Server {
        let child = Command::new("nsenter")
            .arg(format!("--net={}", pod.path().display()))
            .args(["iperf3", "-s"])
            .stdout(Stdio::null())
            .spawn()
            .expect("iperf3");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !pod.run("ss -Hltn sport = 5201").contains("5201") {
            assert!(Instant::now() < deadline, "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bits per second that arrive, from the namespace of the caller to a pod, or back with `reverse`.
fn measure(address: &str, reverse: bool) -> f64 {
    let way = if reverse { "-R" } else { "" };
    // The first second is burst and slow start.
    let mut said = String::new();
    for _ in 0..5 {
        said = run(&format!("iperf3 -J -O 1 -t 3 {way} -c {address} || true"));
        let json: Value = serde_json::from_str(&said).unwrap_or_default();
        if let Some(bits) = json["end"]["sum_received"]["bits_per_second"].as_f64() {
            return bits;
        }
        // The server is not yet done with the client before.
        std::thread::sleep(Duration::from_secs(1));
    }
    panic!("iperf3 measures nothing: {said}");
}

/// A limit holds on any machine; that it is reached needs one that can do so, and is asked of the best of a few tries.
fn is_about(rate: u64, measure: impl Fn() -> f64) -> bool {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let bits = measure();
        assert!(bits < rate as f64 * 1.1, "{bits}");
        if bits > rate as f64 * 0.9 {
            return true;
        }
        seen.push(bits);
    }
    panic!("{rate}: {seen:?}");
}

/// The reference plugin bandwidth: "limits traffic" to the pod, from the pod, with the burst that runtimes pass on for
/// none.
#[test]
fn pods_are_as_fast_as_asked() {
    on_a_node(|node| {
        let none = u64::from(u32::MAX);
        for (name, bandwidth, reverse) in [
            ("in", json!({ "ingressRate": RATE, "ingressBurst": none }), false),
            ("out", json!({ "egressRate": RATE, "egressBurst": none }), true),
        ] {
            let pod = Pod::new(name);
            let address = addresses(&node.call("ADD", &pod, &conf(node, &bandwidth)).ok())[0].clone();
            let server = Server::start(&pod);
            assert!(is_about(RATE, || measure(&address, reverse)), "{name}");
            assert!(measure(&address, !reverse) > RATE as f64 * 1.5, "{name}: the other way is free");
            drop(server);
            node.del(&pod);
        }
        node.assert_clean();
        assert!(!run("ip -o link show").contains("ifb"), "no link beside the pair");
    });
}

#[test]
fn check_finds_another_limit() {
    on_a_node(|node| {
        let pod = Pod::new("p");
        let bandwidth = json!({
            "ingressRate": RATE, "ingressBurst": 800_000, "egressRate": 40_000_000_000_u64, "egressBurst": 8_000_000,
        });
        let mut conf = conf(node, &bandwidth);
        let result = node.call("ADD", &pod, &conf).ok();
        let host = result["interfaces"][1]["name"].as_str().expect("name").to_owned();
        conf["prevResult"] = result;
        node.call("CHECK", &pod, &conf).ok();
        let queue = run(&format!("tc qdisc show dev {host}"));
        assert!(queue.contains("tbf") && queue.contains("rate 40Mbit"), "{queue}");
        let queue = pod.run("tc qdisc show dev eth0");
        assert!(queue.contains("rate 40Gbit"), "{queue}");
        run(&format!("tc qdisc replace dev {host} root tbf rate 80mbit burst 100kb limit 1mb"));
        let refused = |words: String| {
            let answer = node.call("CHECK", &pod, &conf);
            assert!(answer.text.contains(&words), "{}", answer.text);
            assert_eq!(answer.code(), 104);
        };
        let limit = RATE / 8;
        refused(format!(
            "link {host} is not limited to {limit} bytes per second\",\"details\":\"but to 10000000"
        ));
        run(&format!("tc qdisc replace dev {host} root handle 1: tbf rate 40mbit burst 100kb limit 1mb"));
        node.call("CHECK", &pod, &conf).ok();
        run(&format!("tc qdisc del dev {host} root"));
        refused(format!("link {host} is not limited to {limit} bytes per second\",\"details\":\"no limit"));
        run(&format!("tc qdisc replace dev {host} root handle 1: tbf rate 40mbit burst 100kb limit 1mb"));
        pod.run("tc qdisc del dev eth0 root");
        refused("link eth0 is not limited to 5000000000 bytes per second".to_owned());
        // A pod without limits is not asked about those that another plugin made.
        conf["runtimeConfig"] = json!({});
        node.call("CHECK", &pod, &conf).ok();
        node.del(&pod);
        node.assert_clean();
    });
}
