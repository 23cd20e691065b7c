//! What holds for any services.
#![allow(clippy::unwrap_used)]

mod random;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use homelab_model::service::{Protocol, Service};
use homelab_proxy::bytes::Bytes;
use homelab_proxy::delta::delta;
use homelab_proxy::element::{Element, Frontend, Set};
use homelab_proxy::evaluate::{Machine, Outcome, Packet};
use homelab_proxy::stale::Remembered;
use homelab_proxy::{Compiled, Elements, Source, compile, text};
use proptest::prelude::*;
use random::{services, view};

/// Key and value of every element, by set: what the kernel would hold.
fn loaded(elements: &Elements) -> HashMap<(String, String), (String, Element)> {
    let mut all = HashMap::new();
    for (service, elements) in elements {
        for element in elements {
            let key = (element.set().name(element.is_ipv4()), element.key());
            let other = all.insert(key.clone(), (service.clone(), *element));
            assert_eq!(other, None, "two elements with the key {key:?}");
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Deletions before additions, each of them possible: no key is deleted that is not there, or added twice.
    #[test]
    fn a_delta_makes_one_state_of_the_other(before in services(), after in services()) {
        let (before, _) = compile(&before, &view());
        let (after, _) = compile(&after, &view());
        let mut kernel = loaded(&before);
        let change = delta(&before, &after);
        for (service, element) in &change.delete {
            let key = (element.set().name(element.is_ipv4()), element.key());
            prop_assert_eq!(kernel.remove(&key), Some(((*service).to_owned(), *element)));
        }
        for (service, element) in &change.add {
            let key = (element.set().name(element.is_ipv4()), element.key());
            prop_assert_eq!(kernel.insert(key, ((*service).to_owned(), *element)), None);
        }
        prop_assert_eq!(kernel, loaded(&after));
        prop_assert!(delta(&after, &after).is_empty());
    }

    /// What the kernel stores is read back as what it was.
    #[test]
    fn bytes_are_read_back(services in services()) {
        for element in compile(&services, &view()).0.values().flatten() {
            let bytes = Bytes::from(element);
            prop_assert_eq!(bytes.element(element.set(), element.is_ipv4()), Some(*element));
            prop_assert!(bytes.key.len() % 4 == 0 && bytes.key.len() <= 64, "{bytes:?}");
        }
    }

    /// Whatever somebody else puts into a set is no panic, and never taken for something that it is not.
    #[test]
    fn lines_are_read_back(services in services()) {
        for element in compile(&services, &view()).0.values().flatten() {
            prop_assert_eq!(Element::from_line(&element.to_line()), Some(*element));
        }
    }

    #[test]
    fn services_are_read_back(services in services()) {
        let text = serde_json::to_string(&services).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<homelab_model::service::Service>>(&text).unwrap(), services);
    }

    #[test]
    fn foreign_bytes_are_no_element_or_a_whole_one(
        key in prop::collection::vec(any::<u8>(), 0..65),
        end in prop::option::of(prop::collection::vec(any::<u8>(), 0..65)),
        set in prop::sample::select(Set::all()),
        v4 in any::<bool>(),
    ) {
        let bytes = Bytes { key, data: end.clone(), key_end: end };
        if let Some(client) = bytes.remembered(v4) {
            prop_assert_eq!(&Bytes::from(&client), &bytes);
        }
        if let Some(element) = bytes.element(set, v4) {
            prop_assert_eq!(Bytes::from(&element), bytes);
        }
    }

    /// So is a client that the kernel remembers.
    #[test]
    fn remembered_clients_are_read_back(
        addresses in prop_oneof![any::<[Ipv4Addr; 3]>().prop_map(|a| a.map(IpAddr::from)),
                                 any::<[Ipv6Addr; 3]>().prop_map(|a| a.map(IpAddr::from))],
        protocol in prop::sample::select(&Protocol::ALL[..]),
        ports in any::<[u16; 2]>(),
    ) {
        let [address, client, endpoint] = addresses;
        let frontend = Frontend { address, protocol, port: ports[0] };
        let client = Remembered { frontend, client, endpoint: SocketAddr::new(endpoint, ports[1]) };
        prop_assert_eq!(Bytes::from(&client).remembered(address.is_ipv4()), Some(client));
        prop_assert_eq!(Bytes::from(&client).remembered(!address.is_ipv4()), None);
    }

    /// The order of services and endpoints in a source is no reason to change anything.
    #[test]
    fn order_does_not_matter(services in services()) {
        let mut turned = services.clone();
        turned.reverse();
        turned.iter_mut().for_each(|service| service.endpoints.reverse());
        prop_assert_eq!(compile(&services, &view()), compile(&turned, &view()));
    }

    /// Every endpoint of a pool gets its share, within the ladder's bound, and nothing else gets any.
    #[test]
    fn shares_keep_within_the_bound(services in services()) {
        let (elements, _) = compile(&services, &view());
        let mut shares: HashMap<(Frontend, u32), HashMap<SocketAddr, u32>> = HashMap::new();
        for element in elements.values().flatten() {
            if let Element::Endpoint { frontend, slot, to } = element {
                *shares.entry((*frontend, slot >> 15)).or_default().entry(*to).or_default() += 1;
            }
        }
        for (pool, shares) in shares {
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            prop_assert!(4 * most <= 5 * least, "{pool:?}: {shares:?}");
        }
    }

    /// A frontend is served, rejected or dropped, and never leads to an endpoint that a source did not list.
    #[test]
    fn every_frontend_has_an_answer(services in services(), from_pod in any::<bool>()) {
        let (elements, _) = compile(&services, &view());
        let machine = Machine::new(&view(), &elements);
        let listed: HashSet<_> = services.iter().flat_map(|s| &s.endpoints).map(|e| e.address).collect();
        let frontends: BTreeSet<Frontend> = elements
            .values()
            .flatten()
            .filter_map(|element| match element {
                Element::Served(f) | Element::Plain(f) | Element::Unserved(f) | Element::Dropped(f) => Some(*f),
                _ => None,
            })
            .collect();
        for to in frontends {
            let source = match (to.address.is_ipv4(), from_pod) {
                (true, true) => "10.244.9.9",
                (true, false) => "198.51.100.9",
                (false, true) => "fd00:10:244:9::9",
                (false, false) => "2001:db8::9",
            };
            let trace = machine.run(Packet { source: source.parse().unwrap(), to });
            match trace.outcome {
                Outcome::Untouched => prop_assert!(false, "{to} from {source} is let through: {trace:?}"),
                Outcome::Translated(endpoints) => {
                    prop_assert!(endpoints.keys().all(|endpoint| listed.contains(&endpoint.ip())));
                }
                Outcome::Dropped | Outcome::Rejected => prop_assert!(!trace.steps.is_empty()),
            }
        }
    }
}

/// The chains and sets are made from the node alone, so they cannot grow with services. And no set holds verdicts: an
/// element with a jump would have the kernel walk all of them at every change.
#[test]
fn a_ruleset_of_fixed_size_without_verdicts_k8s_135639() {
    let sets = text::sets(&view());
    assert!(sets.iter().flat_map(|set| &set.lines).all(|line| !line.contains("verdict")), "{sets:?}");
    let named: BTreeSet<&String> = sets.iter().map(|set| &set.name).collect();
    assert_eq!(named.len(), Set::all().len() * 2, "one per set and family");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Service by service, in whatever order and from whatever source: the same as all at once, and what is said to have
    /// changed is what did. Two sources may have services of the same addresses.
    #[test]
    fn services_one_by_one_are_the_same_as_all_at_once(histories in prop::collection::vec((services(), any::<bool>()), 1..6)) {
        let mut compiled = Compiled::new(view());
        let mut told = Elements::new();
        let mut truth: BTreeMap<String, (Source, Arc<Service>)> = BTreeMap::new();
        for (services, first) in histories {
            let source = if first { Source::File } else { Source::Kubernetes };
            // The same services again under other names: every address is wanted twice.
            let named = services.into_iter().map(|mut service| {
                service.name = format!("{}{}", if first { "z" } else { "a" }, service.name);
                (service.full_name(), (source, Arc::new(service)))
            });
            let after: BTreeMap<_, _> = named.collect();
            let gone: Vec<String> =
                truth.iter().filter(|(name, (of, _))| *of == source && !after.contains_key(*name)).map(|(name, _)| name.clone()).collect();
            truth.retain(|name, _| !gone.contains(name));
            truth.extend(after.clone());
            let changes = gone.into_iter().map(|name| (name, None)).chain(after.into_iter().map(|(name, one)| (name, Some(one))));
            for (name, elements) in compiled.update(changes) {
                prop_assert_ne!(told.get(&name), Some(&elements), "{} is no change", name);
                told.insert(name, elements);
            }
        }
        // Names decide within a source, so names that begin with the source decide as both do.
        let ranked = truth.iter().map(|(name, (source, service))| {
            let rank = if *source == Source::File { "0" } else { "1" };
            (name, Service { namespace: format!("{rank}{}", service.namespace), ..Service::clone(service) })
        });
        let (names, all): (Vec<_>, Vec<_>) = ranked.unzip();
        let (expected, _) = compile(&all, &view());
        for (name, service) in names.into_iter().zip(&all) {
            prop_assert_eq!(compiled.elements().get(name), expected.get(&service.full_name()), "{}", name);
        }
        prop_assert_eq!(compiled.elements().len(), expected.len());
        prop_assert_eq!(compiled.count(), expected.values().map(Vec::len).sum::<usize>());
        prop_assert_eq!(compiled.endpoints(), all.iter().map(|service| service.endpoints.len()).sum::<usize>());
        let full = |all: &Elements| {
            let some = all.iter().filter(|(_, elements)| !elements.is_empty());
            some.map(|(name, elements)| (name.clone(), elements.clone())).collect::<Elements>()
        };
        prop_assert_eq!(full(&told), full(compiled.elements()));
        loaded(compiled.elements());
    }
}
