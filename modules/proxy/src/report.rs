//! What a node says of its services: what its sets hold against what they should, and the way of a packet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use homelab_model::service::{Endpoint, Policy, Service};
use homelab_model::{
    AbsentContainer, ContainerName, EndpointReport, FrontendKind, FrontendReport, FrontendState,
    KnownContainers, NodeSpec, ServiceReport, ToldPort, ToldService, TraceEndpoint, TraceOutcome,
    TracePacket, TraceReport, TraceStep,
};

use crate::compile::{Elements, NodeView, compile, frontends};
use crate::element::{Element, Frontend, Pool, slots};
use crate::evaluate::{Machine, Outcome, Packet};
use crate::objects::view;
use crate::stale::{Connection, Remembered};

/// What a node's sets hold.
#[derive(Debug, Clone, Copy)]
pub struct HeldState<'a> {
    /// By service, each list sorted.
    pub elements: &'a Elements,
    /// What nothing of ours would make, in words, by service.
    pub strays: &'a BTreeMap<String, Vec<String>>,
    /// Connections that the kernel keeps track of.
    pub connections: &'a [Connection],
}

/// A report of each service that the node was told of, or holds something of.
pub fn services(spec: Option<&NodeSpec>, held: &HeldState<'_>) -> Vec<ServiceReport> {
    let view = spec.map(view).unwrap_or_default();
    let told = spec.map(|spec| spec.services.as_slice()).unwrap_or_default();
    let wanted = compile(told, &view).0;
    let told: BTreeMap<String, &Service> = told.iter().map(|s| (s.full_name(), s)).collect();
    let mut counts: HashMap<(Frontend, SocketAddr), u64> = HashMap::new();
    for connection in held.connections {
        *counts.entry((connection.to, connection.endpoint)).or_default() += 1;
    }
    let some = held.elements.iter().filter(|(_, elements)| !elements.is_empty()).map(|(name, _)| name);
    let names: BTreeSet<&String> = told.keys().chain(some).chain(held.strays.keys()).collect();
    let report = |name: &String| {
        let (want, have) = (of(&wanted, name), of(held.elements, name));
        let lacking = |from: &[Element], of: &[Element]| -> Vec<String> {
            of.iter().filter(|e| from.binary_search(e).is_err()).map(Element::to_line).collect()
        };
        let mut extra = lacking(want, have);
        extra.extend(held.strays.get(name).into_iter().flatten().cloned());
        let service = told.get(name).copied();
        ServiceReport {
            name: name.clone(),
            told: service.map(summary),
            frontends: reports(service, &view, have, &counts),
            absent: Vec::new(),
            missing: lacking(have, want),
            extra,
        }
    };
    names.into_iter().map(report).collect()
}

/// Says of which containers of theirs services do without.
pub fn absent(reports: &mut [ServiceReport], told: Option<&NodeSpec>, known: &KnownContainers) {
    for (record, why) in told.iter().flat_map(|spec| known.absent(&spec.containers)) {
        let ContainerName { node, container, .. } = record.name.clone();
        if let Some(report) = reports.iter_mut().find(|report| report.name == record.service) {
            report.absent.push(AbsentContainer { node, container, why });
        }
    }
}

fn of<'a>(elements: &'a Elements, name: &str) -> &'a [Element] {
    elements.get(name).map(Vec::as_slice).unwrap_or_default()
}

fn summary(service: &Service) -> ToldService {
    // A container has an address of each family; a service may have one family, and serves no other.
    let ingress = service.load_balancer.iter().map(|ingress| ingress.ip);
    let own = service.cluster_ips.iter().chain(&service.external_ips).copied().chain(ingress);
    let families: BTreeSet<bool> = own.map(|address| address.is_ipv4()).collect();
    let addresses = |which: &dyn Fn(&&Endpoint) -> bool| {
        let served = service.endpoints.iter().filter(|e| families.contains(&e.address.is_ipv4()));
        served.filter(which).map(|e| e.address).collect::<BTreeSet<_>>().len()
    };
    let port = |port: &homelab_model::service::Port| ToldPort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.port,
        node_port: port.node_port,
    };
    ToldService {
        r#type: service.r#type,
        internal_traffic_policy: service.internal_traffic_policy,
        external_traffic_policy: service.external_traffic_policy,
        session_affinity: service.session_affinity,
        ports: service.ports.iter().map(port).collect(),
        ready: addresses(&|endpoint| endpoint.ready),
        total: addresses(&|_| true),
    }
}

/// What the sets say of one frontend.
#[derive(Default)]
struct Found {
    served: bool,
    refused: bool,
    dropped: bool,
    local: bool,
    affinity: Option<u32>,
    /// Endpoints, and whether others than pods and the node get there.
    endpoints: BTreeMap<SocketAddr, bool>,
}

fn reports(
    service: Option<&Service>,
    view: &NodeView,
    have: &[Element],
    counts: &HashMap<(Frontend, SocketAddr), u64>,
) -> Vec<FrontendReport> {
    let mut kinds: BTreeMap<Frontend, FrontendKind> = BTreeMap::new();
    for (service, port) in service.into_iter().flat_map(|s| s.ports.iter().map(move |port| (s, port))) {
        for (address, number, kind) in frontends(service, port, view) {
            let frontend = Frontend { address, protocol: port.protocol, port: number };
            kinds.entry(frontend).or_insert(kind);
        }
    }
    let mut all: BTreeMap<Frontend, Found> = kinds.keys().map(|f| (*f, Found::default())).collect();
    for element in have {
        let Some(frontend) = element.frontend() else { continue };
        let found = all.entry(frontend).or_default();
        match element {
            Element::Served(_) | Element::Plain(_) => found.served = true,
            Element::Unserved(_) => found.refused = true,
            Element::Dropped(_) => found.dropped = true,
            Element::ExternalLocal(_) => found.local = true,
            Element::StickyFor(_, seconds) => found.affinity = Some(*seconds),
            Element::Endpoint { slot, to, .. } => {
                *found.endpoints.entry(*to).or_default() |= is_main(*slot);
            }
            _ => {}
        }
    }
    let report = |(frontend, found): (Frontend, Found)| {
        let kind = kinds.get(&frontend).copied();
        let policy = match (service, kind) {
            (Some(service), Some(FrontendKind::Cluster)) => service.internal_traffic_policy,
            (Some(service), Some(_)) => service.external_traffic_policy,
            _ if found.local => Policy::Local,
            _ => Policy::Cluster,
        };
        let endpoint = |(address, main): (SocketAddr, bool)| EndpointReport {
            address,
            internal: !main,
            connections: counts.get(&(frontend, address)).copied().unwrap_or_default(),
        };
        FrontendReport {
            address: frontend.address,
            protocol: frontend.protocol,
            port: frontend.port,
            kind,
            state: match found {
                Found { refused: true, .. } => FrontendState::Refused,
                Found { dropped: true, .. } => FrontendState::Dropped,
                Found { served: true, .. } => FrontendState::Served,
                _ => FrontendState::Absent,
            },
            policy,
            affinity: found.affinity,
            endpoints: found.endpoints.into_iter().map(endpoint).collect(),
        }
    };
    all.into_iter().map(report).collect()
}

/// Whether a slot is one of [`Pool::Main`].
fn is_main(slot: u32) -> bool {
    slot < slots(Pool::Internal, slot >> 16)
}

/// What a node that holds `elements` does with a packet. `own` are all addresses of the node.
pub fn trace(
    spec: &NodeSpec,
    own: &[IpAddr],
    elements: &Elements,
    remembered: &[Remembered],
    packet: &TracePacket,
) -> TraceReport {
    let view = NodeView { addresses: own.to_vec(), ..view(spec) };
    let mut machine = Machine::new(&view, elements);
    let to = Frontend { address: packet.destination, protocol: packet.protocol, port: packet.port };
    let client = remembered.iter().find(|c| c.frontend == to && c.client == packet.source);
    if let Some(client) = client {
        machine.stick(to, client.client, client.endpoint);
    }
    let trace = machine.run_in_full(Packet { source: packet.source, to });
    let holder = |(_, elements): &(&String, &Vec<Element>)| {
        elements.iter().any(|element| element.frontend() == Some(to))
    };
    let outcome = match trace.outcome {
        Outcome::Untouched => TraceOutcome::Untouched,
        Outcome::Dropped => TraceOutcome::Dropped,
        Outcome::Rejected => TraceOutcome::Refused,
        Outcome::Translated(endpoints) => {
            let endpoint = |(address, masqueraded)| TraceEndpoint { address, masqueraded };
            TraceOutcome::Translated { endpoints: endpoints.into_iter().map(endpoint).collect() }
        }
    };
    let step = |step: crate::evaluate::Step| TraceStep {
        chain: step.chain,
        rule: step.rule,
        matched: step.matched,
        why: step.why.to_owned(),
    };
    TraceReport {
        service: elements.iter().find(holder).map(|(name, _)| name.clone()),
        outcome,
        remembered: client.map(|client| client.endpoint),
        steps: trace.steps.into_iter().map(step).collect(),
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use homelab_model::service::Protocol;
    use serde_json::{Value, json};

    use super::*;

    fn spec(services: Value) -> NodeSpec {
        serde_json::from_value(json!({
            "formatVersion": 1, "cluster": "home", "node": "a", "address": "192.168.50.11", "interface": "eth0",
            "podCidrs": ["10.244.1.0/24"], "clusterCidrs": ["10.244.0.0/16"], "serviceCidrs": ["10.96.0.0/12"],
            "vtep": {"device": "homelab.1", "vni": 1, "port": 8472, "mtu": 1450, "mac": "02:00:00:00:00:01",
                "checksumOffload": true},
            "podMtu": 1450, "bridge": "homelab0", "cniBinDirs": [], "cniConfDirs": [], "binarySha256": "",
            "proxy": {"nodePortAddresses": ["192.168.50.11"]}, "peers": [], "services": services,
        }))
        .expect("a spec")
    }

    fn web() -> NodeSpec {
        spec(json!([{
            "namespace": "default", "name": "web", "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"],
            "loadBalancer": [{"ip": "192.168.50.200"}], "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP", "ports": [{"port": 80, "nodePort": 30080}],
            "endpoints": [
                {"address": "10.244.2.5", "node": "b", "ports": {"": 8080}},
                {"address": "10.244.3.5", "node": "c", "ports": {"": 8080}},
                {"address": "10.244.3.6", "node": "c", "ready": false, "serving": false, "ports": {"": 8080}},
                {"address": "fd00:10:244:3::6", "node": "c", "ports": {"": 8080}},
            ],
        }]))
    }

    fn elements(spec: &NodeSpec) -> Elements {
        compile(&spec.services, &view(spec)).0
    }

    fn report(
        spec: Option<&NodeSpec>,
        elements: &Elements,
        connections: &[Connection],
    ) -> Vec<ServiceReport> {
        services(spec, &HeldState { elements, strays: &BTreeMap::new(), connections })
    }

    fn frontend(address: &str, port: u16) -> Frontend {
        Frontend { address: address.parse().expect("an address"), protocol: Protocol::Tcp, port }
    }

    #[test]
    fn a_node_that_holds_what_it_was_told_says_what_of_each_address() {
        let spec = web();
        let connection = |client: &str, to| Connection {
            client: client.parse().expect("an address"),
            to,
            endpoint: "10.244.2.5:8080".parse().expect("an address"),
        };
        let connections = [
            connection("10.244.1.9:4000", frontend("10.96.0.1", 80)),
            connection("10.244.1.9:4001", frontend("10.96.0.1", 80)),
            connection("10.244.1.9:4002", frontend("10.96.9.9", 80)),
        ];
        let reports = report(Some(&spec), &elements(&spec), &connections);
        let [web] = &reports[..] else { panic!("{reports:?}") };
        assert!(web.agrees(), "{web:?}");
        let told = web.told.as_ref().expect("it was told");
        assert_eq!((told.ready, told.total), (2, 3), "of the family that it has");
        let said: Vec<_> = web
            .frontends
            .iter()
            .map(|f| {
                let endpoints: Vec<_> = f.endpoints.iter().map(|e| (e.internal, e.connections)).collect();
                (f.address.to_string(), f.port, f.kind, f.state, f.policy, endpoints)
            })
            .collect();
        let cluster = (FrontendKind::Cluster, FrontendState::Served, Policy::Cluster);
        let outer = |kind| (kind, FrontendState::Dropped, Policy::Local);
        let line = |address: &str, port, (kind, state, policy), endpoints| {
            (address.to_owned(), port, Some(kind), state, policy, endpoints)
        };
        assert_eq!(
            said,
            [
                line("10.96.0.1", 80, cluster, vec![(false, 2), (false, 0)]),
                line("192.168.50.11", 30080, outer(FrontendKind::NodePort), vec![(true, 0), (true, 0)]),
                line("192.168.50.200", 80, outer(FrontendKind::LoadBalancer), vec![(true, 0), (true, 0)]),
            ]
        );
        assert!(web.frontends.iter().all(|f| f.affinity == Some(10800)));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let spec = web();
        let mut held = elements(&spec);
        let of_web = held.get_mut("default/web").expect("the service");
        let gone = Element::Served(frontend("10.96.0.1", 80));
        of_web.retain(|element| *element != gone);
        let stranger = Element::Unserved(frontend("9.9.9.9", 9));
        held.insert(String::new(), vec![stranger]);
        let strays = [("default/web".to_owned(), vec!["hairpin4 #00".to_owned()])].into();
        let state = HeldState { elements: &held, strays: &strays, connections: &[] };
        let reports = services(Some(&spec), &state);
        let [unnamed, web] = &reports[..] else { panic!("{reports:?}") };
        assert_eq!(
            (unnamed.told.is_none(), &unnamed.extra[..]),
            (true, &["no-endpoints4 9.9.9.9 . tcp . 9".to_owned()][..])
        );
        assert_eq!(unnamed.frontends[0].kind, None);
        assert_eq!(web.missing, ["frontends4 10.96.0.1 . tcp . 80"]);
        assert_eq!(web.extra, ["hairpin4 #00"]);
        assert_eq!(web.frontends[0].state, FrontendState::Absent);
        // Nothing is there at all.
        let bare = report(Some(&spec), &Elements::new(), &[]);
        assert_eq!(bare[0].missing.len(), elements(&spec)["default/web"].len());
        assert!(report(None, &Elements::new(), &[]).is_empty());
    }

    fn packet(source: &str, destination: &str, port: u16) -> TracePacket {
        TracePacket {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol: Protocol::Tcp,
            port,
        }
    }

    #[test]
    fn a_packet_is_followed_through_what_the_node_holds() {
        let spec = web();
        let held = elements(&spec);
        let own = ["192.168.50.11", "10.244.1.1"].map(|a| a.parse().expect("an address"));
        let trace = |packet, remembered: &[Remembered]| super::trace(&spec, &own, &held, remembered, &packet);
        let from_pod = trace(packet("10.244.1.9", "10.96.0.1", 80), &[]);
        assert_eq!(from_pod.service.as_deref(), Some("default/web"));
        let TraceOutcome::Translated { endpoints } = &from_pod.outcome else { panic!("{from_pod:?}") };
        assert_eq!(endpoints.len(), 2);
        assert!(endpoints.iter().all(|e| !e.masqueraded));
        assert!(from_pod.steps.iter().any(|s| !s.matched) && from_pod.steps.iter().any(|s| s.matched));
        // The same rules, whether all of them are noted or those that match.
        let short = Machine::new(&NodeView { addresses: own.to_vec(), ..view(&spec) }, &held)
            .run(Packet { source: own[0], to: frontend("10.96.0.1", 80) });
        let full = trace(packet("192.168.50.11", "10.96.0.1", 80), &[]);
        let matching: Vec<&String> = full.steps.iter().filter(|s| s.matched).map(|s| &s.rule).collect();
        assert_eq!(matching, short.steps.iter().map(|s| &s.rule).collect::<Vec<_>>());
        // Any address of the node's own is the node, also one that takes no node ports.
        assert_eq!(trace(packet("10.244.1.1", "10.96.0.1", 80), &[]).steps[0].chain, "proxy-output");
        let client = Remembered {
            frontend: frontend("10.96.0.1", 80),
            client: "10.244.1.9".parse().expect("an address"),
            endpoint: "10.244.3.5:8080".parse().expect("an address"),
        };
        let stuck = trace(packet("10.244.1.9", "10.96.0.1", 80), &[client]);
        assert_eq!(stuck.remembered, Some(client.endpoint));
        let one = TraceEndpoint { address: client.endpoint, masqueraded: false };
        assert_eq!(stuck.outcome, TraceOutcome::Translated { endpoints: vec![one] });
        let outside = trace(packet("192.168.50.99", "192.168.50.200", 80), &[]);
        assert_eq!(outside.outcome, TraceOutcome::Dropped);
        let other = trace(packet("10.244.1.9", "10.96.0.1", 81), &[]);
        assert_eq!((other.outcome, other.service), (TraceOutcome::Refused, None));
        let foreign = trace(packet("10.244.1.9", "1.1.1.1", 80), &[]);
        assert_eq!((foreign.outcome, foreign.service), (TraceOutcome::Untouched, None));
    }
}
