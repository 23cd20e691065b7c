//! What stands under a path.

use std::fs::{self, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use homelab_model::{Binary, Content, File, Symlink, ours};

use super::digest::file_digest;
use super::write::aside;
use crate::error::Error;
use crate::root::Root;

/// Text files up to this size appear in plans, bytes.
const MAX_TEXT: u64 = 256 << 10;

/// Digest of a binary of which only the aside is left.
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
    let real = root.path(path);
    let Some(meta) = inode(&real)? else { return Ok(None) };
    let content = if meta.is_symlink() {
        let target = fs::read_link(&real).map_err(|e| Error::io("reading", &real, e))?;
        Content::Opaque(format!("symbolic link to {}", target.display()))
    } else if !meta.is_file() {
        Content::Opaque(type_name(meta.file_type()).to_owned())
    } else {
        let Some(content) = content(&real)? else { return Ok(None) };
        content
    };
    Ok(Some(File { path: path.to_owned(), mode: meta.mode() & 0o7777, owner: owner(&meta), content }))
}

/// None if the file went away in the meantime.
fn content(real: &Path) -> Result<Option<Content>, Error> {
    let mut bytes = Vec::new();
    let read = fs::File::open(real).and_then(|f| f.take(MAX_TEXT + 1).read_to_end(&mut bytes));
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("reading", real, e)),
        Ok(_) => {}
    }
    let large = bytes.len() as u64 > MAX_TEXT;
    match String::from_utf8(bytes) {
        Ok(text) if !large => Ok(Some(Content::Text(text))),
        _ => {
            let digest = file_digest(real).map_err(|e| Error::io("reading", real, e))?;
            let what = if large { "large file" } else { "binary file" };
            Ok(Some(Content::Opaque(format!("{what}, sha256 {digest}"))))
        }
    }
}

/// The object at a path that should hold a symbolic link.
pub(crate) fn symlink(root: &Root, path: &str) -> Result<Option<Symlink>, Error> {
    let real = root.path(path);
    let Some(meta) = inode(&real)? else { return Ok(None) };
    let target = if meta.is_symlink() {
        fs::read_link(&real).map_err(|e| Error::io("reading", &real, e))?.display().to_string()
    } else {
        format!("({})", type_name(meta.file_type()))
    };
    Ok(Some(Symlink { path: path.to_owned(), target }))
}

/// The object at a path that should hold the node binary.
pub(crate) fn binary(root: &Root, path: &str) -> Result<Option<Binary>, Error> {
    let real = root.path(path);
    let (meta, left) = match inode(&real)? {
        Some(meta) => (meta, false),
        // A process that deleted it died before it was sure.
        None => match inode(&aside(&real))? {
            Some(meta) => (meta, true),
            None => return Ok(None),
        },
    };
    let sha256 = if left {
        LEFT_BEHIND.to_owned()
    } else if meta.is_file() {
        file_digest(&real).map_err(|e| Error::io("reading", &real, e))?
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
        let real = root.path(&path);
        if inode(&real)?.is_some() || inode(&aside(&real))?.is_some() {
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
