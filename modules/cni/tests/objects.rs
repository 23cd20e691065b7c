//! The objects of a node, written down: `UPDATE_GOLDEN=1` rewrites them.
#![allow(clippy::disallowed_methods, reason = "golden files")]

use std::path::Path;

use homelab_model::{Content, NodeSpec, Spec, VtepSpec};

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
            mac: "02:00:00:00:00:01".into(),
            checksum_offload: true,
        },
        pod_mtu: 1450,
        bridge: homelab_model::ours::BRIDGE.into(),
        cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        cni_conf_dirs: vec!["/etc/cni/net.d".into()],
        binary_sha256: "5".repeat(64),
        peers: Vec::new(),
    }
}

fn check(name: &str, spec: &NodeSpec) {
    let mut text = String::new();
    for object in homelab_cni::objects(spec) {
        text.push_str(&format!("# {}\n", object.spec.key()));
        text.push_str(&serde_json::to_string_pretty(&object).expect("json"));
        text.push('\n');
        if let Spec::File(file) = &object.spec
            && let Content::Text(content) = &file.content
        {
            text.push_str(content);
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("write");
    }
    let golden = std::fs::read_to_string(&path).expect("golden file; UPDATE_GOLDEN=1 writes it");
    assert_eq!(golden, text);
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
fn conflist_is_json_whatever_the_names_are() {
    let mut spec = spec(true);
    spec.cluster = "a\"b\\c{{ d }}\n".into();
    let objects = homelab_cni::objects(&spec);
    let text = objects
        .iter()
        .find_map(|object| match &object.spec {
            Spec::File(file) => match &file.content {
                Content::Text(text) => Some(text.clone()),
                Content::Opaque(_) | Content::Secret(_) => None,
            },
            _ => None,
        })
        .expect("conflist");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["name"], spec.cluster.as_str());
    assert_eq!(json["plugins"][0]["ranges"][1], "fd00:10:244::/64");
}
