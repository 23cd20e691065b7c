//! `cargo xtask bench`: ours, the peer and the floor in one run, with ratios, on a lab of its own.

mod cni;
mod cni_inner;
mod cni_path;
mod cni_ways;
mod engine;
mod failover;
mod figures;
mod peers;
mod proxy;
mod rollback;
mod tunnel;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use homelab_lab::Lab;
use homelab_lab::host::ensure_packages;

use crate::{Outcome, dist, tools};
use figures::Report;

/// Benchmarks that take long, or a lab each.
const ASKED_FOR: [&str; 4] = ["scale", "failover", "speaker", "kubernetes"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure: engine, rollback, scale, cni, tunnel, failover, speaker, kubernetes (the agent as a client of an
    /// API server, beside kube-proxy), proxy, or a part of the last: proxy-load, proxy-change, proxy-memory, proxy-kube
    /// (the real kube-proxy, from PATH or KUBEBUILDER_ASSETS), proxy-path [default: all but scale, failover, speaker and
    /// kubernetes]
    what: Vec<String>,
    /// Runs of each thing; the median is quoted
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// With failover: instead of failovers, so many minutes of short CPU and lost packets, in which none may happen
    #[arg(long)]
    endure: Option<f64>,
    /// With cni: a few minutes instead of the whole; without throughput, flannel's order, 10 hostPorts, and the reference
    /// among many pods or 64 at once
    #[arg(long)]
    quick: bool,
    /// With kubernetes: so many Services and EndpointSlices
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    services: u32,
    /// Also write the figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Part of the CNI benchmark that runs inside a namespace of its own
    #[arg(long, hide = true)]
    inner: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Outcome {
    if let Some(directory) = &args.inner {
        return cni_inner::run(directory, args.runs, args.quick);
    }
    let known =
        ["engine", "rollback", "scale", "cni", "tunnel", "failover", "speaker", "kubernetes", "proxy"];
    if let Some(unknown) =
        args.what.iter().find(|w| !known.contains(&w.as_str()) && !proxy::PARTS.contains(&w.as_str()))
    {
        let known = known.into_iter().chain(proxy::PARTS).collect::<Vec<_>>();
        return Err(format!("no benchmark {unknown}; there are {}", known.join(", ")).into());
    }
    let asked = |name: &str| args.what.iter().any(|w| w == name);
    let wanted = |name: &str| asked(name) || (args.what.is_empty() && !ASKED_FOR.contains(&name));
    let mut report = Report::default();
    if known
        .into_iter()
        .any(|name| !["failover", "speaker", "kubernetes", "proxy"].contains(&name) && wanted(name))
    {
        on_the_lab(&mut report, &wanted, args.runs, args.quick)?;
    }
    if wanted("failover") {
        match args.endure {
            Some(minutes) => failover::endure(&mut report, minutes)?,
            None => failover::run(&mut report, args.runs)?,
        }
    }
    if wanted("speaker") {
        failover::speaker(&mut report)?;
    }
    if wanted("kubernetes") {
        proxy::kubernetes(&mut report, args.services, args.runs.min(3))?;
    }
    let parts: Vec<&str> = proxy::PARTS.into_iter().filter(|part| asked(part) || wanted("proxy")).collect();
    if !parts.is_empty() {
        proxy::run(&mut report, &parts, args.runs.min(3))?;
    }
    print!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, report.json())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What needs nodes, or programs of the node.
fn on_the_lab(
    report: &mut Report,
    wanted: &dyn Fn(&str) -> bool,
    runs: usize,
    quick: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    ensure_packages()?;
    tools::ensure_build_packages()?;
    if ["engine", "rollback", "scale", "tunnel"].into_iter().any(wanted) {
        // The laptop's side as its users get it: optimised, with the node binary beside it.
        tools::run(&mut tools::cargo(&[
            "build",
            "--release",
            "--package=homelab",
            "--package=homelab-lab",
            "--bins",
        ]))?;
        tools::run(&mut tools::cargo(&["build", "--release", "--package=homelab-ssh", "--example=floor"]))?;
    }
    dist::build_here(&tools::root().join("target/release"))?;

    if wanted("engine") {
        engine::run(report, runs)?;
    }
    if wanted("rollback") {
        rollback::run(report, runs)?;
    }
    if wanted("scale") {
        engine::scale(report, runs.min(5))?;
    }
    if wanted("cni") {
        cni::run(report, runs, quick)?;
    }
    if wanted("tunnel") {
        tunnel::run(report, runs.min(5))?;
    }
    Ok(())
}

/// The optimised `homelab` on the client, with this cluster file.
fn homelab(lab: &Lab, config: &Path, arguments: &[&str]) -> homelab_lab::Result<Command> {
    let mut command = lab.command_in("client")?;
    command.arg(tools::root().join("target/release/homelab")).arg("-f").arg(config).args(arguments);
    Ok(command)
}
