use homelab_model::{AddressFact, AttachmentFact};
use serde_json::json;

use super::*;
use crate::fake::{THREE, cluster};

struct Home {
    cluster: Cluster,
    observed: Observed,
    services: Vec<Service>,
}

impl Home {
    /// The first node holds an address on a second link and a container; the third could not be asked.
    fn new() -> Home {
        let mut cluster = cluster(&THREE);
        cluster.nodes[0].address6 = Some("fd00::11".parse().unwrap());
        let attachment = |container: &str, pod: Option<&str>, address: &str| AttachmentFact {
            container: container.into(),
            interface: "eth0".into(),
            pod: pod.map(Into::into),
            link: "veth".into(),
            addresses: vec![address.parse().unwrap()],
        };
        let mut observed = Observed::default();
        observed.facts.attachments = vec![
            attachment("c1", None, "10.244.1.9"),
            attachment("c2", Some("default/web-0"), "10.244.1.10"),
        ];
        observed.facts.addresses =
            vec![AddressFact { link: "eth1".into(), address: "192.168.60.11/24".parse().unwrap() }];
        let service = |namespace: &str, name: &str, ip: &str, ports: serde_json::Value| {
            serde_json::from_value(json!({
                "namespace": namespace, "name": name, "clusterIPs": [ip], "ports": ports,
                "externalIPs": if ip == "10.96.0.1" { json!(["192.168.60.11"]) } else { json!([]) },
                "loadBalancer": if name == "twice" { json!([{"ip": "192.168.50.200"}]) } else { json!([]) },
            }))
            .unwrap()
        };
        let dns = json!([{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53}]);
        let services = vec![
            service("default", "web", "10.96.0.1", json!([{"name": "http", "port": 80}])),
            service("other", "web", "10.96.0.2", json!([{"port": 81}])),
            service("kube-system", "dns", "10.96.0.10", dns),
            service("a", "twice", "10.96.0.3", json!([{"port": 1}])),
            service("b", "twice", "10.96.0.4", json!([{"port": 2, "nodePort": 30081, "protocol": "UDP"}])),
            service("a", "six", "fd00:96::1", json!([{"port": 1}])),
        ];
        Home { cluster, observed, services }
    }

    fn places(&self) -> Places<'_> {
        let mut nodes: Vec<_> = self.cluster.nodes.iter().map(|n| (n, Some(&self.observed))).collect();
        nodes[2].1 = None;
        let nothing: &Observed = Box::leak(Box::default());
        nodes[1].1 = Some(nothing);
        Places { nodes, services: self.services.iter().map(|s| (s.full_name(), s)).collect() }
    }
}

fn said(error: CliError) -> String {
    let CliError::Message { text, hints, .. } = error else { panic!("{error:?}") };
    format!("{text}; {}", hints.join("; "))
}

#[test]
fn a_source_is_an_address_a_node_or_a_container() {
    let home = Home::new();
    let places = home.places();
    let source = |text: &str| {
        let source = places.source(text).map_err(said)?;
        Ok::<_, String>((source.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), source.node))
    };
    for (text, addresses, node) in [
        ("192.168.50.99", &["192.168.50.99"][..], None),
        ("192.168.50.12", &["192.168.50.12"], Some("node2")),
        ("192.168.60.11", &["192.168.60.11"], Some("node1")),
        ("node1", &["192.168.50.11", "fd00::11"], Some("node1")),
        ("node1/c1", &["10.244.1.9"], Some("node1")),
        ("node1/web-0", &["10.244.1.10"], Some("node1")),
        ("node1/default/web-0", &["10.244.1.10"], Some("node1")),
    ] {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        assert_eq!(source(text), Ok((addresses, node.map(str::to_owned))), "{text}");
    }
    for (text, words) in [
        ("node7", "node1, node2, node3"),
        ("node1/c7", "it has c1, default/web-0"),
        ("node2/c1", "it has none"),
        ("node3/c1", "homelab status --nodes node3"),
    ] {
        let error = source(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_destination_is_an_address_or_a_service() {
    let home = Home::new();
    let places = home.places();
    let pod = places.source("node1/c1").unwrap();
    let to = |text: &str, protocol| {
        let to = places.destination(text, protocol, &pod).map_err(said)?;
        Ok::<_, String>(format!("{} {} {}", to.address, to.protocol.as_str(), to.port))
    };
    let udp = Some(Protocol::Udp);
    for (text, protocol, result) in [
        ("1.1.1.1:443", None, "1.1.1.1 tcp 443"),
        ("1.1.1.1:443", udp, "1.1.1.1 udp 443"),
        ("[fd00::1]:443", None, "fd00::1 tcp 443"),
        ("10.96.0.1", None, "10.96.0.1 tcp 80"),
        ("192.168.60.11", None, "192.168.60.11 tcp 80"),
        ("web", None, "10.96.0.1 tcp 80"),
        ("web:http", None, "10.96.0.1 tcp 80"),
        ("web:81", None, "10.96.0.1 tcp 81"),
        ("other/web", None, "10.96.0.2 tcp 81"),
        ("dns:53", None, "10.96.0.10 tcp 53"),
        ("dns:udp", None, "10.96.0.10 udp 53"),
        ("dns", udp, "10.96.0.10 udp 53"),
        ("10.96.0.10", udp, "10.96.0.10 udp 53"),
        ("192.168.50.200:1", None, "192.168.50.200 tcp 1"),
        ("192.168.50.200:2", None, "192.168.50.200 udp 2"),
        ("192.168.50.200:3", None, "192.168.50.200 tcp 3"),
        // As `plan` and `status` write it.
        ("1.1.1.1:443/udp", None, "1.1.1.1 udp 443"),
        ("[fd00::1]:443/UDP", None, "fd00::1 udp 443"),
        ("kube-system/dns:53/udp", udp, "10.96.0.10 udp 53"),
        ("node1:30053/udp", None, "192.168.50.11 udp 30053"),
        ("node1:30081", None, "192.168.50.11 udp 30081"),
        ("node1:22", None, "192.168.50.11 tcp 22"),
    ] {
        assert_eq!(to(text, protocol).as_deref(), Ok(result), "{text}");
    }
    for (text, words) in [
        ("1.1.1.1", "1.1.1.1:80"),
        ("fd00::1", "[fd00::1]:80"),
        ("192.168.50.200", "shared: to which port?; it is the address of a/twice, b/twice"),
        ("dns", "53/udp (udp), 53/tcp (tcp)"),
        ("web:https", "no port \"https\""),
        ("nobody", "the services are a/six"),
        ("twice", "a/twice, b/twice"),
        ("six", "no cluster address of a family"),
        ("1.1.1.1:443/http", "\"http\" is no protocol; tcp, udp or sctp"),
        ("node1", "a node: to which port?; e.g. node1:30080"),
    ] {
        let error = to(text, None).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
    assert!(to("dns:53/tcp", udp).unwrap_err().contains("two protocols"));
    assert!(said(pod.like("fd00::1".parse().unwrap()).unwrap_err()).contains("no IPv6 address"));
}

#[test]
fn a_packet_meets_the_rules_where_it_comes_from_or_else_where_it_goes() {
    let home = Home::new();
    let places = home.places();
    let met = |source: &str, destination: &str| {
        places.met_on(&places.source(source).unwrap(), destination.parse().unwrap())
    };
    assert_eq!(met("node1/c1", "192.168.50.12"), ["node1"]);
    assert_eq!(met("192.168.50.99", "192.168.50.12"), ["node2"]);
    assert_eq!(met("192.168.50.99", "192.168.50.200"), [""; 0]);
}
