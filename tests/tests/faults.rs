//! Reboots, power cuts, networks that go away: the pod network comes back without the laptop.

use std::time::Duration;

use homelab_tests::{Check, Cluster, Place, Pod, run};

const LIMIT: Duration = Duration::from_secs(20);

fn main() {
    run(
        "faults",
        &[
            ("reboot_of_one_node", reboot_of_one_node),
            ("power_cut_of_all_nodes", power_cut_of_all_nodes),
            ("k8s_108121_ipam_leak_after_reboot", ipam_leak_after_reboot),
            ("flannel_1155_vtep_mac_survives_reboot_and_reinstall", vtep_mac_survives),
            ("flannel_1434_restart_of_networkd", restart_of_networkd),
            ("flannel_1070_link_flap_of_the_lan_interface", link_flap),
            ("partition_and_heal", partition_and_heal),
            ("lossy_and_slow_network_still_converges", lossy_and_slow_network),
        ],
    )
}

/// The laptop is gone for the rest of the scenario.
fn without_laptop(cluster: &mut Cluster) -> Vec<Pod> {
    cluster.apply();
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
    cluster.sh("lan", "ip link set client down");
    pods
}

/// The laptop is back and finds nothing to do.
fn with_laptop(cluster: &Cluster) {
    cluster.sh("lan", "ip link set client up");
    cluster.assert_converged();
}

fn reboot_of_one_node(cluster: &mut Cluster) {
    let mut pods = without_laptop(cluster);
    cluster.lab.reboot("node2").expect("node2 boots");
    pods[1] = new_pod(cluster, "node2", "again2");
    let time = cluster.mesh_within(&pods, LIMIT);
    homelab_tests::measured(format_args!(
        "all pods reach each other {} ms after node2 and its first pod are there",
        time.as_millis()
    ));
    with_laptop(cluster);
}

/// A pod as soon as the node can make one: the kubelet tries again too.
fn new_pod(cluster: &mut Cluster, node: &str, name: &str) -> Pod {
    cluster.sh(node, "for try in $(seq 200); do test -e /etc/cni/net.d/05-homelab.conflist && exit 0; sleep 0.05; done; exit 1");
    cluster.pod(node, name)
}

fn power_cut_of_all_nodes(cluster: &mut Cluster) {
    without_laptop(cluster);
    let nodes = cluster.nodes();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    for round in 0..2 {
        cluster.lab.power_cut(&names).expect("the power goes");
        for node in &names {
            cluster.lab.start(node).expect("the node boots");
        }
        let pods: Vec<Pod> =
            names.iter().map(|node| new_pod(cluster, node, &format!("{node}-{round}"))).collect();
        let time = cluster.mesh_within(&pods, LIMIT);
        homelab_tests::measured(format_args!(
            "all pods reach each other {} ms after the last node and its pod are there",
            time.as_millis()
        ));
    }
    with_laptop(cluster);
}

/// cni#204, plugins#252, k8s#108121, k3s#5885: the runtime never says DEL for pods that a power cut ended.
fn ipam_leak_after_reboot(cluster: &mut Cluster) {
    // 5 addresses a node.
    cluster.file.set("network.nodePrefix", serde_json::json!(29));
    cluster.apply();
    for round in 0..3 {
        for pod in 0..5 {
            cluster.pod("node1", &format!("full{round}-{pod}"));
        }
        cluster.sh("node1", "ip netns add one-more");
        let output = cluster.cni("node1", "ADD", "one-more");
        assert!(
            !output.success() && output.stdout.contains("\"code\""),
            "{}{}",
            output.stdout,
            output.stderr
        );
        assert!(output.stdout.contains("10.244.0.0/29"), "the error names the range: {}", output.stdout);
        cluster.lab.power_cut(&["node1"]).expect("the power goes");
        cluster.lab.start("node1").expect("node1 boots");
        cluster.sh("node1", "for try in $(seq 200); do ip link show homelab0 >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1");
    }
}

fn vtep_mac_survives(cluster: &mut Cluster) {
    cluster.apply();
    let macs = |cluster: &Cluster| {
        cluster.everywhere("cat /sys/class/net/homelab.1/address /sys/class/net/homelab0/address")
    };
    let before = macs(cluster);
    cluster.lab.reboot("node1").expect("node1 boots");
    cluster.sh(
        "node1",
        "for try in $(seq 200); do ip link show homelab0 >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1",
    );
    assert_eq!(before, macs(cluster), "after a reboot");
    // A new disk: the peers need not hear of it.
    let peers = cluster.sh("node2", "cat /etc/homelab/node.json");
    cluster.lab.reset(&["node1"]).expect("node1 boots");
    let plan = cluster.plan();
    assert!(plan.node("node2").changes.is_empty() && plan.node("node3").changes.is_empty(), "{plan}");
    cluster.apply();
    assert_eq!(before, macs(cluster), "after a new installation");
    assert_eq!(peers, cluster.sh("node2", "cat /etc/homelab/node.json"));
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
}

fn restart_of_networkd(cluster: &mut Cluster) {
    let pods = without_laptop(cluster);
    for what in ["restart", "reload", "stop", "start"] {
        cluster.everywhere(match what {
            "restart" => "systemctl restart systemd-networkd",
            "reload" => "networkctl reload; networkctl reconfigure eth0",
            "stop" => "systemctl stop systemd-networkd",
            _ => "systemctl start systemd-networkd",
        });
        let time = cluster.mesh_within(&pods, LIMIT);
        homelab_tests::measured(format_args!(
            "all pods reach each other {} ms after systemd-networkd: {what}",
            time.as_millis()
        ));
    }
    with_laptop(cluster);
}

fn link_flap(cluster: &mut Cluster) {
    let pods = without_laptop(cluster);
    cluster.sh("node1", "ip link set eth0 down; sleep 0.5; ip link set eth0 up");
    let time = cluster.mesh_within(&pods, LIMIT);
    homelab_tests::measured(format_args!(
        "all pods reach each other {} ms after node1's eth0 is up again",
        time.as_millis()
    ));
    cluster.lab.link_flap("node2", Duration::from_millis(700)).expect("the cable is pulled");
    let time = cluster.mesh_within(&pods, LIMIT);
    homelab_tests::measured(format_args!(
        "all pods reach each other {} ms after node2's cable is in again",
        time.as_millis()
    ));
    // The way out of the node comes back with networkd; the masquerade was never gone.
    cluster.serve(&Place::host("wan"));
    let wan = homelab_tests::Server {
        name: "wan".into(),
        address: cluster.lab.address("wan").expect("address").into(),
    };
    let node = cluster.lab.address("node1").expect("address");
    cluster.assert_traffic(&[(Place::from(&pods[0]), vec![Check::new("tcp", &wan).source(node)])]);
    with_laptop(cluster);
}

fn partition_and_heal(cluster: &mut Cluster) {
    let pods = without_laptop(cluster);
    cluster.lab.partition("node3").expect("node3 is cut off");
    let two = &pods[..2];
    cluster.assert_mesh(two);
    let failing = pods[2].servers().iter().map(|s| Check::new("tcp", s).fails()).collect();
    cluster.assert_traffic(&[(Place::from(&pods[0]), failing)]);
    cluster.lab.heal("node3").expect("node3 is back");
    let time = cluster.mesh_within(&pods, LIMIT);
    homelab_tests::measured(format_args!(
        "all pods reach each other {} ms after the partition's end",
        time.as_millis()
    ));
    with_laptop(cluster);
}

fn lossy_and_slow_network(cluster: &mut Cluster) {
    let bad = homelab_lab::Impairment { delay_ms: 20.0, jitter_ms: 5.0, loss_percent: 3.0, rate_mbit: 50.0 };
    cluster.lab.impair("node2", bad).expect("the cable is bad");
    cluster.apply();
    cluster.assert_converged();
    let pods = cluster.pods();
    let limit = Duration::from_secs(60);
    cluster.assert_mesh_despite_loss(&pods, limit);
    let checks = pods[1].servers().iter().map(|s| Check::new("tcp", s).bytes(1_000_000)).collect();
    cluster.assert_traffic_despite_loss(&[(Place::from(&pods[0]), checks)], limit);
}
