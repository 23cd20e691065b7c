//! The journal and other records.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use homelab_model::ours;
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;

use crate::error::Error;
use crate::files::{JOURNAL, Records, delete, sync_parent, write_atomic};
use crate::root::Root;

const RESERVE: &str = "reserve";
/// Room for the records that a rollback or a confirmation writes, bytes.
const RESERVED: usize = 64 << 10;

/// Where a record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shelf {
    /// [`ours::VAR`]: stays.
    Disk,
    /// [`ours::RUN`]: gone at the next boot. For a node on which nothing of ours may remain.
    Run,
}

impl Shelf {
    fn path(self, name: &str) -> String {
        let directory = match self {
            Shelf::Disk => ours::VAR,
            Shelf::Run => ours::RUN,
        };
        format!("{directory}/{name}")
    }
}

fn in_transaction(name: &str) -> String {
    format!("{}/{name}", ours::TRANSACTION)
}

fn read(path: PathBuf) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

/// The journal; None if no transaction is open.
pub fn read_journal(root: &Root) -> Result<Option<Vec<u8>>, Error> {
    read(root.path(&in_transaction(JOURNAL)))
}

/// Whether a transaction is open: there is a journal.
pub fn is_open(root: &Root) -> bool {
    root.path(&in_transaction(JOURNAL)).symlink_metadata().is_ok()
}

/// Writes the journal; synced, and never half of it. The directories that it needs go with the transaction.
pub fn write_journal(root: &Root, bytes: &[u8]) -> Result<(), Error> {
    let path = in_transaction(JOURNAL);
    Records::load(root)?.make_parents(root, &path)?;
    write_atomic(&root.path(&path), bytes, 0o600, None)
}

/// Lays room aside, so that on a full disk the end of the transaction can still be written down.
pub fn reserve(root: &Root) -> Result<(), Error> {
    let name = in_transaction(RESERVE);
    Records::load(root)?.make_parents(root, &name)?;
    let path = root.path(&name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
        match posix_fallocate(&file, 0, RESERVED as i64) {
            Ok(()) => {}
            // Not every file system can: then the bytes are written. Not zeros, which some do not store.
            Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
                let noise: Vec<u8> = (0..RESERVED).map(|i| (i * 31 + i / 251) as u8).collect();
                file.write_all(&noise)?;
            }
            Err(e) => return Err(e.into()),
        }
        file.sync_all()
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&path);
        Error::io("writing", &path, e)
    })
}

/// Whether room is laid aside.
pub fn is_reserved(root: &Root) -> bool {
    root.path(&in_transaction(RESERVE)).symlink_metadata().is_ok()
}

/// Gives the room up that [`reserve`] laid aside. May be called twice.
pub fn free_reserve(root: &Root) -> Result<(), Error> {
    delete(&root.path(&in_transaction(RESERVE)))
}

/// Ends the transaction: the journal goes first, then all else in its directory. May be called twice.
pub fn remove_transaction(root: &Root) -> Result<(), Error> {
    let directory = root.path(ours::TRANSACTION);
    delete(&root.path(&in_transaction(JOURNAL)))?;
    match fs::remove_dir_all(&directory) {
        Ok(()) => sync_parent(&directory).map_err(|e| Error::io("removing", &directory, e))?,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(e) => return Err(Error::io("removing", directory, e)),
    }
    Records::load(root)?.remove_empty_parents(root, &in_transaction(JOURNAL))
}

/// Whether homelab has state on the disk: otherwise a [`Shelf::Disk`] record would be its only trace.
pub fn has_state(root: &Root) -> bool {
    root.path(ours::VAR).is_dir()
}

/// A record, wherever it is kept.
pub fn read_record(root: &Root, name: &str) -> Result<Option<Vec<u8>>, Error> {
    for shelf in [Shelf::Disk, Shelf::Run] {
        if let Some(bytes) = read(root.path(&shelf.path(name)))? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// Writes a record, mode 0600; synced, and never half of it. The one on the other shelf goes.
pub fn write_record(root: &Root, shelf: Shelf, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = shelf.path(name);
    let other = match shelf {
        Shelf::Disk => {
            Records::load(root)?.make_parents(root, &path)?;
            Shelf::Run
        }
        Shelf::Run => {
            let directory = root.path(ours::RUN);
            fs::create_dir_all(&directory).map_err(|e| Error::io("making", directory, e))?;
            Shelf::Disk
        }
    };
    write_atomic(&root.path(&path), bytes, 0o600, None)?;
    delete(&root.path(&other.path(name)))
}

/// Removes a record from wherever it is. May be called twice.
pub fn remove_record(root: &Root, name: &str) -> Result<(), Error> {
    delete(&root.path(&Shelf::Run.path(name)))?;
    let path = Shelf::Disk.path(name);
    delete(&root.path(&path))?;
    Records::load(root)?.remove_empty_parents(root, &path)
}
