//! Which pod holds which address: decisions over the names in the store, without touching it.
//!
//! Store: `<dataDir>/<network>/<boot id>/<entry>`, one symbolic link per attachment. Its name says everything that a
//! decision needs (`hl0123456789abc,10.244.1.7,fd00::7`: owner and its addresses), its target says whose it is
//! ([`Holder`]). Making a symbolic link is one atomic system call: both families are reserved
//! together or not at all, and there is no half-written state for a crash to leave. All entries are read by one
//! directory listing. A directory per boot, because no network namespace outlives a boot: entries of an earlier boot
//! are void (cni#204, plugins#252, k8s#108121, k3s#5885). For the same reason nothing is synced to the disk.
//! `<dataDir>/<network>/lock` orders writers and holds the last reserved offset.
//!
//! Where the configuration asks for sticky addresses, `<dataDir>/<network>/names/` holds a symbolic link for each name
//! of a pod, in the same form (`<hash of name and interface>,10.244.1.7,fd00::7`, the name as its target): what the last
//! pod of that name had. It is a wish and no reservation, stays across boots, and is safe to lose.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{CniError, Code};

/// Offset of the gateway in a range; the first address, offset 0, is the VTEP's (and IPv6's anycast address).
const GATEWAY_OFFSET: u32 = 1;

/// One attachment in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name of the host's end of the veth pair, which is a hash of container and interface.
    pub owner: String,
    /// Reserved addresses, one per family.
    pub addresses: Vec<IpAddr>,
}

impl Entry {
    /// The entry with this file name; None for any other file.
    pub fn parse(name: &str) -> Option<Entry> {
        let mut parts = name.split(',');
        let owner = parts.next().filter(|owner| !owner.is_empty())?.to_owned();
        let addresses: Vec<IpAddr> = parts.map(|part| part.parse().ok()).collect::<Option<_>>()?;
        (!addresses.is_empty()).then_some(Entry { owner, addresses })
    }

    /// The file name.
    pub fn name(&self) -> String {
        let mut name = self.owner.clone();
        for address in &self.addresses {
            name.push(',');
            name.push_str(&address.to_string());
        }
        name
    }
}

/// Who holds an entry: the target of its link, `<container>/<interface>`, `/<namespace>/<pod>` if the runtime says it, and
/// `//<runtime>` if that asked by CRI. None of the parts is empty, so two slashes begin the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Container id.
    pub container: String,
    /// Interface in the container.
    pub interface: String,
    /// `namespace/name`, or `name`.
    pub pod: Option<String>,
    /// Mark of the runtime whose pod sandbox it is ([`runtime_mark`]). None: not made by CRI.
    pub runtime: Option<String>,
}

impl Holder {
    /// The holder that a target names.
    pub fn parse(target: &str) -> Option<Holder> {
        let (target, runtime) = match target.split_once("//") {
            Some((target, runtime)) => (target, Some(runtime.to_owned())),
            None => (target, None),
        };
        let mut parts = target.splitn(3, '/').map(str::to_owned);
        Some(Holder { container: parts.next()?, interface: parts.next()?, pod: parts.next(), runtime })
    }

    /// The target.
    pub fn target(&self) -> String {
        let Holder { container, interface, pod, runtime } = self;
        let pod = pod.as_ref().map_or(String::new(), |pod| format!("/{pod}"));
        let runtime = runtime.as_ref().map_or(String::new(), |runtime| format!("//{runtime}"));
        format!("{container}/{interface}{pod}{runtime}")
    }
}

/// Mark of a runtime: 8 hexadecimal digits of a hash of its control group, as `/proc/<pid>/cgroup` has it. The plugin is a
/// child of the runtime and so in the same group, which a restart of the runtime does not change.
pub fn runtime_mark(cgroup: &str) -> String {
    let digest = homelab_model::sha256_hex(cgroup.as_bytes());
    digest.get(..8).unwrap_or_default().to_owned()
}

/// Name of a pod's interface in what is remembered: 32 hexadecimal digits of a hash, as names may be longer than files'.
pub fn remembered_name(pod: &str, ifname: &str) -> String {
    // Only the pod's name can contain a slash, and an interface's cannot.
    let digest = homelab_model::sha256_hex(format!("{pod}/{ifname}").as_bytes());
    digest.get(..32).unwrap_or_default().to_owned()
}

/// Name of an attachment's link on the node: `hl` and 13 hexadecimal digits of a hash (15 is the kernel's limit).
pub fn owner(network: &str, container: &str, ifname: &str) -> String {
    // None of the three can contain a slash.
    let digest = homelab_model::sha256_hex(format!("{network}/{container}/{ifname}").as_bytes());
    format!("hl{}", digest.get(..13).unwrap_or_default())
}

/// The address at `offset` in a range.
fn at(range: IpNet, offset: u32) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base).wrapping_add(offset))),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base).wrapping_add(offset.into()))),
    }
}

/// The last offset that a pod can have in a range, if any: IPv4's broadcast address is left out.
fn last_offset(range: IpNet) -> Option<u32> {
    let host_bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let reserved = if range.addr().is_ipv4() { 2 } else { 1 };
    let addresses = if host_bits >= 32 { u32::MAX } else { 1 << host_bits };
    addresses.checked_sub(reserved).filter(|last| *last > GATEWAY_OFFSET)
}

/// The gateway of a pod range: its first host. None if the range has no room for a gateway and a pod.
pub fn gateway(range: IpNet) -> Option<IpAddr> {
    last_offset(range).map(|_| at(range, GATEWAY_OFFSET))
}

/// The offset of an address in its range, if a pod may have it: not the VTEP's, the gateway's or IPv4's broadcast address,
/// and in IPv6 among the first 2^32.
fn offset(range: IpNet, address: IpAddr) -> Option<u32> {
    let distance = match (range.network(), address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            u128::from(u32::from(address).checked_sub(u32::from(base))?)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => u128::from(address).checked_sub(u128::from(base))?,
        _ => return None,
    };
    let offset = u32::try_from(distance).ok()?;
    (offset > GATEWAY_OFFSET && offset <= last_offset(range)?).then_some(offset)
}

/// What a reservation means for the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reservation {
    /// The owner holds an entry that still fits: a killed ADD left it.
    Held(Entry),
    /// A new entry, and the offset to remember as the last, if it was the next one's turn.
    New(Entry, Option<u32>),
    /// Another owner has an address that was asked for.
    Taken(IpAddr, Entry),
    /// All addresses are taken.
    Full,
}

/// Where addresses come from.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// Ranges of different families.
    pub ranges: &'a [IpNet],
    /// Addresses that only those get who ask for them.
    pub exclude: &'a [IpNet],
}

/// Who wants addresses, and which.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claim<'a> {
    /// Name of the attachment's link.
    pub owner: &'a str,
    /// Addresses that it must have: these or none. At most one of each family.
    pub asked: &'a [IpAddr],
    /// What is remembered of pods of that name: whose addresses they had.
    pub remembered: &'a [Entry],
    /// Name in `remembered`.
    pub name: &'a str,
}

/// Addresses for a claim. Without wishes the same offset in every range, the next one after `last` that is free in all
/// of them, so that an address rests as long as possible before another pod gets it; one that is remembered for
/// another name only when there is no other. Fails where an address is asked for that no pod can have.
pub fn reserve(
    pool: Pool<'_>,
    entries: &[Entry],
    last: Option<u32>,
    claim: Claim<'_>,
) -> Result<Reservation, CniError> {
    let ranges = pool.ranges;
    if ranges.is_empty() {
        return Ok(Reservation::Full);
    }
    let mut fixed = asked(ranges, claim.asked)?;
    if let Some(held) = entries.iter().find(|entry| entry.owner == claim.owner) {
        let fits = held.addresses.len() == ranges.len()
            && held.addresses.iter().zip(ranges).all(|(address, range)| range.contains(address));
        if fits && claim.asked.iter().all(|address| held.addresses.contains(address)) {
            return Ok(Reservation::Held(held.clone()));
        }
    }
    let others = || entries.iter().filter(|entry| entry.owner != claim.owner);
    for address in claim.asked {
        if let Some(holder) = others().find(|entry| entry.addresses.contains(address)) {
            return Ok(Reservation::Taken(*address, holder.clone()));
        }
    }
    let entry = |addresses: Vec<IpAddr>| Entry { owner: claim.owner.to_owned(), addresses };
    let mut taken: BTreeSet<IpAddr> = others().flat_map(|entry| entry.addresses.iter().copied()).collect();
    // What the last pod of that name had, where nothing else is asked for.
    let own = claim.remembered.iter().find(|entry| entry.owner == claim.name);
    for address in own.iter().flat_map(|own| &own.addresses) {
        for (slot, range) in fixed.iter_mut().zip(ranges) {
            if slot.is_none() && offset(*range, *address).is_some() && !taken.contains(address) {
                *slot = Some(*address);
            }
        }
    }
    if let Some(addresses) = fixed.iter().copied().collect::<Option<Vec<_>>>() {
        return Ok(Reservation::New(entry(addresses), None));
    }
    let Some(top) = ranges.iter().map(|range| last_offset(*range)).min().flatten() else {
        return Ok(Reservation::Full);
    };
    let first = GATEWAY_OFFSET + 1;
    let start =
        last.and_then(|last| last.checked_add(1)).filter(|n| (first..=top).contains(n)).unwrap_or(first);
    // A family without a wish follows the other's.
    let beside = fixed.iter().zip(ranges).find_map(|(slot, range)| offset(*range, (*slot)?));
    let open: Vec<IpNet> =
        fixed.iter().zip(ranges).filter(|(slot, _)| slot.is_none()).map(|(_, range)| *range).collect();
    let free = taken.clone();
    taken.extend(
        claim.remembered.iter().filter(|e| e.owner != claim.name).flat_map(|e| e.addresses.iter().copied()),
    );
    for taken in [&taken, &free] {
        let search = |from: u32, to: u32| next(&open, pool.exclude, taken, from, to);
        let found = beside
            .filter(|offset| *offset <= top)
            .and_then(|offset| search(offset, offset))
            .or_else(|| search(start, top))
            .or_else(|| search(first, start.saturating_sub(1)));
        if let Some(found) = found {
            let complete = fixed.iter().zip(ranges).map(|(slot, range)| slot.unwrap_or(at(*range, found)));
            return Ok(Reservation::New(entry(complete.collect()), beside.is_none().then_some(found)));
        }
    }
    Ok(Reservation::Full)
}

/// The addresses that are asked for, by range.
fn asked(ranges: &[IpNet], asked: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, CniError> {
    let mut fixed = vec![None; ranges.len()];
    for address in asked {
        let position =
            ranges.iter().position(|range| offset(*range, *address).is_some()).ok_or_else(|| {
                CniError::with(
                    Code::Config,
                    format!("no pod of this node can have the address {address}"),
                    format!("its ranges are {}; VTEP and gateway have the first two of each", names(ranges)),
                )
            })?;
        fixed[position] = Some(*address);
    }
    Ok(fixed)
}

/// The first offset in `from..=to` that is free in all `ranges`. It goes over an excluded network in one step and else over
/// one taken address at a time, so a range of 2^64 costs no more than a small one.
fn next(ranges: &[IpNet], exclude: &[IpNet], taken: &BTreeSet<IpAddr>, from: u32, to: u32) -> Option<u32> {
    let mut offset = from;
    'offsets: while offset <= to {
        for range in ranges {
            let address = at(*range, offset);
            if let Some(net) = exclude.iter().find(|net| net.contains(&address)) {
                // Its last address, or that of the range if the range is the smaller.
                let end = net.broadcast().min(range.broadcast());
                let step = match (address, end) {
                    (IpAddr::V4(here), IpAddr::V4(end)) => u128::from(u32::from(end) - u32::from(here)),
                    (IpAddr::V6(here), IpAddr::V6(end)) => u128::from(end) - u128::from(here),
                    _ => 0,
                };
                offset = offset.checked_add(u32::try_from(step).ok()?)?.checked_add(1)?;
                continue 'offsets;
            }
            if taken.contains(&address) {
                offset = offset.checked_add(1)?;
                continue 'offsets;
            }
        }
        return Some(offset);
    }
    None
}

fn names(ranges: &[IpNet]) -> String {
    ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" and ")
}

/// The error for a range without a free address.
pub fn exhausted(ranges: &[IpNet], entries: usize) -> CniError {
    CniError::with(
        Code::Exhausted,
        format!("no free address in {}", names(ranges)),
        format!("{entries} pods on this node hold one; a larger network.nodePrefix gives more"),
    )
}
