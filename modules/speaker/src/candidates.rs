//! Which nodes may announce which address, as far as files and the API say it: pools, advertisements, labels, endpoints. What
//! the nodes say of themselves comes after it ([`crate::election`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use homelab_model::service::{Endpoint, IpMode, Policy, Service, Type};
use homelab_model::{L2Advertisement, LABEL_EXCLUDE, LbUnfit, Selector, SpeakerSpec};

/// An address and who may announce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Address.
    pub address: IpAddr,
    /// The services that share it, `namespace/name`, sorted.
    pub services: Vec<String>,
    /// The pool that it is of. No advertisement is for an address that is in none.
    pub pool: Option<String>,
    /// Who may announce it. Addresses to which the same applies have this in common.
    pub placement: Arc<Placement>,
}

/// The nodes of the cluster, each in one of two lists, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Nodes that may announce it.
    pub nodes: Vec<Eligible>,
    /// Nodes that may not, and the first reason that applies.
    pub excluded: Vec<(String, LbUnfit)>,
}

/// A node that may announce an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eligible {
    /// Node name.
    pub node: String,
    /// Its LAN address.
    pub address: IpAddr,
    /// Sum of the weights by which it is preferred.
    pub weight: u32,
    /// Where.
    pub interfaces: Interfaces,
}

/// Interfaces to announce on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interfaces {
    /// Those with a network that the address is of; else the one that has the node's LAN address.
    ByNetwork,
    /// Those of these that there are.
    Named(BTreeSet<String>),
}

/// What a service asks of the nodes for an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Demand {
    /// Advertisements that are for it, by index.
    advertisements: Vec<usize>,
    /// Nodes with a local endpoint, by index, if it needs one.
    local: Option<Vec<usize>>,
}

/// An advertisement, with its selectors applied to the nodes.
struct Advertised<'a> {
    advertisement: &'a L2Advertisement,
    /// By node: None if it is not for the node, else the weight by which it prefers it.
    weights: Vec<Option<u32>>,
}

/// The candidates of all load-balancer addresses of `ipMode` VIP, sorted by address. The order of the services means nothing.
pub fn candidates(services: &[Service], speaker: &SpeakerSpec) -> Vec<Candidate> {
    let cluster = Cluster::of(speaker);
    let mut holders: Vec<(IpAddr, &Service)> = services
        .iter()
        .filter(|service| service.r#type == Type::LoadBalancer)
        .flat_map(|service| service.load_balancer.iter().map(move |ingress| (ingress, service)))
        .filter(|(ingress, _)| ingress.ip_mode == IpMode::Vip)
        .map(|(ingress, service)| (ingress.ip, service))
        .collect();
    holders.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    holders.dedup_by(|a, b| key(a) == key(b));

    let mut placements: HashMap<Vec<Demand>, Arc<Placement>> = HashMap::new();
    let of_address = |holders: &[(IpAddr, &Service)]| {
        let address = holders[0].0;
        let pool = cluster.pool(address);
        let mut demands: Vec<Demand> =
            holders.iter().map(|(_, service)| cluster.demand(service, address, pool)).collect();
        demands.sort();
        demands.dedup();
        let placement = match placements.get(&demands) {
            Some(placement) => Arc::clone(placement),
            None => {
                let placement = Arc::new(cluster.place(&demands));
                placements.insert(demands, Arc::clone(&placement));
                placement
            }
        };
        Candidate {
            address,
            services: holders.iter().map(|(_, service)| service.full_name()).collect(),
            pool: pool.map(|pool| speaker.pools[pool].name.clone()),
            placement,
        }
    };
    holders.chunk_by(|(a, _), (b, _)| a == b).map(of_address).collect()
}

/// What holders are sorted by.
fn key<'a>((address, service): &(IpAddr, &'a Service)) -> (IpAddr, &'a str, &'a str) {
    (*address, &service.namespace, &service.name)
}

/// The speaker's settings, ready to be asked.
struct Cluster<'a> {
    speaker: &'a SpeakerSpec,
    /// First and last addresses of the pools, sorted, with the pool's index. Pools do not overlap.
    ranges: Vec<(IpAddr, IpAddr, usize)>,
    advertised: Vec<Advertised<'a>>,
    /// By pool: the advertisements that are for it.
    of_pool: Vec<Vec<usize>>,
    nodes: BTreeMap<&'a str, usize>,
}

impl<'a> Cluster<'a> {
    fn of(speaker: &'a SpeakerSpec) -> Cluster<'a> {
        let ranges = speaker.pools.iter().enumerate();
        let mut ranges: Vec<_> = ranges
            .flat_map(|(index, pool)| pool.addresses.iter().map(move |r| (r.first, r.last, index)))
            .collect();
        ranges.sort();
        let is_for = |pool: &str, advertisement: &L2Advertisement| {
            let pools = &advertisement.ip_address_pools;
            pools.is_empty() || pools.iter().any(|name| name == pool)
        };
        let of_pool = |pool: &str| -> Vec<usize> {
            let all = speaker.advertisements.iter().enumerate();
            all.filter(|(_, advertisement)| is_for(pool, advertisement)).map(|(index, _)| index).collect()
        };
        let names = speaker.nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index));
        Cluster {
            speaker,
            ranges,
            advertised: speaker.advertisements.iter().map(|a| Advertised::of(a, speaker)).collect(),
            of_pool: speaker.pools.iter().map(|pool| of_pool(&pool.name)).collect(),
            nodes: names.collect(),
        }
    }

    fn pool(&self, address: IpAddr) -> Option<usize> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= address);
        let (_, last, pool) = self.ranges[..after].last()?;
        (address <= *last).then_some(*pool)
    }

    fn demand(&self, service: &Service, address: IpAddr, pool: Option<usize>) -> Demand {
        let of_pool = pool.map(|pool| self.of_pool[pool].as_slice()).unwrap_or_default();
        let matches = |index: &&usize| {
            any(&self.speaker.advertisements[**index].service_selectors, |s| s.matches(&service.labels))
        };
        let local = (service.external_traffic_policy == Policy::Local).then(|| {
            let serves = |e: &&Endpoint| e.address.is_ipv4() == address.is_ipv4() && takes_packets(e);
            let node = |endpoint: &Endpoint| self.nodes.get(endpoint.node.as_deref()?).copied();
            let mut nodes: Vec<usize> = service.endpoints.iter().filter(serves).filter_map(node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        });
        Demand { advertisements: of_pool.iter().filter(matches).copied().collect(), local }
    }

    fn place(&self, demands: &[Demand]) -> Placement {
        let mut placement = Placement { nodes: Vec::new(), excluded: Vec::new() };
        for (index, node) in self.speaker.nodes.iter().enumerate() {
            let name = node.name.clone();
            match self.stand(index, demands) {
                Ok((weight, interfaces)) => {
                    placement.nodes.push(Eligible { node: name, address: node.address, weight, interfaces });
                }
                Err(why) => placement.excluded.push((name, why)),
            }
        }
        placement.nodes.sort_by(|a, b| a.node.cmp(&b.node));
        placement.excluded.sort();
        placement
    }

    /// Weight and interfaces of one node.
    fn stand(&self, node: usize, demands: &[Demand]) -> Result<(u32, Interfaces), LbUnfit> {
        let mut interfaces = Interfaces::ByNetwork;
        let mut counted = BTreeSet::new();
        let mut weight = 0;
        let one = |demand: &Demand| {
            if demand.advertisements.is_empty() {
                return Err(LbUnfit::NoAdvertisement);
            }
            if self.speaker.nodes[node].labels.contains_key(LABEL_EXCLUDE) {
                return Err(LbUnfit::ExcludeLabel);
            }
            let selected: Vec<usize> = demand
                .advertisements
                .iter()
                .copied()
                .filter(|index| self.advertised[*index].weights[node].is_some())
                .collect();
            if selected.is_empty() {
                return Err(LbUnfit::NotSelected);
            }
            match &demand.local {
                Some(nodes) if !nodes.contains(&node) => Err(LbUnfit::NoLocalEndpoint),
                _ => Ok(selected),
            }
        };
        let found: Vec<Result<Vec<usize>, LbUnfit>> = demands.iter().map(one).collect();
        if let Some(why) = found.iter().filter_map(|result| result.as_ref().err()).min() {
            return Err(*why);
        }
        for selected in found.iter().flatten() {
            interfaces = interfaces.and(self.interfaces(selected));
            for index in selected {
                if counted.insert(*index) {
                    weight += self.advertised[*index].weights[node].unwrap_or_default();
                }
            }
        }
        match interfaces {
            Interfaces::Named(names) if names.is_empty() => Err(LbUnfit::NoCommonInterface),
            interfaces => Ok((weight, interfaces)),
        }
    }

    /// Several advertisements for one service: the interfaces of all of them.
    fn interfaces(&self, advertisements: &[usize]) -> Interfaces {
        let mut all = BTreeSet::new();
        for index in advertisements {
            let names = &self.advertised[*index].advertisement.interfaces;
            if names.is_empty() {
                return Interfaces::ByNetwork;
            }
            all.extend(names.iter().cloned());
        }
        Interfaces::Named(all)
    }
}

impl<'a> Advertised<'a> {
    fn of(advertisement: &'a L2Advertisement, speaker: &SpeakerSpec) -> Advertised<'a> {
        let weights = speaker.nodes.iter().map(|node| {
            any(&advertisement.node_selectors, |s| s.matches(&node.labels)).then(|| {
                let preferred = &advertisement.preferred_node_selectors;
                preferred
                    .iter()
                    .filter(|p| p.preference.matches(&node.labels))
                    .map(|p| u32::from(p.weight))
                    .sum()
            })
        });
        Advertised { advertisement, weights: weights.collect() }
    }
}

impl Interfaces {
    /// What both allow.
    fn and(self, other: Interfaces) -> Interfaces {
        match (self, other) {
            (Interfaces::ByNetwork, other) => other,
            (this, Interfaces::ByNetwork) => this,
            (Interfaces::Named(a), Interfaces::Named(b)) => Interfaces::Named(&a & &b),
        }
    }
}

/// One of several selectors matches, or there are none.
fn any(selectors: &[Selector], matches: impl Fn(&Selector) -> bool) -> bool {
    selectors.is_empty() || selectors.iter().any(matches)
}

/// Whether the proxy would send it packets if there were no other: one that terminates and still serves counts (KEP-1669), so
/// that its connections may end in peace. MetalLB's `EndpointCanServe` means the same.
fn takes_packets(endpoint: &Endpoint) -> bool {
    endpoint.ready || (endpoint.serving && endpoint.terminating)
}
