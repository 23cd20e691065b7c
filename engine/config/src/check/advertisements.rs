//! Advertisements: who announces which addresses.

use std::collections::HashMap;

use homelab_model::{BgpAdvertisement, BgpPeer, BgpSpec, L2Advertisement, PreferredNode};

use super::pools::{ParsedPool, known};
use super::{family, labels, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, LoadBalancer};

/// Name of the advertisement of a file that has none.
pub(super) const DEFAULT: &str = "default";
/// What names of advertisements and advertisements are called.
pub(super) const NAMES: (&str, &str) = ("an advertisement name", "advertisements");

/// The advertisements; where there are pools and neither one nor `bgp` is written, one for all of them.
pub(super) fn advertisements(
    raw: &LoadBalancer,
    pools: &[ParsedPool],
    faults: &mut Vec<Fault>,
) -> Vec<L2Advertisement> {
    let Some(list) = raw.l2_advertisements.as_ref().filter(|list| !list.is_empty()) else {
        let all = L2Advertisement { name: DEFAULT.to_owned(), ..L2Advertisement::default() };
        return if pools.is_empty() || raw.bgp.is_some() { Vec::new() } else { vec![all] };
    };
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut advertisements = Vec::new();
    for item in list {
        let raw = &item.value;
        let name = super::name(&mut names, raw.name.as_ref(), NAMES, faults);
        advertisements.push(advertisement(raw, name.map(|n| n.value).unwrap_or_default(), pools, faults));
    }
    advertisements
}

fn advertisement(
    raw: &raw::L2Advertisement,
    name: String,
    pools: &[ParsedPool],
    faults: &mut Vec<Fault>,
) -> L2Advertisement {
    let mut advertisement = L2Advertisement { name, ..L2Advertisement::default() };
    for text in raw.ip_address_pools.iter().flatten() {
        known(pools, text, faults);
        advertisement.ip_address_pools.push(text.value.clone());
    }
    advertisement.node_selectors =
        labels::selectors(raw.node_selectors.as_ref(), "nodeSelectors", "all nodes", faults);
    for item in raw.preferred_node_selectors.iter().flatten() {
        if let (Some(weight), Some(preference)) = (&item.value.weight, &item.value.preference) {
            let preference = labels::selector(&preference.value, faults);
            advertisement.preferred_node_selectors.push(PreferredNode { weight: weight.value, preference });
        }
    }
    advertisement.service_selectors =
        labels::selectors(raw.service_selectors.as_ref(), "serviceSelectors", "all services", faults);
    for text in raw.interfaces.iter().flatten() {
        if let Some(name) = take(faults, text, values::interface) {
            advertisement.interfaces.push(name.value);
        }
    }
    advertisement
}

/// Warns of addresses of pools that no advertisement is for, and of those that no router is of the family for.
pub(super) fn silent(
    pools: &[ParsedPool],
    l2: &[L2Advertisement],
    bgp: Option<&BgpSpec>,
    faults: &mut Vec<Fault>,
) {
    for pool in pools {
        let Some(name) = &pool.name else { continue };
        let is_for = |pools: &[String]| pools.is_empty() || pools.contains(&name.value);
        if l2.iter().any(|one| is_for(&one.ip_address_pools)) {
            continue;
        }
        let told: Vec<&BgpAdvertisement> = bgp
            .iter()
            .flat_map(|bgp| &bgp.advertisements)
            .filter(|one| is_for(&one.ip_address_pools))
            .collect();
        let Some(bgp) = bgp.filter(|_| !told.is_empty()) else {
            faults.push(
                Fault::new("not-announced", name.span, format!("no advertisement is for pool `{}`", name.value))
                    .help("its addresses are given to services and nobody announces them: add it to the `ipAddressPools` of one")
                    .warning(),
            );
            continue;
        };
        for v4 in [true, false] {
            let fits = |peer: &BgpPeer| {
                peer.peer_address.is_ipv4() == v4 && told.iter().any(|one| one.is_to(&peer.name))
            };
            let range = pool.ranges.iter().find(|range| range.value.1.first.is_ipv4() == v4);
            if let Some(range) = range.filter(|_| !bgp.peers.is_empty() && !bgp.peers.iter().any(fits)) {
                let message =
                    format!("no router is told of the {} addresses of pool `{}`", family(v4), name.value);
                faults.push(
                    Fault::new("not-announced", range.span, message)
                        .help("a router is told of addresses of the family of its `peerAddress`: add it as a second peer, by its other address")
                        .warning(),
                );
            }
        }
    }
}
