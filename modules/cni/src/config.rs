//! The network configuration on standard input.

use std::net::IpAddr;
use std::path::PathBuf;

use homelab_model::ours;
use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::bandwidth::{self, Bandwidth};
use crate::hostport::{self, PortMapping};
use crate::names::{check_name, is_ifname};
use crate::{CniError, Code};

/// A version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0, the first, whose result has one address of each family.
    V0_1_0,
    /// 0.2.0, the first with VERSION.
    V0_2_0,
    /// 0.3.0, the first with chains of plugins and results that list interfaces.
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, the first with CHECK.
    V0_4_0,
    /// 1.0.0, the first whose addresses carry no `version`.
    V1_0_0,
    /// 1.1.0, the first with STATUS, GC and `interfaces[].mtu`.
    V1_1_0,
}

impl Version {
    /// All that the plugin speaks, in order.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// As in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// What every command needs of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Version of the configuration and so of the result.
    pub version: Version,
    /// Network name.
    pub name: String,
    /// Directory of the IPAM store, absolute.
    pub data_dir: PathBuf,
}

/// What ADD and CHECK need on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Name of the bridge.
    pub bridge: String,
    /// MAC address that the bridge gets if the plugin has to make it.
    pub bridge_mac: Option<[u8; 6]>,
    /// MTU of bridge and pod interfaces, bytes; None leaves the kernel's default.
    pub mtu: Option<u32>,
    /// The node's pod ranges, one or two, of different families.
    pub ranges: Vec<IpNet>,
    /// Addresses that no pod gets unless it asks for them.
    pub exclude: Vec<IpNet>,
    /// Whether a pod of a name gets the addresses back that the last one of that name had.
    pub sticky: bool,
    /// `portIsolation`: the pod exchanges no frames with other such pods of the bridge.
    pub isolated: bool,
    /// `macspoofchk`: the pod sends by its own MAC and IP addresses only.
    pub guarded: bool,
    /// `dns`, handed through to the result.
    pub dns: Map<String, Value>,
    /// `portMappings`: ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`: how fast the pod may receive and send.
    pub bandwidth: Bandwidth,
}

/// The field of spoof protection, as the plugin `bridge` names it.
const GUARDED: &str = "macspoofchk";

/// Fields that the plugin knows, and those that a runtime adds or has for itself.
const KNOWN: &[&str] = &[
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "bridge",
    "bridgeMac",
    "mtu",
    "ranges",
    "exclude",
    "sticky",
    "portIsolation",
    "macspoofchk",
    "dataDir",
    "dns",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
];

/// Capabilities that a runtime may hand over (CNI's CONVENTIONS.md): those of the first line are followed; the others have
/// no meaning for a network whose ranges are the node's and whose names are Kubernetes'.
const CAPABILITIES: &[&str] = &[
    "portMappings",
    "bandwidth",
    "ips",
    "mac",
    "dns", //
    "ipRanges",
    "aliases",
    "cgroupPath",
];

/// Standard input as a JSON object.
pub(crate) fn decode(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(CniError::new(Code::Decode, "network configuration is no JSON object")),
        Err(error) => Err(CniError::with(Code::Decode, "network configuration is no JSON", error)),
    }
}

/// `cniVersion`; absent or empty means 0.1.0, as the reference implementation reads it.
pub(crate) fn version(map: &Map<String, Value>) -> Result<Version, CniError> {
    let text = match map.get("cniVersion") {
        None => "0.1.0",
        Some(Value::String(text)) if text.is_empty() => "0.1.0",
        Some(Value::String(text)) => text,
        Some(other) => return Err(CniError::with(Code::Decode, "field cniVersion is not a string", other)),
    };
    Version::parse(text).ok_or_else(|| {
        let supported: Vec<&str> = Version::ALL.into_iter().map(Version::as_str).collect();
        CniError::with(
            Code::Version,
            "incompatible CNI version",
            format!("configuration is {text:?}, plugin speaks {}", supported.join(", ")),
        )
    })
}

pub(crate) fn wrong(field: &str, value: &Value, want: &str) -> CniError {
    CniError::with(Code::Config, format!("field {field} is not {want}"), value)
}

fn text<'a>(map: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>, CniError> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(field, other, "a string")),
    }
}

/// The part for every command.
pub(crate) fn base(map: &Map<String, Value>) -> Result<Base, CniError> {
    let version = version(map)?;
    let name = text(map, "name")?.unwrap_or_default();
    if !check_name(name, 200) {
        let message =
            "network name must begin with a letter or digit and hold only letters, digits, '_', '.', '-'";
        return Err(CniError::with(Code::Config, message, format!("{name:?}")));
    }
    let data_dir = PathBuf::from(text(map, "dataDir")?.unwrap_or(ours::IPAM));
    let garbled = data_dir.to_string_lossy().contains(char::is_control);
    if !data_dir.is_absolute() || garbled {
        return Err(CniError::with(Code::Config, "dataDir is not an absolute path", format!("{data_dir:?}")));
    }
    Ok(Base { version, name: name.to_owned(), data_dir })
}

/// The part for ADD and CHECK.
pub(crate) fn network(map: &Map<String, Value>) -> Result<Network, CniError> {
    unsupported(map)?;
    let bridge = text(map, "bridge")?.unwrap_or(ours::BRIDGE);
    if !is_ifname(bridge) {
        return Err(CniError::with(Code::Config, "field bridge is no link name", format!("{bridge:?}")));
    }
    let bridge_mac = match text(map, "bridgeMac")? {
        None => None,
        Some(text) => Some(parse_mac(text).ok_or_else(|| {
            CniError::with(Code::Config, "field bridgeMac is no unicast MAC address", format!("{text:?}"))
        })?),
    };
    let ranges = ranges(map)?;
    // RFC 791 and RFC 8200.
    let least = if ranges.iter().any(|range| range.addr().is_ipv6()) { 1280 } else { 68 };
    let mtu = match map.get("mtu") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64().and_then(|mtu| u32::try_from(mtu).ok()) {
            Some(0) => None,
            Some(mtu) if (least..=65535).contains(&mtu) => Some(mtu),
            _ => return Err(wrong("mtu", value, &format!("a number from {least} to 65535"))),
        },
    };
    let (port_mappings, bandwidth) = (hostport::port_mappings(map)?, bandwidth::bandwidth(map)?);
    let (exclude, dns) = (exclude(map)?, dns(map)?);
    Ok(Network {
        bridge: bridge.to_owned(),
        bridge_mac,
        mtu,
        ranges,
        exclude,
        sticky: switch(map, "sticky")?,
        isolated: switch(map, "portIsolation")?,
        guarded: switch(map, GUARDED)?,
        dns,
        port_mappings,
        bandwidth,
    })
}

fn switch(map: &Map<String, Value>, field: &str) -> Result<bool, CniError> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(other) => Err(wrong(field, other, "true or false")),
    }
}

/// Whether pods of the network are guarded, for a DEL, which must not fail for it.
pub(crate) fn guarded(map: &Map<String, Value>) -> bool {
    map.get(GUARDED) == Some(&Value::Bool(true))
}

/// Addresses and networks.
fn exclude(map: &Map<String, Value>) -> Result<Vec<IpNet>, CniError> {
    let values = match map.get("exclude") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong("exclude", other, "a list of addresses and networks")),
    };
    let parse = |value: &Value| {
        let text = value.as_str()?;
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).map(|net| net.trunc())
    };
    values
        .iter()
        .map(|value| parse(value).ok_or_else(|| wrong("exclude[]", value, "an address or a network")))
        .collect()
}

/// `dns`, and what the runtime says of it in the words of its capability.
fn dns(map: &Map<String, Value>) -> Result<Map<String, Value>, CniError> {
    let object = |field: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(dns)) => Ok(dns.clone()),
        Some(other) => Err(wrong(field, other, "an object")),
    };
    let mut dns = object("dns", map.get("dns"))?;
    let wish = object("runtimeConfig.dns", map.get("runtimeConfig").and_then(|config| config.get("dns")))?;
    for (theirs, ours) in [("servers", "nameservers"), ("searches", "search"), ("options", "options")] {
        if let Some(value) = wish.get(theirs).filter(|value| !value.is_null()) {
            dns.insert(ours.to_owned(), value.clone());
        }
    }
    Ok(dns)
}

/// Refuses what the plugin would have to ignore: a configuration that is only half carried out is worse than an
/// error.
fn unsupported(map: &Map<String, Value>) -> Result<(), CniError> {
    let refuse = |field: &str, value: &Value| {
        Err(CniError::new(Code::UnsupportedField, format!("field {field} is not supported: {value}")))
    };
    for (field, value) in map {
        if !KNOWN.contains(&field.as_str()) && !field.starts_with("cni.dev/") {
            return refuse(field, value);
        }
    }
    for outer in ["capabilities", "runtimeConfig"] {
        let Some(Value::Object(inner)) = map.get(outer) else { continue };
        for (field, value) in inner.iter().filter(|(field, _)| !CAPABILITIES.contains(&field.as_str())) {
            let empty = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                _ => false,
            };
            if !empty {
                return refuse(&format!("{outer}.{field}"), value);
            }
        }
    }
    Ok(())
}

fn ranges(map: &Map<String, Value>) -> Result<Vec<IpNet>, CniError> {
    let Some(Value::Array(values)) = map.get("ranges") else {
        return Err(CniError::new(Code::Config, "field ranges is missing or no list of pod ranges"));
    };
    let mut ranges: Vec<IpNet> = Vec::new();
    for value in values {
        let range: IpNet = value
            .as_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong("ranges[]", value, "a network like 10.244.1.0/24"))?;
        let range = range.trunc();
        if crate::ipam::gateway(range).is_none() {
            return Err(wrong("ranges[]", value, "large enough for a gateway and a pod"));
        }
        if ranges.iter().any(|other| other.addr().is_ipv4() == range.addr().is_ipv4()) {
            return Err(wrong("ranges[]", value, "the only one of its address family"));
        }
        ranges.push(range);
    }
    if ranges.is_empty() {
        return Err(CniError::new(Code::Config, "field ranges is empty"));
    }
    Ok(ranges)
}

/// A unicast MAC address with colons.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// A field whose name may be written in any case, as Go's decoder takes it: containerd says `HostPort` and `IngressRate`
/// (go-cni's structures have no names of their own for JSON).
pub(crate) fn in_any_case<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    let folded = || object.iter().find(|(name, _)| name.eq_ignore_ascii_case(field)).map(|(_, value)| value);
    object.get(field).or_else(folded)
}
