//! Where the lab keeps things.

use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Parent of every lab's run directory.
pub(crate) const RUN: &str = "/run/homelab-lab";

/// Run directory of the lab `name`.
pub(crate) fn lab_dir(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

/// Directory of one node in the lab's run directory.
pub(crate) fn node_dir(lab: &Path, node: &str) -> PathBuf {
    lab.join("nodes").join(node)
}

/// Cached images: `$XDG_CACHE_HOME/homelab/lab`.
pub(crate) fn cache_dir() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    base.unwrap_or_else(|| Path::new(&home).join(".cache")).join("homelab/lab")
}

/// Path of a network namespace as `ip netns add` makes it.
pub(crate) fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::file("make directory", path))
}

pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, text).map_err(Error::file("write", path))
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Writes JSON so that a reader sees the old or the new text, never half of one.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(Error::system("encode state"))?;
    let part = path.with_extension("part");
    write(&part, text)?;
    std::fs::rename(&part, path).map_err(Error::file("rename to", path))
}

/// Reads JSON; `None` if the file is not there or not ours.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// A program of our own in the target directory we run from: test binaries lie in `deps` below it.
pub(crate) fn beside_us(program: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    exe.ancestors().skip(1).take(2).map(|dir| dir.join(program)).find(|path| path.is_file())
}
