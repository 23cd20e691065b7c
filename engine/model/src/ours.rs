//! How what homelab owns is recognised on a node. What carries none of these marks is never touched.

/// Routes, neighbours and FDB entries carry this protocol number (`rtm_protocol`, `NDA_PROTOCOL`; free in
/// iproute2's `rt_protos`).
pub const ROUTE_PROTOCOL: u8 = 104;
/// `IFLA_IFALIAS` of links that homelab made.
pub const LINK_ALIAS: &str = "homelab";
/// Beginning of `IFLA_IFALIAS` of the node's end of a pod's veth pair, before `<container>/<interface>`.
pub const POD_ALIAS: &str = "homelab-pod:";
/// The nftables table of tunnel and pods.
pub const NFT_TABLE: &str = "inet homelab";
/// The table of services. Apart, because who lists a table reads all elements of its sets.
pub const PROXY_TABLE: &str = "inet homelab-proxy";
/// The table of what pods of one node send to each other.
pub const BRIDGE_TABLE: &str = "bridge homelab";
/// The table of ports of the node that lead to pods. Apart for the same reason.
pub const HOSTPORT_TABLE: &str = "inet homelab-hostport";
/// All of them.
pub const NFT_TABLES: [&str; 4] = [NFT_TABLE, PROXY_TABLE, BRIDGE_TABLE, HOSTPORT_TABLE];
/// First line of every text file that homelab writes and whose format has comments.
pub const FILE_HEADER: &str = "# Managed by homelab; local changes are overwritten.";
/// What a node needs to know of the cluster: the [`crate::NodeSpec`] as JSON.
pub const NODE_SPEC: &str = "/etc/homelab/node.json";
/// Keys of the agents' membership traffic; mode 0600, content never in plans.
pub const KEYS: &str = "/etc/homelab/membership.keys";
/// Passwords of BGP peers ([`crate::PasswordFile`]); mode 0600, content never in plans.
pub const BGP_PASSWORDS: &str = "/var/lib/homelab/bgp-passwords";
/// What the agent keeps of Kubernetes: its token, and a snapshot of what it has seen.
pub const KUBERNETES: &str = "/var/lib/homelab/kubernetes";
/// The agent's token for the Kubernetes API ([`crate::Token`]); mode 0600, content never in plans. The laptop puts the
/// first one there, the agent renews it.
pub const KUBERNETES_TOKEN: &str = "/var/lib/homelab/kubernetes/token";
/// What the agent has last seen of the Kubernetes API; mode 0600. It starts from it when no API server answers.
pub const KUBERNETES_SNAPSHOT: &str = "/var/lib/homelab/kubernetes/snapshot";
/// The peers whose entries in the tunnel the agent answers for, by the Nodes of the Kubernetes API ([`crate::LivePeers`]);
/// mode 0600.
pub const KUBERNETES_PEERS: &str = "/var/lib/homelab/kubernetes/peers";
/// What the agent knows of the containers that services name ([`crate::KnownContainers`]).
pub const CONTAINERS: &str = "/var/lib/homelab/containers";
/// Namespace of what is ours in the Kubernetes API.
pub const KUBERNETES_NAMESPACE: &str = "homelab-system";
/// Field manager of what homelab writes to the Kubernetes API.
pub const FIELD_MANAGER: &str = "homelab";
/// Label and value of what homelab makes in the Kubernetes API.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "homelab");
/// Label that says of which homelab cluster an object of the Kubernetes API is.
pub const CLUSTER_LABEL: &str = "app.kubernetes.io/instance";
/// Configuration directory.
pub const ETC: &str = "/etc/homelab";
/// Directory of the node binary, one sub-directory per content digest.
pub const LIB: &str = "/usr/local/lib/homelab";
/// The binary in use: a symbolic link to `<digest>/homelab-node`.
pub const BINARY: &str = "/usr/local/lib/homelab/homelab-node";
/// Persistent state: IPAM store, originals of sysctls, directories that homelab made.
pub const VAR: &str = "/var/lib/homelab";
/// The transaction that is under way, with all that its undo needs.
pub const TRANSACTION: &str = "/var/lib/homelab/transaction";
/// A copy of the node binary that undoes a transaction, whatever becomes of the installed ones.
pub const RECOVERY: &str = "/usr/local/lib/homelab/recovery/homelab-node";
/// The unit that undoes an unconfirmed transaction at boot, before the agent starts. Only there while one is open.
pub const RECOVERY_UNIT: &str = "homelab-recovery.service";
/// Beginning of the name of the transient units (timer and service) that undo a transaction in time.
pub const REVERT_UNIT: &str = "homelab-revert";
/// Volatile state: the agent's report and the lock that orders its work and an apply.
pub const RUN: &str = "/run/homelab";
/// What the node's speaker says of load-balancer addresses ([`crate::LbReport`]).
pub const LB_REPORT: &str = "/run/homelab/lb.json";
/// There while the node is cordoned.
pub const CORDONED: &str = "/var/lib/homelab/cordoned";
/// The agent's systemd unit.
pub const UNIT: &str = "homelab-node.service";
/// Path of the unit file.
pub const UNIT_FILE: &str = "/etc/systemd/system/homelab-node.service";
/// The unit of FRR's bgpd. Ours, and apart from the package's own `frr.service`.
pub const BGP_UNIT: &str = "homelab-bgp.service";
/// The unit of FRR's bfdd.
pub const BGP_BFD_UNIT: &str = "homelab-bgp-bfd.service";
/// The unit of FRR's zebra, by which bgpd and bfdd hear of each other.
pub const BGP_ZEBRA_UNIT: &str = "homelab-bgp-zebra.service";
/// Name of our FRR among those of one machine (`-N`, `--pathspace`): a part of the paths of its files and sockets.
pub const FRR_PATHSPACE: &str = "homelab";
/// Sockets of our FRR.
pub const FRR_RUN: &str = "/run/frr/homelab";
/// Debian's package of FRR.
pub const FRR_PACKAGE: &str = "frr";
/// Directory of one record for each package that homelab installed.
pub const PACKAGES: &str = "/var/lib/homelab/packages";
/// Variable in a unit's environment that says which unit file its process was started from.
pub const UNIT_DIGEST: &str = "HOMELAB_UNIT";
/// sysctl values for early boot.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/90-homelab.conf";
/// File name of the CNI configuration list (in the runtime's `conf_dir`). Low, so that it wins.
pub const CONFLIST: &str = "05-homelab.conflist";
/// Default CNI configuration directory.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// Default CNI plugin directory.
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// CNI plugin type and file name.
pub const CNI_PLUGIN: &str = "homelab";
/// The bridge that pods are attached to.
pub const BRIDGE: &str = "homelab0";

/// IPAM store of the CNI plugin, one directory per network.
pub const IPAM: &str = "/var/lib/homelab/ipam";

/// Path of the unit file of this name.
pub fn unit_file(name: &str) -> String {
    UNIT_FILE.replace(UNIT, name)
}

/// Path of the binary with this digest (lower-case hex SHA-256).
pub fn binary_path(sha256: &str) -> String {
    format!("{LIB}/{sha256}/homelab-node")
}
