//! The nodes' image: a Debian root directory, built once per recipe and shared, read-only, by all labs.

use crate::command::{output_with_input, run};
use crate::image_files::{
    DISABLED, ENABLED, FILES, MASKED, MODULES, OFFERED, PACKAGES, SUDO_PASSWORD, SUITE,
};
use crate::{Error, Result, oci, paths};
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Changed by hand when the code below makes another image from the same lists.
const RECIPE: u32 = 1;

/// Makes a repository of the packages that are only offered.
const OFFER: &str = include_str!("../files/offer.sh");

/// Everything the image depends on, as text.
fn recipe() -> String {
    format!(
        "{RECIPE} {SUITE} {PACKAGES:?} {OFFERED:?} {OFFER} {MASKED:?} {ENABLED:?} {DISABLED:?} {FILES:?} {MODULES:?} {} {} {SUDO_PASSWORD}",
        kernel_release().unwrap_or_default(),
        std::env::consts::ARCH,
    )
}

/// Root directory of the image; builds it first if this recipe was never built here (about 40 s).
pub(crate) fn ensure() -> Result<PathBuf> {
    let cache = paths::cache_dir();
    let hash = oci::sha256(recipe().as_bytes());
    let image = cache.join(&hash[..16]);
    if image.is_dir() {
        return Ok(image);
    }
    paths::make_dir(&cache)?;
    // Only one of several labs that come up at once builds; the others wait and find the result.
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).map_err(Error::file("open", &lock_path))?;
    lock.lock().map_err(Error::file("lock", &lock_path))?;
    if image.is_dir() {
        return Ok(image);
    }
    let part = cache.join("building");
    if part.exists() {
        std::fs::remove_dir_all(&part).map_err(Error::file("remove", &part))?;
    }
    eprintln!("lab: building the nodes' image (once, about a minute)");
    build(&part)?;
    std::fs::rename(&part, &image).map_err(Error::file("rename to", &image))?;
    Ok(image)
}

fn build(root: &Path) -> Result<()> {
    let target = root.to_string_lossy().into_owned();
    run(
        "mmdebstrap",
        &[
            "--mode=root",
            "--variant=minbase",
            &format!("--include={}", PACKAGES.join(",")),
            "--aptopt=Acquire::Languages \"none\"",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            &format!("--customize-hook={}", fetch_offered()),
            SUITE,
            &target,
        ],
    )?;
    let inside = |args: &[&str]| run("chroot", &[&[target.as_str()], args].concat());
    inside(&["sh", "-c", OFFER])?;
    inside(&["useradd", "--create-home", "--shell=/bin/bash", "--uid=1000", "debian"])?;
    inside(&["useradd", "--create-home", "--shell=/bin/bash", "--uid=1001", "--groups=sudo", "pw"])?;
    output_with_input(Command::new("chroot").arg(root).arg("chpasswd"), &format!("pw:{SUDO_PASSWORD}\n"))?
        .ok()?;
    inside(&[
        "dpkg-divert",
        "--quiet",
        "--rename",
        "--divert",
        "/usr/sbin/runc.real",
        "--add",
        "/usr/sbin/runc",
    ])?;
    for (path, mode, text) in FILES {
        place(&root.join(path), *mode, text.as_bytes())?;
    }
    inside(&[&["systemctl", "--quiet", "enable"], ENABLED].concat())?;
    inside(&[&["systemctl", "--quiet", "disable"], DISABLED].concat())?;
    for unit in MASKED {
        let path = root.join("etc/systemd/system").join(unit);
        paths::remove(&path)?;
        symlink("/dev/null", &path).map_err(Error::file("link", &path))?;
    }
    modules(root)?;
    images(root)?;
    // Every node gets host keys and a machine id of its own. Podman's example network would rival ours.
    for file in host_keys(root)?.iter().chain(&[root.join("etc/cni/net.d/87-podman-bridge.conflist")]) {
        paths::remove(file)?;
    }
    paths::write(&root.join("etc/machine-id"), "")
}

/// For mmdebstrap, while it has the network: downloads the packages that are only offered, and what they depend on that
/// the image does not have.
fn fetch_offered() -> String {
    format!(
        r#"set -e
cache="$1/var/cache/apt/archives"
rm -f "$cache"/*.deb
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install --quiet --yes --download-only --no-install-recommends {}
mkdir -p "$1/opt/apt"
mv "$cache"/*.deb "$1/opt/apt""#,
        OFFERED.join(" ")
    )
}

/// Host keys that the package made: one set for all nodes, so worthless.
fn host_keys(root: &Path) -> Result<Vec<PathBuf>> {
    let dir = root.join("etc/ssh");
    let entries = std::fs::read_dir(&dir).map_err(Error::file("read", &dir))?;
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ssh_host_"));
    Ok(entries.flatten().map(|entry| entry.path()).filter(named).collect())
}

fn kernel_release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    Ok(std::fs::read_to_string(path).map_err(Error::file("read", path))?.trim().to_owned())
}

/// Makes `modprobe vxlan` and the like succeed.
fn modules(root: &Path) -> Result<()> {
    let release = kernel_release()?;
    let dir = root.join("lib/modules").join(&release);
    let list: String = MODULES.iter().map(|module| format!("kernel/{module}.ko\n")).collect();
    place(&dir.join("modules.builtin"), 0o644, list.as_bytes())?;
    place(&dir.join("modules.order"), 0o644, b"")?;
    run("chroot", &[&root.to_string_lossy(), "depmod", &release]).map(drop)
}

/// Container images for nodes without internet, from the image's own busybox.
fn images(root: &Path) -> Result<()> {
    let path = root.join("bin/busybox");
    let busybox = std::fs::read(&path).map_err(Error::file("read", &path))?;
    let list = run("chroot", &[&root.to_string_lossy(), "busybox", "--list"])?;
    let applets: Vec<String> = list.stdout.lines().map(str::to_owned).collect();
    place(&root.join("opt/images/lab.tar"), 0o644, &oci::archive(&busybox, &applets))
}

/// Writes a file with its mode, making the directories above it.
pub(crate) fn place(path: &Path, mode: u32, text: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        paths::make_dir(dir)?;
    }
    // A package may have put a symbolic link here that leads out of the image.
    if path.is_symlink() {
        paths::remove(path)?;
    }
    paths::write(path, text)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
        .map_err(Error::file("set the mode of", path))
}
