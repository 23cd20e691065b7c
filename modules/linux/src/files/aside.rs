//! What a change replaces or removes stays beside its place under another name: to bring it back is a link and
//! a rename, which need no room on the disk and keep inode, mode, owner and times.
//!
//! A hard link `.NAME.homelab-undo` is the state before the open transaction; `.NAME.homelab-previous` the state before
//! the last confirmed one, for what no plan has words for. `.NAME.homelab-aside` was left by an older version whose
//! process died.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use homelab_model::{self as model, Content, Spec};

use super::digest::carry_digest;
use super::observe::{LEFT_BEHIND, binary_at, file_at, symlink_at};
use super::write::{beside, delete, sync_parent};
use crate::error::Error;
use crate::root::Root;
use crate::transaction;

fn named(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.homelab-{suffix}"))
}

/// Where the state before the open transaction is kept.
pub(crate) fn undo(path: &Path) -> PathBuf {
    named(path, "undo")
}

/// Where the state before the last confirmed transaction is kept.
pub(crate) fn previous(path: &Path) -> PathBuf {
    named(path, "previous")
}

/// Where an older version kept what it was about to delete.
fn old(path: &Path) -> PathBuf {
    named(path, "aside")
}

/// What a process that died left beside `path`, a path at which there is nothing.
pub(super) fn stray(root: &Root, path: &str) -> Option<PathBuf> {
    let real = root.path(path);
    let exists = |path: &PathBuf| path.symlink_metadata().is_ok();
    let lost = || Some(undo(&real)).filter(|path| exists(path) && !transaction::is_open(root));
    Some(old(&real)).filter(exists).or_else(lost)
}

/// The path of an object that is a file, a symbolic link or a binary.
pub(crate) fn path_of(spec: &Spec) -> Option<&str> {
    match spec {
        Spec::File(o) => Some(&o.path),
        Spec::Symlink(o) => Some(&o.path),
        Spec::Binary(o) => Some(&o.path),
        _ => None,
    }
}

/// Whether an object cannot be made from what it says of itself.
pub(crate) fn is_wordless(spec: &Spec) -> bool {
    match spec {
        Spec::File(o) => !matches!(o.content, Content::Text(_)),
        Spec::Symlink(o) => o.target.starts_with('('),
        Spec::Binary(_) => true,
        _ => false,
    }
}

fn is_left_behind(spec: &Spec) -> bool {
    matches!(spec, Spec::Binary(o) if o.sha256 == LEFT_BEHIND)
}

/// Keeps what is at the object's path, and leaves it in its place. `before` is what should be there. What was kept
/// there earlier goes. The caller syncs the directory.
pub(crate) fn keep(root: &Root, before: Option<&Spec>, path: &str) -> Result<(), Error> {
    let real = root.path(path);
    let failed = |e| Error::io("keeping", &real, e);
    let kept = undo(&real);
    if before.is_some_and(is_left_behind) && kept.symlink_metadata().is_ok() {
        // It would be taken for ours.
        fs::rename(&kept, old(&real)).map_err(failed)?;
    }
    delete(&kept)?;
    match real.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {
            Err(Error::Foreign(format!("a directory is in the place of {path}, and cannot be kept")))
        }
        // The link itself is linked, not what it points to.
        Ok(_) => carry_digest(&real, &real, || fs::hard_link(&real, &kept)).map_err(failed),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// Whether `wanted` is what is kept at `kept`.
fn holds(kept: &Path, wanted: &Spec) -> Result<bool, Error> {
    Ok(match wanted {
        Spec::File(o) => file_at(kept, &o.path)?.as_ref() == Some(o),
        Spec::Symlink(o) => symlink_at(kept, &o.path)?.as_ref() == Some(o),
        Spec::Binary(o) => binary_at(kept, &o.path)?.as_ref() == Some(o),
        _ => false,
    })
}

/// Brings the object back if it was kept. Whether it was.
pub(crate) fn restore(root: &Root, wanted: &Spec) -> Result<bool, Error> {
    let Some(path) = path_of(wanted) else { return Ok(false) };
    let real = root.path(path);
    let failed = |e| Error::io("bringing back", &real, e);
    let (kept, earlier) = (undo(&real), previous(&real));
    if is_left_behind(wanted) {
        return match fs::rename(&kept, old(&real)) {
            Ok(()) => sync_parent(&real).map(|()| true).map_err(failed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(old(&real).symlink_metadata().is_ok()),
            Err(e) => Err(failed(e)),
        };
    }
    let source = if holds(&kept, wanted)? {
        kept
    } else if holds(&earlier, wanted)? {
        earlier
    } else {
        return Ok(false);
    };
    // It stays where it is: this may be undone, or done again after somebody else has written to the place.
    let temporary = beside(&real);
    let place = || {
        fs::hard_link(&source, &temporary)?;
        let placed = fs::rename(&temporary, &real);
        // Where both were names of one file, the rename did nothing.
        let _ = fs::remove_file(&temporary);
        placed
    };
    carry_digest(&source, &real, place).map_err(failed)?;
    sync_parent(&real).map_err(failed)?;
    Ok(true)
}

/// Takes away a stray of an older version; in a transaction it is kept.
pub(crate) fn remove_stray(root: &Root, path: &str, keep: bool) -> Result<(), Error> {
    let real = root.path(path);
    if !keep {
        delete(&undo(&real))?;
        return delete(&old(&real));
    }
    match fs::rename(old(&real), undo(&real)) {
        Ok(()) => sync_parent(&real).map_err(|e| Error::io("keeping", &real, e)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(Error::io("keeping", &real, e)),
    }
}

/// Whether the object is the name of a stray.
pub(crate) fn is_stray(binary: &model::Binary) -> bool {
    binary.sha256 == LEFT_BEHIND
}

/// Removes what processes that were killed while they wrote `path` left of it.
pub(crate) fn remove_temporaries(root: &Root, path: &Path) {
    let Some((directory, name)) = path.parent().zip(path.file_name()) else { return };
    let beginning = format!(".{}.homelab-", name.to_string_lossy());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((pid, count)) =
            name.to_str().and_then(|n| n.strip_prefix(&beginning)).and_then(|rest| rest.split_once('-'))
        else {
            continue;
        };
        let number = |text: &str| text.parse::<u32>().is_ok();
        // Of a process that lives it may become the file any moment.
        if number(pid) && number(count) && !root.proc(pid).exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
}
