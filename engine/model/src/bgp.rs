//! Load-balancer addresses by BGP: what the file says of peers and advertisements, and what every agent is told. Names
//! and meanings follow MetalLB's resources (`metallb.io/v1beta2` BGPPeer, `v1beta1` BGPAdvertisement, BFDProfile and
//! Community); the routing engine is FRR's bgpd.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::lb::Selector;

/// Everything that the cluster's BGP speakers are told. The same on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpSpec {
    /// The nodes' autonomous system number, 1..=4294967294 (RFC 6793).
    #[serde(rename = "myASN")]
    pub my_asn: u32,
    /// The routers.
    pub peers: Vec<BgpPeer>,
    /// Which addresses are told to them, and how.
    pub advertisements: Vec<BgpAdvertisement>,
    /// Profiles that peers name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bfd_profiles: Vec<BfdProfile>,
}

impl BgpSpec {
    /// The same with peers, advertisements and profiles in the order of their names: the order of the file is no difference.
    pub fn sorted(mut self) -> BgpSpec {
        self.peers.sort_by(|a, b| a.name.cmp(&b.name));
        self.advertisements.sort_by(|a, b| a.name.cmp(&b.name));
        self.bfd_profiles.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }
}

/// A router that nodes have a session with (MetalLB's BGPPeer).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeer {
    /// Name.
    pub name: String,
    /// Its address.
    pub peer_address: IpAddr,
    /// Its autonomous system number.
    #[serde(rename = "peerASN")]
    pub peer_asn: u32,
    /// Its TCP port.
    pub peer_port: u16,
    /// Address that the node connects from; None: the one that the kernel chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<IpAddr>,
    /// BGP identifier of the node, not only towards this router; None: that of another peer of the node, else the node's IPv4
    /// address, else one made from its name.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "routerID")]
    pub router_id: Option<Ipv4Addr>,
    /// Hold time, seconds (RFC 4271, 4.2); 0: no keepalives, else at least 3.
    pub hold_time: u16,
    /// Time between keepalives, seconds; at most a third of the hold time.
    pub keepalive_time: u16,
    /// Time between attempts to connect, seconds.
    pub connect_time: u16,
    /// Whether the session has a TCP MD5 password (RFC 2385). The text is a secret of the nodes and not here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub password: bool,
    /// Name of the BFD profile; None: no BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd_profile: Option<String>,
    /// The router is more than one hop away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ebgp_multi_hop: bool,
    /// Routes outlast a restart of the node's bgpd (RFC 4724).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enable_graceful_restart: bool,
    /// Nodes with a session: those that any of the selectors matches; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_selectors: Vec<Selector>,
}

impl BgpPeer {
    /// TCP port of BGP (RFC 4271).
    pub const PORT: u16 = 179;
    /// Hold time unless the file says otherwise, seconds: MetalLB's.
    pub const HOLD_TIME: u16 = 90;
    /// Time between attempts to connect unless the file says otherwise, seconds.
    pub const CONNECT_TIME: u16 = 10;

    /// A router of which the file says no more than this.
    pub fn new(name: &str, peer_address: IpAddr, peer_asn: u32) -> BgpPeer {
        BgpPeer {
            name: name.to_owned(),
            peer_address,
            peer_asn,
            peer_port: BgpPeer::PORT,
            source_address: None,
            router_id: None,
            hold_time: BgpPeer::HOLD_TIME,
            keepalive_time: BgpPeer::HOLD_TIME / 3,
            connect_time: BgpPeer::CONNECT_TIME,
            password: false,
            bfd_profile: None,
            ebgp_multi_hop: false,
            enable_graceful_restart: false,
            node_selectors: Vec::new(),
        }
    }
}

/// Which addresses are told to which routers, and how (MetalLB's BGPAdvertisement).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpAdvertisement {
    /// Name.
    pub name: String,
    /// Names of the pools; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_address_pools: Vec<String>,
    /// Length of the prefix that is told for an IPv4 address, 1..=32.
    pub aggregation_length: u8,
    /// Length of the prefix that is told for an IPv6 address, 1..=128.
    pub aggregation_length_v6: u8,
    /// LOCAL_PREF; only to routers of the same autonomous system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<u32>,
    /// Communities, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<BgpCommunity>,
    /// Nodes that tell it: those that any of the selectors matches; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_selectors: Vec<Selector>,
    /// Services that it is for: those that any of the selectors matches; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_selectors: Vec<Selector>,
    /// Names of the peers it is told to; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
}

impl BgpAdvertisement {
    /// Whether the peer of that name is told.
    pub fn is_to(&self, peer: &str) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|name| name == peer)
    }

    /// Length of the prefix that is told for an address.
    pub fn length(&self, address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => self.aggregation_length,
            IpAddr::V6(_) => self.aggregation_length_v6,
        }
    }
}

/// A community.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BgpCommunity {
    /// Two 16-bit numbers (RFC 1997), also the well-known ones by name.
    Standard(u16, u16),
    /// Three 32-bit numbers (RFC 8092).
    Large(u32, u32, u32),
}

impl std::fmt::Display for BgpCommunity {
    /// As FRR and MetalLB write it: `64512:100`, `64512:1:2`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BgpCommunity::Standard(a, b) => write!(f, "{a}:{b}"),
            BgpCommunity::Large(a, b, c) => write!(f, "{a}:{b}:{c}"),
        }
    }
}

impl BgpCommunity {
    /// Communities that have names: as FRR writes them, RFC 1997 and the IANA registry.
    pub const WELL_KNOWN: [(&'static str, BgpCommunity); 8] = [
        ("graceful-shutdown", BgpCommunity::Standard(65535, 0)),
        ("accept-own", BgpCommunity::Standard(65535, 1)),
        ("no-llgr", BgpCommunity::Standard(65535, 7)),
        ("blackhole", BgpCommunity::Standard(65535, 666)),
        ("no-export", BgpCommunity::Standard(65535, 65281)),
        ("no-advertise", BgpCommunity::Standard(65535, 65282)),
        ("local-AS", BgpCommunity::Standard(65535, 65283)),
        ("no-peer", BgpCommunity::Standard(65535, 65284)),
    ];
}

/// How a session is watched by BFD (MetalLB's BFDProfile; RFC 5880).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdProfile {
    /// Name.
    pub name: String,
    /// Shortest time between control packets that the node takes, milliseconds, 10..=60000.
    pub receive_interval: u32,
    /// Time between control packets that the node sends, milliseconds, 10..=60000.
    pub transmit_interval: u32,
    /// How many packets may be missed, 2..=255.
    pub detect_multiplier: u8,
    /// Shortest time between echo packets, milliseconds, 10..=60000.
    pub echo_interval: u32,
    /// Echo packets are sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub echo_mode: bool,
    /// The node does not begin the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passive_mode: bool,
    /// Lowest TTL of packets of a router that is more than one hop away, 1..=254.
    pub minimum_ttl: u8,
}

impl BfdProfile {
    /// Times unless the file says otherwise, milliseconds: MetalLB's and FRR's.
    pub const INTERVAL: u32 = 300;
    /// Time between echo packets unless the file says otherwise, milliseconds.
    pub const ECHO_INTERVAL: u32 = 50;
    /// Multiplier unless the file says otherwise.
    pub const DETECT_MULTIPLIER: u8 = 3;
    /// TTL unless the file says otherwise.
    pub const MINIMUM_TTL: u8 = 254;
}

/// What a node says of its sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbBgp {
    /// Why there are no sessions although there should be: FRR is missing, does not start, refuses its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Sessions, by the peers' names.
    pub sessions: Vec<LbSession>,
    /// What the node tells its peers, sorted by prefix.
    pub routes: Vec<LbRoute>,
}

/// A session with a router.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbSession {
    /// Name of the peer.
    pub peer: String,
    /// Its address and AS number, `192.0.2.1 AS64513`.
    pub router: String,
    /// State in FRR's words: `Established`, `Active`, `Connect`, `Idle`, `OpenSent`, `OpenConfirm`.
    pub state: String,
    /// Since when it is established, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_ms: Option<u64>,
    /// Routes that were told on it.
    pub routes_sent: u32,
    /// How often it was lost since bgpd's start.
    pub dropped: u32,
    /// Why it was lost last, in FRR's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset: Option<String>,
    /// State of the BFD session in FRR's words: `Up`, `Down`; None: no BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
}

impl LbSession {
    /// The state of a session that works.
    pub const ESTABLISHED: &str = "Established";
}

/// A route to load-balancer addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LbRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// The addresses that it stands for, sorted.
    pub addresses: Vec<IpAddr>,
    /// Names of the peers that are told, sorted.
    pub peers: Vec<String>,
}
