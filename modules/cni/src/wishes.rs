//! What a runtime asks for one attachment: `CNI_ARGS`, `args` and `runtimeConfig` (CNI's CONVENTIONS.md). Where they say the
//! same, `runtimeConfig` counts before `args` and `args` before `CNI_ARGS`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::config::{parse_mac, wrong};
use crate::names::check_name;
use crate::{CniError, Code};

/// What is asked for one attachment beyond the network's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// The name that the runtime gives the pod: `namespace/name`, or `name`.
    pub pod: Option<String>,
    /// Addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the container's interface.
    pub mac: Option<[u8; 6]>,
    /// The container that is the pod's sandbox: runtimes that speak CRI name the very container that is to be attached.
    pub sandbox: Option<String>,
}

/// The wishes in `CNI_ARGS` and the configuration.
pub(crate) fn wishes(args: &str, map: &Map<String, Value>) -> Result<Wishes, CniError> {
    let mut wishes = from_environment(args)?;
    for outer in ["args", "runtimeConfig"] {
        let of_args = |value: &Value| value.get("cni").cloned();
        let value = map.get(outer).and_then(|v| if outer == "args" { of_args(v) } else { Some(v.clone()) });
        let Some(Value::Object(from)) = value else { continue };
        if let Some(ips) = from.get("ips").filter(|ips| !ips.is_null()) {
            let field = format!("{outer}.ips");
            let bad = || wrong(&field, ips, "a list of at most one address of each family");
            let texts = ips.as_array().ok_or_else(bad)?.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
            wishes.addresses = addresses(&texts.ok_or_else(bad)?).ok_or_else(bad)?;
        }
        if let Some(mac) = from.get("mac").filter(|mac| !mac.is_null() && **mac != "") {
            let bad = || wrong(&format!("{outer}.mac"), mac, "a unicast MAC address");
            wishes.mac = Some(mac.as_str().and_then(parse_mac).ok_or_else(bad)?);
        }
    }
    Ok(wishes)
}

/// Addresses with or without prefix lengths, which are the ranges' anyway.
fn addresses(texts: &[&str]) -> Option<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts {
        let text = text.trim();
        let address = text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))?;
        if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return None;
        }
        found.push(address);
    }
    Some(found)
}

/// `CNI_ARGS`: `KEY=value` pairs with semicolons. Kubernetes' own are known; others are refused unless `IgnoreUnknown`
/// is set, as the reference plugins do.
fn from_environment(args: &str) -> Result<Wishes, CniError> {
    let bad = |what: &str, pair: &str| {
        CniError::with(Code::Environment, format!("CNI_ARGS {what}"), format!("{pair:?}"))
    };
    let (mut namespace, mut name) = (None, None);
    let mut wishes = Wishes::default();
    let mut ignore = false;
    let mut unknown = Vec::new();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| bad("holds no KEY=value pair", pair))?;
        match key {
            "IgnoreUnknown" => {
                ignore = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => return Err(bad("says neither true nor false", pair)),
                };
            }
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "IP" if value.is_empty() => {}
            "IP" => {
                let texts: Vec<&str> = value.split(',').collect();
                let what = "names more than one address of a family, or none";
                wishes.addresses = addresses(&texts).ok_or_else(|| bad(what, pair))?;
            }
            "MAC" if value.is_empty() => {}
            "MAC" => {
                wishes.mac = Some(parse_mac(value).ok_or_else(|| bad("names no unicast MAC address", pair))?);
            }
            "K8S_POD_INFRA_CONTAINER_ID" => wishes.sandbox = Some(value.to_owned()),
            _ if key.starts_with("K8S_POD_") => {}
            _ => unknown.push(key),
        }
    }
    if !ignore && !unknown.is_empty() {
        let message = "CNI_ARGS holds unknown keys and IgnoreUnknown is not set";
        return Err(CniError::with(Code::Environment, message, unknown.join(", ")));
    }
    // It goes into a symbolic link's target, for people and for services that name their endpoints.
    let good = |text: &&str| check_name(text, 253);
    let namespace = namespace.filter(good).map(|namespace| format!("{namespace}/"));
    wishes.pod = name.filter(good).map(|name| namespace.unwrap_or_default() + name);
    Ok(wishes)
}
