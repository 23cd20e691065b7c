//! What services say of load balancers, in homelab.yaml and in manifests alike.

use std::net::IpAddr;

use homelab_model::KubernetesSettings;
use homelab_model::service::{Service, Type};

use crate::value::{Parsed, quote, words};

/// The `loadBalancerClass` that is homelab's; without one it is homelab's too.
pub(crate) const CLASS: &str = KubernetesSettings::CLASS;

/// Prefixes of MetalLB's annotations, the newer first.
const PREFIXES: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];
/// Addresses that are asked for, separated by commas.
pub(crate) const ADDRESSES: &str = "loadBalancerIPs";
/// Pool that is asked for.
pub(crate) const POOL: &str = "address-pool";
/// Key of those who may share an address.
pub(crate) const SHARING: &str = "allow-shared-ip";
/// What MetalLB itself writes.
const WRITTEN: &str = "ip-allocated-from-pool";

/// An annotation of MetalLB, by its name without prefix: where both prefixes stand, the newer counts.
pub(crate) fn annotation<T>(name: &str, mut get: impl FnMut(&str) -> Option<T>) -> Option<T> {
    PREFIXES.iter().find_map(|prefix| get(&format!("{prefix}{name}")))
}

/// For a key that has a prefix of MetalLB and is none of its annotations: the one that is meant.
pub(crate) fn misspelt(key: &str) -> Option<String> {
    let (prefix, name) = PREFIXES.iter().find_map(|p| Some((p, key.strip_prefix(p)?)))?;
    let known = [ADDRESSES, POOL, SHARING, WRITTEN];
    if known.contains(&name) {
        return None;
    }
    Some(match crate::words::nearest(name, known) {
        Some(near) => format!("did you mean `{prefix}{near}`?"),
        None => format!(
            "known are `{prefix}{ADDRESSES}`, `{prefix}{POOL}` and `{prefix}{SHARING}`; take it away, or see what it was for"
        ),
    })
}

/// Addresses separated by commas: one, or one of each family.
pub(crate) fn addresses(text: &str, address: impl Fn(&str) -> Parsed<IpAddr>) -> Parsed<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let ip = address(part)?;
        if let Some(other) = addresses.iter().find(|other| other.is_ipv4() == ip.is_ipv4()) {
            let message = format!("{} asks for two addresses of one family: {other} and {ip}", quote(text));
            return words("two-of-a-family", message, "keep one; two are for an IPv4 and an IPv6 address");
        }
        addresses.push(ip);
    }
    Ok(addresses)
}

/// A service whose load-balancer addresses are another controller's: what is left without them.
pub(crate) fn without(service: &mut Service, node_ports: bool) {
    let ports = node_ports || service.ports.iter().any(|p| p.node_port.is_some());
    service.r#type = if ports { Type::NodePort } else { Type::ClusterIp };
    service.load_balancer.clear();
    service.load_balancer_source_ranges.clear();
    service.health_check_node_port = None;
}
