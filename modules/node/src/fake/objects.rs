//! What the machine holds in tests: what real nodes hold.

use std::net::IpAddr;

use homelab_model::{
    Content, File, KeyRing, Module, NodeObject, NodeSpec, PeerSpec, ProxySpec, Spec, VtepSpec, ours,
};

/// Digest of the n-th version of our binary.
pub(crate) fn digest(version: u8) -> String {
    format!("{version:02x}").repeat(32)
}

/// A node of a cluster with this many others.
pub(crate) fn spec(version: u8, vni: u32, peers: u8) -> NodeSpec {
    let net = |text: &str| text.parse().expect("a network");
    let peer = |n: u8| PeerSpec {
        name: format!("node{n}"),
        address: IpAddr::from([192, 168, 1, 10 + n]),
        pod_cidrs: vec![net(&format!("10.244.{n}.0/24"))],
        mac: format!("02:00:00:00:00:{n:02x}"),
    };
    NodeSpec {
        format_version: NodeSpec::FORMAT,
        cluster: "home".into(),
        node: "node0".into(),
        address: IpAddr::from([192, 168, 1, 10]),
        interface: "eth0".into(),
        pod_cidrs: vec![net("10.244.0.0/24")],
        cluster_cidrs: vec![net("10.244.0.0/16")],
        service_cidrs: vec![net("10.96.0.0/12")],
        vtep: VtepSpec {
            device: "homelab.1".into(),
            vni,
            port: 8472,
            mtu: 1450,
            mac: "02:00:00:00:00:aa".into(),
            checksum_offload: true,
        },
        pod_mtu: 1450,
        bridge: ours::BRIDGE.into(),
        pods: homelab_model::PodOptions::default(),
        cni_bin_dirs: vec![ours::CNI_BIN_DIR.into()],
        cni_conf_dirs: vec![ours::CNI_CONF_DIR.into()],
        speaker: None,
        kubernetes: None,
        packages: Vec::new(),
        binary_sha256: digest(version),
        ipv6_disabled: false,
        router_advertisements: Vec::new(),
        proxy: ProxySpec::default(),
        peers: (1..=peers).map(peer).collect(),
        // One endpoint on each peer.
        services: vec![
            serde_json::from_value(serde_json::json!({
                "namespace": "default", "name": "web", "clusterIPs": ["10.96.0.80"],
                "ports": [{ "port": 80 }],
                "endpoints": (1..=peers)
                    .map(|n| serde_json::json!({ "address": format!("10.244.{n}.2"), "ports": { "": 8080 } }))
                    .collect::<Vec<_>>(),
            }))
            .expect("a service"),
        ],
        containers: Vec::new(),
    }
}

/// A ring of keys: its object, and what the laptop sends with it.
pub(crate) fn keys(ring: &KeyRing) -> (NodeObject, (String, String)) {
    let content = Content::Secret(ring.summary());
    let file = File { path: ours::KEYS.into(), mode: 0o600, owner: "0:0".into(), content };
    (NodeObject { module: Module::Agent, spec: Spec::File(file) }, (ring.summary(), ring.to_text()))
}
