//! The ranges in the order in which free ones are looked for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::claims::Claims;
use crate::Family;

/// A service range: from behind its static band on, then the band. Never its first and last address.
pub(super) struct Addresses {
    net: IpNet,
    /// Addresses without the first and the last.
    usable: u128,
    band: u128,
    /// Where the next search begins: all before it are held.
    position: u128,
}

impl Addresses {
    pub(super) fn new(net: IpNet) -> Self {
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        let usable = size.saturating_sub(2);
        // KEP-3070; a range of 16 or fewer has no band.
        let band = if size <= 16 { 0 } else { (size / 16).clamp(16, 256).min(usable) };
        Addresses { net: net.trunc(), usable, band, position: 0 }
    }

    pub(super) fn net(&self) -> IpNet {
        self.net
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.net.addr())
    }

    /// Whether an address can be a service's. The last one of an IPv6 range can, but only where somebody fixes it.
    pub(super) fn may_hold(&self, ip: IpAddr) -> bool {
        let last = ip.is_ipv4() && ip == self.net.broadcast();
        self.net.contains(&ip) && ip != self.net.network() && !last
    }

    pub(super) fn rewind(&mut self) {
        self.position = 0;
    }

    /// The next free one, which stays free until it is claimed.
    pub(super) fn next(&mut self, claims: &Claims) -> Option<IpAddr> {
        while self.position < self.usable {
            let dynamic = self.usable - self.band;
            let offset = if self.position < dynamic {
                1 + self.band + self.position
            } else {
                1 + self.position - dynamic
            };
            let ip = at(self.net.network(), offset)?;
            if claims.cluster_ip_is_free(ip) {
                return Some(ip);
            }
            self.position += 1;
        }
        None
    }
}

/// The address `offset` after another.
pub(crate) fn at(base: IpAddr, offset: u128) -> Option<IpAddr> {
    match base {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).ok()?;
            u32::from(base).checked_add(offset).map(|n| IpAddr::V4(Ipv4Addr::from(n)))
        }
        IpAddr::V6(base) => u128::from(base).checked_add(offset).map(|n| IpAddr::V6(Ipv6Addr::from(n))),
    }
}

/// The node ports: from behind their static band on, then the band.
pub(super) struct NodePorts {
    first: u16,
    last: u16,
    band: u32,
    position: u32,
}

impl NodePorts {
    pub(super) fn new((first, last): (u16, u16)) -> Self {
        let size = u32::from(last.saturating_sub(first)) + 1;
        // KEP-3668; a range of 16 or fewer has no band.
        let band = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
        NodePorts { first, last, band, position: 0 }
    }

    pub(super) fn holds(&self, number: u16) -> bool {
        (self.first..=self.last).contains(&number)
    }

    pub(super) fn rewind(&mut self) {
        self.position = 0;
    }

    /// The next one that is neither held nor in `own`.
    pub(super) fn next(&mut self, claims: &Claims, own: &BTreeSet<u16>) -> Option<u16> {
        let size = (u32::from(self.last) + 1).checked_sub(u32::from(self.first))?;
        let number = |position: u32| {
            let offset = (self.band + position) % size;
            u16::try_from(u32::from(self.first) + offset).ok()
        };
        while self.position < size && !claims.number_is_free(number(self.position)?) {
            self.position += 1;
        }
        (self.position..size)
            .filter_map(number)
            .find(|number| !own.contains(number) && claims.number_is_free(*number))
    }
}
