//! Endpoints joined to their service, as kube-proxy does: by port name and protocol.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::service::{Endpoint, Port};

use super::slice::Group;

/// The endpoints of a service's ports, each address once unless it answers in different ways.
///
/// Of the same address and port in several slices the one that is ready wins, then the one that serves, then the one
/// that stays, then the one whose node is known.
pub(super) fn join(ports: &[Port], groups: Vec<Group>) -> Vec<Endpoint> {
    let mut best: BTreeMap<(IpAddr, &str, u16), Endpoint> = BTreeMap::new();
    for group in groups {
        for from in group.ports {
            let fits = |p: &&Port| p.name == from.name && p.protocol == from.protocol;
            let Some(port) = ports.iter().find(fits) else { continue };
            for endpoint in &group.endpoints {
                let key = (endpoint.address, port.name.as_str(), from.number);
                if best.get(&key).is_none_or(|old| rank(old) < rank(endpoint)) {
                    best.insert(key, endpoint.clone());
                }
            }
        }
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for ((address, name, number), endpoint) in best {
        let same = endpoints.iter_mut().rev().take_while(|e| e.address == address);
        let mut same = same.filter(|e| !e.ports.contains_key(name) && alike(e, &endpoint));
        match same.next() {
            Some(known) => drop(known.ports.insert(name.to_owned(), number)),
            None => {
                endpoints.push(Endpoint { ports: BTreeMap::from([(name.to_owned(), number)]), ..endpoint })
            }
        }
    }
    endpoints
}

fn rank(endpoint: &Endpoint) -> (bool, bool, bool, bool) {
    (endpoint.ready, endpoint.serving, !endpoint.terminating, endpoint.node.is_some())
}

/// Whether two endpoints differ in nothing but their ports.
fn alike(a: &Endpoint, b: &Endpoint) -> bool {
    *a == Endpoint { ports: a.ports.clone(), ..b.clone() }
}
