//! A snapshot sees every change that a network tool can make, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{LabGuard, LabOptions};
use std::time::Instant;

#[test]
fn equal_until_something_changes() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    let before = lab.snapshot("node1").unwrap();
    assert!(before.get("link", "eth0").unwrap().contains("02:00:00:00:50:0b"));
    assert!(before.get("address", "eth0 192.168.50.11/24").is_some());
    assert!(before.get("file", "/etc/hostname").unwrap().starts_with("file 644 0:0 6 B "));
    assert_eq!(before.get("unit-file", "ssh.service"), Some("enabled"));
    assert!(before.get("sysctl", "net.ipv4.ip_forward").is_some());
    assert!(before.section("route").any(|(entry, _)| entry.contains("\"default\"")));

    // What any reader does: log in as each user, sudo, look around.
    for user in ["root", "debian", "pw"] {
        lab.ssh(&format!("{user}@node1"), &["cat /etc/hostname; ls /var/lib"]).unwrap().ok().unwrap();
    }
    lab.ssh("debian@node1", &["sudo", "nft", "list", "ruleset"]).unwrap().ok().unwrap();
    lab.exec("node2", &["ping", "-c3", "-i0.1", "192.168.50.11"]).unwrap().ok().unwrap();
    let start = Instant::now();
    let later = lab.snapshot("node1").unwrap();
    println!("a snapshot takes {:?}", start.elapsed());
    assert_eq!(before.diff(&later).to_string(), "", "nothing changed");
    assert_eq!(before, later);

    let changes = [
        ("link", "ip link add tbr type bridge", "ip link delete tbr"),
        ("address", "ip address add 10.9.9.9/32 dev lo", "ip address delete 10.9.9.9/32 dev lo"),
        ("route", "ip route add 10.8.0.0/16 via 192.168.50.12 table 77", "ip route flush table 77"),
        ("route6", "ip route add fd01::/64 via fd00:50::12", "ip route delete fd01::/64"),
        ("rule", "ip rule add fwmark 1 table 77", "ip rule delete fwmark 1"),
        (
            "neighbour",
            "ip neighbour add 192.168.50.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
            "ip neighbour delete 192.168.50.99 dev eth0",
        ),
        (
            "fdb",
            "bridge fdb add 02:00:00:00:00:98 dev eth0 self permanent",
            "bridge fdb delete 02:00:00:00:00:98 dev eth0 self",
        ),
        (
            "nftables",
            "nft 'add table inet t; add set inet t s { type ipv4_addr; }'",
            "nft delete table inet t",
        ),
        ("netns", "ip netns add pod", "ip netns delete pod"),
        ("sysctl", "sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0"),
        ("unit-file", "systemctl -q enable nftables", "systemctl -q disable nftables"),
        ("unit", "systemctl start containerd", "systemctl stop containerd"),
        ("file", "echo x >/etc/x", "rm /etc/x"),
        ("file", "chmod 600 /etc/hostname", "chmod 644 /etc/hostname"),
        ("file", "chown debian /opt", "chown root /opt"),
        ("file", "ln -s a /usr/local/x", "rm /usr/local/x"),
        ("mtime", "touch -d @1 /etc/hostname", ""),
    ];
    let mut before = later;
    for (section, change, undo) in changes {
        lab.sh("node1", change).unwrap().ok().unwrap();
        let changed = lab.snapshot("node1").unwrap();
        let diff = before.diff(&changed);
        assert!(diff.entries.iter().any(|entry| entry.0 == section), "{change} not seen:\n{diff}");
        if undo.is_empty() {
            continue;
        }
        lab.sh("node1", undo).unwrap().ok().unwrap();
        let undone = lab.snapshot("node1").unwrap();
        // A counter of containerd's stays behind; all else must be as before, but for times.
        let diff = before.without_times().diff(&undone.without_times());
        let left: Vec<_> = diff.entries.iter().filter(|entry| !entry.1.contains("containerd")).collect();
        assert!(left.is_empty(), "{undo} leaves:\n{diff}");
        before = undone;
    }
}

#[test]
fn a_reset_node_equals_a_new_one() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    let before = lab.snapshot("node1").unwrap();
    lab.sh("node1", "rm -r /usr/local/share; nft add table ip x").unwrap().ok().unwrap();
    lab.reset(&["node1"]).unwrap();
    let mut diff = before.without_times().diff(&lab.snapshot("node1").unwrap().without_times());
    diff.entries.retain(|entry| entry.1 != "/etc/machine-id");
    assert!(diff.is_empty(), "{diff}");
}
