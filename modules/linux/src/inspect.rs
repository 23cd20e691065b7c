//! What the kernel holds of services, for people who ask. Changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use homelab_model::service::Protocol;
use homelab_proxy::Elements;
use homelab_proxy::element::{Element, Frontend};
use homelab_proxy::stale::{Connection, Remembered};

use crate::conntrack::{self, Family};
use crate::error::{Error, netlink};
use crate::node::Node;
use crate::services::{self, Held};

impl Node {
    /// What the proxy's sets hold; nothing where the kernel has no nf_tables.
    pub fn held_services(&mut self) -> Result<Held, Error> {
        match &mut self.netfilter {
            Some(socket) => self.proxy.held(socket).cloned(),
            None => Ok(Held::default()),
        }
    }

    /// The connections to the frontends of `elements` that the kernel keeps track of.
    pub fn service_connections(&mut self, elements: &Elements) -> Result<Vec<Connection>, Error> {
        let Some(socket) = &mut self.netfilter else { return Ok(Vec::new()) };
        let frontends: HashSet<Frontend> =
            elements.values().flatten().filter_map(Element::frontend).collect();
        let mut connections = Vec::new();
        for protocol in Protocol::ALL {
            for (family, v4) in [(Family::V4, true), (Family::V6, false)] {
                if !frontends.iter().any(|f| f.protocol == protocol && f.address.is_ipv4() == v4) {
                    continue;
                }
                let flows = conntrack::dump(socket, family, protocol.number());
                let flows = netlink("reading connections", flows)?;
                let all = flows.iter().map(|flow| services::connection(flow, protocol));
                connections.extend(all.filter(|connection| frontends.contains(&connection.to)));
            }
        }
        Ok(connections)
    }

    /// The clients that session affinity remembers.
    pub fn remembered_clients(&mut self) -> Result<Vec<Remembered>, Error> {
        match &mut self.netfilter {
            Some(socket) => services::remembered(socket),
            None => Ok(Vec::new()),
        }
    }

    /// All addresses of the node.
    pub fn addresses(&mut self) -> Result<Vec<IpAddr>, Error> {
        let snapshot = self.kernel.snapshot(false)?;
        Ok(snapshot.addresses.iter().map(|(_, address)| address.addr()).collect())
    }
}

impl Held {
    /// Elements that nothing of ours would make, in words, by the service that they name.
    pub fn stray_lines(&self) -> BTreeMap<String, Vec<String>> {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (set, stray) in &self.strays {
            lines.entry(stray.comment.clone()).or_default().push(services::stray_line(set, stray));
        }
        lines
    }
}
