//! Services -> elements, for one node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use homelab_model::FrontendKind;
use homelab_model::service::{Affinity, Endpoint, IpMode, Policy, Port, Protocol, Service, Type};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::choose::{Chosen, Place, choose};
use crate::element::{Element, Frontend, Pool, slots};
use crate::ladder;
use crate::rules::families;

/// What the proxy knows of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeView {
    /// Node name, as in [`Endpoint::node`].
    pub name: String,
    /// Zone, if it is in one.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its own addresses: node ports listen on them. A loopback address is none of them, whatever is listed.
    pub addresses: Vec<IpAddr>,
    /// Which of its addresses take node ports; empty: all of `addresses`.
    #[serde(default)]
    pub node_port_addresses: Vec<IpNet>,
    /// Pod ranges of the whole cluster: sources inside them keep their address.
    pub pod_cidrs: Vec<IpNet>,
    /// Service ranges.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerades all that goes to cluster addresses.
    #[serde(default)]
    pub masquerade_all: bool,
}

impl NodeView {
    /// The addresses that take node ports.
    pub(crate) fn node_port_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let chosen = |address: &IpAddr| {
            let among = &self.node_port_addresses;
            !address.is_loopback() && (among.is_empty() || among.iter().any(|range| range.contains(address)))
        };
        self.addresses.iter().copied().filter(chosen)
    }
}

/// What the sets of one node hold, by service (`namespace/name`), each list sorted.
pub type Elements = BTreeMap<String, Vec<Element>>;

/// Two services want the same address, protocol and port. The first by name has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What both want.
    pub frontend: Frontend,
    /// Who has it.
    pub holder: String,
    /// Who goes without.
    pub other: String,
}

/// Computes the elements of all services. Nothing of a service depends on another but for [`Conflict`]s.
pub fn compile(services: &[Service], view: &NodeView) -> (Elements, Vec<Conflict>) {
    let mut services: Vec<&Service> = services.iter().collect();
    services.sort_by_cached_key(|service| service.full_name());
    let mut holders: BTreeMap<Frontend, String> = BTreeMap::new();
    let mut conflicts = Vec::new();
    let mut elements = Elements::new();
    for service in services {
        let name = service.full_name();
        let of_service = one(service, view, &mut |frontend| match holders.get(&frontend) {
            Some(holder) => {
                let conflict = Conflict { frontend, holder: holder.clone(), other: name.clone() };
                conflicts.extend((frontend.port != 0).then_some(conflict));
                false
            }
            None => {
                holders.insert(frontend, name.clone());
                true
            }
        });
        elements.insert(name, of_service);
    }
    (elements, conflicts)
}

/// What a service claims of a cluster address beside its ports: no port has this number.
pub(crate) fn whole(address: IpAddr) -> Frontend {
    Frontend { address, protocol: Protocol::Tcp, port: 0 }
}

/// All that a service claims on a node.
pub(crate) fn claims(service: &Service, view: &NodeView) -> BTreeSet<Frontend> {
    let of_port = |port: &Port| {
        let protocol = port.protocol;
        let all = frontends(service, port, view).into_iter();
        all.map(move |(address, port, _)| Frontend { address, protocol, port })
    };
    let addresses = service.cluster_ips.iter().map(|address| whole(*address));
    service.ports.iter().flat_map(of_port).chain(addresses).collect()
}

/// The elements of one service. `claim` says whether a frontend may be taken.
pub(crate) fn one(
    service: &Service,
    view: &NodeView,
    claim: &mut dyn FnMut(Frontend) -> bool,
) -> Vec<Element> {
    let mut elements = BTreeSet::new();
    let families = families(view);
    for address in service.cluster_ips.iter().filter(|a| families.contains(&a.is_ipv4())) {
        if claim(whole(*address)) {
            elements.insert(Element::ClusterAddress(*address));
        }
    }
    let place = Place { node: &view.name, zone: view.zone.as_deref() };
    for port in &service.ports {
        // The same for every frontend of a family.
        let of_family = |v4: bool| {
            let fits = |e: &&Endpoint| e.address.is_ipv4() == v4 && e.ports.get(&port.name).is_some();
            choose(&service.endpoints.iter().filter(fits).collect::<Vec<_>>(), place)
        };
        let (chosen4, chosen6) = (of_family(true), of_family(false));
        for (address, number, kind) in frontends(service, port, view) {
            let frontend = Frontend { address, protocol: port.protocol, port: number };
            if claim(frontend) {
                let chosen = if address.is_ipv4() { &chosen4 } else { &chosen6 };
                program(&mut elements, service, port, frontend, kind, chosen, view);
            }
        }
    }
    elements.into_iter().collect()
}

/// Addresses and port numbers of a port of a service, with what kind of address each is.
pub(crate) fn frontends(service: &Service, port: &Port, view: &NodeView) -> Vec<(IpAddr, u16, FrontendKind)> {
    let mut all: Vec<(IpAddr, u16, FrontendKind)> =
        service.cluster_ips.iter().map(|a| (*a, port.port, FrontendKind::Cluster)).collect();
    all.extend(service.external_ips.iter().map(|a| (*a, port.port, FrontendKind::External)));
    if service.r#type == Type::LoadBalancer {
        let vips = service.load_balancer.iter().filter(|ingress| ingress.ip_mode == IpMode::Vip);
        all.extend(vips.map(|ingress| (ingress.ip, port.port, FrontendKind::LoadBalancer)));
    }
    if let (Some(number), Type::NodePort | Type::LoadBalancer) = (port.node_port, service.r#type) {
        all.extend(view.node_port_addresses().map(|address| (address, number, FrontendKind::NodePort)));
    }
    // The families of a service are those of its cluster addresses (`ipFamilies`), as far as pods have them.
    let families = families(view);
    let has = |v4: bool| {
        families.contains(&v4) && service.cluster_ips.iter().any(|address| address.is_ipv4() == v4)
    };
    all.retain(|(address, ..)| has(address.is_ipv4()));
    all
}

fn program(
    elements: &mut BTreeSet<Element>,
    service: &Service,
    port: &Port,
    frontend: Frontend,
    kind: FrontendKind,
    chosen: &Chosen<'_>,
    view: &NodeView,
) {
    // As with kube-proxy, ranges of one family leave the addresses of the other open.
    let same = |range: &&IpNet| range.addr().is_ipv4() == frontend.address.is_ipv4();
    let mut ranges = merged(service.load_balancer_source_ranges.iter().filter(same)).peekable();
    if kind == FrontendKind::LoadBalancer && ranges.peek().is_some() {
        // Looked at before it is known whether there are endpoints.
        elements.extend([Element::Served(frontend), Element::Ranged(frontend)]);
        elements.extend(ranges.map(|range| Element::Allowed(frontend, range)));
    }
    if !chosen.any {
        elements.insert(Element::Unserved(frontend));
        return;
    }
    let policy = match kind {
        FrontendKind::Cluster => service.internal_traffic_policy,
        FrontendKind::NodePort | FrontendKind::External | FrontendKind::LoadBalancer => {
            service.external_traffic_policy
        }
    };
    if kind != FrontendKind::Cluster {
        elements.insert(match policy {
            Policy::Cluster => Element::ExternalCluster(frontend),
            Policy::Local => Element::ExternalLocal(frontend),
        });
    }
    let short_circuit = kind != FrontendKind::Cluster && policy == Policy::Local;
    let main = match policy {
        Policy::Cluster => &chosen.cluster,
        Policy::Local => &chosen.local,
    };
    let mut reached: Vec<&Endpoint> = main.clone();
    pool(elements, frontend, Pool::Main, main, &port.name);
    if short_circuit {
        pool(elements, frontend, Pool::Internal, &chosen.cluster, &port.name);
        reached.extend(&chosen.cluster);
    }
    if main.is_empty() {
        elements.insert(Element::Dropped(frontend));
    }
    if reached.is_empty() {
        return;
    }
    let is_sticky = service.session_affinity == Affinity::ClientIp;
    elements.insert(match kind {
        FrontendKind::Cluster if !is_sticky => Element::Plain(frontend),
        _ => Element::Served(frontend),
    });
    if is_sticky {
        elements.insert(Element::Sticky(frontend));
        let timeout = ladder::timeout(service.session_affinity_timeout_seconds);
        elements.insert(Element::StickyFor(frontend, timeout));
    }
    // Only what runs here can send packets to itself through this node.
    let own = reached.iter().filter(|e| e.node.as_deref() == Some(view.name.as_str()));
    elements.extend(own.map(|e| Element::Hairpin(frontend, e.address)));
}

/// Ranges without those that others hold: an interval set refuses overlaps.
fn merged<'a>(ranges: impl Iterator<Item = &'a IpNet>) -> impl Iterator<Item = IpNet> {
    IpNet::aggregate(&ranges.map(IpNet::trunc).collect()).into_iter()
}

fn pool(
    elements: &mut BTreeSet<Element>,
    frontend: Frontend,
    pool: Pool,
    endpoints: &[&Endpoint],
    port: &str,
) {
    // Sorted and without doubles: the order in which a source lists endpoints is no reason to change anything.
    let targets: BTreeSet<SocketAddr> = endpoints
        .iter()
        .filter_map(|endpoint| Some(SocketAddr::new(endpoint.address, endpoint.ports.get(port)?)))
        .collect();
    if targets.is_empty() {
        return;
    }
    let rung = ladder::rung(targets.len());
    let first = slots(pool, rung);
    for (index, to) in (0..rung).zip(targets.iter().cycle()) {
        elements.insert(Element::Endpoint { frontend, slot: first + index, to: *to });
    }
    if rung > ladder::FIRST_GROUP {
        elements.insert(Element::Large { frontend, slot: slots(pool, ladder::group(rung)) });
    }
}
