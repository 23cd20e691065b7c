//! Services: ours, a ruleset of kube-proxy's form, the real kube-proxy where there is one, and bare netlink, in network
//! namespaces of their own.

use std::process::{Command, Stdio};

use super::figures::Report;
use crate::tools;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The parts, as they are asked for.
pub(super) const PARTS: [&str; 5] =
    ["proxy-load", "proxy-change", "proxy-memory", "proxy-kube", "proxy-path"];

/// Measures parts of the proxy's benchmark.
pub(super) fn run(report: &mut Report, parts: &[&str], runs: usize) -> Result<()> {
    tools::run(&mut tools::cargo(&[
        "build",
        "--release",
        "--package=homelab-linux",
        "--example=proxy_bench",
    ]))?;
    let parts: Vec<&str> = parts.iter().map(|part| part.trim_start_matches("proxy-")).collect();
    let child = Command::new(tools::target().join("release/examples/proxy_bench"))
        .args([parts.join(","), runs.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    report.follow(child, "the proxy's benchmark")
}
