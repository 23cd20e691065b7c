//! Prints the ruleset: `cargo run -p homelab-proxy --example ruleset | nft -c -f -`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

fn main() {
    let view = homelab_proxy::NodeView {
        name: "node1".to_owned(),
        addresses: vec!["192.168.50.11".parse().unwrap(), "fd00:50::11".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Default::default()
    };
    print!("{}", homelab_proxy::rules::to_nft("homelab", &view));
}
