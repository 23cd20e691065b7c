//! `cargo xtask layers`: the direction of imports between our packages, and the bans of the pure ones.
//!
//! The table below is DESIGN.md's drawing. A package that is not in it, or that depends on one of ours that is not
//! in its row, is an error; so is a dependency from outside that a pure package's row does not name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::Value;

use crate::Outcome;

/// A package's place.
struct Layer {
    /// Package name.
    name: &'static str,
    /// Packages of ours that it may depend on, tests included.
    ours: &'static [&'static str],
    /// For a pure package the only crates from outside that it may depend on (tests excepted); None: any.
    pure: Option<&'static [&'static str]>,
}

/// Crates that compute and do nothing else.
const DATA: &[&str] = &["ipnet", "minijinja", "serde", "serde_json", "sha2", "thiserror"];
/// The same for the membership of the agents: SWIM without sockets, and sealing.
const SPEAKER: &[&str] = &[
    "bytes",
    "chacha20poly1305",
    "foca",
    "ipnet",
    "minijinja",
    "postcard",
    "rand",
    "serde",
    "serde_json",
    "sha2",
    "thiserror",
];
/// The same for what Kubernetes' objects mean.
const KUBERNETES: &[&str] = &["ipnet", "k8s-openapi", "serde", "serde_json", "sha2", "thiserror"];
/// The same for the parser of homelab.yaml.
const PARSER: &[&str] =
    &["granit-parser", "ipnet", "jsonschema", "miette", "schemars", "serde", "serde_json", "thiserror"];

const LAYERS: &[Layer] = &[
    Layer { name: "homelab-model", ours: &[], pure: Some(DATA) },
    Layer { name: "homelab-config", ours: &["homelab-model"], pure: Some(PARSER) },
    Layer { name: "homelab-protocol", ours: &["homelab-model"], pure: Some(DATA) },
    Layer { name: "homelab-vtep", ours: &["homelab-model"], pure: Some(DATA) },
    Layer { name: "homelab-cni", ours: &["homelab-model"], pure: Some(DATA) },
    Layer { name: "homelab-proxy", ours: &["homelab-model"], pure: Some(DATA) },
    Layer { name: "homelab-speaker", ours: &["homelab-model"], pure: Some(SPEAKER) },
    Layer { name: "homelab-kubernetes", ours: &["homelab-model"], pure: Some(KUBERNETES) },
    Layer {
        name: "homelab-kube",
        ours: &["homelab-model", "homelab-kubernetes", "homelab-desired", "homelab-test-api"],
        pure: None,
    },
    Layer {
        name: "homelab-desired",
        ours: &["homelab-model", "homelab-vtep", "homelab-cni", "homelab-proxy", "homelab-speaker"],
        pure: Some(DATA),
    },
    Layer { name: "homelab-cri", ours: &[], pure: None },
    Layer {
        name: "homelab-linux",
        ours: &["homelab-model", "homelab-vtep", "homelab-cni", "homelab-proxy", "homelab-test-api"],
        pure: None,
    },
    Layer {
        name: "homelab-node",
        ours: &[
            "homelab-model",
            "homelab-protocol",
            "homelab-desired",
            "homelab-cni",
            "homelab-proxy",
            "homelab-speaker",
            "homelab-cri",
            "homelab-linux",
            "homelab-kubernetes",
            "homelab-kube",
            "homelab-test-api",
        ],
        pure: None,
    },
    Layer {
        name: "homelab-driver",
        ours: &["homelab-model", "homelab-protocol", "homelab-desired"],
        pure: None,
    },
    Layer { name: "homelab-ssh", ours: &["homelab-model", "homelab-driver"], pure: None },
    Layer {
        name: "homelab",
        ours: &[
            "homelab-model",
            "homelab-config",
            "homelab-protocol",
            "homelab-desired",
            "homelab-driver",
            "homelab-ssh",
            "homelab-kube",
        ],
        pure: None,
    },
    Layer { name: "homelab-lab", ours: &[], pure: None },
    Layer { name: "homelab-test-api", ours: &[], pure: None },
    Layer {
        name: "homelab-tests",
        ours: &[
            "homelab",
            "homelab-model",
            "homelab-config",
            "homelab-protocol",
            "homelab-vtep",
            "homelab-cni",
            "homelab-desired",
            "homelab-driver",
            "homelab-cri",
            "homelab-linux",
            "homelab-ssh",
            "homelab-test-api",
            "homelab-lab",
        ],
        pure: None,
    },
    Layer { name: "xtask", ours: &["homelab-lab", "homelab-config", "homelab-model"], pure: None },
];

/// The laptop's packages never reach the node's.
const LAPTOP: &str = "homelab";
const NODE_ONLY: &[&str] = &["homelab-cri", "homelab-linux", "homelab-node"];
/// The one package that may use `unsafe` and so has lints of its own.
const UNSAFE: &str = "homelab-linux";
/// Bans that a pure package's clippy.toml must have; the rest of the file follows from comparing.
const BANS: &[&str] = &[
    "std::fs::File",
    "std::fs::read",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process::Command",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
];

pub(crate) fn run() -> Outcome {
    let mut problems = check_imports(&metadata()?);
    problems.extend(check_files(&metadata()?)?);
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if problems.is_empty() {
        println!("layers: {} packages import only what they may", LAYERS.len());
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// `cargo metadata` of this workspace, without dependencies' own metadata.
pub(crate) fn metadata() -> Result<Value, Box<dyn std::error::Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["metadata", "--format-version=1", "--no-deps"]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What is wrong with the dependencies of the packages that `cargo metadata --no-deps` describes.
fn check_imports(metadata: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let packages = list(metadata, "packages");
    let names: BTreeSet<&str> = packages.iter().map(|package| text(package, "name")).collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let name = text(package, "name");
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
            problems.push(format!("{name} has no place in the layers (tests/xtask/src/layers.rs)"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let other = text(dependency, "name");
            let in_tests = text(dependency, "kind") == "dev";
            if names.contains(other) {
                if !in_tests {
                    edges.entry(name).or_default().insert(other);
                }
                if !layer.ours.contains(&other) {
                    problems.push(format!("{name} may not depend on {other}"));
                }
            } else if !in_tests && layer.pure.is_some_and(|allowed| !allowed.contains(&other)) {
                problems.push(format!("{name} is pure and may not depend on {other}"));
            }
        }
    }
    let mut reached = BTreeSet::from([LAPTOP]);
    let mut next = vec![LAPTOP];
    while let Some(name) = next.pop() {
        for &other in edges.get(name).into_iter().flatten() {
            if reached.insert(other) {
                next.push(other);
            }
        }
    }
    for &other in NODE_ONLY.iter().filter(|other| reached.contains(*other)) {
        problems.push(format!("the laptop's {LAPTOP} links {other}"));
    }
    problems
}

/// What is wrong with the packages' manifests and clippy.toml files.
fn check_files(metadata: &Value) -> Result<Vec<String>, std::io::Error> {
    let mut problems = Vec::new();
    let mut reference: Option<(&str, String)> = None;
    for package in list(metadata, "packages") {
        let name = text(package, "name");
        let manifest = Path::new(text(package, "manifest_path"));
        if name != UNSAFE && !std::fs::read_to_string(manifest)?.contains("[lints]\nworkspace = true") {
            problems.push(format!("{name} does not use the workspace's lints"));
        }
        if LAYERS.iter().any(|layer| layer.name == name && layer.pure.is_some()) {
            let bans = std::fs::read_to_string(manifest.with_file_name("clippy.toml")).unwrap_or_default();
            match &reference {
                None => {
                    problems.extend(missing_bans(name, &bans));
                    reference = Some((name, bans));
                }
                Some((first, same)) if *same != bans => {
                    problems.push(format!("clippy.toml of {name} is not that of {first}"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(problems)
}

fn missing_bans(name: &str, clippy: &str) -> Vec<String> {
    let lacks = |path: &&&str| !clippy.contains(&format!("path = \"{path}\""));
    BANS.iter().filter(lacks).map(|path| format!("clippy.toml of {name} does not ban {path}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Vec<Value> =
            dependencies.iter().map(|(name, kind)| json!({ "name": name, "kind": kind })).collect();
        json!({ "name": name, "dependencies": dependencies })
    }

    fn problems(packages: &[Value]) -> Vec<String> {
        check_imports(&json!({ "packages": packages }))
    }

    #[test]
    fn this_workspace_keeps_the_layers() {
        let metadata = metadata().expect("cargo metadata");
        assert_eq!(check_imports(&metadata), [""; 0]);
        assert_eq!(check_files(&metadata).expect("files"), [""; 0]);
    }

    #[test]
    fn every_row_is_a_package() {
        let metadata = metadata().expect("cargo metadata");
        let names: BTreeSet<&str> = list(&metadata, "packages").iter().map(|p| text(p, "name")).collect();
        assert_eq!(names, LAYERS.iter().map(|layer| layer.name).collect());
    }

    #[test]
    fn the_table_itself_has_no_cycle_and_no_module_that_imports_another() {
        for layer in LAYERS {
            for other in layer.ours {
                let back = LAYERS.iter().find(|l| l.name == *other).expect("a row");
                assert!(!back.ours.contains(&layer.name), "{} <-> {other}", layer.name);
            }
        }
        let modules = ["homelab-vtep", "homelab-cni"];
        for layer in LAYERS.iter().filter(|layer| modules.contains(&layer.name)) {
            assert_eq!(layer.ours, ["homelab-model"]);
        }
    }

    #[test]
    fn a_module_may_not_import_another() {
        let found =
            problems(&[package("homelab-vtep", &[("homelab-cni", None)]), package("homelab-cni", &[])]);
        assert_eq!(found, ["homelab-vtep may not depend on homelab-cni"]);
    }

    #[test]
    fn nor_in_tests_and_build_scripts() {
        for kind in ["dev", "build"] {
            let found = problems(&[
                package("homelab-model", &[("homelab-config", Some(kind))]),
                package("homelab-config", &[]),
            ]);
            assert_eq!(found, ["homelab-model may not depend on homelab-config"]);
        }
    }

    #[test]
    fn a_pure_package_may_not_have_effects() {
        let found = problems(&[package("homelab-protocol", &[("tokio", None), ("serde", None)])]);
        assert_eq!(found, ["homelab-protocol is pure and may not depend on tokio"]);
        // Tests of a pure package may use what they like.
        assert_eq!(problems(&[package("homelab-protocol", &[("tempfile", Some("dev"))])]), [""; 0]);
    }

    #[test]
    fn the_laptop_never_links_the_nodes_side() {
        let found = problems(&[
            package("homelab", &[("homelab-driver", None)]),
            package("homelab-driver", &[("homelab-linux", None)]),
            package("homelab-linux", &[]),
        ]);
        assert_eq!(
            found,
            ["homelab-driver may not depend on homelab-linux", "the laptop's homelab links homelab-linux"]
        );
    }

    #[test]
    fn a_new_package_needs_a_place() {
        let found = problems(&[package("homelab-extra", &[])]);
        assert_eq!(found, ["homelab-extra has no place in the layers (tests/xtask/src/layers.rs)"]);
    }

    #[test]
    fn an_empty_clippy_toml_lacks_every_ban() {
        assert_eq!(missing_bans("homelab-model", "").len(), BANS.len());
    }
}
