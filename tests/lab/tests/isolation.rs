//! Labs do not meet, leave nothing, and never touch the machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{Impairment, Lab, LabGuard, LabOptions};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn two_labs_at_once() {
    let one = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    let two = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    assert_ne!(one.name(), two.name());
    one.sh("node1", "echo one >/etc/which").unwrap().ok().unwrap();
    two.sh("node1", "echo two >/etc/which").unwrap().ok().unwrap();
    assert_eq!(one.ssh("node1", &["cat", "/etc/which"]).unwrap().ok().unwrap().text(), "one");
    assert_eq!(two.ssh("node1", &["cat", "/etc/which"]).unwrap().ok().unwrap().text(), "two");
    // The same address on another LAN: the other lab's node2 is not here.
    assert!(!one.exec("client", &["ping", "-c1", "-W1", "192.168.50.12"]).unwrap().success());
    two.exec("client", &["ping", "-c1", "-W1", "192.168.50.12"]).unwrap().ok().unwrap();
    one.reboot("node1").unwrap();
    assert_eq!(two.boots("node1").unwrap(), 1);
    let name = one.name().to_owned();
    one.down().unwrap();
    two.ssh("node2", &["true"]).unwrap().ok().unwrap();
    assert_no_trace(&name);
    Lab::down_name(&name).unwrap();
    assert!(Lab::open(&name).is_err());
    let name = two.name().to_owned();
    drop(two);
    assert_no_trace(&name);
}

/// Nothing of the lab is left: processes, mounts, namespaces, cgroups, files.
fn assert_no_trace(name: &str) {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let spaces = Command::new("ls").arg("/run/netns").output().unwrap();
    let spaces = String::from_utf8(spaces.stdout).unwrap();
    assert!(!spaces.lines().any(|space| space.starts_with(&format!("{name}-"))), "{spaces}");
    assert!(!text("/proc/self/mountinfo").contains(&format!("/{name}/")), "mounts are left");
    assert!(!std::path::Path::new("/run/homelab-lab").join(name).exists());
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        assert!(!std::path::Path::new(root).join(format!("homelab-lab-{name}")).exists());
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = text(&format!("{}/cmdline", entry.path().display()));
        let ours = line.split('\0').any(|word| word == name || word.contains(&format!("/{name}/")));
        assert!(!ours, "{} is left: {line}", entry.path().display());
    }
}

#[test]
fn the_machine_is_as_before() {
    let before = machine();
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    // Writes the value that is there: if the guard is broken, still nothing changes on the machine.
    for name in ["kernel.panic", "vm.swappiness", "fs.pipe-max-size"] {
        let write = format!("value=$(sysctl -n {name}) && sysctl -w {name}=$value");
        assert!(!lab.sh("node1", &write).unwrap().success(), "node1 could write {name} of the machine");
    }
    lab.sh("node1", "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").unwrap().ok().unwrap();
    lab.sh("node1", "nft add table inet x; ip link add x type bridge").unwrap().ok().unwrap();
    lab.impair("node1", Impairment { delay_ms: 1.0, ..Default::default() }).unwrap();
    lab.partition("node2").unwrap();
    lab.reboot("node2").unwrap();
    lab.power_cut(&["node1"]).unwrap();
    lab.down().unwrap();
    let after = machine();
    for (what, value) in &before {
        assert_eq!(Some(value), after.get(what), "{what} of the machine changed");
    }
    assert_eq!(before.len(), after.len());
}

/// Links, addresses, routes, rules and sysctls of the machine itself.
fn machine() -> BTreeMap<String, String> {
    let run = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).stderr(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut map = BTreeMap::new();
    for line in [
        "ip -o link",
        "ip -o address | sed 's/valid_lft.*//'",
        "ip route show table all | sed 's/expires [^ ]*//'",
        "ip -6 route show table all | sed 's/expires [^ ]*//'",
        "ip rule; ip -6 rule",
        "nft --stateless list ruleset",
    ] {
        map.insert(line.into(), run(line));
    }
    // Counters, and what the kernel draws by lot.
    let moving = [
        "fs.aio-nr",
        "fs.dentry-state",
        "fs.file-nr",
        "fs.inode-nr",
        "fs.inode-state",
        "kernel.ns_last_pid",
        "kernel.pty.nr",
        "kernel.random.",
        "net.netfilter.nf_conntrack_count",
        "fs.quota.",
        "kernel.perf_",
    ];
    for line in run("sysctl -a").lines() {
        let (name, value) = line.split_once(" =").unwrap_or((line, ""));
        if !moving.iter().any(|prefix| name.starts_with(prefix)) {
            map.insert(name.into(), value.into());
        }
    }
    map
}

#[test]
fn a_lab_whose_process_was_killed_is_cleared_by_the_next() {
    const NAME: &str = "a_lab_whose_process_was_killed_is_cleared_by_the_next";
    const CHILD: &str = "HOMELAB_LAB_TEST_CHILD";
    if let Ok(name) = std::env::var(CHILD) {
        // We are the process that will be killed.
        let _lab = LabGuard::up(LabOptions::new(name).nodes(1)).unwrap();
        println!("\nready");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let options = LabOptions::unique("lt");
    let name = options.name.clone();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"), "the other process made no lab");
    child.kill().unwrap();
    child.wait().unwrap();
    // The lab outlives it, and can be used, until another guard comes up.
    Lab::open(&name).unwrap().exec("node1", &["true"]).unwrap().ok().unwrap();
    let other = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    assert_no_trace(&name);
    other.down().unwrap();
}

#[test]
fn wrong_requests_are_refused() {
    for name in ["", "Big", "a/b", "-x", "way-too-long-for-a-lab-name"] {
        assert!(Lab::up(LabOptions::new(name)).is_err(), "{name}");
        assert!(Lab::open(name).is_err(), "{name}");
        assert!(Lab::down_name(name).is_err(), "{name}");
    }
    assert!(Lab::up(LabOptions::unique("lt").nodes(0)).is_err());
    assert!(Lab::up(LabOptions::unique("lt").nodes(81)).is_err());
}
