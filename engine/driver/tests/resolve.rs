//! What the facts of a node make of its spec, its problems and the plan's warnings.
#![cfg(test)]

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;

use fixtures::{cluster, net};
use homelab_driver::{Resolution, resolve};
use homelab_model::service::{Service, Type};
use homelab_model::{
    AddressFact, AttachmentFact, Balancer, BgpSettings, Cluster, Declared, Facts, ForwardDrop,
    L2Advertisement, LABEL_EXCLUDE, LABEL_HOSTNAME, LABEL_ZONE, Labels, LinkFact, Module, NodeObject,
    Observed, Pool, PoolRange, Request, Rival, RouteFact, Selector, Spec, Sysctl,
};
use serde_json::json;

const TWO: [(&str, &str); 2] = [("node1", "192.168.50.11"), ("node2", "192.168.50.12")];

#[path = "resolve/containers.rs"]
mod containers;

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

#[test]
fn flannels_range_is_what_the_node_has_where_the_file_leaves_it_open() {
    let mut observed = observed();
    let range =
        |cluster: &Cluster, observed: &Observed| resolved(cluster, observed).specs["node1"].pod_cidrs.clone();
    assert_eq!(range(&cluster(&TWO), &observed), [net("10.244.0.0/24")]);
    observed.facts.flannel_subnets = vec![net("10.244.7.1/24")];
    assert_eq!(range(&cluster(&TWO), &observed), [net("10.244.7.0/24")]);
    // Of another network, or of another size, it is none that the node could have.
    for other in ["10.42.7.1/24", "10.244.7.1/25"] {
        observed.facts.flannel_subnets = vec![net(other)];
        assert_eq!(range(&cluster(&TWO), &observed), [net("10.244.0.0/24")], "{other}");
    }
    // The file comes first.
    observed.facts.flannel_subnets = vec![net("10.244.7.1/24")];
    let mut fixed = cluster(&TWO);
    fixed.nodes[0].pod_cidrs = vec![net("10.244.3.0/24")];
    assert_eq!(range(&fixed, &observed), [net("10.244.3.0/24")]);
    assert_eq!(resolved(&fixed, &observed).warnings, [""; 0]);
}

#[test]
fn pods_of_an_earlier_range_are_named() {
    let mut observed = observed();
    let mut spec = resolved(&cluster(&TWO), &observed).specs["node1"].clone();
    spec.pod_cidrs = vec![net("10.99.0.0/24")];
    observed.spec = Some(spec);
    let attachment = |pod: Option<&str>, address: &str| AttachmentFact {
        container: "c1".into(),
        interface: "eth0".into(),
        pod: pod.map(str::to_owned),
        link: "hl1".into(),
        addresses: vec![address.parse().expect("an address")],
    };
    observed.facts.attachments = vec![
        attachment(Some("default/web"), "10.99.0.5"),
        attachment(None, "10.99.0.6"),
        // Of a list of somebody's own, with a range of its own.
        attachment(Some("default/other"), "192.168.99.5"),
    ];
    let warnings = resolved(&cluster(&TWO), &observed).warnings;
    assert_eq!(
        warnings,
        [
            "node1: the pod range 10.99.0.0/24 becomes 10.244.0.0/24; running pods keep their old addresses and lose \
             the network until they are started anew: default/web, c1"
        ]
    );
}

/// One service with an address.
fn with_service(mut cluster: Cluster) -> Cluster {
    cluster.network.service_cidrs = vec![net("10.96.0.0/16")];
    let mut service = fixtures::service("web", 80);
    service.cluster_ips = vec!["10.96.0.10".parse().expect("an address")];
    cluster.services = vec![declared(service)];
    cluster
}

fn declared(service: Service) -> Declared {
    Declared { service, families: vec![], node_ports: false, containers: vec![], request: Request::default() }
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
    // Those of other makers are no kube-proxy.
    observed.facts.rival_proxies =
        vec![Rival::BuiltIn { program: "k3s".into() }, Rival::Cilium, Rival::KubeRouter, Rival::CalicoBpf];
    let warnings = resolved(&four, &observed).warnings;
    let parts = [
        "node1: another service proxy runs here or has left rules, which",
        "kube-proxy of k3s, which loads its rules when it is ready (disable-kube-proxy: true in \
         /etc/rancher/k3s/config.yaml of every server, then k3s-killall.sh on each node, or a reboot)",
        "delete daemonset cilium",
        "kube-router --cleanup-config",
        "bpfEnabled",
    ];
    assert!(warnings.len() == 1 && parts.iter().all(|part| warnings[0].contains(part)), "{warnings:?}");
    observed.facts.rival_proxies.truncate(1);
    assert!(resolved(&four, &observed).warnings[0].starts_with("node1: kube-proxy runs here"));
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
fn another_program_for_load_balancer_addresses_is_a_warning_k3s_269_metallb_1871() {
    let mut observed = observed();
    observed.facts.rival_balancers = vec![Balancer::MetalLb, Balancer::ServiceLb];
    assert_eq!(resolved(&cluster(&TWO), &observed).warnings, [""; 0], "no pools, no addresses of ours");
    let mut with_pool = cluster(&TWO);
    with_pool.load_balancer.pools = vec![pool("default", "192.168.50.200")];
    let warnings = resolved(&with_pool, &observed).warnings;
    assert_eq!(
        warnings,
        [
            "node1: services of type LoadBalancer get addresses here from somebody else, too, who may answer for those \
             of homelab or take their ports; homelab does not touch it: MetalLB's speaker (kubectl -n metallb-system \
             delete daemonset speaker, and deployment controller); ServiceLB of k3s (k3s server --disable=servicelb, \
             which takes its pods svclb-... away)"
        ]
    );
    observed.facts.rival_balancers = vec![Balancer::KubeVip, Balancer::PureLb];
    let warnings = resolved(&with_pool, &observed).warnings;
    assert!(
        warnings[0].contains("svc_enable to false") && warnings[0].contains("lbnodeagent"),
        "{warnings:?}"
    );
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

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn pool(name: &str, address: &str) -> Pool {
    let ip = address.parse().expect("an address");
    Pool {
        name: name.to_owned(),
        addresses: vec![PoolRange { first: ip, last: ip }],
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }
}

fn advertisement(name: &str, pools: &[&str], rack: Option<&str>) -> L2Advertisement {
    let selector = |rack| Selector { match_labels: labels(&[("rack", rack)]), ..Selector::default() };
    L2Advertisement {
        name: name.to_owned(),
        ip_address_pools: pools.iter().map(|p| (*p).to_owned()).collect(),
        node_selectors: rack.map(selector).into_iter().collect(),
        ..L2Advertisement::default()
    }
}

/// Two pools with an address each; a LoadBalancer service `web`.
fn balanced() -> Cluster {
    let mut cluster = cluster(&[TWO[1], TWO[0]]);
    cluster.nodes[1].zone = Some("attic".into());
    cluster.nodes[1].labels = labels(&[("rack", "a")]);
    cluster.load_balancer.pools = vec![pool("second", "192.168.50.201"), pool("first", "192.168.50.200")];
    cluster.load_balancer.l2_advertisements = vec![advertisement("lan", &[], None)];
    let mut web = fixtures::service("web", 80);
    web.r#type = Type::LoadBalancer;
    web.cluster_ips.truncate(1);
    cluster.services = vec![declared(web)];
    cluster
}

#[test]
fn speakers_are_told_of_nodes_pools_and_advertisements_in_one_order() {
    let none = resolved(&cluster(&TWO), &observed());
    assert_eq!(none.specs["node1"].speaker, None);
    let mut cluster = balanced();
    cluster.load_balancer.port = 7999;
    let found = resolved(&cluster, &observed());
    assert_eq!(found.warnings, [""; 0]);
    let spec = found.specs["node1"].speaker.clone().expect("a speaker");
    assert_eq!(spec.port, 7999);
    let names: Vec<&str> = spec.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["node1", "node2"]);
    let all = [(LABEL_HOSTNAME, "node1"), (LABEL_ZONE, "attic"), ("rack", "a")];
    assert_eq!(spec.nodes[0].labels, labels(&all));
    assert_eq!(spec.nodes[1].labels, labels(&[(LABEL_HOSTNAME, "node2")]));
    assert_eq!(spec.pools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    assert_eq!(spec.advertisements, cluster.load_balancer.l2_advertisements);
    cluster.nodes.reverse();
    cluster.load_balancer.pools.reverse();
    assert_eq!(resolved(&cluster, &observed()).specs["node1"].speaker, Some(spec));
}

/// metallb#2274, #2676: the exclude label silences control planes without a word.
#[test]
fn a_node_with_the_exclude_label_is_named_once() {
    let mut cluster = balanced();
    cluster.nodes[1].labels = labels(&[(LABEL_EXCLUDE, "")]);
    let told = |cluster: &Cluster| resolved(cluster, &observed()).warnings;
    let node1 = "node1 announces no load-balancer addresses: it has the label node.kubernetes.io/exclude-from-external-load-balancers";
    assert_eq!(told(&cluster), [node1]);
    cluster.nodes[0].labels = labels(&[(LABEL_EXCLUDE, "false")]);
    assert_eq!(
        told(&cluster),
        [
            node1.to_owned(),
            node1.replace("node1", "node2"),
            "service default/web: nobody announces its load-balancer address 192.168.50.201: all nodes that could have the \
             label node.kubernetes.io/exclude-from-external-load-balancers"
                .to_owned(),
        ]
    );
    cluster.load_balancer.pools.clear();
    assert!(!told(&cluster).iter().any(|w| w.contains("announces")), "nothing to announce, nothing to tell");
}

/// metallb l2tests "Service Selector" and "Pool and Service Selectors together", as far as a plan can tell: any of the
/// selectors, and both pool and service.
#[test]
fn an_address_that_nobody_announces_is_told() {
    let told = |advertisements: &[L2Advertisement], team: &str| {
        let mut cluster = balanced();
        cluster.load_balancer.l2_advertisements = advertisements.to_vec();
        cluster.services[0].service.labels = labels(&[("app", team)]);
        resolved(&cluster, &observed()).warnings
    };
    let app = |app| Selector { match_labels: labels(&[("app", app)]), ..Selector::default() };
    let mut selecting = advertisement("apps", &["second"], None);
    selecting.service_selectors = vec![app("nginx"), app("apache")];
    let silent = "service default/web: nobody announces its load-balancer address 192.168.50.201: ";
    let nobody = format!("{silent}no advertisement is for pool second and this service");
    for (advertisements, team, expected) in [
        (vec![selecting.clone()], "nginx", vec![]),
        (vec![selecting.clone()], "apache", vec![]),
        (vec![selecting.clone()], "other", vec![nobody.clone()]),
        (vec![selecting.clone(), advertisement("all", &["second"], None)], "other", vec![]),
        (vec![advertisement("first", &["first"], None)], "nginx", vec![nobody.clone()]),
        (
            vec![L2Advertisement { ip_address_pools: vec!["first".into()], ..selecting }],
            "nginx",
            vec![nobody.clone()],
        ),
        (vec![], "nginx", vec![nobody]),
        (vec![advertisement("a", &[], Some("a"))], "nginx", vec![]),
        (
            vec![advertisement("b", &[], Some("b")), advertisement("c", &[], Some("c"))],
            "nginx",
            vec![format!("{silent}no node fits the `nodeSelectors` of the advertisements for pool second")],
        ),
    ] {
        assert_eq!(told(&advertisements, team), expected);
    }
}

/// An address that no router is told of has the reason of BGP, not that nobody announces it on the LAN.
#[test]
fn an_address_that_no_router_is_told_is_told() {
    let told = |asks: &[(&str, &str)], family: &str, exclude: bool| {
        let mut cluster = balanced();
        cluster.load_balancer.l2_advertisements.clear();
        let advertisement = json!({
            "name": "all", "aggregationLength": 32, "aggregationLengthV6": 128,
            "nodeSelectors": asks.iter().map(|(key, value)| json!({ "matchLabels": { *key: value } })).collect::<Vec<_>>(),
        });
        let peer = json!({
            "name": "router", "peerAddress": family, "peerASN": 64513, "peerPort": 179, "holdTime": 90, "keepaliveTime": 30,
            "connectTime": 10,
        });
        let spec = json!({ "myASN": 64512, "peers": [peer], "advertisements": [advertisement] });
        cluster.load_balancer.bgp = Some(BgpSettings {
            spec: serde_json::from_value(spec).expect("settings"),
            ..BgpSettings::default()
        });
        if exclude {
            cluster.nodes.iter_mut().for_each(|node| node.labels = labels(&[(LABEL_EXCLUDE, "")]));
        }
        let mut warnings = resolved(&cluster, &observed()).warnings;
        warnings.retain(|warning| warning.starts_with("service default/web: "));
        warnings
    };
    let silent = "service default/web: nobody announces its load-balancer address 192.168.50.201: ";
    assert_eq!(told(&[], "192.168.50.1", false), [""; 0]);
    assert_eq!(
        told(&[("rack", "z")], "192.168.50.1", false),
        [format!("{silent}no node fits the `nodeSelectors` of the advertisements for pool second")]
    );
    assert_eq!(
        told(&[], "192.168.50.1", true),
        [format!("{silent}all nodes that could have the label {LABEL_EXCLUDE}")]
    );
    let told = told(&[], "fd00:50::fe", false);
    let reason = format!("{silent}no BGP peer of its family has a session");
    assert!(matches!(told.as_slice(), [one] if one.starts_with(&reason)), "{told:?}");
}

/// metallb#253, #284, #454: on Wi-Fi an address is announced, and nobody's question arrives.
#[test]
fn announcements_by_radio_are_warned_of() {
    let mut observed = observed();
    let told = |cluster: &Cluster, observed: &Observed| {
        let warnings = resolved(cluster, observed).warnings;
        warnings.into_iter().filter(|warning| warning.contains("wireless")).collect::<Vec<_>>()
    };
    let mut cluster = balanced();
    observed.facts.links.push(LinkFact {
        name: "wlan0".into(),
        up: true,
        wireless: true,
        ..LinkFact::default()
    });
    assert_eq!(told(&cluster, &observed), [""; 0], "the LAN is another interface");
    cluster.load_balancer.l2_advertisements =
        vec![L2Advertisement { interfaces: vec!["wlan0".into()], ..advertisement("radio", &[], None) }];
    assert!(
        matches!(&told(&cluster, &observed)[..], [one] if one.starts_with("node1: ") && one.contains("on wlan0,"))
    );
    cluster.load_balancer.l2_advertisements.clear();
    observed.facts.links[0].wireless = true;
    assert_eq!(told(&cluster, &observed), [""; 0], "nothing is announced");
    cluster.load_balancer.l2_advertisements = vec![advertisement("all", &[], None)];
    assert!(matches!(&told(&cluster, &observed)[..], [one] if one.contains("on eth0,")));
}

/// metallb#319, #533, #610: a strict filter drops who would be answered by another interface.
#[test]
fn strict_filters_beside_another_gateway_are_warned_of() {
    let told = |cluster: &Cluster, observed: &Observed| {
        let warnings = resolved(cluster, observed).warnings;
        warnings.into_iter().filter(|warning| warning.contains("rp_filter")).collect::<Vec<_>>()
    };
    let mut cluster = balanced();
    cluster.load_balancer.l2_advertisements =
        vec![L2Advertisement { interfaces: vec!["eth1".into()], ..advertisement("second", &[], None) }];
    let mut observed = observed();
    observed.facts.links.push(LinkFact {
        name: "eth1".into(),
        up: true,
        strict_rp_filter: true,
        ..LinkFact::default()
    });
    let route = |link: &str| RouteFact {
        destination: "0.0.0.0/0".parse().expect("a network"),
        link: Some(link.into()),
        protocol: 3,
    };
    observed.facts.routes = vec![route("eth0")];
    let warnings = told(&cluster, &observed);
    assert!(
        matches!(&warnings[..], [one] if one.starts_with("node1: ") && one.contains("leave by eth0;")),
        "{warnings:?}"
    );
    observed.facts.routes = vec![route("eth1")];
    assert_eq!(told(&cluster, &observed), [""; 0], "answers leave where requests come in");
    observed.facts.routes = vec![route("eth0")];
    observed.facts.links.iter_mut().for_each(|link| link.strict_rp_filter = false);
    assert_eq!(told(&cluster, &observed), [""; 0], "loose filters let them pass");
}
