//! Advertisements: who announces which addresses.

use std::collections::{BTreeSet, HashMap};

use homelab_model::{L2Advertisement, PreferredNode};

use super::pools::{ParsedPool, known};
use super::{duplicate, labels, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, LoadBalancer};

/// Name of the advertisement of a file that has none.
const DEFAULT: &str = "default";

/// The advertisements; where there are pools and none is written, one for all of them.
pub(super) fn advertisements(
    raw: &LoadBalancer,
    pools: &[ParsedPool],
    faults: &mut Vec<Fault>,
) -> Vec<L2Advertisement> {
    let Some(list) = raw.l2_advertisements.as_ref().filter(|list| !list.is_empty()) else {
        let all = L2Advertisement { name: DEFAULT.to_owned(), ..L2Advertisement::default() };
        return if pools.is_empty() { Vec::new() } else { vec![all] };
    };
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut advertisements = Vec::new();
    for item in list {
        let raw = &item.value;
        let name =
            raw.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "an advertisement name")));
        if let Some(name) = &name
            && let Some(first) = seen_before(&mut names, &name.value, name.span)
        {
            faults.push(duplicate("advertisements", name, first));
        }
        advertisements.push(advertisement(raw, name.map(|n| n.value).unwrap_or_default(), pools, faults));
    }
    silent(&advertisements, pools, faults);
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

/// Warns of pools that no advertisement is for.
fn silent(advertisements: &[L2Advertisement], pools: &[ParsedPool], faults: &mut Vec<Fault>) {
    if advertisements.iter().any(|one| one.ip_address_pools.is_empty()) {
        return;
    }
    let named: BTreeSet<&String> = advertisements.iter().flat_map(|one| &one.ip_address_pools).collect();
    for name in pools.iter().filter_map(|pool| pool.name.as_ref()).filter(|n| !named.contains(&n.value)) {
        faults.push(
            Fault::new("not-announced", name.span, format!("no advertisement is for pool `{}`", name.value))
                .help("its addresses are given to services and nobody announces them: add it to the `ipAddressPools` of one")
                .warning(),
        );
    }
}
