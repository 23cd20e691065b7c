//! What a machine must have before anything can be built, and the tools that are built from source.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A tool from crates.io that CI uses.
pub(crate) struct Tool {
    /// Crate and program.
    name: &'static str,
    /// The one version that we use, so that everybody sees the same findings.
    version: &'static str,
    /// Further arguments of `cargo install`.
    arguments: &'static [&'static str],
}

pub(crate) const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", arguments: &[] };
/// Without its web server and file watcher it builds in half the time.
pub(crate) const MDBOOK: Tool =
    Tool { name: "mdbook", version: "0.5.4", arguments: &["--no-default-features", "--features", "search"] };

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// cargo, at the top of the repository.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Prints a command and runs it; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let line = format!("{program} {}", words.join(" "));
    eprintln!("+ {line}");
    let status = command.status().map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{line}: {status}").into()) }
}

impl Tool {
    /// Path of the program: the one in PATH if it has our version, else one of our own, built if it must be.
    pub(crate) fn ensure(&self) -> Result<PathBuf> {
        let own = root().join("target/tools/bin").join(self.name);
        for path in [PathBuf::from(self.name), own.clone()] {
            let shown = Command::new(&path).arg("--version").output();
            if shown.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(self.version)) {
                return Ok(path);
            }
        }
        let version = format!("{}@{}", self.name, self.version);
        let mut install = cargo(&["install", "--locked", "--force", "--root", "target/tools", &version]);
        install.args(self.arguments);
        // These run for seconds: building them quickly is worth more than fast tools.
        for (key, value) in [("OPT_LEVEL", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "false")]
        {
            install.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        run(&mut install)?;
        Ok(own)
    }
}

/// Installs what building needs and this machine does not have: a C compiler and OpenSSL's headers (for libssh2).
pub(crate) fn ensure_build_packages() -> Result<()> {
    let mut missing = Vec::new();
    if !answers("cc", &["--version"]) {
        missing.push("gcc");
    }
    if !answers("ar", &["--version"]) {
        missing.push("binutils");
    }
    if !Path::new("/usr/include/stdio.h").exists() {
        missing.push("libc6-dev");
    }
    if !answers("pkg-config", &["--version"]) {
        missing.push("pkg-config");
    }
    if !answers("pkg-config", &["--exists", "openssl"]) {
        missing.push("libssl-dev");
    }
    install(&missing)
}

/// Installs the SSH server that tests start on the loopback interface, and sees to it that the machine's own does
/// not start because of that.
pub(crate) fn ensure_sshd() -> Result<()> {
    if Path::new("/usr/sbin/sshd").exists() {
        return Ok(());
    }
    // A service starts with its installation unless this says no: invoke-rc.d(8).
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let made = if policy.exists() {
        false
    } else {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(policy, std::fs::Permissions::from_mode(0o755))?;
        true
    };
    let installed = install(&["openssh-server"]);
    if made {
        std::fs::remove_file(policy)?;
    }
    installed?;
    if Path::new("/run/systemd/system").exists() {
        run(Command::new("systemctl").args(["disable", "ssh.service"]))?;
    }
    Ok(())
}

fn answers(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Installs Debian packages.
fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !answers("apt-get", &["--version"]) {
        return Err(format!("install what Debian calls {}", packages.join(" ")).into());
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        run(command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages))
    };
    // A new machine has no package lists, an old one lists versions that the mirror no longer has.
    install().or_else(|_| {
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        install()
    })
}
