//! A host's disk: a tmpfs that holds the upper layer over the shared image. It survives a power cut of the node,
//! not a reset.

use crate::image::place;
use crate::{Error, Result, paths};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Size of a disk, bytes.
const SIZE: u64 = 4 << 30;

/// The directories of one host's disk.
pub(crate) struct Disk(PathBuf);

/// What distinguishes one host's fresh disk from another's.
pub(crate) struct Identity<'a> {
    /// Host name.
    pub(crate) name: &'a str,
    /// Directory with `ssh_host_*` files.
    pub(crate) host_keys: &'a Path,
    /// Text of `authorized_keys` for all users.
    pub(crate) authorized: &'a str,
    /// Further files: path and text.
    pub(crate) files: &'a [(&'a str, String)],
}

impl Disk {
    /// The disk of a host whose directory in the lab is `host_dir`.
    pub(crate) fn of(host_dir: &Path) -> Self {
        Self(host_dir.join("disk"))
    }

    /// The root directory as the host sees it.
    pub(crate) fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// Directories outside the overlay, for those who lay an overlay of their own: two levels do not work.
    pub(crate) fn plain(&self) -> [(PathBuf, &'static str); 2] {
        [
            (self.0.join("containerd"), "/var/lib/containerd"),
            (self.0.join("containers"), "/var/lib/containers"),
        ]
    }

    /// Whether it is mounted.
    pub(crate) fn exists(&self) -> bool {
        self.root().join("etc").exists()
    }

    /// Mounts a fresh disk and makes it the given host's.
    pub(crate) fn create(&self, image: &Path, identity: &Identity<'_>) -> Result<()> {
        let dir = &self.0;
        paths::make_dir(dir)?;
        let size = format!("mode=755,size={SIZE}");
        mount(Some("homelab-lab"), dir, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .map_err(Error::system(format!("mount {}", dir.display())))?;
        for part in ["upper", "work", "root", "containerd", "containers"] {
            paths::make_dir(&dir.join(part))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            image.display(),
            dir.join("upper").display(),
            dir.join("work").display()
        );
        let root = self.root();
        mount(Some("homelab-lab"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(Error::system(format!("mount {}", root.display())))?;
        self.personalise(identity)
    }

    fn personalise(&self, identity: &Identity<'_>) -> Result<()> {
        let root = self.root();
        let name = identity.name;
        place(&root.join("etc/hostname"), 0o644, format!("{name}\n").as_bytes())?;
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n");
        place(&root.join("etc/hosts"), 0o644, hosts.as_bytes())?;
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(Error::file("read", "/proc/sys/kernel/random/uuid"))?;
        place(&root.join("etc/machine-id"), 0o444, format!("{}\n", uuid.trim().replace('-', "")).as_bytes())?;
        for (path, text) in identity.files {
            place(&root.join(path), 0o644, text.as_bytes())?;
        }
        self.host_keys(identity.host_keys)?;
        for (home, id) in [("root", 0), ("home/debian", 1000), ("home/pw", 1001)] {
            let dir = root.join(home).join(".ssh");
            let file = dir.join("authorized_keys");
            place(&file, 0o600, identity.authorized.as_bytes())?;
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700))
                .map_err(Error::file("set the mode of", &dir))?;
            for path in [&dir, &file] {
                chown(path, Some(id), Some(id)).map_err(Error::file("set the owner of", path))?;
            }
        }
        Ok(())
    }

    /// Copies ssh host keys from `dir` onto the disk.
    pub(crate) fn host_keys(&self, dir: &Path) -> Result<()> {
        for entry in std::fs::read_dir(dir).map_err(Error::file("read", dir))?.flatten() {
            let path = entry.path();
            let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
            let mode = if path.extension().is_some_and(|end| end == "pub") { 0o644 } else { 0o600 };
            place(&self.root().join("etc/ssh").join(entry.file_name()), mode, &text)?;
        }
        Ok(())
    }

    /// Makes the disk as small as what is on it, so that not one block more can be written.
    pub(crate) fn fill(&self) -> Result<()> {
        let used = || {
            let state = statvfs(&self.0).map_err(Error::system(format!("ask {}", self.0.display())))?;
            Ok((state.blocks() - state.blocks_free()) * state.fragment_size())
        };
        // Whoever writes in between makes the size too small, which the kernel refuses.
        let full = crate::command::wait_until(std::time::Duration::from_secs(2), || {
            used().and_then(|used| self.resize(used)).is_ok()
        });
        if full { Ok(()) } else { used().and_then(|used| self.resize(used)) }
    }

    /// Gives the disk its size again.
    pub(crate) fn free(&self) -> Result<()> {
        self.resize(SIZE)
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        let size = format!("size={bytes}");
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(size.as_str()))
            .map_err(Error::system(format!("resize {}", self.0.display())))
    }

    /// Unmounts it; everything on it is lost.
    pub(crate) fn destroy(&self) -> Result<()> {
        for path in [self.root(), self.0.clone()] {
            unmount(&path)?;
        }
        Ok(())
    }
}

/// Unmounts whatever is mounted on `path`, also if several mounts lie upon one another.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(error) => return Err(Error::system(format!("unmount {}", path.display()))(error)),
        }
    }
}

/// In a private mount namespace: lets go of the disks of all labs, but for the one below `keep`. Else a node would
/// hold the memory of its neighbours' disks after their reset.
pub(crate) fn forget_others(keep: &Path) -> Result<()> {
    let table = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(table).map_err(Error::file("read", table))?;
    let mounts = text.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    // The table lists a mount before those upon it; take them off in the reverse order.
    let others: Vec<&Path> =
        mounts.filter(|path| path.starts_with(paths::RUN) && !path.starts_with(keep)).collect();
    for path in others.into_iter().rev() {
        unmount(path)?;
    }
    Ok(())
}
