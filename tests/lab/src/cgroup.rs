//! One cgroup per node, in the version 2 hierarchy only: it can kill and freeze a whole tree at once.

use crate::command::wait_until;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";

/// Whether version 2 is mounted where systemd expects it, and not beside version 1.
pub(crate) fn unified() -> bool {
    Path::new(ROOT).join("cgroup.procs").exists()
}

/// Where the version 2 hierarchy is mounted on this machine.
pub(crate) fn root() -> PathBuf {
    if unified() { ROOT.into() } else { Path::new(ROOT).join("unified") }
}

/// The cgroup of a lab, seen from a given mount point of the hierarchy.
fn lab_group(root: &Path, lab: &str) -> PathBuf {
    root.join(format!("homelab-lab-{lab}"))
}

/// The cgroup of a node on this machine.
pub(crate) fn node_group(lab: &str, node: &str) -> PathBuf {
    lab_group(&root(), lab).join(node)
}

/// Moves the calling process into a new cgroup for the node, with every controller the machine can give.
pub(crate) fn enter(lab: &str, node: &str) -> Result<()> {
    // Called in a mount namespace in which version 2 is at the usual place.
    let root = Path::new(ROOT);
    let group = lab_group(root, lab);
    let own = group.join(node);
    std::fs::create_dir_all(&own).map_err(Error::file("make cgroup", &own))?;
    for level in [root, &group] {
        for controller in ["cpu", "memory", "pids", "cpuset", "io"] {
            // Not every machine has each of them here; nodes boot without.
            let _ = std::fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    let procs = own.join("cgroup.procs");
    std::fs::write(&procs, "0").map_err(Error::file("enter cgroup", &procs))
}

/// Kills what runs inside the node at once. nspawn itself is spared, so that its end says that all are gone.
pub(crate) fn kill(lab: &str, node: &str) {
    let own = node_group(lab, node);
    if std::fs::write(own.join("payload/cgroup.kill"), "1").is_err() {
        let _ = std::fs::write(own.join("cgroup.kill"), "1");
    }
}

/// Freezes or thaws all processes of the node.
pub(crate) fn freeze(lab: &str, node: &str, frozen: bool) -> Result<()> {
    let payload = node_group(lab, node).join("payload");
    let file = payload.join("cgroup.freeze");
    std::fs::write(&file, if frozen { "1" } else { "0" }).map_err(Error::file("write", &file))?;
    let want = if frozen { "frozen 1" } else { "frozen 0" };
    let reached = wait_until(Duration::from_secs(5), || {
        std::fs::read_to_string(payload.join("cgroup.events")).unwrap_or_default().contains(want)
    });
    if reached {
        return Ok(());
    }
    Err(Error::Timeout { what: format!("{node}: {want}"), seconds: 5, detail: String::new() })
}

/// Empties and removes the node's cgroup. Dying tasks hold it for some milliseconds.
pub(crate) fn remove_node(lab: &str, node: &str) -> Result<()> {
    let own = node_group(lab, node);
    let gone = wait_until(Duration::from_secs(10), || {
        if own.exists() {
            let _ = std::fs::write(own.join("cgroup.kill"), "1");
            remove_tree(&own);
        }
        !own.exists()
    });
    if gone {
        return Ok(());
    }
    Err(Error::Timeout { what: format!("removal of {}", own.display()), seconds: 10, detail: String::new() })
}

/// Removes the lab's own cgroup with all below it.
pub(crate) fn remove_lab(lab: &str) -> Result<()> {
    let group = lab_group(&root(), lab);
    let Ok(entries) = std::fs::read_dir(&group) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_node(lab, &entry.file_name().to_string_lossy())?;
    }
    std::fs::remove_dir(&group).map_err(Error::file("remove", &group))
}

/// A cgroup goes by rmdir alone, its files cannot be removed.
fn remove_tree(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
