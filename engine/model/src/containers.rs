//! Endpoints of services that are containers: the nodes follow them by themselves, and tell each other where they are.
//!
//! What the laptop found is what nodes begin with; what the agent of a container's node says counts for more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::service::{Endpoint, Service};
use crate::{AttachmentFact, Family};

/// A container's interface on a node, by its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerName {
    /// Node name.
    pub node: String,
    /// Container id, or the name that its runtime gives it.
    pub container: String,
    /// Interface inside the container.
    pub interface: String,
}

impl ContainerName {
    /// Its addresses, by what its own node knows of its containers: sorted, and none where it does not run.
    pub fn addresses(&self, attachments: &[AttachmentFact]) -> Vec<IpAddr> {
        let own = attachments.iter().filter(|a| a.interface == self.interface && a.is_of(&self.container));
        let all: BTreeSet<IpAddr> = own.flat_map(|attachment| attachment.addresses.iter().copied()).collect();
        all.into_iter().collect()
    }
}

/// An endpoint of a service that is a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceContainer {
    /// `namespace/name` of the service.
    pub service: String,
    /// The container.
    #[serde(flatten)]
    pub name: ContainerName,
    /// The endpoint: everything but its address is right.
    pub endpoint: Endpoint,
    /// Where the laptop found it, sorted. The service's endpoints have these addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl ServiceContainer {
    /// Its endpoint at this address.
    pub fn at(&self, address: IpAddr) -> Endpoint {
        Endpoint { address, ..self.endpoint.clone() }
    }
}

/// What a node says of a container of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerWord {
    /// Container, as services name it.
    pub container: String,
    /// Interface inside the container.
    pub interface: String,
    /// Addresses; none: it does not run.
    pub addresses: Vec<IpAddr>,
}

/// What a node knows of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownContainer {
    /// The container.
    #[serde(flatten)]
    pub name: ContainerName,
    /// Where the laptop found it, as the node was told last: another find counts for more than what is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<IpAddr>,
    /// Where it is; none: it does not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Its own node has said so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub said: bool,
}

/// What a node knows of the containers that services name: [`crate::ours::CONTAINERS`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownContainers {
    /// The containers, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<KnownContainer>,
    /// Nodes that are dead, or out of reach.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub down: BTreeSet<String>,
}

impl KnownContainers {
    /// What is known of a container.
    pub fn get(&self, name: &ContainerName) -> Option<&KnownContainer> {
        let place = self.containers.binary_search_by(|known| known.name.cmp(name)).ok()?;
        self.containers.get(place)
    }

    /// Where a container is. What the laptop found counts where nothing is known that came after it.
    fn addresses<'a>(&'a self, record: &'a ServiceContainer, found: &Found) -> &'a [IpAddr] {
        let known = self.get(&record.name).filter(|known| found.get(&record.name) == Some(&known.told));
        known.map_or(&record.addresses, |known| &known.addresses)
    }

    /// The containers that are no endpoints now, by service.
    pub fn absent<'a>(
        &'a self,
        records: &'a [ServiceContainer],
    ) -> impl Iterator<Item = (&'a ServiceContainer, Absence)> {
        let found = found(records);
        records.iter().filter_map(move |record| {
            let runs = !self.addresses(record, &found).is_empty();
            let down = self.down.contains(&record.name.node);
            let why = if runs { down.then_some(Absence::NodeDown) } else { Some(Absence::NotRunning) };
            Some((record, why?))
        })
    }

    /// The services of the laptop with their containers where these are. Those of nodes that are down take nothing new, as
    /// long as the service has another endpoint of the family.
    pub fn follow(&self, services: &[Service], records: &[ServiceContainer]) -> Vec<Service> {
        let mut by_service: BTreeMap<&str, Vec<&ServiceContainer>> = BTreeMap::new();
        for record in records {
            by_service.entry(&record.service).or_default().push(record);
        }
        let found = found(records);
        let follow = |service: &Service| match by_service.get(service.full_name().as_str()) {
            Some(records) => self.follow_one(service, records, &found),
            None => service.clone(),
        };
        services.iter().map(follow).collect()
    }

    /// The same for one service, and its own records.
    fn follow_one(&self, service: &Service, records: &[&ServiceContainer], found: &Found) -> Service {
        let mut service = without_containers(service, records);
        let mut lost = Vec::new();
        for record in records {
            for address in self.addresses(record, found) {
                if service.endpoints.iter().chain(&lost).any(|endpoint| endpoint.address == *address) {
                    continue;
                }
                match self.down.contains(&record.name.node) {
                    true => lost.push(record.at(*address)),
                    false => service.endpoints.push(record.at(*address)),
                }
            }
        }
        for family in [Family::IPv4, Family::IPv6] {
            let of_family = |endpoint: &&Endpoint| Family::of(endpoint.address) == family;
            let left = service.endpoints.iter().filter(of_family).any(|one| one.ready || one.serving);
            for endpoint in lost.iter_mut().filter(|endpoint| left && of_family(&&**endpoint)) {
                (endpoint.ready, endpoint.serving) = (false, false);
                endpoint.for_zones.clear();
                endpoint.for_nodes.clear();
            }
        }
        service.endpoints.extend(lost);
        service
    }
}

/// Where the laptop found containers.
pub(crate) type Found = BTreeMap<ContainerName, Vec<IpAddr>>;

/// Where the laptop found each container, sorted: services that name the same one may have been configured at different times.
pub fn found(records: &[ServiceContainer]) -> Found {
    let mut found: BTreeMap<ContainerName, BTreeSet<IpAddr>> = BTreeMap::new();
    for record in records {
        found.entry(record.name.clone()).or_default().extend(&record.addresses);
    }
    found.into_iter().map(|(name, addresses)| (name, addresses.into_iter().collect())).collect()
}

/// A service without the endpoints that are containers.
pub fn without_containers(service: &Service, records: &[&ServiceContainer]) -> Service {
    let mut service = service.clone();
    service.endpoints.retain(|endpoint| {
        let is = |record: &&ServiceContainer| {
            record.addresses.contains(&endpoint.address) && record.at(endpoint.address) == *endpoint
        };
        !records.iter().any(is)
    });
    service
}

/// Why a container is no endpoint of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Absence {
    /// It does not run.
    NotRunning,
    /// Its node is dead, or out of reach.
    NodeDown,
}
