//! Pod ranges of nodes: written in the file, else what the nodes already have, else the next free one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

use crate::Cluster;

/// What the nodes remember of earlier allocations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Ranges that a node itself holds, by its name in the file of today. The strongest witness.
    pub own: BTreeMap<String, Vec<IpNet>>,
    /// Ranges that peers hold for the node with this LAN address.
    pub by_address: BTreeMap<IpAddr, Vec<IpNet>>,
    /// Ranges that peers hold for the node with this name.
    pub by_name: BTreeMap<String, Vec<IpNet>>,
}

/// Why no range could be given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AllocError {
    /// The pool is used up.
    #[error("{range} has no free /{prefix} left for node {node}")]
    Exhausted {
        /// The node without a range.
        node: String,
        /// The pod range.
        range: IpNet,
        /// Prefix length of a node's part.
        prefix: u8,
    },
    /// Two nodes hold the same range.
    #[error("{range} belongs to both {first} and {second}")]
    Twice {
        /// The range.
        range: IpNet,
        /// One holder.
        first: String,
        /// The other.
        second: String,
    },
}

/// The `index`th subnet of length `prefix` inside `range`.
pub fn subnet_at(range: IpNet, prefix: u8, index: u128) -> Option<IpNet> {
    let free_bits = u32::from(prefix.checked_sub(range.prefix_len())?);
    if free_bits < 128 && index >> free_bits != 0 {
        return None;
    }
    let address = match range.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(index).ok()?.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(base) | offset))
        }
        IpAddr::V6(base) => {
            let offset = index.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(base) | offset))
        }
    };
    IpNet::new(address, prefix).ok()
}

/// The pod ranges of every node of the file, by name.
///
/// A remembered range counts only while it still fits the cluster's ranges and prefix length. Ranges that are
/// remembered for nodes outside the file are free again.
pub fn allocate(cluster: &Cluster, memory: &Memory) -> Result<BTreeMap<String, Vec<IpNet>>, AllocError> {
    let mut result: BTreeMap<String, Vec<IpNet>> =
        cluster.nodes.iter().map(|n| (n.name.clone(), Vec::new())).collect();
    for (&range, &prefix) in cluster.network.pod_cidrs.iter().zip(&cluster.network.node_prefixes) {
        let mut taken: BTreeMap<IpNet, String> = BTreeMap::new();
        let fits = |net: &&IpNet| range.contains(*net) && net.prefix_len() == prefix;
        // The file first: it may move a range away from a node that remembers it.
        for node in &cluster.nodes {
            if let Some(&net) = node.pod_cidrs.iter().find(|n| n.addr().is_ipv4() == range.addr().is_ipv4())
                && let Some(first) = taken.insert(net, node.name.clone())
            {
                return Err(AllocError::Twice { range: net, first, second: node.name.clone() });
            }
        }
        let fixed: Vec<String> = taken.values().cloned().collect();
        for witness in 0..3 {
            for node in cluster.nodes.iter().filter(|n| !fixed.contains(&n.name)) {
                if taken.values().any(|holder| *holder == node.name) {
                    continue;
                }
                let remembered = match witness {
                    0 => memory.own.get(&node.name),
                    1 => memory.by_address.get(&node.address),
                    _ => memory.by_name.get(&node.name),
                };
                if let Some(&net) = remembered.and_then(|nets| nets.iter().find(fits))
                    && !taken.keys().any(|t| t.contains(&net) || net.contains(t))
                {
                    taken.insert(net, node.name.clone());
                }
            }
        }
        // From the first subnet on, as kube-controller-manager does.
        let mut next: u128 = 0;
        let free_bits = u32::from(prefix.saturating_sub(range.prefix_len())).min(64);
        let count: u128 = 1 << free_bits;
        for node in &cluster.nodes {
            if taken.values().any(|holder| *holder == node.name) {
                continue;
            }
            let net = loop {
                if next >= count {
                    return Err(AllocError::Exhausted { node: node.name.clone(), range, prefix });
                }
                let candidate = subnet_at(range, prefix, next);
                next += 1;
                if let Some(net) = candidate
                    && !taken.keys().any(|t| t.contains(&net) || net.contains(t))
                {
                    break net;
                }
            };
            taken.insert(net, node.name.clone());
        }
        for (net, name) in taken {
            if let Some(nets) = result.get_mut(&name) {
                nets.push(net);
            }
        }
    }
    Ok(result)
}
