//! Cluster addresses and address families of a service: what Kubernetes' API server decides when one is created.

use std::net::IpAddr;

use homelab_model::Family;
use ipnet::IpNet;

use crate::problem::Span;
use crate::yaml::{Node, Value};

use super::reader::{At, Reader};
use super::values;

/// `spec.ipFamilyPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyPolicy {
    /// One family, also where nothing is written.
    Single,
    /// Two where the cluster has two.
    Prefer,
    /// Two, or none.
    Require,
}

fn of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::IPv4 } else { Family::IPv6 }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::IPv4 => "IPv4",
        Family::IPv6 => "IPv6",
    }
}

fn other(family: Family) -> Family {
    match family {
        Family::IPv4 => Family::IPv6,
        Family::IPv6 => Family::IPv4,
    }
}

/// Where a service says that it is headless.
pub(super) fn headless(spec: &Node) -> Option<Span> {
    let none = |node: &Node| matches!(&node.value, Value::Text(t) if t == "None").then_some(node.span);
    spec.get("clusterIP").and_then(|e| none(&e.value)).or_else(|| {
        match &spec.get("clusterIPs")?.value.value {
            Value::List(items) => items.first().and_then(none),
            _ => None,
        }
    })
}

/// `clusterIP` and `clusterIPs`, which must agree.
pub(super) fn cluster_ips(spec: &Node, cidrs: &[IpNet], r: &mut Reader) -> Vec<At<IpAddr>> {
    let text = r.word(spec, "clusterIP");
    let single = text.and_then(|text| r.parse(text, values::address));
    let before = r.faults.len();
    let listed = r.texts(spec, "clusterIPs", values::address);
    if r.faults.len() > before {
        return Vec::new();
    }
    if let (None, Some(first)) = (text, listed.first()) {
        r.refuse("cluster-ip", first.span, "`clusterIPs` needs `clusterIP` with the first of them");
    }
    if let (Some(single), Some(first)) = (single, listed.first())
        && single.value != first.value
    {
        let fault = r.refuse("cluster-ip", first.span, "the first of `clusterIPs` is not `clusterIP`");
        fault.help = format!("write `{}` in both", single.value);
        fault.more.push((single.span, "`clusterIP`".into()));
    }
    if listed.len() > 2 {
        r.refuse("too-many", listed[2].span, "`clusterIPs` holds at most two addresses, one per family");
    } else if let [a, b] = listed.as_slice()
        && a.value.is_ipv4() == b.value.is_ipv4()
    {
        r.refuse("families", b.span, format!("both `clusterIPs` are {}", name(of(b.value)))).help =
            "one per family".into();
    }
    let ips = if listed.is_empty() { single.into_iter().collect() } else { listed };
    for ip in &ips {
        inside(*ip, cidrs, r);
    }
    ips
}

fn inside(ip: At<IpAddr>, cidrs: &[IpNet], r: &mut Reader) {
    let Some(range) = cidrs.iter().find(|c| c.contains(&ip.value)) else {
        if !cidrs.is_empty() {
            let all: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
            let why = format!("{} is outside the service range {}", ip.value, all.join(" and "));
            r.refuse("cluster-ip", ip.span, why).help =
                "take `clusterIP` and `clusterIPs` away to get a free one, or set `network.serviceCIDR`"
                    .into();
        }
        return;
    };
    let ends = [Some(range.network()), ip.value.is_ipv4().then(|| range.broadcast())];
    if ends.contains(&Some(ip.value)) {
        let why = format!("{} is the first or last address of {range}", ip.value);
        r.refuse("cluster-ip", ip.span, why).help = "choose one between them".into();
    }
}

/// The families of a service's addresses, in order.
pub(super) fn resolve(
    listed: &[At<Family>],
    policy: Option<At<FamilyPolicy>>,
    ips: &[At<IpAddr>],
    cidrs: &[IpNet],
    r: &mut Reader,
) -> Vec<Family> {
    let before = r.faults.len();
    for (family, ip) in listed.iter().zip(ips) {
        if family.value != of(ip.value) {
            let fault = r.refuse("families", ip.span, format!("{} is not {}", ip.value, name(family.value)));
            fault.more.push((family.span, "its family, by `ipFamilies`".into()));
        }
    }
    let inferred = ips.iter().skip(listed.len()).map(|ip| At { value: of(ip.value), span: ip.span });
    let wanted: Vec<At<Family>> = listed.iter().copied().chain(inferred).collect();
    let here: Vec<Family> = cidrs.iter().map(|c| of(c.network())).collect();
    let known = |family| here.is_empty() || here.contains(&family);
    for family in wanted.iter().filter(|f| !known(f.value)) {
        // An address outside every range has been told already.
        if r.faults.len() == before && listed.iter().any(|l| l.span == family.span) {
            let why = format!("the cluster has no {} services", name(family.value));
            r.refuse("families", family.span, why).help = "add a range to `network.serviceCIDR`".into();
        }
    }
    let mut families: Vec<Family> = wanted.iter().map(|f| f.value).collect();
    match policy.map_or(FamilyPolicy::Single, |p| p.value) {
        FamilyPolicy::Single => {
            if let Some(second) = wanted.get(1) {
                let why = "two families need `ipFamilyPolicy: PreferDualStack` or `RequireDualStack`";
                r.refuse("families", policy.map_or(second.span, |p| p.span), why);
            }
            if families.is_empty() {
                families.push(here.first().copied().unwrap_or(Family::IPv4));
            }
        }
        dual => {
            let first = families.first().or(here.first()).copied().unwrap_or(Family::IPv4);
            if families.is_empty() {
                families.push(first);
            }
            let both = here.contains(&Family::IPv4) && here.contains(&Family::IPv6);
            let require = dual == FamilyPolicy::Require;
            if let (true, false, false, Some(policy)) = (require, both, here.is_empty(), policy) {
                let why = format!("the cluster has only {} services", name(here[0]));
                r.refuse("families", policy.span, why).help =
                    "write `PreferDualStack`, or add a range to `network.serviceCIDR`".into();
            }
            if families.len() == 1 && (both || require) {
                families.push(other(first));
            }
        }
    }
    families
}
