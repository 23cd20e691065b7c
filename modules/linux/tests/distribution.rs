//! Endpoints get equal shares of connections, within the bound that the ladder of pool sizes states.
//!
//! Connections are raw packets whose way ends behind postrouting, where the kernel counts them by endpoint. A test of
//! shares fails where chance alone would do so once in 10^9 times.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use common::proxy::{service, view, with_ruleset};
use common::raw::Sender;
use common::wire::{Wire, client};
use common::{in_netns_of, in_new_netns, load, run};
use homelab_linux::Connections;
use homelab_model::service::{Protocol, Service};
use homelab_proxy::element::Element;
use homelab_proxy::{Elements, compile};

const NEVER: f64 = 1e-9;
const CONNECTIONS: u16 = 10_000;
const COUNTER: &str = "table inet shares {
    set seen4 { typeof ip daddr . th dport; counter; flags dynamic; size 65535; }
    set seen6 { typeof ip6 daddr . th dport; counter; flags dynamic; size 65535; }
    chain last { type filter hook postrouting priority 300; policy accept;
        tcp dport 8080 add @seen4 { ip daddr . th dport } drop
        tcp dport 8080 add @seen6 { ip6 daddr . th dport } drop
    }
}
";

/// How likely chance alone makes a chi-square of so much or more: the upper regularised gamma function.
fn likely(chi_square: f64, degrees: usize) -> f64 {
    let (a, x) = (degrees as f64 / 2.0, chi_square / 2.0);
    if degrees == 0 || x <= 0.0 {
        return 1.0;
    }
    // ln gamma(a), from gamma(1) or gamma(1/2) upwards.
    let (mut at, mut ln_gamma) =
        if degrees.is_multiple_of(2) { (1.0, 0.0) } else { (0.5, std::f64::consts::PI.sqrt().ln()) };
    while at < a {
        ln_gamma += f64::ln(at);
        at += 1.0;
    }
    let front = (a * x.ln() - x - ln_gamma).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..1000 {
            term *= x / (a + f64::from(n));
            sum += term;
        }
        return 1.0 - front * sum;
    }
    // The continued fraction, from its far end.
    let fraction = (1..1000).rev().fold(0.0, |below, n| {
        let n = f64::from(n);
        n * (a - n) / (x + 2.0 * n + 1.0 - a + below)
    });
    front / (x + 1.0 - a + fraction)
}

/// The chi-square of counts against shares that are to be expected, and how likely it is.
fn compare(counts: &[f64], weights: &[f64]) -> (f64, f64) {
    assert_eq!(counts.len(), weights.len());
    let (all, weight): (f64, f64) = (counts.iter().sum(), weights.iter().sum());
    let term = |(count, share): (&f64, &f64)| {
        let expected = all * share / weight;
        (count - expected).powi(2) / expected
    };
    let chi_square = counts.iter().zip(weights).map(term).sum();
    (chi_square, likely(chi_square, counts.len() - 1))
}

/// Weights of so many endpoints, half of them with 1.25 times the share of the others.
fn biased(endpoints: usize) -> Vec<f64> {
    (0..endpoints).map(|n| if n < endpoints / 2 { 1.25 } else { 1.0 }).collect()
}

#[test]
fn likelihoods_are_those_of_tables() {
    for (chi_square, degrees, expected) in [
        (3.841, 1, 0.05),
        (18.307, 10, 0.05),
        (1.0, 5, 0.9626),
        (124.342, 100, 0.05),
        (10.828, 1, 0.001),
        (37.325, 1, 1e-9),
    ] {
        let found = likely(chi_square, degrees);
        assert!((found / expected - 1.0).abs() < 0.01, "{chi_square}, {degrees}: {found}");
    }
}

/// The expected counts of a bias have a chi-square that chance does not make; counts that scatter have a larger one.
#[test]
fn a_bias_of_a_quarter_is_none_of_chance() {
    for endpoints in 2..=40 {
        let weights = biased(endpoints);
        let sum: f64 = weights.iter().sum();
        let counts: Vec<f64> = weights.iter().map(|w| w / sum * f64::from(CONNECTIONS)).collect();
        let (chi_square, by_chance) = compare(&counts, &vec![1.0; endpoints]);
        assert!(by_chance < NEVER, "{endpoints} endpoints: {chi_square}, {by_chance:e}");
    }
}

fn endpoint(v4: bool, number: u32) -> String {
    match v4 {
        true => format!("10.244.{}.{}:8080", 2 + number / 250, 1 + number % 250),
        false => format!("[fd00:10:244:2::{:x}]:8080", number + 1),
    }
}

fn vip(v4: bool, endpoints: u32) -> IpAddr {
    let text = match v4 {
        true => format!("10.96.{}.{}", 1 + endpoints / 250, 1 + endpoints % 250),
        false => format!("fd00:10:96::{endpoints:x}"),
    };
    text.parse().unwrap()
}

/// A service with so many endpoints of each family.
fn of_size(endpoints: u32) -> Service {
    let vips = [true, false].map(|v4| vip(v4, endpoints).to_string());
    let all: Vec<String> =
        [true, false].into_iter().flat_map(|v4| (0..endpoints).map(move |n| endpoint(v4, n))).collect();
    service(
        &format!("of-{endpoints}"),
        "TCP",
        &vips.each_ref().map(String::as_str),
        &all.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

fn compiled(services: &[Service]) -> Elements {
    let (elements, conflicts) = compile(services, &view());
    assert_eq!(conflicts, []);
    elements
}

/// How many slots each endpoint behind an address has.
fn slots(elements: &Elements, vip: IpAddr) -> BTreeMap<SocketAddr, u32> {
    let mut slots = BTreeMap::new();
    for element in elements.values().flatten() {
        if let Element::Endpoint { frontend, to, .. } = element
            && frontend.address == vip
        {
            *slots.entry(*to).or_default() += 1;
        }
    }
    slots
}

#[test]
fn no_endpoint_has_more_slots_than_the_bound_allows() {
    for endpoints in [1, 2, 40, 63, 64, 65, 100, 250, 1000, 4096] {
        let elements = compiled(&[of_size(endpoints)]);
        for v4 in [true, false] {
            let slots = slots(&elements, vip(v4, endpoints));
            assert_eq!(slots.len(), endpoints as usize, "every endpoint has one");
            let (least, most) = (slots.values().min().unwrap(), slots.values().max().unwrap());
            assert!(4 * most <= 5 * least, "{endpoints} endpoints: {least} to {most} slots");
            assert!(endpoints > 64 || least == most, "{endpoints} endpoints: {least} to {most} slots");
        }
    }
}

/// What was counted of a set.
fn counted(set: &str) -> BTreeMap<SocketAddr, u32> {
    let listing = run(&format!("nft --numeric list set inet shares {set}"));
    let Some((_, elements)) = listing.split_once("elements = {") else { return BTreeMap::new() };
    let element = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [address, ".", port, "counter", "packets", count, ..] = words[..] else { panic!("{listing}") };
        (SocketAddr::new(address.parse().unwrap(), port.parse().unwrap()), count.parse().unwrap())
    };
    elements.split('}').next().unwrap().split(',').map(element).collect()
}

/// Opens connections and says how many each endpoint got.
fn connect(sender: &Sender, v4: bool, to: IpAddr) -> BTreeMap<SocketAddr, u32> {
    let set = if v4 { "seen4" } else { "seen6" };
    run(&format!("nft flush set inet shares {set}"));
    for number in 0..CONNECTIONS {
        sender.send(client(v4, 21), to, Protocol::Tcp, 20_000 + number, 80);
    }
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let counts = counted(set);
        let all: u32 = counts.values().sum();
        if all == u32::from(CONNECTIONS) {
            return counts;
        }
        assert!(all < u32::from(CONNECTIONS) && Instant::now() < end, "{to}: {all} connections");
    }
}

/// Counts beside weights, endpoint by endpoint; each one that was counted has a weight.
fn beside(counts: &BTreeMap<SocketAddr, u32>, slots: &BTreeMap<SocketAddr, u32>) -> (Vec<f64>, Vec<f64>) {
    assert!(counts.keys().all(|endpoint| slots.contains_key(endpoint)), "{counts:?}");
    let count = |endpoint| f64::from(counts.get(endpoint).copied().unwrap_or_default());
    slots.iter().map(|(endpoint, slots)| (count(endpoint), f64::from(*slots))).unzip()
}

/// A node with these elements, as its clients see it, in a network namespace of its own.
fn with_node(elements: &Elements, work: impl FnOnce(&Sender) + Send) {
    in_new_netns(|| {
        let wire = Wire::new(&[21], &[11]);
        let directory = tempfile::tempdir().unwrap();
        with_ruleset(&directory).sync_services(elements, Connections::All).unwrap();
        let sender = in_netns_of(&wire.clients, || {
            // What is sent while neighbours are looked for may be lost.
            run("ping -c 1 -W 5 10.244.0.1; ping -c 1 -W 5 fd00:10:244::1");
            Sender::open()
        });
        load(COUNTER);
        work(&sender);
    });
}

#[test]
fn connections_are_shared_equally() {
    let sizes: Vec<u32> = (1..=40).chain([64, 100]).collect();
    let elements = compiled(&sizes.iter().map(|size| of_size(*size)).collect::<Vec<_>>());
    with_node(&elements, |sender| {
        let (mut wrong, mut unlikeliest) = (Vec::new(), 1.0_f64);
        for (size, v4) in sizes.iter().flat_map(|size| [(*size, true), (*size, false)]) {
            let to = vip(v4, size);
            let (counts, weights) = beside(&connect(sender, v4, to), &slots(&elements, to));
            assert_eq!(counts.len(), size as usize);
            let (chi_square, by_chance) = compare(&counts, &weights);
            unlikeliest = unlikeliest.min(by_chance);
            if by_chance < NEVER {
                wrong.push(format!("{size} endpoints, {to}: {chi_square}, {by_chance:e}: {counts:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(unlikeliest < 0.5, "shares that never scatter are not drawn by chance: {unlikeliest}");
    });
}

/// The same test on a pool in which half of the endpoints have five slots and half have four.
#[test]
fn a_biased_pool_is_noticed() {
    const ENDPOINTS: u32 = 8;
    let mut elements = compiled(&[of_size(36)]);
    for element in elements.values_mut().flatten() {
        if let Element::Endpoint { slot, to, frontend } = element {
            let index = *slot & 0xff;
            let number = if index < 20 { index % 4 } else { 4 + index % 4 };
            *to = endpoint(frontend.address.is_ipv4(), number).parse().unwrap();
        }
    }
    with_node(&elements, |sender| {
        let to = vip(true, 36);
        let slots = slots(&elements, to);
        assert_eq!(slots.values().copied().collect::<Vec<_>>(), [5, 5, 5, 5, 4, 4, 4, 4]);
        let mut sum = vec![0.0; ENDPOINTS as usize];
        for _ in 0..4 {
            let (counts, _) = beside(&connect(sender, true, to), &slots);
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        let (chi_square, by_chance) = compare(&sum, &[1.0; ENDPOINTS as usize]);
        assert!(by_chance < NEVER, "{chi_square}, {by_chance:e}: {sum:?}");
        let (chi_square, by_chance) = compare(&sum, &biased(ENDPOINTS as usize));
        assert!(by_chance > NEVER, "its own shares: {chi_square}, {by_chance:e}: {sum:?}");
    });
}
