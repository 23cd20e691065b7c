//! What a node holds for pods: bridge, plugin, configuration.

use std::net::IpAddr;

use homelab_model::{
    Address, Content, File, Hook, Link, LinkKind, Module, NftChain, NftTable, NodeObject, NodeSpec, Spec,
    Symlink, Sysctl, ours, stable_mac,
};
use ipnet::IpNet;
use minijinja::{Environment, context};

use crate::Version;
use crate::ipam::gateway;

/// `cniVersion` of the configuration list. Not 1.1.0: a runtime refuses a list that is newer than its libcni, and
/// containerd 1.6, CRI-O and podman as Debian 12 has them carry libcni 1.1, which ends at 1.0.0. Newer ones read
/// `cniVersions` and take the last of them, 1.1.0 with STATUS.
pub const LIST_VERSION: &str = "1.0.0";

/// The MAC address of a node's bridge.
pub fn bridge_mac(cluster: &str, node: &str) -> String {
    stable_mac(&["homelab", "bridge", cluster, node])
}

/// The link sysctls of a pod bridge, key and value. Also set by the plugin when it has to make the bridge itself.
///
/// The same for every cluster: a parameter of a link that stays cannot be taken away.
pub fn bridge_sysctls(bridge: &str) -> Vec<(String, &'static str)> {
    // A dot in a link's name is written as a slash in a sysctl key (sysctl.d(5)).
    let escaped = bridge.replace('.', "/");
    let sysctls = vec![
        // No pod may configure this node by router advertisements.
        (format!("net.ipv6.conf.{escaped}.accept_ra"), "0"),
        // The bridge has no carrier before its first pod, so duplicate address detection of the gateway would
        // begin with that pod and keep it from its gateway for over a second. No pod can be given this address.
        (format!("net.ipv6.conf.{escaped}.accept_dad"), "0"),
        // Pods of one node send to each other through it, and must go on to.
        (format!("net.ipv4.conf.{escaped}.send_redirects"), "0"),
    ];
    // Nothing of rp_filter: a pod's packets come in on the link by which the pod is reached, so every mode is right.
    sysctls
}

/// Name of our chain that sees what pods of one node send to each other.
const BRIDGE_CHAIN: &str = "cni-prerouting";
/// Name of our chain that keeps redirects from pods.
const REDIRECT_CHAIN: &str = "cni-output";

/// What makes pods of one node send to each other through the node, as they send to everybody else: a pod that answers
/// a service's client beside it would do so past the node, which has to translate the answer back.
///
/// Frames between pods get the bridge's own MAC address before the bridge looks where they go. (br_netfilter would do
/// the same for all bridges of the machine, and is a module that may not be there.) The kernel would tell the sender
/// of a shorter way: for IPv4 it is told not to, for IPv6 that cannot be said and is dropped.
fn through_the_node(spec: &NodeSpec) -> Vec<Spec> {
    let mac = bridge_mac(&spec.cluster, &spec.node);
    let mut rules = Vec::new();
    let mut redirects = Vec::new();
    for own in &spec.pod_cidrs {
        let (ip, redirect) = match own.addr() {
            IpAddr::V4(_) => ("ip", "icmp type 5"),
            IpAddr::V6(_) => {
                // Neighbours are found on the link itself.
                rules.extend([135, 136].map(|kind| format!("ip6 daddr {own} icmpv6 type {kind} accept")));
                ("ip6", "icmpv6 type 137")
            }
        };
        rules.push(format!("{ip} daddr {} meta pkttype set 0 ether daddr set {mac}", own.trunc()));
        redirects.push(format!("oifname \"{}\" {redirect} drop", spec.bridge));
    }
    let hook = |hook: &str, priority| {
        let (r#type, policy) = ("filter".to_owned(), "accept".to_owned());
        Some(Hook { r#type, hook: hook.to_owned(), priority, policy })
    };
    let chain = |table: &str, name: &str, hook, rules| {
        Spec::NftChain(NftChain { table: table.to_owned(), name: name.to_owned(), hook, rules })
    };
    vec![
        Spec::NftTable(NftTable { name: ours::BRIDGE_TABLE.to_owned(), sets: crate::guard::sets() }),
        // Before br_netfilter (0), which wants to see the packet as it goes on.
        chain(ours::BRIDGE_TABLE, BRIDGE_CHAIN, hook("prerouting", -300), rules),
        chain(ours::NFT_TABLE, REDIRECT_CHAIN, hook("output", 0), redirects),
    ]
}

/// Everything of CNI that a node holds.
pub fn objects(spec: &NodeSpec) -> Vec<NodeObject> {
    let mut specs = vec![Spec::Link(Link {
        name: spec.bridge.clone(),
        mac: bridge_mac(&spec.cluster, &spec.node),
        mtu: spec.pod_mtu,
        up: true,
        alias: ours::LINK_ALIAS.to_owned(),
        kind: LinkKind::Bridge { stp: false },
    })];
    let exists = |key: &str| !(spec.ipv6_disabled && key.starts_with("net.ipv6."));
    for (key, value) in bridge_sysctls(&spec.bridge).into_iter().filter(|(key, _)| exists(key)) {
        specs.push(Spec::Sysctl(Sysctl { key, link: Some(spec.bridge.clone()), value: value.to_owned() }));
    }
    for cidr in &spec.pod_cidrs {
        let Some(address) = gateway_net(*cidr) else { continue };
        specs.push(Spec::Address(Address { link: spec.bridge.clone(), address }));
    }
    specs.extend(through_the_node(spec));
    specs.extend(crate::guard::chains());
    specs.extend(crate::hostport::ruleset(spec));
    for dir in &spec.cni_bin_dirs {
        specs.push(Spec::Symlink(Symlink {
            path: format!("{dir}/{}", ours::CNI_PLUGIN),
            target: ours::BINARY.to_owned(),
        }));
    }
    let text = conflist(spec);
    for dir in &spec.cni_conf_dirs {
        specs.push(Spec::File(File {
            path: format!("{dir}/{}", ours::CONFLIST),
            mode: 0o644,
            owner: "0:0".to_owned(),
            content: Content::Text(text.clone()),
        }));
    }
    specs.into_iter().map(|spec| NodeObject { module: Module::Cni, spec }).collect()
}

/// The gateway of a pod range with the range's prefix length.
pub fn gateway_net(cidr: IpNet) -> Option<IpNet> {
    let address: IpAddr = gateway(cidr)?;
    IpNet::new(address, cidr.prefix_len()).ok()
}

/// The configuration list. JSON has no comments, so it carries no header; its name is ours.
fn conflist(spec: &NodeSpec) -> String {
    // Values go in as JSON, so that no name can break out of its string.
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let ranges: Vec<String> = spec.pod_cidrs.iter().map(|cidr| json(&cidr.trunc().to_string())).collect();
    let text = Environment::new().render_str(
        include_str!("../templates/homelab.conflist"),
        context! {
            version => LIST_VERSION,
            newest => Version::V1_1_0.as_str(),
            name => json(&spec.cluster),
            plugin => json(ours::CNI_PLUGIN),
            bridge => json(&spec.bridge),
            mac => json(&bridge_mac(&spec.cluster, &spec.node)),
            mtu => spec.pod_mtu,
            ranges => ranges.join(", "),
            isolated => spec.pods.port_isolation,
            guarded => spec.pods.spoof_protection,
        },
    );
    // The template is part of this binary and every value is set: a test renders it.
    let mut text = text.unwrap_or_default();
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}
