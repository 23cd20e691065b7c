//! Node specs and objects for tests.

use homelab_model::{NodeObject, NodeSpec, PeerSpec, VtepSpec, stable_mac};

/// A node with `peers` peers, IPv4 and IPv6.
pub(crate) fn spec(peers: usize) -> NodeSpec {
    let cidrs = |n: usize| {
        let four = format!("10.{}.{}.0/24", 100 + n / 256, n % 256);
        vec![four.parse().unwrap(), format!("fd00:0:0:{n:x}::/64").parse().unwrap()]
    };
    NodeSpec {
        format_version: NodeSpec::FORMAT,
        cluster: "test".into(),
        node: "node1".into(),
        address: "192.0.2.1".parse().unwrap(),
        interface: "eth0".into(),
        pod_cidrs: cidrs(0),
        cluster_cidrs: vec!["10.96.0.0/11".parse().unwrap(), "fd00::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        vtep: VtepSpec {
            device: "homelab.vx".into(),
            vni: 1,
            port: 8472,
            mtu: 1450,
            mac: stable_mac(&["test", "node1"]),
            checksum_offload: true,
        },
        pod_mtu: 1450,
        bridge: "homelab0".into(),
        cni_bin_dirs: vec!["/opt/cni/bin".into()],
        cni_conf_dirs: vec!["/etc/cni/net.d".into()],
        binary_sha256: "0".repeat(64),
        peers: (1..=peers)
            .map(|n| PeerSpec {
                name: format!("peer{n}"),
                address: format!("192.0.{}.{}", 3 + n / 250, n % 250 + 2).parse().unwrap(),
                mac: stable_mac(&["test", &format!("peer{n}")]),
                pod_cidrs: cidrs(n),
            })
            .collect(),
    }
}

/// What the tunnel and the plugin want of that node.
pub(crate) fn objects(spec: &NodeSpec) -> Vec<NodeObject> {
    let mut objects = homelab_vtep::objects(spec);
    objects.extend(homelab_cni::objects(spec));
    objects
}
