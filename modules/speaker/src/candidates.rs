//! Which nodes may announce which address, as far as files and the API say it: pools, advertisements, labels, endpoints. What
//! the nodes say of themselves comes after it ([`crate::election`]).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use homelab_model::service::Service;
use homelab_model::{L2Advertisement, Labels, LbUnfit, SpeakerSpec};

use crate::addresses::{Cluster, Demand, Holder, holders};

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

/// The candidates of all load-balancer addresses of `ipMode` VIP, sorted by address. The order of the services means nothing.
pub fn candidates(services: &[Service], speaker: &SpeakerSpec) -> Vec<Candidate> {
    let election = Election::of(speaker);
    let cluster = &election.cluster;
    let holders = holders(services);

    let mut placements: HashMap<Vec<Demand>, Arc<Placement>> = HashMap::new();
    let of_address = |holders: &[Holder]| {
        let address = holders[0].0;
        let pool = cluster.pool(address);
        let demands = cluster.demands(holders, address, pool);
        let placement = match placements.get(&demands) {
            Some(placement) => Arc::clone(placement),
            None => {
                let placement = Arc::new(election.place(&demands));
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

/// The speaker's settings, with the weights by which nodes are preferred.
struct Election<'a> {
    cluster: Cluster<'a, L2Advertisement>,
    /// By advertisement and node.
    weights: Vec<Vec<u32>>,
}

impl<'a> Election<'a> {
    fn of(speaker: &'a SpeakerSpec) -> Election<'a> {
        let weight = |advertisement: &L2Advertisement, labels: &Labels| -> u32 {
            let preferred = advertisement.preferred_node_selectors.iter();
            preferred.filter(|p| p.preference.matches(labels)).map(|p| u32::from(p.weight)).sum()
        };
        let weights = |advertisement| {
            speaker.nodes.iter().map(|node| weight(advertisement, &node.labels)).collect::<Vec<_>>()
        };
        Election {
            weights: speaker.advertisements.iter().map(weights).collect(),
            cluster: Cluster::of(speaker, &speaker.advertisements),
        }
    }

    fn place(&self, demands: &[Demand]) -> Placement {
        let mut placement = Placement { nodes: Vec::new(), excluded: Vec::new() };
        for (index, node) in self.cluster.speaker.nodes.iter().enumerate() {
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
        for selected in &self.cluster.select(node, demands)? {
            interfaces = interfaces.and(self.interfaces(selected));
            for index in selected {
                if counted.insert(*index) {
                    weight += self.weights[*index][node];
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
            let names = &self.cluster.advertisements[*index].interfaces;
            if names.is_empty() {
                return Interfaces::ByNetwork;
            }
            all.extend(names.iter().cloned());
        }
        Interfaces::Named(all)
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
