//! Node state as keyed objects: the kinds that homelab's modules are made of.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::object::{Change, Impact, Object};

/// The part of homelab that an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Module {
    /// Node binary, its unit and its configuration.
    Agent,
    /// Tunnel, routes to peers, masquerade.
    Vtep,
    /// Bridge, CNI plugin and configuration.
    Cni,
    /// Services.
    Proxy,
}

impl Module {
    /// Lower-case name, as in plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Module::Agent => "agent",
            Module::Vtep => "vtep",
            Module::Cni => "cni",
            Module::Proxy => "proxy",
        }
    }
}

/// An object and the module that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObject {
    /// Whose it is.
    pub module: Module,
    /// What it is.
    #[serde(flatten)]
    pub spec: Spec,
}

/// A kind of node state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Spec {
    /// The node binary under its digest.
    Binary(Binary),
    /// A symbolic link.
    Symlink(Symlink),
    /// A regular file.
    File(File),
    /// A kernel parameter.
    Sysctl(Sysctl),
    /// A network link.
    Link(Link),
    /// An address on one of our links.
    Address(Address),
    /// A permanent neighbour on one of our links.
    Neighbour(Neighbour),
    /// A forwarding entry of our VXLAN link.
    Fdb(Fdb),
    /// A route with our protocol number.
    Route(Route),
    /// An nftables table of ours.
    NftTable(NftTable),
    /// A chain of such a table, with its rules.
    NftChain(NftChain),
    /// A service, as elements of the proxy's sets.
    Service(ServiceElements),
    /// A package of the distribution.
    Package(Package),
    /// A systemd unit.
    Unit(Unit),
}

/// Identity of a [`Spec`]. The order is the order of creation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// Path.
    Binary(String),
    /// Path.
    Symlink(String),
    /// Path.
    File(String),
    /// `accept_ra` of a link that is not ours: before forwarding, which makes the kernel drop its router otherwise.
    AcceptRa(String),
    /// Any other sysctl key that belongs to no link of ours.
    Sysctl(String),
    /// Link name.
    Link(String),
    /// Link name and sysctl key.
    LinkSysctl(String, String),
    /// Link name and address.
    Address(String, IpNet),
    /// Link name and address.
    Neighbour(String, IpAddr),
    /// Link name, MAC address, remote address.
    Fdb(String, String, IpAddr),
    /// Destination and metric.
    Route(IpNet, u32),
    /// Table with its family.
    NftTable(String),
    /// Table with its family, and chain.
    NftChain(String, String),
    /// `namespace/name`.
    Service(String),
    /// Package name.
    Package(String),
    /// Unit name.
    Unit(String),
}

/// The node binary: the very executable that carries out the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// Absolute path.
    pub path: String,
    /// SHA-256 of its content, lower-case hex.
    pub sha256: String,
    /// Permission bits; octal text on the wire and in plans, e.g. `0644`.
    #[serde(with = "octal")]
    pub mode: u32,
    /// Owner, `uid:gid`.
    pub owner: String,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symlink {
    /// Absolute path.
    pub path: String,
    /// What it points to; what is there and is no link is shown as its type, e.g. `(regular file)`.
    pub target: String,
}

/// A regular file. Directories above it are made where they are missing, and taken away again with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Absolute path.
    pub path: String,
    /// Permission bits; octal text on the wire and in plans, e.g. `0644`.
    #[serde(with = "octal")]
    pub mode: u32,
    /// Owner, `uid:gid`.
    pub owner: String,
    /// Content.
    pub content: Content,
}

/// Content of a [`File`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// UTF-8 text, shown in plans.
    Text(String),
    /// Something else (binary data, over 256 KiB, or no regular file): what is known of it.
    Opaque(String),
    /// A secret: what tells it from others without giving it away (generation and fingerprints). The text itself
    /// travels apart from plans and journals.
    Secret(String),
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Dotted key with `/` for dots inside a link's name, as in sysctl.d(5): `net.ipv4.conf.a/1.rp_filter`.
    pub key: String,
    /// The link of ours that it belongs to, and vanishes with. Others are put back when deleted.
    pub link: Option<String>,
    /// Value, white space trimmed.
    pub value: String,
}

/// A network link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Name.
    pub name: String,
    /// MAC address, lower-case.
    pub mac: String,
    /// MTU, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// `IFLA_IFALIAS`: [`crate::ours::LINK_ALIAS`].
    pub alias: String,
    /// Type and its attributes.
    #[serde(flatten)]
    pub kind: LinkKind,
}

/// Type of a [`Link`] (`IFLA_INFO_KIND`) with the attributes that we set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum LinkKind {
    /// VXLAN, RFC 7348.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Local address.
        local: IpAddr,
        /// Whether the kernel learns FDB entries from traffic.
        learning: bool,
        /// `tx-checksum-ip-generic`.
        checksum_offload: bool,
    },
    /// Bridge.
    Bridge {
        /// Spanning tree.
        stp: bool,
    },
    /// Any other type that stands under one of our names.
    #[serde(untagged)]
    Other {
        /// `IFLA_INFO_KIND`, or empty.
        r#type: String,
    },
}

/// An address on one of our links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Link name.
    pub link: String,
    /// Address and prefix length.
    pub address: IpNet,
}

/// A permanent neighbour (ARP / NDP entry) on one of our links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Link name.
    pub link: String,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC address, lower-case.
    pub mac: String,
}

/// A forwarding entry of a VXLAN link: frames to `mac` go to the VTEP at `remote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fdb {
    /// Link name.
    pub link: String,
    /// MAC address, lower-case.
    pub mac: String,
    /// The VTEP's underlay address.
    pub remote: IpAddr,
}

/// A route of the main table with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Metric (`RTA_PRIORITY`); 0 where none is set. IPv6 shows 1024 for none.
    pub metric: u32,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Outgoing link; None only for `unreachable` routes.
    pub link: Option<String>,
    /// `RTNH_F_ONLINK`.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// `unicast`, `unreachable`, `blackhole`.
    pub r#type: String,
}

/// A table of ours: one of [`crate::ours::NFT_TABLES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NftTable {
    /// Family and name: `inet homelab`.
    pub name: String,
    /// Its sets and maps without their elements, sorted by name, in the words of nft: `set a { typeof ip daddr }`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<String>,
}

/// A chain of a table of ours, with all its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NftChain {
    /// Family and name of the table.
    pub table: String,
    /// Chain name.
    pub name: String,
    /// Where it is hooked in; None for a chain that others jump to.
    pub hook: Option<Hook>,
    /// Rules in order, in the words in which `nft --stateless --numeric list table` prints them.
    pub rules: Vec<String>,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub r#type: String,
    /// `prerouting`, `input`, `forward`, `output`, `postrouting`.
    pub hook: String,
    /// Priority as a number.
    pub priority: i32,
    /// `accept` or `drop`.
    pub policy: String,
}

/// A service: what the sets of the table [`crate::ours::PROXY_TABLE`] hold of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceElements {
    /// `namespace/name`; empty: elements that say of no service that they are its.
    pub name: String,
    /// One element each: its set, its key and, in a map, a colon and its value. Sorted.
    pub elements: Vec<String>,
}

/// A package of the distribution that homelab installed because it was not there, and that only homelab uses. It comes
/// before the transaction that needs it, which has no impact, and goes with one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
}

/// A systemd unit and the process behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Unit name.
    pub name: String,
    /// Started at boot.
    pub enabled: bool,
    /// `active`; or another `ActiveState`.
    pub state: String,
    /// The unit file on disk is newer than what systemd loaded (`NeedDaemonReload`).
    pub reload_needed: bool,
    /// SHA-256 of the node binary that the main process runs, or the path of another executable; empty if there is none.
    pub running: String,
    /// SHA-256 of the [`crate::ours::NODE_SPEC`] that the agent has loaded; of other units, of the unit file that the
    /// process was started from ([`crate::ours::UNIT_DIGEST`]). Empty if unknown.
    pub config: String,
}

impl Spec {
    /// The identity.
    pub fn key(&self) -> Key {
        match self {
            Spec::Binary(o) => Key::Binary(o.path.clone()),
            Spec::Symlink(o) => Key::Symlink(o.path.clone()),
            Spec::File(o) => Key::File(o.path.clone()),
            Spec::Sysctl(o) => match &o.link {
                None if o.key.ends_with(".accept_ra") => Key::AcceptRa(o.key.clone()),
                None => Key::Sysctl(o.key.clone()),
                Some(link) => Key::LinkSysctl(link.clone(), o.key.clone()),
            },
            Spec::Link(o) => Key::Link(o.name.clone()),
            Spec::Address(o) => Key::Address(o.link.clone(), o.address),
            Spec::Neighbour(o) => Key::Neighbour(o.link.clone(), o.address),
            Spec::Fdb(o) => Key::Fdb(o.link.clone(), o.mac.clone(), o.remote),
            Spec::Route(o) => Key::Route(o.destination, o.metric),
            Spec::NftTable(o) => Key::NftTable(o.name.clone()),
            Spec::NftChain(o) => Key::NftChain(o.table.clone(), o.name.clone()),
            Spec::Service(o) => Key::Service(o.name.clone()),
            Spec::Package(o) => Key::Package(o.name.clone()),
            Spec::Unit(o) => Key::Unit(o.name.clone()),
        }
    }
}

impl std::fmt::Display for Key {
    /// The object as plans name it, e.g. `route 10.244.2.0/24`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Binary(path) => write!(f, "binary {path}"),
            Key::Symlink(path) => write!(f, "symlink {path}"),
            Key::File(path) => write!(f, "file {path}"),
            Key::AcceptRa(key) | Key::Sysctl(key) | Key::LinkSysctl(_, key) => write!(f, "sysctl {key}"),
            Key::Link(name) => write!(f, "link {name}"),
            Key::Address(link, address) => write!(f, "address {address} dev {link}"),
            Key::Neighbour(link, address) => write!(f, "neighbour {address} dev {link}"),
            Key::Fdb(link, mac, remote) => write!(f, "fdb {mac} dst {remote} dev {link}"),
            Key::Route(destination, 0) => write!(f, "route {destination}"),
            Key::Route(destination, metric) => write!(f, "route {destination} metric {metric}"),
            Key::NftTable(name) => write!(f, "nft table {name}"),
            Key::NftChain(table, name) => write!(f, "nft chain {table} {name}"),
            Key::Service(name) if name.is_empty() => f.write_str("service (elements of none)"),
            Key::Service(name) => write!(f, "service {name}"),
            Key::Package(name) => write!(f, "package {name}"),
            Key::Unit(name) => write!(f, "unit {name}"),
        }
    }
}

impl Object for NodeObject {
    type Key = Key;

    fn key(&self) -> Key {
        self.spec.key()
    }

    fn parent(&self) -> Option<Key> {
        let link = match &self.spec {
            Spec::Sysctl(o) => o.link.as_ref()?,
            Spec::Address(o) => &o.link,
            Spec::Neighbour(o) => &o.link,
            Spec::Fdb(o) => &o.link,
            Spec::Route(o) => o.link.as_ref()?,
            Spec::NftChain(o) => return Some(Key::NftTable(o.table.clone())),
            Spec::Service(_) => return Some(Key::NftTable(crate::ours::PROXY_TABLE.to_owned())),
            _ => return None,
        };
        Some(Key::Link(link.clone()))
    }

    fn updates_in_place(&self, after: &Self) -> bool {
        match (&self.spec, &after.spec) {
            (Spec::Link(a), Spec::Link(b)) => match (&a.kind, &b.kind) {
                (
                    LinkKind::Vxlan { vni, port, local, learning, .. },
                    LinkKind::Vxlan { vni: v, port: p, local: l, learning: n, .. },
                ) => (vni, port, local, learning) == (v, p, l, n),
                (LinkKind::Bridge { .. }, LinkKind::Bridge { .. }) => true,
                _ => false,
            },
            // A set cannot be altered, and not go while rules use it; more sets can come.
            (Spec::NftTable(a), Spec::NftTable(b)) => a.sets.iter().all(|set| b.sets.contains(set)),
            // A base chain's hook cannot be altered.
            (Spec::NftChain(a), Spec::NftChain(b)) => a.hook == b.hook,
            _ => true,
        }
    }

    fn impact(change: &Change<Self>) -> (Impact, &'static str) {
        const NOTHING: (Impact, &str) = (Impact::None, "");
        let Some(object) = change.after().or(change.before()) else { return NOTHING };
        match (&object.spec, change) {
            (_, Change::Create { .. }) => NOTHING,
            (Spec::Unit(unit), Change::Update { .. }) if unit.name != crate::ours::UNIT => {
                (Impact::Brief, "sessions with routers begin anew; meanwhile these send nothing to this node")
            }
            (Spec::Unit(unit), _) if unit.name != crate::ours::UNIT => {
                (Impact::Disruptive, "routers forget this node's routes: connections through it may end")
            }
            (Spec::Unit(_), Change::Update { before, after }) if only_configured(before, after) => NOTHING,
            (Spec::Unit(_), Change::Update { .. }) => {
                (Impact::Brief, "the agent restarts; packets keep flowing")
            }
            (Spec::Unit(_), _) => (Impact::Brief, "drift is no longer repaired; packets keep flowing"),
            // What a process may do is its unit file's.
            (Spec::File(file), Change::Update { .. }) if file.path == crate::ours::UNIT_FILE => {
                (Impact::Brief, "the agent restarts; packets keep flowing")
            }
            (Spec::Link(_), Change::Replace { .. }) => (
                Impact::Disruptive,
                "pods on this node lose the other nodes until all nodes have the new link, some seconds",
            ),
            (Spec::Link(link), Change::Delete { .. }) => match link.kind {
                LinkKind::Vxlan { .. } => {
                    (Impact::Disruptive, "pods on this node lose the pods of all other nodes")
                }
                _ => (Impact::Disruptive, "pods on this node lose their network"),
            },
            (Spec::Link(_), Change::Update { before, after }) => match (&before.spec, &after.spec) {
                (Spec::Link(a), Spec::Link(b)) if a.mac != b.mac => (
                    Impact::Disruptive,
                    "frames to the old MAC address are lost until every peer knows the new one",
                ),
                (Spec::Link(a), Spec::Link(b)) if a.mtu != b.mtu => {
                    (Impact::Brief, "running pods keep their old MTU until they are started anew")
                }
                _ => NOTHING,
            },
            (
                Spec::Route(_) | Spec::Fdb(_) | Spec::Neighbour(_),
                Change::Update { .. } | Change::Replace { .. },
            ) => (Impact::Brief, "packets to one node may be lost for a moment"),
            (Spec::Route(_) | Spec::Fdb(_) | Spec::Neighbour(_), Change::Delete { .. }) => {
                (Impact::Disruptive, "pods on this node lose the pods behind this entry")
            }
            (Spec::Address(_), Change::Delete { .. }) => {
                (Impact::Disruptive, "connections that use this address end")
            }
            (Spec::Service(_), Change::Delete { .. }) => {
                (Impact::Disruptive, "nobody reaches the service any more; connections that are open go on")
            }
            (Spec::NftTable(_) | Spec::NftChain(_), Change::Delete { .. } | Change::Replace { .. })
                if object.module == Module::Proxy =>
            {
                (Impact::Brief, "services take no new connections until it is back or gone for good")
            }
            (Spec::NftTable(_) | Spec::NftChain(_), Change::Delete { .. } | Change::Replace { .. }) => (
                Impact::Brief,
                "new connections from pods leave unmasqueraded until it is back or gone for good",
            ),
            (Spec::File(_), Change::Update { before, after })
                if object.module == Module::Cni && held_back(before) != held_back(after) =>
            {
                (
                    Impact::Brief,
                    "running pods stay as isolated and as guarded as they are until they are started anew",
                )
            }
            (Spec::Symlink(_) | Spec::File(_), Change::Delete { .. }) if object.module == Module::Cni => {
                (Impact::Brief, "no new pod can start on this node; running pods keep their network")
            }
            (Spec::Sysctl(_), Change::Delete { .. }) => {
                (Impact::Disruptive, "the node may stop forwarding for pods")
            }
            _ => NOTHING,
        }
    }
}

/// Whether all that changes is the configuration, which a running agent reads again.
fn only_configured(before: &NodeObject, after: &NodeObject) -> bool {
    match (&before.spec, &after.spec) {
        (Spec::Unit(a), Spec::Unit(b)) => Unit { config: b.config.clone(), ..a.clone() } == *b,
        _ => false,
    }
}

/// What a configuration list of ours says of isolation and spoof protection.
fn held_back(list: &NodeObject) -> [bool; 2] {
    let text = match &list.spec {
        Spec::File(File { content: Content::Text(text), .. }) => text.as_str(),
        _ => "",
    };
    ["\"portIsolation\": true", "\"macspoofchk\": true"].map(|option| text.contains(option))
}

/// Permission bits as people write them.
mod octal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{mode:04o}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 8).map_err(serde::de::Error::custom)
    }
}
