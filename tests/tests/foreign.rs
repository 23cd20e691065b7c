//! What others made on a node stays as it is; what of it stands in the way is said, and nothing is done.

use homelab_tests::{Check, Cluster, Place, run};
use serde_json::{Value, json};

fn main() {
    run(
        "foreign",
        &[
            ("foreign_objects_are_untouched_by_apply_repair_and_destroy", untouched),
            ("what_stands_in_the_way_is_an_error_in_plan", blockers),
            ("directories_and_sysctls_of_others_survive_destroy", shared_things_survive_destroy),
            ("a_firewall_that_drops_is_said_and_left_alone", dropping_firewall),
            ("a_foreign_route_in_the_place_of_ours_is_an_error_until_it_goes", route_in_our_place),
            ("destroy_works_after_drift", destroy_works_after_drift),
        ],
    )
}

/// A busy node of somebody who does other things too.
const FOREIGN: &str = r#"set -e
ip link add br-foreign type bridge
ip link set br-foreign alias 'somebody else' up
ip address add 172.31.0.1/24 dev br-foreign
ip link add vxlan9 type vxlan id 9 dstport 4789 nolearning
ip link set vxlan9 up
bridge fdb append 02:aa:aa:aa:aa:aa dev vxlan9 dst 192.168.50.12
ip address add 172.30.0.1/24 dev vxlan9
ip neighbour add 172.30.0.9 lladdr 02:aa:aa:aa:aa:aa nud permanent dev vxlan9
ip link add veth-a type veth peer name veth-b
ip route add 203.0.113.0/24 via 192.168.50.1
ip route add 198.51.100.0/24 via 192.168.50.1 proto static metric 77
ip route add unreachable 10.99.0.0/16 proto 104 table 99
ip rule add from 172.31.0.0/24 table 99
nft -f - <<NFT
table inet foreign {
  set s { type ipv4_addr; elements = { 192.0.2.77 }; }
  chain forward { type filter hook forward priority 10; policy accept; ip saddr @s drop; }
}
table ip nat {
  chain postrouting { type nat hook postrouting priority 90; ip saddr 172.31.0.0/24 masquerade; }
}
table ip homelab {
  chain c { }
}
table bridge other {
  chain c { }
}
NFT
echo '{"cniVersion":"0.4.0","name":"other","plugins":[{"type":"bridge"}]}' > /etc/cni/net.d/99-other.conflist
mkdir -p /opt/cni/bin /usr/local/lib/other
echo x > /etc/cni/net.d/notes.txt
echo y > /opt/cni/bin/other
echo 'net.ipv4.conf.all.arp_ignore = 1' > /etc/sysctl.d/99-other.conf
sysctl -qw net.ipv4.conf.all.arp_ignore=1
printf '[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n' > /etc/systemd/system/other.service
systemctl daemon-reload
systemctl --quiet enable --now other
"#;

fn untouched(cluster: &mut Cluster) {
    cluster.everywhere(FOREIGN);
    let before = cluster.snapshots();
    cluster.apply();
    cluster.assert_converged();
    // Nothing but additions, and the sysctl that had to change.
    for ((node, before), after) in cluster.nodes().iter().zip(&before).zip(cluster.snapshots()) {
        for (section, key, old, new) in before.diff(&after).entries {
            // Forwarding changes what the kernel says of every link.
            let sysctl = section == "sysctl"
                && ["forwarding", "ip_forward", "redirects"].iter().any(|k| key.contains(k));
            assert!(old.is_none() || sysctl, "apply on {node}: {section} {key}: {old:?} -> {new:?}");
        }
    }
    // Repairs and changes do not touch it either.
    cluster.everywhere("ip link delete homelab.1; nft delete table inet homelab");
    cluster.sh("node1", "for try in $(seq 100); do nft list table inet homelab >/dev/null 2>&1 && ip link show homelab.1 >/dev/null 2>&1 && exit; sleep 0.05; done; exit 1");
    cluster.file.set("network.vxlan.vni", json!(5));
    cluster.apply();
    cluster.homelab_ok(&["destroy", "--yes"]);
    for ((node, before), after) in cluster.nodes().iter().zip(&before).zip(cluster.snapshots()) {
        let changed = before.diff(&after);
        assert!(changed.is_empty(), "{node} is not what it was:\n{changed}");
    }
}

/// What is done on a node, what undoes it, and what the error must contain.
const BLOCKERS: [(&str, &str, &[&str]); 12] = [
    ("ip link add homelab.1 type bridge", "ip link delete homelab.1", &["homelab.1", "bridge"]),
    ("ip link add homelab0 type veth peer name peer0", "ip link delete homelab0", &["homelab0", "veth"]),
    (
        "ip link add flannel.1 type vxlan id 1 dstport 8472",
        "ip link delete flannel.1",
        &["flannel.1", "VNI 1", "8472"],
    ),
    (
        "ip link add cni0 type bridge; ip address add 10.244.1.1/24 dev cni0; ip link set cni0 up",
        "ip link delete cni0",
        &["10.244.1.1/24", "cni0", "10.244.0.0/16"],
    ),
    (
        "ip route add 10.244.7.0/24 via 192.168.50.1",
        "ip route delete 10.244.7.0/24",
        &["10.244.7.0/24", "eth0", "10.244.0.0/16"],
    ),
    (
        "ip route add 10.0.0.0/8 via 192.168.50.1",
        "ip route delete 10.0.0.0/8",
        &["10.0.0.0/8", "eth0", "10.244.0.0/16"],
    ),
    (
        "mv /usr/sbin/nft /usr/sbin/nft.away",
        "mv /usr/sbin/nft.away /usr/sbin/nft",
        &["nft", "apt install nftables"],
    ),
    (
        "ip address add 10.244.3.3/32 dev lo",
        "ip address delete 10.244.3.3/32 dev lo",
        &["10.244.3.3/32", "lo", "10.244.0.0/16"],
    ),
    (
        "ip link add vx2 type vxlan id 1 dstport 8472 group 239.1.1.1 dev eth0",
        "ip link delete vx2",
        &["vx2", "VNI 1", "8472"],
    ),
    (
        "mkdir /etc/cni/net.d/05-homelab.conflist",
        "rmdir /etc/cni/net.d/05-homelab.conflist",
        &["directory", "/etc/cni/net.d/05-homelab.conflist"],
    ),
    (
        "mkdir -p /usr/lib/cni/homelab; touch /usr/lib/cni/homelab/x",
        "rm -r /usr/lib/cni/homelab",
        &["directory", "/usr/lib/cni/homelab"],
    ),
    (
        "ip link add homelab.1 type vxlan id 1 dstport 8472",
        "ip link delete homelab.1",
        &["homelab.1", "vxlan"],
    ),
];

/// Three at a time, each on a node of its own.
fn blockers(cluster: &mut Cluster) {
    let mut wrong = Vec::new();
    let nodes = cluster.nodes();
    for rows in BLOCKERS.chunks(nodes.len()) {
        for (node, (block, _, _)) in nodes.iter().zip(rows) {
            cluster.sh(node, block);
        }
        let before = cluster.snapshots();
        let human = cluster.homelab(&["plan"]);
        let json = cluster.homelab(&["plan", "--format", "json"]);
        let apply = cluster.homelab(&["apply", "--yes"]);
        let parsed: Value = serde_json::from_str(&json.stdout).expect("the plan is JSON");
        let human_text = human.stdout + &human.stderr;
        for (node, (block, _, words)) in nodes.iter().zip(rows) {
            let part = parsed["nodes"].as_array().into_iter().flatten().find(|n| n["name"] == node.as_str());
            let part = part.map(ToString::to_string).unwrap_or_default();
            for word in *words {
                if !part.contains(word) || !human_text.contains(word) {
                    wrong.push(format!("{block}: {word} is missing\n{part}\n{human_text}"));
                }
            }
        }
        if [human.code, json.code, apply.code] != [1, 1, 1] {
            wrong.push(format!("{rows:?}: ended with {}, {}, {}", human.code, json.code, apply.code));
        }
        for ((node, before), after) in nodes.iter().zip(before).zip(cluster.snapshots()) {
            let changed = before.diff(&after);
            if !changed.is_empty() {
                wrong.push(format!("{rows:?}: {node} was changed:\n{changed}"));
            }
        }
        for (node, (_, unblock, _)) in nodes.iter().zip(rows) {
            cluster.sh(node, unblock);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing is in the way any more.
    cluster.apply();
    cluster.assert_converged();
}

/// Neither agent nor apply takes it away; when it goes, ours comes back by itself.
fn route_in_our_place(cluster: &mut Cluster) {
    cluster.apply();
    let peer = cluster.spec("node1").peers[0].clone();
    let range = peer.pod_cidrs[0];
    cluster.sh("node1", &format!("ip route replace {range} via 192.168.50.1 dev eth0 proto static"));
    let foreign = format!("ip route show {range}");
    let before = cluster.sh("node1", &foreign);
    // Some rounds of the agent.
    std::thread::sleep(std::time::Duration::from_secs(2));
    for command in [&["plan"][..], &["apply", "--yes"]] {
        let output = cluster.homelab(command);
        let text = format!("{}{}", output.stdout, output.stderr);
        let said = format!("the place of its route to {}: {range} dev eth0, protocol 4", peer.name);
        assert!(output.code == 1 && text.contains(&said), "{text}");
        assert!(text.contains(&format!("ip route del {range} dev eth0")), "{text}");
        assert_eq!(cluster.sh("node1", &foreign), before);
    }
    cluster.sh("node1", &format!("ip route del {range} dev eth0"));
    cluster.sh(
        "node1",
        &format!("for try in $(seq 100); do ip route show {range} | grep -q homelab.1 && exit; sleep 0.1; done; exit 1"),
    );
    cluster.assert_converged();
}

/// Docker's policy, set with the very iptables of the node: pods are cut off, plan and status say why, and what they
/// say to do helps.
fn dropping_firewall(cluster: &mut Cluster) {
    cluster.apply();
    let pods = [cluster.pod("node1", "one"), cluster.pod("node2", "two")];
    cluster.assert_mesh(&pods);
    cluster
        .sh("node1", "iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER; iptables -P FORWARD DROP");
    // The policy must bite, or this proves nothing.
    let nothing = pods[1].servers().iter().flat_map(Check::all).map(Check::fails).collect();
    cluster.assert_traffic(&[(Place::from(&pods[0]), nothing)]);
    // Counters in brackets would differ.
    let firewall = cluster.sh("node1", "iptables -S");
    let plan = cluster.homelab_ok(&["plan"]);
    let status = cluster.homelab(&["status"]);
    for output in [&plan, &status] {
        let text = format!("{}{}", output.stdout, output.stderr);
        let line = text.lines().find(|l| l.contains("ip filter FORWARD"));
        assert!(line.is_some_and(|l| l.contains("node1") && l.contains("DOCKER-USER -i homelab0")), "{text}");
    }
    cluster.apply();
    assert_eq!(cluster.sh("node1", "iptables -S"), firewall, "homelab does not touch it");
    let way_out =
        "iptables -I DOCKER-USER -i homelab0 -j ACCEPT; iptables -I DOCKER-USER -o homelab0 -j ACCEPT";
    cluster.sh("node1", way_out);
    cluster.assert_mesh(&pods);
    let plan = cluster.homelab_ok(&["plan"]);
    assert!(!format!("{}{}", plan.stdout, plan.stderr).contains("FORWARD"), "{}", plan.stdout);
}

/// A directory that others use by now stays; a sysctl that was on before stays on.
fn shared_things_survive_destroy(cluster: &mut Cluster) {
    cluster.sh("node1", "sysctl -qw net.ipv4.ip_forward=1");
    cluster.apply();
    cluster.everywhere("echo x > /opt/cni/bin/later");
    cluster.homelab_ok(&["destroy", "--yes"]);
    assert_eq!(cluster.sh("node1", "cat /proc/sys/net/ipv4/ip_forward"), "1", "it was on before");
    assert_eq!(cluster.sh("node2", "cat /proc/sys/net/ipv4/ip_forward"), "0", "it was off before");
    for node in cluster.nodes() {
        assert_eq!(cluster.sh(&node, "ls /opt/cni/bin"), "later");
        assert_eq!(
            cluster.sh(
                &node,
                "ls -d /etc/homelab /var/lib/homelab /run/homelab /usr/local/lib/homelab 2>/dev/null || true"
            ),
            ""
        );
    }
}

fn destroy_works_after_drift(cluster: &mut Cluster) {
    let before = cluster.snapshots();
    cluster.apply();
    cluster.sh(
        "node1",
        "systemctl stop homelab-node; rm -r /etc/homelab /usr/local/lib/homelab; ip link delete homelab.1",
    );
    cluster.sh("node2", "systemctl stop homelab-node; nft flush ruleset; rm /etc/systemd/system/homelab-node.service; systemctl daemon-reload");
    cluster.pod("node3", "still-here");
    cluster.homelab_ok(&["destroy", "--yes"]);
    for ((node, before), after) in cluster.nodes().iter().zip(before).zip(cluster.snapshots()) {
        let changed = before.diff(&after).to_string();
        // The pod's namespace is its runtime's business; nothing of its network stays on the node.
        let left: Vec<&str> = changed.lines().filter(|l| !l.starts_with("+ netns ")).collect();
        assert!(left.is_empty(), "{node}:\n{changed}");
    }
}
