//! The VXLAN tunnel endpoint (VTEP) as node objects.
//!
//! One VXLAN link (RFC 7348) per node carries the pod traffic of both address families. It learns nothing: every
//! entry is written down, so that no ARP or NDP ever crosses the LAN and a stale entry cannot survive a diff.
//! For a peer with pod range `10.244.2.0/24`, LAN address `192.168.50.12` and VTEP MAC `02:..:02` a node holds
//!
//! ```text
//! route      10.244.2.0/24 via 10.244.2.0 dev homelab.1 onlink   the range is behind the peer's VTEP address,
//! neighbour  10.244.2.0 lladdr 02:..:02 dev homelab.1            which has this MAC,
//! fdb        02:..:02 dst 192.168.50.12 dev homelab.1            whose frames go to this machine.
//! ```
//!
//! The VTEP's own address is the first of the node's range as a host address (`10.244.1.0/32`): packets of the
//! node itself to remote pods get it as their source, and the answer comes back through the tunnel. The MAC
//! address follows from the names of cluster and node: nothing is exchanged between nodes, and a reboot or a
//! re-install changes nothing (MAC drift: flannel#1155, #1788).
//!
//! Links are made without a lower device: the route to a peer's LAN address decides. A lower device that goes
//! and comes back (USB network cards, bonds that are rebuilt) would take the VXLAN link with it.
//!
//! Masquerade: pods -> outside the cluster, fully random; never pod -> pod, never node -> pod, never multicast.
//! Forwarding is switched on. It makes the kernel ignore router advertisements and drop the routers that it learned
//! from them, so links on which the kernel takes them get `accept_ra` 2 first. `rp_filter` of the link is loose (2; the kernel takes the larger of `all` and the
//! link's), because a node may send from its LAN address to a pod and expects the answer on the LAN.

use std::net::IpAddr;

use homelab_model::{
    Address, Content, Fdb, File, Hook, Link, LinkKind, Module, Neighbour, NftChain, NftTable, NodeObject,
    NodeSpec, PeerSpec, Route, Spec, Sysctl, ours, stable_mac,
};

/// Name of our chain at the postrouting hook.
pub const MASQUERADE_CHAIN: &str = "vtep-postrouting";

/// Encapsulation overhead on the wire, bytes: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348).
pub fn overhead(underlay: IpAddr) -> u32 {
    if underlay.is_ipv4() { 50 } else { 70 }
}

/// The MAC address of a node's VTEP.
pub fn mac(cluster: &str, node: &str) -> String {
    stable_mac(&["homelab", "vtep", cluster, node])
}

/// Everything of the tunnel that a node holds.
pub fn objects(spec: &NodeSpec) -> Vec<NodeObject> {
    let dual = |v4: bool| spec.pod_cidrs.iter().any(|c| c.addr().is_ipv4() == v4);
    let mut specs = Vec::new();
    let mut lines = Vec::new();
    if dual(true) {
        specs.push(sysctl("net.ipv4.ip_forward", None, "1"));
        lines.push("net.ipv4.ip_forward = 1\n".to_owned());
        // Redirects are sent where this or the link's own says so; pods' bridge says no, other links still say yes.
        specs.push(sysctl("net.ipv4.conf.all.send_redirects", None, "0"));
        lines.push("net.ipv4.conf.all.send_redirects = 0\n".to_owned());
    }
    if dual(false) {
        specs.push(sysctl("net.ipv6.conf.all.forwarding", None, "1"));
        lines.push("net.ipv6.conf.all.forwarding = 1\n".to_owned());
        for link in &spec.router_advertisements {
            let key = format!("net.ipv6.conf.{}.accept_ra", link.replace('.', "/"));
            // With a minus in front it is no error that the link is not there yet: udev comes back to it.
            lines.push(format!("-{key} = 2\n"));
            specs.push(sysctl(&key, None, "2"));
        }
    }
    specs.push(Spec::File(File {
        path: ours::SYSCTL_FILE.to_owned(),
        mode: 0o644,
        owner: "0:0".to_owned(),
        content: Content::Text(format!("{}\n{}", ours::FILE_HEADER, lines.concat())),
    }));
    specs.extend(link(spec));
    let rest = masquerade(spec);
    let of_vtep = |spec| NodeObject { module: Module::Vtep, spec };
    let mut objects: Vec<NodeObject> = specs.into_iter().map(of_vtep).collect();
    objects.extend(peer_objects(&spec.vtep.device, &spec.peers));
    objects.extend(rest.into_iter().map(of_vtep));
    objects
}

/// The entries of these peers in the tunnel of this name.
pub fn peer_objects(device: &str, peers: &[PeerSpec]) -> Vec<NodeObject> {
    let specs = peers.iter().flat_map(|peer| peer_entries(device, peer));
    specs.map(|spec| NodeObject { module: Module::Vtep, spec }).collect()
}

fn sysctl(key: &str, link: Option<&str>, value: &str) -> Spec {
    Spec::Sysctl(Sysctl { key: key.to_owned(), link: link.map(str::to_owned), value: value.to_owned() })
}

fn link(spec: &NodeSpec) -> Vec<Spec> {
    let vtep = &spec.vtep;
    let mut specs = vec![Spec::Link(Link {
        name: vtep.device.clone(),
        mac: vtep.mac.clone(),
        mtu: vtep.mtu,
        up: true,
        alias: ours::LINK_ALIAS.to_owned(),
        kind: LinkKind::Vxlan {
            vni: vtep.vni,
            port: vtep.port,
            local: spec.address,
            learning: false,
            checksum_offload: vtep.checksum_offload,
        },
    })];
    // A dot in a link's name is written as a slash in a sysctl key (sysctl.d(5)).
    let escaped = vtep.device.replace('.', "/");
    specs.push(sysctl(&format!("net.ipv4.conf.{escaped}.rp_filter"), Some(&vtep.device), "2"));
    // Nobody behind the tunnel may configure this node.
    if !spec.ipv6_disabled {
        specs.push(sysctl(&format!("net.ipv6.conf.{escaped}.accept_ra"), Some(&vtep.device), "0"));
    }
    for cidr in &spec.pod_cidrs {
        let Ok(address) = ipnet::IpNet::new(cidr.network(), cidr.max_prefix_len()) else { continue };
        specs.push(Spec::Address(Address { link: vtep.device.clone(), address }));
    }
    specs
}

fn peer_entries(device: &str, peer: &PeerSpec) -> Vec<Spec> {
    let mut specs =
        vec![Spec::Fdb(Fdb { link: device.to_owned(), mac: peer.mac.clone(), remote: peer.address })];
    for cidr in &peer.pod_cidrs {
        specs.push(Spec::Neighbour(Neighbour {
            link: device.to_owned(),
            address: cidr.network(),
            mac: peer.mac.clone(),
        }));
        specs.push(Spec::Route(Route {
            destination: *cidr,
            // The kernel gives IPv6 routes without a metric this one (include/uapi/linux/ipv6_route.h).
            metric: if cidr.addr().is_ipv4() { 0 } else { 1024 },
            via: Some(cidr.network()),
            link: Some(device.to_owned()),
            onlink: true,
            source: None,
            r#type: "unicast".to_owned(),
        }));
    }
    specs
}

fn masquerade(spec: &NodeSpec) -> Vec<Spec> {
    let mut rules = Vec::new();
    for own in &spec.pod_cidrs {
        let v4 = own.addr().is_ipv4();
        let (family, multicast) = if v4 { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
        let Some(cluster) = spec.cluster_cidrs.iter().find(|c| c.addr().is_ipv4() == v4) else { continue };
        rules.push(format!(
            "{family} saddr {own} {family} daddr != {cluster} {family} daddr != {multicast} masquerade fully-random"
        ));
    }
    vec![
        Spec::NftTable(NftTable { name: ours::NFT_TABLE.to_owned(), sets: Vec::new() }),
        Spec::NftChain(NftChain {
            table: ours::NFT_TABLE.to_owned(),
            name: MASQUERADE_CHAIN.to_owned(),
            hook: Some(Hook {
                r#type: "nat".to_owned(),
                hook: "postrouting".to_owned(),
                priority: 100,
                policy: "accept".to_owned(),
            }),
            rules,
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_is_local_unicast_and_depends_on_both_names() {
        let a = mac("home", "node1");
        assert_eq!(a, mac("home", "node1"));
        assert_ne!(a, mac("home", "node2"));
        assert_ne!(a, mac("away", "node1"));
        let first = u8::from_str_radix(&a[..2], 16).expect("hex");
        assert_eq!(first & 3, 2, "{a}");
    }
}
