//! `prevResult`: what the plugins before this one answered (ADD), or the whole chain (CHECK). Specification 1.1.0,
//! section 5.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::{CniError, Code, Version};

/// What the chain answered to ADD, as far as CHECK compares it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrevResult {
    /// MAC address of the container's interface, lower-case; empty if the result names none.
    pub mac: String,
    /// MTU of the container's interface, bytes, if the result names one (from 1.1.0 on).
    pub mtu: Option<u32>,
    /// Addresses of the container's interface.
    pub addresses: Vec<IpNet>,
    /// Gateways of default routes.
    pub gateways: Vec<IpAddr>,
}

/// The result of the plugins before this one in a chain, which goes on in this one's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Previous {
    /// `interfaces`.
    pub interfaces: Vec<Value>,
    /// `ips`.
    pub ips: Vec<Value>,
    /// `routes`.
    pub routes: Vec<Value>,
    /// `dns`.
    pub dns: Map<String, Value>,
}

fn bad(what: &str, value: &Value) -> CniError {
    CniError::with(Code::Decode, format!("prevResult.{what} cannot be read"), value)
}

fn list(prev: &Value, field: &str) -> Result<Vec<Value>, CniError> {
    match prev.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => match items.iter().find(|item| !item.is_object()) {
            Some(item) => Err(bad(field, item)),
            None => Ok(items.clone()),
        },
        Some(other) => Err(bad(field, other)),
    }
}

/// `prevResult` of an ADD; nothing where this plugin is the first. There are chains since 0.3.0.
pub(crate) fn previous(map: &Map<String, Value>, version: Version) -> Result<Previous, CniError> {
    let Some(prev) = map.get("prevResult").filter(|prev| !prev.is_null() && version >= Version::V0_3_0)
    else {
        return Ok(Previous::default());
    };
    if !prev.is_object() {
        return Err(CniError::with(Code::Decode, "prevResult is no object", prev));
    }
    let dns = match prev.get("dns") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(dns)) => dns.clone(),
        Some(other) => return Err(bad("dns", other)),
    };
    Ok(Previous {
        interfaces: list(prev, "interfaces")?,
        ips: list(prev, "ips")?,
        routes: list(prev, "routes")?,
        dns,
    })
}

/// `prevResult` of a CHECK, for the interface `ifname`.
pub(crate) fn prev_result(map: &Map<String, Value>, ifname: &str) -> Result<PrevResult, CniError> {
    let Some(prev) = map.get("prevResult").filter(|prev| !prev.is_null()) else {
        return Err(CniError::new(Code::Config, "CHECK needs field prevResult"));
    };
    let interfaces = list(prev, "interfaces")?;
    let in_container =
        |i: &Value| i["name"] == ifname && i["sandbox"].as_str().is_some_and(|s| !s.is_empty());
    let position = interfaces.iter().position(in_container).ok_or_else(|| {
        CniError::new(Code::Config, format!("prevResult has no interface {ifname} of the container"))
    })?;
    let interface = &interfaces[position];
    let mut result = PrevResult {
        mac: interface["mac"].as_str().unwrap_or_default().to_lowercase(),
        mtu: interface["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok()).filter(|mtu| *mtu > 0),
        ..PrevResult::default()
    };
    for ip in list(prev, "ips")? {
        // Addresses of other interfaces belong to other plugins of the chain.
        if ip["interface"].as_u64().is_some_and(|index| index != position as u64) {
            continue;
        }
        let address = ip["address"].as_str().and_then(|text| text.parse().ok());
        result.addresses.push(address.ok_or_else(|| bad("ips", &ip))?);
    }
    for route in list(prev, "routes")? {
        let dst: IpNet =
            route["dst"].as_str().and_then(|text| text.parse().ok()).ok_or_else(|| bad("routes", &route))?;
        if let (0, Some(gw)) = (dst.prefix_len(), route["gw"].as_str()) {
            result.gateways.push(gw.parse().map_err(|_| bad("routes", &route))?);
        }
    }
    Ok(result)
}
