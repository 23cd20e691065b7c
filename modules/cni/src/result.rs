//! Results in the shape of the requested version.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Network, Version};
use crate::wiring::{Wiring, mac_text};

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
}

impl AddResult<'_> {
    /// The answer as JSON.
    pub fn to_json(&self) -> String {
        let wiring = self.wiring;
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
        let interfaces = [
            interface(&self.network.bridge, &self.bridge_mac, self.bridge_mtu),
            interface(&wiring.host, &mac_text(&wiring.host_mac), self.mtu),
            pod,
        ];
        let mut ips = Vec::new();
        let mut routes = Vec::new();
        for pod in &wiring.addresses {
            let v4 = pod.address.addr().is_ipv4();
            let mut ip = Map::new();
            // 1.0.0 took the field away.
            if self.version < Version::V1_0_0 {
                ip.insert("version".into(), if v4 { "4" } else { "6" }.into());
            }
            ip.insert("interface".into(), 2.into());
            ip.insert("address".into(), pod.address.to_string().into());
            ip.insert("gateway".into(), pod.gateway.to_string().into());
            ips.push(Value::Object(ip));
            let everything = if v4 { "0.0.0.0/0" } else { "::/0" };
            routes.push(json!({ "dst": everything, "gw": pod.gateway.to_string() }));
        }
        json!({
            "cniVersion": self.version.as_str(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.network.dns,
        })
        .to_string()
    }
}

/// The answer to VERSION, which repeats the version of the question.
pub fn version_json(version: &str) -> String {
    let supported: Vec<&str> = Version::ALL.into_iter().map(Version::as_str).collect();
    json!({ "cniVersion": version, "supportedVersions": supported }).to_string()
}
