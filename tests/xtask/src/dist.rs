//! `cargo xtask dist`: the node binary as the laptop sends it, and the manifest by which `homelab` finds it.
//!
//! Static on the gnu target (`crt-static`), so that it runs on any Linux of its architecture; compressed by gzip,
//! because it travels over SSH.
//!
//! Beside it, in a directory of its own, the same program with fault points, for tests alone.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Outcome, elf, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Architectures as `uname -m` says them; others than this machine's need a linker of theirs
    #[arg(long, value_delimiter = ',', default_value = std::env::consts::ARCH)]
    arch: Vec<String>,
    /// Directory to write to [default: beside the programs that cargo builds for development]
    #[arg(long)]
    to: Option<PathBuf>,
}

/// The name by which `homelab` looks beside its own program.
const MANIFEST: &str = "homelab-node.json";

pub(crate) fn run(args: Args) -> Outcome {
    tools::ensure_build_packages()?;
    if args.to.is_none() {
        build_with_fault_points()?;
    }
    let to = args.to.unwrap_or_else(|| tools::root().join("target/debug"));
    build(&args.arch, &to, Kind::Real)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds for this machine's architecture and writes to `to`.
pub(crate) fn build_here(to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    build(&[std::env::consts::ARCH.to_owned()], to, Kind::Real)
}

/// Builds what tests need: the binary beside the programs that cargo builds for development, and the one with fault
/// points in `faults` there.
pub(crate) fn build_for_tests() -> Result<(), Box<dyn std::error::Error>> {
    build_with_fault_points()?;
    build_here(&tools::root().join("target/debug"))
}

fn build_with_fault_points() -> Result<(), Box<dyn std::error::Error>> {
    let to = tools::root().join("target/debug/faults");
    build(&[std::env::consts::ARCH.to_owned()], &to, Kind::WithFaultPoints)
}

/// Which node binary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What users get.
    Real,
    /// Stops where a file on the node says, so that tests can do something there.
    WithFaultPoints,
}

/// The file by which tests name the point; no other binary knows of it.
const FAULT_FILE: &[u8] = b"homelab-fault";

fn triple(arch: &str) -> String {
    format!("{arch}-unknown-linux-gnu")
}

/// `cargo build` of static programs as nodes get them.
pub(crate) fn cargo(arch: &str, arguments: &[&str]) -> Command {
    let triple = triple(arch);
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    let mut cargo = tools::cargo(&["build", "--profile=dist", "--target", &triple]);
    cargo.args(arguments).env(flags, "-C target-feature=+crt-static");
    cargo
}

/// Where they are.
pub(crate) fn built(arch: &str) -> PathBuf {
    tools::root().join("target").join(triple(arch)).join("dist")
}

fn build(architectures: &[String], to: &Path, kind: Kind) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(to)?;
    let mut binaries: BTreeMap<&str, Value> = BTreeMap::new();
    for arch in architectures {
        let start = Instant::now();
        let mut cargo = cargo(arch, &["--package=homelab-node"]);
        if kind == Kind::WithFaultPoints {
            cargo.arg("--features=fault-points");
        }
        tools::run(&mut cargo)?;
        let path = built(arch).join("homelab-node");
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        elf::check_static(&bytes).map_err(|what| format!("{}: {what}", path.display()))?;
        let has_points = bytes.windows(FAULT_FILE.len()).any(|part| part == FAULT_FILE);
        if has_points != (kind == Kind::WithFaultPoints) {
            return Err(format!("{}: fault points: {has_points}", path.display()).into());
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&bytes)?;
        let packed = gzip.finish()?;
        let file = format!("homelab-node-{arch}.gz");
        std::fs::write(to.join(&file), &packed)?;
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        println!(
            "homelab-node {arch}{}: {} KiB, {} KiB compressed, {}, {:.1?}",
            if has_points { " with fault points" } else { "" },
            bytes.len() / 1024,
            packed.len() / 1024,
            &sha256[..12],
            start.elapsed()
        );
        binaries.insert(arch, json!({ "sha256": sha256, "size": bytes.len(), "file": file }));
    }
    let manifest = json!({ "format_version": 1, "binaries": binaries });
    let mut text = serde_json::to_string_pretty(&manifest)?;
    text.push('\n');
    Ok(std::fs::write(to.join(MANIFEST), text)?)
}
