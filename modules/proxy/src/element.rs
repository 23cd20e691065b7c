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
    /// A frontend with endpoints: `frontends`.
    Served(Frontend),
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
    /// Every set of one family.
    pub fn all() -> Vec<Set> {
        use Set::*;
        let mut all = vec![
            Frontends,
            Endpoints,
            LargePools,
            NoEndpoints,
            NoLocalEndpoints,
            ExternalCluster,
            ExternalLocal,
            SourceRanged,
            SourceAllowed,
            ClusterAddresses,
            Hairpin,
            AffinityServices,
            Affinity,
        ];
        all.extend(ladder::TIMEOUTS.map(AffinityTimeout));
        all
    }

    /// Name in the table: `frontends4`.
    pub fn name(self, v4: bool) -> String {
        let name = match self {
            Set::Frontends => "frontends",
            Set::Endpoints => "endpoints",
            Set::LargePools => "large-pools",
            Set::NoEndpoints => "no-endpoints",
            Set::NoLocalEndpoints => "no-local-endpoints",
            Set::ExternalCluster => "external-cluster",
            Set::ExternalLocal => "external-local",
            Set::SourceRanged => "source-ranged",
            Set::SourceAllowed => "source-allowed",
            Set::ClusterAddresses => "cluster-addresses",
            Set::Hairpin => "hairpin",
            Set::AffinityServices => "affinity-services",
            Set::Affinity => "affinity",
            Set::AffinityTimeout(seconds) => {
                return format!("affinity-{seconds}s-{}", if v4 { 4 } else { 6 });
            }
        };
        format!("{name}{}", if v4 { 4 } else { 6 })
    }
}

impl Element {
    /// The set that it belongs to.
    pub fn set(&self) -> Set {
        match self {
            Element::Served(_) => Set::Frontends,
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
