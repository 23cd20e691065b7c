//! Files and what is said about them. `UPDATE_GOLDEN=1` writes the expected texts anew: read what changes.
//!
//! `good/NAME.yaml` has the cluster in `NAME.json`; `bad/NAME.yaml` has its problems in `NAME.stderr`, as a
//! terminal of 100 columns shows them. A directory instead of a file holds several files, merged in the order of
//! their names. A file named `stdin` is read as `<stdin>`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "golden files")]

use std::fs;
use std::path::{Path, PathBuf};

use homelab_config::{Problem, Source, load};
use miette::{GraphicalReportHandler, GraphicalTheme};

fn cases(directory: &str) -> Vec<(String, PathBuf, Vec<Source>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
    let mut cases = Vec::new();
    for entry in sorted(&root) {
        let stem = entry.file_stem().unwrap().to_string_lossy().into_owned();
        let files = match entry.is_dir() {
            true => sorted(&entry),
            false if entry.extension().is_some_and(|e| e == "yaml") => vec![entry],
            false => continue,
        };
        let sources = files.iter().map(|f| source(f)).collect();
        cases.push((stem.clone(), root.join(stem), sources));
    }
    cases
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn source(path: &Path) -> Source {
    let name = match path.file_name().unwrap().to_str().unwrap() {
        "stdin.yaml" => "<stdin>",
        name => name,
    };
    match Source::from_bytes(name, fs::read(path).unwrap()) {
        Ok(source) => source,
        Err(problems) => panic!("{problems}"),
    }
}

fn show(problems: &[Problem]) -> String {
    let theme = GraphicalTheme::unicode_nocolor();
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100).with_links(false);
    let mut out = String::new();
    for problem in problems {
        handler.render_report(&mut out, problem).unwrap();
        out.push('\n');
    }
    // Trailing blanks do not survive editors.
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    lines.join("\n").trim_end().to_owned() + "\n"
}

/// Compares or, when asked to, writes; what differs comes back.
fn golden(path: &Path, extension: &str, found: &str) -> Option<String> {
    let path = path.with_extension(extension);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
        return None;
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    (wanted != found).then(|| format!("{}:\n--- expected\n{wanted}\n--- found\n{found}", path.display()))
}

#[test]
fn good_files_give_their_cluster() {
    let mut wrong = Vec::new();
    for (name, path, sources) in cases("good") {
        let loaded = load(&sources).unwrap_or_else(|e| panic!("{name}: {}", show(&e.0)));
        let json = serde_json::to_string_pretty(&loaded.cluster).unwrap() + "\n";
        wrong.extend(golden(&path, "json", &json));
        if !loaded.warnings.is_empty() {
            wrong.extend(golden(&path, "stderr", &show(&loaded.warnings)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bad_files_are_explained_at_their_place() {
    let mut wrong = Vec::new();
    let cases = cases("bad");
    assert!(cases.len() >= 70, "only {} bad files", cases.len());
    for (name, path, sources) in cases {
        let problems = match load(&sources) {
            Err(problems) => problems.0,
            Ok(loaded) => panic!("{name} is good: {:?}", loaded.cluster),
        };
        let text = show(&problems);
        for problem in &problems {
            let place = format!("{}:{}:{}", problem.file, problem.line, problem.column);
            assert!(text.contains(&place), "{name}: {place} is not in\n{text}");
            let source = sources.iter().find(|s| s.name == problem.file).unwrap();
            assert!(source.text.get(problem.offset..problem.offset + problem.length).is_some(), "{name}");
            assert_ne!(problem.code, "internal", "{name}: {problem}");
        }
        wrong.extend(golden(&path, "stderr", &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_schema_file_is_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/homelab.schema.json");
    let differs = golden(&path, "json", &homelab_config::schema_text()).is_some();
    assert!(!differs, "write it anew: UPDATE_GOLDEN=1 cargo test -p homelab-config");
}

#[test]
fn a_manifest_is_known_with_the_file_that_names_it() {
    let source = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
    let base =
        source("base.yaml", "name: home\nnodes: [{name: a, address: 192.168.0.1}]\nmanifests: [x.yaml]\n");
    let over = source("lab/over.yaml", "manifests: [web.yaml, ../dns.yaml]\n");
    let loaded = load(std::slice::from_ref(&base)).unwrap();
    assert_eq!(
        (loaded.cluster.manifests, loaded.manifest_sources),
        (vec!["x.yaml".into()], vec!["base.yaml".into()])
    );
    let loaded = load(&[base, over]).unwrap();
    assert_eq!(loaded.cluster.manifests, ["web.yaml", "../dns.yaml"]);
    assert_eq!(loaded.manifest_sources, ["lab/over.yaml", "lab/over.yaml"]);
}

#[test]
fn a_password_file_is_known_with_the_file_that_names_it() {
    let (_, _, sources) = cases("good").into_iter().find(|(name, ..)| name == "merged-bgp").unwrap();
    let loaded = load(&sources).unwrap();
    let found: Vec<(&str, &str)> =
        loaded.password_sources.iter().map(|(peer, source)| (peer.as_str(), source.as_str())).collect();
    assert_eq!(found, [("other", "1-base.yaml"), ("router", "2-lab.yaml")]);
    assert!(load(&sources[..1]).unwrap().password_sources.values().all(|source| source == "1-base.yaml"));
}
