//! What answers for a service.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use homelab_model::service::Endpoint;
use homelab_model::{ContainerEndpoint, Family};

use super::{Place, unused};
use crate::check::{nodes, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw;
use crate::spanned::Spanned;

/// What may not stand twice.
#[derive(Default)]
struct Seen {
    addresses: HashMap<IpAddr, Span>,
    containers: HashMap<(String, String, String), Span>,
}

pub(super) fn endpoints(
    raw: &raw::Service,
    place: Place<'_>,
    families: &[Family],
    ports: &BTreeMap<String, u16>,
    faults: &mut Vec<Fault>,
) -> (Vec<Endpoint>, Vec<ContainerEndpoint>) {
    let mut seen = Seen::default();
    let (mut endpoints, mut containers) = (Vec::new(), Vec::new());
    let distribution = raw.traffic_distribution.as_ref().map(|t| t.value.as_str());
    for item in raw.endpoints.as_deref().unwrap_or_default() {
        match &item.value {
            raw::Endpoint::Address(text) => {
                let text = Spanned { value: text.clone(), span: item.span };
                let Some(ip) = address(&text, place, families, &mut seen, faults) else { continue };
                let holder = holder(place.nodes, ip.value);
                let mut endpoint = plain(ip.value, holder, ports);
                endpoint.hint(distribution);
                endpoints.push(endpoint);
            }
            raw::Endpoint::Block(block) => {
                let one = Block { raw: block, span: item.span };
                if let Some(ip) = &block.address {
                    let ip = address(ip, place, families, &mut seen, faults);
                    let endpoint = one.with_address(ip, place, ports, faults);
                    if let Some(mut endpoint) = endpoint {
                        endpoint.hint(distribution);
                        endpoints.push(endpoint);
                    }
                } else if let Some(mut container) = one.with_container(place, ports, &mut seen, faults) {
                    container.endpoint.hint(distribution);
                    containers.push(container);
                }
            }
        }
    }
    if let Some(text) = &raw.traffic_distribution {
        let ready = endpoints.iter().chain(containers.iter().map(|c| &c.endpoint)).filter(|e| e.ready);
        let far = ready.filter(|e| match text.value.as_str() {
            "PreferSameNode" => e.for_nodes.is_empty(),
            _ => e.for_zones.is_empty(),
        });
        let far = far.count();
        if far > 0 {
            let what = if text.value == "PreferSameNode" { "node" } else { "zone" };
            let message = format!(
                "`trafficDistribution` has no effect: the {what} of {far} {} is not known",
                if far == 1 { "endpoint" } else { "endpoints" }
            );
            faults.push(
                Fault::new("traffic-distribution", text.span, message)
                    .help("give the nodes a `zone`, and write the `node` of an endpoint where it is not a node's own address")
                    .warning(),
            );
        }
    }
    (endpoints, containers)
}

/// An endpoint that answers, on a node if that is known.
fn plain(address: IpAddr, node: Option<&nodes::Parsed>, ports: &BTreeMap<String, u16>) -> Endpoint {
    Endpoint {
        address,
        node: node.and_then(|n| n.name.as_ref()).map(|n| n.value.clone()),
        zone: node.and_then(|n| n.zone.as_ref()).map(|z| z.value.clone()),
        ready: true,
        serving: true,
        terminating: false,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        ports: ports.clone().into(),
    }
}

/// The node that has an address, or whose pods have it.
fn holder(nodes: &[nodes::Parsed], address: IpAddr) -> Option<&nodes::Parsed> {
    nodes.iter().find(|n| {
        n.addresses.iter().any(|a| a.value == address)
            || n.pod_cidrs.iter().any(|c| c.value.contains(&address))
    })
}

fn address(
    text: &Spanned<String>,
    place: Place<'_>,
    families: &[Family],
    seen: &mut Seen,
    faults: &mut Vec<Fault>,
) -> Option<Spanned<IpAddr>> {
    let address = take(faults, text, values::address)?;
    if let Some(what) = values::unusable(address.value) {
        let message = format!("{} is {what}; nothing can answer there", address.value);
        faults.push(
            Fault::new("endpoint", address.span, message).help("write an address of a pod or of a machine"),
        );
    } else if let Some(first) = seen_before(&mut seen.addresses, &address.value, address.span) {
        let message = format!("the endpoint {} stands twice", address.value);
        faults.push(
            Fault::new("endpoint", address.span, message)
                .label("again here")
                .also(first, "first here")
                .help("keep one of them"),
        );
    } else if let Some(range) = place.network.services.iter().find(|r| r.net.contains(&address.value)) {
        let message = format!("the endpoint {} is in the service range {}", address.value, range.net);
        faults.push(
            Fault::new("endpoint", address.span, message)
                .help("a service cannot stand behind a service; write what answers"),
        );
    } else {
        let what = format!("the endpoint {}", address.value);
        unused(address.span, &what, Family::of(address.value), families, faults);
        return Some(address);
    }
    None
}

struct Block<'a> {
    raw: &'a raw::EndpointBlock,
    span: Span,
}

impl Block<'_> {
    fn with_address(
        &self,
        address: Option<Spanned<IpAddr>>,
        place: Place<'_>,
        ports: &BTreeMap<String, u16>,
        faults: &mut Vec<Fault>,
    ) -> Option<Endpoint> {
        let raw = self.raw;
        if let (Some(container), Some(address)) = (&raw.container, &raw.address) {
            faults.push(
                Fault::new("endpoint", container.span, "an endpoint has an address or a container, not both")
                    .also(address.span, "the address")
                    .help("keep the container to follow its address, or the address if it never changes"),
            );
        } else if let Some(interface) = &raw.interface {
            faults.push(
                Fault::new(
                    "endpoint",
                    interface.span,
                    "`interface` is one of a container; an address needs none",
                )
                .help("take it away"),
            );
        }
        let named = raw.node.as_ref().map(|n| (n, nodes::known(place.nodes, n, faults)));
        let found = address.as_ref().and_then(|a| holder(place.nodes, a.value));
        if let (Some((text, Some(named))), Some(found), Some(address)) = (&named, found, &address)
            && named.title() != found.title()
        {
            let message = format!("{} belongs to {}, not to {}", address.value, found.title(), named.title());
            faults.push(
                Fault::new("endpoint", text.span, message)
                    .also(address.span, found.title())
                    .help("leave `node` out: homelab knows it"),
            );
        }
        let node = match named {
            Some((_, named)) => named,
            None => found,
        };
        self.finish(plain(address?.value, node, ports), faults)
    }

    fn with_container(
        &self,
        place: Place<'_>,
        ports: &BTreeMap<String, u16>,
        seen: &mut Seen,
        faults: &mut Vec<Fault>,
    ) -> Option<ContainerEndpoint> {
        let raw = self.raw;
        let node = raw.node.as_ref().map(|n| (n, nodes::known(place.nodes, n, faults)));
        let Some(text) = &raw.container else {
            faults.push(
                Fault::new(
                    "missing-key",
                    self.span,
                    "an endpoint needs `address`, or `node` and `container`",
                )
                .help("add its address, e.g. `address: 192.168.50.11`"),
            );
            return None;
        };
        let container = take(faults, text, values::container);
        let interface = raw.interface.as_ref().map(|i| take(faults, i, values::interface).map(|i| i.value));
        let interface = interface.unwrap_or_else(|| Some("eth0".to_owned()));
        let Some((text, node)) = node else {
            faults.push(
                Fault::new("missing-key", text.span, "a container needs the `node` that it runs on")
                    .help("add it, e.g. `node: node1`"),
            );
            return None;
        };
        // Its address is found later.
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let endpoint = self.finish(plain(unknown, node, ports), faults);
        let (container, interface) = (container?, interface?);
        let key = (text.value.clone(), container.value.clone(), interface.clone());
        if let Some(first) = seen_before(&mut seen.containers, &key, container.span) {
            let message = format!("the container `{}` of {} stands twice", container.value, text.value);
            faults.push(
                Fault::new("endpoint", container.span, message)
                    .label("again here")
                    .also(first, "first here")
                    .help("keep one of them"),
            );
        }
        let (node, container) = (text.value.clone(), container.value);
        Some(ContainerEndpoint { node, container, interface, endpoint: endpoint? })
    }

    /// Adds zone and conditions.
    fn finish(&self, mut endpoint: Endpoint, faults: &mut Vec<Fault>) -> Option<Endpoint> {
        let raw = self.raw;
        if let Some(zone) = &raw.zone {
            endpoint.zone = Some(take(faults, zone, values::zone)?.value);
        }
        endpoint.terminating = raw.terminating.as_ref().is_some_and(|t| t.value);
        endpoint.ready = raw.ready.as_ref().map_or(!endpoint.terminating, |r| r.value);
        endpoint.serving = raw.serving.as_ref().is_none_or(|s| s.value);
        if let Some(ready) = raw.ready.as_ref().filter(|r| r.value && endpoint.terminating) {
            faults.push(
                Fault::new("endpoint", ready.span, "an endpoint that is terminating is not ready")
                    .help("take `ready` away, or `terminating`"),
            );
        }
        Some(endpoint)
    }
}
