//! What is in the kernel, brought in line with the claims.

use std::collections::BTreeSet;

use homelab_cni::CniError;
use homelab_cni::hostport::{Claim, Element, owner_of};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, ElementError};
use homelab_linux::pod::{PodError, PodSocket};

use super::elements::{element_of, held, let_loopback_out, raw, table};
use super::flows::end_flows;
use super::{Claims, kernel};

/// What [`Claims::sync`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Synced {
    /// Elements that were missing.
    pub(crate) added: usize,
    /// Elements that belong to nobody.
    pub(crate) deleted: usize,
    /// Claims of pods that are gone.
    pub(crate) freed: usize,
}

impl Claims {
    /// Makes the kernel hold the elements of all claims of pods that are there, and frees those of pods that are gone:
    /// the agent does, after a flush and now and then.
    pub(crate) fn sync(&self) -> Result<Synced, CniError> {
        let mut synced = Synced::default();
        let mut socket = Socket::netfilter().map_err(kernel)?;
        if !self.root.exists() && held(&mut socket)?.is_empty() {
            return Ok(synced);
        }
        let mut host = PodSocket::open().map_err(kernel)?;
        let locked = self.lock()?;
        locked.adopt(&mut socket, &mut host)?;
        let mut busy = BTreeSet::new();
        let mut live = Vec::new();
        for found in locked.all()? {
            if found.file.try_lock().is_err() {
                busy.insert(found.owner().to_owned());
            } else if locked.drop_dead(&found, &mut host)? {
                synced.freed += 1;
            } else {
                live.extend(found.claim);
            }
        }
        let held = held(&mut socket)?;
        let mut batch = Batch::new(table());
        let mut wanted = BTreeSet::new();
        for claim in &live {
            if claim.serves_loopback() {
                let_loopback_out(&claim.bridge)?;
            }
            wanted.extend(claim.elements());
        }
        let there: BTreeSet<Element> = held.iter().map(|(set, raw)| element_of(set, raw)).collect();
        for (set, raw) in held.iter().filter(|(set, raw)| !wanted.contains(&element_of(set, raw))) {
            let owner = owner_of(&raw.comment);
            // Of a network with another data directory.
            let mut foreign = || Ok(!owner.is_empty() && !owned(&live, owner) && host.link(owner)?.is_some());
            if busy.contains(owner) || foreign().map_err(kernel::<PodError>)? {
                continue;
            }
            batch.delete(set, raw).map_err(kernel)?;
            synced.deleted += 1;
        }
        for claim in &live {
            for element in claim.elements().iter().filter(|element| !there.contains(element)) {
                batch.add(element.set, &raw(element, &claim.comment())).map_err(kernel)?;
                synced.added += 1;
            }
        }
        if batch.is_empty() {
            return Ok(synced);
        }
        match batch.commit(&mut socket) {
            // The table is about to come, and this is called again then.
            Err(ElementError::NoSuchSet { .. }) => Ok(Synced { added: 0, deleted: 0, ..synced }),
            Err(error) => Err(kernel(error)),
            Ok(()) => {
                for claim in &live {
                    end_flows(claim, &mut socket, &mut host, true)?;
                }
                Ok(synced)
            }
        }
    }
}

fn owned(live: &[Claim], owner: &str) -> bool {
    live.iter().any(|claim| claim.owner == owner)
}
