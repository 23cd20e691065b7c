//! Endpoints of slices joined to their service, as kube-proxy does: by port name and protocol.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::service::{Endpoint, Numbers, Port, Protocol};

/// Addresses that answer on the same ports: an EndpointSlice, or a subset of Endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointGroup {
    /// Ports.
    pub ports: Vec<GroupPort>,
    /// Without ports.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPort {
    /// Name; empty where the service's port has none.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// The endpoints of a service's ports, each address once unless it answers in different ways.
///
/// Of the same address and port in several slices the one that is ready wins, then the one that serves, then the one
/// that stays, then the one whose node is known.
pub fn join_endpoints<'a>(
    ports: &[Port],
    groups: impl IntoIterator<Item = &'a EndpointGroup>,
) -> Vec<Endpoint> {
    let known: HashSet<(&str, Protocol)> = ports.iter().map(|p| (p.name.as_str(), p.protocol)).collect();
    let mut best: BTreeMap<(IpAddr, &str, u16), &Endpoint> = BTreeMap::new();
    for group in groups {
        for port in group.ports.iter().filter(|p| known.contains(&(p.name.as_str(), p.protocol))) {
            for endpoint in &group.endpoints {
                let winner = best.entry((endpoint.address, &port.name, port.number)).or_insert(endpoint);
                if rank(winner) < rank(endpoint) {
                    *winner = endpoint;
                }
            }
        }
    }
    // Ports of what is the same otherwise. Two numbers of one port need an endpoint each.
    let mut alike: BTreeMap<Key<'_>, (&Endpoint, BTreeMap<&str, Vec<u16>>)> = BTreeMap::new();
    for ((_, name, number), endpoint) in best {
        let (_, ports) = alike.entry(key(endpoint)).or_insert_with(|| (endpoint, BTreeMap::new()));
        ports.entry(name).or_default().push(number);
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (endpoint, ports) in alike.into_values() {
        let most = ports.values().map(Vec::len).max().unwrap_or(0);
        for n in 0..most {
            let nth = ports.iter().filter_map(|(name, numbers)| Some((*name, *numbers.get(n)?)));
            let nth: Numbers = nth.collect();
            // Most have the same as the one before.
            let same = endpoints.last().map(|last| &last.ports).filter(|last| **last == nth);
            let ports = same.cloned().unwrap_or(nth);
            endpoints.push(Endpoint { ports, ..endpoint.clone() });
        }
    }
    endpoints.shrink_to_fit();
    endpoints
}

fn rank(endpoint: &Endpoint) -> (bool, bool, bool, bool) {
    (endpoint.ready, endpoint.serving, !endpoint.terminating, endpoint.node.is_some())
}

/// All of an endpoint but its ports.
type Key<'a> = (IpAddr, [Option<&'a str>; 2], [bool; 3], [&'a [String]; 2]);

fn key(e: &Endpoint) -> Key<'_> {
    let names = [e.node.as_deref(), e.zone.as_deref()];
    (e.address, names, [e.ready, e.serving, e.terminating], [&e.for_zones, &e.for_nodes])
}
