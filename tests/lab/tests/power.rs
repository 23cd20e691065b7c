//! Reboot, power cut, freeze, reset: what is lost and what stays.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{Lab, LabGuard, LabOptions, NodeState};
use std::time::{Duration, Instant};

const MARK: &str = "set -e
nft add table inet lost
ip link add lost0 type bridge
sysctl -qw net.ipv4.ip_forward=1
echo kept >/etc/mark
sync";

const KERNEL_STATE: &str = "nft list tables; ip -br link show type bridge; sysctl -n net.ipv4.ip_forward";

fn kernel_state(lab: &Lab, node: &str) -> String {
    lab.sh(node, KERNEL_STATE).unwrap().ok().unwrap().stdout
}

fn boot_id(lab: &Lab, node: &str) -> String {
    lab.exec(node, &["cat", "/proc/sys/kernel/random/boot_id"]).unwrap().ok().unwrap().stdout
}

#[test]
fn a_reboot_loses_kernel_state_and_keeps_the_disk() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    let fresh = kernel_state(&lab, "node1");
    let id = boot_id(&lab, "node1");
    lab.sh("node1", MARK).unwrap().ok().unwrap();
    assert_ne!(kernel_state(&lab, "node1"), fresh);
    let start = Instant::now();
    lab.reboot("node1").unwrap();
    println!("reboot took {:?}", start.elapsed());
    assert_eq!(kernel_state(&lab, "node1"), fresh);
    assert_ne!(boot_id(&lab, "node1"), id);
    assert_eq!(lab.exec("node1", &["cat", "/etc/mark"]).unwrap().ok().unwrap().text(), "kept");
    lab.ssh("debian@node1", &["true"]).unwrap().ok().unwrap();
    lab.exec("node2", &["ping", "-c1", "-W2", "192.168.50.11"]).unwrap().ok().unwrap();
    // Asked for over ssh, as a user does: the supervisor alone brings it back.
    let boots = lab.boots("node1").unwrap();
    let _ = lab.ssh("root@node1", &["systemctl", "reboot"]).unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    while lab.boots("node1").unwrap() == boots || !lab.ssh("root@node1", &["true"]).unwrap().success() {
        assert!(Instant::now() < limit, "node1 does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_power_cut_takes_all_at_once_and_start_brings_them_back() {
    let lab = LabGuard::up(LabOptions::unique("lt")).unwrap();
    let fresh = kernel_state(&lab, "node1");
    lab.sh("node1", MARK).unwrap().ok().unwrap();
    let start = Instant::now();
    lab.power_cut(&["node1", "node2", "node3"]).unwrap();
    println!("power cut took {:?}", start.elapsed());
    assert!(lab.status().unwrap().nodes.iter().all(|node| node.state == NodeState::Off));
    assert!(lab.exec("node1", &["true"]).is_err(), "it is off");
    assert!(!lab.exec("client", &["ping", "-c1", "-W1", "192.168.50.11"]).unwrap().success());
    assert!(lab.root_of("node1").unwrap().join("etc/mark").exists(), "the disk can be read while it is off");
    for node in ["node1", "node2", "node3"] {
        let start = Instant::now();
        lab.start(node).unwrap();
        println!("{node} on after {:?}", start.elapsed());
    }
    assert_eq!(kernel_state(&lab, "node1"), fresh);
    assert_eq!(lab.exec("node1", &["cat", "/etc/mark"]).unwrap().ok().unwrap().text(), "kept");
    assert!(lab.start("node1").is_err(), "it is on already");
}

#[test]
fn a_power_cut_in_the_middle_of_a_reboot_stays_off() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    for wait in [0, 50, 150, 300] {
        let _ = lab.exec("node1", &["systemctl", "reboot"]).unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        lab.power_cut(&["node1"]).unwrap();
        assert_eq!(lab.status().unwrap().nodes[0].state, NodeState::Off, "after {wait} ms");
        lab.start("node1").unwrap();
    }
}

#[test]
fn a_frozen_node_stands_still_and_goes_on() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    let id = boot_id(&lab, "node1");
    lab.freeze("node1").unwrap();
    assert_eq!(lab.status().unwrap().nodes[0].state, NodeState::Frozen);
    // The kernel answers, sshd does not.
    lab.exec("client", &["ping", "-c1", "-W2", "192.168.50.11"]).unwrap().ok().unwrap();
    let ssh = "timeout 1 ssh -o BatchMode=yes node1 true";
    assert!(!lab.sh("client", ssh).unwrap().success(), "sshd of a frozen node answered");
    lab.thaw("node1").unwrap();
    lab.ssh("node1", &["true"]).unwrap().ok().unwrap();
    assert_eq!(boot_id(&lab, "node1"), id);
    lab.freeze("node1").unwrap();
    lab.power_cut(&["node1"]).unwrap();
    lab.start("node1").unwrap();
}

#[test]
fn a_reset_gives_a_fresh_node() {
    let lab = LabGuard::up(LabOptions::unique("lt")).unwrap();
    let keys = "sha256sum /etc/ssh/ssh_host_*";
    let before = lab.sh("node1", keys).unwrap().ok().unwrap().stdout;
    for node in ["node1", "node2"] {
        lab.sh(node, MARK).unwrap().ok().unwrap();
    }
    lab.partition("node3").unwrap();
    lab.reset(&["node1"]).unwrap();
    assert!(!lab.exec("node1", &["cat", "/etc/mark"]).unwrap().success());
    assert!(lab.exec("node2", &["cat", "/etc/mark"]).unwrap().success(), "only node1 was reset");
    assert_eq!(lab.sh("node1", keys).unwrap().ok().unwrap().stdout, before, "known_hosts stays right");
    let start = Instant::now();
    lab.reset(&[]).unwrap();
    println!("reset of three took {:?}", start.elapsed());
    assert!(!lab.exec("node2", &["cat", "/etc/mark"]).unwrap().success());
    lab.exec("node3", &["ping", "-c1", "-W2", "192.168.50.12"]).unwrap().ok().unwrap();
    lab.ssh("pw@node3", &["true"]).unwrap().ok().unwrap();
}
