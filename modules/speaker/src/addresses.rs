//! Load-balancer addresses and the nodes that advertisements choose for them: what announcing by ARP and NDP and telling
//! routers by BGP have in common.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::service::{Endpoint, IpMode, Policy, Service, Type};
use homelab_model::{BgpAdvertisement, L2Advertisement, LABEL_EXCLUDE, LbUnfit, Selector, SpeakerSpec};

/// What chooses pools, nodes and services.
pub(crate) trait Advertisement {
    /// Names of the pools; empty: all.
    fn pools(&self) -> &[String];
    /// Nodes; empty: all.
    fn nodes(&self) -> &[Selector];
    /// Services; empty: all.
    fn services(&self) -> &[Selector];
}

macro_rules! advertisement {
    ($($kind:ty),*) => {$(
        impl Advertisement for $kind {
            fn pools(&self) -> &[String] {
                &self.ip_address_pools
            }
            fn nodes(&self) -> &[Selector] {
                &self.node_selectors
            }
            fn services(&self) -> &[Selector] {
                &self.service_selectors
            }
        }
    )*};
}

advertisement!(L2Advertisement, BgpAdvertisement);

/// A service with one of its addresses.
pub(crate) type Holder<'a> = (IpAddr, &'a Service);

/// All load-balancer addresses of `ipMode` VIP with their services, sorted by address and name. The order of the services
/// means nothing.
pub(crate) fn holders(services: &[Service]) -> Vec<Holder<'_>> {
    let mut holders: Vec<Holder> = services
        .iter()
        .filter(|service| service.r#type == Type::LoadBalancer)
        .flat_map(|service| service.load_balancer.iter().map(move |ingress| (ingress, service)))
        .filter(|(ingress, _)| ingress.ip_mode == IpMode::Vip)
        .map(|(ingress, service)| (ingress.ip, service))
        .collect();
    holders.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    holders.dedup_by(|a, b| key(a) == key(b));
    holders
}

/// What holders are sorted by.
fn key<'a>((address, service): &Holder<'a>) -> (IpAddr, &'a str, &'a str) {
    (*address, &service.namespace, &service.name)
}

/// What a service asks of the nodes for an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Demand {
    /// Advertisements that are for it, by index.
    advertisements: Vec<usize>,
    /// Nodes with a local endpoint, by index, if it needs one.
    local: Option<Vec<usize>>,
}

/// The speaker's settings, ready to be asked.
pub(crate) struct Cluster<'a, A> {
    pub(crate) speaker: &'a SpeakerSpec,
    pub(crate) advertisements: &'a [A],
    /// First and last addresses of the pools, sorted, with the pool's index. Pools do not overlap.
    ranges: Vec<(IpAddr, IpAddr, usize)>,
    /// By advertisement: the nodes that it chooses.
    chosen: Vec<Vec<bool>>,
    /// By pool: the advertisements that are for it.
    of_pool: Vec<Vec<usize>>,
    nodes: BTreeMap<&'a str, usize>,
}

impl<'a, A: Advertisement> Cluster<'a, A> {
    pub(crate) fn of(speaker: &'a SpeakerSpec, advertisements: &'a [A]) -> Cluster<'a, A> {
        let ranges = speaker.pools.iter().enumerate();
        let mut ranges: Vec<_> = ranges
            .flat_map(|(index, pool)| pool.addresses.iter().map(move |r| (r.first, r.last, index)))
            .collect();
        ranges.sort();
        let is_for = |pool: &str, advertisement: &A| {
            let pools = advertisement.pools();
            pools.is_empty() || pools.iter().any(|name| name == pool)
        };
        let of_pool = |pool: &str| -> Vec<usize> {
            let all = advertisements.iter().enumerate();
            all.filter(|(_, advertisement)| is_for(pool, advertisement)).map(|(index, _)| index).collect()
        };
        let chosen = |advertisement: &A| -> Vec<bool> {
            let nodes = speaker.nodes.iter();
            nodes.map(|node| Selector::any(advertisement.nodes(), &node.labels)).collect()
        };
        let names = speaker.nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index));
        Cluster {
            speaker,
            advertisements,
            ranges,
            chosen: advertisements.iter().map(chosen).collect(),
            of_pool: speaker.pools.iter().map(|pool| of_pool(&pool.name)).collect(),
            nodes: names.collect(),
        }
    }

    /// The pool that an address is of, by index.
    pub(crate) fn pool(&self, address: IpAddr) -> Option<usize> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= address);
        let (_, last, pool) = self.ranges[..after].last()?;
        (address <= *last).then_some(*pool)
    }

    /// The node of that name, by index.
    pub(crate) fn node(&self, name: &str) -> Option<usize> {
        self.nodes.get(name).copied()
    }

    /// What the services that share an address ask, each once.
    pub(crate) fn demands(&self, holders: &[Holder], address: IpAddr, pool: Option<usize>) -> Vec<Demand> {
        let mut demands: Vec<Demand> =
            holders.iter().map(|(_, service)| self.demand(service, address, pool)).collect();
        demands.sort();
        demands.dedup();
        demands
    }

    fn demand(&self, service: &Service, address: IpAddr, pool: Option<usize>) -> Demand {
        let of_pool = pool.map(|pool| self.of_pool[pool].as_slice()).unwrap_or_default();
        let matches =
            |index: &&usize| Selector::any(self.advertisements[**index].services(), &service.labels);
        let local = (service.external_traffic_policy == Policy::Local).then(|| {
            let serves = |e: &&Endpoint| e.address.is_ipv4() == address.is_ipv4() && takes_packets(e);
            let node = |endpoint: &Endpoint| self.node(endpoint.node.as_deref()?);
            let mut nodes: Vec<usize> = service.endpoints.iter().filter(serves).filter_map(node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        });
        Demand { advertisements: of_pool.iter().filter(matches).copied().collect(), local }
    }

    /// By demand: the advertisements by which a node may announce the address. The first reason that applies if it may not by
    /// one of the demands.
    pub(crate) fn select(&self, node: usize, demands: &[Demand]) -> Result<Vec<Vec<usize>>, LbUnfit> {
        let one = |demand: &Demand| {
            if demand.advertisements.is_empty() {
                return Err(LbUnfit::NoAdvertisement);
            }
            if self.speaker.nodes[node].labels.contains_key(LABEL_EXCLUDE) {
                return Err(LbUnfit::ExcludeLabel);
            }
            let chosen = |index: &usize| self.chosen[*index][node];
            let selected: Vec<usize> = demand.advertisements.iter().copied().filter(chosen).collect();
            if selected.is_empty() {
                return Err(LbUnfit::NotSelected);
            }
            match &demand.local {
                Some(nodes) if !nodes.contains(&node) => Err(LbUnfit::NoLocalEndpoint),
                _ => Ok(selected),
            }
        };
        let found: Vec<Result<Vec<usize>, LbUnfit>> = demands.iter().map(one).collect();
        match found.iter().filter_map(|result| result.as_ref().err()).min() {
            Some(why) => Err(*why),
            None => Ok(found.into_iter().flatten().collect()),
        }
    }
}

/// Whether the proxy would send it packets if there were no other: one that terminates and still serves counts (KEP-1669), so
/// that its connections may end in peace. MetalLB's `EndpointCanServe` means the same.
fn takes_packets(endpoint: &Endpoint) -> bool {
    endpoint.ready || (endpoint.serving && endpoint.terminating)
}
