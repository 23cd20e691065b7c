//! Laws of the choice: nothing twice, no order, what is remembered stays.

#![allow(clippy::unwrap_used, reason = "addresses of the tests are good")]

mod services;

use std::collections::{BTreeMap, BTreeSet};

use homelab_model::service::{Policy, Port, Protocol, Service, Type};
use homelab_model::{Declared, Family, Ranges};
use proptest::prelude::*;
use services::{assign, ingress, ip, memory, pool, service};

/// Small ranges, so that everything runs out now and then.
fn tight() -> Ranges {
    Ranges {
        service_cidrs: vec!["10.96.0.0/27".parse().unwrap(), "fd00:10:96::/124".parse().unwrap()],
        node_ports: (30000, 30029),
        pools: vec![
            pool("default", &[("192.168.50.200", "192.168.50.204")]),
            pool("six", &[("fd00:50::1", "fd00:50::2")]),
        ],
    }
}

fn any_service() -> impl Strategy<Value = Declared> {
    let name = (0..24_u8).prop_map(|n| format!("s{n}"));
    let r#type = prop::sample::select(vec![Type::ClusterIp, Type::NodePort, Type::LoadBalancer]);
    let fixed = |most: u8| prop::option::weighted(0.2, 0..most);
    let families = prop::sample::select(vec![
        vec![],
        vec![Family::IPv4],
        vec![Family::IPv6],
        vec![Family::IPv4, Family::IPv6],
        vec![Family::IPv6, Family::IPv4],
    ]);
    let ports = prop::collection::btree_map((0..4_u8, 0..3_usize), fixed(34), 1..4);
    (name, r#type, families, fixed(34), ports, fixed(7), fixed(34), any::<(bool, bool)>()).prop_map(
        |(name, r#type, families, cluster, ports, balancer, health, (local, allocate))| {
            let mut one = service(&name, r#type);
            let outside = r#type != Type::ClusterIp;
            let balanced = r#type == Type::LoadBalancer;
            one.families = families;
            one.node_ports = r#type == Type::NodePort || (balanced && allocate);
            let own = &mut one.service;
            own.cluster_ips = cluster.map(|n| ip(&format!("10.96.0.{n}"))).into_iter().collect();
            own.ports = ports
                .into_iter()
                .map(|((number, protocol), node)| Port {
                    name: format!("p{number}-{protocol}"),
                    protocol: Protocol::ALL[protocol],
                    port: 80 + u16::from(number),
                    node_port: node.filter(|_| outside).map(|n| 30000 + u16::from(n)),
                })
                .collect();
            if balanced {
                own.load_balancer = balancer
                    .map(|n| ingress(&format!("192.168.50.{}", 199 + u16::from(n))))
                    .into_iter()
                    .collect();
                if local {
                    own.external_traffic_policy = Policy::Local;
                    own.health_check_node_port = health.map(|n| 30000 + u16::from(n));
                }
            }
            one
        },
    )
}

/// Services with names of their own.
fn any_services() -> impl Strategy<Value = Vec<Declared>> {
    prop::collection::vec(any_service(), 1..24).prop_map(|mut all| {
        let mut names = BTreeSet::new();
        all.retain(|one| names.insert(one.service.full_name()));
        all
    })
}

/// All that a service holds; what it only shares, by its ports.
fn held(service: &Service) -> Vec<String> {
    let mut held: Vec<String> = service.cluster_ips.iter().map(|ip| format!("cluster {ip}")).collect();
    for port in &service.ports {
        held.extend(port.node_port.map(|n| format!("node {n} {:?}", port.protocol)));
        for one in &service.load_balancer {
            held.push(format!("lan {} {} {:?}", one.ip, port.port, port.protocol));
        }
    }
    held.extend(service.health_check_node_port.map(|n| format!("node {n} {:?}", Protocol::Tcp)));
    held
}

fn complete(declared: &Declared, service: &Service) -> Result<(), TestCaseError> {
    let families: Vec<Family> = service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
    match declared.families.as_slice() {
        [] => prop_assert_eq!(families, [Family::IPv4]),
        wanted => prop_assert_eq!(families, wanted),
    }
    for ip in &declared.service.cluster_ips {
        prop_assert!(service.cluster_ips.contains(ip));
    }
    for (port, before) in service.ports.iter().zip(&declared.service.ports) {
        prop_assert_eq!(port.node_port.is_some(), declared.node_ports || before.node_port.is_some());
        prop_assert!(before.node_port.is_none() || port.node_port == before.node_port);
    }
    let checked = service.r#type == Type::LoadBalancer && service.external_traffic_policy == Policy::Local;
    prop_assert_eq!(service.health_check_node_port.is_some(), checked);
    prop_assert!(service.r#type == Type::LoadBalancer || service.load_balancer.is_empty());
    if !declared.service.load_balancer.is_empty() {
        prop_assert_eq!(&service.load_balancer, &declared.service.load_balancer);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn all_are_served_or_refused_and_nothing_is_held_twice(first in any_services(), second in any_services()) {
        let before = assign(&first, &BTreeMap::new(), &tight());
        for (declared, assigned) in
            [(&first, before.clone()), (&second, assign(&second, &memory(&before), &tight()))]
        {
            let mut names: Vec<String> = assigned.services.iter().map(Service::full_name).collect();
            prop_assert!(names.is_sorted());
            names.extend(assigned.refused.iter().map(|r| r.service.clone()));
            names.sort();
            let mut wanted: Vec<String> = declared.iter().map(|d| d.service.full_name()).collect();
            wanted.sort();
            prop_assert_eq!(names, wanted);
            let mut seen = BTreeSet::new();
            for service in &assigned.services {
                for thing in held(service) {
                    prop_assert!(seen.insert(thing.clone()), "{} twice", thing);
                }
                let from = declared.iter().find(|d| d.service.full_name() == service.full_name());
                complete(from.unwrap(), service)?;
            }
        }
    }

    #[test]
    fn the_order_means_nothing(first in any_services(), (second, other) in any_services().prop_flat_map(|all| {
        (Just(all.clone()), Just(all).prop_shuffle())
    })) {
        let memory = memory(&assign(&first, &BTreeMap::new(), &tight()));
        prop_assert_eq!(assign(&second, &memory, &tight()), assign(&other, &memory, &tight()));
    }

    #[test]
    fn what_is_remembered_stays(all in any_services()) {
        let before = assign(&all, &BTreeMap::new(), &tight());
        let after = assign(&all, &memory(&before), &tight());
        prop_assert_eq!(&after.services, &before.services);
        prop_assert_eq!(after.refused.len(), before.refused.len());
    }

    #[test]
    fn removing_one_moves_nobody(all in any_services(), which in any::<prop::sample::Index>()) {
        let before = assign(&all, &BTreeMap::new(), &tight());
        let mut rest = all;
        let gone = rest.remove(which.index(rest.len())).service.full_name();
        let after = assign(&rest, &memory(&before), &tight());
        // One that was refused because of it may come to its right, and what it fixes is then told to who yields.
        let had = |name: &str| before.services.iter().any(|s| s.full_name() == name);
        let promoted = after.services.iter().any(|s| !had(&s.full_name()));
        for service in before.services.iter().filter(|s| s.full_name() != gone) {
            let now = after.services.iter().find(|s| s.full_name() == service.full_name());
            let mut now = now.cloned();
            // What was not to be had before may be to be had now.
            if let Some(now) = &mut now {
                now.load_balancer.retain(|one| service.load_balancer.contains(one));
            }
            let name = service.full_name();
            let told = format!("service {name} gives ");
            let without = after.refused.iter().any(|r| r.service == name);
            let yielded = promoted && (without || after.warnings.iter().any(|w| w.starts_with(&told)));
            prop_assert!(now.as_ref() == Some(service) || yielded, "{} moved: {:?}", name, now);
        }
    }

    /// Names that sort before all others, as an adversary would choose them.
    #[test]
    fn adding_one_moves_nobody_that_fixes_or_remembers(all in any_services(), new in any_service()) {
        let before = assign(&all, &BTreeMap::new(), &tight());
        let mut new = new;
        new.service.name = "a".into();
        new.service.cluster_ips.clear();
        new.service.load_balancer.clear();
        new.service.health_check_node_port = None;
        new.service.ports.iter_mut().for_each(|p| p.node_port = None);
        let mut more = all;
        more.push(new);
        let after = assign(&more, &memory(&before), &tight());
        for service in &before.services {
            prop_assert!(after.services.contains(service), "{} moved", service.full_name());
        }
    }
}
