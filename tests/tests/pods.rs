//! Pods reach each other, the LAN and what is beyond, with real packets.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_tests::{Check, Cluster, Place, Pod, Server, run};

fn main() {
    run(
        "pods",
        &[
            ("pods_reach_everything_over_ipv4", pods_reach_everything_over_ipv4),
            ("pods_reach_everything_over_both_families", pods_reach_everything_over_both_families),
            ("mtu_follows_the_smallest_lan_interface_flannel_463", mtu_follows_the_smallest_lan_interface),
            ("status_and_the_agents_sweep", status_and_the_agents_sweep),
        ],
    )
}

/// A container on every node, one more on the first, and a bare namespace on the second.
fn set_up(cluster: &mut Cluster) -> Vec<Pod> {
    cluster.apply();
    let mut pods = Vec::new();
    for (node, name) in [("node1", "c1"), ("node1", "c1b"), ("node2", "c2"), ("node3", "c3")] {
        pods.push(cluster.container(node, name));
    }
    pods.push(cluster.pod("node2", "raw2"));
    for host in ["client", "wan", "node1", "node2", "node3"] {
        cluster.serve(&Place::host(host));
    }
    pods
}

fn pods_reach_everything_over_ipv4(cluster: &mut Cluster) {
    let pods = set_up(cluster);
    assert!(pods.iter().all(|p| p.addresses.len() == 1 && p.mtu == 1450), "{pods:?}");
    everything(cluster, &pods, |cluster, host| vec![cluster.lab.address(host).expect("address").into()]);
}

fn pods_reach_everything_over_both_families(cluster: &mut Cluster) {
    cluster.file.dual_stack(&cluster.lab);
    let pods = set_up(cluster);
    assert!(pods.iter().all(|p| p.addresses.len() == 2 && p.mtu == 1450), "{pods:?}");
    everything(cluster, &pods, |cluster, host| {
        vec![
            cluster.lab.address(host).expect("address").into(),
            cluster.lab.address6(host).expect("address").into(),
        ]
    });
}

fn everything(cluster: &mut Cluster, pods: &[Pod], addresses: fn(&Cluster, &str) -> Vec<IpAddr>) {
    // A first packet must get through: nothing is learned, nothing is resolved on demand.
    cluster.assert_mesh(pods);
    // Nor does a pod that was silent for long vanish from its node.
    cluster.everywhere("ip neigh flush dev homelab0; ip -6 neigh flush dev homelab0");
    cluster.assert_mesh(pods);

    let servers = |cluster: &Cluster, host: &str| -> Vec<Server> {
        let all = addresses(cluster, host).into_iter();
        all.map(|address| Server { name: host.to_owned(), address }).collect()
    };
    let mut all = Vec::new();
    for pod in pods {
        let mut checks = Vec::new();
        // Full MTU without fragments, and not one byte more.
        for other in pods.iter().filter(|o| o.name != pod.name) {
            for server in other.servers() {
                let head = if server.address.is_ipv4() { 28 } else { 48 };
                checks.push(Check::new("ping", &server).bytes(1450 - head));
                checks.push(Check::new("ping", &server).bytes(1451 - head).fails());
            }
        }
        // Out of the cluster under the node's name.
        for host in ["client", "wan"] {
            for server in servers(cluster, host) {
                let node = addresses(cluster, &pod.node);
                let source = *node.iter().find(|a| a.is_ipv4() == server.address.is_ipv4()).expect("family");
                checks.extend(Check::all(&server).into_iter().map(|c| c.source(source)));
            }
        }
        // Nodes, by their LAN addresses.
        for node in cluster.nodes() {
            for server in servers(cluster, &node) {
                checks.push(Check::new("ping", &server));
                checks.push(Check::new("tcp", &server));
            }
        }
        all.push((Place::from(pod), checks));
    }
    for node in cluster.nodes() {
        let checks = pods.iter().flat_map(Pod::servers).flat_map(|s| Check::all(&s)).collect();
        all.push((Place::host(&node), checks));
    }
    cluster.assert_traffic(&all);

    // Large transfers, large datagrams.
    let (first, last) = (&pods[0], &pods[3]);
    for server in last.servers().into_iter().chain(pods[1].servers()) {
        let large = Check::new("tcp", &server).bytes(50_000_000);
        let answers = cluster.probe(&Place::from(first), std::slice::from_ref(&large));
        assert_eq!(answers[0].error, "", "50 MB to {server:?}");
        homelab_tests::measured(format_args!(
            "50 MB {} -> {}: {:.0} ms",
            first.name, server.name, answers[0].ms
        ));
        cluster.assert_traffic(&[(Place::from(first), vec![Check::new("udp", &server).bytes(60_000)])]);
    }
    // All at once.
    let everyone = |pod: &Pod| {
        let others = pods.iter().filter(|o| o.name != pod.name).flat_map(Pod::servers);
        others.map(|s| Check::new("tcp", &s).bytes(1_000_000)).collect()
    };
    let all: Vec<_> = pods.iter().map(|p| (Place::from(p), everyone(p))).collect();
    cluster.assert_traffic(&all);
}

/// flannel#463, #841, #1011: one node with a smaller interface, no override.
fn mtu_follows_the_smallest_lan_interface(cluster: &mut Cluster) {
    cluster.sh("node2", "ip link set eth0 mtu 1400");
    cluster.apply();
    let pods = cluster.pods();
    assert!(pods.iter().all(|p| p.mtu == 1350), "{pods:?}");
    let all: Vec<_> = pods
        .iter()
        .map(|pod| {
            let others = pods.iter().filter(|o| o.name != pod.name).flat_map(Pod::servers);
            let checks = others.flat_map(|s| {
                [
                    Check::new("ping", &s).bytes(1350 - 28),
                    Check::new("ping", &s).bytes(1351 - 28).fails(),
                    Check::new("tcp", &s).bytes(5_000_000),
                ]
            });
            (Place::from(pod), checks.collect())
        })
        .collect();
    cluster.assert_traffic(&all);
    // And an override is taken, with a word of warning if it cannot work.
    cluster.file.set("network.vxlan.mtu", serde_json::json!(1300));
    cluster.apply();
    assert_eq!(cluster.sh("node1", "cat /sys/class/net/homelab.1/mtu"), "1300");
    cluster.file.set("network.vxlan.mtu", serde_json::json!(1450));
    let plan = cluster.homelab_ok(&["plan"]);
    let text = plan.stdout + &plan.stderr;
    assert!(text.contains("too large for node2"), "a warning names the node:\n{text}");
}

/// STATUS as a runtime of CNI 1.1 asks it.
const STATUS: &str = r#"
jq '.plugins[0] + {name, cniVersion: .cniVersions[-1]}' /etc/cni/net.d/05-homelab.conflist |
  CNI_COMMAND=STATUS CNI_PATH=/opt/cni/bin /opt/cni/bin/homelab
"#;

/// A node is ready while its agent is at work and its tunnel stands, whatever becomes of other nodes; and addresses of pods
/// that ended without a DEL come back by the agent alone.
fn status_and_the_agents_sweep(cluster: &mut Cluster) {
    cluster.apply();
    let code = |cluster: &Cluster| {
        let output = cluster.lab.exec("node1", &["sh", "-c", STATUS]).expect("a shell starts");
        let error: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        (output.success(), error["code"].as_u64().unwrap_or(0))
    };
    assert_eq!(code(cluster), (true, 0));
    cluster.sh("node2", "ip link del homelab0; ip link set eth0 down");
    assert_eq!(code(cluster), (true, 0), "another node's trouble is not this one's");
    cluster.sh("node1", "systemctl stop homelab-node");
    assert_eq!(code(cluster), (false, 50));
    cluster.sh("node1", "ip link del homelab.1");
    assert_eq!(code(cluster), (false, 51));

    // Pods come and go meanwhile, the last without a DEL.
    cluster.pod("node1", "gone");
    cluster.sh("node1", "ip netns pids gone | xargs --no-run-if-empty kill; ip netns delete gone");
    let entries = "ls /var/lib/homelab/ipam/*/*-*-*/ | wc -l";
    assert_eq!(cluster.sh("node1", entries), "1");
    cluster.sh("node1", "systemctl start homelab-node");
    let deadline = Instant::now() + Duration::from_secs(120);
    while cluster.sh("node1", entries) != "0" || code(cluster) != (true, 0) {
        assert!(
            Instant::now() < deadline,
            "{} entries, STATUS {:?}",
            cluster.sh("node1", entries),
            code(cluster)
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
