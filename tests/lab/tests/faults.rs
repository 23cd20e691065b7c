//! Cut, blocked, pulled and bad cables.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{Impairment, Lab, LabGuard, LabOptions};
use std::time::Duration;

fn reaches(lab: &Lab, from: &str, to: &str) -> bool {
    let address = lab.address(to).unwrap().to_string();
    lab.exec(from, &["ping", "-c1", "-W1", "-q", &address]).unwrap().success()
}

/// As [`reaches`], tried for some seconds: a neighbour asked for in vain stays so for a second or two after the
/// network is whole again.
fn comes_to_reach(lab: &Lab, from: &str, to: &str) -> bool {
    (0..25).any(|_| {
        let reached = reaches(lab, from, to);
        if !reached {
            std::thread::sleep(Duration::from_millis(200));
        }
        reached
    })
}

/// Round-trip times in ms, one per answered ping.
fn times(lab: &Lab, to: &str, count: u32) -> Vec<f64> {
    let address = lab.address(to).unwrap().to_string();
    let script = format!("ping -c{count} -i0.02 -W2 {address}");
    let output = lab.sh("client", &script).unwrap();
    output
        .stdout
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split_whitespace().next()?.parse().ok())
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn a_partition_cuts_one_node_off_and_heals() {
    let lab = LabGuard::up(LabOptions::unique("lt")).unwrap();
    lab.partition("node1").unwrap();
    assert!(!reaches(&lab, "client", "node1"));
    assert!(!reaches(&lab, "node1", "node2"));
    assert!(reaches(&lab, "node3", "node2"));
    let carrier = lab.sh("node1", "cat /sys/class/net/eth0/carrier").unwrap();
    assert_eq!(carrier.text(), "1", "the cable to the switch is whole");
    lab.reboot("node1").unwrap();
    assert!(!reaches(&lab, "client", "node1"), "a reboot does not mend the network");
    lab.heal("node1").unwrap();
    assert!(comes_to_reach(&lab, "client", "node1"));
    lab.heal("node1").unwrap();

    lab.block("node1", "node2").unwrap();
    assert!(!reaches(&lab, "node1", "node2"));
    assert!(!reaches(&lab, "node2", "node1"));
    assert!(reaches(&lab, "node1", "node3") && reaches(&lab, "node3", "node2"));
    lab.unblock_all().unwrap();
    assert!(comes_to_reach(&lab, "node1", "node2"));
}

#[test]
fn a_pulled_cable_shows_as_a_lost_carrier() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    lab.wait_settled("node1").unwrap();
    let watch = lab
        .command_in("node1")
        .unwrap()
        .args(["timeout", "3", "ip", "monitor", "link"])
        .output_in_background();
    std::thread::sleep(Duration::from_millis(300));
    lab.link_flap("node1", Duration::from_millis(500)).unwrap();
    let seen = watch.join().unwrap();
    assert!(seen.contains("NO-CARRIER"), "{seen}");
    assert!(comes_to_reach(&lab, "client", "node1"), "node1 does not come back");
}

/// Collects a program's output on a thread.
trait InBackground {
    fn output_in_background(&mut self) -> std::thread::JoinHandle<String>;
}

impl InBackground for std::process::Command {
    fn output_in_background(&mut self) -> std::thread::JoinHandle<String> {
        let child = self.stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::thread::spawn(move || {
            String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
        })
    }
}

#[test]
fn an_impairment_does_what_it_says() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    assert!(median(times(&lab, "node1", 20)) < 5.0);
    lab.impair("node1", Impairment { delay_ms: 20.0, ..Default::default() }).unwrap();
    let delayed = median(times(&lab, "node1", 20));
    println!("20 ms each way: round trip {delayed} ms");
    assert!((39.5..55.0).contains(&delayed), "{delayed} ms");
    assert!(median(times(&lab, "node2", 20)) < 5.0, "node2 has a good cable");
    lab.ssh("node1", &["true"]).unwrap().ok().unwrap();
    lab.reboot("node1").unwrap();
    let delayed = median(times(&lab, "node1", 20));
    assert!((39.5..55.0).contains(&delayed), "after a reboot {delayed} ms");

    lab.impair("node1", Impairment { delay_ms: 20.0, jitter_ms: 10.0, ..Default::default() }).unwrap();
    let all = times(&lab, "node1", 60);
    let (low, high) =
        all.iter().fold((f64::MAX, 0.0_f64), |(low, high), time| (low.min(*time), high.max(*time)));
    println!("20 +- 10 ms each way: round trip {low} to {high} ms");
    assert!(low < 36.0 && high > 44.0, "{all:?}");

    lab.impair("node1", Impairment { loss_percent: 30.0, ..Default::default() }).unwrap();
    let answered = times(&lab, "node1", 200).len();
    println!("30 % loss each way: {answered} of 200 answered");
    // 49 % expected, 7 standard deviations to each side.
    assert!((48..150).contains(&answered), "{answered} of 200");

    lab.impair("node1", Impairment { rate_mbit: 20.0, ..Default::default() }).unwrap();
    let rate = throughput(&lab);
    println!("20 Mbit/s: {rate:.1} Mbit/s");
    assert!((10.0..25.0).contains(&rate), "{rate} Mbit/s");

    lab.partition("node1").unwrap();
    assert!(!reaches(&lab, "client", "node1"));
    lab.unimpair("node1").unwrap();
    assert!(!reaches(&lab, "client", "node1"), "still partitioned");
    lab.heal("node1").unwrap();
    assert!(median(times(&lab, "node1", 20)) < 5.0);
    let rate = throughput(&lab);
    println!("no impairment: {rate:.0} Mbit/s");
    assert!(rate > 200.0, "{rate} Mbit/s");
}

#[test]
fn a_full_disk_takes_no_block_more_until_it_is_freed() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    lab.wait_settled("node1").unwrap();
    lab.sh("node1", "echo old >/root/old").unwrap().ok().unwrap();
    let write = "dd if=/dev/zero of=/root/new bs=4k count=1 conv=fsync 2>&1";
    for _ in 0..2 {
        lab.fill_disk("node1").unwrap();
        let written = lab.sh("node1", write).unwrap();
        assert!(!written.success() && written.stdout.contains("No space left"), "{written:?}");
        lab.sh("node1", "rm /root/new; mv /root/old /root/moved && mv /root/moved /root/old")
            .unwrap()
            .ok()
            .unwrap();
        lab.sh("node1", "touch /run/another-disk && echo x >/run/another-disk").unwrap().ok().unwrap();
        lab.power_cut(&["node1"]).unwrap();
        lab.start("node1").unwrap();
        assert!(!lab.sh("node1", write).unwrap().success(), "a reboot frees nothing");
        lab.free_disk("node1").unwrap();
        lab.sh("node1", write).unwrap().ok().unwrap();
        lab.sh("node1", "rm /root/new; test $(cat /root/old) = old").unwrap().ok().unwrap();
    }
}

/// Mbit/s of one TCP connection from node1 to node2.
fn throughput(lab: &Lab) -> f64 {
    let mut said = String::new();
    for _ in 0..50 {
        // A server serves one client, whatever comes of it; the port may still be the one's before.
        let server = ["iperf3", "--server", "--one-off", "--idle-timeout", "5", "--daemon"];
        lab.exec("node2", &server).unwrap().ok().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let run = ["iperf3", "--json", "--time", "2", "--client", "192.168.50.12"];
        said = lab.exec("node1", &run).unwrap().stdout;
        let report: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        if let Some(rate) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
            return rate / 1e6;
        }
    }
    panic!("iperf3 measures nothing:\n{said}");
}
