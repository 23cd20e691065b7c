//! `cargo xtask bench`: ours, the peer and the floor in one run, with ratios, on a lab of its own.

mod cni;
mod cni_inner;
mod engine;
mod figures;
mod peers;
mod rollback;
mod tunnel;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use homelab_lab::Lab;
use homelab_lab::host::ensure_packages;

use crate::{Outcome, dist, tools};
use figures::Report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure: engine, rollback, scale, cni, tunnel [default: all but scale]
    what: Vec<String>,
    /// Runs of each thing; the median is quoted
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Also write the figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Part of the CNI benchmark that runs inside a namespace of its own
    #[arg(long, hide = true)]
    inner: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Outcome {
    if let Some(directory) = &args.inner {
        return cni_inner::run(directory, args.runs);
    }
    let known = ["engine", "rollback", "scale", "cni", "tunnel"];
    if let Some(unknown) = args.what.iter().find(|w| !known.contains(&w.as_str())) {
        return Err(format!("no benchmark {unknown}; there are {}", known.join(", ")).into());
    }
    let wanted =
        |name: &str| args.what.iter().any(|w| w == name) || (args.what.is_empty() && name != "scale");
    ensure_packages()?;
    tools::ensure_build_packages()?;
    // The laptop's side as its users get it: optimised, with the node binary beside it.
    tools::run(&mut tools::cargo(&[
        "build",
        "--release",
        "--package=homelab",
        "--package=homelab-lab",
        "--bins",
    ]))?;
    tools::run(&mut tools::cargo(&[
        "build",
        "--release",
        "--package=homelab-ssh",
        "--example=floor",
        "--package=homelab-linux",
        "--example=pod_floor",
    ]))?;
    dist::build_here(&tools::root().join("target/release"))?;

    let mut report = Report::default();
    if wanted("engine") {
        engine::run(&mut report, args.runs)?;
    }
    if wanted("rollback") {
        rollback::run(&mut report, args.runs)?;
    }
    if wanted("scale") {
        engine::scale(&mut report, args.runs.min(5))?;
    }
    if wanted("cni") {
        cni::run(&mut report, args.runs)?;
    }
    if wanted("tunnel") {
        tunnel::run(&mut report, args.runs.min(5))?;
    }
    print!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, report.json())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The optimised `homelab` on the client, with this cluster file.
fn homelab(lab: &Lab, config: &Path, arguments: &[&str]) -> homelab_lab::Result<Command> {
    let mut command = lab.command_in("client")?;
    command.arg(tools::root().join("target/release/homelab")).arg("-f").arg(config).args(arguments);
    Ok(command)
}
