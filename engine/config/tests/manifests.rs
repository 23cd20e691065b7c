//! Manifests and what is read of them. `UPDATE_GOLDEN=1` writes `manifests/NAME.out` anew: read what changes.
//!
//! `manifests/NAME.yaml`, or the files of the directory `manifests/NAME`, has its services and its problems, as a
//! terminal of 100 columns shows them, in `manifests/NAME.out`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "golden files")]

#[path = "manifests/anything.rs"]
mod anything;
#[path = "manifests/one_field.rs"]
mod one_field;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use homelab_config::{ManifestDefaults, Manifests, Severity, Source, manifests};
use miette::{GraphicalReportHandler, GraphicalTheme};
use serde_json::Value;

fn defaults() -> ManifestDefaults {
    ManifestDefaults {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        zones: BTreeMap::from([("node1".into(), "attic".into()), ("node2".into(), "attic".into())]),
    }
}

fn read(text: &str) -> Manifests {
    manifests(&[Source { name: "file.yaml".into(), text: text.into() }], &defaults())
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A line for each field; items of lists that are maps each in a line.
fn show(found: &Manifests) -> String {
    let mut out = String::new();
    for declared in &found.services {
        writeln!(out, "{}", declared.service.full_name()).unwrap();
        let Value::Object(mut fields) = serde_json::to_value(declared).unwrap() else { panic!("an object") };
        let Some(Value::Object(service)) = fields.remove("service") else { panic!("an object") };
        for (key, value) in service.into_iter().chain(fields) {
            match value {
                Value::Array(items) if items.iter().any(Value::is_object) => {
                    writeln!(out, "  {key}:").unwrap();
                    items.iter().for_each(|item| writeln!(out, "    {item}").unwrap());
                }
                value
                    if key == "name"
                        || key == "namespace"
                        || value.is_null()
                        || value == Value::Array(vec![]) => {}
                value => writeln!(out, "  {key}: {value}").unwrap(),
            }
        }
    }
    let theme = GraphicalTheme::unicode_nocolor();
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100).with_links(false);
    for problem in &found.problems {
        out.push('\n');
        handler.render_report(&mut out, problem).unwrap();
    }
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

#[test]
fn files_give_their_services() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for entry in sorted(&root) {
        let files = match entry.extension() {
            None => sorted(&entry),
            Some(e) if e == "yaml" => vec![entry.clone()],
            Some(_) => continue,
        };
        let sources: Vec<Source> = files
            .iter()
            .map(|f| {
                Source::from_bytes(f.file_name().unwrap().to_str().unwrap(), fs::read(f).unwrap()).unwrap()
            })
            .collect();
        let found = manifests(&sources, &defaults());
        for problem in &found.problems {
            let source = sources.iter().find(|s| s.name == problem.file).unwrap();
            assert!(source.text.get(problem.offset..problem.offset + problem.length).is_some(), "{problem}");
        }
        let (path, text) = (entry.with_extension("out"), show(&found));
        count += 1;
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).unwrap();
        } else {
            let wanted = fs::read_to_string(&path).unwrap_or_default();
            if wanted != text {
                wrong.push(format!("{}:\n--- expected\n{wanted}\n--- found\n{text}", path.display()));
            }
        }
    }
    assert!(count >= 10, "only {count} cases");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_what_is_no_yaml_is_an_error() {
    let found = read("a: [\n---\nkind: Service\napiVersion: v1\n---\n- 1\n---\nx: 01\n");
    let severities: Vec<Severity> = found.problems.iter().map(|p| p.severity).collect();
    assert_eq!(severities, [Severity::Error, Severity::Warning, Severity::Warning, Severity::Warning]);
}

#[test]
fn without_ranges_every_address_and_family_is_taken() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 80}]\n  clusterIP: 10.43.0.9\n  ipFamilyPolicy: RequireDualStack\n";
    let source = Source { name: "f".into(), text: text.into() };
    let found = manifests(&[source], &ManifestDefaults::default());
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert_eq!(found.services[0].service.cluster_ips, ["10.43.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(found.services[0].families.len(), 2);
}

#[test]
fn no_file_and_an_empty_file_hold_nothing() {
    assert!(manifests(&[], &defaults()).services.is_empty());
    for text in
        ["", "\n", "---\n", "# x\n", "---\n---\n...\n", "null", "apiVersion: v1\nkind: List\nitems: []\n"]
    {
        let found = read(text);
        assert!(found.services.is_empty() && found.problems.is_empty(), "{text:?}: {:?}", found.problems);
    }
}

#[test]
fn ten_thousand_services_are_read() {
    let mut text = String::new();
    for n in 0..10_000 {
        let (a, b) = (n / 250, n % 250 + 1);
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec: {{clusterIP: 10.100.{a}.{b}, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}-x, labels: {{kubernetes.io/service-name: s{n}}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.244.{a}.{b}], nodeName: node1}}]\n"
        )
        .unwrap();
    }
    let found = read(&text);
    assert!(found.problems.is_empty(), "{:?}", found.problems.first());
    assert_eq!(found.services.len(), 10_000);
    assert!(found.services.iter().all(|s| s.service.endpoints.len() == 1));
}
