//! What holds for every text.

use std::collections::HashSet;

use homelab_config::{Manifests, Severity};
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;

use super::one_field::GOOD;
use super::read;

/// Reads a text; whatever comes out is sound.
pub(crate) fn sound(text: &str) -> Manifests {
    let found = read(text);
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    for problem in &found.problems {
        assert_ne!(problem.code, "internal", "{problem}: {text}");
        assert!(text.get(problem.offset..problem.offset + problem.length).is_some(), "{problem}");
        assert_eq!(problem.line, text[..problem.offset].matches('\n').count() + 1, "{problem}");
        for label in &problem.labels {
            assert!(text.get(label.offset..label.offset + label.length).is_some(), "{problem}");
        }
        let mut shown = String::new();
        handler.render_report(&mut shown, problem).unwrap();
        let place = format!("{}:{}:{}", problem.file, problem.line, problem.column);
        assert!(shown.contains(&place), "{place} is not in\n{shown}");
    }
    assert!(found.problems.len() <= 101);
    let mut names = HashSet::new();
    for declared in &found.services {
        let service = &declared.service;
        assert!(names.insert(service.full_name()), "{} twice", service.full_name());
        assert!(!service.ports.is_empty() && (1..=2).contains(&declared.families.len()), "{service:?}");
        assert!(service.cluster_ips.len() <= declared.families.len(), "{service:?}");
        for (ip, family) in service.cluster_ips.iter().zip(&declared.families) {
            assert_eq!(ip.is_ipv4(), *family == homelab_model::Family::IPv4, "{service:?}");
        }
        let ports: HashSet<&str> = service.ports.iter().map(|p| p.name.as_str()).collect();
        for endpoint in &service.endpoints {
            assert!(
                endpoint.ports.names().next().is_some() && endpoint.ports.names().all(|p| ports.contains(p)),
                "{service:?}"
            );
        }
    }
    found
}

/// Every character of a good file left out, replaced, or with a sign after it.
#[test]
fn every_single_slip_is_sound() {
    let signs =
        [' ', ':', '"', '\'', '{', '}', '[', ']', '-', '#', '\t', '\n', '0', 'x', '&', '*', '!', 'é', ','];
    let (mut good, mut warned, mut broken) = (0, 0, 0);
    for (number, (at, found)) in GOOD.char_indices().enumerate() {
        let (before, after) = (&GOOD[..at], &GOOD[at + found.len_utf8()..]);
        let sign = signs[number / 3 % signs.len()];
        let slip = match number % 3 {
            0 => String::new(),
            1 => sign.to_string(),
            _ => format!("{found}{sign}"),
        };
        let found = sound(&format!("{before}{slip}{after}"));
        match found.problems.iter().map(|p| p.severity).min() {
            None => good += 1,
            Some(Severity::Warning) => warned += 1,
            Some(Severity::Error) => broken += 1,
        }
    }
    assert!(good > 100 && warned > 300 && broken > 100, "{good} good, {warned} warned, {broken} broken");
}

/// Cut off anywhere, as by a full disk.
#[test]
fn every_beginning_is_sound() {
    for (at, _) in GOOD.char_indices() {
        sound(&GOOD[..at]);
    }
}

/// Files that would grow, or take long.
#[test]
fn large_texts_end() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ";
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\n";
    let ports = |field: &str| {
        (0..15_000).map(|n| format!("{{name: p{n}, {field}: {}}}", n + 1)).collect::<Vec<_>>().join(", ")
    };
    let selector = (0..20_000).map(|n| format!("k{n}: {n}")).collect::<Vec<_>>().join(", ");
    let numbers: String = (1..4_000)
        .map(|n| format!("{slice}ports: [{{port: {n}}}]\nendpoints: [{{addresses: [10.0.0.1]}}]\n"))
        .collect();
    let cases = [
        format!(
            "{service}ports: [{}]\n{slice}ports: [{}]\nendpoints: [{{addresses: [10.0.0.1]}}]\n",
            ports("port"),
            ports("port")
        ),
        format!("{service}ports: [{{port: 80}}]\n  selector: {{{selector}}}\n"),
        format!("{service}ports: [{{port: 80}}]\n{numbers}"),
        format!("{service}ports: [{}]\n", "{port: 80}, ".repeat(20_000)),
        "---\n".repeat(100_000),
        "---\na: [\n".repeat(5_000),
        "...\n".repeat(100_000),
        "---\nkind: Service\n".repeat(5_000),
        format!("apiVersion: v1\nkind: List\nitems: [{}]", "{kind: Service, apiVersion: v1}, ".repeat(5_000)),
        "apiVersion: v1\nkind: List\nitems:\n- ".repeat(1_000),
        format!("a: [{}]", "01, ".repeat(100_000)),
        "[".repeat(1_000_000),
        "- ".repeat(500_000),
        "x\n".repeat(500_000),
        "!".repeat(1_000_000),
    ];
    for text in cases {
        sound(&text);
    }
}

/// A list in a list in a list: no deeper than a document is.
#[test]
fn lists_in_lists_are_read() {
    let item = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}";
    let list =
        (0..20).fold(item.to_owned(), |list, _| format!("{{apiVersion: v1, kind: List, items: [{list}]}}"));
    assert_eq!(sound(&list).services.len(), 1);
}

/// Values that fields have, and some that none has.
fn value() -> impl Strategy<Value = String> {
    let words = [
        "null",
        "true",
        "no",
        "0",
        "-1",
        "80",
        "70000",
        "1.5",
        "''",
        "None",
        "IPv4",
        "IPv6",
        "LoadBalancer",
        "NodePort",
        "ExternalName",
        "Local",
        "ClientIP",
        "TCP",
        "10.96.0.9",
        "fd00:10:96::9",
        "127.0.0.1",
        "10.0.0.0/8",
        "web",
        "01",
        "!!x y",
        "*a",
        "&a b",
        "RequireDualStack",
    ];
    let leaf = prop_oneof![
        proptest::sample::select(words.to_vec()).prop_map(str::to_owned),
        "[ -~]{0,8}".prop_map(|t| format!("'{}'", t.replace('\'', "''"))),
    ];
    let keys = [
        "name",
        "namespace",
        "labels",
        "port",
        "protocol",
        "nodePort",
        "targetPort",
        "ip",
        "ipMode",
        "addresses",
        "conditions",
        "ready",
        "hints",
        "forZones",
        "clientIP",
        "timeoutSeconds",
        "loadBalancer",
        "ingress",
        "kubernetes.io/service-name",
        "ports",
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::vec((proptest::sample::select(keys.to_vec()), inner), 0..4).prop_map(
                |entries| {
                    let entries: Vec<String> = entries.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                    format!("{{{}}}", entries.join(", "))
                }
            ),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Arbitrary values in the places of a Service's and a slice's fields; a neighbour never suffers.
    #[test]
    fn any_values_are_sound(
        spec in proptest::collection::vec((proptest::sample::select(&SPEC[..]), value()), 0..8),
        slice in proptest::collection::vec((proptest::sample::select(&["addressType", "ports", "endpoints", "metadata"][..]), value()), 0..4),
        status in value(),
    ) {
        let fields = |fields: &[(&str, String)], indent: &str| {
            let mut seen = HashSet::new();
            fields.iter().filter(|f| seen.insert(f.0)).map(|(k, v)| format!("{indent}{k}: {v}\n")).collect::<String>()
        };
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nstatus: {status}\nspec:\n  x: y\n{}---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{}---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: neighbour}}\nspec: {{ports: [{{port: 80}}]}}\n",
            fields(&spec, "  "), fields(&slice, ""),
        );
        let found = sound(&text);
        prop_assert!(found.services.iter().any(|s| s.service.name == "neighbour"), "{text}");
    }

    /// Any text at all.
    #[test]
    fn any_text_is_sound(text in "(---\n|\\.\\.\\.\n|kind: Service\n|apiVersion: v1\n|[ -~é\n\t]{0,12}){0,12}") {
        sound(&text);
    }
}

const SPEC: [&str; 20] = [
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "ports",
    "externalIPs",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "sessionAffinity",
    "sessionAffinityConfig",
    "healthCheckNodePort",
    "allocateLoadBalancerNodePorts",
    "trafficDistribution",
    "loadBalancerClass",
    "publishNotReadyAddresses",
    "selector",
    "externalName",
];
