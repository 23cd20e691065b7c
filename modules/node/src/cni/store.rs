//! The IPAM store on disk. Its layout and what it means stand at [`homelab_cni::ipam`].

mod reserve;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use homelab_cni::ipam::{self, Entry, Holder};
use homelab_cni::{Base, CniError, Code};
use homelab_linux::{Root, hostlocal};
use homelab_model::{AttachmentFact, HeldAddress};
use ipnet::IpNet;

pub(crate) use reserve::{Locked, Reserved, Wanted};

/// Identity of the running boot. Systemd-nspawn gives each boot of a container one of its own.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Directory of what is remembered of names, beside those of the boots.
const NAMES: &str = "names";

/// How many names of pods are remembered: an IPv6 range has room for more than a directory.
const NAMES_MAX: usize = 1024;

/// The store of one network.
#[derive(Debug)]
pub(crate) struct Store {
    network: PathBuf,
    entries: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CniError {
    move |error| CniError::with(Code::Io, format!("IPAM store {}", path.display()), error)
}

/// A file that is there for its locks.
fn kept(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Waits for the lock that orders the writers of a directory, which is made if it is not there. It ends with the file,
/// and with the process. An error comes with the path it is about.
pub(super) fn lock_file(directory: &Path) -> Result<File, (PathBuf, io::Error)> {
    let path = directory.join("lock");
    let file = match kept(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(directory).map_err(|error| (directory.to_owned(), error))?;
            kept(&path)
        }
        other => other,
    };
    file.and_then(|file| file.lock().map(|()| file)).map_err(|error| (path, error))
}

/// The running boot, as a name for its directories.
pub(super) fn boot() -> Result<String, CniError> {
    let mut boot = [0; 64];
    let length =
        File::open(BOOT_ID).and_then(|mut file| file.read(&mut boot)).map_err(failed(Path::new(BOOT_ID)))?;
    Ok(String::from_utf8_lossy(&boot[..length]).trim().to_owned())
}

/// Mark of the runtime whose child this process is.
pub(super) fn runtime() -> Option<String> {
    mark_of("self")
}

/// Mark of the runtime that a process is.
pub(crate) fn mark_of(process: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{process}/cgroup")).ok().map(|text| ipam::runtime_mark(&text))
}

/// What is not there is gone.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes away what has the name of a file of ours, also where somebody made a directory of it.
pub(super) fn removed(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::IsADirectory => gone(fs::remove_dir_all(path)),
        other => gone(other),
    }
}

/// The directories in a directory; none if there is no such directory.
pub(super) fn directories(directory: &Path) -> Result<Vec<PathBuf>, CniError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(directory)(error)),
    };
    let directories =
        listing.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}

/// The networks' directories below a data directory. No network is named with a dot: claims of the node's ports.
fn networks(data_dir: &Path) -> Result<Vec<PathBuf>, CniError> {
    let mut networks = directories(data_dir)?;
    networks.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    Ok(networks)
}

/// Names of the networks below a data directory.
pub(super) fn network_names(data_dir: &Path) -> Result<Vec<String>, CniError> {
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    Ok(networks(data_dir)?.into_iter().filter_map(name).collect())
}

/// The entries in a directory; none if there is no such directory.
fn listed(directory: &Path) -> Result<Vec<Entry>, CniError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(directory)(error)),
    };
    let mut entries = Vec::new();
    for file in listing {
        let file = file.map_err(failed(directory))?;
        entries.extend(file.file_name().to_str().and_then(Entry::parse));
    }
    Ok(entries)
}

/// Addresses of other plugins' containers, as entries that no pod of ours has: their owners are of two words, the network
/// and the container.
pub(super) fn held_by_others(
    ranges: &[IpNet],
    links: impl FnOnce() -> Result<BTreeSet<String>, CniError>,
) -> Result<Vec<Entry>, CniError> {
    let root = Root::system();
    let stored = hostlocal::stored(&root, ranges);
    if stored.is_empty() {
        return Ok(Vec::new());
    }
    let links = links()?;
    let holders = stored.iter().filter_map(|stored| stored.holder(&root, &links));
    let entry = |held: HeldAddress| Entry {
        owner: format!("{} {}", held.network, held.container),
        addresses: vec![held.address],
    };
    Ok(holders.map(entry).collect())
}

impl Store {
    /// The store of a network. Makes nothing on the disk.
    pub(crate) fn of(base: &Base) -> Result<Store, CniError> {
        Store::named(&base.data_dir, &base.name)
    }

    /// The store of the network of this name.
    pub(super) fn named(data_dir: &Path, name: &str) -> Result<Store, CniError> {
        Store::at(data_dir.join(name))
    }

    fn at(network: PathBuf) -> Result<Store, CniError> {
        let entries = network.join(boot()?);
        Ok(Store { network, entries })
    }

    /// All stores below a data directory.
    pub(crate) fn all(data_dir: &Path) -> Result<Vec<Store>, CniError> {
        networks(data_dir)?.into_iter().map(Store::at).collect()
    }

    /// All stores below a data directory, of every boot. An entry without a link is nobody's in any of them; and the agent
    /// of a node that is a container may see another boot's name than the runtime beside it.
    pub(crate) fn of_every_boot(data_dir: &Path) -> Result<Vec<Store>, CniError> {
        let mut stores = Vec::new();
        for network in networks(data_dir)? {
            let boots = directories(&network)?.into_iter().filter(|boot| !boot.ends_with(NAMES));
            stores.extend(boots.map(|entries| Store { network: network.clone(), entries }));
        }
        Ok(stores)
    }

    /// The entries of this boot, without the lock: a snapshot.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, CniError> {
        listed(&self.entries)
    }

    /// Where it is remembered what pods of a name had.
    fn names(&self) -> PathBuf {
        self.network.join(NAMES)
    }

    /// The entries with their holders. What has gone meanwhile, or has none, is left out.
    pub(crate) fn holders(&self) -> Result<Vec<(Entry, Holder)>, CniError> {
        let holder = |entry: Entry| {
            let target = fs::read_link(self.path_of(&entry)).ok()?;
            Some((entry, Holder::parse(target.to_str()?)?))
        };
        Ok(self.entries()?.into_iter().filter_map(holder).collect())
    }

    /// The same as facts.
    pub(crate) fn attachments(&self) -> Result<Vec<AttachmentFact>, CniError> {
        let fact = |(entry, holder): (Entry, Holder)| AttachmentFact {
            container: holder.container,
            interface: holder.interface,
            pod: holder.pod,
            link: entry.owner,
            addresses: entry.addresses,
        };
        // What is held for pods of another list is that one's.
        let own = self.holders()?.into_iter().filter(|(entry, holder)| holder.container != entry.owner);
        Ok(own.map(fact).collect())
    }

    /// Frees an entry.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), CniError> {
        let path = self.path_of(entry);
        removed(&path).map_err(failed(&path))
    }

    /// Frees all that `owner` holds; says whether it held anything.
    pub(crate) fn release(&self, owner: &str) -> Result<bool, CniError> {
        let mut held = false;
        for entry in self.entries()?.iter().filter(|entry| entry.owner == owner) {
            self.remove(entry)?;
            held = true;
        }
        Ok(held)
    }

    /// Where an entry is.
    pub(super) fn path_of(&self, entry: &Entry) -> PathBuf {
        self.entries.join(entry.name())
    }

    fn insert(&self, entry: &Entry, holder: &Holder) -> Result<(), CniError> {
        let path = self.path_of(entry);
        symlink(holder.target(), &path).map_err(failed(&path))
    }

    /// The directory of this boot with its first entries, all at once: who finds it believes that it has them all.
    fn begin(&self, living: &[(Entry, Holder)]) -> Result<(), CniError> {
        let mut begun = self.entries.clone().into_os_string();
        begun.push(".new");
        let begun = Store { network: self.network.clone(), entries: begun.into() };
        gone(fs::remove_dir_all(&begun.entries)).map_err(failed(&begun.entries))?;
        fs::create_dir_all(&begun.entries).map_err(failed(&begun.entries))?;
        for (entry, holder) in living {
            begun.insert(entry, holder)?;
        }
        fs::rename(&begun.entries, &self.entries).map_err(failed(&self.entries))
    }

    /// Waits for the lock that orders writers.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, CniError> {
        let file = lock_file(&self.network).map_err(|(path, error)| failed(&path)(error))?;
        Ok(Locked { store: self, file })
    }

    /// The file on which every ADD holds a shared lock from its reservation until it has made its link or failed.
    fn adding(&self) -> Result<File, CniError> {
        let path = self.network.join("adding");
        kept(&path).map_err(failed(&path))
    }

    /// Frees the entries whose links are not among `links`, unless an ADD is under way: its entry is older than its
    /// link. Says how many.
    pub(crate) fn sweep(
        &self,
        links: impl FnOnce() -> Result<BTreeSet<String>, CniError>,
    ) -> Result<usize, CniError> {
        let _locked = self.lock()?;
        Ok(self.sweep_locked(links)?.unwrap_or(0))
    }

    /// The same under the lock; None if an ADD is under way.
    fn sweep_locked(
        &self,
        links: impl FnOnce() -> Result<BTreeSet<String>, CniError>,
    ) -> Result<Option<usize>, CniError> {
        let adding = self.adding()?;
        if adding.try_lock().is_err() {
            return Ok(None);
        }
        let entries = self.entries()?;
        if entries.is_empty() {
            return Ok(Some(0));
        }
        let links = links()?;
        let dead: Vec<&Entry> = entries.iter().filter(|entry| !links.contains(&entry.owner)).collect();
        for entry in &dead {
            self.remove(entry)?;
        }
        Ok(Some(dead.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_frees_what_has_no_link_of_any_boot_unless_an_add_is_under_way() {
        let data = tempfile::tempdir().unwrap();
        let network = data.path().join("home");
        let place = |part: &str| {
            let path = network.join(part);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink("c/eth0", &path).unwrap();
            path
        };
        let [live, dead, older, named] =
            ["boot2/hl1,10.0.0.2", "boot2/hl2,10.0.0.3", "boot1/hl3,10.0.0.4", "names/ab,10.0.0.3"]
                .map(place);
        let there = |path: &Path| path.symlink_metadata().is_ok();
        let sweep = || -> usize {
            let stores = Store::of_every_boot(data.path()).unwrap();
            let links = || Ok(BTreeSet::from(["hl1".to_owned()]));
            stores.iter().map(|store| store.sweep(links).unwrap()).sum()
        };
        let adding = File::create(network.join("adding")).unwrap();
        adding.lock_shared().unwrap();
        assert_eq!(sweep(), 0);
        assert!(there(&dead));
        adding.unlock().unwrap();
        assert_eq!(sweep(), 2);
        assert_eq!([live, dead, older, named].map(|path| there(&path)), [true, false, false, true]);
        assert!(Store::of_every_boot(&data.path().join("none")).unwrap().is_empty());
    }
}
