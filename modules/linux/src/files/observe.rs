//! What stands under a path.

use std::fs::{self, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use homelab_model::{Binary, Content, File, Symlink, ours, secret_summary};

use super::aside::stray;
use super::digest::file_digest;
use crate::error::Error;
use crate::root::Root;

/// Text files up to this size appear in plans, bytes.
const MAX_TEXT: u64 = 256 << 10;
/// The same for the node's record, which may have ten thousand services.
const MAX_RECORD: u64 = 16 << 20;

/// Digest of a binary of which only the aside is left, and no transaction that it belongs to.
pub(crate) const LEFT_BEHIND: &str = "(left behind)";

/// The inode at `path`, links not followed; None if there is nothing.
fn inode(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

fn type_name(kind: FileType) -> &'static str {
    if kind.is_file() {
        "regular file"
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_symlink() {
        "symbolic link"
    } else if kind.is_fifo() || kind.is_socket() {
        "pipe or socket"
    } else {
        "device"
    }
}

fn owner(meta: &Metadata) -> String {
    format!("{}:{}", meta.uid(), meta.gid())
}

/// The object at a path that should hold a regular file.
pub(crate) fn file(root: &Root, path: &str) -> Result<Option<File>, Error> {
    file_at(&root.path(path), path)
}

/// The object that would be at `path` if what is at `real` were there.
pub(super) fn file_at(real: &Path, path: &str) -> Result<Option<File>, Error> {
    let Some(meta) = inode(real)? else { return Ok(None) };
    let content = if meta.is_symlink() {
        let target = fs::read_link(real).map_err(|e| Error::io("reading", real, e))?;
        Content::Opaque(format!("symbolic link to {}", target.display()))
    } else if !meta.is_file() {
        Content::Opaque(type_name(meta.file_type()).to_owned())
    } else {
        let limit = if path == ours::NODE_SPEC { MAX_RECORD } else { MAX_TEXT };
        let Some(content) = content(real, path, limit)? else { return Ok(None) };
        content
    };
    Ok(Some(File { path: path.to_owned(), mode: meta.mode() & 0o7777, owner: owner(&meta), content }))
}

/// None if the file went away in the meantime. Of a secret nothing is shown but what tells it from others.
fn content(real: &Path, path: &str, limit: u64) -> Result<Option<Content>, Error> {
    let mut bytes = Vec::new();
    let read = fs::File::open(real).and_then(|f| f.take(limit + 1).read_to_end(&mut bytes));
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("reading", real, e)),
        Ok(_) => {}
    }
    let large = bytes.len() as u64 > limit;
    let text = String::from_utf8(bytes).ok().filter(|_| !large);
    let what = match text {
        Some(text) => match secret_summary(path, &text) {
            Some(Some(summary)) => return Ok(Some(Content::Secret(summary))),
            // A digest of what somebody wrote by hand would give a weak password away.
            Some(None) if path != ours::KEYS => {
                return Ok(Some(Content::Opaque("damaged secret".to_owned())));
            }
            Some(None) => "damaged keys",
            None => return Ok(Some(Content::Text(text))),
        },
        None if large => "large file",
        None => "binary file",
    };
    let digest = file_digest(real).map_err(|e| Error::io("reading", real, e))?;
    Ok(Some(Content::Opaque(format!("{what}, sha256 {digest}"))))
}

/// The object at a path that should hold a symbolic link.
pub(crate) fn symlink(root: &Root, path: &str) -> Result<Option<Symlink>, Error> {
    symlink_at(&root.path(path), path)
}

pub(super) fn symlink_at(real: &Path, path: &str) -> Result<Option<Symlink>, Error> {
    let Some(meta) = inode(real)? else { return Ok(None) };
    let target = if meta.is_symlink() {
        fs::read_link(real).map_err(|e| Error::io("reading", real, e))?.display().to_string()
    } else {
        format!("({})", type_name(meta.file_type()))
    };
    Ok(Some(Symlink { path: path.to_owned(), target }))
}

/// The object at a path that should hold the node binary.
pub(crate) fn binary(root: &Root, path: &str) -> Result<Option<Binary>, Error> {
    if let Some(binary) = binary_at(&root.path(path), path)? {
        return Ok(Some(binary));
    }
    // A process that deleted it died before it was sure.
    let Some(stray) = stray(root, path) else { return Ok(None) };
    let Some(meta) = inode(&stray)? else { return Ok(None) };
    let (path, sha256) = (path.to_owned(), LEFT_BEHIND.to_owned());
    Ok(Some(Binary { path, sha256, mode: meta.mode() & 0o7777, owner: owner(&meta) }))
}

pub(super) fn binary_at(real: &Path, path: &str) -> Result<Option<Binary>, Error> {
    let Some(meta) = inode(real)? else { return Ok(None) };
    let sha256 = if meta.is_file() {
        file_digest(real).map_err(|e| Error::io("reading", real, e))?
    } else {
        format!("({})", type_name(meta.file_type()))
    };
    Ok(Some(Binary { path: path.to_owned(), sha256, mode: meta.mode() & 0o7777, owner: owner(&meta) }))
}

/// Paths of all versions of the node binary.
pub(crate) fn binaries(root: &Root) -> Result<Vec<String>, Error> {
    let lib = root.path(ours::LIB);
    let entries = match fs::read_dir(&lib) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::io("reading", &lib, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("reading", &lib, e))?;
        let name = entry.file_name();
        let Some(digest) = name.to_str().filter(|n| is_digest(n)) else { continue };
        let path = ours::binary_path(digest);
        if inode(&root.path(&path))?.is_some() || stray(root, &path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a name is a SHA-256 in lower-case hex.
pub(crate) fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
