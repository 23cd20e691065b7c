//! What must be put back or taken away again when homelab goes: values of sysctls before the first change, and
//! directories that homelab made. A record is on the disk before the change that it speaks of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use homelab_model::ours;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::aside::remove_temporaries;
use super::observe::is_digest;
use super::write::{delete, write_atomic};
use crate::error::Error;
use crate::root::Root;

/// The journal of a transaction, in [`ours::TRANSACTION`].
pub(crate) const JOURNAL: &str = "journal.json";
const ORIGINALS: &str = "originals.json";
const DIRECTORIES: &str = "directories.json";

/// A sysctl before the first change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Original {
    /// Its value.
    pub(crate) value: String,
    /// Keys and values of others that the kernel changes together with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) companions: BTreeMap<String, String>,
}

/// The records, as they stand in [`ours::VAR`].
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Values of sysctls before the first change.
    originals: BTreeMap<String, Original>,
    /// Directories that homelab made.
    directories: BTreeSet<String>,
}

impl Records {
    /// Reads the records.
    pub(crate) fn load(root: &Root) -> Result<Records, Error> {
        Ok(Records { originals: read(root, ORIGINALS)?, directories: read(root, DIRECTORIES)? })
    }

    /// A sysctl before homelab first changed it.
    pub(crate) fn original(&self, key: &str) -> Option<&Original> {
        self.originals.get(key)
    }

    /// Keys of all sysctls that homelab changed.
    pub(crate) fn sysctls(&self) -> impl Iterator<Item = &str> {
        self.originals.keys().map(String::as_str)
    }

    /// Forgets a sysctl that was put back.
    pub(crate) fn forget_sysctl(&mut self, root: &Root, key: &str) -> Result<(), Error> {
        if self.originals.remove(key).is_none() {
            return Ok(());
        }
        if !self.originals.is_empty() {
            return write(root, ORIGINALS, &self.originals);
        }
        remove(root, ORIGINALS)?;
        self.remove_empty_parents(root, &format!("{}/{ORIGINALS}", ours::VAR))
    }

    /// Remembers, before it happens, that files will be made at `paths` and that sysctls will be changed from these
    /// values (the first value of each counts). One write for all.
    pub(crate) fn remember(
        &mut self,
        root: &Root,
        paths: &[&str],
        sysctls: &[(&str, Original)],
    ) -> Result<(), Error> {
        let missing = paths.iter().flat_map(|path| missing_parents(root, path));
        let missing: Vec<String> = missing.filter(|name| !is_digest_directory(Path::new(name))).collect();
        let (directories, originals) = (self.directories.len(), self.originals.len());
        self.directories.extend(missing);
        for (key, original) in sysctls {
            self.originals.entry((*key).to_owned()).or_insert_with(|| original.clone());
        }
        let grown = (self.directories.len() > directories, self.originals.len() > originals);
        if grown == (false, false) {
            return Ok(());
        }
        // Records need a directory: its own record comes a moment late, for there is no earlier place.
        let own = missing_parents(root, &format!("{}/x", ours::VAR));
        self.directories.extend(own.iter().cloned());
        for name in &own {
            make_directory(root, name)?;
        }
        if grown.0 || !own.is_empty() {
            write(root, DIRECTORIES, &self.directories)?;
        }
        if grown.1 {
            write(root, ORIGINALS, &self.originals)?;
        }
        Ok(())
    }

    /// Makes the directories above `path` that are missing.
    pub(crate) fn make_parents(&mut self, root: &Root, path: &str) -> Result<(), Error> {
        self.remember(root, &[path], &[])?;
        missing_parents(root, path).iter().try_for_each(|name| make_directory(root, name))
    }

    /// Takes away the directories above `path` that homelab made and that are empty now.
    pub(crate) fn remove_empty_parents(&mut self, root: &Root, path: &str) -> Result<(), Error> {
        let mut gone = Vec::new();
        let mut parent = Path::new(path).parent();
        while let Some(directory) = parent {
            let name = directory.display().to_string();
            let made = self.directories.contains(&name) || is_digest_directory(directory);
            // The records' own directory goes at the very end.
            if !made || name == ours::VAR {
                break;
            }
            match fs::remove_dir(root.path(&name)) {
                Ok(()) => gone.push(name),
                Err(e) if e.kind() == io::ErrorKind::NotFound => gone.push(name),
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                Err(e) => return Err(Error::io("removing", root.path(&name), e)),
            }
            parent = directory.parent();
        }
        let known = self.directories.len();
        self.directories.retain(|name| !gone.contains(name));
        if self.directories.len() < known {
            write(root, DIRECTORIES, &self.directories)?;
        }
        self.remove_last(root)
    }

    /// Takes away the records' own directory when nothing else is left to remember.
    fn remove_last(&mut self, root: &Root) -> Result<(), Error> {
        let var = Path::new(ours::VAR);
        let own: BTreeSet<String> = var.ancestors().map(|p| p.display().to_string()).collect();
        if !self.originals.is_empty() || !self.directories.is_subset(&own) || self.directories.is_empty() {
            return Ok(());
        }
        for name in [ORIGINALS, DIRECTORIES] {
            remove_temporaries(root, &root.path(ours::VAR).join(name));
        }
        let others = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|e| e.file_name() != ORIGINALS && e.file_name() != DIRECTORIES)
        };
        if fs::read_dir(root.path(ours::VAR)).is_ok_and(|mut entries| entries.any(others)) {
            return Ok(());
        }
        remove(root, ORIGINALS)?;
        remove(root, DIRECTORIES)?;
        for name in std::mem::take(&mut self.directories).iter().rev() {
            let directory = root.path(name);
            match fs::remove_dir(&directory) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
                Err(e) => return Err(Error::io("removing", directory, e)),
            }
        }
        Ok(())
    }

    /// Nothing of homelab shall remain: its state goes, and directories that it made and that are empty by now.
    pub(crate) fn farewell(&mut self, root: &Root) -> Result<(), Error> {
        if let Some(key) = self.originals.keys().next() {
            return Err(Error::Invalid(format!("sysctl {key} must be put back first")));
        }
        for name in self.directories.clone().iter().rev() {
            self.remove_empty_parents(root, &format!("{name}/x"))?;
        }
        // The journal goes before what says that its transaction is confirmed: or, killed between the two, the next
        // process would undo it.
        delete(&root.path(ours::TRANSACTION).join(JOURNAL))?;
        for directory in [ours::VAR, ours::RUN] {
            let path = root.path(directory);
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", path, e)),
                _ => {}
            }
        }
        for name in std::mem::take(&mut self.directories).iter().rev() {
            // One that is in use stays.
            let _ = fs::remove_dir(root.path(name));
        }
        Ok(())
    }
}

/// Whether this is the directory of one binary: whoever made it, its name says that it was for nothing else. It needs
/// no record.
fn is_digest_directory(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    directory.parent() == Some(Path::new(ours::LIB)) && name.is_some_and(is_digest)
}

/// Directories above `path` that do not exist, outermost first.
fn missing_parents(root: &Root, path: &str) -> Vec<String> {
    let mut missing: Vec<String> = Path::new(path)
        .ancestors()
        .skip(1)
        .take_while(|directory| !root.path(&directory.display().to_string()).exists())
        .map(|directory| directory.display().to_string())
        .collect();
    missing.reverse();
    missing
}

fn make_directory(root: &Root, name: &str) -> Result<(), Error> {
    let path = root.path(name);
    match fs::create_dir(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(Error::io("making", path, e)),
    }
    // Whatever the umask says.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("making", path, e))
}

fn read<T: DeserializeOwned + Default>(root: &Root, name: &str) -> Result<T, Error> {
    let path = root.path(ours::VAR).join(name);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::Record { path: path.display().to_string(), reason: e.to_string() }),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(T::default())
        }
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

fn write<T: Serialize>(root: &Root, name: &str, value: &T) -> Result<(), Error> {
    let path = root.path(ours::VAR).join(name);
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Record { path: path.display().to_string(), reason: e.to_string() })?;
    write_atomic(&path, &bytes, 0o600, None)
}

fn remove(root: &Root, name: &str) -> Result<(), Error> {
    let path = root.path(ours::VAR).join(name);
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("removing", path, e)),
    }
}
