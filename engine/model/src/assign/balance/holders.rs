//! Who holds which load-balancer address, and who may share it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::service::{Policy, Protocol};
use crate::{Declared, Labels};

use super::super::claims::Claims;

/// What decides whether a service shares an address with others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sharing<'a> {
    key: &'a str,
    backend: Backend<'a>,
}

/// What answers for a service (MetalLB's backend key): with policy Local a node that announces the address needs endpoints
/// of all who share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Backend<'a> {
    /// Policy Cluster: any node will do.
    Any,
    /// Pods.
    Selector(&'a Labels),
    /// The endpoints of a service without a selector: addresses, and containers by node, name and interface.
    Endpoints(BTreeSet<IpAddr>, BTreeSet<(&'a str, &'a str, &'a str)>),
}

/// A service that wants an address.
#[derive(Debug, Clone)]
pub(super) struct Want<'a> {
    /// Full name.
    pub(super) name: &'a str,
    /// None: it shares with nobody.
    pub(super) sharing: Option<Sharing<'a>>,
    ports: Vec<(Protocol, u16)>,
}

impl<'a> Want<'a> {
    pub(super) fn new(name: &'a str, declared: &'a Declared) -> Self {
        let service = &declared.service;
        let backend = match service.external_traffic_policy {
            Policy::Cluster => Backend::Any,
            Policy::Local if !declared.request.selector.is_empty() => {
                Backend::Selector(&declared.request.selector)
            }
            Policy::Local => Backend::Endpoints(
                service.endpoints.iter().map(|e| e.address).collect(),
                declared
                    .containers
                    .iter()
                    .map(|c| (c.node.as_str(), c.container.as_str(), c.interface.as_str()))
                    .collect(),
            ),
        };
        let key = declared.request.sharing_key.as_deref().filter(|key| !key.is_empty());
        Want {
            name,
            sharing: key.map(|key| Sharing { key, backend }),
            ports: service.ports.iter().map(|p| (p.protocol, p.port)).collect(),
        }
    }
}

/// Why a service cannot have an address; each with who is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denial<'a> {
    /// One of them has no sharing key, or another.
    Key(&'a str),
    /// Their keys are the same, but not what answers for them.
    Backend(&'a str),
    /// A port of the address.
    Port(Protocol, u16, &'a str),
}

impl<'a> Denial<'a> {
    /// Who is in the way.
    pub(super) fn holder(&self) -> &'a str {
        match self {
            Denial::Key(holder) | Denial::Backend(holder) | Denial::Port(_, _, holder) => holder,
        }
    }
}

impl fmt::Display for Denial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Key(holder) => write!(
                f,
                "belongs to service {holder}; services share an address only with the same `metallb.io/allow-shared-ip`"
            ),
            Denial::Backend(holder) => write!(
                f,
                "belongs to service {holder}; with `externalTrafficPolicy: Local` services share an address only with the \
                 same selector or endpoints"
            ),
            Denial::Port(protocol, port, holder) => {
                let protocol = protocol.as_str().to_uppercase();
                write!(
                    f,
                    "cannot be shared: its {protocol} port {port} belongs to service {holder}, and services share an \
                     address only with different ports"
                )
            }
        }
    }
}

/// Holders of all load-balancer addresses.
pub(super) struct Holders<'a> {
    claims: &'a Claims,
    held: BTreeMap<IpAddr, Vec<Want<'a>>>,
    /// Addresses by who may share them.
    shared: BTreeMap<Sharing<'a>, BTreeSet<IpAddr>>,
}

impl<'a> Holders<'a> {
    pub(super) fn new(claims: &'a Claims) -> Self {
        Holders { claims, held: BTreeMap::new(), shared: BTreeMap::new() }
    }

    /// Why a service cannot have an address; None: it can.
    pub(super) fn denial(&self, ip: IpAddr, want: &Want<'a>) -> Option<Denial<'a>> {
        if let Some(other) = self.claims.other(ip) {
            return Some(Denial::Key(other));
        }
        for (protocol, port) in &want.ports {
            let external = self.claims.listener(ip, *protocol, *port);
            if let Some(other) = external.filter(|other| *other != want.name) {
                return Some(Denial::Port(*protocol, *port, other));
            }
        }
        self.held.get(&ip).into_iter().flatten().find_map(|holder| match (&holder.sharing, &want.sharing) {
            (Some(has), Some(wants)) if has == wants => {
                let twice = want.ports.iter().find(|port| holder.ports.contains(port));
                twice.map(|(protocol, port)| Denial::Port(*protocol, *port, holder.name))
            }
            (Some(has), Some(wants)) if has.key == wants.key => Some(Denial::Backend(holder.name)),
            _ => Some(Denial::Key(holder.name)),
        })
    }

    /// Gives a service an address that nothing denies.
    pub(super) fn take(&mut self, ip: IpAddr, want: &Want<'a>) {
        self.held.entry(ip).or_default().push(want.clone());
        if let Some(sharing) = &want.sharing {
            self.shared.entry(sharing.clone()).or_default().insert(ip);
        }
    }

    /// Takes an address from a service.
    pub(super) fn release(&mut self, ip: IpAddr, name: &str) {
        let Some(holders) = self.held.get_mut(&ip) else { return };
        holders.retain(|holder| holder.name != name);
        if holders.is_empty() {
            self.held.remove(&ip);
            self.shared.values_mut().for_each(|shared| {
                shared.remove(&ip);
            });
        }
    }

    /// Addresses that are held by those who may share with a service.
    pub(super) fn shared(&self, want: &Want<'a>) -> impl Iterator<Item = IpAddr> {
        let shared = want.sharing.as_ref().and_then(|sharing| self.shared.get(sharing));
        shared.into_iter().flatten().copied()
    }

    /// Whether nobody holds an address.
    pub(super) fn is_free(&self, ip: IpAddr) -> bool {
        !self.held.contains_key(&ip) && !self.claims.is_external(ip) && self.claims.other(ip).is_none()
    }
}
