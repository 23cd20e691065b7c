//! Everything that ADD makes in the kernel, as data.

use std::net::IpAddr;

use homelab_model::{OwnAddresses, PodMarks, ours};
use ipnet::IpNet;

use crate::config::{Base, Network};
use crate::ipam::{self, Entry, Holder};
use crate::request::Attachment;

/// An address of a pod and the gateway of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodAddress {
    /// Address with the range's prefix length.
    pub address: IpNet,
    /// The bridge's address.
    pub gateway: IpAddr,
}

/// A pod's veth pair: both ends, addresses, routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// The node's end: a port of the bridge, hairpin on (a pod reaches itself through its service).
    pub host: String,
    /// Its MAC address. Set, because udev's `MACAddressPolicy=persistent` rewrites one that the kernel drew.
    pub host_mac: [u8; 6],
    /// Its alias, with `marks`.
    pub alias: String,
    /// What of its traffic the bridge lets pass.
    pub marks: PodMarks,
    /// The pod's end.
    pub ifname: String,
    /// Its MAC address, derived from its address unless another is asked for: a pod that inherits an address inherits the
    /// neighbour entries that others still hold for it, so no gratuitous ARP or unsolicited NA is needed.
    pub mac: [u8; 6],
    /// MTU of both ends, bytes; None leaves the kernel's default.
    pub mtu: Option<u32>,
    /// Addresses of the pod, each with a default route over its gateway.
    pub addresses: Vec<PodAddress>,
}

impl Wiring {
    /// The wiring of an attachment that holds `entry`, with the MAC address that is asked for, if one is.
    pub fn new(
        base: &Base,
        network: &Network,
        attachment: &Attachment,
        entry: &Entry,
        mac: Option<[u8; 6]>,
    ) -> Wiring {
        let addresses: Vec<PodAddress> = entry
            .addresses
            .iter()
            .filter_map(|address| {
                let range = network.ranges.iter().find(|range| range.contains(address))?;
                Some(PodAddress {
                    address: IpNet::new(*address, range.prefix_len()).ok()?,
                    gateway: ipam::gateway(*range)?,
                })
            })
            .collect();
        let mac = mac.or_else(|| entry.addresses.first().map(pod_mac)).unwrap_or_default();
        let own = OwnAddresses { mac, addresses: entry.addresses.clone() };
        let marks =
            PodMarks { isolated: network.isolated, own: network.guarded.then_some(own), runtime: None };
        Wiring {
            host: entry.owner.clone(),
            host_mac: host_mac(base, attachment),
            alias: alias(attachment, &marks),
            marks,
            ifname: attachment.ifname.clone(),
            mac,
            mtu: network.mtu,
            addresses,
        }
    }

    /// The same for a runtime that asks by CRI, which the alias says then.
    pub fn for_runtime(mut self, attachment: &Attachment, runtime: Option<String>) -> Wiring {
        self.marks.runtime = runtime;
        self.alias = alias(attachment, &self.marks);
        self
    }
}

/// Whose a link is by its alias, if it is a pod's of this network: its name is the hash of who holds it. An alias that was
/// cut does not say. What pod that is was never in it.
pub fn holder_by_link(network: &str, link: &str, alias: &str) -> Option<Holder> {
    let name = alias.strip_prefix(ours::POD_ALIAS)?.split(' ').next()?;
    let (container, interface) = name.split_once('/')?;
    (ipam::owner(network, container, interface) == link).then(|| Holder {
        container: container.to_owned(),
        interface: interface.to_owned(),
        pod: None,
        runtime: PodMarks::of_alias(alias).runtime,
    })
}

/// `IFLA_IFALIAS` of an attachment with its marks, cut to the kernel's limit.
pub fn alias(attachment: &Attachment, marks: &PodMarks) -> String {
    marks.alias(&format!("{}{}/{}", ours::POD_ALIAS, attachment.container, attachment.ifname))
}

/// `02:68` and the last four octets of the address: unique on the bridge, because the addresses are.
fn pod_mac(address: &IpAddr) -> [u8; 6] {
    let low = match address {
        IpAddr::V4(address) => address.octets(),
        // Offsets in a range are 32 bits.
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    [0x02, 0x68, low[0], low[1], low[2], low[3]]
}

fn host_mac(base: &Base, attachment: &Attachment) -> [u8; 6] {
    let parts = ["homelab", "veth", &base.name, &attachment.container, &attachment.ifname];
    crate::config::parse_mac(&homelab_model::stable_mac(&parts)).unwrap_or_default()
}

/// A MAC address as text, lower-case with colons.
pub fn mac_text(mac: &[u8]) -> String {
    let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
    octets.join(":")
}
