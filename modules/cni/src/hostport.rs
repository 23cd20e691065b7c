//! Ports of the node that lead to a pod: the capability `portMappings` (CNI's CONVENTIONS.md), Kubernetes' `hostPort`.
//!
//! The ruleset is fixed; ports are elements of its maps, so what a packet costs does not depend on how many there are.
//! Who holds which port stands on the disk in a [`Claim`] per attachment, and the elements follow from the claims: the
//! plugin adds and deletes them with the pod, the agent brings them back when somebody flushes the ruleset.
//!
//! A port is looked up only for packets to an address of the node itself, after services (whose node ports are first,
//! as kube-proxy's are). The client's address is kept, but for a pod that reaches itself and for clients at the node's
//! loopback addresses, which no pod could answer.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use homelab_model::service::Protocol;
use homelab_model::{Hook, NftChain, NftTable, NodeSpec, Spec, ours};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::in_any_case;
use crate::{CniError, Code};

/// An entry of `portMappings`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMapping {
    /// Protocol.
    pub protocol: Protocol,
    /// Address of the node; 0.0.0.0 and :: are every one of their family, None is every one of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
}

/// Reads `runtimeConfig.portMappings`.
pub(crate) fn port_mappings(map: &Map<String, Value>) -> Result<Vec<PortMapping>, CniError> {
    const FIELD: &str = "runtimeConfig.portMappings";
    let items = match map.get("runtimeConfig").and_then(|config| config.get("portMappings")) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(CniError::with(Code::Config, format!("field {FIELD} is no list"), other)),
    };
    let mappings: BTreeSet<PortMapping> = items
        .iter()
        .map(|item| {
            mapping(item).map_err(|want| {
                CniError::with(Code::Config, format!("an entry of {FIELD} has no {want}"), item)
            })
        })
        .collect::<Result<_, _>>()?;
    let mut led: HashMap<(Protocol, u16, bool, Option<IpAddr>), u16> = HashMap::new();
    for one in &mappings {
        // No address and the unspecified one of a family are the same there.
        let host = one.host_ip.filter(|host| !host.is_unspecified());
        for v4 in [true, false] {
            if one.host_ip.is_some_and(|host| host.is_ipv4() != v4) {
                continue;
            }
            let first = *led.entry((one.protocol, one.host_port, v4, host)).or_insert(one.container_port);
            if first != one.container_port {
                return Err(CniError::with(
                    Code::Config,
                    format!("{FIELD} leads {}/{} to two ports", one.protocol.as_str(), one.host_port),
                    format!("{first} and {}", one.container_port),
                ));
            }
        }
    }
    Ok(mappings.into_iter().collect())
}

/// An entry, or what it lacks.
fn mapping(item: &Value) -> Result<PortMapping, &'static str> {
    let field =
        |name: &str| item.as_object().and_then(|item| in_any_case(item, name)).unwrap_or(&Value::Null);
    let port =
        |name: &str| field(name).as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let protocol = match field("protocol") {
        Value::Null => Protocol::Tcp,
        Value::String(text) if text.is_empty() => Protocol::Tcp,
        Value::String(text) => Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.as_str().eq_ignore_ascii_case(text))
            .ok_or("protocol tcp, udp or sctp")?,
        _ => return Err("protocol tcp, udp or sctp"),
    };
    let host_ip = match field("hostIP") {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => {
            Some(text.parse::<IpAddr>().map_err(|_| "hostIP that is an address")?.to_canonical())
        }
        _ => return Err("hostIP that is an address"),
    };
    Ok(PortMapping {
        protocol,
        host_ip,
        host_port: port("hostPort").ok_or("hostPort from 1 to 65535")?,
        container_port: port("containerPort").ok_or("containerPort from 1 to 65535")?,
    })
}

/// What an attachment holds of the node's ports, as it stands on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Name of the attachment's link on the node.
    pub owner: String,
    /// Name of the network.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `namespace/name`, if the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The bridge that the pod is behind.
    pub bridge: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortMapping>,
}

/// A port of the node, of one family, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// Address of the node; None is every one of the family of `to`.
    pub host: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the node.
    pub port: u16,
    /// The pod.
    pub to: SocketAddr,
}

impl Forward {
    /// Whether some packet would fit both.
    pub fn overlaps(&self, other: &Forward) -> bool {
        let same_host = match (self.host, other.host) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        (self.protocol, self.port, self.to.is_ipv4()) == (other.protocol, other.port, other.to.is_ipv4())
            && same_host
    }

    /// Whether it is meant by a packet of `protocol` to an address and port of the node.
    pub fn takes(&self, protocol: u8, destination: SocketAddr) -> bool {
        self.protocol.number() == protocol
            && self.port == destination.port()
            && self.to.is_ipv4() == destination.is_ipv4()
            && self.host.is_none_or(|host| host == destination.ip())
    }

    /// As `tcp 10.0.0.1:80`.
    fn text(&self) -> String {
        let host = match (self.host, self.to) {
            (Some(host), _) => host,
            (None, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (None, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        format!("{} {}", self.protocol.as_str(), SocketAddr::new(host, self.port))
    }
}

/// An element of a set or map of the table, as the kernel stores it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Name of the set.
    pub set: &'static str,
    /// Key: its fields in network byte order, each padded to four bytes.
    pub key: Vec<u8>,
    /// What a map has for it.
    pub data: Option<Vec<u8>>,
}

/// All sets of the table that a family has: ports of one address, ports of every address, pods that reach themselves.
pub const SETS: [[&str; 3]; 2] = [["addresses4", "any4", "hairpin4"], ["addresses6", "any6", "hairpin6"]];

fn names(v4: bool) -> [&'static str; 3] {
    SETS[usize::from(!v4)]
}

impl Claim {
    /// Where its ports lead, family by family. A port of an address of a family that the pod lacks leads nowhere, as
    /// with the reference plugin.
    pub fn forwards(&self) -> Vec<Forward> {
        let of = |mapping: &PortMapping| {
            let mapping = mapping.clone();
            self.addresses.iter().filter_map(move |address| {
                let host = match mapping.host_ip {
                    None => None,
                    Some(host) if host.is_ipv4() != address.is_ipv4() => return None,
                    Some(host) => Some(host).filter(|host| !host.is_unspecified()),
                };
                let to = SocketAddr::new(*address, mapping.container_port);
                Some(Forward { host, protocol: mapping.protocol, port: mapping.host_port, to })
            })
        };
        // The same address and port by two ways of writing it is one.
        self.ports.iter().flat_map(of).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The elements of the table's sets.
    pub fn elements(&self) -> Vec<Element> {
        let mut elements = BTreeSet::new();
        for forward in self.forwards() {
            let [addresses, any, hairpin] = names(forward.to.is_ipv4());
            let mut key = forward.host.map(bytes).unwrap_or_default();
            key.extend([forward.protocol.number(), 0, 0, 0]);
            key.extend(port(forward.port));
            let pod = bytes(forward.to.ip());
            let data = [&pod[..], &port(forward.to.port())].concat();
            let set = if forward.host.is_some() { addresses } else { any };
            elements.insert(Element { set, key, data: Some(data) });
            elements.insert(Element { set: hairpin, key: [&pod[..], &pod].concat(), data: None });
        }
        elements.into_iter().collect()
    }

    /// Whether the node's own loopback addresses of IPv4 lead to the pod.
    pub fn serves_loopback(&self) -> bool {
        self.forwards()
            .iter()
            .any(|forward| forward.to.is_ipv4() && forward.host.is_none_or(|host| host.is_loopback()))
    }

    /// Whether a protocol without connections is among its ports: flows of before would go on past them.
    pub fn has_datagrams(&self) -> bool {
        self.ports.iter().any(|port| port.protocol != Protocol::Tcp)
    }

    /// The pod's name, or else the container's.
    pub fn holder(&self) -> &str {
        self.pod.as_deref().unwrap_or(&self.container)
    }

    /// What its elements say of whose they are: link, pod. At most 128 bytes, which is all that nft takes.
    pub fn comment(&self) -> String {
        let mut comment = format!("{} {}", self.owner, self.holder());
        let end = (0..=comment.len().min(128)).rev().find(|end| comment.is_char_boundary(*end));
        comment.truncate(end.unwrap_or_default());
        comment
    }

    /// The error if `other` holds a port that this one wants.
    pub fn conflict(&self, other: &Claim) -> Option<CniError> {
        let theirs = other.forwards();
        let taken =
            self.forwards().into_iter().find(|mine| theirs.iter().any(|their| their.overlaps(mine)))?;
        Some(CniError::with(
            Code::PortTaken,
            format!("port {} of this node is taken by {}", taken.text(), other.holder()),
            format!("container {}", other.container),
        ))
    }

    /// Whether a flow of a datagram protocol went elsewhere before these ports were there, and would go on to do so.
    /// `original` is where the client sent to, `answers` who answers; `is_local` says whether an address is the node's.
    pub fn diverts(
        &self,
        protocol: u8,
        original: SocketAddr,
        answers: SocketAddr,
        is_local: impl Fn(IpAddr) -> bool,
    ) -> bool {
        self.forwards().iter().any(|f| f.takes(protocol, original) && f.to != answers)
            && is_local(original.ip())
    }

    /// Whether a flow leads to the pod by these ports.
    pub fn carries(&self, protocol: u8, original: SocketAddr, answers: SocketAddr) -> bool {
        self.forwards().iter().any(|f| f.takes(protocol, original) && f.to == answers && original != answers)
    }
}

/// The owner that an element's comment names.
pub fn owner_of(comment: &str) -> &str {
    comment.split(' ').next().unwrap_or_default()
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The table, which is the same whatever ports there are.
pub(crate) fn ruleset(spec: &NodeSpec) -> Vec<Spec> {
    let has = |v4: bool| spec.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == v4);
    let (mut sets, mut forward, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for v4 in [true, false] {
        let [addresses, any, hairpin] = names(v4);
        let (ip, kind, loopback) = match v4 {
            true => ("ip", "ipv4_addr", "127.0.0.0/8"),
            false => ("ip6", "ipv6_addr", "::1"),
        };
        // Of both families always: a table that loses sets would have to be made anew, with every element.
        // Types and no typeof: nft 1.0.6 reads no translation by a map of the latter.
        sets.push(format!(
            "map {addresses} {{ type {kind} . inet_proto . inet_service : {kind} . inet_service }}"
        ));
        sets.push(format!("map {any} {{ type inet_proto . inet_service : {kind} . inet_service }}"));
        sets.push(format!("set {hairpin} {{ type {kind} . {kind} }}"));
        if !has(v4) {
            continue;
        }
        forward.push(format!("dnat {ip} to {ip} daddr . meta l4proto . th dport map @{addresses}"));
        forward.push(format!("dnat {ip} to meta l4proto . th dport map @{any}"));
        // A pod that reaches itself would answer itself past the node.
        own.push(format!("{ip} saddr . {ip} daddr @{hairpin} masquerade fully-random"));
        // No pod can answer to the node's loopback addresses.
        own.push(format!("oifname \"{}\" {ip} saddr {loopback} masquerade fully-random", spec.bridge));
    }
    sets.sort();
    // route_localnet, which lets the node's own packets from 127.0.0.1 out to the bridge, would also let pods' packets
    // in to 127.0.0.1 (CVE-2020-8558). Before connection tracking, so no answer is among them.
    let guard =
        ["daddr", "saddr"].map(|end| format!("iifname \"{}\" ip {end} 127.0.0.0/8 drop", spec.bridge));
    let guard = if has(true) { guard.to_vec() } else { Vec::new() };
    let base = |r#type: &str, hook: &str, priority| {
        Some(Hook { r#type: r#type.to_owned(), hook: hook.to_owned(), priority, policy: "accept".to_owned() })
    };
    let chain = |name: &str, hook, rules: Vec<String>| {
        Spec::NftChain(NftChain {
            table: ours::HOSTPORT_TABLE.to_owned(),
            name: name.to_owned(),
            hook,
            rules,
        })
    };
    let to_the_node = || vec!["fib daddr type 2 jump hostports".to_owned()];
    vec![
        Spec::NftTable(NftTable { name: ours::HOSTPORT_TABLE.to_owned(), sets }),
        chain("guard", base("filter", "prerouting", -300), guard),
        chain("hostports", None, forward),
        chain("own", None, own),
        // After services (-100).
        chain("output", base("nat", "output", -95), to_the_node()),
        chain("postrouting", base("nat", "postrouting", 96), vec!["ct status 0x20 jump own".to_owned()]),
        chain("prerouting", base("nat", "prerouting", -95), to_the_node()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What containerd's go-cni writes, seen from containerd 1.6.
    #[test]
    fn names_of_fields_in_gos_case() {
        let entry = |text: &str| mapping(&serde_json::from_str(text).unwrap());
        let go = entry(r#"{"HostPort":8080,"ContainerPort":7000,"Protocol":"udp","HostIP":"10.0.0.1"}"#);
        let own = entry(r#"{"hostPort":8080,"containerPort":7000,"protocol":"udp","hostIP":"10.0.0.1"}"#);
        assert_eq!(go, own);
        assert_eq!(go.unwrap().host_port, 8080);
    }
}
