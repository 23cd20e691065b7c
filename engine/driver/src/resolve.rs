//! From the file and what the nodes say to one [`NodeSpec`] per node. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use homelab_model::{
    AllocError, AttachmentFact, Cluster, CniRuntime, Content, Facts, Key, LinkFact, Memory, Module, Mtu,
    Node, NodeSpec, Observed, PeerSpec, Problem, ProxySpec, Scope, Spec, VtepSpec, adoption_notes, allocate,
    conflicts, ours,
};
use ipnet::IpNet;

use crate::bgp::{frr, unpaired};
use crate::offload::offload_fault;
use crate::plan::our_links;
use crate::recall::{Departed, recall};
use crate::rivals::{balancers_warning, rivals_warning};
use crate::services::{keep_places, node_port_addresses, services};
use crate::speaker::{gives, lossy, speaker, unannounced};

/// MTU of Ethernet: assumed where no node could be asked.
const ETHERNET: u32 = 1500;

/// The cluster in full, as far as its nodes could be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolution {
    /// What each observed node needs to know, by name.
    pub specs: BTreeMap<String, NodeSpec>,
    /// What stands in the way on a node, by name.
    pub problems: BTreeMap<String, Vec<Problem>>,
    /// Nodes that left the file.
    pub departed: Vec<Departed>,
    /// What the user should know, in plain sentences.
    pub warnings: Vec<String>,
}

/// Resolves `cluster` with what was `seen` of its nodes (by name; nodes that could not be reached are absent)
/// and the digests of the node binaries by architecture.
pub fn resolve(
    cluster: &Cluster,
    seen: &BTreeMap<String, &Observed>,
    digests: &BTreeMap<String, String>,
) -> Result<Resolution, AllocError> {
    let (memory, departed) = recall(cluster, seen);
    let ranges = allocate(cluster, &memory)?;
    let mut result = Resolution { departed, ..Resolution::default() };
    let mtu = tunnel_mtu(cluster, seen, &mut result.warnings);
    let (services, containers) = services(cluster, &ranges, seen, &mut result.warnings);
    let speaker = speaker(cluster);
    if let Some(speaker) = &speaker {
        unannounced(speaker, &services, &mut result.warnings);
        unpaired(speaker, &mut result.warnings);
    }
    moved_ranges(&memory, &ranges, seen, &mut result.warnings);
    for node in &cluster.nodes {
        let Some(observed) = seen.get(&node.name) else { continue };
        let facts = &observed.facts;
        let mut problems =
            conflicts(cluster, node.address, facts, &our_links(observed), observed.spec.as_ref());
        problems.extend(own_problems(cluster, node, observed, seen));
        version_warning(node, facts, &mut result.warnings);
        firewall_warnings(cluster, node, facts, &mut result.warnings);
        let notes = adoption_notes(facts).into_iter().map(|note| format!("{}: {note}", node.name));
        result.warnings.extend(notes);
        if let Some(speaker) = &speaker {
            lossy(speaker, &node.name, lan_link(node, facts), facts, &mut result.warnings);
            // Without addresses to give, speakers are there to tell each other of containers alone.
            if gives(cluster) {
                result.warnings.extend(balancers_warning(node, facts));
            }
        }
        if !services.is_empty() {
            result.warnings.extend(rivals_warning(cluster, node, facts));
        }
        match &observed.spec {
            Some(spec) if spec.cluster != cluster.name => result.warnings.push(format!(
                "{} belongs to the cluster {} until now, and to {} from now on",
                node.name, spec.cluster, cluster.name
            )),
            _ => {}
        }
        let offload = match (cluster.network.vxlan.checksum_offload, offload_of(node, facts)) {
            (Some(wanted), _) => wanted,
            (None, None) => true,
            (None, Some(why)) => {
                result.warnings.push(format!("{}: checksum offload of the tunnel is off: {why}", node.name));
                false
            }
        };
        let digest = digests.get(&facts.arch).map_or("", String::as_str);
        let mut spec = node_spec(cluster, node, &ranges, mtu, offload, facts, digest);
        spec.router_advertisements = router_advertisements(cluster, node, observed);
        spec.proxy.node_port_addresses = node_port_addresses(cluster, node, facts);
        spec.speaker.clone_from(&speaker);
        spec.services.clone_from(&services);
        spec.containers.clone_from(&containers);
        keep_places(&mut spec, observed, seen);
        frr(&mut spec, facts, &mut problems, &mut result.warnings);
        result.specs.insert(node.name.clone(), spec);
        if !problems.is_empty() {
            result.problems.insert(node.name.clone(), problems);
        }
    }
    Ok(result)
}

/// Whether a node looks for this object only when told so; others carry a mark of ours, or are on its record.
pub(crate) fn searched_for(key: &Key) -> bool {
    matches!(
        key,
        Key::Binary(_)
            | Key::Symlink(_)
            | Key::File(_)
            | Key::Link(_)
            | Key::LinkSysctl(..)
            | Key::Package(_)
            | Key::Unit(_)
    )
}

/// Where to look on a node of which nothing is known yet.
pub fn first_scope(cluster: &Cluster, digests: &BTreeMap<String, String>) -> Scope {
    let keys = vec![
        (Key::File(ours::KEYS.to_owned()), Module::Agent),
        (Key::File(ours::BGP_PASSWORDS.to_owned()), Module::Agent),
        (Key::File(ours::KUBERNETES_TOKEN.to_owned()), Module::Agent),
        (Key::Package(ours::FRR_PACKAGE.to_owned()), Module::Agent),
    ];
    let mut scope = Scope { keys, device: cluster.network.vxlan.device.clone() };
    // Debian's containerd looks for plugins in /usr/lib/cni, podman in /usr/libexec/cni.
    let runtime = CniRuntime {
        name: String::new(),
        bin_dirs: vec!["/usr/lib/cni".to_owned(), "/usr/libexec/cni".to_owned()],
        conf_dir: ours::CNI_CONF_DIR.to_owned(),
    };
    let facts = Facts { runtimes: vec![runtime], ..Facts::default() };
    let Some(node) = cluster.nodes.first() else { return scope };
    let ranges = BTreeMap::from([(node.name.clone(), cluster.network.pod_cidrs.clone())]);
    for digest in digests.values() {
        let spec = node_spec(cluster, node, &ranges, ETHERNET, true, &facts, digest);
        for key in homelab_desired::scope(&spec).keys {
            if searched_for(&key.0) && !scope.keys.contains(&key) {
                scope.keys.push(key);
            }
        }
    }
    scope
}

fn node_spec(
    cluster: &Cluster,
    node: &Node,
    ranges: &BTreeMap<String, Vec<IpNet>>,
    mtu: u32,
    checksum_offload: bool,
    facts: &Facts,
    digest: &str,
) -> NodeSpec {
    let range = |name: &str| ranges.get(name).cloned().unwrap_or_default();
    let mut peers: Vec<PeerSpec> = cluster
        .nodes
        .iter()
        .filter(|p| p.name != node.name)
        .map(|p| PeerSpec {
            name: p.name.clone(),
            address: p.address,
            mac: homelab_desired::vtep_mac(&cluster.name, &p.name),
            pod_cidrs: range(&p.name),
        })
        .collect();
    // The order of the file is no difference between two nodes' configurations.
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let vxlan = &cluster.network.vxlan;
    NodeSpec {
        format_version: NodeSpec::FORMAT,
        cluster: cluster.name.clone(),
        node: node.name.clone(),
        address: node.address,
        interface: lan_link(node, facts).map(|l| l.name.clone()).unwrap_or_default(),
        pod_cidrs: range(&node.name),
        cluster_cidrs: cluster.network.pod_cidrs.clone(),
        service_cidrs: cluster.network.service_cidrs.clone(),
        vtep: VtepSpec {
            device: vxlan.device.clone(),
            vni: vxlan.vni,
            port: vxlan.port,
            mtu,
            mac: homelab_desired::vtep_mac(&cluster.name, &node.name),
            checksum_offload,
        },
        pod_mtu: mtu,
        bridge: ours::BRIDGE.to_owned(),
        pods: cluster.network.pods,
        ipv6_disabled: facts.ipv6_disabled,
        router_advertisements: Vec::new(),
        cni_bin_dirs: facts.cni_bin_dirs(),
        cni_conf_dirs: facts.cni_conf_dirs(),
        proxy: ProxySpec {
            node_port_addresses: Vec::new(),
            zone: node.zone.clone(),
            masquerade_all: cluster.network.masquerade_all,
            agent: Some(SocketAddr::new(cluster.agent.address, cluster.agent.port)).filter(|a| a.port() != 0),
        },
        speaker: None,
        kubernetes: None,
        packages: Vec::new(),
        binary_sha256: digest.to_owned(),
        peers,
        services: Vec::new(),
        containers: Vec::new(),
    }
}

/// A node's LAN link: the one that the file names, or the one that holds its address.
fn lan_link<'a>(node: &Node, facts: &'a Facts) -> Option<&'a LinkFact> {
    match &node.interface {
        Some(name) => facts.links.iter().find(|l| l.name == *name),
        None => facts.link_of(node.address),
    }
}

/// MTU of the tunnel, bytes: one for all nodes, because a pod cannot know which node its peer is on.
fn tunnel_mtu(cluster: &Cluster, seen: &BTreeMap<String, &Observed>, warnings: &mut Vec<String>) -> u32 {
    let fits = cluster
        .nodes
        .iter()
        .filter_map(|n| Some((n, lan_link(n, &seen.get(&n.name)?.facts)?.mtu)))
        .map(|(n, mtu)| (n, mtu, mtu.saturating_sub(homelab_desired::vtep_overhead(n.address))));
    let smallest = fits.min_by_key(|(_, _, mtu)| *mtu);
    if let Mtu::Bytes(bytes) = cluster.network.vxlan.mtu {
        if let Some((node, lan, most)) = smallest.filter(|(_, _, most)| *most < bytes) {
            warnings.push(format!(
                "network.vxlan.mtu {bytes} is too large for {}: its LAN interface has MTU {lan}, which leaves {most}",
                node.name
            ));
        }
        return bytes;
    }
    // Nodes that cannot be asked had their say when their peers were last configured.
    let silent: Vec<IpAddr> =
        cluster.nodes.iter().filter(|n| !seen.contains_key(&n.name)).map(|n| n.address).collect();
    let remembered = seen
        .values()
        .filter_map(|o| o.spec.as_ref())
        .filter(|s| s.peers.iter().any(|p| silent.contains(&p.address)))
        .map(|s| s.vtep.mtu)
        .min();
    let measured = smallest.map(|(_, _, mtu)| mtu);
    measured.into_iter().chain(remembered).min().unwrap_or_else(|| {
        let overhead = cluster.nodes.iter().map(|n| homelab_desired::vtep_overhead(n.address)).max();
        ETHERNET - overhead.unwrap_or(0)
    })
}

/// Says which nodes lose the range that they have, and which pods run with addresses of it.
fn moved_ranges(
    memory: &Memory,
    ranges: &BTreeMap<String, Vec<IpNet>>,
    seen: &BTreeMap<String, &Observed>,
    warnings: &mut Vec<String>,
) {
    for (node, own) in &memory.own {
        let Some(new) = ranges.get(node) else { continue };
        for old in own.iter().filter(|o| !new.contains(o)) {
            let family = new.iter().find(|n| n.addr().is_ipv4() == old.addr().is_ipv4());
            let becomes = family.map_or("nothing".to_owned(), ToString::to_string);
            let attached = seen.get(node).into_iter().flat_map(|observed| &observed.facts.attachments);
            let there = |a: &&AttachmentFact| {
                a.addresses.iter().any(|ip| old.contains(ip) && !new.iter().any(|range| range.contains(ip)))
            };
            let pods: Vec<&str> =
                attached.filter(there).map(|a| a.pod.as_deref().unwrap_or(&a.container)).collect();
            let pods = if pods.is_empty() { String::new() } else { format!(": {}", pods.join(", ")) };
            warnings.push(format!(
                "{node}: the pod range {old} becomes {becomes}; running pods keep their old addresses and lose \
                 the network until they are started anew{pods}"
            ));
        }
    }
}

/// Links that would lose their IPv6 router when forwarding is switched on, or that were kept from it.
fn router_advertisements(cluster: &Cluster, node: &Node, observed: &Observed) -> Vec<String> {
    /// `RTPROT_RA`.
    const LEARNED: u8 = 9;
    if cluster.network.pod_cidrs.iter().all(|c| c.addr().is_ipv4()) {
        return Vec::new();
    }
    let facts = &observed.facts;
    let lan = lan_link(node, facts).map(|l| l.name.as_str());
    let has_router = |name: &str| {
        let default = |r: &&homelab_model::RouteFact| {
            r.destination.addr().is_ipv6() && r.destination.prefix_len() == 0 && r.protocol == LEARNED
        };
        facts.routes.iter().filter(default).any(|r| r.link.as_deref() == Some(name))
    };
    // What an earlier apply set is on the node's record, and no longer looks as if it were needed.
    let kept = |name: &str| {
        let key = format!("net.ipv6.conf.{}.accept_ra", name.replace('.', "/"));
        observed
            .objects
            .iter()
            .any(|o| matches!(&o.spec, Spec::Sysctl(s) if s.link.is_none() && s.key == key))
    };
    let needed = |l: &&LinkFact| {
        kept(&l.name) || (l.kernel_ra && (lan == Some(l.name.as_str()) || has_router(&l.name)))
    };
    let mut links: Vec<String> = facts.links.iter().filter(needed).map(|l| l.name.clone()).collect();
    links.sort();
    links
}

fn offload_of(node: &Node, facts: &Facts) -> Option<String> {
    offload_fault(&facts.kernel, lan_link(node, facts).and_then(|l| l.driver.as_deref()))
}

/// What stands in the way beyond foreign state.
fn own_problems(
    cluster: &Cluster,
    node: &Node,
    observed: &Observed,
    seen: &BTreeMap<String, &Observed>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let facts = &observed.facts;
    if let Some(name) = &node.interface
        && !facts.links.iter().any(|l| l.name == *name)
    {
        problems.push(Problem {
            message: format!("there is no interface {name}"),
            help: "correct the node's interface in homelab.yaml, or leave it out".to_owned(),
        });
    }
    let before = cluster.nodes.iter().take_while(|n| n.name != node.name);
    let twin = before.filter_map(|n| Some((n, seen.get(&n.name)?))).find(|(_, o)| {
        !facts.boot_id.is_empty() && o.facts.boot_id == facts.boot_id && o.facts.hostname == facts.hostname
    });
    if let Some((twin, _)) = twin {
        problems.push(Problem {
            message: format!("this is the same machine as {}", twin.name),
            help: "correct the address or ssh.host of one of them".to_owned(),
        });
    }
    let wants_ipv6 = cluster.network.pod_cidrs.iter().any(|c| c.addr().is_ipv6());
    if facts.ipv6_disabled && (wants_ipv6 || node.address.is_ipv6()) {
        problems.push(Problem {
            message: "the kernel has no IPv6, and the cluster uses it".to_owned(),
            help: "take ipv6.disable=1 off the kernel's command line and reboot the node, or leave the IPv6 range out \
                   of network.podCIDR"
                .to_owned(),
        });
    }
    if let Some(format) = newer_format(observed) {
        problems.push(Problem {
            message: format!(
                "a newer homelab has set this node up: {} has format {format}, this version knows {}",
                ours::NODE_SPEC,
                NodeSpec::FORMAT
            ),
            help: "use the newer homelab".to_owned(),
        });
    }
    problems
}

/// The format of a node's record, if it is newer than ours.
fn newer_format(observed: &Observed) -> Option<u64> {
    let text = observed.objects.iter().find_map(|o| match &o.spec {
        Spec::File(f) if f.path == ours::NODE_SPEC => match &f.content {
            Content::Text(text) => Some(text),
            Content::Opaque(_) | Content::Secret(_) => None,
        },
        _ => None,
    })?;
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value.get("formatVersion")?.as_u64().filter(|&f| f > u64::from(NodeSpec::FORMAT))
}

/// Says which foreign firewalls drop pods' traffic, and what lets it through. All that a node forwards for pods comes
/// from the bridge or goes to it.
fn firewall_warnings(cluster: &Cluster, node: &Node, facts: &Facts, warnings: &mut Vec<String>) {
    let bridge = ours::BRIDGE;
    let used = |v4: bool| cluster.network.pod_cidrs.iter().any(|c| c.addr().is_ipv4() == v4);
    for drop in &facts.forward_drops {
        let command = match drop.family.as_str() {
            "ip" if !used(true) => continue,
            "ip6" if !used(false) => continue,
            "ip6" => "ip6tables",
            _ => "iptables",
        };
        let what = match drop.maker.as_deref() {
            Some("docker") => format!(
                "{command} -I DOCKER-USER -i {bridge} -j ACCEPT; {command} -I DOCKER-USER -o {bridge} -j ACCEPT \
                 (after every start of Docker)"
            ),
            Some("ufw") => format!("ufw route allow in on {bridge}; ufw route allow out on {bridge}"),
            _ => format!("accept in that table what comes in on {bridge} and what goes out on {bridge}"),
        };
        warnings.push(format!(
            "{}: the chain {} {} {} drops what it does not know, so pods here reach no other node; homelab does not \
             touch it, this lets them through: {what}",
            node.name, drop.family, drop.table, drop.chain
        ));
    }
}

fn version_warning(node: &Node, facts: &Facts, warnings: &mut Vec<String>) {
    let numbers = |v: &str| -> Vec<u64> { v.split(['.', '-', '+']).map_while(|p| p.parse().ok()).collect() };
    let ours = env!("CARGO_PKG_VERSION");
    if let Some(agent) = &facts.agent
        && numbers(&agent.version) > numbers(ours)
    {
        warnings.push(format!(
            "{}: its agent has the newer version {}, an apply puts version {ours} in its place",
            node.name, agent.version
        ));
    }
}
