//! The last step of starting a node: this process becomes `systemd-nspawn`.

use crate::disk::{Disk, forget_others};
use crate::{Error, Result, cgroup, lan, paths};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Goes into a mount namespace and a cgroup of the node's own and becomes nspawn. Returns only if that fails.
pub(crate) fn launch(lab: &str, node: &str) -> Result<std::convert::Infallible> {
    let dir = paths::node_dir(&paths::lab_dir(lab), node);
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("make a mount namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(Error::system("make mounts private"))?;
    forget_others(&dir)?;
    if !cgroup::unified() {
        // Beside version 1, systemd in the node would find no version 2 to kill, freeze and count with.
        mount(Some("none"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
            .map_err(Error::system("mount cgroup2"))?;
    }
    cgroup::enter(lab, node)?;
    let mut nspawn = nspawn(lab, node, &Disk::of(&dir));
    Err(Error::Start { source: nspawn.exec(), command: "systemd-nspawn".into() })
}

fn nspawn(lab: &str, node: &str, disk: &Disk) -> Command {
    let space = paths::netns(&lan::space(lab, node));
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let mut command = Command::new("systemd-nspawn");
    command
        // The guard: /proc/sys is read-only but for /proc/sys/net, which is the network namespace's own. It stops
        // every ordinary write from the first instruction of init on; root in the node could still remount it, so
        // nothing that runs there may do that.
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .env("SYSTEMD_SECCOMP", "0")
        .env("SYSTEMD_NSPAWN_LOCK", "0")
        .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no", "--console=pipe"])
        .args(["--link-journal=no", "--resolv-conf=off", "--timezone=off", "--kill-signal=SIGRTMIN+3"])
        // A given network namespace does not imply the first of these.
        .arg("--capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON")
        .arg(format!("--machine={lab}-{node}"))
        .arg(format!("--hostname={node}"))
        .arg(flag("directory", &disk.root()))
        .arg(flag("network-namespace-path", &space));
    for (outside, inside) in disk.plain() {
        command.arg(format!("--bind={}:{inside}", outside.display()));
    }
    command
}
