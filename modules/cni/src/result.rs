//! Results in the shape of the requested version.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Network, Version};
use crate::previous::Previous;
use crate::wiring::{PodAddress, Wiring, mac_text};

/// The answer to ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult<'a> {
    /// Requested version.
    pub version: Version,
    /// Configuration.
    pub network: &'a Network,
    /// MAC address of the bridge, as the kernel has it.
    pub bridge_mac: String,
    /// MTU of the bridge, bytes, as the kernel has it.
    pub bridge_mtu: u32,
    /// What was made.
    pub wiring: &'a Wiring,
    /// MTU of the pair, bytes, as the kernel has it.
    pub mtu: u32,
    /// `CNI_NETNS`.
    pub sandbox: &'a Path,
    /// The addresses whose default routes were made: of several networks of one container the first has them.
    pub routed: &'a [PodAddress],
    /// What the plugins before this one answered.
    pub previous: &'a Previous,
}

impl AddResult<'_> {
    /// The answer as JSON.
    pub fn to_json(&self) -> String {
        let mut result = if self.version < Version::V0_3_0 { self.families() } else { self.lists() };
        let mut dns = self.previous.dns.clone();
        dns.extend(self.network.dns.clone());
        result.insert("cniVersion".into(), self.version.as_str().into());
        result.insert("dns".into(), dns.into());
        Value::Object(result).to_string()
    }

    /// 0.1.0 and 0.2.0: one address of each family with its routes, no interfaces.
    fn families(&self) -> Map<String, Value> {
        let mut result = Map::new();
        for pod in &self.wiring.addresses {
            let mut family = json!({ "ip": pod.address.to_string(), "gateway": pod.gateway.to_string() });
            if self.routed.contains(pod) {
                family["routes"] = json!([default_route(pod)]);
            }
            let key = if pod.address.addr().is_ipv4() { "ip4" } else { "ip6" };
            result.insert(key.into(), family);
        }
        result
    }

    /// From 0.3.0 on (whose text has `ip` where it means `ips`; 0.3.1 mended it): what was before, and then ours.
    fn lists(&self) -> Map<String, Value> {
        let wiring = self.wiring;
        let Previous { mut interfaces, mut ips, mut routes, dns: _ } = self.previous.clone();
        let interface = |name: &str, mac: &str, mtu: u32| {
            let mut interface = Map::new();
            interface.insert("name".into(), name.into());
            interface.insert("mac".into(), mac.into());
            if self.version >= Version::V1_1_0 {
                interface.insert("mtu".into(), mtu.into());
            }
            interface
        };
        let mut pod = interface(&wiring.ifname, &mac_text(&wiring.mac), self.mtu);
        pod.insert("sandbox".into(), self.sandbox.to_string_lossy().into());
        let ours = [
            interface(&self.network.bridge, &self.bridge_mac, self.bridge_mtu),
            interface(&wiring.host, &mac_text(&wiring.host_mac), self.mtu),
            pod,
        ];
        interfaces.extend(ours.into_iter().map(Value::Object));
        let position = interfaces.len() - 1;
        if self.version < Version::V1_0_0 {
            // Plugins of today leave it out, and so would this result be none of its version.
            for ip in ips.iter_mut().filter(|ip| ip["version"].as_str().is_none_or(str::is_empty)) {
                let v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
                ip["version"] = if v6 { "6" } else { "4" }.into();
            }
        }
        for pod in &wiring.addresses {
            let mut ip = Map::new();
            // 1.0.0 took the field away.
            if self.version < Version::V1_0_0 {
                let v4 = pod.address.addr().is_ipv4();
                ip.insert("version".into(), if v4 { "4" } else { "6" }.into());
            }
            ip.insert("interface".into(), position.into());
            ip.insert("address".into(), pod.address.to_string().into());
            ip.insert("gateway".into(), pod.gateway.to_string().into());
            ips.push(Value::Object(ip));
        }
        routes.extend(self.routed.iter().map(default_route));
        [("interfaces", interfaces), ("ips", ips), ("routes", routes)]
            .into_iter()
            .map(|(key, list)| (key.to_owned(), Value::Array(list)))
            .collect()
    }
}

fn default_route(pod: &PodAddress) -> Value {
    let everything = if pod.address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    json!({ "dst": everything, "gw": pod.gateway.to_string() })
}

/// The answer to VERSION, which repeats the version of the question.
pub fn version_json(version: &str) -> String {
    let supported: Vec<&str> = Version::ALL.into_iter().map(Version::as_str).collect();
    json!({ "cniVersion": version, "supportedVersions": supported }).to_string()
}
