//! Elements of the sets and maps: all that ever changes with services.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use homelab_model::service::Protocol;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ladder;

/// An address, protocol and port that packets are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Frontend {
    /// The key as nft writes it: `10.96.0.1 . tcp . 80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {} . {}", self.address, self.protocol.as_str(), self.port)
    }
}

/// Which of a frontend's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Pool {
    /// For everybody; under an external policy of Local: for sources outside of the cluster.
    Main,
    /// For pods and the node itself, where an external policy of Local is short-circuited.
    Internal,
}

/// First slot number of a pool of `rung` slots: no two rungs or pools share numbers, so one map holds them all.
pub fn slots(pool: Pool, rung: u32) -> u32 {
    let start = rung << 16;
    match pool {
        Pool::Main => start,
        Pool::Internal => start + (1 << 15),
    }
}

/// One element of one set or map. Its family is that of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Element {
    /// A frontend with endpoints that is not plain, or one that only some sources may reach: `frontends`.
    Served(Frontend),
    /// A frontend with endpoints that needs nothing but one of them, by chance: `plain-frontends`. It is one of a cluster
    /// address, without session affinity.
    Plain(Frontend),
    /// One slot of a pool: `endpoints`.
    Endpoint {
        /// Frontend.
        frontend: Frontend,
        /// [`slots`] and an index.
        slot: u32,
        /// Where a packet goes.
        to: SocketAddr,
    },
    /// A pool larger than [`ladder::FIRST_GROUP`]: `large-pools`.
    Large {
        /// Frontend.
        frontend: Frontend,
        /// [`slots`] of its [`ladder::group`].
        slot: u32,
    },
    /// No endpoints at all: `no-endpoints`.
    Unserved(Frontend),
    /// No endpoints on this node, where the policy wants them: `no-local-endpoints`.
    Dropped(Frontend),
    /// External policy Cluster, so the source is masqueraded: `external-cluster`.
    ExternalCluster(Frontend),
    /// External policy Local: `external-local`.
    ExternalLocal(Frontend),
    /// Only some sources may: `source-ranged`.
    Ranged(Frontend),
    /// A source that may: `source-allowed`.
    Allowed(Frontend, IpNet),
    /// An address of `cluster-addresses`.
    ClusterAddress(IpAddr),
    /// An endpoint on this node that may reach itself: `hairpin`.
    Hairpin(Frontend, IpAddr),
    /// Clients stay: `affinity-services`.
    Sticky(Frontend),
    /// For how long, a rung of [`ladder::TIMEOUTS`]: `affinity-<seconds>`.
    StickyFor(Frontend, u32),
}

/// A set or map without its family's digit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// Of [`Element::Served`].
    Frontends,
    /// Of [`Element::Plain`].
    PlainFrontends,
    /// Map of [`Element::Endpoint`].
    Endpoints,
    /// Of [`Element::Large`].
    LargePools,
    /// Of [`Element::Unserved`].
    NoEndpoints,
    /// Of [`Element::Dropped`].
    NoLocalEndpoints,
    /// Of [`Element::ExternalCluster`].
    ExternalCluster,
    /// Of [`Element::ExternalLocal`].
    ExternalLocal,
    /// Of [`Element::Ranged`].
    SourceRanged,
    /// Intervals, of [`Element::Allowed`].
    SourceAllowed,
    /// Of [`Element::ClusterAddress`].
    ClusterAddresses,
    /// Of [`Element::Hairpin`].
    Hairpin,
    /// Of [`Element::Sticky`].
    AffinityServices,
    /// Of [`Element::StickyFor`] this many seconds.
    AffinityTimeout(u32),
    /// Map that the kernel fills: which client stays where.
    Affinity,
}

impl Set {
    /// Those that are there once, with their names.
    const NAMES: [(Set, &str); 14] = [
        (Set::Frontends, "frontends"),
        (Set::PlainFrontends, "plain-frontends"),
        (Set::Endpoints, "endpoints"),
        (Set::LargePools, "large-pools"),
        (Set::NoEndpoints, "no-endpoints"),
        (Set::NoLocalEndpoints, "no-local-endpoints"),
        (Set::ExternalCluster, "external-cluster"),
        (Set::ExternalLocal, "external-local"),
        (Set::SourceRanged, "source-ranged"),
        (Set::SourceAllowed, "source-allowed"),
        (Set::ClusterAddresses, "cluster-addresses"),
        (Set::Hairpin, "hairpin"),
        (Set::AffinityServices, "affinity-services"),
        (Set::Affinity, "affinity"),
    ];

    /// Every set of one family.
    pub fn all() -> Vec<Set> {
        Set::NAMES.into_iter().map(|(set, _)| set).chain(ladder::TIMEOUTS.map(Set::AffinityTimeout)).collect()
    }

    /// The set of a name in the table, and whether it is of IPv4.
    pub fn of_name(name: &str) -> Option<(Set, bool)> {
        let (stem, v4) = match name.split_at_checked(name.len().checked_sub(1)?)? {
            (stem, "4") => (stem, true),
            (stem, "6") => (stem, false),
            _ => return None,
        };
        let of_timeout = || stem.strip_prefix("affinity-")?.strip_suffix("s-")?.parse().ok();
        let set = match of_timeout() {
            Some(seconds) => ladder::TIMEOUTS.contains(&seconds).then_some(Set::AffinityTimeout(seconds))?,
            None => Set::NAMES.into_iter().find(|(_, name)| *name == stem)?.0,
        };
        Some((set, v4))
    }

    /// Name in the table: `frontends4`.
    pub fn name(self, v4: bool) -> String {
        let family = if v4 { 4 } else { 6 };
        match self {
            Set::AffinityTimeout(seconds) => format!("affinity-{seconds}s-{family}"),
            other => {
                let name = Set::NAMES.into_iter().find(|(set, _)| *set == other).map_or("", |(_, name)| name);
                format!("{name}{family}")
            }
        }
    }
}

impl Element {
    /// The set that it belongs to.
    pub fn set(&self) -> Set {
        match self {
            Element::Served(_) => Set::Frontends,
            Element::Plain(_) => Set::PlainFrontends,
            Element::Endpoint { .. } => Set::Endpoints,
            Element::Large { .. } => Set::LargePools,
            Element::Unserved(_) => Set::NoEndpoints,
            Element::Dropped(_) => Set::NoLocalEndpoints,
            Element::ExternalCluster(_) => Set::ExternalCluster,
            Element::ExternalLocal(_) => Set::ExternalLocal,
            Element::Ranged(_) => Set::SourceRanged,
            Element::Allowed(..) => Set::SourceAllowed,
            Element::ClusterAddress(_) => Set::ClusterAddresses,
            Element::Hairpin(..) => Set::Hairpin,
            Element::Sticky(_) => Set::AffinityServices,
            Element::StickyFor(_, seconds) => Set::AffinityTimeout(*seconds),
        }
    }

    /// The frontend that it is about; None for an address.
    pub fn frontend(&self) -> Option<Frontend> {
        match self {
            Element::ClusterAddress(_) => None,
            Element::Served(frontend)
            | Element::Plain(frontend)
            | Element::Endpoint { frontend, .. }
            | Element::Large { frontend, .. }
            | Element::Unserved(frontend)
            | Element::Dropped(frontend)
            | Element::ExternalCluster(frontend)
            | Element::ExternalLocal(frontend)
            | Element::Ranged(frontend)
            | Element::Allowed(frontend, _)
            | Element::Hairpin(frontend, _)
            | Element::Sticky(frontend)
            | Element::StickyFor(frontend, _) => Some(*frontend),
        }
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        match self {
            Element::ClusterAddress(address) => address.is_ipv4(),
            other => other.frontend().is_some_and(|frontend| frontend.address.is_ipv4()),
        }
    }

    /// The element as nft reads it, with the service that it belongs to as its comment.
    pub fn to_nft(&self, service: &str) -> String {
        let comment = format!("comment \"{service}\"");
        match self {
            Element::Endpoint { frontend, slot, to } => {
                format!("{frontend} . {slot} {comment} : {} . {}", to.ip(), to.port())
            }
            other => format!("{} {comment}", other.key()),
        }
    }

    /// The element with its set: `endpoints4 10.96.0.1 . tcp . 80 . 65536 : 10.244.1.2 . 8080`.
    pub fn to_line(&self) -> String {
        let set = self.set().name(self.is_ipv4());
        match self {
            Element::Endpoint { to, .. } => format!("{set} {} : {} . {}", self.key(), to.ip(), to.port()),
            other => format!("{set} {}", other.key()),
        }
    }

    /// Reads [`Element::to_line`]; None if no element of ours is written like that.
    pub fn from_line(line: &str) -> Option<Element> {
        let (name, rest) = line.split_once(' ')?;
        let (set, v4) = Set::of_name(name)?;
        let (key, to) = match rest.split_once(" : ") {
            Some((key, to)) => {
                let (address, port) = to.split_once(" . ")?;
                (key, Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?)))
            }
            None => (rest, None),
        };
        let words: Vec<&str> = key.split(" . ").collect();
        let element = match (&words[..], set) {
            ([address], Set::ClusterAddresses) => Element::ClusterAddress(address.parse().ok()?),
            ([address, protocol, port, more @ ..], set) => {
                let protocol = Protocol::ALL.into_iter().find(|p| p.as_str() == *protocol)?;
                let frontend =
                    Frontend { address: address.parse().ok()?, protocol, port: port.parse().ok()? };
                match (set, more) {
                    (Set::Frontends, []) => Element::Served(frontend),
                    (Set::PlainFrontends, []) => Element::Plain(frontend),
                    (Set::Endpoints, [slot]) => {
                        Element::Endpoint { frontend, slot: slot.parse().ok()?, to: to? }
                    }
                    (Set::LargePools, [slot]) => Element::Large { frontend, slot: slot.parse().ok()? },
                    (Set::NoEndpoints, []) => Element::Unserved(frontend),
                    (Set::NoLocalEndpoints, []) => Element::Dropped(frontend),
                    (Set::ExternalCluster, []) => Element::ExternalCluster(frontend),
                    (Set::ExternalLocal, []) => Element::ExternalLocal(frontend),
                    (Set::SourceRanged, []) => Element::Ranged(frontend),
                    (Set::SourceAllowed, [range]) => {
                        let range =
                            range.parse().ok().or_else(|| Some(IpNet::from(range.parse::<IpAddr>().ok()?)));
                        Element::Allowed(frontend, range?)
                    }
                    (Set::Hairpin, [address, _]) => Element::Hairpin(frontend, address.parse().ok()?),
                    (Set::AffinityServices, []) => Element::Sticky(frontend),
                    (Set::AffinityTimeout(seconds), []) => Element::StickyFor(frontend, seconds),
                    _ => return None,
                }
            }
            _ => return None,
        };
        // Whatever else it says, or says otherwise, is none of ours.
        (element.is_ipv4() == v4 && element.to_line() == line).then_some(element)
    }

    /// The key alone.
    pub fn key(&self) -> String {
        match self {
            Element::ClusterAddress(address) => address.to_string(),
            Element::Endpoint { frontend, slot, .. } | Element::Large { frontend, slot } => {
                format!("{frontend} . {slot}")
            }
            Element::Allowed(frontend, range) if range.prefix_len() == range.max_prefix_len() => {
                format!("{frontend} . {}", range.addr())
            }
            Element::Allowed(frontend, range) => format!("{frontend} . {range}"),
            Element::Hairpin(frontend, address) => format!("{frontend} . {address} . {address}"),
            other => other.frontend().map(|frontend| frontend.to_string()).unwrap_or_default(),
        }
    }
}
