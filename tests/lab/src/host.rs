//! What the machine that carries the lab must have.

use crate::command::{output, run};
use crate::{Error, Result};
use std::process::Command;

/// A program the lab needs and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("arping", "iputils-arping"),
    ("busybox", "busybox-static"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("mmdebstrap", "mmdebstrap"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("python3", "python3-minimal"),
    ("socat", "socat"),
    ("ssh", "openssh-client"),
    ("systemd-nspawn", "systemd-container"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
];

/// Whether `program` is in `PATH` or where system programs live.
fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into))
        .any(|dir| dir.join(program).is_file())
}

/// Debian packages the lab needs that are not on this machine.
pub fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Installs what the lab needs and this machine does not have, by `apt-get`; says so on stderr.
///
/// Refused for any user but root: the lab needs root anyway.
pub fn ensure_packages() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Usage("the lab needs root: it makes namespaces, mounts and cgroups".into()));
    }
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    if !found("apt-get") {
        return Err(Error::Usage(format!(
            "install what has these Debian packages' programs: {}",
            missing.join(" ")
        )));
    }
    eprintln!("lab: apt-get install {}", missing.join(" "));
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing);
        output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if install()?.success() {
        return Ok(());
    }
    // Old package lists name versions the mirror no longer has.
    run("apt-get", &["update", "--quiet"])?;
    install()?.ok().map(drop)
}
