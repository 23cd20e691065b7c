//! Our nftables tables as `nft` lists them. It fetches all elements of a table to list its rules, so it is asked only
//! when something else than elements has changed, and not even then if somebody noted the answer.

use std::collections::BTreeMap;
use std::fs;

use homelab_model::ours;
use serde::{Deserialize, Serialize};

use crate::error::{Error, netlink};
use crate::netlink::{Socket, nft_generation};
use crate::nft::{Fingerprint, Listing, Table, Tables, fingerprint};
use crate::root::Root;

/// How often a listing that fails or is overtaken while rulesets change is tried again.
const TRIES: usize = 5;
/// Where the agent notes what it has read.
const NOTE: &str = "ruleset.json";

/// A table as it was listed, with what stands for all of it but elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    fingerprint: Fingerprint,
    table: Table,
}

/// What is known of our tables.
#[derive(Debug, Default)]
pub(crate) struct Ruleset {
    /// The generation of the rulesets at which `listed` is all there is.
    generation: Option<u32>,
    listed: BTreeMap<String, Listed>,
    /// The note was looked for.
    recalled: bool,
    /// What the note says.
    noted: BTreeMap<String, Listed>,
}

/// A listing under way.
#[derive(Debug)]
pub(crate) struct Started {
    generation: u32,
    /// All tables that are there.
    prints: BTreeMap<&'static str, Fingerprint>,
    listing: Listing,
}

impl Ruleset {
    /// The generation at which the tables are known.
    pub(crate) fn generation(&self) -> Option<u32> {
        self.generation
    }

    /// This process made so many transactions that changed nothing but elements.
    pub(crate) fn count(&mut self, transactions: u32) {
        self.generation = self.generation.map(|known| known.wrapping_add(transactions));
    }

    /// Starts reading our tables, unless what is known of them still holds.
    pub(crate) fn start(&mut self, socket: &mut Socket, root: &Root) -> Result<Option<Started>, Error> {
        const READING: &str = "reading nftables";
        let Some(generation) = netlink(READING, nft_generation(socket))? else {
            self.listed.clear();
            return Ok(None);
        };
        if self.generation == Some(generation) {
            return Ok(None);
        }
        if !std::mem::replace(&mut self.recalled, true) {
            self.listed = recall(root);
            self.noted = self.listed.clone();
        }
        let mut prints = BTreeMap::new();
        for table in ours::NFT_TABLES {
            if let Some(print) = netlink(READING, fingerprint(socket, table))? {
                prints.insert(table, print);
            }
        }
        self.listed.retain(|name, listed| prints.get(name.as_str()) == Some(&listed.fingerprint));
        let unknown: Vec<&str> = prints.keys().copied().filter(|t| !self.listed.contains_key(*t)).collect();
        if unknown.is_empty() {
            self.generation = Some(generation);
            return Ok(None);
        }
        Ok(Some(Started { generation, prints, listing: Listing::start(&unknown)? }))
    }

    /// Waits for what was started, and says what there is.
    pub(crate) fn finish(
        &mut self,
        socket: &mut Socket,
        root: &Root,
        mut started: Option<Started>,
    ) -> Result<Tables, Error> {
        let mut tries = 0;
        while let Some(Started { generation, prints, listing }) = started.take() {
            let listed = listing.finish();
            tries += 1;
            // A table that changes, or goes, while nft lists it may be more than nft can bear, or be listed half.
            let overtaken = netlink("reading nftables", nft_generation(socket))? != Some(generation);
            if overtaken && tries < TRIES {
                started = self.start(socket, root)?;
                continue;
            }
            for (name, table) in listed? {
                if let Some(fingerprint) = prints.get(name.as_str()) {
                    self.listed.insert(name, Listed { fingerprint: *fingerprint, table });
                }
            }
            // What changes all the time is better read as it was a moment ago than not at all, and not relied on.
            self.generation = (!overtaken).then_some(generation);
            if overtaken {
                return Ok(std::mem::take(&mut self.listed).into_iter().map(|(n, l)| (n, l.table)).collect());
            }
        }
        Ok(self.listed.iter().map(|(name, listed)| (name.clone(), listed.table.clone())).collect())
    }

    /// Notes what was read for the next process.
    pub(crate) fn note(&mut self, root: &Root) -> Result<(), Error> {
        if self.generation.is_none() || self.listed == self.noted {
            return Ok(());
        }
        let path = root.path(ours::RUN).join(NOTE);
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec(&self.listed).unwrap_or_default();
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|e| Error::io("writing", &path, e))?;
        self.noted.clone_from(&self.listed);
        Ok(())
    }
}

/// What another process noted. What cannot be read is not there.
fn recall(root: &Root) -> BTreeMap<String, Listed> {
    let bytes = fs::read(root.path(ours::RUN).join(NOTE)).ok();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}
