//! Carrying out changes.

use std::path::Path;

use homelab_model::{Backend, Change, Key, NodeObject, Spec, ours};

use crate::error::{ApplyError, Error};
use crate::files::{self, Records};
use crate::node::Node;
use crate::services::is_service;
use crate::unit::Jobs;
use crate::{nft, package, sysctl, unit};

impl Node {
    /// Carries out changes in order, and says after each how many are done.
    ///
    /// All changes of our nftables tables are one transaction, at the place of the last of them, and a second one of the
    /// rules that nft cannot read; so are all changes of services. systemd reads changed
    /// unit files again with the next change of a unit, or with [`Node::reload_if_needed`]. Undo is the caller's: see
    /// [`ApplyError::index`], and [`Node::keep_asides`] for files.
    pub fn apply_all(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyError> {
        let failed = |index: usize, source: Error| {
            let object = match &source {
                Error::Nft { chain: Some((table, chain)), .. } => Key::NftChain(table.clone(), chain.clone()),
                _ => changes[index].key(),
            };
            ApplyError { index, object, source: Box::new(source) }
        };
        if changes.is_empty() {
            return Ok(());
        }
        self.begin(changes).map_err(|e| failed(0, e))?;
        let nft: Vec<&Change<NodeObject>> = changes.iter().filter(|c| nft::is_nft(c)).collect();
        let last_nft = changes.iter().rposition(nft::is_nft);
        let services: Vec<&Change<NodeObject>> = changes.iter().filter(|c| is_service(c)).collect();
        let last_service = changes.iter().rposition(is_service);
        for (index, change) in changes.iter().enumerate() {
            let done = if Some(index) == last_nft {
                self.change_tables(&nft)
            } else if Some(index) == last_service {
                self.change_services(&services)
            } else if nft::is_nft(change) || is_service(change) {
                Ok(())
            } else {
                self.one(change)
            };
            done.map_err(|e| failed(index, e))?;
            progress(index + 1);
        }
        self.kernel.finish().map_err(|waiting| {
            let (object, source) = *waiting;
            ApplyError { index: changes.len() - 1, object, source: Box::new(source) }
        })
    }

    /// Before the first change: records of all that must be put back later, in one write.
    fn begin(&mut self, changes: &[Change<NodeObject>]) -> Result<(), Error> {
        self.kernel.begin(changes);
        self.records = Records::load(&self.root)?;
        let mut paths = Vec::new();
        let mut sysctls = Vec::new();
        for change in changes {
            match (change, change.after().map(|o| &o.spec)) {
                (Change::Create { .. }, Some(Spec::File(o))) => paths.push(o.path.as_str()),
                (Change::Create { .. }, Some(Spec::Symlink(o))) => paths.push(o.path.as_str()),
                (Change::Create { .. }, Some(Spec::Binary(o))) => paths.push(o.path.as_str()),
                (_, Some(Spec::Sysctl(o))) if o.link.is_none() && self.records.original(&o.key).is_none() => {
                    // One that does not exist is an error when its turn comes.
                    if let Some(original) = sysctl::original(&self.root, &o.key)? {
                        sysctls.push((o.key.as_str(), original));
                    }
                }
                _ => {}
            }
        }
        self.records.remember(&self.root, &paths, &sysctls)
    }

    fn one(&mut self, change: &Change<NodeObject>) -> Result<(), Error> {
        match change {
            Change::Create { after } => self.ensure(None, &after.spec),
            Change::Update { before, after } => self.ensure(Some(&before.spec), &after.spec),
            Change::Replace { before, after } => {
                self.remove(&before.spec)?;
                self.ensure(None, &after.spec)
            }
            Change::Delete { before } => self.remove(&before.spec),
        }
    }

    fn ensure(&mut self, before: Option<&Spec>, after: &Spec) -> Result<(), Error> {
        if self.kernel.ensure(after)? {
            return Ok(());
        }
        match after {
            Spec::Sysctl(o) => {
                if let Some(link) = &o.link {
                    self.kernel.must_be_ours(link)?;
                }
                sysctl::set(&self.root, &mut self.records, o)
            }
            Spec::File(_) | Spec::Symlink(_) | Spec::Binary(_) => self.put(after),
            Spec::Unit(o) => {
                let before = match before {
                    Some(Spec::Unit(unit)) => Some(unit),
                    _ => None,
                };
                let file = ours::unit_file(&o.name);
                if unit::set(&self.root, before, o, self.reload_pending.contains(&file), self.jobs)? {
                    self.reload_pending.clear();
                }
                self.reload_pending.remove(&file);
                Ok(())
            }
            // A machine that starts is not kept waiting for packages: what is missing then is told as left.
            Spec::Package(_) if self.jobs == Jobs::Queue => Ok(()),
            Spec::Package(o) => {
                package::install_package(&self.root, &o.name)?;
                self.records = Records::load(&self.root)?;
                Ok(())
            }
            // The rest is the kernel's, or a transaction of nft.
            _ => Ok(()),
        }
    }

    /// Puts a file, symbolic link or binary in its place: what is kept of it, or a new one.
    fn put(&mut self, spec: &Spec) -> Result<(), Error> {
        let Some(path) = files::path_of(spec) else { return Ok(()) };
        self.refuse_directory(path)?;
        self.records.make_parents(&self.root, path)?;
        let restored = self.kept.is_some() && files::restore(&self.root, spec)?;
        if !restored {
            match spec {
                Spec::File(o) => files::write_file(&self.root, o, &self.secrets)?,
                Spec::Symlink(o) => files::make_symlink(&self.root, o)?,
                Spec::Binary(o) if !files::is_stray(o) => files::copy_self(&self.root, o)?,
                _ => {}
            }
        }
        self.written(path);
        Ok(())
    }

    fn refuse_directory(&self, path: &str) -> Result<(), Error> {
        if self.root.path(path).symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Error::Foreign(format!("a directory is in the place of {path}")));
        }
        Ok(())
    }

    fn remove(&mut self, spec: &Spec) -> Result<(), Error> {
        if self.kernel.delete(spec)? {
            return Ok(());
        }
        match spec {
            Spec::Sysctl(o) => sysctl::put_back(&self.root, &mut self.records, o),
            Spec::File(_) | Spec::Symlink(_) | Spec::Binary(_) => self.take_away(spec),
            Spec::Package(o) => {
                package::remove(&self.root, &o.name)?;
                self.records = Records::load(&self.root)?;
                Ok(())
            }
            Spec::Unit(o) => unit::delete(&self.root, o, self.jobs),
            _ => Ok(()),
        }
    }

    fn take_away(&mut self, spec: &Spec) -> Result<(), Error> {
        let Some(path) = files::path_of(spec) else { return Ok(()) };
        self.refuse_directory(path)?;
        if matches!(spec, Spec::Binary(o) if files::is_stray(o)) {
            files::remove_stray(&self.root, path, self.kept.is_some())?;
        }
        files::delete(&self.root.path(path))?;
        self.written(path);
        self.remove_parents(path)
    }

    /// Takes away directories above `path` that were made for it and are empty.
    pub(crate) fn remove_parents(&mut self, path: &str) -> Result<(), Error> {
        self.records.remove_empty_parents(&self.root, path)
    }

    /// A file was written or deleted: systemd must know if it is one of its own.
    fn written(&mut self, path: &str) {
        let units = Path::new(ours::UNIT_FILE).parent();
        if units.is_some_and(|directory| Path::new(path).starts_with(directory)) {
            self.reload_pending.insert(path.to_owned());
        }
    }

    /// Makes systemd read its unit files again if one was written and no unit was changed since. Dropping the node
    /// does the same; a process that ends by `exit` should call it.
    pub fn reload_if_needed(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.reload_pending).is_empty() { Ok(()) } else { unit::reload(&self.root) }
    }

    /// After the last object is deleted: takes away what is left of running pods' network (their bridge is gone),
    /// what was kept of replaced files, and homelab's own state and records, journal included. What is armed is left
    /// to [`crate::transaction::disarm`]. May be called twice.
    pub fn farewell(&mut self) -> Result<(), Error> {
        self.drop_asides()?;
        self.drop_previous()?;
        self.reload_if_needed()?;
        // Pods that still run have lost their network with the bridge; their runtime cannot call the plugin any more.
        self.kernel.delete_pods()?;
        self.records = Records::load(&self.root)?;
        self.records.farewell(&self.root)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.reload_if_needed() {
            tracing::warn!(%error, "systemd has not read its unit files again");
        }
    }
}

impl Backend<NodeObject> for Node {
    type Error = Error;

    fn apply(&mut self, change: &Change<NodeObject>) -> Result<(), Error> {
        self.apply_all(std::slice::from_ref(change), &mut |_| {}).map_err(|error| *error.source)
    }
}
