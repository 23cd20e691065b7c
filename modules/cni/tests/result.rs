//! Answers in the shape of each version.

use std::path::Path;

use homelab_cni::ipam::Entry;
use homelab_cni::{AddResult, Attachment, Bandwidth, Base, CniError, Code, Network, Version, Wiring, alias};
use serde_json::{Map, Value, json};

fn answer(version: Version) -> Value {
    let base = Base { version, name: "home".into(), data_dir: "/x".into() };
    let network = Network {
        bridge: "homelab0".into(),
        bridge_mac: None,
        mtu: Some(1450),
        ranges: vec!["10.244.1.0/24".parse().expect("net"), "fd00:1::/64".parse().expect("net")],
        port_mappings: Vec::new(),
        bandwidth: Bandwidth::default(),
        dns: Map::new(),
    };
    let attachment = Attachment { container: "c1".into(), ifname: "eth0".into() };
    let addresses = vec!["10.244.1.7".parse().expect("address"), "fd00:1::7".parse().expect("address")];
    let entry = Entry { owner: "hl0123456789abc".into(), addresses };
    let mut wiring = Wiring::new(&base, &network, &attachment, &entry);
    assert_eq!(wiring.host_mac[0] & 3, 2, "local unicast");
    wiring.host_mac = [2, 0, 0, 0, 0, 9];
    let result = AddResult {
        version,
        network: &network,
        bridge_mac: "02:00:00:00:00:01".into(),
        bridge_mtu: 1450,
        wiring: &wiring,
        mtu: 1450,
        sandbox: Path::new("/run/netns/x"),
    };
    serde_json::from_str(&result.to_json()).expect("JSON")
}

#[test]
fn newest() {
    let want = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "homelab0", "mac": "02:00:00:00:00:01", "mtu": 1450 },
            { "name": "hl0123456789abc", "mac": "02:00:00:00:00:09", "mtu": 1450 },
            { "name": "eth0", "mac": "02:68:0a:f4:01:07", "mtu": 1450, "sandbox": "/run/netns/x" },
        ],
        "ips": [
            { "interface": 2, "address": "10.244.1.7/24", "gateway": "10.244.1.1" },
            { "interface": 2, "address": "fd00:1::7/64", "gateway": "fd00:1::1" },
        ],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }, { "dst": "::/0", "gw": "fd00:1::1" }],
        "dns": {},
    });
    assert_eq!(answer(Version::V1_1_0), want);
}

#[test]
fn older_ones_differ_by_two_fields() {
    for version in [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
        let mut want = answer(Version::V1_1_0);
        want["cniVersion"] = version.as_str().into();
        for interface in want["interfaces"].as_array_mut().expect("interfaces") {
            interface.as_object_mut().expect("object").remove("mtu");
        }
        if version < Version::V1_0_0 {
            want["ips"][0]["version"] = "4".into();
            want["ips"][1]["version"] = "6".into();
        }
        assert_eq!(answer(version), want);
    }
}

#[test]
fn errors() {
    let error = CniError::with(Code::Exhausted, "no free address", "all 253 taken");
    let json: Value = serde_json::from_str(&error.to_json("0.4.0")).expect("JSON");
    let want =
        json!({ "cniVersion": "0.4.0", "code": 100, "msg": "no free address", "details": "all 253 taken" });
    assert_eq!(json, want);
    let bare: Value = serde_json::from_str(&CniError::new(Code::Io, "x").to_json("1.1.0")).expect("JSON");
    assert_eq!(bare, json!({ "cniVersion": "1.1.0", "code": 5, "msg": "x" }));
}

#[test]
fn alias_fits_the_kernel() {
    let attachment = Attachment { container: "c".repeat(512), ifname: "eth0".into() };
    assert_eq!(alias(&attachment).len(), 255);
    // IFALIASZ counts bytes, and a name may hold any letter.
    let odd = Attachment { container: "c".repeat(240), ifname: "äöü".into() };
    assert!(alias(&odd).len() <= 255);
}
