//! What the kernel remembers and would keep on a dead path: connections of datagram protocols, and clients of session
//! affinity.
//!
//! A UDP client that goes on sending renews its entry for ever, whatever became of the endpoint (k8s#48370, #59368,
//! #125467). TCP ends by itself: a reset, or a client that gives up. A remembered client that goes on trying renews its
//! entry likewise.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use homelab_model::service::Protocol;

use crate::compile::Elements;
use crate::element::{Element, Frontend};

/// A connection, as conntrack has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Who began it.
    pub client: SocketAddr,
    /// Where its first packet was sent: the original direction's destination.
    pub to: Frontend,
    /// Where answers come from: the reply direction's source. `to` itself if nothing was translated.
    pub endpoint: SocketAddr,
}

/// The endpoints that each frontend of two states has in the later one.
fn endpoints(before: &Elements, after: &Elements) -> HashMap<Frontend, HashSet<SocketAddr>> {
    let mut endpoints: HashMap<Frontend, HashSet<SocketAddr>> = HashMap::new();
    for frontend in before.values().flatten().filter_map(Element::frontend) {
        endpoints.entry(frontend).or_default();
    }
    for element in after.values().flatten() {
        if let Some(frontend) = element.frontend() {
            let known = endpoints.entry(frontend).or_default();
            if let Element::Endpoint { to, .. } = element {
                known.insert(*to);
            }
        }
    }
    endpoints
}

/// Those of `connections` that the state `after` would not make: to an endpoint that the frontend no longer has, or
/// made when nothing was translated yet. Frontends of neither state are none of ours.
pub fn stale(connections: &[Connection], before: &Elements, after: &Elements) -> Vec<Connection> {
    let endpoints = endpoints(before, after);
    let is_stale = |connection: &&Connection| {
        let Some(now) = endpoints.get(&connection.to) else { return false };
        let translated = connection.endpoint != SocketAddr::new(connection.to.address, connection.to.port);
        // With no endpoints an entry that was not translated is that of a packet which was rejected or dropped.
        let right = if translated { now.contains(&connection.endpoint) } else { now.is_empty() };
        connection.to.protocol != Protocol::Tcp && !right
    };
    connections.iter().filter(is_stale).copied().collect()
}

/// A client of session affinity: an entry of the map that the kernel fills ([`crate::element::Set::Affinity`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remembered {
    /// Where it sends packets.
    pub frontend: Frontend,
    /// Its address.
    pub client: IpAddr,
    /// Where they go.
    pub endpoint: SocketAddr,
}

/// Those of `clients` that the state `after` would not send where they go: their entries are to be deleted. The
/// frontend has lost the endpoint, or its session affinity.
pub fn forgotten(clients: &[Remembered], after: &Elements) -> Vec<Remembered> {
    let (mut sticky, mut endpoints) = (HashSet::new(), HashSet::new());
    for element in after.values().flatten() {
        match element {
            Element::Sticky(frontend) => {
                sticky.insert(*frontend);
            }
            Element::Endpoint { frontend, to, .. } => {
                endpoints.insert((*frontend, *to));
            }
            _ => {}
        }
    }
    let stays =
        |c: &&Remembered| sticky.contains(&c.frontend) && endpoints.contains(&(c.frontend, c.endpoint));
    clients.iter().filter(|client| !stays(client)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(protocol: Protocol) -> Frontend {
        Frontend { address: [10, 96, 0, 10].into(), protocol, port: 53 }
    }

    fn served(protocol: Protocol, endpoints: &[&str]) -> Elements {
        let frontend = frontend(protocol);
        let endpoint =
            |(slot, to): (u32, &&str)| Element::Endpoint { frontend, slot, to: to.parse().expect("address") };
        let mut elements: Vec<Element> = (0..).zip(endpoints).map(endpoint).collect();
        elements.push(if endpoints.is_empty() {
            Element::Unserved(frontend)
        } else {
            Element::Served(frontend)
        });
        [("default/dns".to_owned(), elements)].into()
    }

    fn connection(protocol: Protocol, endpoint: &str) -> Connection {
        let client = ([10, 244, 1, 9], 4000).into();
        Connection { client, to: frontend(protocol), endpoint: endpoint.parse().expect("address") }
    }

    const A: &str = "10.244.1.5:53";
    const B: &str = "10.244.2.5:53";
    const UNTRANSLATED: &str = "10.96.0.10:53";

    fn gone(protocol: Protocol, endpoint: &str, before: &Elements, after: &Elements) -> bool {
        !stale(&[connection(protocol, endpoint)], before, after).is_empty()
    }

    #[test]
    fn clients_leave_an_endpoint_that_is_gone_and_no_other() {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let (both, one) = (served(protocol, &[A, B]), served(protocol, &[B]));
            assert!(gone(protocol, A, &both, &one));
            assert!(!gone(protocol, B, &both, &one));
        }
        let (both, one) = (served(Protocol::Tcp, &[A, B]), served(Protocol::Tcp, &[B]));
        assert!(!gone(Protocol::Tcp, A, &both, &one), "TCP ends by itself");
    }

    #[test]
    fn clients_leave_when_the_last_endpoint_or_the_service_goes() {
        let (before, none) = (served(Protocol::Udp, &[A]), served(Protocol::Udp, &[]));
        assert!(gone(Protocol::Udp, A, &before, &none));
        assert!(gone(Protocol::Udp, A, &before, &Elements::new()), "the service is deleted");
        assert!(!gone(Protocol::Udp, UNTRANSLATED, &before, &none));
    }

    #[test]
    fn clients_that_came_too_early_find_the_first_endpoint() {
        let (none, after) = (served(Protocol::Udp, &[]), served(Protocol::Udp, &[A]));
        assert!(gone(Protocol::Udp, UNTRANSLATED, &none, &after));
        assert!(gone(Protocol::Udp, UNTRANSLATED, &Elements::new(), &after), "the service is new");
        assert!(!gone(Protocol::Udp, A, &none, &after));
    }

    #[test]
    fn what_is_not_ours_stays() {
        assert!(!gone(Protocol::Udp, A, &Elements::new(), &Elements::new()));
        let tcp = served(Protocol::Tcp, &[B]);
        assert!(!gone(Protocol::Udp, A, &tcp, &tcp), "the same port of another protocol");
    }

    #[test]
    fn clients_are_forgotten_with_their_endpoint_or_affinity() {
        let client = |endpoint: &str| Remembered {
            frontend: frontend(Protocol::Tcp),
            client: [10, 244, 1, 9].into(),
            endpoint: endpoint.parse().expect("address"),
        };
        let both = [client(A), client(B)];
        let mut one = served(Protocol::Tcp, &[B]);
        assert_eq!(forgotten(&both, &one), both, "the service has no affinity");
        one.insert("default/other".to_owned(), vec![Element::Sticky(frontend(Protocol::Tcp))]);
        assert_eq!(forgotten(&both, &one), [client(A)]);
        assert_eq!(forgotten(&both, &Elements::new()), both, "the service is gone");
    }
}
