//! The agent alone puts back what somebody alters, and how fast.

use std::time::Duration;

use homelab_tests::{Check, Cluster, Place, run};

fn main() {
    run(
        "repair",
        &[
            ("agent_puts_back_whatever_is_altered", agent_puts_back_whatever_is_altered),
            ("flannel_869_traffic_comes_back_after_link_deletion", flannel_869_traffic_comes_back),
            ("agent_that_dies_comes_back_and_repairs", agent_that_dies_comes_back_and_repairs),
            ("traffic_flows_while_the_agent_restarts", traffic_flows_while_the_agent_restarts),
        ],
    )
}

/// All that the agent keeps, as text: two looks are equal if and only if nothing differs.
const STATE: &str = r#"
state() {
  for link in homelab.1 homelab0; do
    (cd /sys/class/net/$link && cat address mtu ifalias flags)
    ip -o address show dev $link | sed 's/^[0-9]*: //; s/\\.*//' | grep -v fe80
  done
  ip -d -o link show homelab.1 | grep -o 'vxlan id.*'
  ip -d -o link show homelab0 | grep -o 'stp_state [01]'
  ip -d route show proto 104
  ip neighbour show nud permanent dev homelab.1 | sort
  bridge fdb show dev homelab.1 | sort
  nft -s list table inet homelab
  cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/homelab.1/rp_filter /proc/sys/net/ipv6/conf/homelab*/accept_ra
  stat -c '%n %a %u %g %F %N' /etc/cni/net.d/05-homelab.conflist /opt/cni/bin/homelab /usr/lib/cni/homelab /etc/sysctl.d/90-homelab.conf
  cat /etc/cni/net.d/05-homelab.conflist /etc/sysctl.d/90-homelab.conf
} 2>&1
"#;

/// What is done, on node1.
const MUTATIONS: [(&str, &str); 27] = [
    ("tunnel deleted", "ip link delete homelab.1"),
    ("tunnel down", "ip link set homelab.1 down"),
    ("tunnel mtu", "ip link set homelab.1 mtu 1400"),
    ("tunnel mac", "ip link set homelab.1 address 02:00:00:00:00:01"),
    (
        "tunnel with another VNI",
        "ip link delete homelab.1; ip link add homelab.1 type vxlan id 77 dstport 8472; ip link set homelab.1 alias homelab",
    ),
    ("tunnel alias lost", "ip link set homelab.1 alias ''"),
    ("bridge deleted", "ip link delete homelab0"),
    ("bridge down", "ip link set homelab0 down"),
    ("bridge mtu", "ip link set homelab0 mtu 1300"),
    ("address deleted", "ip address delete 10.244.0.1/24 dev homelab0"),
    ("address added", "ip address add 10.99.0.1/32 dev homelab.1"),
    ("fdb entry deleted", "bridge fdb delete $MAC2 dev homelab.1 dst 192.168.50.12"),
    ("fdb entry altered", "bridge fdb replace $MAC2 dev homelab.1 dst 192.168.50.99 self permanent"),
    ("fdb entry added", "bridge fdb append 02:00:00:00:99:99 dev homelab.1 dst 192.168.50.77 self permanent"),
    ("neighbour deleted", "ip neighbour delete 10.244.1.0 dev homelab.1"),
    (
        "neighbour altered",
        "ip neighbour replace 10.244.1.0 lladdr 02:00:00:00:00:99 nud permanent dev homelab.1",
    ),
    ("route deleted", "ip route delete 10.244.1.0/24"),
    ("route altered", "ip route change 10.244.1.0/24 via 10.244.2.0 dev homelab.1 onlink proto 104"),
    ("masquerade rule deleted", "nft flush chain inet homelab vtep-postrouting"),
    ("masquerade rule added", "nft add rule inet homelab vtep-postrouting counter"),
    ("ruleset flushed", "nft flush ruleset"),
    ("forwarding off", "sysctl -qw net.ipv4.ip_forward=0"),
    ("rp_filter strict", "sysctl -qw net.ipv4.conf.homelab/1.rp_filter=1"),
    ("conflist deleted", "rm /etc/cni/net.d/05-homelab.conflist"),
    ("conflist altered", "echo >> /etc/cni/net.d/05-homelab.conflist"),
    ("plugin deleted", "rm /opt/cni/bin/homelab"),
    ("sysctl.d deleted", "rm /etc/sysctl.d/90-homelab.conf"),
];

fn agent_puts_back_whatever_is_altered(cluster: &mut Cluster) {
    cluster.apply();
    let spec = cluster.spec("node1");
    let mac2 = &spec.peers.iter().find(|p| p.name == "node2").expect("a peer").mac;
    let mut script = format!(
        "{STATE}\ngood=$(state)\nfailed=0\n\
         attempt() {{ name=$1; shift; start=$(date +%s%N); eval \"$*\"\n\
           for try in $(seq 200); do\n\
             if [ \"$(state)\" = \"$good\" ]; then echo \"$name: $(( ($(date +%s%N) - start) / 1000000 )) ms\"; return; fi\n\
             sleep 0.02\n\
           done\n\
           echo \"$name: NEVER\"; state >/tmp/now; echo \"$good\" | diff - /tmp/now; good=$(state); }}\n"
    );
    for (name, mutation) in MUTATIONS {
        script += &format!("attempt '{name}' \"{}\"\n", mutation.replace("$MAC2", mac2));
    }
    let text = cluster.sh("node1", &script);
    for line in text.lines() {
        homelab_tests::measured(format_args!("{line}"));
    }
    let lines = text.lines().filter(|l| l.ends_with(" ms")).count();
    assert!(!text.contains("NEVER"), "{text}");
    assert_eq!(lines, MUTATIONS.len(), "{text}");
    cluster.assert_converged();
}

/// flannel#869, #1070, #1348, #1434, #1759: the link comes back without routes, FDB and neighbours.
fn flannel_869_traffic_comes_back(cluster: &mut Cluster) {
    cluster.apply();
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    for node in ["node1", "node2"] {
        cluster.sh(node, "ip link delete homelab.1");
        let time = cluster.mesh_within(&pods, Duration::from_secs(10));
        homelab_tests::measured(format_args!(
            "all pods reach each other {} ms after {node}'s tunnel was deleted",
            time.as_millis()
        ));
    }
    // The bridge too: running pods must get back onto it.
    cluster.sh("node3", "ip link delete homelab0");
    let time = cluster.mesh_within(&pods, Duration::from_secs(10));
    homelab_tests::measured(format_args!(
        "all pods reach each other {} ms after node3's bridge was deleted",
        time.as_millis()
    ));
    cluster.assert_converged();
}

fn agent_that_dies_comes_back_and_repairs(cluster: &mut Cluster) {
    cluster.apply();
    cluster.sh("node1", "systemctl kill -s KILL homelab-node; ip link delete homelab.1");
    let wait = "for try in $(seq 200); do ip route show proto 104 | grep -q 10.244.2.0/24 && exit 0; sleep 0.05; done; exit 1";
    cluster.sh("node1", wait);
    cluster.sh(
        "node1",
        "for try in $(seq 100); do systemctl is-active -q homelab-node && exit 0; sleep 0.05; done; exit 1",
    );
    cluster.assert_converged();
    // An agent that hangs is ended by systemd's watchdog; that it reports is what matters here.
    let watchdog = cluster.sh("node1", "systemctl show -P WatchdogUSec homelab-node");
    assert_ne!(watchdog, "0", "the watchdog is on");
}

fn traffic_flows_while_the_agent_restarts(cluster: &mut Cluster) {
    cluster.apply();
    let pods = cluster.pods();
    cluster.everywhere("systemctl restart homelab-node");
    cluster.assert_mesh(&pods);
    cluster.everywhere("systemctl stop homelab-node");
    cluster.assert_mesh(&pods);
    let checks = pods[1].servers().iter().map(|s| Check::new("tcp", s).bytes(5_000_000)).collect();
    cluster.assert_traffic(&[(Place::from(&pods[0]), checks)]);
}
