//! The files of a transaction: what they were stays beside them until it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use homelab_model::{Change, Content, NodeObject, ours, secret_summary};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::{self, Records};
use crate::node::Node;
use crate::root::Root;
use crate::transaction::{Shelf, read_record, remove_record, write_record};

/// Record of what is kept of the last confirmed transaction.
const PREVIOUS: &str = "previous.json";

/// Paths of the files of a transaction, and whether plans have no words for what was there before it.
pub(crate) type Kept = BTreeMap<String, bool>;

/// What is kept of the last confirmed transaction.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Previous {
    /// The transaction.
    id: String,
    /// Paths of what is kept.
    paths: BTreeSet<String>,
}

impl Node {
    /// Keeps what is at the paths of `changes` beside it, synced: [`Node::apply_all`] then brings back what a change
    /// asks for, if it is kept, instead of writing it. Once in a transaction, between its journal and its first
    /// change. An error means that one of the changes could not be taken back.
    pub fn keep_asides(&mut self, changes: &[Change<NodeObject>]) -> Result<(), Error> {
        self.adopt_asides(changes);
        let mut directories: BTreeSet<PathBuf> = BTreeSet::new();
        for change in changes {
            let specs = [change.before(), change.after()].map(|object| object.map(|o| &o.spec));
            let Some(path) = specs.into_iter().flatten().find_map(files::path_of) else { continue };
            files::keep(&self.root, specs[0], path)?;
            directories.extend(self.root.path(path).parent().map(PathBuf::from));
        }
        for directory in directories.iter().filter(|d| d.exists()) {
            let synced = fs::File::open(directory).and_then(|d| d.sync_all());
            synced.map_err(|e| Error::io("syncing", directory, e))?;
        }
        Ok(())
    }

    /// What is kept beside the paths of `changes` belongs to the open transaction that this node goes on with: for
    /// every process but the one that called [`Node::keep_asides`].
    pub fn adopt_asides(&mut self, changes: &[Change<NodeObject>]) {
        let mut kept = Kept::new();
        for change in changes {
            let specs = [change.before(), change.after()].map(|object| object.map(|o| &o.spec));
            let Some(path) = specs.into_iter().flatten().find_map(files::path_of) else { continue };
            // One path may be in two changes, as a link and as a file.
            *kept.entry(path.to_owned()).or_default() |= specs[0].is_some_and(files::is_wordless);
        }
        self.kept = Some(kept);
    }

    /// The transaction is taken back: nothing of it is kept. Directories that were made for its files go. Comes
    /// before [`crate::transaction::remove_transaction`]; may be called twice.
    pub fn drop_asides(&mut self) -> Result<(), Error> {
        self.end_transaction(&BTreeSet::new())
    }

    /// The transaction `id` is confirmed: what no plan has words for (binaries, strange files, secrets) is kept for
    /// `homelab rollback` until the next one is confirmed; the rest goes, and what was kept of the one before it.
    /// Comes before [`crate::transaction::remove_transaction`]; may be called twice.
    pub fn retire_asides(&mut self, id: &str) -> Result<(), Error> {
        let older = previous(&self.root)?;
        let mut paths = older.paths;
        if older.id != id {
            let exists = |path: &str| files::undo(&self.root.path(path)).symlink_metadata().is_ok();
            let wordless = self.kept.iter().flatten().filter(|(path, wordless)| **wordless && exists(path));
            let next: BTreeSet<String> = wordless.map(|(path, _)| path.clone()).collect();
            self.drop_previous()?;
            paths = next;
            if !paths.is_empty() {
                let record = Previous { id: id.to_owned(), paths: paths.clone() };
                let bytes = serde_json::to_vec(&record)
                    .map_err(|e| Error::Record { path: PREVIOUS.to_owned(), reason: e.to_string() })?;
                write_record(&self.root, Shelf::Disk, PREVIOUS, &bytes)?;
            }
        }
        self.end_transaction(&paths)
    }

    /// Takes away what is kept of the last confirmed transaction.
    pub fn drop_previous(&mut self) -> Result<(), Error> {
        let paths = previous(&self.root)?.paths;
        self.records = Records::load(&self.root)?;
        for path in &paths {
            files::delete(&files::previous(&self.root.path(path)))?;
            self.remove_parents(path)?;
        }
        if paths.is_empty() { Ok(()) } else { remove_record(&self.root, PREVIOUS) }
    }

    /// Takes away what is kept beside the transaction's files, except that of `retired` paths, which gets its other
    /// name.
    fn end_transaction(&mut self, retired: &BTreeSet<String>) -> Result<(), Error> {
        self.records = Records::load(&self.root)?;
        let paths: Vec<String> = self.kept.iter().flatten().map(|(path, _)| path.clone()).collect();
        for path in &paths {
            let real = self.root.path(path);
            let kept = files::undo(&real);
            if retired.contains(path) && kept.symlink_metadata().is_ok() {
                let other = files::previous(&real);
                fs::rename(&kept, &other).map_err(|e| Error::io("keeping", &real, e))?;
                files::sync_parent(&other).map_err(|e| Error::io("keeping", &real, e))?;
            }
            files::delete(&kept)?;
            files::remove_temporaries(&self.root, &real);
            self.remove_parents(path)?;
        }
        self.kept = None;
        Ok(())
    }
}

fn previous(root: &Root) -> Result<Previous, Error> {
    let Some(bytes) = read_record(root, PREVIOUS)? else { return Ok(Previous::default()) };
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::Record { path: format!("{}/{PREVIOUS}", ours::VAR), reason: e.to_string() })
}

/// The text of a secret and what objects say of it; None if there is none. Only [`ours::KEYS`],
/// [`ours::BGP_PASSWORDS`] and [`ours::KUBERNETES_TOKEN`] hold one.
pub fn read_secret(root: &Root, path: &str) -> Result<Option<(String, String)>, Error> {
    if secret_summary(path, "").is_none() {
        return Err(Error::Invalid(format!("{path} holds no secret of homelab's")));
    }
    let Some(file) = files::file(root, path)? else { return Ok(None) };
    let Content::Secret(_) = file.content else {
        return Err(Error::Invalid(format!("what is in {path} is not what belongs there")));
    };
    let real = root.path(path);
    let text = fs::read_to_string(&real).map_err(|e| Error::io("reading", &real, e))?;
    // It may have been replaced since.
    match secret_summary(path, &text) {
        Some(Some(summary)) => Ok(Some((summary, text))),
        _ => Err(Error::Invalid(format!("what is in {path} is not what belongs there"))),
    }
}
