//! Writing so that a reader, or a power cut, finds the old or the new content and nothing between.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use homelab_model::{self as model, Content, secret_summary};

use super::aside::{previous, undo};
use super::digest::{digest_of_self, file_digest};
use crate::error::Error;
use crate::root::Root;

/// A name beside `path` that nobody else uses.
pub(super) fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.homelab-{}-{count}", std::process::id()))
}

fn parse_owner(owner: &str) -> Result<(u32, u32), Error> {
    let parsed = owner.split_once(':').and_then(|(u, g)| Some((u.parse().ok()?, g.parse().ok()?)));
    parsed.ok_or_else(|| Error::Invalid(format!("owner {owner:?} is not uid:gid")))
}

/// Makes a rename or removal in `path`'s directory outlast a power cut.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Puts a new file in the place of `path`; `fill` writes it.
fn replace(
    path: &Path,
    mode: u32,
    owner: Option<(u32, u32)>,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), Error> {
    let temporary = beside(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        fill(&mut file)?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        // After the owner: a change of owner takes the set-id bits away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io("writing", path, e)
    })
}

/// Writes a file of ours, owner as the process.
pub(crate) fn write_atomic(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), Error> {
    replace(path, mode, owner, |file| file.write_all(content))
}

/// Writes the object. Texts of secrets are in `secrets`, by what the object says of them.
pub(crate) fn write_file(
    root: &Root,
    file: &model::File,
    secrets: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let text = match &file.content {
        Content::Text(text) => text,
        Content::Secret(summary) => secret(file, summary, secrets)?,
        // Only an undo asks for content that no plan can hold.
        Content::Opaque(what) => return Err(lost(&file.path, what)),
    };
    write_atomic(&root.path(&file.path), text.as_bytes(), file.mode, Some(parse_owner(&file.owner)?))
}

/// The text of a secret. Errors do not show it.
fn secret<'a>(
    file: &model::File,
    summary: &str,
    secrets: &'a BTreeMap<String, String>,
) -> Result<&'a String, Error> {
    if file.mode & 0o077 != 0 {
        return Err(Error::Invalid(format!("{} is a secret, and its mode is {:04o}", file.path, file.mode)));
    }
    let Some(text) = secrets.get(summary) else { return Err(lost(&file.path, summary)) };
    match secret_summary(&file.path, text) {
        Some(Some(is)) if is == summary => Ok(text),
        _ => Err(Error::Invalid(format!("what was sent for {} is not {summary}", file.path))),
    }
}

fn lost(path: &str, what: &str) -> Error {
    Error::Invalid(format!("{path} was {what}, and that was not kept"))
}

/// Puts a copy of the running executable at the object's path.
pub(crate) fn copy_self(root: &Root, binary: &model::Binary) -> Result<(), Error> {
    let path = root.path(&binary.path);
    let owner = parse_owner(&binary.owner)?;
    let holds = |path: &Path| {
        path.symlink_metadata().is_ok_and(|m| m.is_file())
            && file_digest(path).is_ok_and(|d| d == binary.sha256)
    };
    // Only its mode or owner may be wrong.
    let source = if holds(&path) {
        path.clone()
    } else if let Some(kept) = [undo(&path), previous(&path)].into_iter().find(|kept| holds(kept)) {
        kept
    } else {
        let own = digest_of_self().map_err(|e| Error::io("reading", "/proc/self/exe", e))?;
        if own != binary.sha256 {
            return Err(Error::Invalid(format!(
                "the running binary is {own}, and the binary to install is {}",
                binary.sha256
            )));
        }
        "/proc/self/exe".into()
    };
    replace(&path, binary.mode, Some(owner), |file| {
        io::copy(&mut File::open(&source)?, file)?;
        Ok(())
    })
}

/// Puts a symbolic link in the place of whatever is at the object's path.
pub(crate) fn make_symlink(root: &Root, link: &model::Symlink) -> Result<(), Error> {
    let path = root.path(&link.path);
    if link.target.starts_with('(') {
        // No link but the name of a type: only an undo asks for it.
        return Err(lost(&link.path, &link.target));
    }
    let temporary = beside(&path);
    let write = || -> io::Result<()> {
        symlink(&link.target, &temporary)?;
        fs::rename(&temporary, &path)?;
        sync_parent(&path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io("writing", &path, e)
    })
}

/// Deletes the file or symbolic link at `path`; a directory stays, for it is not ours.
pub(crate) fn delete(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map_err(|e| Error::io("removing", path, e)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(Error::io("removing", path, e)),
    }
}
