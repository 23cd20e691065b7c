//! The controller of load-balancer addresses: what is to be written to the API, from what is seen of it.
//!
//! The API is its memory: the status of Services, and the [`Ledger`]. A controller that starts anew, or takes over from
//! another, needs nothing else, and several that write at once give no address twice; the Lease only keeps them from
//! hindering one another. Every write is on the version that it was decided for and fails on another.
//!
//! An address goes: ledger, then status together with the finalizer, then it is announced. Back: status cleared, agents
//! withdraw, then finalizer, then ledger.

mod board;
mod ledger;
mod patch;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use homelab_model::service::Type;
use homelab_model::{BalanceTrouble, Pool, balance_addresses};

use crate::events::{Kind, Said};
pub use board::Board;
pub use ledger::{Entry, LEDGER, Ledger};
pub use patch::{NOTED_POOL, StatusWrite, Write};
pub use watched::{Class, FINALIZER, Watched};

/// How long agents have to withdraw an address after it has left the status, before its Service may go and before
/// another gets it. They hear of it by their watches, in milliseconds where the network is sound.
pub const SETTLE: Duration = Duration::from_secs(2);

/// What does not come from the API's Services.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The `loadBalancerClass` that is ours beside none.
    pub class: &'a str,
    /// Pools in order.
    pub pools: &'a [Pool],
    /// Addresses that others have, with their names: services of homelab.yaml.
    pub taken: &'a BTreeMap<IpAddr, String>,
}

/// What is seen of the API. It may lag behind.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Services by full name, complete as of some moment.
    pub services: &'a BTreeMap<String, Watched>,
    /// The ledger.
    pub ledger: &'a Ledger,
    /// Uids of Services that a read of the API itself did not find ([`Write::Inquire`]).
    pub gone: &'a BTreeSet<String>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// In this order. One that fails keeps none of the others from being tried.
    pub writes: Vec<Write>,
    /// When to decide again even if nothing is seen to change: time as in `now`.
    pub again: Option<Duration>,
}

/// What a controller remembers beside the API: only times, and what it has said.
#[derive(Debug, Clone, Default)]
pub struct Controller {
    /// Since when an address (None: all of them) of a Service, by its uid, is seen to be in no status.
    cleared: BTreeMap<(String, Option<IpAddr>), Duration>,
    /// What was said last about a Service, by its uid.
    told: BTreeMap<String, Vec<String>>,
}

impl Controller {
    /// What is to be written. `now` never goes back.
    pub fn decide(&mut self, settings: Settings<'_>, view: View<'_>, now: Duration) -> Decision {
        let mut round = Round::new(settings, view, now);
        let notes = round.target();
        round.cleared = std::mem::take(&mut self.cleared);
        for (name, watched) in view.services {
            if round.is_live(watched) {
                round.give(name, watched);
            } else {
                round.take_back(name, watched);
            }
        }
        for (name, entry) in &view.ledger.entries {
            round.released(name, entry);
        }
        let (mut writes, again, seen) = (Vec::new(), round.again, round.seen);
        let changes = view.ledger.changes(&round.entries);
        if !changes.is_empty() {
            writes.push(Write::Ledger { version: view.ledger.version.clone(), changes });
        }
        writes.extend(round.writes);
        self.cleared = round.cleared;
        self.cleared.retain(|key, _| seen.contains(key));
        writes.extend(self.say(view.services, notes));
        Decision { writes, again }
    }

    /// Says what is new.
    fn say(
        &mut self,
        services: &BTreeMap<String, Watched>,
        notes: BTreeMap<String, Vec<(BalanceTrouble, String)>>,
    ) -> Vec<Write> {
        let uids: BTreeSet<&str> = services.values().map(|watched| watched.uid.as_str()).collect();
        self.told.retain(|uid, _| uids.contains(uid.as_str()));
        let mut writes = Vec::new();
        for (name, watched) in services {
            let notes = notes.get(name).map(Vec::as_slice).unwrap_or_default();
            let texts: Vec<String> = notes.iter().map(|(_, text)| text.clone()).collect();
            let before = self.told.get(&watched.uid).map(Vec::as_slice).unwrap_or_default();
            let new = notes.iter().filter(|(_, text)| !before.contains(text));
            writes.extend(new.map(|(trouble, text)| {
                let reason = match trouble {
                    BalanceTrouble::Refused | BalanceTrouble::Exhausted | BalanceTrouble::Partly => {
                        "AllocationFailed"
                    }
                    BalanceTrouble::Yields => "AddressConflict",
                    BalanceTrouble::Lost => "AddressLost",
                };
                Write::Event(Said::about_service(name, &watched.uid, Kind::Warning, reason, text.clone()))
            }));
            match texts.is_empty() {
                true => self.told.remove(&watched.uid),
                false => self.told.insert(watched.uid.clone(), texts),
            };
        }
        writes
    }
}

/// One decision while it is made.
struct Round<'a> {
    settings: Settings<'a>,
    view: View<'a>,
    now: Duration,
    /// The addresses that live Services are to have.
    targets: BTreeMap<String, Vec<IpAddr>>,
    /// Who has an address, by ledger or status.
    holders: BTreeMap<IpAddr, BTreeSet<&'a str>>,
    /// The ledger as it is to be.
    entries: BTreeMap<String, Entry>,
    writes: Vec<Write>,
    again: Option<Duration>,
    cleared: BTreeMap<(String, Option<IpAddr>), Duration>,
    /// What of `cleared` is still so.
    seen: BTreeSet<(String, Option<IpAddr>)>,
}

impl<'a> Round<'a> {
    fn new(settings: Settings<'a>, view: View<'a>, now: Duration) -> Round<'a> {
        let mut holders: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        let entries = view.ledger.entries.iter();
        let statuses = view.services.iter();
        let held = entries.map(|(name, entry)| (name, entry.addresses.iter().copied().collect()));
        for (name, addresses) in held.chain(statuses.map(|(name, watched)| (name, watched.status.clone()))) {
            for ip in addresses {
                holders.entry(ip).or_default().insert(name);
            }
        }
        Round {
            settings,
            view,
            now,
            targets: BTreeMap::new(),
            holders,
            entries: view.ledger.entries.clone(),
            writes: Vec::new(),
            again: None,
            cleared: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    fn is_ours(&self, class: &Class) -> bool {
        match class {
            Class::None => false,
            Class::Default => true,
            Class::Named(name) => name == self.settings.class,
        }
    }

    /// Whether a Service is to have addresses.
    fn is_live(&self, watched: &Watched) -> bool {
        self.is_ours(&watched.class) && !watched.deleting
    }

    /// The entry of this very Service.
    fn entry(&self, name: &str, watched: &Watched) -> Option<&'a Entry> {
        self.view.ledger.entries.get(name).filter(|entry| entry.uid == watched.uid)
    }

    /// Finds out what every live Service is to have; what is amiss, by full name.
    fn target(&mut self) -> BTreeMap<String, Vec<(BalanceTrouble, String)>> {
        let (mut declared, mut held) = (Vec::new(), BTreeMap::new());
        let mut taken = self.settings.taken.clone();
        let mut fixed: BTreeSet<IpAddr> = BTreeSet::new();
        let mut notes: BTreeMap<String, Vec<(BalanceTrouble, String)>> = BTreeMap::new();
        for (name, watched) in self.view.services {
            if self.is_live(watched) {
                let entry = self.entry(name, watched).map(|entry| &entry.addresses);
                let has = watched.status.iter().chain(entry.into_iter().flatten());
                let has: Vec<_> = has.map(|ip| watched::vip(*ip)).collect();
                fixed.extend(watched.declared.service.load_balancer.iter().map(|one| one.ip));
                if let Some(why) = &watched.fault {
                    let text = format!("service {name} gets no other load-balancer address: {why}");
                    notes.entry(name.clone()).or_default().push((BalanceTrouble::Refused, text));
                    if has.is_empty() {
                        continue;
                    }
                }
                held.insert(name.clone(), has);
                declared.push(watched.declared.clone());
            } else if watched.class != Class::None && !self.is_ours(&watched.class) {
                taken.extend(watched.status.iter().map(|ip| (*ip, name.clone())));
            } else if !watched.declared.service.external_ips.is_empty() {
                // It wants no address of a pool, and nobody is to get one that it has by itself.
                let mut other = watched.declared.clone();
                other.service.r#type = Type::ClusterIp;
                declared.push(other);
            }
        }
        // What others are giving back is for nobody yet, except for who asks for that very address.
        for (name, entry) in &self.view.ledger.entries {
            if !held.contains_key(name) {
                let free = entry.addresses.iter().filter(|ip| !fixed.contains(*ip));
                taken.extend(free.map(|ip| (*ip, name.clone())));
            }
        }
        let balanced = balance_addresses(&declared, &held, self.settings.pools, &taken);
        let live = |name: &String| self.view.services.get(name).is_some_and(|watched| self.is_live(watched));
        for note in balanced.notes {
            if live(&note.service) {
                notes.entry(note.service).or_default().push((note.trouble, note.text));
            }
        }
        let given = balanced.given.into_iter().filter(|(name, _)| live(name));
        self.targets = given.map(|(name, all)| (name, all.iter().map(|one| one.ip).collect())).collect();
        notes
    }

    /// Whether somebody else has an address and does not share it.
    fn is_blocked(&self, name: &str, ip: IpAddr) -> bool {
        let shares = |other: &str| self.targets.get(other).is_some_and(|target| target.contains(&ip));
        self.holders.get(&ip).into_iter().flatten().any(|other| *other != name && !shares(other))
    }

    /// Brings a live Service nearer to what it is to have.
    fn give(&mut self, name: &str, watched: &Watched) {
        let known = self.view.ledger.entries.get(name);
        // Another of this name has an entry. If it is the newer, what is seen is old.
        if known.is_some_and(|entry| entry.uid != watched.uid && entry.version >= watched.version) {
            return;
        }
        let target = self.targets.get(name).cloned().unwrap_or_default();
        let entry = known.filter(|entry| entry.uid == watched.uid);
        let has = |ip: &IpAddr| entry.is_some_and(|entry| entry.addresses.contains(ip));
        let pool = self.pool_of(&target);
        let steady = target == watched.status
            && !watched.foreign_status
            && (target.is_empty() || (watched.is_held() && pool == watched.noted_pool));
        let claimed = target.iter().all(has);
        let current = entry.is_some_and(|entry| entry.version == watched.version);
        if target.is_empty() && steady && watched.is_held() {
            self.let_go(name, watched);
            return;
        }
        let blocked = target.iter().any(|ip| self.is_blocked(name, *ip));
        if target.is_empty() {
            if !steady {
                self.clear(name, watched);
            }
        } else if blocked {
            self.look_again(SETTLE);
        } else if steady {
            if !claimed {
                self.claim(name, watched, &target);
            }
        } else if claimed && current {
            self.write_status(name, watched, target.clone(), pool);
        } else {
            self.claim(name, watched, &target);
        }
        let target: BTreeSet<IpAddr> = target.into_iter().collect();
        self.drop_rest(name, watched, &target);
    }

    /// Notes in the ledger what a Service is to have, for the version that is seen.
    fn claim(&mut self, name: &str, watched: &Watched, target: &[IpAddr]) {
        let fresh = Entry { uid: watched.uid.clone(), version: 0, addresses: BTreeSet::new() };
        let entry = self.entries.entry(name.to_owned()).or_insert_with(|| fresh.clone());
        if entry.uid != watched.uid {
            *entry = fresh;
        }
        entry.version = entry.version.max(watched.version);
        entry.addresses.extend(target);
    }

    fn write_status(&mut self, name: &str, watched: &Watched, target: Vec<IpAddr>, pool: Option<String>) {
        let quoted: Vec<String> = target.iter().map(|ip| format!("{:?}", ip.to_string())).collect();
        // MetalLB's words.
        let text = format!("Assigned IP [{}]", quoted.join(" "));
        let said = Said::about_service(name, &watched.uid, Kind::Normal, "IPAllocated", text);
        let finalizers = (!watched.is_held()).then(|| {
            let mut finalizers = watched.finalizers.clone();
            finalizers.push(FINALIZER.to_owned());
            finalizers
        });
        let new = target != watched.status;
        self.writes.push(Write::Status(StatusWrite {
            finalizers,
            pool: (pool != watched.noted_pool).then_some(pool),
            then: new.then_some(said),
            ..StatusWrite::new(name, watched, Some(target))
        }));
    }

    fn pool_of(&self, addresses: &[IpAddr]) -> Option<String> {
        let holds = |pool: &&Pool| addresses.iter().all(|ip| pool.holds(*ip));
        let pool = self.settings.pools.iter().find(holds).filter(|_| !addresses.is_empty())?;
        Some(pool.name.clone())
    }

    /// Takes everything from a Service that is to have nothing (any more).
    fn take_back(&mut self, name: &str, watched: &Watched) {
        let entry = self.entry(name, watched);
        let ours = self.is_ours(&watched.class);
        let held = watched.is_held() && (ours || entry.is_some());
        if (ours || (watched.class == Class::None && entry.is_some()))
            && (!watched.status.is_empty() || watched.foreign_status)
        {
            self.clear(name, watched);
        } else if held {
            self.let_go(name, watched);
        } else if entry.is_some() {
            self.drop_rest(name, watched, &BTreeSet::new());
        }
    }

    /// Takes all addresses out of a status.
    fn clear(&mut self, name: &str, watched: &Watched) {
        self.writes.push(Write::Status(StatusWrite {
            pool: watched.noted_pool.is_some().then_some(None),
            ..StatusWrite::new(name, watched, Some(Vec::new()))
        }));
    }

    /// Takes our finalizer away, once what its status had has been withdrawn. Its entry in the ledger goes after that: it
    /// is by the entry that the finalizer is known to be ours where the type has changed.
    fn let_go(&mut self, name: &str, watched: &Watched) {
        if self.has_settled(&watched.uid, None) {
            let rest = watched.finalizers.iter().filter(|one| *one != FINALIZER).cloned().collect();
            self.writes.push(Write::Status(StatusWrite {
                finalizers: Some(rest),
                pool: watched.noted_pool.is_some().then_some(None),
                ..StatusWrite::new(name, watched, None)
            }));
        }
    }

    /// Takes out of the ledger what a Service neither has nor is to have.
    fn drop_rest(&mut self, name: &str, watched: &Watched, target: &BTreeSet<IpAddr>) {
        let Some(entry) = self.entry(name, watched) else { return };
        let status = if self.is_ours(&watched.class) { watched.status.as_slice() } else { &[] };
        let rest: Vec<IpAddr> = entry
            .addresses
            .iter()
            .copied()
            .filter(|ip| !target.contains(ip) && !status.contains(ip))
            .collect();
        if entry.version == watched.version && !rest.is_empty() {
            // A write on this version may still be under way: it must fail.
            let pending = self.writes.iter().any(|one| one.is_on(name));
            if !pending {
                let fence = true;
                self.writes
                    .push(Write::Status(StatusWrite { fence, ..StatusWrite::new(name, watched, None) }));
            }
            return;
        }
        if entry.version > watched.version {
            return;
        }
        for ip in rest {
            if self.has_settled(&watched.uid, Some(ip))
                && let Some(entry) = self.entries.get_mut(name)
            {
                entry.addresses.remove(&ip);
            }
        }
        // While it has our finalizer, the entry says whose that is.
        if !watched.is_held() && self.entries.get(name).is_some_and(|entry| entry.addresses.is_empty()) {
            self.entries.remove(name);
        }
    }

    /// Takes the entries of Services that are gone out of the ledger.
    fn released(&mut self, name: &str, entry: &Entry) {
        match self.view.services.get(name) {
            Some(watched) if watched.uid == entry.uid => {}
            // There is one of that name at a time.
            Some(watched) if watched.version > entry.version => {
                if self.entries.get(name).is_some_and(|now| now.uid == entry.uid) {
                    self.entries.remove(name);
                }
            }
            _ if self.view.gone.contains(&entry.uid) => {
                self.entries.remove(name);
            }
            _ => {
                self.writes.push(Write::Inquire { service: name.to_owned(), uid: entry.uid.clone() });
            }
        }
    }

    /// Whether an address (None: all of them) has been in no status for long enough.
    fn has_settled(&mut self, uid: &str, ip: Option<IpAddr>) -> bool {
        let key = (uid.to_owned(), ip);
        let since = *self.cleared.entry(key.clone()).or_insert(self.now);
        self.seen.insert(key);
        let left = SETTLE.saturating_sub(self.now.saturating_sub(since));
        if !left.is_zero() {
            self.look_again(left);
        }
        left.is_zero()
    }

    fn look_again(&mut self, after: Duration) {
        let at = self.now + after;
        self.again = Some(self.again.map_or(at, |before| before.min(at)));
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod metallb_tests;
#[cfg(test)]
mod tests;
