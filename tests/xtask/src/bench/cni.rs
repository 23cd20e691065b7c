//! CNI ADD and DEL: ours, Debian's reference chain, and the same kernel operations in one bare process.

use std::process::Command;

use super::figures::Report;
use crate::tools;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Measures in a network and mount namespace of its own, so that nothing of this machine is touched.
pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
    if !std::path::Path::new("/usr/lib/cni/bridge").exists() {
        tools::run(Command::new("apt-get").args(["install", "-y", "-qq", "containernetworking-plugins"]))?;
    }
    let directory = std::env::temp_dir().join(format!("homelab-bench-cni-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args(["bench", "--runs", &(runs * 10).to_string(), "--inner"])
        .arg(&directory)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    std::fs::remove_dir_all(&directory)?;
    if !output.status.success() {
        return Err("the CNI benchmark failed".into());
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [task, who, values] = fields[..] else { return Err(format!("not a figure: {line}").into()) };
        let values = values.split(' ').map(str::parse).collect::<std::result::Result<Vec<f64>, _>>()?;
        report.add(task, who, "ms", values);
    }
    Ok(())
}
