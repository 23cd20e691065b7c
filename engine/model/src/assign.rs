//! What services leave open: cluster addresses, node ports, load-balancer addresses, addresses of containers.
//!
//! What a source fixes comes first, then what the nodes remember, then the next free one in the order of the names.
//! Free ones are taken from behind the band that is meant for fixed ones (KEP-3070, KEP-3668), and from inside it only
//! when nothing else is left.

mod balance;
mod claims;
mod space;

pub use balance::{BalanceNote, BalanceTrouble, Balanced, balance_addresses};
pub(crate) use space::at;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::service::{Policy, Port, Service, Type};
use crate::{ContainerEndpoint, ContainerName, Declared, Family, Pool, ServiceContainer};
use claims::Claims;
use space::{Addresses, NodePorts};

/// Where addresses and ports come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// Service ranges: one, or one per family.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// Load-balancer pools in the order of the file.
    pub pools: Vec<Pool>,
    /// Load-balancer addresses that others have, with who has them. A service that had one at the last apply keeps it: the
    /// others' controller knows of that and gives way.
    pub taken: BTreeMap<IpAddr, String>,
}

/// Services with all that was open chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Sorted by full name.
    pub services: Vec<Service>,
    /// Which of their endpoints are containers, by service in the order of the source.
    pub containers: Vec<ServiceContainer>,
    /// Services that cannot be had, sorted by full name.
    pub refused: Vec<Refusal>,
    /// What is amiss with services that can be had.
    pub warnings: Vec<String>,
}

/// A service that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// `namespace/name`.
    pub service: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Chooses what the services leave open.
///
/// Load-balancer addresses are given by MetalLB's rules; a service that gets none is served without.
/// `memory` is the services of the last apply by full name; what it holds counts only while it still fits the ranges.
/// The order of `declared` means nothing, except that of two services with one name the first is taken (the other is in
/// `refused`). Where two fix
/// the same, the one that had it at the last apply keeps it, else the first by name gets it. A service that is refused
/// holds nothing.
pub fn assign(
    declared: &[Declared],
    memory: &BTreeMap<String, Service>,
    ranges: &Ranges,
    containers: &dyn Fn(&ContainerEndpoint) -> Vec<IpAddr>,
) -> Assigned {
    let mut assigned = Assigned::default();
    let mut wanted: BTreeMap<String, &Declared> = BTreeMap::new();
    for one in declared {
        match wanted.entry(one.service.full_name()) {
            Entry::Vacant(free) => {
                free.insert(one);
            }
            Entry::Occupied(first) => {
                let reason = "it is declared twice: keep one, or give one another name or namespace".into();
                assigned.refused.push(Refusal { service: first.key().clone(), reason });
            }
        }
    }
    let mut run = loop {
        let run = Run::new(&wanted, memory, ranges);
        if run.exhausted.is_empty() {
            break run;
        }
        // Those that found nothing free may have kept others from what they fix: once more without them.
        for refusal in run.exhausted {
            wanted.remove(&refusal.service);
            assigned.refused.push(refusal);
        }
    };
    let kept: BTreeSet<IpAddr> = run
        .drafts
        .keys()
        .filter_map(|name| memory.get(name))
        .flat_map(|before| before.load_balancer.iter().map(|one| one.ip))
        .collect();
    let taken = ranges.taken.iter().filter(|(ip, _)| !kept.contains(*ip));
    run.claims.taken(&taken.map(|(ip, holder)| (*ip, holder.clone())).collect());
    let mut notes = Vec::new();
    balance::balance(&mut run.drafts, memory, &ranges.pools, &run.claims, &mut notes);
    run.warnings.extend(notes.into_iter().map(|note| note.text));
    assigned.refused.extend(run.refused);
    assigned.refused.sort();
    assigned.warnings = run.warnings;
    for draft in run.drafts.into_values() {
        let mut service = draft.service;
        for container in &draft.declared.containers {
            let addresses = containers(container);
            assigned.containers.push(ServiceContainer {
                service: service.full_name(),
                name: ContainerName {
                    node: container.node.clone(),
                    container: container.container.clone(),
                    interface: container.interface.clone(),
                },
                endpoint: container.endpoint.clone(),
                addresses: addresses.clone(),
            });
            for address in addresses {
                if service.endpoints.iter().all(|e| e.address != address) {
                    let mut endpoint = container.endpoint.clone();
                    endpoint.address = address;
                    service.endpoints.push(endpoint);
                }
            }
        }
        assigned.services.push(service);
    }
    assigned
}

/// A service that is being completed.
struct Draft<'a> {
    declared: &'a Declared,
    families: Vec<Family>,
    service: Service,
}

impl Draft<'_> {
    /// Families that it has no cluster address of.
    fn open_families(&self) -> Vec<Family> {
        let has = |family| self.service.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
        self.families.iter().copied().filter(|family| !has(*family)).collect()
    }

    /// Whether a health check port is to be found.
    fn open_health(&self) -> bool {
        let service = &self.service;
        service.r#type == Type::LoadBalancer
            && service.external_traffic_policy == Policy::Local
            && service.health_check_node_port.is_none()
    }

    fn open_port(&self, port: &Port) -> bool {
        self.declared.node_ports && port.node_port.is_none()
    }
}

/// One pass over all services.
struct Run<'a> {
    ranges: &'a Ranges,
    addresses: Vec<Addresses>,
    node_ports: NodePorts,
    claims: Claims,
    drafts: BTreeMap<String, Draft<'a>>,
    /// What they fix cannot be had.
    refused: Vec<Refusal>,
    /// There is nothing free for them.
    exhausted: Vec<Refusal>,
    warnings: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(
        wanted: &BTreeMap<String, &'a Declared>,
        memory: &BTreeMap<String, Service>,
        ranges: &'a Ranges,
    ) -> Self {
        let mut run = Run {
            ranges,
            addresses: ranges.service_cidrs.iter().map(|net| Addresses::new(*net)).collect(),
            node_ports: NodePorts::new(ranges.node_ports),
            claims: Claims::default(),
            drafts: BTreeMap::new(),
            refused: Vec::new(),
            exhausted: Vec::new(),
            warnings: Vec::new(),
        };
        let (settled, others): (Vec<_>, Vec<_>) =
            wanted.iter().partition(|(name, one)| settled(&one.service, memory.get(*name)));
        for (name, one) in settled.into_iter().chain(others) {
            match run.fixed(name, one) {
                Ok(draft) => {
                    run.drafts.insert(name.clone(), draft);
                }
                Err(reason) => run.refused.push(Refusal { service: name.clone(), reason }),
            }
        }
        let mut drafts = std::mem::take(&mut run.drafts);
        for (name, draft) in &mut drafts {
            if let Some(before) = memory.get(name) {
                run.remembered(name, draft, before);
            }
        }
        for (name, mut draft) in drafts {
            match run.free(&name, &mut draft) {
                Ok(()) => {
                    run.drafts.insert(name, draft);
                }
                Err(reason) => {
                    run.claims.release(&draft.service);
                    run.addresses.iter_mut().for_each(Addresses::rewind);
                    run.node_ports.rewind();
                    run.exhausted.push(Refusal { service: name, reason });
                }
            }
        }
        run
    }

    /// Claims what the source fixes, all of it or nothing.
    fn fixed(&mut self, name: &str, declared: &'a Declared) -> Result<Draft<'a>, String> {
        let service = &declared.service;
        let families = self.families(declared)?;
        let of = |family: Family| service.cluster_ips.iter().filter(|ip| Family::of(**ip) == family).count();
        if of(Family::IPv4) > 1 || of(Family::IPv6) > 1 {
            return Err("its clusterIPs have two addresses of one family; keep one of each".into());
        }
        for ip in &service.cluster_ips {
            self.cluster_ip_fits(*ip, &families)?;
        }
        let (first, last) = self.ranges.node_ports;
        let ports = service.ports.iter().filter_map(|p| p.node_port).chain(service.health_check_node_port);
        for number in ports {
            if !(first..=last).contains(&number) {
                return Err(format!(
                    "its node port {number} is outside {first}-{last}; choose another, or leave it out"
                ));
            }
        }
        self.claims.fixed(name, service)?;
        let mut service = service.clone();
        let place = |ip: &IpAddr| families.iter().position(|f| *f == Family::of(*ip));
        service.cluster_ips.sort_by_key(place);
        service.load_balancer.clear();
        Ok(Draft { declared, families, service })
    }

    fn families(&self, declared: &Declared) -> Result<Vec<Family>, String> {
        let families = if declared.families.is_empty() {
            let mut fixed: Vec<Family> =
                declared.service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
            if fixed.is_empty() {
                fixed.extend(self.ranges.service_cidrs.first().map(|net| Family::of(net.addr())));
            }
            fixed
        } else {
            declared.families.clone()
        };
        if families.is_empty() {
            return Err("the cluster has no service range; set `network.serviceCIDR`".into());
        }
        match families.iter().find(|family| !self.addresses.iter().any(|a| a.family() == **family)) {
            Some(family) => Err(format!(
                "the cluster has no {family} service range; add one to `network.serviceCIDR`, or take {family} out of \
                 its `ipFamilies`"
            )),
            None => Ok(families),
        }
    }

    fn cluster_ip_fits(&self, ip: IpAddr, families: &[Family]) -> Result<(), String> {
        let family = Family::of(ip);
        if !families.contains(&family) {
            return Err(format!("its clusterIP {ip} is {family}, which its `ipFamilies` does not name"));
        }
        match self.addresses.iter().find(|a| a.family() == family) {
            Some(range) if range.may_hold(ip) => Ok(()),
            Some(range) if range.net().contains(&ip) => {
                Err(format!("its clusterIP {ip} is the first or last address of {}", range.net()))
            }
            _ => {
                let nets: Vec<String> = self.ranges.service_cidrs.iter().map(ToString::to_string).collect();
                Err(format!(
                    "its clusterIP {ip} is outside {}; choose one inside, or leave it out",
                    nets.join(" and ")
                ))
            }
        }
    }

    /// Gives a service what it had, as far as that still fits and nobody fixes it.
    fn remembered(&mut self, name: &str, draft: &mut Draft<'a>, before: &Service) {
        for family in draft.open_families() {
            let Some(range) = self.addresses.iter().find(|a| a.family() == family) else { continue };
            let Some(ip) = before.cluster_ips.iter().copied().find(|ip| range.may_hold(*ip)) else {
                continue;
            };
            match self.claims.cluster_ip(ip, name) {
                Ok(()) => draft.service.cluster_ips.push(ip),
                Err(other) => self.yields(name, &format!("the cluster address {ip}"), &other),
            }
        }
        for index in 0..draft.service.ports.len() {
            let port = &draft.service.ports[index];
            if !draft.open_port(port) {
                continue;
            }
            let Some(number) = had(port, before).filter(|n| self.node_ports.holds(*n)) else { continue };
            match self.claims.node_port(number, port.protocol, name) {
                Ok(()) => draft.service.ports[index].node_port = Some(number),
                Err(other) => self.yields(name, &format!("the node port {number}"), &other),
            }
        }
        if draft.open_health()
            && let Some(number) = before.health_check_node_port.filter(|n| self.node_ports.holds(*n))
        {
            match self.claims.health_check(number, name) {
                Ok(()) => draft.service.health_check_node_port = Some(number),
                Err(other) => self.yields(name, &format!("the health check port {number}"), &other),
            }
        }
    }

    fn yields(&mut self, name: &str, what: &str, other: &str) {
        self.warnings.extend(yields(name, what, other));
    }

    /// Finds what is still open: all of it or nothing.
    fn free(&mut self, name: &str, draft: &mut Draft<'a>) -> Result<(), String> {
        let mut found = Vec::new();
        for family in draft.open_families() {
            let range = self.addresses.iter_mut().find(|a| a.family() == family);
            let Some(range) = range else { return Err(format!("the cluster has no {family} service range")) };
            let ip = range.next(&self.claims).ok_or_else(|| {
                format!(
                    "the service range {} has no free address; widen `network.serviceCIDR`, or remove a service",
                    range.net()
                )
            })?;
            found.push(ip);
        }
        let mut service = draft.service.clone();
        let mut own: BTreeSet<u16> = BTreeSet::new();
        let (first, last) = self.ranges.node_ports;
        let full = || {
            format!(
                "no node port of {first}-{last} is free; widen `network.nodePortRange`, or remove a service that has \
                 node ports"
            )
        };
        for index in 0..service.ports.len() {
            let port = &service.ports[index];
            if !draft.open_port(port) {
                continue;
            }
            // As in Kubernetes, one number for one port of several protocols.
            let sibling = service.ports.iter().find_map(|other| {
                let number = other.node_port.filter(|_| other.port == port.port)?;
                self.claims.node_port_is_free(number, port.protocol, name).then_some(number)
            });
            let number = match sibling {
                Some(number) => number,
                None => self.node_ports.next(&self.claims, &own).ok_or_else(full)?,
            };
            own.insert(number);
            service.ports[index].node_port = Some(number);
        }
        if draft.open_health() {
            let number = self.node_ports.next(&self.claims, &own).ok_or_else(full)?;
            service.health_check_node_port = Some(number);
        }
        service.cluster_ips.extend(found);
        service
            .cluster_ips
            .sort_by_key(|ip| draft.families.iter().position(|family| *family == Family::of(*ip)));
        self.claims.chosen(name, &service);
        draft.service = service;
        Ok(())
    }
}

/// Says who gives what to whom.
fn yields(name: &str, what: &str, other: &str) -> Option<String> {
    (name != other).then(|| format!("service {name} gives {what} to {other} and gets another"))
}

/// Whether a service had all that it fixes already.
fn settled(service: &Service, before: Option<&Service>) -> bool {
    before.is_some_and(|before| {
        service.cluster_ips.iter().all(|ip| before.cluster_ips.contains(ip))
            && service.external_ips.iter().all(|ip| before.external_ips.contains(ip))
            && service.ports.iter().all(|p| p.node_port.is_none() || had(p, before) == p.node_port)
            && service.health_check_node_port.is_none_or(|n| before.health_check_node_port == Some(n))
    })
}

/// The node port that a port had: of the same number, else of the same name.
fn had(port: &Port, before: &Service) -> Option<u16> {
    let same = |p: &&Port| p.protocol == port.protocol && p.port == port.port;
    let named = |p: &&Port| p.protocol == port.protocol && p.name == port.name;
    before.ports.iter().find(same).or_else(|| before.ports.iter().find(named))?.node_port
}
