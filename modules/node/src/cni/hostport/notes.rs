//! Claims on the disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use homelab_cni::CniError;
use homelab_cni::hostport::{Claim, owner_of};
use homelab_linux::netlink::Socket;
use homelab_linux::pod::PodSocket;
use nix::fcntl::OFlag;

use super::super::ports::{Counts, places};
use super::super::store::{directories, gone, lock_file, removed};
use super::elements::{held, purge, withdraw};
use super::{Claims, failed, kernel};

/// The only process that looks for conflicts and changes elements.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    claims: &'a Claims,
    _lock: File,
}

/// A claim on the disk.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// None: it is damaged.
    pub(super) claim: Option<Claim>,
    pub(super) file: File,
}

impl Claims {
    pub(super) fn lock(&self) -> Result<Locked<'_>, CniError> {
        let lock = lock_file(&self.root).map_err(|(path, error)| failed(&path)(error))?;
        Ok(Locked { claims: self, _lock: lock })
    }
}

/// Opens a claim, if it is there. A pipe in its place is not waited for.
pub(super) fn open(path: &Path) -> Result<Option<File>, CniError> {
    let flags = OFlag::O_NONBLOCK.bits();
    match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(failed(path)),
    }
}

pub(super) fn read(path: PathBuf, mut file: File) -> Found {
    let mut bytes = Vec::new();
    let claim: Option<Claim> =
        file.read_to_end(&mut bytes).ok().and_then(|_| serde_json::from_slice(&bytes).ok());
    let mut found = Found { path, claim, file };
    // A copy of another's would take the other's ports with it.
    found.claim = found.claim.take().filter(|claim| claim.owner == found.owner());
    found
}

impl Found {
    /// Whose it is: the name of the link on the node.
    pub(super) fn owner(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Locked<'_> {
    /// All claims, of every boot: those of earlier ones have no links, and the agent of a node that is a container may
    /// see another boot's name than the runtime beside it.
    pub(super) fn all(&self) -> Result<Vec<Found>, CniError> {
        let mut all = Vec::new();
        for boot in directories(&self.claims.root)? {
            for entry in fs::read_dir(&boot).map_err(failed(&boot))? {
                let path = entry.map_err(failed(&boot))?.path();
                all.extend(open(&path)?.map(|file| read(path, file)));
            }
        }
        Ok(all)
    }

    /// Which ports have claims.
    pub(super) fn counts(&self) -> Result<Counts, CniError> {
        let path = self.claims.root.join("ports");
        let counts = Counts::open(&path, || {
            self.all()
                .map_err(io::Error::other)
                .map(|all| all.into_iter().filter_map(|found| found.claim).collect())
        });
        counts.map_err(failed(&path))
    }

    /// The claims of others; an error if one of a pod that is there holds a port that `claim` wants.
    pub(super) fn without_conflict(
        &self,
        claim: &Claim,
        host: &mut PodSocket,
    ) -> Result<Vec<Claim>, CniError> {
        let mut others = Vec::new();
        for found in self.all()? {
            match found.claim.as_ref().and_then(|other| claim.conflict(other)) {
                Some(conflict) if !self.drop_dead(&found, host)? => return Err(conflict),
                Some(_) => {}
                None => others.extend(found.claim),
            }
        }
        Ok(others)
    }

    pub(super) fn write(&self, claim: &Claim) -> Result<(PathBuf, File), CniError> {
        let boot = &self.claims.boot;
        let path = boot.join(&claim.owner);
        let create = || File::options().write(true).create(true).truncate(true).open(&path);
        let mut file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The first of a boot: those of earlier ones are void.
                for old in fs::read_dir(&self.claims.root).map_err(failed(&self.claims.root))?.flatten() {
                    if old.file_type().is_ok_and(|kind| kind.is_dir()) {
                        gone(fs::remove_dir_all(old.path())).map_err(failed(&old.path()))?;
                    }
                }
                fs::create_dir_all(boot).map_err(failed(boot))?;
                create()
            }
            other => other,
        }
        .map_err(failed(&path))?;
        let text = serde_json::to_vec(claim).unwrap_or_default();
        let written = file.lock_shared().and_then(|()| file.write_all(&text));
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(failed(&path)(error));
        }
        Ok((path, file))
    }

    /// Removes a claim whose pod is gone and whose ADD has ended; says whether it did.
    pub(super) fn drop_dead(&self, found: &Found, host: &mut PodSocket) -> Result<bool, CniError> {
        if found.file.try_lock().is_err() || host.link(found.owner()).map_err(kernel)?.is_some() {
            return Ok(false);
        }
        self.remove(found)?;
        Ok(true)
    }

    /// Takes a claim's elements and then itself; the socket by which it did.
    pub(super) fn remove(&self, found: &Found) -> Result<Option<Socket>, CniError> {
        let mut socket = Socket::netfilter().map_err(kernel)?;
        match &found.claim {
            Some(claim) => {
                let mut host = PodSocket::open().map_err(kernel)?;
                withdraw(claim, &mut socket, &mut host)?;
            }
            // Its elements say whose they are.
            None => purge(&mut socket, found.owner())?,
        }
        self.erase(&found.path, found.claim.as_ref())?;
        Ok(Some(socket))
    }

    /// Notes of pods that have elements and a link and none: they were lost. What they say is lost too, so they are as
    /// damaged ones: DEL takes the elements that name their owner.
    pub(super) fn adopt(&self, socket: &mut Socket, host: &mut PodSocket) -> Result<(), CniError> {
        let elements = held(socket)?;
        let mut owners: BTreeSet<&str> = elements.iter().map(|(_, raw)| owner_of(&raw.comment)).collect();
        if owners.is_empty() {
            return Ok(());
        }
        let noted = self.all()?;
        owners.retain(|owner| !owner.is_empty() && !noted.iter().any(|found| found.owner() == *owner));
        let boot = &self.claims.boot;
        for owner in owners {
            // A name of a link is a name of a file.
            if host.link(owner).map_err(kernel)?.is_some() {
                let path = boot.join(owner);
                fs::create_dir_all(boot).and_then(|()| File::create(&path)).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    /// Removes a claim that has no elements any more.
    pub(super) fn erase(&self, path: &Path, claim: Option<&Claim>) -> Result<(), CniError> {
        // Before, so that a file that is made only now has this claim, too.
        let counts = self.counts();
        removed(path).map_err(failed(path))?;
        if let (Ok(counts), Some(claim)) = (counts, claim) {
            // A count that is too large does no harm.
            let _ = counts.lower(&places(claim));
        }
        Ok(())
    }
}
