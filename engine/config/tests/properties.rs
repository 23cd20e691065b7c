//! What holds for every text.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test inputs are files; time is measured")]

use std::time::{Duration, Instant};

use homelab_config::{Diagnostics, Loaded, Severity, Source, load};
use homelab_model::{
    Cluster, L2Settings, LoadBalancer, Mtu, Network, Node, Pool, PoolRange, SshSettings, Vxlan,
};
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Longest time for one text, in a debug build on a busy machine.
const SLOW: Duration = Duration::from_secs(10);

/// Loads a text; whatever comes out is sound.
fn sound(text: &str) -> Result<Loaded, Diagnostics> {
    let source = Source { name: "homelab.yaml".into(), text: text.to_owned() };
    let start = Instant::now();
    let result = load(&[source]);
    assert!(start.elapsed() < SLOW, "{:?} for {text:.200}", start.elapsed());
    let problems = match &result {
        Ok(loaded) => &loaded.warnings,
        Err(problems) => {
            assert!(problems.iter().any(|p| p.severity == Severity::Error), "no error in {text:.200}");
            &problems.0
        }
    };
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    for problem in problems {
        assert_ne!(problem.code, "internal", "{problem}: {text}");
        assert!(!problem.message.is_empty());
        assert!(text.get(problem.offset..problem.offset + problem.length).is_some(), "{problem}");
        for label in &problem.labels {
            assert!(text.get(label.offset..label.offset + label.length).is_some(), "{problem}");
        }
        assert_eq!(problem.line, text[..problem.offset].matches('\n').count() + 1, "{problem}");
        assert_eq!(problem.github().lines().count(), 1, "{problem}");
        let mut shown = String::new();
        handler.render_report(&mut shown, problem).unwrap();
        let place = format!("{}:{}:{}", problem.file, problem.line, problem.column);
        assert!(shown.contains(&place), "{place} is not in\n{shown}");
    }
    result
}

fn full() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/good/full.yaml");
    std::fs::read_to_string(path).unwrap()
}

/// Every character of the full example left out, replaced, or with a sign after it: good, or problems at places inside the text.
#[test]
fn every_single_slip_is_sound() {
    let text = full();
    let signs = [
        ' ', ':', '"', '\'', '{', '}', '[', ']', '-', '#', '\t', '\n', '0', 'x', '&', '*', '!', '%', 'é', ',',
    ];
    let (mut good, mut bad) = (0, 0);
    for (number, (at, found)) in text.char_indices().enumerate() {
        let (before, after) = (&text[..at], &text[at + found.len_utf8()..]);
        let sign = signs[number % signs.len()];
        for slip in [String::new(), sign.to_string(), format!("{found}{sign}")] {
            match sound(&format!("{before}{slip}{after}")) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
    }
    assert!(good > 500 && bad > 2000, "{good} good, {bad} bad");
}

/// Cut off anywhere, as by a full disk.
#[test]
fn every_beginning_is_sound() {
    let text = full();
    for (at, _) in text.char_indices() {
        drop(sound(&text[..at]));
    }
}

/// Files that would grow, or take long: many problems, many names, long lines.
#[test]
fn large_texts_end_quickly() {
    let nodes: String =
        (0..20_000).map(|n| format!("  - {{name: n{n}, address: 10.0.{}.{}}}\n", n / 256, n % 256)).collect();
    let services: String =
        (0..9_999).map(|n| format!("  - {{name: s{n}, ports: [{{port: 80}}]}}\n")).collect();
    let ranges: String = (0..100)
        .map(|n| {
            format!(
                "  - {{name: p{n}, addresses: [{}]}}\n",
                vec![format!("192.168.{n}.1-192.168.{n}.9"); 100].join(", ")
            )
        })
        .collect();
    let head = "name: a\nnodes: [{name: a, address: 192.168.0.1}]\n";
    let cases = [
        format!("name: a\nnodes:\n{nodes}"),
        format!("{head}services:\n{services}"),
        format!("{head}loadBalancer:\n pools:\n{ranges}"),
        format!("{head}{}", (0..60_000).map(|n| format!("nod{n}: 1\n")).collect::<String>()),
        format!("{head}{}", "nodes: 1\n".repeat(60_000)),
        format!("name: {}\n", "a".repeat(1_000_000)),
        format!("name: a\nnodes: [{}]", "{name: -, address: x},".repeat(900)),
        "a: ".repeat(300_000),
        "[".repeat(1_000_000),
        "- ".repeat(500_000),
        "&a ".repeat(300_000),
        "? ".repeat(300_000),
        "!".repeat(1_000_000),
        "\"".to_owned() + &"\\".repeat(1_000_000),
        "x\n".repeat(500_000),
        "\t".repeat(1_000_000),
    ];
    for text in cases {
        if let Err(problems) = sound(&text) {
            assert!(problems.0.len() <= 101);
        }
    }
}

/// What the file says in JSON, with every key written out.
fn write(cluster: &Cluster) -> Value {
    let ssh = |s: &SshSettings| json!({"host": s.host, "user": s.user, "port": s.port, "identity": s.identity, "jump": s.jump, "become": s.r#become});
    let node = |n: &Node| {
        let addresses: Vec<_> = [Some(n.address), n.address6].into_iter().flatten().collect();
        json!({
            "name": n.name, "address": addresses, "role": n.role, "interface": n.interface,
            "podCIDR": (!n.pod_cidrs.is_empty()).then_some(&n.pod_cidrs), "ssh": ssh(&n.ssh),
        })
    };
    let vxlan = &cluster.network.vxlan;
    let mtu = match vxlan.mtu {
        Mtu::Auto => json!("auto"),
        Mtu::Bytes(bytes) => json!(bytes),
    };
    let pool = |p: &Pool| {
        let ranges: Vec<_> = p.addresses.iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
        json!({"name": p.name, "addresses": ranges, "autoAssign": p.auto_assign, "avoidBuggyIPs": p.avoid_buggy_ips})
    };
    json!({
        "name": cluster.name,
        "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        "network": {
            "podCIDR": cluster.network.pod_cidrs,
            "nodePrefix": cluster.network.node_prefixes,
            "serviceCIDR": cluster.network.service_cidrs,
            "vxlan": {
                "vni": vxlan.vni, "port": vxlan.port, "mtu": mtu, "device": vxlan.device,
                "checksumOffload": vxlan.checksum_offload.map_or(json!("auto"), Value::Bool),
            },
        },
        "loadBalancer": {
            "pools": cluster.load_balancer.pools.iter().map(pool).collect::<Vec<_>>(),
            "l2": {"interfaces": cluster.load_balancer.l2.interfaces, "nodes": cluster.load_balancer.l2.nodes},
        },
    })
}

fn ssh() -> impl Strategy<Value = SshSettings> {
    let text = |pattern| prop::option::of(proptest::string::string_regex(pattern).unwrap());
    let port = prop::option::of(1..=u16::MAX);
    (
        text("[a-z][a-z0-9.]{0,9}"),
        text("[a-z]{1,8}"),
        port,
        text("~/[a-z]{1,8}"),
        text("([a-z]{1,4}@)?[a-z]{1,6}(:22)?"),
        any::<Option<bool>>(),
    )
        .prop_map(|(host, user, port, identity, jump, r#become)| SshSettings {
            host,
            user,
            port,
            identity,
            jump,
            r#become,
        })
}

fn clusters() -> impl Strategy<Value = Cluster> {
    let label = || proptest::string::string_regex("[a-z]([-a-z0-9]{0,20}[a-z0-9])?").unwrap();
    let vxlan =
        (1..=16_777_215_u32, 1..=u16::MAX, prop::option::of(1280..=65_465_u32), any::<Option<bool>>());
    let node = (ssh(), prop::option::of("[a-z]{1,8}"), prop::option::of("[a-z]{1,5}[0-9]"), any::<bool>());
    let pool = (1..200_u8, 0..50_u8, any::<bool>(), any::<bool>());
    (label(), any::<bool>(), vxlan, prop::collection::vec(node, 1..12), prop::collection::vec(pool, 0..4))
        .prop_map(|(name, dual, (vni, port, mtu, checksum_offload), nodes, pools)| {
            let nodes: Vec<Node> = nodes
                .into_iter()
                .zip(1_u8..)
                .map(|((ssh, role, interface, fixed), n)| Node {
                    name: format!("node{n}"),
                    address: format!("192.168.50.{n}").parse().unwrap(),
                    address6: dual.then(|| format!("fd00:50::{n:x}").parse().unwrap()),
                    ssh,
                    pod_cidrs: if fixed { vec![format!("10.244.{n}.0/24").parse().unwrap()] } else { vec![] },
                    interface,
                    role,
                })
                .collect();
            let mut network = Network {
                pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                node_prefixes: vec![24],
                service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
                vxlan: Vxlan {
                    vni,
                    port,
                    mtu: mtu.map_or(Mtu::Auto, Mtu::Bytes),
                    device: format!("homelab.{vni}").chars().take(15).collect(),
                    checksum_offload,
                },
            };
            if dual {
                network.pod_cidrs.push("fd00:10:244::/48".parse().unwrap());
                network.node_prefixes.push(64);
                network.service_cidrs.push("fd00:10:96::/112".parse().unwrap());
            }
            let pools =
                pools.into_iter().zip(60_u8..).map(|((first, count, auto_assign, avoid_buggy_ips), n)| {
                    Pool {
                        name: format!("pool{n}"),
                        addresses: vec![PoolRange {
                            first: format!("192.168.{n}.{first}").parse().unwrap(),
                            last: format!("192.168.{n}.{}", first + count).parse().unwrap(),
                        }],
                        auto_assign,
                        avoid_buggy_ips,
                    }
                });
            let l2 = L2Settings { interfaces: vec![], nodes: vec![nodes[0].name.clone()] };
            let load_balancer = LoadBalancer { pools: pools.collect(), l2 };
            Cluster { name, nodes, network, load_balancer, services: vec![] }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_sound(text in "\\PC*") {
        drop(sound(&text));
    }

    #[test]
    fn any_bytes_are_sound(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        match Source::from_bytes("homelab.yaml", bytes) {
            Ok(source) => drop(sound(&source.text)),
            Err(problems) => prop_assert_eq!(problems.0[0].code, "encoding"),
        }
    }

    #[test]
    fn any_heap_of_signs_is_sound(
        words in prop::collection::vec(prop::sample::select(vec![
            "name", "nodes", "address", "network", "podCIDR", "ssh", "port", "services", ": ", ":", "- ", "-", "[", "]",
            "{", "}", ",", "\n", "\n  ", "\n    ", "&a ", "*a", "<<: ", "!x ", "|", ">", "\"", "'", "#", "? ", "%", "\t",
            "10.0.0.1", "10.244.0.0/16", "1", "~", "true", "é", "---\n", "...\n", "\r\n", "\u{feff}",
        ]), 0..60)
    ) {
        drop(sound(&words.concat()));
    }

    #[test]
    fn what_is_written_is_read(cluster in clusters()) {
        let text = write(&cluster).to_string();
        let loaded = sound(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(loaded.cluster, cluster);
    }
}

/// What the published schema says of a file is what homelab says: an editor and `homelab validate` agree on shape.
#[test]
fn the_published_schema_accepts_the_good_files() {
    let schema = homelab_config::schema();
    let validator = jsonschema::draft7::new(&schema).unwrap();
    let strict = serde_saphyr::options! { strict_booleans: true };
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/good")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let value: Value = serde_saphyr::from_str_with_options(&text, strict.clone()).unwrap();
            let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        }
    }
    assert!(jsonschema::draft7::meta::is_valid(&schema));
}

/// The example that users copy.
#[test]
fn the_example_is_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/homeserver/homelab.yaml");
    let loaded = sound(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(loaded.warnings.is_empty());
}
