//! Node specs and objects for tests.

use homelab_model::{NodeObject, NodeSpec, PeerSpec, VtepSpec, stable_mac};

#[path = "../../../../tests/fixtures/mod.rs"]
mod fixtures;

/// A node with `peers` peers, IPv4 and IPv6.
pub(crate) fn spec(peers: usize) -> NodeSpec {
    let cidrs = |n: usize| {
        let four = format!("10.{}.{}.0/24", 100 + n / 256, n % 256);
        vec![fixtures::net(&four), fixtures::net(&format!("fd00:0:0:{n:x}::/64"))]
    };
    let spec = fixtures::spec(true);
    NodeSpec {
        address: "192.0.2.1".parse().unwrap(),
        pod_cidrs: cidrs(0),
        cluster_cidrs: vec![fixtures::net("10.96.0.0/11"), fixtures::net("fd00::/48")],
        vtep: VtepSpec { device: "homelab.vx".into(), mac: stable_mac(&["test", "node1"]), ..spec.vtep },
        peers: (1..=peers)
            .map(|n| PeerSpec {
                mac: stable_mac(&["test", &format!("peer{n}")]),
                ..fixtures::peer(
                    &format!("peer{n}"),
                    &format!("192.0.{}.{}", 3 + n / 250, n % 250 + 2),
                    cidrs(n),
                )
            })
            .collect(),
        services: vec![fixtures::service("web", 80), fixtures::service("dns", 53)],
        containers: Vec::new(),
        ..spec
    }
}

/// What the tunnel, the plugin and the proxy want of that node.
pub(crate) fn objects(spec: &NodeSpec) -> Vec<NodeObject> {
    let mut objects = homelab_vtep::objects(spec);
    objects.extend(homelab_cni::objects(spec));
    objects.extend(homelab_proxy::foundation(spec));
    objects.extend(homelab_proxy::services(spec));
    objects
}
