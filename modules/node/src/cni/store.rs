//! The IPAM store on disk. Its layout and what it means stand at [`homelab_cni::ipam`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use homelab_cni::ipam::{self, Entry, Reservation};
use homelab_cni::{Attachment, Base, CniError, Code};
use homelab_model::AttachmentFact;
use ipnet::IpNet;

/// Identity of the running boot. Systemd-nspawn gives each boot of a container one of its own.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The store of one network.
#[derive(Debug)]
pub(crate) struct Store {
    network: PathBuf,
    entries: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CniError {
    move |error| CniError::with(Code::Io, format!("IPAM store {}", path.display()), error)
}

/// The running boot, as a name for its directories.
pub(super) fn boot() -> Result<String, CniError> {
    let mut boot = [0; 64];
    let length =
        File::open(BOOT_ID).and_then(|mut file| file.read(&mut boot)).map_err(failed(Path::new(BOOT_ID)))?;
    Ok(String::from_utf8_lossy(&boot[..length]).trim().to_owned())
}

/// What is not there is gone.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Store {
    /// The store of a network. Makes nothing on the disk.
    pub(crate) fn of(base: &Base) -> Result<Store, CniError> {
        Store::at(base.data_dir.join(&base.name))
    }

    fn at(network: PathBuf) -> Result<Store, CniError> {
        let entries = network.join(boot()?);
        Ok(Store { network, entries })
    }

    /// All stores below a data directory.
    pub(crate) fn all(data_dir: &Path) -> Result<Vec<Store>, CniError> {
        let networks = match fs::read_dir(data_dir) {
            Ok(networks) => networks,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(data_dir)(error)),
        };
        networks
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            // No network is named with a dot: claims of the node's ports.
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .map(|entry| Store::at(entry.path()))
            .collect()
    }

    /// The entries of this boot, without the lock: a snapshot.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, CniError> {
        let listing = match fs::read_dir(&self.entries) {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.entries)(error)),
        };
        let mut entries = Vec::new();
        for file in listing {
            let file = file.map_err(failed(&self.entries))?;
            entries.extend(file.file_name().to_str().and_then(Entry::parse));
        }
        Ok(entries)
    }

    /// The entries of this boot with what they say for people.
    pub(crate) fn attachments(&self) -> Result<Vec<AttachmentFact>, CniError> {
        let fact = |entry: Entry| {
            let target = fs::read_link(self.entries.join(entry.name())).ok()?;
            let mut parts = target.to_str()?.splitn(3, '/');
            Some(AttachmentFact {
                container: parts.next()?.to_owned(),
                interface: parts.next()?.to_owned(),
                pod: parts.next().map(str::to_owned),
                link: entry.owner,
                addresses: entry.addresses,
            })
        };
        Ok(self.entries()?.into_iter().filter_map(fact).collect())
    }

    /// Frees an entry.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), CniError> {
        let path = self.entries.join(entry.name());
        gone(fs::remove_file(&path)).map_err(failed(&path))
    }

    /// Frees all that `owner` holds.
    pub(crate) fn release(&self, owner: &str) -> Result<(), CniError> {
        for entry in self.entries()?.iter().filter(|entry| entry.owner == owner) {
            self.remove(entry)?;
        }
        Ok(())
    }

    /// Waits for the lock that orders writers. It ends with the value, and with the process.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, CniError> {
        let path = self.network.join("lock");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(&self.network).map_err(failed(&self.network))?;
                open()
            }
            other => other,
        }
        .map_err(failed(&path))?;
        file.lock().map_err(failed(&path))?;
        Ok(Locked { store: self, file })
    }

    /// The file on which every ADD holds a shared lock from its reservation until it has made its link or failed.
    fn adding(&self) -> Result<File, CniError> {
        let path = self.network.join("adding");
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed(&path))
    }

    /// Frees the entries whose links are not among `links`, unless an ADD is under way: its entry is older than its
    /// link. Says how many.
    pub(crate) fn sweep(
        &self,
        links: impl FnOnce() -> Result<BTreeSet<String>, CniError>,
    ) -> Result<usize, CniError> {
        let _locked = self.lock()?;
        self.sweep_locked(links)
    }

    fn sweep_locked(
        &self,
        links: impl FnOnce() -> Result<BTreeSet<String>, CniError>,
    ) -> Result<usize, CniError> {
        let adding = self.adding()?;
        if adding.try_lock().is_err() {
            return Ok(0);
        }
        let entries = self.entries()?;
        if entries.is_empty() {
            return Ok(0);
        }
        let links = links()?;
        let dead: Vec<&Entry> = entries.iter().filter(|entry| !links.contains(&entry.owner)).collect();
        for entry in &dead {
            self.remove(entry)?;
        }
        Ok(dead.len())
    }
}

/// A store whose only writer is this process.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    store: &'a Store,
    file: File,
}

/// A reservation and the lock that says that its ADD is under way.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// The entry in the store.
    pub(crate) entry: Entry,
    _adding: File,
}

impl Locked<'_> {
    /// The last reserved offset; None if it cannot be read, which costs nothing but the rest of an address.
    fn last(&self) -> Option<u32> {
        let mut text = [0; 16];
        let length = self.file.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
    }

    /// Reserves addresses for an attachment: on the disk before anything is made in the kernel.
    pub(crate) fn reserve(
        &self,
        ranges: &[IpNet],
        owner: &str,
        (attachment, pod): (&Attachment, Option<&str>),
        links: impl FnOnce() -> Result<BTreeSet<String>, CniError>,
    ) -> Result<Reserved, CniError> {
        let store = self.store;
        let mut entries = store.entries()?;
        let last = self.last();
        let mut decision = ipam::reserve(ranges, &entries, last, owner);
        if decision.is_none() && store.sweep_locked(links)? > 0 {
            entries = store.entries()?;
            decision = ipam::reserve(ranges, &entries, last, owner);
        }
        let decision = decision.ok_or_else(|| ipam::exhausted(ranges, entries.len()))?;
        let adding = store.adding()?;
        // Nobody can hold it alone: that needs the lock that we hold.
        adding.lock_shared().map_err(failed(&store.network))?;
        let entry = match decision {
            Reservation::Held(entry) => entry,
            Reservation::New(entry, offset) => {
                // What it held before does not fit any more.
                for old in entries.iter().filter(|old| old.owner == owner) {
                    store.remove(old)?;
                }
                self.insert(&entry, attachment, pod)?;
                let _ = self.file.write_all_at(format!("{offset:<10}\n").as_bytes(), 0);
                entry
            }
        };
        Ok(Reserved { entry, _adding: adding })
    }

    fn insert(&self, entry: &Entry, attachment: &Attachment, pod: Option<&str>) -> Result<(), CniError> {
        let store = self.store;
        let path = store.entries.join(entry.name());
        let Attachment { container, ifname } = attachment;
        let pod = pod.map_or(String::new(), |pod| format!("/{pod}"));
        let target = format!("{container}/{ifname}{pod}");
        match symlink(&target, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.begin_boot()?;
                symlink(&target, &path)
            }
            other => other,
        }
        .map_err(failed(&path))
    }

    /// The first ADD of a boot: entries of earlier ones are void.
    fn begin_boot(&self) -> Result<(), CniError> {
        let store = self.store;
        for old in fs::read_dir(&store.network).map_err(failed(&store.network))? {
            let old = old.map_err(failed(&store.network))?;
            if old.file_type().is_ok_and(|kind| kind.is_dir()) && old.path() != store.entries {
                gone(fs::remove_dir_all(old.path())).map_err(failed(&old.path()))?;
            }
        }
        match fs::create_dir(&store.entries) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed(&store.entries)(error)),
            _ => Ok(()),
        }
    }
}
