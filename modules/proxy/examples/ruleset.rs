//! Prints the ruleset, filled with so many services of three endpoints, for `nft -f`:
//! `cargo run --release -p homelab-proxy --example ruleset -- 10000`. The rules that only netlink can carry (session
//! affinity of IPv6) are left out.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;

use homelab_model::service::Service;
use homelab_proxy::{NodeView, compile, text};

fn main() {
    let count = std::env::args().nth(1).map_or(0, |n| n.parse().unwrap());
    let view = NodeView {
        name: "node1".to_owned(),
        addresses: vec!["192.168.50.11".parse().unwrap(), "fd00:50::11".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Default::default()
    };
    print!("{}", text::for_nft("homelab", &view));
    let services: Vec<Service> = (0..count).map(service).collect();
    let mut by_set: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, elements) in compile(&services, &view).0 {
        for element in elements {
            by_set.entry(element.set().name(element.is_ipv4())).or_default().push(element.to_nft(&name));
        }
    }
    for (set, elements) in by_set {
        println!("add element inet homelab {set} {{ {} }}", elements.join(", "));
    }
}

fn service(number: u32) -> Service {
    let [_, _, high, low] = number.to_be_bytes();
    let yaml = format!(
        "{{namespace: default, name: s{number}, clusterIPs: [10.96.{high}.{low}], ports: [{{port: 80}}], endpoints: [\
         {{address: 10.244.{high}.{low}, node: node1, ports: {{'': 8080}}}}, \
         {{address: 10.245.{high}.{low}, node: node2, ports: {{'': 8080}}}}, \
         {{address: 10.246.{high}.{low}, node: node3, ports: {{'': 8080}}}}]}}"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}
