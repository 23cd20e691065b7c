//! What the facts of a node make of its spec, its problems and the plan's warnings.
#![cfg(test)]

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;

use fixtures::{cluster, net};
use homelab_driver::{Resolution, resolve};
use homelab_model::{
    AddressFact, Cluster, Declared, Facts, ForwardDrop, LinkFact, Module, NodeObject, Observed, Rival,
    RouteFact, Spec, Sysctl,
};

const TWO: [(&str, &str); 2] = [("node1", "192.168.50.11"), ("node2", "192.168.50.12")];

/// `node1` as it is before anything of ours.
fn observed() -> Observed {
    let eth0 = LinkFact { name: "eth0".into(), mtu: 1500, up: true, ..LinkFact::default() };
    let facts = Facts {
        systemd: Some("252".into()),
        nft: Some("present".into()),
        kernel: "6.12.0".into(),
        arch: "x86_64".into(),
        links: vec![eth0],
        addresses: vec![AddressFact { link: "eth0".into(), address: net("192.168.50.11/24") }],
        ..Facts::default()
    };
    Observed { facts, ..Observed::default() }
}

fn dual_stack() -> Cluster {
    let mut cluster = cluster(&TWO);
    cluster.network.pod_cidrs.push(net("fd00:10:244::/56"));
    cluster.network.node_prefixes.push(64);
    cluster
}

fn resolved(cluster: &Cluster, observed: &Observed) -> Resolution {
    resolve(cluster, &BTreeMap::from([("node1".to_owned(), observed)]), &BTreeMap::new()).expect("ranges fit")
}

/// What stands in the way on `node1`.
fn problems(cluster: &Cluster, observed: &Observed) -> Vec<String> {
    let problems = resolved(cluster, observed).problems.remove("node1").unwrap_or_default();
    problems.into_iter().map(|p| format!("{}; {}", p.message, p.help)).collect()
}

#[test]
fn a_kernel_without_ipv6_is_a_problem_only_where_the_cluster_uses_it() {
    let mut observed = observed();
    assert_eq!(problems(&dual_stack(), &observed), Vec::<String>::new());
    observed.facts.ipv6_disabled = true;
    assert_eq!(problems(&cluster(&TWO), &observed), Vec::<String>::new());
    assert!(resolved(&cluster(&TWO), &observed).specs["node1"].ipv6_disabled);
    let found = problems(&dual_stack(), &observed);
    assert!(
        matches!(&found[..], [one] if one.contains("no IPv6") && one.contains("ipv6.disable=1")),
        "{found:?}"
    );
}

#[test]
fn a_firewall_that_drops_what_pods_send_is_a_warning_with_the_way_out() {
    let mut observed = observed();
    let chain = |family: &str, maker: Option<&str>| ForwardDrop {
        family: family.into(),
        table: "filter".into(),
        chain: "FORWARD".into(),
        maker: maker.map(str::to_owned),
    };
    assert_eq!(resolved(&cluster(&TWO), &observed).warnings, [""; 0]);
    observed.facts.forward_drops =
        vec![chain("ip", Some("docker")), chain("ip6", Some("ufw")), chain("inet", None)];
    let warnings = resolved(&cluster(&TWO), &observed).warnings;
    assert!(
        matches!(&warnings[..], [docker, inet]
            if docker.starts_with("node1: the chain ip filter FORWARD drops")
            && docker.contains("iptables -I DOCKER-USER -i homelab0 -j ACCEPT")
            && docker.contains("iptables -I DOCKER-USER -o homelab0 -j ACCEPT")
            && inet.contains("inet filter FORWARD")),
        "no IPv6 pods, no word of ip6: {warnings:?}"
    );
    let warnings = resolved(&dual_stack(), &observed).warnings;
    assert!(warnings.len() == 3 && warnings[1].contains("ufw route allow in on homelab0"), "{warnings:?}");
}

/// One service with an address.
fn with_service(mut cluster: Cluster) -> Cluster {
    cluster.network.service_cidrs = vec![net("10.96.0.0/16")];
    let mut service = fixtures::service("web", 80);
    service.cluster_ips = vec!["10.96.0.10".parse().expect("an address")];
    let declared = Declared { service, families: vec![], node_ports: false, containers: vec![] };
    cluster.services = vec![declared];
    cluster
}

#[test]
fn another_proxy_of_services_is_a_warning_with_the_way_out() {
    let mut observed = observed();
    let four = with_service(cluster(&TWO));
    let six = with_service(dual_stack());
    assert_eq!(resolved(&four, &observed).warnings, [""; 0]);
    let family = || "ip6".to_owned();
    observed.facts.rival_proxies = vec![Rival::Iptables { family: family() }];
    assert_eq!(resolved(&four, &observed).warnings, [""; 0], "no IPv6 pods, no word of ip6");
    let all = [
        Rival::Process,
        Rival::Nftables { family: "ip".into() },
        Rival::Iptables { family: family() },
        Rival::IptablesLegacy { family: family() },
        Rival::Ipvs,
    ];
    observed.facts.rival_proxies = all.to_vec();
    assert_eq!(
        resolved(&six, &observed).warnings,
        [
            "node1: kube-proxy runs here or has left rules, which may take packets for service addresses before \
          homelab does; homelab does not touch them: \
          the process kube-proxy (kubectl -n kube-system delete daemonset kube-proxy, before anything else); \
          the table ip kube-proxy (nft delete table ip kube-proxy); \
          the chain ip6 nat KUBE-SERVICES (kube-proxy --cleanup, or a reboot); \
          the table ip6 nat of iptables-legacy, which homelab cannot read (look with ip6tables-legacy-save -t nat; if \
          it has KUBE-SERVICES: kube-proxy --cleanup, or a reboot); \
          the link kube-ipvs0 (kube-proxy --cleanup, or ip link del kube-ipvs0 and ipvsadm -C)"
        ]
    );
    // Of iptables-legacy nobody knows whose its rules are.
    observed.facts.rival_proxies = vec![Rival::IptablesLegacy { family: "ip".into() }];
    let warnings = resolved(&four, &observed).warnings;
    assert!(
        matches!(&warnings[..], [one] if one.starts_with("node1: kube-proxy may have left rules here, which")
            && one.contains("iptables-legacy-save -t nat")),
        "{warnings:?}"
    );
    // Without services of homelab's, kube-proxy is who has to be there.
    assert_eq!(resolved(&dual_stack(), &observed).warnings, [""; 0]);
}

#[test]
fn links_that_would_lose_their_router_keep_taking_advertisements() {
    let of = |observed: &Observed, cluster: &Cluster| {
        resolved(cluster, observed).specs["node1"].router_advertisements.clone()
    };
    let mut observed = observed();
    assert_eq!(of(&observed, &dual_stack()), [""; 0], "somebody else takes them");
    observed.facts.links[0].kernel_ra = true;
    assert_eq!(of(&observed, &dual_stack()), ["eth0"]);
    assert_eq!(of(&observed, &cluster(&TWO)), [""; 0], "IPv6 is not forwarded");
    // Another link counts where a router was learned from it.
    let uplink = LinkFact { name: "a0".into(), mtu: 1500, up: true, kernel_ra: true, ..LinkFact::default() };
    observed.facts.links.push(uplink);
    assert_eq!(of(&observed, &dual_stack()), ["eth0"]);
    observed.facts.routes =
        vec![RouteFact { destination: net("::/0"), link: Some("a0".into()), protocol: 9 }];
    assert_eq!(of(&observed, &dual_stack()), ["a0", "eth0"]);
    // After the apply: accept_ra is 2 now, and on the node's record.
    let before = of(&observed, &dual_stack());
    for (link, name) in observed.facts.links.iter_mut().zip(["eth0", "a0"]) {
        link.kernel_ra = false;
        let key = format!("net.ipv6.conf.{name}.accept_ra");
        let spec = Spec::Sysctl(Sysctl { key, link: None, value: "2".into() });
        observed.objects.push(NodeObject { module: Module::Vtep, spec });
    }
    assert_eq!(of(&observed, &dual_stack()), before);
}
