//! What a node says of itself, and what of that stands in homelab's way.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::node::{Key, Link, Module, NodeObject, Spec};
use crate::spec::NodeSpec;
use crate::transaction::{History, Holder};
use crate::{Cluster, adoption, ours};

/// Where to look on a node for objects that cannot be found by a mark of ours: paths, sysctls, units.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scope {
    /// Keys and the module that each belongs to. Only binaries, symbolic links, files, sysctls, packages and
    /// units count.
    pub keys: Vec<(Key, Module)>,
    /// Name that the VXLAN link will have.
    pub device: String,
}

impl Scope {
    /// The scope that finds all of `objects`.
    pub fn of(objects: &[NodeObject], device: &str) -> Scope {
        Scope { keys: objects.iter().map(|o| (o.spec.key(), o.module)).collect(), device: device.to_owned() }
    }
}

/// The answer to an observation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// The node and its surroundings.
    pub facts: Facts,
    /// Everything that is ours on the node.
    pub objects: Vec<NodeObject>,
    /// What the last apply left as [`ours::NODE_SPEC`], if it can be read.
    pub spec: Option<NodeSpec>,
    /// Locks and transactions.
    #[serde(default)]
    pub history: History,
}

/// The node and its surroundings, as far as plans and diagnoses need them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Host name.
    pub hostname: String,
    /// `uname -m`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Version of systemd (first word of `systemctl --version`'s number), if there is one.
    pub systemd: Option<String>,
    /// Version of `nft`, if there is one.
    pub nft: Option<String>,
    /// The kernel has no IPv6 and none of its parameters (`ipv6.disable=1`).
    #[serde(default)]
    pub ipv6_disabled: bool,
    /// All links, ours too.
    pub links: Vec<LinkFact>,
    /// All addresses.
    pub addresses: Vec<AddressFact>,
    /// Routes of the main table, ours too, without the kernel's own (local, multicast).
    pub routes: Vec<RouteFact>,
    /// Container runtimes and where they look for CNI.
    pub runtimes: Vec<CniRuntime>,
    /// Interfaces that CNI ADD made and that still exist.
    pub pods: u32,
    /// Interfaces that CNI ADD made, with what is known of their containers.
    #[serde(default)]
    pub attachments: Vec<AttachmentFact>,
    /// What the agent knows of the containers that services name, on all nodes.
    #[serde(default)]
    pub containers: crate::KnownContainers,
    /// Addresses of running containers in the stores of the IPAM plugin host-local.
    #[serde(default)]
    pub held_addresses: Vec<crate::HeldAddress>,
    /// Ranges that flannel gave this node (`FLANNEL_SUBNET` of `/run/flannel/subnet.env`): one per family.
    #[serde(default)]
    pub flannel_subnets: Vec<IpNet>,
    /// The agent's own report, if it runs.
    pub agent: Option<AgentFact>,
    /// Who cordoned the node, if it is cordoned.
    #[serde(default)]
    pub cordoned: Option<Holder>,
    /// Chains of foreign firewalls that drop what pods send to and get from elsewhere.
    #[serde(default)]
    pub forward_drops: Vec<ForwardDrop>,
    /// What else translates service addresses here, or has left rules that do.
    #[serde(default)]
    pub rival_proxies: Vec<Rival>,
    /// What else gives services load-balancer addresses, or announces them, on this node.
    #[serde(default)]
    pub rival_balancers: Vec<Balancer>,
    /// FRR, if it is installed.
    #[serde(default)]
    pub frr: Option<FrrFact>,
    /// There is `apt-get`.
    #[serde(default)]
    pub apt: bool,
    /// `Udp: InCsumErrors` and `Tcp: InCsumErrors` of /proc/net/snmp: packets that came in with wrong checksums.
    pub checksum_errors: u64,
}

/// FRR on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrrFact {
    /// Version of Debian's package, if it is from there.
    pub version: Option<String>,
    /// homelab installed it, and nobody has taken it into use since (`frr.service` is off).
    pub ours: bool,
    /// bfdd is there to be run, too.
    pub bfd: bool,
    /// A bgpd runs that is not ours.
    pub bgpd: bool,
    /// A bfdd runs that is not ours.
    pub bfdd: bool,
    /// Neighbours in the configuration of that bgpd, sorted.
    pub neighbors: Vec<IpAddr>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkFact {
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND`, empty for hardware.
    pub kind: String,
    /// MTU, bytes.
    pub mtu: u32,
    /// Operational.
    pub up: bool,
    /// `IFLA_IFALIAS`, empty if none.
    pub alias: String,
    /// VNI and UDP port of VXLAN links.
    pub vxlan: Option<(u32, u16)>,
    /// The kernel takes router advertisements here (`accept_ra` 1) and will not once it forwards IPv6. False where
    /// systemd-networkd or NetworkManager do it: they set 0.
    #[serde(default)]
    pub kernel_ra: bool,
    /// Driver of hardware links (`/sys/class/net/*/device/driver`), if known.
    pub driver: Option<String>,
    /// A radio (`/sys/class/net/*/phy80211` or `wireless`).
    #[serde(default)]
    pub wireless: bool,
    /// IPv4 packets are dropped here whose answers would leave by another link (`rp_filter` 1; the kernel takes the larger of
    /// the link's and that of all).
    #[serde(default)]
    pub strict_rp_filter: bool,
    /// Name of the bridge, bond or other link that it is a port of.
    #[serde(default)]
    pub master: Option<String>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFact {
    /// Link name.
    pub link: String,
    /// Address and prefix length.
    pub address: IpNet,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFact {
    /// Destination; a default route is `0.0.0.0/0` or `::/0`.
    pub destination: IpNet,
    /// Outgoing link, if any.
    pub link: Option<String>,
    /// `rtm_protocol`.
    pub protocol: u8,
}

/// A container's interface that CNI ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentFact {
    /// Container id.
    pub container: String,
    /// Interface inside the container.
    pub interface: String,
    /// The name that the runtime gives it: `namespace/name`, or `name`.
    pub pod: Option<String>,
    /// The link on the node.
    pub link: String,
    /// Addresses, one per family.
    pub addresses: Vec<IpAddr>,
}

impl AttachmentFact {
    /// Whether `name` is its container's id, with or without the namespace that `ctr` puts before it, or its pod's name
    /// with or without the namespace.
    pub fn is_of(&self, name: &str) -> bool {
        let bare = self.container.split_once('-').map(|(_, bare)| bare);
        let pod = self.pod.as_deref();
        let short = pod.and_then(|pod| pod.rsplit_once('/')).map(|(_, short)| short);
        self.container == name || [bare, pod, short].contains(&Some(name))
    }
}

/// A base chain at the forward hook whose policy is `drop`, in a table that does not accept both what comes from our
/// bridge and what goes to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardDrop {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Table name.
    pub table: String,
    /// Chain name.
    pub chain: String,
    /// Whose it is, if that can be seen: `docker`, `ufw`.
    pub maker: Option<String>,
}

/// Another service proxy on the node, or what one left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Rival {
    /// A process `kube-proxy`.
    Process,
    /// A server of k3s or RKE2 that is not told to do without kube-proxy, which it has inside or starts.
    BuiltIn {
        /// `k3s` or `rke2`.
        program: String,
    },
    /// The table `kube-proxy` of its mode `nftables`.
    Nftables {
        /// `ip` or `ip6`.
        family: String,
    },
    /// The chain `KUBE-SERVICES` in the table `nat` of its mode `iptables`, by iptables-nft.
    Iptables {
        /// `ip` or `ip6`.
        family: String,
    },
    /// The table `nat` of iptables-legacy, together with what its rules are made of. The rules themselves are not read.
    IptablesLegacy {
        /// `ip` or `ip6`.
        family: String,
    },
    /// The link `kube-ipvs0` of its mode `ipvs`, which holds the service addresses.
    Ipvs,
    /// The agent of Cilium, or a link of it (`cilium_host`, `cilium_net`). Whether it takes kube-proxy's place is not seen.
    Cilium,
    /// kube-router, unless it is told to leave services alone, or its link `kube-dummy-if`.
    KubeRouter,
    /// The link `bpfin.cali` of Calico's eBPF data plane.
    CalicoBpf,
}

impl Rival {
    /// Whether it is kube-proxy, in whichever form.
    pub fn is_kube_proxy(&self) -> bool {
        !matches!(self, Rival::Cilium | Rival::KubeRouter | Rival::CalicoBpf)
    }

    /// The family, where it has only one.
    pub fn family(&self) -> Option<&str> {
        match self {
            Rival::Process
            | Rival::BuiltIn { .. }
            | Rival::Ipvs
            | Rival::Cilium
            | Rival::KubeRouter
            | Rival::CalicoBpf => None,
            Rival::Nftables { family } | Rival::Iptables { family } | Rival::IptablesLegacy { family } => {
                Some(family)
            }
        }
    }
}

/// Another program for Services of type LoadBalancer that runs on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Balancer {
    /// MetalLB's speaker.
    MetalLb,
    /// k3s' ServiceLB, of which a pod `svclb-...` of klipper-lb runs here.
    ServiceLb,
    /// kube-vip, told to serve Services. One for the address of the control plane alone is none.
    KubeVip,
    /// PureLB's node agent.
    PureLb,
}

/// A container runtime on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniRuntime {
    /// `containerd`, `cri-o`, `podman`.
    pub name: String,
    /// Directories of plugins.
    pub bin_dirs: Vec<String>,
    /// Directory of configuration.
    pub conf_dir: String,
}

/// What the agent says of itself in `/run/homelab/agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentFact {
    /// Process id.
    pub pid: u32,
    /// Version of the binary.
    pub version: String,
    /// SHA-256 of the loaded [`ours::NODE_SPEC`].
    pub config: String,
    /// Objects repaired since it started.
    pub repairs: u64,
    /// Errors of the last full check, empty if it went well.
    pub errors: Vec<String>,
    /// How it stands with the Kubernetes API; None: it is told of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesFact>,
}

/// How an agent stands with the Kubernetes API. That it cannot be reached is no error of the node: it serves on with
/// what it knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesFact {
    /// Whether all watches are up.
    pub connected: bool,
    /// URL of the API server that is in use.
    pub server: String,
    /// Whether it knows the cluster: by a complete list, or by what an earlier agent kept.
    pub known: bool,
    /// Services that it has seen, also those that the proxy does not serve.
    pub services: usize,
    /// EndpointSlices.
    pub slices: usize,
    /// Nodes.
    pub nodes: usize,
    /// Services (`namespace/name`) of the API that homelab.yaml has, too: that of the file is served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// What of MetalLB's resources is not as they say, and why: `BGPPeer router: …`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Peers of the tunnel that only the API has, by name; those that run flannel with a word that says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// What does not work now, by watch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

/// Something on a node that makes an apply impossible or wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub help: String,
}

impl Observed {
    /// Names of the links that are ours: by their alias, or, where somebody took that away, because they still have
    /// the name, type and MAC address of `recorded`: what the node's record of the last apply stands for.
    pub fn our_links(&self, recorded: &[NodeObject]) -> BTreeSet<String> {
        let links = |objects: &[NodeObject]| -> Vec<Link> {
            let link = |o: &NodeObject| match &o.spec {
                Spec::Link(link) => Some(link.clone()),
                _ => None,
            };
            objects.iter().filter_map(link).collect()
        };
        let recorded = links(recorded);
        let same = |a: &Link, b: &Link| {
            (&a.name, &a.mac) == (&b.name, &b.mac)
                && std::mem::discriminant(&a.kind) == std::mem::discriminant(&b.kind)
        };
        let marked = self.facts.links.iter().filter(|l| l.alias == ours::LINK_ALIAS).map(|l| l.name.clone());
        let unmarked = links(&self.objects).into_iter().filter(|l| recorded.iter().any(|r| same(l, r)));
        marked.chain(unmarked.map(|l| l.name)).collect()
    }
}

impl Facts {
    /// The link that holds `address`.
    pub fn link_of(&self, address: IpAddr) -> Option<&LinkFact> {
        let holder = self.addresses.iter().find(|a| a.address.addr() == address)?;
        self.links.iter().find(|l| l.name == holder.link)
    }

    /// Directories of CNI plugins: those of all runtimes, or the default. Sorted, no duplicates.
    pub fn cni_bin_dirs(&self) -> Vec<String> {
        let mut dirs: BTreeSet<String> = self.runtimes.iter().flat_map(|r| r.bin_dirs.clone()).collect();
        dirs.insert(ours::CNI_BIN_DIR.to_owned());
        dirs.into_iter().collect()
    }

    /// Directories of CNI configuration: those of all runtimes, or the default. Sorted, no duplicates.
    pub fn cni_conf_dirs(&self) -> Vec<String> {
        let mut dirs: BTreeSet<String> = self.runtimes.iter().map(|r| r.conf_dir.clone()).collect();
        dirs.insert(ours::CNI_CONF_DIR.to_owned());
        dirs.into_iter().collect()
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// What of a node's own, foreign state blocks the cluster network described by `cluster`.
///
/// `owned` are the names of homelab's own links, see [`Observed::our_links`]; `record` is what the last apply left on
/// the node.
pub fn conflicts(
    cluster: &Cluster,
    address: IpAddr,
    facts: &Facts,
    owned: &BTreeSet<String>,
    record: Option<&NodeSpec>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |message: String, help: &str| problems.push(Problem { message, help: help.to_owned() });
    if facts.systemd.is_none() {
        problem("systemd does not run here".into(), "homelab's agent needs systemd as PID 1");
    }
    if facts.nft.is_none() {
        problem("the command nft is missing".into(), "install it on the node: apt install nftables");
    }
    if facts.link_of(address).is_none() {
        let has: Vec<String> = facts.addresses.iter().map(|a| a.address.addr().to_string()).collect();
        problem(
            format!("no interface has the address {address}; this node has {}", has.join(", ")),
            "correct the node's address in homelab.yaml, or its ssh.host if this is another machine",
        );
    }
    let vxlan = &cluster.network.vxlan;
    let is_ours = |name: &str| owned.contains(name);
    for link in &facts.links {
        if is_ours(&link.name) {
            continue;
        }
        if link.name == vxlan.device || link.name == ours::BRIDGE {
            let Problem { message, help } = adoption::place_problem(facts, &link.name, &link.kind);
            problem(message, &help);
        } else if link.vxlan == Some((vxlan.vni, vxlan.port)) {
            problem(
                format!(
                    "the VXLAN link {} already uses VNI {} on UDP port {}",
                    link.name, vxlan.vni, vxlan.port
                ),
                "remove it (flannel: delete its DaemonSet, then ip link del), or choose another network.vxlan.vni or port",
            );
        }
    }
    if let Some(Problem { message, help }) = adoption::nested_problem(facts) {
        problem(message, &help);
    }
    let ranges = || cluster.network.pod_cidrs.iter();
    for held in &facts.addresses {
        if let Some(range) = ranges().find(|r| !is_ours(&held.link) && overlap(r, &held.address.trunc())) {
            let Problem { message, help } =
                adoption::overlap_problem(facts, &held.link, held.address, *range);
            problem(message, &help);
        }
    }
    for route in facts.routes.iter().filter(|r| r.protocol != ours::ROUTE_PROTOCOL) {
        let foreign = !route.link.as_deref().is_some_and(is_ours);
        // The kernel's own connected routes (protocol 2) are named by their address already.
        if route.protocol == 2 || route.destination.prefix_len() == 0 || !foreign {
            continue;
        }
        let link = route.link.as_deref().unwrap_or("none");
        let ours_is_there = facts
            .routes
            .iter()
            .any(|r| r.protocol == ours::ROUTE_PROTOCOL && r.destination == route.destination);
        let mut peers = record.iter().flat_map(|r| &r.peers);
        if let (false, Some(peer)) = (ours_is_there, peers.find(|p| p.pod_cidrs.contains(&route.destination)))
        {
            problem(
                format!(
                    "a route that homelab did not make has taken the place of its route to {}: {} dev {link}, protocol {}",
                    peer.name, route.destination, route.protocol
                ),
                &format!(
                    "find out who made it, and remove it (ip route del {} dev {link}); the agent then puts its own back",
                    route.destination
                ),
            );
        } else if let Some(range) = ranges().find(|r| overlap(r, &route.destination)) {
            problem(
                format!("route {} dev {link} overlaps the pod range {range}", route.destination),
                "remove that route, or choose another network.podCIDR",
            );
        }
    }
    problems
}
