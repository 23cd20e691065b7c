//! The IPAM store on disk. Its layout and what it means stand at [`homelab_cni::ipam`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use homelab_cni::ipam::{self, Claim, Entry, Holder, Pool, Reservation};
use homelab_cni::{Attachment, Base, CniError, Code, Network, Wishes};
use homelab_linux::{Root, hostlocal};
use homelab_model::{AttachmentFact, HeldAddress};
use ipnet::IpNet;

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

/// Who wants addresses.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Configuration.
    pub(crate) network: &'a Network,
    /// Name of the attachment's link.
    pub(crate) owner: &'a str,
    /// What to attach.
    pub(crate) attachment: &'a Attachment,
    /// What is asked beyond that.
    pub(crate) wishes: &'a Wishes,
    /// Mark of the runtime that asks, where it does so by CRI.
    pub(crate) runtime: Option<String>,
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

    /// Reserves addresses for an attachment: on the disk before anything is made in the kernel. `living` are those of pods
    /// that are there although there is no reservation: the store was lost.
    pub(crate) fn reserve(
        &self,
        wanted: &Wanted<'_>,
        mut links: impl FnMut() -> Result<BTreeSet<String>, CniError>,
        living: impl FnOnce() -> Result<Vec<(Entry, Holder)>, CniError>,
    ) -> Result<Reserved, CniError> {
        let store = self.store;
        let &Wanted { network, owner, attachment, wishes, ref runtime } = wanted;
        let pool = Pool { ranges: &network.ranges, exclude: &network.exclude };
        let pod = wishes.pod.as_deref().filter(|_| network.sticky);
        let name = pod.map(|pod| ipam::remembered_name(pod, &attachment.ifname)).unwrap_or_default();
        // A wish: no pod fails for it.
        let remembered = if network.sticky { listed(&store.names()).unwrap_or_default() } else { Vec::new() };
        let claim = Claim { owner, asked: &wishes.addresses, remembered: &remembered, name: &name };
        let mut entries = store.entries()?;
        if entries.is_empty() {
            entries = self.begin(&living()?)?;
        }
        let others = held_by_others(&network.ranges, &mut links)?;
        entries.extend(others.iter().cloned());
        let last = self.last();
        let mut decision = ipam::reserve(pool, &entries, last, claim)?;
        let mut swept = Some(0);
        if matches!(decision, Reservation::Full | Reservation::Taken(..)) {
            swept = store.sweep_locked(&mut links)?;
            if swept.is_some_and(|freed| freed > 0) {
                entries = store.entries()?;
                entries.extend(others.iter().cloned());
                decision = ipam::reserve(pool, &entries, last, claim)?;
            }
        }
        let adding = store.adding()?;
        // Nobody can hold it alone: that needs the lock that we hold.
        adding.lock_shared().map_err(failed(&store.network))?;
        let (entry, offset) = match decision {
            Reservation::Held(entry) => (entry, None),
            Reservation::New(entry, offset) => {
                self.forsake(owner, &entries, &mut links)?;
                let holder = Holder {
                    container: attachment.container.clone(),
                    interface: attachment.ifname.clone(),
                    pod: wishes.pod.clone(),
                    runtime: runtime.clone(),
                };
                store.insert(&entry, &holder)?;
                (entry, offset)
            }
            Reservation::Taken(..) | Reservation::Full => {
                return Err(self.refusal(network, &decision, &entries, swept, links));
            }
        };
        if let Some(offset) = offset {
            let _ = self.file.write_all_at(format!("{offset:<10}\n").as_bytes(), 0);
        }
        if let Some(pod) = pod {
            // A wish for the next time: no pod fails for it.
            let _ =
                self.remember(&Entry { owner: name, addresses: entry.addresses.clone() }, pod, &remembered);
        }
        Ok(Reserved { entry, _adding: adding })
    }

    /// Frees what `owner` held before and what does not fit any more: its ADD was killed. If its pod has the addresses, this
    /// is a second ADD.
    fn forsake(
        &self,
        owner: &str,
        entries: &[Entry],
        links: &mut impl FnMut() -> Result<BTreeSet<String>, CniError>,
    ) -> Result<(), CniError> {
        let old: Vec<&Entry> = entries.iter().filter(|old| old.owner == owner).collect();
        if !old.is_empty() && links()?.contains(owner) {
            let message = "this interface of this container is attached already, with other addresses";
            return Err(CniError::with(Code::Attached, message, "DEL comes first"));
        }
        old.into_iter().try_for_each(|old| self.store.remove(old))
    }

    /// Why there is no address. While other ADDs are under way, entries without links may be theirs or nobody's: then the
    /// next try may do.
    fn refusal(
        &self,
        network: &Network,
        decision: &Reservation,
        entries: &[Entry],
        swept: Option<usize>,
        mut links: impl FnMut() -> Result<BTreeSet<String>, CniError>,
    ) -> CniError {
        let final_word = match decision {
            Reservation::Taken(address, holder) if holder.owner.contains(' ') => {
                let (network, container) = holder.owner.split_once(' ').unwrap_or_default();
                CniError::with(
                    Code::AddressTaken,
                    format!("address {address} belongs to container {container} of network {network}"),
                    "by the plugin host-local",
                )
            }
            Reservation::Taken(address, holder) => {
                let target = fs::read_link(self.store.entries.join(holder.name())).unwrap_or_default();
                let by = match Holder::parse(&target.to_string_lossy()) {
                    Some(Holder { pod: Some(pod), .. }) => format!("pod {pod}"),
                    Some(holder) => format!("container {}/{}", holder.container, holder.interface),
                    None => format!("link {}, and its entry does not say more", holder.owner),
                };
                CniError::with(
                    Code::AddressTaken,
                    format!("address {address} belongs to {by}"),
                    &holder.owner,
                )
            }
            _ => ipam::exhausted(&network.ranges, entries.len()),
        };
        let links = links().unwrap_or_default();
        let unlinked = |entry: &Entry| !links.contains(&entry.owner) && !entry.owner.contains(' ');
        let unsure = match decision {
            Reservation::Taken(_, holder) => unlinked(holder),
            _ => entries.iter().any(unlinked),
        };
        if swept.is_none() && unsure {
            let message = "addresses may be free again when other pods are attached; try again";
            return CniError::with(Code::TryAgain, message, final_word);
        }
        final_word
    }

    /// Notes what pods of a name have, in the place of all that is remembered of the name and of the addresses.
    fn remember(&self, entry: &Entry, pod: &str, remembered: &[Entry]) -> io::Result<()> {
        if remembered.contains(entry) {
            return Ok(());
        }
        let names = self.store.names();
        let mut kept = 0;
        for old in remembered {
            let same = old.addresses.iter().any(|address| entry.addresses.contains(address));
            kept += 1;
            if old.owner == entry.owner || same || kept >= NAMES_MAX {
                removed(&names.join(old.name()))?;
                kept -= 1;
            }
        }
        let path = names.join(entry.name());
        match symlink(pod, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir(&names)?;
                symlink(pod, &path)
            }
            other => other,
        }
    }

    /// The first ADD of a boot, where entries of earlier ones are void; or all entries are gone.
    fn begin(&self, living: &[(Entry, Holder)]) -> Result<Vec<Entry>, CniError> {
        let store = self.store;
        if store.entries.exists() {
            self.restore(living)?;
            return store.entries();
        }
        for old in fs::read_dir(&store.network).map_err(failed(&store.network))? {
            let old = old.map_err(failed(&store.network))?;
            if old.file_type().is_ok_and(|kind| kind.is_dir()) && old.path() != store.names() {
                gone(fs::remove_dir_all(old.path())).map_err(failed(&old.path()))?;
            }
        }
        store.begin(living)?;
        Ok(living.iter().map(|(entry, _)| entry.clone()).collect())
    }

    /// Notes entries that were lost; gives the owners of those whose addresses others have by now.
    pub(super) fn restore(&self, lost: &[(Entry, Holder)]) -> Result<Vec<String>, CniError> {
        let store = self.store;
        if !store.entries.exists() {
            store.begin(lost)?;
            return Ok(Vec::new());
        }
        let mut doubled = Vec::new();
        let mut entries = store.entries()?;
        for (entry, holder) in lost {
            if entries.iter().any(|other| other.owner == entry.owner) {
                continue;
            }
            let mut held = entries.iter().flat_map(|other| &other.addresses);
            if held.any(|address| entry.addresses.contains(address)) {
                doubled.push(entry.owner.clone());
                continue;
            }
            store.insert(entry, holder)?;
            entries.push(entry.clone());
        }
        Ok(doubled)
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
