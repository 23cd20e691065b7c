//! Resident memory of a process that holds what the agent holds.

use std::process::Command;

use homelab_linux::Connections;
use homelab_model::NodeSpec;

use crate::ours::{self, Ours};
use crate::time::cost;
use crate::{SIZES, figure};

/// Each size in a process of its own.
pub(crate) fn run() {
    for size in SIZES {
        let mut spec = ours::spec();
        spec.services = ours::services(size);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(&spec).unwrap()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.arg("hold").arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let values: Vec<f64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [start, steady, peak, parse] = values[..] else { panic!("{said}") };
        let task = format!("memory, {}", size.label());
        figure(&task, "homelab", "MiB", &[steady]);
        figure(&task, "homelab: at its peak", "MiB", &[peak]);
        figure(&task, "floor: before anything is read", "MiB", &[start]);
        figure(&format!("reading node.json, {}", size.label()), "homelab", "ms", &[parse]);
    }
}

/// Reads the node's file, loads all and changes one service, as the agent does; prints what that took.
pub(crate) fn hold(file: &str) {
    let start = resident("VmRSS:");
    let mut node = Ours::new();
    let (parse, spec) = cost(|| {
        let bytes = std::fs::read(file).unwrap();
        serde_json::from_slice::<NodeSpec>(&bytes).unwrap()
    });
    node.load_ruleset();
    let mut elements = ours::compiled(&spec.services);
    node.node.sync_services(&elements, Connections::All).unwrap();
    let mut service = spec.services[0].clone();
    ours::replace_endpoint(&mut service, 0);
    let mut changed = ours::compiled(&[service]);
    node.node.sync_changed_services(&changed).unwrap();
    elements.append(&mut changed);
    println!("{start} {} {} {}", resident("VmRSS:"), resident("VmHWM:"), parse.wall);
    drop((node, elements, spec));
}

/// A line of /proc/self/status, MiB.
fn resident(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
