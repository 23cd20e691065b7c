//! `discovery.k8s.io/v1 EndpointSlice`.

use homelab_model::service::{Endpoint, Numbers};
use homelab_model::{EndpointGroup, GroupPort};
use k8s_openapi::api::discovery::v1 as discovery;
use serde::{Deserialize, Serialize};

use crate::address;
use crate::service::{port, protocol};

/// The label that makes a slice a service's.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label selector of slices that no proxy has a use for left out: those of headless services, as kube-proxy does.
pub const SLICES: &str = "!service.kubernetes.io/headless";

/// An EndpointSlice of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeSlice {
    /// Name of the service, in the slice's namespace.
    pub service: String,
    /// What it adds to it.
    pub group: EndpointGroup,
}

/// Reads an EndpointSlice; None if it is no service's, or its addresses are host names.
pub fn slice(object: &discovery::EndpointSlice) -> Option<KubeSlice> {
    let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME).filter(|name| !name.is_empty())?;
    let v4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        _ => return None,
    };
    let read = |item: &discovery::EndpointPort| {
        Some(GroupPort {
            name: item.name.clone().unwrap_or_default(),
            protocol: protocol(item.protocol.as_deref())?,
            // None means every port, which a proxy cannot serve.
            number: port(item.port?)?,
        })
    };
    let ports = object.ports.iter().flatten().filter_map(read).collect();
    let endpoints = object.endpoints.iter().flatten().filter_map(|item| endpoint(item, v4)).collect();
    Some(KubeSlice { service: service.clone(), group: EndpointGroup { ports, endpoints } })
}

fn endpoint(item: &discovery::Endpoint, v4: bool) -> Option<Endpoint> {
    // The addresses of one endpoint are one another's equals; kube-proxy takes the first.
    let address = address(item.addresses.first()?).filter(|address| address.is_ipv4() == v4)?;
    let conditions = item.conditions.as_ref();
    // What is not known counts as yes, and serving as ready: `EndpointConditions` of the API.
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let hints = item.hints.as_ref();
    let zones = hints.and_then(|h| h.for_zones.as_ref()).into_iter().flatten();
    let nodes = hints.and_then(|h| h.for_nodes.as_ref()).into_iter().flatten();
    Some(Endpoint {
        address,
        node: item.node_name.clone().filter(|name| !name.is_empty()),
        zone: item.zone.clone().filter(|zone| !zone.is_empty()),
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        for_zones: zones.map(|zone| zone.name.clone()).collect(),
        for_nodes: nodes.map(|node| node.name.clone()).collect(),
        ports: Numbers::default(),
    })
}
