//! The objects of a node, written down: `UPDATE_GOLDEN=1` rewrites them.
#![allow(clippy::disallowed_methods, reason = "golden files")]

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::path::Path;

use fixtures::spec;
use homelab_model::{Content, Impact, Key, NodeObject, NodeSpec, Object, PodOptions, Spec, diff};

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
fn without_ipv6_in_the_kernel() {
    let mut spec = spec(false);
    spec.ipv6_disabled = true;
    let keys: Vec<String> = homelab_cni::objects(&spec).iter().map(|o| o.spec.key().to_string()).collect();
    assert!(!keys.iter().any(|key| key.contains("net.ipv6")), "{keys:?}");
    // All else is the same.
    spec.ipv6_disabled = false;
    let full = homelab_cni::objects(&spec).into_iter().map(|o| o.spec.key().to_string());
    assert_eq!(keys, full.filter(|key| !key.contains("net.ipv6")).collect::<Vec<_>>());
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

#[test]
fn isolation_changes_the_conflist_alone_and_says_what_running_pods_notice() {
    let plain = spec(true);
    let mut kept_apart = plain.clone();
    kept_apart.pods = PodOptions { port_isolation: true, spoof_protection: true };
    let changes = diff(&homelab_cni::objects(&plain), &homelab_cni::objects(&kept_apart));
    let [change] = &changes[..] else { panic!("{changes:?}") };
    let Some(Spec::File(file)) = change.after().map(|object| &object.spec) else { panic!("{change:?}") };
    let Content::Text(text) = &file.content else { panic!("{file:?}") };
    let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(
        (&json["plugins"][0]["portIsolation"], &json["plugins"][0]["macspoofchk"]),
        (&true.into(), &true.into())
    );
    let (impact, words) = NodeObject::impact(change);
    assert_eq!(impact, Impact::Brief);
    assert!(words.starts_with("running pods stay as isolated and as guarded as they are"), "{words}");
    // Another MTU is no matter of isolation.
    let other = NodeSpec { pod_mtu: 1400, ..kept_apart.clone() };
    let changes = diff(&homelab_cni::objects(&kept_apart), &homelab_cni::objects(&other));
    let file = changes.iter().find(|change| matches!(change.key(), Key::File(_))).expect("conflist");
    assert_eq!(NodeObject::impact(file).0, Impact::None);
}
