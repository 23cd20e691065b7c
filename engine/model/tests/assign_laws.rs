//! Laws of the choice: nothing twice, no order, what is remembered stays.

#![allow(clippy::unwrap_used, reason = "addresses of the tests are good")]

mod services;

use std::collections::{BTreeMap, BTreeSet};

use homelab_model::service::{Policy, Port, Protocol, Service, Type};
use homelab_model::{Assigned, Declared, Family, Labels, Pool, Ranges, Selector, ServiceAllocation};
use proptest::prelude::*;
use services::{assign, endpoint, ingress, ip, memory, pool, service};

/// Small ranges, so that everything runs out now and then.
fn tight() -> Ranges {
    Ranges {
        service_cidrs: vec!["10.96.0.0/27".parse().unwrap(), "fd00:10:96::/124".parse().unwrap()],
        node_ports: (30000, 30029),
        pools: vec![
            pool("default", &[("192.168.50.200", "192.168.50.204")]),
            pool("six", &[("fd00:50::1", "fd00:50::2")]),
            pool("dual", &[("192.168.50.205", "192.168.50.206"), ("fd00:50::5", "fd00:50::6")]),
            Pool { auto_assign: false, ..pool("manual", &[("192.168.50.207", "192.168.50.207")]) },
            Pool {
                service_allocation: Some(ServiceAllocation {
                    priority: 5,
                    namespaces: vec!["default".into()],
                    service_selectors: vec![Selector { match_labels: team(), ..Selector::default() }],
                }),
                ..pool("team", &[("192.168.50.208", "192.168.50.208"), ("fd00:50::8", "fd00:50::8")])
            },
        ],
        taken: BTreeMap::new(),
    }
}

fn team() -> Labels {
    Labels::from([("team".to_owned(), "a".to_owned())])
}

/// What a service asks of the pools.
#[derive(Debug, Clone)]
struct Asked {
    fixed: Option<u8>,
    pool: Option<&'static str>,
    key: Option<&'static str>,
    team: bool,
    both: bool,
    endpoint: Option<bool>,
}

fn any_asked() -> impl Strategy<Value = Asked> {
    let of = |all: &[&'static str]| prop::option::weighted(0.3, prop::sample::select(all.to_vec()));
    let pools = ["default", "dual", "manual", "team", "none"];
    (
        prop::option::weighted(0.2, 0..12_u8),
        of(&pools),
        prop::option::weighted(0.5, prop::sample::select(vec!["k", "l"])),
        any::<(bool, bool)>(),
        any::<Option<bool>>(),
    )
        .prop_map(|(fixed, pool, key, (team, both), endpoint)| Asked {
            fixed,
            pool,
            key,
            team,
            both,
            endpoint,
        })
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
    (name, r#type, families, fixed(34), ports, any_asked(), fixed(34), any::<(bool, bool)>()).prop_map(
        |(name, r#type, families, cluster, ports, asked, health, (local, allocate))| {
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
                own.load_balancer = asked
                    .fixed
                    .map(|n| ingress(&format!("192.168.50.{}", 199 + u16::from(n))))
                    .into_iter()
                    .collect();
                own.labels = if asked.team { team() } else { Labels::new() };
                let address = |first| endpoint(if first { "10.244.0.5" } else { "10.244.1.5" });
                own.endpoints = asked.endpoint.map(address).into_iter().collect();
                one.request.pool = asked.pool.map(str::to_owned);
                one.request.sharing_key = asked.key.map(str::to_owned);
                one.request.require_dual_stack = asked.both && one.families.len() == 2;
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
    balanced(declared, service)
}

/// Addresses are those that are fixed or none; of one pool that is for the service; one of each family.
fn balanced(declared: &Declared, service: &Service) -> Result<(), TestCaseError> {
    let given = &service.load_balancer;
    if given.is_empty() {
        return Ok(());
    }
    let pools = tight().pools;
    let Some(pool) = pools.iter().find(|pool| given.iter().all(|i| pool.holds(i.ip))) else {
        return Err(TestCaseError::fail(format!("{given:?} are of several pools")));
    };
    prop_assert!(pool.is_for(service), "{:?} of {}", given, pool.name);
    prop_assert!(declared.request.pool.as_ref().is_none_or(|asked| *asked == pool.name));
    let families: BTreeSet<Family> = given.iter().map(|i| Family::of(i.ip)).collect();
    prop_assert_eq!(families.len(), given.len());
    prop_assert!(service.cluster_ips.len() == 2 || families.contains(&Family::of(service.cluster_ips[0])));
    prop_assert!(!declared.request.require_dual_stack || given.len() == 2);
    let fixed = &declared.service.load_balancer;
    prop_assert!(fixed.iter().all(|i| given.contains(i)));
    Ok(())
}

/// MetalLB's rule: the same key and different ports, and what answers is any node, or the same.
fn may_share(a: (&Declared, &Service), b: (&Declared, &Service)) -> bool {
    let ports =
        |s: &Service| -> BTreeSet<(Protocol, u16)> { s.ports.iter().map(|p| (p.protocol, p.port)).collect() };
    let backend = |s: &Service| -> Option<BTreeSet<String>> {
        (s.external_traffic_policy == Policy::Local)
            .then(|| s.endpoints.iter().map(|e| e.address.to_string()).collect())
    };
    a.0.request.sharing_key.is_some()
        && a.0.request.sharing_key == b.0.request.sharing_key
        && ports(a.1).is_disjoint(&ports(b.1))
        && backend(a.1) == backend(b.1)
}

fn find<'a>(declared: &'a [Declared], service: &Service) -> &'a Declared {
    declared.iter().find(|d| d.service.full_name() == service.full_name()).unwrap()
}

/// Whether somebody holds an address with whom a service may not share it.
fn denied(address: &str, one: (&Declared, &Service), declared: &[Declared], assigned: &Assigned) -> bool {
    let holds = |s: &&Service| s.load_balancer.iter().any(|i| i.ip == ip(address));
    let mut holders = assigned.services.iter().filter(|s| s.full_name() != one.1.full_name()).filter(holds);
    holders.any(|holder| !may_share(one, (find(declared, holder), holder)))
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
    fn an_address_is_shared_only_by_the_rules(first in any_services(), second in any_services()) {
        let before = assign(&first, &BTreeMap::new(), &tight());
        let after = assign(&second, &memory(&before), &tight());
        for (declared, assigned) in [(&first, &before), (&second, &after)] {
            for service in &assigned.services {
                let from = find(declared, service);
                for one in &service.load_balancer {
                    let address = one.ip.to_string();
                    prop_assert!(!denied(&address, (from, service), declared, assigned), "{address}");
                }
            }
        }
    }

    /// Whoever has no address was told so, and asked for one that others have, or found every one taken.
    #[test]
    fn only_those_go_without_for_whom_there_is_none(first in any_services(), second in any_services()) {
        let before = assign(&first, &BTreeMap::new(), &tight());
        let after = assign(&second, &memory(&before), &tight());
        for service in after.services.iter().filter(|s| s.r#type == Type::LoadBalancer) {
            if !service.load_balancer.is_empty() {
                continue;
            }
            let from = find(&second, service);
            let told = format!("service {} has no ", service.full_name());
            prop_assert!(after.warnings.iter().any(|w| w.starts_with(&told)), "{}", told);
            prop_assert!(!service.cluster_ips.is_empty());
            let asked = from.request.pool.as_deref();
            let usable = |pool: &&Pool| {
                pool.is_for(service) && asked.map_or(pool.auto_assign, |asked| pool.name == asked)
            };
            for pool in tight().pools.iter().filter(usable) {
                let free = |family: Family| (0..=9).any(|n| {
                    let address = match family {
                        Family::IPv4 => format!("192.168.50.{}", 200 + n),
                        Family::IPv6 => format!("fd00:50::{n}"),
                    };
                    pool.holds(ip(&address)) && !denied(&address, (from, service), &second, &after)
                });
                let mut families = service.cluster_ips.iter().map(|ip| Family::of(*ip));
                let some = match (from.service.load_balancer.as_slice(), from.request.require_dual_stack) {
                    ([], true) => families.all(free),
                    ([], false) => families.any(free),
                    (_, true) => false,
                    ([fixed, ..], false) => {
                        families.any(|f| f == Family::of(fixed.ip))
                            && pool.holds(fixed.ip)
                            && !denied(&fixed.ip.to_string(), (from, service), &second, &after)
                    }
                };
                prop_assert!(!some, "{} could have one of {}: {:?}", service.full_name(), pool.name, after);
            }
        }
    }

    #[test]
    fn what_is_fixed_beats_what_is_remembered(all in any_services(), new in any_service()) {
        let before = assign(&all, &BTreeMap::new(), &tight());
        let mut new = new;
        new.service.name = "z".into();
        new.service.r#type = Type::LoadBalancer;
        new.service.load_balancer = vec![ingress("192.168.50.202")];
        new.service.cluster_ips.clear();
        new.families.clear();
        new.node_ports = false;
        new.service.health_check_node_port = None;
        new.service.external_traffic_policy = Policy::Cluster;
        new.request = Default::default();
        new.service.ports.iter_mut().for_each(|p| p.node_port = None);
        let fixed = |d: &Declared| d.service.load_balancer.contains(&ingress("192.168.50.202"));
        let mut more = all;
        more.iter_mut().filter(|d| fixed(d)).for_each(|d| d.service.load_balancer.clear());
        more.push(new);
        let after = assign(&more, &memory(&before), &tight());
        if let Some(z) = after.services.iter().find(|s| s.name == "z") {
            prop_assert_eq!(&z.load_balancer, &[ingress("192.168.50.202")]);
        }
    }

    #[test]
    fn the_order_means_nothing(first in any_services(), (second, other) in any_services().prop_flat_map(|all| {
        (Just(all.clone()), Just(all).prop_shuffle())
    })) {
        let memory = memory(&assign(&first, &BTreeMap::new(), &tight()));
        prop_assert_eq!(assign(&second, &memory, &tight()), assign(&other, &memory, &tight()));
    }

    /// An apply leaves nothing to do, whatever was there before.
    #[test]
    fn what_is_remembered_stays(first in any_services(), all in any_services()) {
        let before = assign(&first, &BTreeMap::new(), &tight());
        for memory_before in [BTreeMap::new(), memory(&before)] {
            let once = assign(&all, &memory_before, &tight());
            let twice = assign(&all, &memory(&once), &tight());
            prop_assert_eq!(&twice.services, &once.services);
            prop_assert_eq!(twice.refused.len(), once.refused.len());
        }
    }

    #[test]
    fn removing_one_moves_nobody(all in any_services(), which in any::<prop::sample::Index>()) {
        let before = assign(&all, &BTreeMap::new(), &tight());
        let mut rest = all;
        let gone = rest.remove(which.index(rest.len())).service.full_name();
        let after = assign(&rest, &memory(&before), &tight());
        // One that did not get what it fixes because of it may come to its right, which is then told to who yields.
        let had = |s: &Service| before.services.iter().find(|b| b.full_name() == s.full_name());
        let gains = |s: &Service| {
            let fixes = !find(&rest, s).service.load_balancer.is_empty();
            had(s).is_none_or(|had| fixes && had.load_balancer != s.load_balancer)
        };
        let promoted = after.services.iter().any(gains);
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
