//! Answers in the shape of each version.

#[path = "schemas/mod.rs"]
mod schemas;

use std::path::Path;

use homelab_cni::ipam::Entry;
use homelab_cni::{
    AddResult, Attachment, Bandwidth, Base, CniError, Code, Network, Previous, Version, Wiring, alias,
    holder_by_link, version_json,
};
use homelab_model::{OwnAddresses, PodMarks};
use serde_json::{Map, Value, json};

fn answer(version: Version) -> Value {
    chained(version, 2, &Previous::default())
}

/// The answer of a plugin that made the first `routed` of its default routes, after others.
fn chained(version: Version, routed: usize, previous: &Previous) -> Value {
    let base = Base { version, name: "home".into(), data_dir: "/x".into() };
    let network = Network {
        bridge: "homelab0".into(),
        bridge_mac: None,
        mtu: Some(1450),
        ranges: vec!["10.244.1.0/24".parse().expect("net"), "fd00:1::/64".parse().expect("net")],
        exclude: Vec::new(),
        sticky: false,
        isolated: false,
        guarded: false,
        port_mappings: Vec::new(),
        bandwidth: Bandwidth::default(),
        dns: Map::new(),
    };
    let attachment = Attachment { container: "c1".into(), ifname: "eth0".into() };
    let addresses = vec!["10.244.1.7".parse().expect("address"), "fd00:1::7".parse().expect("address")];
    let entry = Entry { owner: "hl0123456789abc".into(), addresses };
    let mut wiring = Wiring::new(&base, &network, &attachment, &entry, None);
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
        routed: &wiring.addresses[..routed],
        previous,
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
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
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
fn oldest() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let want = json!({
            "cniVersion": version.as_str(),
            "ip4": {
                "ip": "10.244.1.7/24", "gateway": "10.244.1.1",
                "routes": [{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }],
            },
            "ip6": { "ip": "fd00:1::7/64", "gateway": "fd00:1::1", "routes": [{ "dst": "::/0", "gw": "fd00:1::1" }] },
            "dns": {},
        });
        assert_eq!(answer(version), want);
    }
}

#[test]
fn what_came_before_stays_and_indices_move() {
    let dns = json!({ "nameservers": ["192.0.2.53"] });
    let previous = Previous {
        interfaces: vec![
            json!({ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/x", "mtu": 65536 }),
        ],
        ips: vec![json!({ "address": "127.0.0.1/8", "interface": 0 })],
        routes: vec![json!({ "dst": "192.0.2.0/24", "gw": "127.0.0.1", "table": 7 })],
        dns: dns.as_object().expect("object").clone(),
    };
    let result = chained(Version::V1_1_0, 1, &previous);
    let names: Vec<&str> =
        result["interfaces"].as_array().expect("list").iter().filter_map(|i| i["name"].as_str()).collect();
    assert_eq!(names, ["lo", "homelab0", "hl0123456789abc", "eth0"]);
    let ips: Vec<_> = result["ips"].as_array().expect("list").iter().map(|ip| &ip["interface"]).collect();
    assert_eq!(ips, [0, 3, 3]);
    let routes = json!([previous.routes[0], { "dst": "0.0.0.0/0", "gw": "10.244.1.1" }]);
    assert_eq!(result["routes"], routes, "only what was made");
    assert_eq!(result["dns"], dns);
    let old = chained(Version::V0_4_0, 1, &previous);
    let families: Vec<_> = old["ips"].as_array().expect("list").iter().map(|ip| &ip["version"]).collect();
    assert_eq!(families, ["4", "4", "6"], "also where the plugin before says nothing");
}

/// JSON Schemas written after the specifications' texts; nothing beyond what they name is let through.
#[test]
fn every_answer_fits_the_schema_of_its_version() {
    for version in Version::ALL {
        for routed in [2, 1, 0] {
            schemas::assert_result(version.as_str(), &chained(version, routed, &Previous::default()));
        }
        let error = CniError::with(Code::Exhausted, "no free address", "all 253 taken");
        schemas::assert_error(
            version.as_str(),
            &serde_json::from_str(&error.to_json(version.as_str())).expect("JSON"),
        );
        let versions = serde_json::from_str(&version_json(version.as_str())).expect("JSON");
        schemas::assert_version(version.as_str(), &versions);
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
    // Errors show parts of a configuration, which may be of any size.
    let long = CniError::with(Code::Config, "ä".repeat(100_000), "ö".repeat(100_000));
    let json: Value = serde_json::from_str(&long.to_json("1.1.0")).expect("JSON");
    for text in [&json["msg"], &json["details"]] {
        let text = text.as_str().expect("text");
        assert!(text.len() < 2100 && text.ends_with("... (200000 bytes)"), "{text}");
    }
}

#[test]
fn alias_fits_the_kernel() {
    let attachment = Attachment { container: "c".repeat(512), ifname: "eth0".into() };
    assert_eq!(alias(&attachment, &PodMarks::default()).len(), 254);
    // The kernel counts bytes, and a name may hold any letter.
    let odd = Attachment { container: "c".repeat(240), ifname: "äöü".into() };
    assert!(alias(&odd, &PodMarks::default()).len() <= 254);
}

#[test]
fn a_link_says_whose_it_is_unless_its_alias_was_cut() {
    let runtime = Some("0a1b2c3d".to_owned());
    let own = OwnAddresses { mac: [2, 0, 0, 0, 0, 1], addresses: vec!["10.0.0.2".parse().expect("address")] };
    for marks in [PodMarks::default(), PodMarks { isolated: true, own: Some(own), runtime: runtime.clone() }]
    {
        let attachment = |container: &str| Attachment { container: container.into(), ifname: "eth-0".into() };
        let link = |container: &str| homelab_cni::ipam::owner("home", container, "eth-0");
        let short = alias(&attachment("c1"), &marks);
        let holder = holder_by_link("home", &link("c1"), &short).expect("holder");
        assert_eq!((holder.container.as_str(), holder.interface.as_str()), ("c1", "eth-0"));
        assert_eq!((holder.pod, holder.runtime), (None, marks.runtime.clone()));
        let long = "c".repeat(260);
        for (network, link, alias) in [
            ("other", link("c1"), short.as_str()),
            ("home", link("c2"), &short),
            ("home", link(&long), &alias(&attachment(&long), &marks)),
            ("home", link("c1"), "homelab-pod:c1"),
            ("home", link("c1"), "homelab"),
            ("home", link("c1"), ""),
        ] {
            assert_eq!(holder_by_link(network, &link, alias), None, "{network} {link} {alias}");
        }
    }
}
