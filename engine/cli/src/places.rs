//! What a user calls the ends of a packet: addresses, nodes, containers, services.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use homelab_driver::Prepared;
use homelab_model::service::{Protocol, Service};
use homelab_model::{Cluster, Node, Observed};

use crate::error::CliError;

/// What is known of the places of a cluster.
pub(crate) struct Places<'a> {
    nodes: Vec<(&'a Node, Option<&'a Observed>)>,
    /// As the nodes were told them, then as the cluster file says.
    services: BTreeMap<String, &'a Service>,
}

/// Who sends a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    said: String,
    addresses: Vec<IpAddr>,
    /// The node that it is, or is on; None: something outside of the cluster.
    pub(crate) node: Option<String>,
}

/// Where a packet is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) address: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

impl Source {
    /// Its address of the family of `other`.
    pub(crate) fn like(&self, other: IpAddr) -> Result<IpAddr, CliError> {
        let same = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
        self.addresses.iter().find(same).copied().ok_or_else(|| {
            let family = if other.is_ipv4() { "IPv4" } else { "IPv6" };
            CliError::new(format!("{} has no {family} address, and {other} is one", self.said))
        })
    }
}

impl<'a> Places<'a> {
    pub(crate) fn of(cluster: &'a Cluster, prepared: &'a Prepared) -> Places<'a> {
        let nodes: Vec<_> = cluster.nodes.iter().map(|n| (n, prepared.observed(&n.name))).collect();
        let told = nodes.iter().filter_map(|(_, observed)| observed.as_ref()?.spec.as_ref());
        let mut services = BTreeMap::new();
        for service in told.chain(prepared.specs.values()).flat_map(|spec| &spec.services) {
            services.entry(service.full_name()).or_insert(service);
        }
        Places { nodes, services }
    }

    /// The node that has this address, or whose pods have it.
    fn home(&self, address: IpAddr) -> Option<&'a Node> {
        let own = |(node, observed): &&(&'a Node, Option<&'a Observed>)| {
            let mut held = observed.iter().flat_map(|o| &o.facts.addresses);
            Some(address) == node.address6
                || address == node.address
                || held.any(|held| held.address.addr() == address)
        };
        let pods = |(_, observed): &&(&'a Node, Option<&'a Observed>)| {
            let spec = observed.and_then(|observed| observed.spec.as_ref());
            spec.is_some_and(|spec| spec.pod_cidrs.iter().any(|range| range.contains(&address)))
        };
        self.nodes.iter().find(own).or_else(|| self.nodes.iter().find(pods)).map(|(node, _)| *node)
    }

    /// Who sends it: an address, a node, or `node/container`.
    pub(crate) fn source(&self, text: &str) -> Result<Source, CliError> {
        let source = |addresses, node: Option<&str>| Source {
            said: text.to_owned(),
            addresses,
            node: node.map(str::to_owned),
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(source(vec![address], self.home(address).map(|node| node.name.as_str())));
        }
        let (name, container) = match text.split_once('/') {
            Some((name, container)) => (name, Some(container)),
            None => (text, None),
        };
        let Some((node, observed)) = self.nodes.iter().find(|(node, _)| node.name == name) else {
            let names: Vec<&str> = self.nodes.iter().map(|(node, _)| node.name.as_str()).collect();
            return Err(CliError::new(format!(
                "{text:?} is neither an address nor a node of the cluster file"
            ))
            .hint(format!("say an address, a node ({}), or NODE/CONTAINER", names.join(", "))));
        };
        let Some(container) = container else {
            return Ok(source(
                [Some(node.address), node.address6].into_iter().flatten().collect(),
                Some(name),
            ));
        };
        let Some(observed) = observed else {
            return Err(CliError::new(format!("{name} could not be asked for its containers"))
                .hint(format!("homelab status --nodes {name} says why; or say the container's address")));
        };
        let attachments = &observed.facts.attachments;
        let found: Vec<IpAddr> = attachments
            .iter()
            .filter(|attachment| attachment.is_of(container))
            .flat_map(|attachment| attachment.addresses.iter().copied())
            .collect();
        if found.is_empty() {
            let all: Vec<&str> =
                attachments.iter().map(|a| a.pod.as_deref().unwrap_or(&a.container)).collect();
            let has =
                if all.is_empty() { "it has none".to_owned() } else { format!("it has {}", all.join(", ")) };
            return Err(CliError::new(format!("no container {container:?} is attached on {name}")).hint(has));
        }
        Ok(source(found, Some(name)))
    }

    /// Where it goes: an address, a service or a node, with a port unless there is only one: `web:53`, `web:53/udp`.
    pub(crate) fn destination(
        &self,
        text: &str,
        protocol: Option<Protocol>,
        source: &Source,
    ) -> Result<Destination, CliError> {
        let (text, protocol) = with_protocol(text, protocol)?;
        if let Ok(to) = text.parse::<SocketAddr>() {
            let number = to.port().to_string();
            let here = self.at(to.ip());
            let has = |service: &&&Service| service.ports.iter().any(|port| port.port == to.port());
            let service = here.iter().find(has).or(here.first());
            let known = service.and_then(|service| port_of(service, Some(&number), protocol).ok());
            let protocol = known.map_or(protocol.unwrap_or_default(), |(_, protocol)| protocol);
            return Ok(Destination { address: to.ip(), protocol, port: to.port() });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            let service = match self.at(address)[..] {
                [service] => service,
                [] => {
                    return Err(CliError::new(format!("{address} is no service's address: to which port?"))
                        .hint(format!("e.g. {}", SocketAddr::new(address, 80))));
                }
                ref all => {
                    let names: Vec<String> = all.iter().map(|service| service.full_name()).collect();
                    return Err(CliError::new(format!("{address} is shared: to which port?"))
                        .hint(format!("it is the address of {}", names.join(", "))));
                }
            };
            let (port, protocol) = port_of(service, None, protocol)?;
            return Ok(Destination { address, protocol, port });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        let service = match (self.service(name), self.node_address(name, source)) {
            (Err(_), Some(address)) => {
                let port = port.and_then(|port| port.parse().ok());
                let port = port.ok_or_else(|| {
                    CliError::new(format!("{name} is a node: to which port?"))
                        .hint(format!("e.g. {name}:30080"))
                })?;
                let protocol = protocol.unwrap_or_else(|| self.node_port_protocol(port));
                return Ok(Destination { address, protocol, port });
            }
            (service, _) => service?,
        };
        let (port, protocol) = port_of(service, port, protocol)?;
        let fits = |address: &&IpAddr| source.like(**address).is_ok();
        match service.cluster_ips.iter().find(fits) {
            Some(address) => Ok(Destination { address: *address, protocol, port }),
            None => Err(CliError::new(format!(
                "{} has no cluster address of a family that {} has",
                service.full_name(),
                source.said
            ))),
        }
    }

    /// The address of the node of that name that the source has a family for.
    fn node_address(&self, name: &str, source: &Source) -> Option<IpAddr> {
        let (node, _) = self.nodes.iter().find(|(node, _)| node.name == name)?;
        [Some(node.address), node.address6]
            .into_iter()
            .flatten()
            .find(|address| source.like(*address).is_ok())
    }

    /// That of the service with this node port, else TCP.
    fn node_port_protocol(&self, number: u16) -> Protocol {
        let mut ports = self.services.values().flat_map(|service| &service.ports);
        ports.find(|port| port.node_port == Some(number)).map_or(Protocol::default(), |port| port.protocol)
    }

    /// Nodes whose rules the packet meets; empty: all.
    pub(crate) fn met_on(&self, source: &Source, destination: IpAddr) -> Vec<String> {
        let holder = || self.home(destination).map(|node| node.name.clone());
        source.node.clone().or_else(holder).into_iter().collect()
    }

    /// The services that have an address, but for node ports: several where they share it.
    fn at(&self, address: IpAddr) -> Vec<&'a Service> {
        let has = |service: &&&'a Service| {
            let mut balanced = service.load_balancer.iter().map(|ingress| ingress.ip);
            service.cluster_ips.contains(&address)
                || service.external_ips.contains(&address)
                || balanced.any(|ip| ip == address)
        };
        self.services.values().filter(has).copied().collect()
    }

    fn service(&self, name: &str) -> Result<&'a Service, CliError> {
        let full = |full: &str| self.services.get(full).copied();
        if let Some(service) = full(name).or_else(|| full(&format!("default/{name}"))) {
            return Ok(service);
        }
        let named: Vec<&&Service> = self.services.values().filter(|service| service.name == name).collect();
        match named[..] {
            [one] => Ok(one),
            [] => {
                let error = CliError::new(format!("{name:?} is neither an address nor a service"));
                Err(match self.services.is_empty() {
                    true => error.hint("there are no services"),
                    false => {
                        let names: Vec<&str> = self.services.keys().map(String::as_str).collect();
                        error.hint(format!("the services are {}", names.join(", ")))
                    }
                })
            }
            _ => {
                let names: Vec<String> = named.iter().map(|service| service.full_name()).collect();
                Err(CliError::new(format!("{name:?} is the name of several services"))
                    .hint(format!("say which: {}", names.join(", "))))
            }
        }
    }
}

/// `web:53/udp`, as `plan` and `status` write ports, is `web:53` by UDP; `kube-system/udp` is a service.
fn with_protocol(text: &str, asked: Option<Protocol>) -> Result<(&str, Option<Protocol>), CliError> {
    let Some((rest, end)) = text.rsplit_once('/').filter(|(rest, _)| rest.contains(':')) else {
        return Ok((text, asked));
    };
    let named = Protocol::ALL.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(end));
    match (named, asked) {
        (Some(named), Some(asked)) if named != asked => {
            Err(CliError::new(format!("{text} and --protocol {} are two protocols", asked.as_str())))
        }
        (Some(named), _) => Ok((rest, Some(named))),
        (None, _) => Err(CliError::new(format!("{end:?} is no protocol")).hint("tcp, udp or sctp")),
    }
}

/// The port of a service that `said` names by number or name; without it the only one.
fn port_of(
    service: &Service,
    said: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<(u16, Protocol), CliError> {
    let fits = |port: &&homelab_model::service::Port| {
        protocol.is_none_or(|protocol| protocol == port.protocol)
            && said.is_none_or(|said| port.port.to_string() == said || port.name == said)
    };
    let found: Vec<_> = service.ports.iter().filter(fits).collect();
    if let Some(first) = found.first() {
        // One number with several protocols: as everywhere, TCP unless it is said otherwise.
        let tcp = found.iter().find(|port| said.is_some() && port.protocol == Protocol::Tcp);
        match (tcp, found.len()) {
            (Some(port), _) => return Ok((port.port, port.protocol)),
            (None, 1) => return Ok((first.port, first.protocol)),
            _ => {}
        }
    } else if let Some(number) = said.and_then(|said| said.parse().ok()) {
        // What becomes of a packet to a port that the service does not have is a good question, too.
        return Ok((number, protocol.unwrap_or_default()));
    }
    let all: Vec<String> = service
        .ports
        .iter()
        .map(|port| match port.name.as_str() {
            "" => format!("{}/{}", port.port, port.protocol.as_str()),
            name => format!("{}/{} ({name})", port.port, port.protocol.as_str()),
        })
        .collect();
    let name = service.full_name();
    let error = match said {
        Some(said) => CliError::new(format!("{name} has no port {said:?}")),
        None => CliError::new(format!("to which port of {name}?")),
    };
    Err(error
        .hint(format!("it has {}; say {name}:PORT, and --protocol where that is not enough", all.join(", "))))
}

#[cfg(test)]
mod tests;
