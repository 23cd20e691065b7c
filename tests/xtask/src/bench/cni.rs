//! CNI ADD and DEL: ours, Debian's reference chain, the same in flannel's order, and the same kernel operations in one
//! bare process.

use std::process::{Command, Stdio};

use super::cni_inner::{CROWD, task};
use super::cni_ways::{CHAIN, FLOOR, HOMELAB};
use super::figures::Report;
use crate::{dist, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// At most so many times the floor.
const TO_FLOOR: f64 = 1.3;
/// So many times faster than the chain, without ports of the node and with them.
const PLAIN: f64 = 4.0;
const HOST_PORTS: f64 = 12.0;

/// Measures in network and mount namespaces of its own, so that nothing of this machine is touched.
pub(super) fn run(report: &mut Report, runs: usize, quick: bool) -> Result<()> {
    let missing: Vec<&str> =
        [("/usr/lib/cni/bridge", "containernetworking-plugins"), ("/usr/bin/iperf3", "iperf3")]
            .into_iter()
            .filter_map(|(path, package)| (!std::path::Path::new(path).exists()).then_some(package))
            .collect();
    if !missing.is_empty() {
        tools::run(Command::new("apt-get").args(["install", "-y", "-qq"]).args(missing))?;
    }
    // Static and optimised as the plugin is.
    tools::run(&mut dist::cargo(
        std::env::consts::ARCH,
        &["--package=homelab-linux", "--example=pod_floor"],
    ))?;
    let directory = std::env::temp_dir().join(format!("homelab-bench-cni-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let child = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args(["bench", "--runs", &runs.to_string()])
        .args(quick.then_some("--quick"))
        .arg("--inner")
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()?;
    let followed = report.follow(child, "the CNI benchmark");
    std::fs::remove_dir_all(&directory)?;
    followed?;
    for verb in ["ADD", "DEL"] {
        for ports in [0, 1, 10] {
            let task = |pods| task(verb, ports, pods, false);
            if let Some(ratio) = report.ratio(&task(CROWD), &task(0)) {
                report.remark(&format!(
                    "homelab's {verb} with {ports} hostPorts takes {ratio:.2} times as long with {CROWD} pods on the node as with none",
                ));
            }
        }
    }
    against_the_aims(report);
    Ok(())
}

/// The medians side by side, with the aims of both ratios and what does not meet them.
fn against_the_aims(report: &mut Report) {
    let mut lines = vec![format!(
        "\n{:<52} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "medians, ms", "homelab", "floor", "to floor", "chain", "chain by"
    )];
    for (at_once, pods, ports, verb) in tasks() {
        let task = task(verb, ports, pods, at_once);
        let Some(ours) = report.median(&task, HOMELAB) else { continue };
        let (floor, chain) = (report.median(&task, FLOOR), report.median(&task, CHAIN));
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let (to_floor, by_chain) = (floor.map(|floor| ours / floor), chain.map(|chain| chain / ours));
        let aim = if ports > 0 { HOST_PORTS } else { PLAIN };
        let mut missed = Vec::new();
        if to_floor.is_some_and(|ratio| ratio > TO_FLOOR) {
            missed.push(format!("above {TO_FLOOR} of the floor"));
        }
        if by_chain.is_some_and(|ratio| ratio < aim) {
            missed.push(format!("less than {aim} times faster than the chain"));
        }
        lines.push(format!(
            "{task:<52} {ours:>9.2} {:>9} {:>9} {:>9} {:>9}  {}",
            number(floor),
            number(to_floor),
            number(chain),
            number(by_chain),
            missed.join(", ")
        ));
    }
    for line in lines {
        report.remark(line.trim_end());
    }
}

/// Every task: whether many at once, pods on the node, ports, verb.
fn tasks() -> impl Iterator<Item = (bool, usize, usize, &'static str)> {
    let rows = [false, true].into_iter().flat_map(|at_once| [0, CROWD].map(|pods| (at_once, pods)));
    let rows = rows.flat_map(|(at_once, pods)| [0, 1, 10].map(|ports| (at_once, pods, ports)));
    rows.flat_map(|(at_once, pods, ports)| ["ADD", "DEL"].map(|verb| (at_once, pods, ports, verb)))
}
