//! Spoof protection: a pod sends by its own MAC and IP addresses only, in Ethernet headers, IP, ARP and neighbour
//! discovery. (The plugin `bridge` has `macspoofchk` for the MAC address, by rules per pod.)
//!
//! The ruleset is fixed; the addresses of pods are elements of its sets, keyed by the pod's port of the bridge, so what
//! a frame costs does not depend on the number of pods. Ports that are not in the set `guarded` go on untouched.
//! Whose addresses are which stands in the alias of the pod's link ([`homelab_model::PodMarks`]).

use std::net::{IpAddr, Ipv6Addr};

use homelab_model::{Hook, NftChain, Spec};
use homelab_model::{OwnAddresses, ours};

use crate::hostport::Element;

/// The sets, sorted: who sends ARP as whom, guarded ports, and the MAC, IPv4 and IPv6 addresses of each.
pub const GUARD_SETS: [&str; 5] = ["arps", "guarded", "macs", "own4", "own6"];

/// `IFNAMSIZ`: how the kernel compares a link's name in a set.
const NAME: usize = 16;

fn name(port: &str) -> Vec<u8> {
    let mut name = port.as_bytes().to_vec();
    name.resize(NAME, 0);
    name
}

/// The port that an element is of.
pub fn guarded_port(key: &[u8]) -> String {
    let name = key.get(..NAME).unwrap_or(key);
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

/// The link-local address that the kernel makes of a MAC address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// The elements of a port, sorted.
pub fn guard_elements(port: &str, own: &OwnAddresses) -> Vec<Element> {
    let port = name(port);
    let mut mac = own.mac.to_vec();
    // Fields of a concatenation are padded to four bytes.
    mac.resize(8, 0);
    let element = |set: &'static str, parts: &[&[u8]]| Element {
        set,
        key: [&port[..], &parts.concat()].concat(),
        data: None,
    };
    let mut elements = vec![element("guarded", &[]), element("macs", &[&mac])];
    elements.push(element("own6", &[&link_local(own.mac).octets()]));
    for address in &own.addresses {
        match address {
            IpAddr::V4(address) => {
                elements.push(element("arps", &[&mac, &address.octets()]));
                elements.push(element("own4", &[&address.octets()]));
            }
            IpAddr::V6(address) => elements.push(element("own6", &[&address.octets()])),
        }
    }
    elements.sort();
    elements
}

/// Declarations of the sets, as nft prints them.
pub(crate) fn sets() -> Vec<String> {
    vec![
        "set arps { type ifname . ether_addr . ipv4_addr }".to_owned(),
        "set guarded { type ifname }".to_owned(),
        "set macs { type ifname . ether_addr }".to_owned(),
        "set own4 { type ifname . ipv4_addr }".to_owned(),
        // Both the source of a packet and the target of an advertisement are looked up here. nft 1.0.6 has no name for the
        // latter, and mixes none of its names with raw bytes.
        "set own6 { typeof iifname . @nh,64,128 }".to_owned(),
    ]
}

/// The chains. What is not IPv4, IPv6 or ARP is nothing that a pod sends.
///
/// Raw bytes have chains of their own: where the protocol is not known, no version of nft prints them by a name.
pub(crate) fn chains() -> Vec<Spec> {
    let chain = |name: &str, hook: Option<Hook>, rules: &[&str]| {
        let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        Spec::NftChain(NftChain { table: ours::BRIDGE_TABLE.to_owned(), name: name.to_owned(), hook, rules })
    };
    let hook = Hook {
        r#type: "filter".to_owned(),
        hook: "prerouting".to_owned(),
        // Before frames are led through the node (-300), and before a bridge learns where a MAC address is.
        priority: -310,
        policy: "accept".to_owned(),
    };
    vec![
        chain("cni-guard", Some(hook), &["iifname @guarded goto cni-own"]),
        chain(
            "cni-own",
            None,
            &[
                "iifname . ether saddr != @macs drop",
                // 802.1Q: the frame inside has not been looked at.
                "ether type 0x8100 drop",
                "iifname . arp saddr ether . arp saddr ip @arps accept",
                "iifname . ip saddr @own4 accept",
                // Advertisements of routers, and redirects.
                "icmpv6 type { 134, 137 } drop",
                "icmpv6 type 136 jump cni-own-target",
                "ether type 0x86dd jump cni-own6",
                "drop",
            ],
        ),
        chain("cni-own-target", None, &["iifname . @th,64,128 != @own6 drop"]),
        chain("cni-own6", None, &["iifname . @nh,64,128 @own6 accept"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_as_the_kernel_stores_them() {
        let own = OwnAddresses {
            mac: [2, 0x68, 10, 244, 1, 2],
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        };
        let elements = guard_elements("hl0123456789abc", &own);
        let sets: Vec<&str> = elements.iter().map(|element| element.set).collect();
        assert_eq!(sets, ["arps", "guarded", "macs", "own4", "own6", "own6"]);
        assert!(elements.iter().all(|e| guarded_port(&e.key) == "hl0123456789abc"));
        let rest = |index: usize| &elements[index].key[NAME..];
        assert_eq!(rest(0), [2, 0x68, 10, 244, 1, 2, 0, 0, 10, 244, 1, 2]);
        assert_eq!(rest(2), [2, 0x68, 10, 244, 1, 2, 0, 0]);
        assert_eq!(rest(3), [10, 244, 1, 2]);
        assert_eq!(rest(4)[..2], [0xfd, 0]);
        assert_eq!(link_local(own.mac).to_string(), "fe80::68:aff:fef4:102");
        let declared = super::sets();
        let names: Vec<&str> = declared.iter().filter_map(|set| set.split(' ').nth(1)).collect();
        assert_eq!(names, GUARD_SETS);
    }
}
