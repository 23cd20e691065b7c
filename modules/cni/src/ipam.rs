//! Which pod holds which address: decisions over the names in the store, without touching it.
//!
//! Store: `<dataDir>/<network>/<boot id>/<entry>`, one symbolic link per attachment. Its name says everything that a
//! decision needs (`hl0123456789abc,10.244.1.7,fd00::7`: owner and its addresses), its target is for people
//! (`<container>/<interface>`). Making a symbolic link is one atomic system call: both families are reserved
//! together or not at all, and there is no half-written state for a crash to leave. All entries are read by one
//! directory listing. A directory per boot, because no network namespace outlives a boot: entries of an earlier boot
//! are void (cni#204, plugins#252, k8s#108121, k3s#5885). For the same reason nothing is synced to the disk.
//! `<dataDir>/<network>/lock` orders writers and holds the last reserved offset.

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

/// What a reservation means for the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reservation {
    /// The owner holds an entry that still fits: a killed ADD left it.
    Held(Entry),
    /// A new entry, and the offset to remember as the last.
    New(Entry, u32),
}

/// Addresses for `owner`: the same offset in every range, the next one after `last` that is free in all of them, so
/// that an address rests as long as possible before another pod gets it. `None` if all are taken.
pub fn reserve(ranges: &[IpNet], entries: &[Entry], last: Option<u32>, owner: &str) -> Option<Reservation> {
    if let Some(held) = entries.iter().find(|entry| entry.owner == owner) {
        let fits = held.addresses.len() == ranges.len()
            && held.addresses.iter().zip(ranges).all(|(address, range)| range.contains(address));
        if fits {
            return Some(Reservation::Held(held.clone()));
        }
    }
    let top = ranges.iter().map(|range| last_offset(*range)).min()??;
    let first = GATEWAY_OFFSET + 1;
    let taken: BTreeSet<IpAddr> = entries.iter().flat_map(|entry| entry.addresses.iter().copied()).collect();
    let start =
        last.and_then(|last| last.checked_add(1)).filter(|n| (first..=top).contains(n)).unwrap_or(first);
    let free = |offset: &u32| !ranges.iter().any(|range| taken.contains(&at(*range, *offset)));
    // At most one offset per taken address is passed over, so a range of 2^64 costs no more than a small one.
    let offset = (start..=top).chain(first..start).find(free)?;
    let addresses = ranges.iter().map(|range| at(*range, offset)).collect();
    Some(Reservation::New(Entry { owner: owner.to_owned(), addresses }, offset))
}

/// The error for a range without a free address.
pub fn exhausted(ranges: &[IpNet], entries: usize) -> CniError {
    let names: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
    CniError::with(
        Code::Exhausted,
        format!("no free address in {}", names.join(" and ")),
        format!("{entries} pods on this node hold one; a larger network.nodePrefix gives more"),
    )
}
