//! MetalLB's resources (`metallb.io`: IPAddressPool, L2Advertisement, BGPAdvertisement, BFDProfile and Community of
//! v1beta1, BGPPeer of v1beta2) as the model's pools and advertisements, so that existing manifests keep working.
//!
//! homelab.yaml is the single file: where both name the same, or have the same address, the file's counts and a note says
//! so. What cannot be meant here is left out, and a note says that too.

mod bgp;
mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_model::{
    BgpSpec, Family, L2Advertisement, Labels, Operator, Pool, PoolRange, Requirement, Selector,
    ServiceAllocation, SpeakerSpec,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub use spec::{
    BfdProfileSpec, BgpAdvertisementSpec, BgpPeerSpec, CommunitySpec, CommunityValue, IpAddressPoolSpec,
    L2AdvertisementSpec, Resource, Resources, ServiceAllocationSpec,
};

/// What the resources add to the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meaning {
    /// Pools, by name.
    pub pools: Vec<Pool>,
    /// Advertisements by ARP and NDP, by name; each names its pools.
    pub l2_advertisements: Vec<L2Advertisement>,
    /// Peers, advertisements and profiles by BGP; each advertisement names its pools. None: there are no peers.
    pub bgp: Option<BgpSpec>,
    /// What is not as the resources say, and why.
    pub notes: Vec<Note>,
}

/// Something to know about a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// `IPAddressPool lan`.
    pub resource: String,
    /// What is so, and what helps.
    pub text: String,
}

impl Note {
    fn new(kind: &str, name: &str, text: impl Into<String>) -> Note {
        Note { resource: format!("{kind} {name}"), text: text.into() }
    }
}

/// What the resources mean beside what the file says. `namespaces` is the labels of all namespaces.
pub fn meaning(resources: &Resources, file: &SpeakerSpec, namespaces: &BTreeMap<String, Labels>) -> Meaning {
    let mut meaning = Meaning::default();
    let mut by_name: Vec<&Resource<IpAddressPoolSpec>> = resources.pools.iter().collect();
    by_name.sort_by_key(|one| one.name());
    for one in by_name {
        match pool(one, &file.pools, &meaning.pools, namespaces) {
            Ok(pool) => meaning.pools.push(pool),
            Err(text) => meaning.notes.push(Note::new("IPAddressPool", one.name(), text)),
        }
    }
    let mut by_name: Vec<&Resource<L2AdvertisementSpec>> = resources.l2_advertisements.iter().collect();
    by_name.sort_by_key(|one| one.name());
    for one in by_name {
        match l2(one, file, resources, &meaning.pools) {
            Ok(advertisement) => meaning.l2_advertisements.push(advertisement),
            Err(text) => meaning.notes.push(Note::new("L2Advertisement", one.name(), text)),
        }
    }
    bgp::bgp(resources, file, &mut meaning);
    meaning
}

impl Meaning {
    /// Adds it to what the speakers are told.
    ///
    /// Advertisements of the file that are for all pools stay for those of the file: MetalLB announces a pool only where a
    /// resource says so.
    pub fn add_to(&self, speaker: &mut SpeakerSpec) {
        if self.pools.is_empty() {
            return;
        }
        let of_file: Vec<String> = speaker.pools.iter().map(|pool| pool.name.clone()).collect();
        let bgp = speaker.bgp.iter_mut().flat_map(|bgp| &mut bgp.advertisements);
        let l2 = speaker.advertisements.iter_mut().map(|one| &mut one.ip_address_pools);
        for pools in l2.chain(bgp.map(|one| &mut one.ip_address_pools)).filter(|pools| pools.is_empty()) {
            pools.clone_from(&of_file);
        }
        if of_file.is_empty() {
            // They would be for all now.
            speaker.advertisements.clear();
            speaker.bgp.iter_mut().for_each(|bgp| bgp.advertisements.clear());
        }
        speaker.pools.extend(self.pools.iter().cloned());
        speaker.advertisements.extend(self.l2_advertisements.iter().cloned());
        let Some(more) = &self.bgp else { return };
        let bgp = speaker.bgp.get_or_insert_with(|| BgpSpec { my_asn: more.my_asn, ..BgpSpec::default() });
        bgp.peers.extend(more.peers.iter().cloned());
        bgp.advertisements.extend(more.advertisements.iter().cloned());
        bgp.bfd_profiles.extend(more.bfd_profiles.iter().cloned());
        *bgp = std::mem::take(bgp).sorted();
    }
}

fn pool(
    one: &Resource<IpAddressPoolSpec>,
    file: &[Pool],
    others: &[Pool],
    namespaces: &BTreeMap<String, Labels>,
) -> Result<Pool, String> {
    if file.iter().any(|pool| pool.name == one.name()) {
        return Err("homelab.yaml has a pool of that name: that one counts".to_owned());
    }
    let spec = &one.spec;
    let addresses = spec.addresses.iter().map(|text| range(text)).collect::<Result<Vec<_>, _>>()?;
    let meets = |a: &PoolRange, b: &PoolRange| {
        Family::of(a.first) == Family::of(b.first) && a.first <= b.last && b.first <= a.last
    };
    let overlapping = |pool: &&Pool| pool.addresses.iter().any(|a| addresses.iter().any(|b| meets(a, b)));
    if let Some(pool) = file.iter().find(overlapping) {
        return Err(format!("pool {} of homelab.yaml has some of its addresses: that one counts", pool.name));
    }
    if let Some(pool) = others.iter().find(overlapping) {
        return Err(format!("IPAddressPool {} has some of its addresses: it is left out", pool.name));
    }
    let service_allocation =
        spec.service_allocation.as_ref().map(|to| allocation(to, namespaces)).transpose()?;
    Ok(Pool {
        name: one.name().to_owned(),
        addresses,
        auto_assign: spec.auto_assign.unwrap_or(true),
        avoid_buggy_ips: spec.avoid_buggy_ips,
        service_allocation,
    })
}

fn allocation(
    spec: &ServiceAllocationSpec,
    namespaces: &BTreeMap<String, Labels>,
) -> Result<ServiceAllocation, String> {
    let mut names: BTreeSet<String> = spec.namespaces.iter().cloned().collect();
    let by_label = selectors(&spec.namespace_selectors)?;
    let chosen = namespaces.iter().filter(|(_, labels)| by_label.iter().any(|one| one.matches(labels)));
    names.extend(chosen.map(|(name, _)| name.clone()));
    if names.is_empty() && !by_label.is_empty() {
        // For no namespace, which is not the same as for all: none has this name.
        names.insert(String::new());
    }
    Ok(ServiceAllocation {
        priority: spec.priority,
        namespaces: names.into_iter().collect(),
        service_selectors: selectors(&spec.service_selectors)?,
    })
}

fn l2(
    one: &Resource<L2AdvertisementSpec>,
    file: &SpeakerSpec,
    resources: &Resources,
    pools: &[Pool],
) -> Result<L2Advertisement, String> {
    if file.advertisements.iter().any(|own| own.name == one.name()) {
        return Err("homelab.yaml has an advertisement of that name: that one counts".to_owned());
    }
    let spec = &one.spec;
    Ok(L2Advertisement {
        name: one.name().to_owned(),
        ip_address_pools: pools_of(
            &spec.ip_address_pools,
            &spec.ip_address_pool_selectors,
            resources,
            pools,
        )?,
        node_selectors: selectors(&spec.node_selectors)?,
        preferred_node_selectors: Vec::new(),
        service_selectors: selectors(&spec.service_selectors)?,
        interfaces: spec.interfaces.clone(),
    })
}

/// The names of the pools that an advertisement is for: of those that exist.
fn pools_of(
    names: &[String],
    by_label: &[LabelSelector],
    resources: &Resources,
    pools: &[Pool],
) -> Result<Vec<String>, String> {
    let by_label = selectors(by_label)?;
    let all = names.is_empty() && by_label.is_empty();
    let labels = |name: &str| {
        let pool = resources.pools.iter().find(|pool| pool.name() == name);
        pool.and_then(|pool| pool.metadata.labels.clone()).unwrap_or_default()
    };
    let is_for = |name: &String| {
        all || names.contains(name) || by_label.iter().any(|selector| selector.matches(&labels(name)))
    };
    let chosen: Vec<String> = pools.iter().map(|pool| pool.name.clone()).filter(is_for).collect();
    if chosen.is_empty() {
        return Err("it is for no pool that there is: nothing is announced by it".to_owned());
    }
    Ok(chosen)
}

fn selectors(list: &[LabelSelector]) -> Result<Vec<Selector>, String> {
    list.iter().map(selector).collect()
}

fn selector(selector: &LabelSelector) -> Result<Selector, String> {
    let requirement = |one: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement| {
        let operator = match one.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => return Err(format!("`{other}` is no operator of a selector")),
        };
        Ok(Requirement { key: one.key.clone(), operator, values: one.values.clone().unwrap_or_default() })
    };
    let expressions = selector.match_expressions.iter().flatten();
    Ok(Selector {
        match_labels: selector.match_labels.clone().unwrap_or_default(),
        match_expressions: expressions.map(requirement).collect::<Result<_, _>>()?,
    })
}

/// `first-last`, or a prefix: all of its addresses (MetalLB's ParseCIDR).
fn range(text: &str) -> Result<PoolRange, String> {
    let bad = || format!("`{text}` is neither a prefix nor a range of addresses: the pool is left out");
    let range = if let Some((first, last)) = text.split_once('-') {
        let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| bad());
        PoolRange { first: parse(first)?, last: parse(last)? }
    } else {
        let net: IpNet = text.trim().parse().map_err(|_| bad())?;
        PoolRange { first: net.network(), last: net.broadcast() }
    };
    if range.count() == 0 {
        return Err(bad());
    }
    Ok(range)
}

#[cfg(test)]
mod tests;
