//! Laws of host ports, over any mappings.

use std::net::{IpAddr, SocketAddr};

use homelab_cni::hostport::{Claim, Element, PortMapping, SETS, owner_of};
use homelab_cni::{Code, Request};
use homelab_model::service::Protocol;
use proptest::prelude::*;
use serde_json::json;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// The environment of an ADD.
fn adding(name: &str) -> Option<String> {
    let value = match name {
        "CNI_COMMAND" => "ADD",
        "CNI_CONTAINERID" => "c",
        "CNI_IFNAME" => "eth0",
        "CNI_NETNS" => "/n",
        _ => return None,
    };
    Some(value.to_owned())
}

fn mapping() -> impl Strategy<Value = PortMapping> {
    let hosts = prop::sample::select(vec![
        None,
        Some(ip("0.0.0.0")),
        Some(ip("::")),
        Some(ip("10.0.0.1")),
        Some(ip("10.0.0.2")),
        Some(ip("127.0.0.1")),
        Some(ip("fd00::1")),
    ]);
    // Few ports, so that they meet.
    (prop::sample::select(Protocol::ALL.to_vec()), hosts, 1..4_u16, 1..3_u16).prop_map(
        |(protocol, host_ip, host_port, container_port)| PortMapping {
            protocol,
            host_ip,
            host_port,
            container_port,
        },
    )
}

fn claim(number: u8, ports: Vec<PortMapping>) -> Claim {
    Claim {
        owner: format!("hl{number:013}"),
        network: "home".into(),
        container: format!("c{number}"),
        pod: Some(format!("home/p{number}")),
        bridge: "homelab0".into(),
        addresses: vec![ip(&format!("10.244.0.{number}")), ip(&format!("fd00:244::{number}"))],
        ports,
    }
}

/// What the ruleset does with a packet to an address of the node: the sets in the order of its rules.
fn lookup(elements: &[Element], protocol: Protocol, to: SocketAddr) -> Option<Vec<u8>> {
    let host = match to.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let [high, low] = to.port().to_be_bytes();
    let rest = vec![protocol.number(), 0, 0, 0, high, low, 0, 0];
    let [addresses, any, _] = SETS[usize::from(to.is_ipv6())];
    [(addresses, [host, rest.clone()].concat()), (any, rest)].into_iter().find_map(|(set, key)| {
        elements.iter().find(|element| element.set == set && element.key == key)?.data.clone()
    })
}

fn packets() -> Vec<(Protocol, SocketAddr)> {
    let hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "127.0.0.1", "fd00::1", "fd00::2"];
    let all = Protocol::ALL.into_iter().flat_map(|protocol| {
        hosts
            .into_iter()
            .flat_map(move |host| (1..5).map(move |port| (protocol, SocketAddr::new(ip(host), port))))
    });
    all.collect()
}

proptest! {
    #[test]
    fn claims_come_back_as_written(ports in prop::collection::vec(mapping(), 0..6)) {
        let claim = claim(7, ports);
        let text = serde_json::to_string(&claim).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Claim>(&text).expect("claim"), claim);
    }

    /// Two claims are in conflict if and only if some packet would be both's; and then each says so of the other.
    #[test]
    fn a_conflict_is_a_packet_that_both_want(
        one in prop::collection::vec(mapping(), 0..5),
        other in prop::collection::vec(mapping(), 0..5),
    ) {
        let (one, other) = (claim(7, one), claim(8, other));
        let (first, second) = (one.elements(), other.elements());
        let both = packets().into_iter().any(|(protocol, to)| {
            lookup(&first, protocol, to).is_some() && lookup(&second, protocol, to).is_some()
        });
        let conflict = one.conflict(&other);
        prop_assert_eq!(conflict.is_some(), both);
        prop_assert_eq!(other.conflict(&one).is_some(), both);
        if let Some(error) = conflict {
            prop_assert_eq!(error.code, Code::PortTaken);
            prop_assert!(error.message.ends_with("by home/p8"), "{}", error.message);
        } else {
            // So elements of two pods never have the same key.
            let keys = |elements: &[Element]| elements.iter().map(|e| (e.set, e.key.clone())).collect::<Vec<_>>();
            let seconds = keys(&second);
            prop_assert!(!keys(&first).iter().any(|key| seconds.contains(key)));
        }
    }

    /// What the sets say of a packet is what some mapping says, and the one of the exact address first.
    #[test]
    fn packets_go_where_a_mapping_says(ports in prop::collection::vec(mapping(), 0..6)) {
        let claim = claim(7, ports);
        let elements = claim.elements();
        let forwards = claim.forwards();
        for (protocol, to) in packets() {
            let fits: Vec<_> = forwards.iter().filter(|f| f.takes(protocol.number(), to)).collect();
            let exact: Vec<_> = fits.iter().filter(|f| f.host.is_some()).collect();
            let ports: Vec<u16> =
                if exact.is_empty() { fits.iter().map(|f| f.to.port()).collect() } else { exact.iter().map(|f| f.to.port()).collect() };
            match lookup(&elements, protocol, to) {
                None => prop_assert!(fits.is_empty()),
                Some(data) => {
                    let port = u16::from_be_bytes([data[data.len() - 4], data[data.len() - 3]]);
                    prop_assert!(ports.contains(&port));
                }
            }
        }
    }

    /// A comment fits into an element and names the owner, whatever the pod is called.
    #[test]
    fn comments_name_the_owner(pod in "\\PC{0,200}") {
        let claim = Claim { pod: Some(pod), ..claim(7, Vec::new()) };
        let comment = claim.comment();
        prop_assert!(comment.len() <= 128);
        prop_assert_eq!(owner_of(&comment), claim.owner.as_str());
    }

    /// No mapping that a runtime could send makes the plugin fail in another way than by an error.
    #[test]
    fn anything_is_read_or_refused(
        host in "\\PC{0,12}", protocol in "\\PC{0,6}", port in any::<i64>(), other in any::<f64>(),
    ) {
        let stdin = json!({
            "cniVersion": "1.0.0", "name": "home", "ranges": ["10.244.0.0/24"],
            "runtimeConfig": { "portMappings": [
                { "hostPort": port, "containerPort": other, "protocol": protocol, "hostIP": host },
            ]},
        });
        let read = Request::parse(&adding, stdin.to_string().as_bytes());
        prop_assert!(matches!(read, Err(error) if error.code == Code::Config));
    }
}

#[test]
fn flows_that_new_ports_divert_and_those_that_they_carry() {
    let udp = |host: Option<&str>| PortMapping {
        protocol: Protocol::Udp,
        host_ip: host.map(ip),
        host_port: 53,
        container_port: 5353,
    };
    let at = |text: &str| text.parse::<SocketAddr>().expect("address");
    let claim = claim(7, vec![udp(None)]);
    let local = |address: IpAddr| address == ip("10.0.0.1");
    let (node, pod, old) = (at("10.0.0.1:53"), at("10.244.0.7:5353"), at("10.244.0.9:5353"));
    // To the node itself, or to a predecessor.
    assert!(claim.diverts(17, node, node, local) && claim.diverts(17, node, old, local));
    // To the pod already, by another protocol or port, to another machine.
    assert!(!claim.diverts(17, node, pod, local) && !claim.diverts(132, node, node, local));
    assert!(!claim.diverts(17, at("10.0.0.1:54"), at("10.0.0.1:54"), local));
    assert!(!claim.diverts(17, at("9.9.9.9:53"), at("9.9.9.9:53"), local));
    assert!(claim.carries(17, node, pod));
    // The pod's own, without the node's port.
    assert!(!claim.carries(17, pod, pod) && !claim.carries(17, node, old));
}

/// A port cannot lead to two: no address is every one, and the unspecified one of a family is every one of that family.
#[test]
fn a_port_leads_to_one() {
    let of = |hosts: [(&str, u16); 2]| {
        let mappings = hosts.map(|(host, port)| {
            json!({ "hostPort": 80, "containerPort": port, "protocol": "tcp", "hostIP": host })
        });
        let conf = json!({
            "cniVersion": "1.1.0", "name": "n", "ranges": ["10.244.1.0/24"],
            "runtimeConfig": { "portMappings": mappings },
        });
        Request::parse(&adding, conf.to_string().as_bytes()).map(drop).map_err(|error| error.message)
    };
    for clash in [[("", 1), ("0.0.0.0", 2)], [("", 1), ("::", 2)], [("10.0.0.1", 1), ("10.0.0.1", 2)]] {
        let error = of(clash).expect_err("two ports");
        assert!(error.contains("leads tcp/80 to two ports"), "{clash:?}: {error}");
    }
    for fine in [[("", 1), ("0.0.0.0", 1)], [("0.0.0.0", 1), ("::", 2)], [("", 1), ("10.0.0.1", 2)]] {
        of(fine).unwrap_or_else(|error| panic!("{fine:?}: {error}"));
    }
}
