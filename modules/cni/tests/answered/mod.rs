//! Any bytes as a runtime's request. The test `fuzz` and the libFuzzer target `cni` (tests/fuzz) share it.

use std::collections::BTreeMap;
use std::path::Path;

use homelab_cni::hostport::{Claim as Ports, owner_of};
use homelab_cni::ipam::{self, Claim, Entry, Pool, Reservation};
use homelab_cni::{AddResult, Attachment, Code, Request, Wiring, alias, error_version};
use serde_json::Value;

/// Lines `NAME=value` of the environment, an empty line, standard input: whether it was taken. Panics where the answer is
/// none, or what is taken could do harm.
pub(crate) fn answered(bytes: &[u8]) -> bool {
    let split = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    let (head, stdin) = (&bytes[..split], bytes.get(split + 2..).unwrap_or_default());
    let head = String::from_utf8_lossy(head);
    let env: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once('=')).collect();
    match Request::parse(&|name| env.get(name).map(|value| (*value).to_owned()), stdin) {
        Err(error) => {
            let json: Value = serde_json::from_str(&error.to_json(error_version(stdin))).expect("JSON");
            assert!(json["code"] == error.code as u32 && json["msg"].as_str().is_some_and(|m| !m.is_empty()));
            // The specification: the names of invalid variables must be in the message.
            assert!(error.code != Code::Environment || error.message.contains("CNI_"), "{error}");
            return false;
        }
        Ok(Request::Add { base, network, attachment, sandbox, wishes, previous }) => {
            safe(&base.name);
            safe_attachment(&attachment);
            assert!(sandbox.path.is_absolute() && base.data_dir.is_absolute());
            let pod = wishes.pod.as_deref().unwrap_or("x");
            pod.split('/').for_each(safe);
            let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
            let pool = Pool { ranges: &network.ranges, exclude: &network.exclude };
            let claim = Claim { owner: &owner, asked: &wishes.addresses, ..Claim::default() };
            let Ok(Reservation::New(entry, _)) = ipam::reserve(pool, &[], None, claim) else { return true };
            assert_eq!(Entry::parse(&entry.name()), Some(entry.clone()));
            for (address, range) in entry.addresses.iter().zip(&network.ranges) {
                assert!(range.contains(address) && ipam::gateway(*range) != Some(*address));
            }
            let wiring = Wiring::new(&base, &network, &attachment, &entry, wishes.mac);
            assert!(wiring.mac[0] & 1 == 0 && wiring.addresses.len() == network.ranges.len());
            let limits = [network.bandwidth.ingress, network.bandwidth.egress];
            assert!(
                limits
                    .iter()
                    .flatten()
                    .all(|r| r.bytes_per_second > 0 && r.burst > 0 && r.queue() >= r.burst)
            );
            let ports = Ports {
                owner: owner.clone(),
                network: base.name.clone(),
                container: attachment.container.clone(),
                pod: wishes.pod.clone(),
                bridge: network.bridge.clone(),
                addresses: entry.addresses.clone(),
                ports: network.port_mappings.clone(),
            };
            assert!(ports.comment().len() <= 128 && owner_of(&ports.comment()) == owner);
            let elements = ports.elements();
            // Every port leads to the pod, and no element is there twice.
            assert!(ports.forwards().iter().all(|f| entry.addresses.contains(&f.to.ip()) && f.port > 0));
            assert!(elements.windows(2).all(|two| (two[0].set, &two[0].key) < (two[1].set, &two[1].key)));
            let before = previous.interfaces.len();
            let result = AddResult {
                version: base.version,
                network: &network,
                bridge_mac: "02:00:00:00:00:01".to_owned(),
                bridge_mtu: 1500,
                wiring: &wiring,
                mtu: 1500,
                sandbox: Path::new("/run/netns/x"),
                routed: &wiring.addresses,
                previous: &previous,
            };
            let json: Value = serde_json::from_str(&result.to_json()).expect("JSON");
            let interfaces = json["interfaces"].as_array().map_or(before + 3, Vec::len);
            assert_eq!(interfaces, before + 3);
        }
        Ok(Request::Del { base, attachment, .. } | Request::Check { base, attachment, .. }) => {
            safe(&base.name);
            safe_attachment(&attachment);
        }
        Ok(Request::Gc { base, valid }) => {
            safe(&base.name);
            valid.iter().for_each(safe_attachment);
        }
        Ok(Request::Status { base, .. }) => safe(&base.name),
        Ok(Request::Version { .. }) => {}
    }
    true
}

/// Part of a path, and no option.
fn safe(name: &str) {
    assert!(!name.is_empty() && name != "." && name != ".." && !name.starts_with('-'), "{name:?}");
    assert!(!name.contains(['/', '\0', '\n', ',']), "{name:?}");
}

fn safe_attachment(attachment: &Attachment) {
    safe(&attachment.container);
    let name = &attachment.ifname;
    assert!((1..=15).contains(&name.len()) && !name.contains(['/', ':', '%', '\0', '\n', ' ']), "{name:?}");
    assert!(name != "." && name != "..");
    let alias = alias(attachment, &homelab_model::PodMarks::default());
    assert!(alias.len() <= 254 && alias.starts_with("homelab-pod:"));
}
