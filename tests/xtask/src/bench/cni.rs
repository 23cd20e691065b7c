//! CNI ADD and DEL: ours, Debian's reference chain, the same in flannel's order, and the same kernel operations in one
//! bare process.

use std::process::{Command, Stdio};

use super::figures::Report;
use crate::{dist, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Measures in network and mount namespaces of its own, so that nothing of this machine is touched.
pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
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
        .args(["bench", "--runs", &runs.to_string(), "--inner"])
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()?;
    let followed = report.follow(child, "the CNI benchmark");
    std::fs::remove_dir_all(&directory)?;
    followed?;
    for verb in ["ADD", "DEL"] {
        for ports in [0, 1, 10] {
            let task = |pods| super::cni_inner::task(verb, ports, pods, false);
            if let Some(ratio) = report.ratio(&task(super::cni_inner::CROWD), &task(0)) {
                report.remark(&format!(
                    "homelab's {verb} with {ports} hostPorts takes {ratio:.2} times as long with {} pods on the node as with none",
                    super::cni_inner::CROWD
                ));
            }
        }
    }
    Ok(())
}
