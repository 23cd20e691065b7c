//! What holds for every text.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test inputs are files; time is measured")]

mod write;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use homelab_config::{Diagnostics, Loaded, Severity, Source, load};
use homelab_model::service::{Affinity, Endpoint, Ingress, IpMode, Policy, Port, Protocol, Service, Type};
use homelab_model::{
    AgentSettings, BfdProfile, BgpAdvertisement, BgpCommunity, BgpPeer, BgpSettings, BgpSpec, Cluster,
    ContainerEndpoint, Declared, Family, L2Advertisement, Labels, LoadBalancer, Mtu, Network, Node, Operator,
    PodOptions, Pool, PoolRange, PreferredNode, Request, Requirement, Selector, ServiceAllocation,
    SshSettings, Vxlan,
};
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;
use write::write;

/// Longest time for one text, in a debug build on a busy machine.
const SLOW: Duration = Duration::from_secs(60);

/// Loads a text; whatever comes out is sound.
fn sound(text: &str) -> Result<Loaded, Diagnostics> {
    let source = Source { name: "homelab.yaml".into(), text: text.to_owned() };
    let start = Instant::now();
    let result = load(&[source]);
    assert!(start.elapsed() < SLOW, "{:?} for {text:.200}", start.elapsed());
    let problems = match &result {
        Ok(loaded) => &loaded.warnings,
        Err(problems) => {
            assert!(problems.iter().any(|p| p.severity == Severity::Error), "no error in {text:.200}");
            &problems.0
        }
    };
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    for problem in problems {
        assert_ne!(problem.code, "internal", "{problem}: {text}");
        assert!(!problem.message.is_empty());
        assert!(text.get(problem.offset..problem.offset + problem.length).is_some(), "{problem}");
        for label in &problem.labels {
            assert!(text.get(label.offset..label.offset + label.length).is_some(), "{problem}");
        }
        assert_eq!(problem.line, text[..problem.offset].matches('\n').count() + 1, "{problem}");
        assert_eq!(problem.github().lines().count(), 1, "{problem}");
        let mut shown = String::new();
        handler.render_report(&mut shown, problem).unwrap();
        let place = format!("{}:{}:{}", problem.file, problem.line, problem.column);
        assert!(shown.contains(&place), "{place} is not in\n{shown}");
    }
    result
}

fn full() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/good/full.yaml");
    std::fs::read_to_string(path).unwrap()
}

/// Every character of the full example left out, replaced, or with a sign after it: good, or problems at places inside the text.
#[test]
fn every_single_slip_is_sound() {
    let text = full();
    let signs = [
        ' ', ':', '"', '\'', '{', '}', '[', ']', '-', '#', '\t', '\n', '0', 'x', '&', '*', '!', '%', 'é', ',',
    ];
    let (mut good, mut bad) = (0, 0);
    for (number, (at, found)) in text.char_indices().enumerate() {
        let (before, after) = (&text[..at], &text[at + found.len_utf8()..]);
        let sign = signs[number % signs.len()];
        for slip in [String::new(), sign.to_string(), format!("{found}{sign}")] {
            match sound(&format!("{before}{slip}{after}")) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
    }
    assert!(good > 500 && bad > 2000, "{good} good, {bad} bad");
}

/// Cut off anywhere, as by a full disk.
#[test]
fn every_beginning_is_sound() {
    let text = full();
    for (at, _) in text.char_indices() {
        drop(sound(&text[..at]));
    }
}

/// Files that would grow, or take long: many problems, many names, long lines.
#[test]
fn large_texts_end_quickly() {
    let nodes: String =
        (0..20_000).map(|n| format!("  - {{name: n{n}, address: 10.0.{}.{}}}\n", n / 256, n % 256)).collect();
    let services: String =
        (0..9_999).map(|n| format!("  - {{name: s{n}, ports: [{{port: 80}}]}}\n")).collect();
    let ranges: String = (0..100)
        .map(|n| {
            format!(
                "  - {{name: p{n}, addresses: [{}]}}\n",
                vec![format!("192.168.{n}.1-192.168.{n}.9"); 100].join(", ")
            )
        })
        .collect();
    let head = "name: a\nnodes: [{name: a, address: 192.168.0.1}]\n";
    let cases = [
        format!("name: a\nnodes:\n{nodes}"),
        format!("{head}services:\n{services}"),
        format!("{head}loadBalancer:\n pools:\n{ranges}"),
        format!("{head}{}", (0..60_000).map(|n| format!("nod{n}: 1\n")).collect::<String>()),
        format!("{head}{}", "nodes: 1\n".repeat(60_000)),
        format!("name: {}\n", "a".repeat(1_000_000)),
        format!("name: a\nnodes: [{}]", "{name: -, address: x},".repeat(900)),
        "a: ".repeat(300_000),
        "[".repeat(1_000_000),
        "- ".repeat(500_000),
        "&a ".repeat(300_000),
        "? ".repeat(300_000),
        "!".repeat(1_000_000),
        "\"".to_owned() + &"\\".repeat(1_000_000),
        "x\n".repeat(500_000),
        "\t".repeat(1_000_000),
    ];
    for text in cases {
        if let Err(problems) = sound(&text) {
            assert!(problems.0.len() <= 101);
        }
    }
}

/// The service number `n` of a cluster whose nodes are node1 and on, each in the zone `zoneN` if `zones`.
fn service(n: u8, dual: bool, zones: bool, bits: u32) -> Declared {
    let bit = |at: u32| bits >> at & 1 == 1;
    let r#type = [Type::ClusterIp, Type::NodePort, Type::LoadBalancer][(bits % 3) as usize];
    let balanced = r#type == Type::LoadBalancer;
    let mut families = vec![Family::IPv4];
    if dual {
        families.push(Family::IPv6);
        families.rotate_left(usize::from(bit(2)));
        families.truncate(1 + usize::from(bit(3)));
    }
    let both = families.len() == 2;
    let mut cluster_ips: Vec<std::net::IpAddr> = families
        .iter()
        .map(|family| match family {
            Family::IPv4 => format!("10.96.7.{n}").parse().unwrap(),
            Family::IPv6 => format!("fd00:10:96::7{n:x}").parse().unwrap(),
        })
        .collect();
    cluster_ips.truncate(usize::from(bit(4)) * 2);
    let policy = |on: bool| if on { Policy::Local } else { Policy::Cluster };
    let external = policy(bit(5) && r#type != Type::ClusterIp);
    let port = |name: &str, protocol, port, node: u16| Port {
        name: name.into(),
        protocol,
        port,
        node_port: (bit(6) && r#type != Type::ClusterIp).then_some(31000 + node + 8 * u16::from(n)),
    };
    let ports = match bit(7) {
        true => vec![port("dns", Protocol::Udp, 53, 0), port("dns-tcp", Protocol::Tcp, 53, 0)],
        false => vec![port("", Protocol::Tcp, 80, 1)],
    };
    let targets: BTreeMap<String, u16> = ports.iter().map(|p| (p.name.clone(), p.port + 8000)).collect();
    let distribution = [None, Some("PreferClose"), Some("PreferSameZone"), Some("PreferSameNode")];
    let distribution = distribution[(bits >> 8 & 3) as usize];
    let v6 = families[0] == Family::IPv6;
    let endpoint = |last: u8, node: Option<u8>| {
        let zone = node.filter(|_| zones).map(|n| format!("zone{n}"));
        let ready = last.is_multiple_of(2);
        let hinted = distribution.filter(|_| ready && node.is_some());
        Endpoint {
            address: match (last, v6) {
                (0, _) => "0.0.0.0".parse().unwrap(),
                (_, true) => format!("fd00:9::{last}").parse().unwrap(),
                (_, false) => format!("10.9.0.{last}").parse().unwrap(),
            },
            node: node.map(|n| format!("node{n}")),
            for_zones: hinted.and(zone.clone()).into_iter().collect(),
            for_nodes: node
                .filter(|_| hinted == Some("PreferSameNode"))
                .map(|n| format!("node{n}"))
                .into_iter()
                .collect(),
            zone,
            ready,
            serving: !bit(10),
            terminating: !ready,
            ports: targets.clone().into(),
        }
    };
    let container = |c: &str| ContainerEndpoint {
        node: "node1".into(),
        container: c.into(),
        interface: if bit(11) { "eth0".into() } else { "net1".into() },
        endpoint: endpoint(0, Some(1)),
    };
    let pool = if v6 { "fd00:50:60::" } else { "192.168.59." };
    let service = Service {
        namespace: if bit(12) { "default".into() } else { format!("space{n}") },
        name: format!("svc{n}"),
        labels: labels(bit(21)),
        r#type,
        cluster_ips,
        external_ips: if bit(13) {
            vec![
                (if v6 { "fd00:77::1" } else { "203.0.113.7" })
                    .replace('7', &(n % 7 + 1).to_string())
                    .parse()
                    .unwrap(),
            ]
        } else {
            vec![]
        },
        load_balancer: (balanced && bit(14))
            .then(|| Ingress { ip: format!("{pool}{}", n + 1).parse().unwrap(), ip_mode: IpMode::Vip })
            .into_iter()
            .collect(),
        load_balancer_source_ranges: if balanced && bit(15) {
            vec![(if v6 { "fd00:50::/64" } else { "192.168.50.0/24" }).parse().unwrap()]
        } else {
            vec![]
        },
        external_traffic_policy: external,
        internal_traffic_policy: policy(bit(16)),
        session_affinity: if bit(17) { Affinity::ClientIp } else { Affinity::None },
        session_affinity_timeout_seconds: if bit(17) { 1 + bits % 86400 } else { 10800 },
        traffic_distribution: distribution.map(Into::into),
        health_check_node_port: (balanced && external == Policy::Local && bit(18))
            .then_some(31006 + 8 * u16::from(n)),
        ports,
        endpoints: vec![endpoint(3, None), endpoint(4, Some(1))],
    };
    Declared {
        service,
        families,
        node_ports: match r#type {
            Type::ClusterIp => false,
            Type::NodePort => true,
            Type::LoadBalancer => bit(19),
        },
        containers: if bit(20) { vec![container("web"), container("api")] } else { vec![] },
        request: if balanced {
            Request {
                pool: bit(22).then(|| "lan".to_owned()),
                sharing_key: bit(23).then(|| "key".to_owned()),
                require_dual_stack: both && bit(24),
                ..Request::default()
            }
        } else {
            Request { require_dual_stack: both && bit(24), ..Request::default() }
        },
    }
}

/// One label, or none.
fn labels(some: bool) -> Labels {
    some.then(|| ("example.org/rack_1".to_owned(), "A.b".to_owned())).into_iter().collect()
}

fn selector(operator: Operator) -> Selector {
    let values = match operator {
        Operator::In | Operator::NotIn => vec!["a".into(), String::new()],
        Operator::Exists | Operator::DoesNotExist => vec![],
    };
    Selector {
        match_labels: labels(true),
        match_expressions: vec![Requirement { key: "disk".into(), operator, values }],
    }
}

fn advertisement(n: u8) -> L2Advertisement {
    L2Advertisement {
        name: format!("adv{n}"),
        ip_address_pools: vec!["lan".into()],
        node_selectors: vec![selector(Operator::In), selector(Operator::Exists)],
        preferred_node_selectors: vec![PreferredNode {
            weight: 1 + n,
            preference: selector(Operator::NotIn),
        }],
        service_selectors: vec![selector(Operator::DoesNotExist)],
        interfaces: vec!["eth0".into()],
    }
}

/// Settings of up to eight routers from 16 bits of chance each.
fn bgp(bits: &[u16], dual: bool) -> Option<BgpSettings> {
    if bits.is_empty() {
        return None;
    }
    let my_asn = 64512 + u32::from(bits[0]);
    let fast = BfdProfile {
        name: "fast".into(),
        receive_interval: 10 + u32::from(bits[0]) % 59_990,
        transmit_interval: 100,
        detect_multiplier: 2 + (bits[0] % 253) as u8,
        echo_interval: 50,
        echo_mode: bits[0] & 1 == 1,
        passive_mode: bits[0] & 2 == 2,
        minimum_ttl: 1 + (bits[0] % 254) as u8,
    };
    let peer = |(bits, n): (&u16, u16)| {
        let bit = |at: u16| bits >> at & 1 == 1;
        let v4 = !dual || bit(0);
        let keepalive = 1 + bits % 21_845;
        let silent = bit(1) && bit(2);
        BgpPeer {
            name: format!("router{n}"),
            peer_address: if v4 { format!("10.7.0.{n}") } else { format!("fd00:7::{n}") }.parse().unwrap(),
            peer_asn: my_asn + u32::from(!bit(3)),
            peer_port: 1.max(*bits),
            source_address: bit(4).then(|| if v4 { "192.168.50.1" } else { "fd00:50::1" }.parse().unwrap()),
            router_id: bit(5).then(|| "10.0.0.1".parse().unwrap()),
            hold_time: if silent { 0 } else { keepalive * 3 + u16::from(bit(6) && keepalive < 21_845) },
            keepalive_time: if silent { 0 } else { keepalive },
            connect_time: keepalive,
            password: bit(7),
            bfd_profile: (bit(8) && v4).then(|| "fast".into()),
            ebgp_multi_hop: bit(9) && !bit(3) && !bit(8),
            enable_graceful_restart: bit(10),
            node_selectors: if bit(11) {
                vec![selector(Operator::In), selector(Operator::Exists)]
            } else {
                vec![]
            },
        }
    };
    let peers: Vec<BgpPeer> = bits.iter().zip(1..).map(peer).collect();
    let advertisement = |(bits, n): (&u16, u16)| {
        let bit = |at: u16| bits >> at & 1 == 1;
        let mut communities = vec![
            BgpCommunity::Standard(*bits, n),
            BgpCommunity::Standard(65535, 65281),
            BgpCommunity::Large(u32::from(*bits) << 16, 0, u32::MAX),
        ];
        communities.truncate(usize::from(bits % 4));
        communities.sort_unstable();
        BgpAdvertisement {
            name: format!("told{n}"),
            ip_address_pools: if bit(2) { vec!["lan".into()] } else { vec![] },
            aggregation_length: 32,
            aggregation_length_v6: 128,
            local_pref: bit(3).then_some(u32::from(*bits)),
            communities,
            node_selectors: if bit(4) { vec![selector(Operator::NotIn)] } else { vec![] },
            // Different services, so that different preferences are no conflict.
            service_selectors: vec![Selector {
                match_labels: [("n".to_owned(), n.to_string())].into(),
                match_expressions: vec![],
            }],
            peers: if bit(5) { vec![format!("router{n}")] } else { vec![] },
        }
    };
    let password_files =
        peers.iter().filter(|p| p.password).map(|p| (p.name.clone(), "a/b.password".into())).collect();
    let advertisements = bits.iter().zip(1..).map(advertisement).collect();
    let spec = BgpSpec { my_asn, peers, advertisements, bfd_profiles: vec![fast] };
    Some(BgpSettings { spec, password_files })
}

fn ssh() -> impl Strategy<Value = SshSettings> {
    let text = |pattern| prop::option::of(proptest::string::string_regex(pattern).unwrap());
    let port = prop::option::of(1..=u16::MAX);
    (
        text("[a-z][a-z0-9.]{0,9}"),
        text("[a-z]{1,8}"),
        port,
        text("~/[a-z]{1,8}"),
        text("([a-z]{1,4}@)?[a-z]{1,6}(:22)?"),
        any::<Option<bool>>(),
    )
        .prop_map(|(host, user, port, identity, jump, r#become)| SshSettings {
            host,
            user,
            port,
            identity,
            jump,
            r#become,
        })
}

fn clusters() -> impl Strategy<Value = Cluster> {
    let label = || proptest::string::string_regex("[a-z]([-a-z0-9]{0,20}[a-z0-9])?").unwrap();
    let vxlan =
        (1..=16_777_215_u32, 1..=u16::MAX, prop::option::of(1280..=65_465_u32), any::<Option<bool>>());
    let node = (ssh(), prop::option::of("[a-z]{1,8}"), prop::option::of("[a-z]{1,5}[0-9]"), any::<bool>());
    let pool = (1..200_u8, 0..50_u8, any::<bool>(), any::<bool>());
    let services = prop::collection::vec(any::<u32>(), 0..7);
    let routers = prop::collection::vec(any::<u16>(), 0..8);
    let more = (any::<bool>(), any::<bool>(), any::<u16>(), services, routers);
    let nodes = prop::collection::vec(node, 1..12);
    (label(), any::<bool>(), vxlan, nodes, prop::collection::vec(pool, 0..4), more).prop_map(
        |(name, dual, (vni, vxlan_port, mtu, checksum_offload), nodes, pools, more)| {
            let (zones, masquerade_all, agent_port, services, routers) = more;
            let nodes: Vec<Node> = nodes
                .into_iter()
                .zip(1_u8..)
                .map(|((ssh, role, interface, fixed), n)| Node {
                    name: format!("node{n}"),
                    address: format!("192.168.50.{n}").parse().unwrap(),
                    address6: dual.then(|| format!("fd00:50::{n:x}").parse().unwrap()),
                    ssh,
                    pod_cidrs: if fixed { vec![format!("10.244.{n}.0/24").parse().unwrap()] } else { vec![] },
                    interface,
                    role,
                    zone: zones.then(|| format!("zone{n}")),
                    labels: labels(n.is_multiple_of(2)),
                })
                .collect();
            let mut network = Network {
                pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                node_prefixes: vec![24],
                service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
                node_port_range: (31000, 31999),
                node_port_addresses: vec!["192.168.50.0/24".parse().unwrap()],
                masquerade_all,
                pods: PodOptions { port_isolation: dual, spoof_protection: masquerade_all },
                vxlan: Vxlan {
                    vni,
                    port: vxlan_port,
                    mtu: mtu.map_or(Mtu::Auto, Mtu::Bytes),
                    device: format!("homelab.{vni}").chars().take(15).collect(),
                    checksum_offload,
                },
            };
            if dual {
                network.pod_cidrs.push("fd00:10:244::/48".parse().unwrap());
                network.node_prefixes.push(64);
                network.service_cidrs.push("fd00:10:96::/112".parse().unwrap());
            }
            let lan = Pool {
                name: "lan".into(),
                addresses: [("192.168.59.1", "192.168.59.99"), ("fd00:50:60::1", "fd00:50:60::99")]
                    .into_iter()
                    .map(|(first, last)| PoolRange {
                        first: first.parse().unwrap(),
                        last: last.parse().unwrap(),
                    })
                    .collect(),
                auto_assign: true,
                avoid_buggy_ips: false,
                service_allocation: None,
            };
            let pools =
                pools.into_iter().zip(60_u8..).map(|((first, count, auto_assign, avoid_buggy_ips), n)| {
                    Pool {
                        name: format!("pool{n}"),
                        addresses: vec![PoolRange {
                            first: format!("192.168.{n}.{first}").parse().unwrap(),
                            last: format!("192.168.{n}.{}", first + count).parse().unwrap(),
                        }],
                        auto_assign,
                        avoid_buggy_ips,
                        service_allocation: auto_assign.then(|| ServiceAllocation {
                            priority: u32::from(count),
                            namespaces: vec!["default".into()],
                            service_selectors: vec![selector(Operator::Exists)],
                        }),
                    }
                });
            let mut l2_advertisements: Vec<_> = (0..3).map(advertisement).collect();
            l2_advertisements.push(L2Advertisement { name: "all".into(), ..L2Advertisement::default() });
            let load_balancer = LoadBalancer {
                bgp: bgp(&routers, dual),
                pools: pools.chain([lan]).collect(),
                l2_advertisements,
                port: if vxlan_port == 7946 { 7947 } else { 7946 },
                taken: BTreeMap::new(),
            };
            let services =
                services.into_iter().zip(1_u8..).map(|(bits, n)| service(n, dual, zones, bits)).collect();
            let manifests = vec!["web.yaml".to_owned(), "../more".to_owned()];
            let agent = AgentSettings { address: "0.0.0.0".parse().unwrap(), port: agent_port };
            Cluster { name, nodes, network, load_balancer, services, manifests, agent, kubernetes: None }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_sound(text in "\\PC*") {
        drop(sound(&text));
    }

    #[test]
    fn any_bytes_are_sound(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        match Source::from_bytes("homelab.yaml", bytes) {
            Ok(source) => drop(sound(&source.text)),
            Err(problems) => prop_assert_eq!(problems.0[0].code, "encoding"),
        }
    }

    #[test]
    fn any_heap_of_signs_is_sound(
        words in prop::collection::vec(prop::sample::select(vec![
            "name", "nodes", "address", "network", "podCIDR", "ssh", "port", "services", ": ", ":", "- ", "-", "[", "]",
            "{", "}", ",", "\n", "\n  ", "\n    ", "&a ", "*a", "<<: ", "!x ", "|", ">", "\"", "'", "#", "? ", "%", "\t",
            "10.0.0.1", "10.244.0.0/16", "1", "~", "true", "é", "---\n", "...\n", "\r\n", "\u{feff}",
        ]), 0..60)
    ) {
        drop(sound(&words.concat()));
    }

    #[test]
    fn what_is_written_is_read(cluster in clusters()) {
        let text = write(&cluster).to_string();
        let loaded = sound(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(loaded.cluster, cluster);
    }
}

/// What the published schema says of a file is what homelab says: an editor and `homelab validate` agree on shape.
#[test]
fn the_published_schema_accepts_the_good_files() {
    let schema = homelab_config::schema();
    let validator = jsonschema::draft7::new(&schema).unwrap();
    let strict = serde_saphyr::options! { strict_booleans: true };
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/good")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let value: serde_json::Value =
                serde_saphyr::from_str_with_options(&text, strict.clone()).unwrap();
            let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        }
    }
    assert!(jsonschema::draft7::meta::is_valid(&schema));
}

/// Whole files in the guide.
#[test]
fn the_guides_files_are_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../book/src/guide/homelab-yaml.md");
    let page = std::fs::read_to_string(path).unwrap();
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let files: Vec<&str> = blocks.filter(|block| block.starts_with("name: ")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let loaded = sound(file).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}\n{file}", loaded.warnings);
    }
}

/// The example that users copy.
#[test]
fn the_example_is_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/homeserver/homelab.yaml");
    let loaded = sound(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(loaded.warnings.is_empty());
}
