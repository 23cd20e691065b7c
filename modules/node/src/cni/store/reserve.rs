//! Who gets which addresses, and what is written of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, symlink};

use homelab_cni::ipam::{self, Claim, Entry, Holder, Pool, Reservation};
use homelab_cni::{Attachment, CniError, Code, Network, Wishes};

use super::{NAMES_MAX, Store, failed, gone, held_by_others, listed, removed};

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
    pub(super) store: &'a Store,
    pub(super) file: File,
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
    pub(crate) fn restore(&self, lost: &[(Entry, Holder)]) -> Result<Vec<String>, CniError> {
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
