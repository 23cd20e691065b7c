//! Free addresses of pools.

use std::net::IpAddr;

use crate::cluster::is_buggy;
use crate::service::Ingress;
use crate::{Family, Pool};

use super::super::space::at;
use super::holders::{Holders, Want};

/// Whether a pool has addresses of a family.
pub(super) fn has(pool: &Pool, family: Family) -> bool {
    pool.addresses.iter().any(|range| Family::of(range.first) == family)
}

/// Where in each range of each pool the next search begins: all before it are held.
pub(super) struct Search<'a> {
    pools: &'a [Pool],
    positions: Vec<Vec<Option<IpAddr>>>,
}

impl<'a> Search<'a> {
    pub(super) fn new(pools: &'a [Pool]) -> Self {
        let mut search = Search { pools, positions: Vec::new() };
        search.rewind();
        search
    }

    pub(super) fn rewind(&mut self) {
        let firsts = |pool: &Pool| pool.addresses.iter().map(|range| Some(range.first)).collect();
        self.positions = self.pools.iter().map(firsts).collect();
    }

    /// An address for a service: one that it had, else one that it may share, else the next free one. It stays free until
    /// it is taken.
    pub(super) fn find(
        &mut self,
        pool: &Pool,
        family: Family,
        want: &Want<'_>,
        had: &[Ingress],
        holders: &Holders<'_>,
    ) -> Option<IpAddr> {
        let known = had.iter().map(|i| i.ip).chain(holders.shared(want));
        let mut known = known.filter(|ip| Family::of(*ip) == family && pool.holds(*ip));
        if let Some(ip) = known.find(|ip| holders.denial(*ip, want).is_none()) {
            return Some(ip);
        }
        let index = self.pools.iter().position(|other| other.name == pool.name)?;
        let positions = self.positions.get_mut(index)?;
        for (range, position) in pool.addresses.iter().zip(positions) {
            if Family::of(range.first) != family {
                continue;
            }
            while let Some(ip) = position.filter(|ip| *ip <= range.last) {
                if !(pool.avoid_buggy_ips && is_buggy(ip)) && holders.is_free(ip) {
                    return Some(ip);
                }
                *position = at(ip, 1);
            }
        }
        None
    }
}
