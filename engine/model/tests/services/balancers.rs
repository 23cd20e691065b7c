//! LoadBalancer services and their pools.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;

use homelab_model::service::Type;
use homelab_model::{Assigned, Declared, Family, Labels, Pool, Ranges, Selector, ServiceAllocation};

use super::services::{assign, ingress, memory, pool, port, service};

pub(crate) const BOTH: [Family; 2] = [Family::IPv4, Family::IPv6];

pub(crate) fn ranges(pools: &[Pool]) -> Ranges {
    Ranges {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        node_ports: (30000, 32767),
        pools: pools.to_vec(),
        taken: BTreeMap::new(),
    }
}

pub(crate) fn fresh(declared: &[Declared], pools: &[Pool]) -> Assigned {
    assign(declared, &BTreeMap::new(), &ranges(pools))
}

pub(crate) fn again(declared: &[Declared], before: &Assigned, pools: &[Pool]) -> Assigned {
    assign(declared, &memory(before), &ranges(pools))
}

pub(crate) fn balancer(name: &str) -> Declared {
    service(name, Type::LoadBalancer)
}

pub(crate) fn with(name: &str, change: impl Fn(&mut Declared)) -> Declared {
    let mut one = balancer(name);
    change(&mut one);
    one
}

/// A service that fixes addresses.
pub(crate) fn fixing(name: &str, addresses: &[&str]) -> Declared {
    with(name, |d| d.service.load_balancer = addresses.iter().map(|a| ingress(a)).collect())
}

/// A service that shares by a key, with its port.
pub(crate) fn sharing(name: &str, key: &str, number: u16) -> Declared {
    with(name, |d| {
        d.request.sharing_key = Some(key.into());
        d.service.ports = vec![port(number)];
    })
}

pub(crate) fn dual(name: &str) -> Declared {
    with(name, |d| d.families = BOTH.to_vec())
}

pub(crate) fn got(assigned: &Assigned, name: &str) -> Vec<String> {
    let found = assigned.services.iter().find(|s| s.name == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {assigned:?}"));
    found.load_balancer.iter().map(|i| i.ip.to_string()).collect()
}

/// The only warning.
pub(crate) fn told(assigned: &Assigned) -> &str {
    match assigned.warnings.as_slice() {
        [one] => one,
        all => panic!("{all:#?}"),
    }
}

pub(crate) fn quiet(assigned: &Assigned) {
    assert_eq!((&assigned.refused, &assigned.warnings), (&vec![], &vec![]));
}

pub(crate) fn allocation(priority: u32, namespaces: &[&str], labels: &[&str]) -> Option<ServiceAllocation> {
    Some(ServiceAllocation {
        priority,
        namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
        service_selectors: labels.iter().map(|label| selector(label)).collect(),
    })
}

/// `key=value`.
pub(crate) fn labels(label: &str) -> Labels {
    let (key, value) = label.split_once('=').unwrap();
    Labels::from([(key.to_owned(), value.to_owned())])
}

pub(crate) fn selector(label: &str) -> Selector {
    Selector { match_labels: labels(label), ..Selector::default() }
}

/// A pool of single addresses.
pub(crate) fn single(name: &str, addresses: &[&str], service_allocation: Option<ServiceAllocation>) -> Pool {
    let ranges: Vec<_> = addresses.iter().map(|a| (*a, *a)).collect();
    Pool { service_allocation, ..pool(name, &ranges) }
}

pub(crate) fn manual(name: &str, addresses: &[&str]) -> Pool {
    Pool { auto_assign: false, ..single(name, addresses, None) }
}

pub(crate) fn v4() -> Pool {
    single("v4", &["192.168.10.100"], None)
}

pub(crate) fn v6() -> Pool {
    pool("v6", &[("fc00:f853:ccd:e799::", "fc00:f853:ccd:e799::f")])
}

pub(crate) fn two() -> Pool {
    pool("dual", &[("192.168.11.100", "192.168.11.100"), ("fc00:f853:ccd:e800::", "fc00:f853:ccd:e800::f")])
}
