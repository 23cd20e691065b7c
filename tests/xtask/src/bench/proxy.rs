//! Services: ours, a ruleset of kube-proxy's form, the real kube-proxy where there is one, and bare netlink, in network
//! namespaces of their own.

use std::process::{Command, Stdio};

use super::figures::Report;
use crate::{dist, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The parts, as they are asked for.
pub(super) const PARTS: [&str; 5] =
    ["proxy-load", "proxy-change", "proxy-memory", "proxy-kube", "proxy-path"];

const PROGRAM: [&str; 2] = ["--package=homelab-linux", "--example=proxy_bench"];

/// Measures parts of the proxy's benchmark.
pub(super) fn run(report: &mut Report, parts: &[&str], runs: usize) -> Result<()> {
    tools::run(tools::cargo(&["build", "--release"]).args(PROGRAM))?;
    let parts: Vec<&str> = parts.iter().map(|part| part.trim_start_matches("proxy-")).collect();
    let program = tools::target().join("release/examples/proxy_bench");
    follow(report, Command::new(program).args([parts.join(","), runs.to_string()]))
}

/// Measures the agent as a client of Kubernetes, with so many services.
pub(super) fn kubernetes(report: &mut Report, services: u32, runs: usize) -> Result<()> {
    let arch = std::env::consts::ARCH;
    // As nodes get it, and the bench in the same manner, so that nothing is built twice.
    tools::run(&mut dist::cargo(arch, &["--package=homelab-node"]))?;
    tools::run(&mut dist::cargo(arch, &PROGRAM))?;
    let built = dist::built(arch);
    let mut program = Command::new(built.join("examples/proxy_bench"));
    program.args(["agent", &runs.to_string(), &services.to_string()]).arg(built.join("homelab-node"));
    follow(report, &mut program)
}

fn follow(report: &mut Report, program: &mut Command) -> Result<()> {
    report.follow(program.stdout(Stdio::piped()).spawn()?, "the proxy's benchmark")
}
