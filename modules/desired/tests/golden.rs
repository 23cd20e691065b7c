//! The objects of a node, written down: `UPDATE_GOLDEN=1` rewrites them.
#![allow(clippy::disallowed_methods, reason = "golden files")]

use std::path::Path;

use homelab_model::{NodeSpec, PeerSpec, VtepSpec, plan_node};

fn spec(dual: bool) -> NodeSpec {
    let nets = |v4: &str, v6: &str| {
        let mut nets = vec![v4.parse().expect("net")];
        if dual {
            nets.push(v6.parse().expect("net"));
        }
        nets
    };
    NodeSpec {
        format_version: NodeSpec::FORMAT,
        cluster: "home".into(),
        node: "node1".into(),
        address: "192.168.50.11".parse().expect("address"),
        interface: "eth0".into(),
        pod_cidrs: nets("10.244.0.0/24", "fd00:10:244::/64"),
        cluster_cidrs: nets("10.244.0.0/16", "fd00:10:244::/56"),
        service_cidrs: nets("10.96.0.0/12", "fd00:10:96::/112"),
        vtep: VtepSpec {
            device: "homelab.1".into(),
            vni: 1,
            port: 8472,
            mtu: 1450,
            mac: homelab_vtep::mac("home", "node1"),
            checksum_offload: true,
        },
        pod_mtu: 1450,
        bridge: homelab_model::ours::BRIDGE.into(),
        cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        cni_conf_dirs: vec!["/etc/cni/net.d".into()],
        binary_sha256: "5".repeat(64),
        peers: vec![PeerSpec {
            name: "node2".into(),
            address: "192.168.50.12".parse().expect("address"),
            mac: homelab_vtep::mac("home", "node2"),
            pod_cidrs: nets("10.244.1.0/24", "fd00:10:244:1::/64"),
        }],
    }
}

fn check(name: &str, spec: &NodeSpec) {
    let objects = homelab_desired::desired(spec);
    let mut text = String::new();
    for planned in plan_node("node1", &[], &objects).changes {
        let after = serde_json::to_string_pretty(&planned.change.after()).expect("json");
        text.push_str(&format!("# {} {}\n{after}\n", planned.module.as_str(), planned.object));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        std::fs::write(&path, &text).expect("write");
    }
    let golden = std::fs::read_to_string(&path).expect("golden file; UPDATE_GOLDEN=1 writes it");
    assert_eq!(golden, text);
    // Every object has a key of its own, or diff would lose one.
    let keys: std::collections::BTreeSet<_> = objects.iter().map(|o| o.spec.key()).collect();
    assert_eq!(keys.len(), objects.len());
}

#[test]
fn ipv4() {
    check("ipv4.txt", &spec(false));
}

#[test]
fn dual_stack() {
    check("dual-stack.txt", &spec(true));
}

#[test]
fn objects_survive_the_wire() {
    let objects = homelab_desired::desired(&spec(true));
    let text = serde_json::to_string(&objects).expect("json");
    let back: Vec<homelab_model::NodeObject> = serde_json::from_str(&text).expect("objects");
    assert_eq!(back, objects);
}

#[test]
fn parameters_of_links_do_not_depend_on_the_address_families() {
    // A parameter of a link that stays cannot be taken away again.
    let keys = |dual: bool| {
        let keys = homelab_desired::desired(&spec(dual)).into_iter().map(|o| o.spec.key());
        keys.filter(|k| matches!(k, homelab_model::Key::LinkSysctl(..)))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(keys(false), keys(true));
}
