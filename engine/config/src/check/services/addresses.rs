//! Addresses of a service, and their families.

use std::collections::HashMap;
use std::net::IpAddr;

use homelab_model::Family;
use homelab_model::service::Type;
use ipnet::IpNet;

use super::{Place, Taken, type_name, unused};
use crate::check::{seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw;
use crate::spanned::Spanned;

/// `clusterIP` and `clusterIPs`: the addresses that are fixed.
pub(super) fn cluster_ips(
    raw: &raw::Service,
    place: Place<'_>,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Vec<Spanned<IpAddr>> {
    let list = raw.cluster_ips.as_deref().unwrap_or_default();
    let texts: Vec<&Spanned<String>> = match (&raw.cluster_ip, list.first()) {
        (Some(one), Some(first)) => {
            if one.value != first.value {
                let message =
                    format!("`clusterIP` is {}, but `clusterIPs` begins with {}", one.value, first.value);
                faults.push(
                    Fault::new("cluster-ip", one.span, message)
                        .also(first.span, "this one")
                        .help("write the addresses in `clusterIPs` only"),
                );
            }
            list.iter().collect()
        }
        (Some(one), None) => vec![one],
        (None, _) => list.iter().collect(),
    };
    let mut ips: Vec<Spanned<IpAddr>> = Vec::new();
    for text in texts {
        let Some(ip) = cluster_ip(text, place, taken, faults) else { continue };
        let family = Family::of(ip.value);
        match ips.iter().find(|other| Family::of(other.value) == family) {
            Some(first) => faults.push(
                Fault::new(
                    "two-of-a-family",
                    ip.span,
                    format!("a service has one {family} address, not two"),
                )
                .label("second")
                .also(first.span, "first")
                .help("keep one; `clusterIPs` is for an IPv4 and an IPv6 address"),
            ),
            None => ips.push(ip),
        }
    }
    ips
}

fn cluster_ip(
    text: &Spanned<String>,
    place: Place<'_>,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<Spanned<IpAddr>> {
    if text.value.eq_ignore_ascii_case("none") {
        faults.push(
            Fault::new("headless", text.span, "a headless service (`clusterIP: None`) has no address")
                .help("there is nothing to program for it; leave the service out, or leave `clusterIP` out to get an address"),
        );
        return None;
    }
    let address = take(faults, text, values::address)?;
    let ranges = &place.network.services;
    let Some(range) = ranges.iter().find(|r| r.net.contains(&address.value)) else {
        // Ranges that are wrong themselves say nothing about the address.
        if !ranges.is_empty() {
            let names: Vec<String> = ranges.iter().map(|r| r.net.to_string()).collect();
            let message = format!("{} is outside the service range {}", address.value, names.join(" and "));
            let mut fault = Fault::new("cluster-ip", address.span, message)
                .help("choose an address inside it, or leave `clusterIP` out to get a free one");
            if let Some(span) = ranges.first().and_then(|r| r.span) {
                fault = fault.also(span, "the service range");
            }
            faults.push(fault);
        }
        return None;
    };
    let ends = [Some(range.net.network()), range.is_v4().then(|| range.net.broadcast())];
    if ends.contains(&Some(address.value)) {
        let message = format!(
            "{} is the first or last address of {}; it cannot be a service's",
            address.value, range.net
        );
        faults.push(Fault::new("cluster-ip", address.span, message).help("choose one between them"));
        return None;
    }
    if let Some(first) = seen_before(&mut taken.cluster_ips, &address.value, address.span) {
        faults.push(
            Fault::new(
                "duplicate-address",
                address.span,
                format!("two services have the address {}", address.value),
            )
            .label("again here")
            .also(first, "first here")
            .help("leave `clusterIP` out to get a free one"),
        );
    }
    Some(address)
}

/// The families that the service is to have, in order; empty where the service ranges are wrong.
pub(super) fn families(
    raw: &raw::Service,
    fixed: &[Spanned<IpAddr>],
    place: Place<'_>,
    faults: &mut Vec<Fault>,
) -> Vec<Family> {
    let cluster: Vec<Family> = place.network.services.iter().map(|r| Family::of(r.net.addr())).collect();
    let mut written: Vec<Spanned<Family>> = Vec::new();
    for text in raw.ip_families.as_deref().unwrap_or_default() {
        let value = if text.value == "IPv4" { Family::IPv4 } else { Family::IPv6 };
        if let Some(first) = written.iter().find(|f| f.value == value) {
            faults.push(
                Fault::new("families", text.span, format!("`ipFamilies` names {value} twice"))
                    .label("again here")
                    .also(first.span, "first here")
                    .help("keep one of them"),
            );
            continue;
        }
        written.push(Spanned { value, span: text.span });
        if !cluster.is_empty() && !cluster.contains(&value) {
            faults.push(
                Fault::new("families", text.span, format!("the cluster has no {value} services"))
                    .help(format!("add an {value} range to `network.serviceCIDR`, or take {value} away")),
            );
        }
    }
    for (family, ip) in written.iter().zip(fixed).filter(|(f, ip)| f.value != Family::of(ip.value)) {
        let message = format!("{} is not {}, as `ipFamilies` says", ip.value, family.value);
        faults.push(
            Fault::new("families", ip.span, message)
                .also(family.span, family.value.to_string())
                .help("write `clusterIPs` in the order of `ipFamilies`"),
        );
    }
    let policy = raw.ip_family_policy.as_ref();
    let both = policy.is_some_and(|p| p.value != "SingleStack");
    let second = written.get(1).map(|f| f.span).or(fixed.get(1).map(|ip| ip.span));
    if let Some(span) = second.filter(|_| !both) {
        let mut fault = Fault::new("families", span, "a service of two families says so in `ipFamilyPolicy`")
            .help("write `ipFamilyPolicy: PreferDualStack` or `ipFamilyPolicy: RequireDualStack`");
        if let Some(policy) = policy {
            fault = fault.also(policy.span, "one family");
        }
        faults.push(fault);
    }
    if let Some(policy) = policy.filter(|p| p.value == "RequireDualStack" && cluster.len() == 1) {
        let message = "the cluster has services of one family only";
        faults.push(
            Fault::new("families", policy.span, message).help(
                "write `PreferDualStack`, or give `network.podCIDR` and `network.serviceCIDR` two ranges",
            ),
        );
    }
    let mut families: Vec<Family> = written.into_iter().map(|f| f.value).collect();
    families.extend(fixed.iter().map(|ip| Family::of(ip.value)));
    families.extend(&cluster);
    let mut seen = Vec::new();
    families.retain(|family| {
        cluster.contains(family) && !seen.contains(family) && {
            seen.push(*family);
            true
        }
    });
    families.truncate(if both { 2 } else { 1 });
    families
}

/// `externalIPs`.
pub(super) fn external_ips(
    raw: &raw::Service,
    place: Place<'_>,
    families: &[Family],
    faults: &mut Vec<Fault>,
) -> Vec<IpAddr> {
    let mut seen: HashMap<IpAddr, Span> = HashMap::new();
    let mut ips = Vec::new();
    for text in raw.external_ips.as_deref().unwrap_or_default() {
        let Some(ip) = take(faults, text, values::address) else { continue };
        let ours =
            place.network.services.iter().chain(&place.network.pods).find(|r| r.net.contains(&ip.value));
        if let Some(what) = values::unusable(ip.value) {
            let message = format!("{} is {what}; nobody can route to it", ip.value);
            faults.push(
                Fault::new("external-ip", ip.span, message)
                    .help("write an address that your router sends to the nodes"),
            );
        } else if let Some(range) = ours {
            let message =
                format!("the external address {} is in the cluster's own range {}", ip.value, range.net);
            faults.push(
                Fault::new("external-ip", ip.span, message)
                    .help("write an address that your router sends to the nodes"),
            );
        } else if let Some(first) = seen_before(&mut seen, &ip.value, ip.span) {
            faults.push(
                Fault::new("external-ip", ip.span, format!("the external address {} stands twice", ip.value))
                    .label("again here")
                    .also(first, "first here")
                    .help("keep one of them"),
            );
        } else {
            unused(ip.span, &ip.value.to_string(), Family::of(ip.value), families, faults);
            ips.push(ip.value);
        }
    }
    ips
}

/// `loadBalancerSourceRanges`.
pub(super) fn source_ranges(
    raw: &raw::Service,
    r#type: Type,
    families: &[Family],
    faults: &mut Vec<Fault>,
) -> Vec<IpNet> {
    let list = raw.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if r#type != Type::LoadBalancer {
        if let Some(first) = list.first() {
            let message = format!("a {} service has no load-balancer address to filter", type_name(r#type));
            faults.push(
                Fault::new("service-type", first.span, message)
                    .help("write `type: LoadBalancer`, or take `loadBalancerSourceRanges` away"),
            );
        }
        return Vec::new();
    }
    let mut nets = Vec::new();
    for text in list {
        let Some(net) = take(faults, text, values::cidr_of_hosts) else { continue };
        unused(net.span, &net.value.to_string(), Family::of(net.value.addr()), families, faults);
        nets.push(net.value);
    }
    nets
}
