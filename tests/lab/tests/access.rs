//! Who reaches whom: ssh, ping, the router as a jump host, programs run from inside.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{LabGuard, LabOptions};
use std::time::Instant;

#[test]
fn everyone_reaches_everyone() {
    let start = Instant::now();
    let lab = LabGuard::up(LabOptions::unique("lt")).unwrap();
    println!("up after {:?}", start.elapsed());
    let hosts = ["node1", "node2", "node3", "client", "router", "wan"];
    for from in hosts {
        for to in hosts {
            let (v4, v6) = (lab.address(to).unwrap().to_string(), lab.address6(to).unwrap().to_string());
            for address in [v4, v6] {
                lab.exec(from, &["ping", "-c1", "-W2", "-q", &address]).unwrap().ok().unwrap();
            }
        }
    }
}

#[test]
fn every_user_logs_in_by_key() {
    let mut lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    for node in ["node1", "node2"] {
        for user in ["root", "debian", "pw"] {
            let who = lab.ssh(&format!("{user}@{node}"), &["id -un; hostname"]).unwrap().ok().unwrap();
            assert_eq!(who.stdout, format!("{user}\n{node}\n"));
        }
        assert_eq!(
            lab.ssh(&format!("debian@{node}"), &["sudo", "id", "-u"]).unwrap().ok().unwrap().text(),
            "0"
        );
    }
    assert!(
        !lab.ssh("pw@node1", &["sudo", "-n", "true"]).unwrap().success(),
        "pw has no sudo without password"
    );
    let sudo = format!("echo {} | sudo -S -p '' id -u", lab.sudo_password());
    assert_eq!(lab.ssh("pw@node1", &[&sudo]).unwrap().ok().unwrap().text(), "0");
    assert_eq!(lab.ssh("router", &["hostname"]).unwrap().ok().unwrap().text(), "router");

    // A host outside the LAN, through the router, both by address and by the names in ~/.ssh/config.
    let jump = ["ssh", "-o", "BatchMode=yes", "-J", "root@192.0.2.1", "debian@192.168.50.12", "hostname"];
    assert_eq!(lab.exec("wan", &jump).unwrap().ok().unwrap().text(), "node2");
    let jump = ["ssh", "-o", "BatchMode=yes", "-J", "gateway", "node1", "hostname"];
    assert_eq!(lab.exec("wan", &jump).unwrap().ok().unwrap().text(), "node1");
    // `ssh -G`, which homelab asks, sees the lab's configuration and not the user's own.
    let config = lab.exec("client", &["ssh", "-G", "node1"]).unwrap().ok().unwrap();
    assert!(
        config.stdout.contains(&format!("identityfile {}", lab.key_path().display())),
        "{}",
        config.stdout
    );

    assert_eq!(lab.add_node().unwrap(), "node3");
    assert_eq!(lab.ssh("debian@node3", &["hostname"]).unwrap().ok().unwrap().text(), "node3");
    assert!(std::fs::read_to_string(lab.config_path()).unwrap().contains("192.168.50.13"));

    lab.change_host_keys("node2").unwrap();
    let refused = lab.ssh("node2", &["true"]).unwrap();
    assert!(refused.stderr.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{refused:?}");
}

#[test]
fn host_keys_are_each_nodes_own() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    let keys =
        |node| lab.sh(node, "cat /etc/ssh/ssh_host_*.pub | cut -d' ' -f1,2").unwrap().ok().unwrap().stdout;
    let (first, second) = (keys("node1"), keys("node2"));
    assert_eq!(first.lines().count(), 3, "{first}");
    assert!(first.lines().all(|key| !second.contains(key)), "{first}{second}");
    let id = |node| lab.exec(node, &["cat", "/etc/machine-id"]).unwrap().stdout;
    assert_ne!(id("node1"), id("node2"));
}

#[test]
fn exec_is_inside_and_passes_the_exit_code() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    let seen = lab.sh("node1", "hostname; cat /proc/1/comm; id -u; echo complaint >&2; exit 7").unwrap();
    assert_eq!(
        (seen.code, seen.stdout.as_str(), seen.stderr.as_str()),
        (7, "node1\nsystemd\n0\n", "complaint\n")
    );
    let back = lab.exec_with_input("node1", &["tr", "a-z", "A-Z"], "in and out").unwrap().ok().unwrap();
    assert_eq!(back.stdout, "IN AND OUT");
    assert_eq!(lab.wait_settled("node1").unwrap(), "running");
    // What a network tool of ours will need, and networkd in charge of the link.
    let script = "set -e
modprobe -a vxlan br_netfilter overlay
ip link add vx type vxlan id 42 dev eth0 dstport 8472 nolearning
bridge fdb append 02:00:00:00:00:01 dev vx dst 192.168.50.12
ip link add cni0 type bridge
ip netns add pod
ip link add pod type veth peer name eth0 netns pod
nft add table inet t
sysctl -qw net.ipv4.ip_forward=1
for try in $(seq 100); do networkctl status eth0 | grep -q 'State: routable (configured)' && break; sleep 0.05; done
networkctl status eth0 | grep 'State: routable (configured)'";
    lab.sh("node1", script).unwrap().ok().unwrap();
    assert!(lab.exec("node9", &["true"]).is_err(), "no such node");
}
