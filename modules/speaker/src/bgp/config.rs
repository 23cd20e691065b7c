//! The running configuration that bgpd is to have, in FRR's own words and order (FRR 8.4's `show running-config`), so that
//! it can be compared with the one that it has.
//!
//! Nothing that routers tell is taken. What each of them is told is chosen by its own route-map: one entry for each
//! family and each set of attributes, with a list of its prefixes. Numbers of entries are hashes, so that what is added or
//! taken away renumbers nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use homelab_model::{BfdProfile, BgpCommunity, BgpPeer, Passwords, SpeakerSpec};
use ipnet::IpNet;
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Attributes, Route, peers_of};

/// Seconds between a change of route-maps and what follows from it; at most one advertisement comes of several changes.
/// FRR's own is 5; 0 would be never.
const DELAY: u8 = 1;
/// Number of the last entry of each route-map, which refuses: FRR's highest.
const LAST: u16 = 65535;
/// Address families in FRR's words.
const IPV4: &str = "ipv4";
const IPV6: &str = "ipv6";

/// What bgpd of a node is to do.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Its address on the LAN.
    pub address: IpAddr,
    /// What all speakers are told.
    pub spec: &'a SpeakerSpec,
    /// The peers' passwords. A peer whose password is missing gets no session.
    pub passwords: &'a Passwords,
    /// What the node tells ([`super::routes`]).
    pub routes: &'a [Route],
}

impl<'a> Wanted<'a> {
    /// The peers that the node is to have a session with, and the names of those whose password is missing.
    pub fn sessions(&self) -> (Vec<&'a BgpPeer>, Vec<&'a str>) {
        let (mut sessions, mut missing) = (Vec::new(), Vec::new());
        for peer in peers_of(self.spec, self.node) {
            if peer.password && self.passwords.get(&peer.name).is_none() {
                missing.push(peer.name.as_str());
            } else {
                sessions.push(peer);
            }
        }
        (sessions, missing)
    }

    /// The BGP identifier: the one that a peer names first, else the node's IPv4 address, else one made from its name.
    fn router_id(&self, peers: &[&BgpPeer]) -> Ipv4Addr {
        let named = peers.iter().find_map(|peer| peer.router_id);
        named.unwrap_or_else(|| match self.address {
            IpAddr::V4(address) => address,
            // Neither 0.0.0.0, which is no identifier (RFC 6286), nor what looks like a group.
            IpAddr::V6(_) => Ipv4Addr::from(hash(self.node) & 0x7fff_ffff | 1),
        })
    }
}

/// Running configurations, of each daemon its own. They may hold passwords.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Of bgpd; empty: nothing, since the node has no sessions.
    pub bgpd: String,
    /// Of bfdd; empty: it is not needed.
    pub bfdd: String,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Config({} and {} bytes)", self.bgpd.len(), self.bfdd.len())
    }
}

/// The configurations of a node's daemons.
pub fn config(wanted: Wanted<'_>) -> Config {
    let Some(bgp) = &wanted.spec.bgp else { return Config::default() };
    let (peers, _) = wanted.sessions();
    if peers.is_empty() {
        return Config::default();
    }
    let names: BTreeSet<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let told = |route: &&Route| route.peers.keys().any(|peer| names.contains(peer.as_str()));
    let told: Vec<&Route> = wanted.routes.iter().filter(told).collect();
    let used = |profile: &&BfdProfile| peers.iter().any(|p| p.bfd_profile.as_ref() == Some(&profile.name));
    let profiles: Vec<Profile<'_>> = bgp.bfd_profiles.iter().filter(used).map(profile).collect();
    let neighbors: Vec<Session<'_>> =
        peers.iter().map(|peer| session(peer, bgp.my_asn, wanted.passwords)).collect();
    let lists: Vec<List<'_>> = peers.iter().flat_map(|peer| lists(&peer.name, &told)).collect();
    let family = |name, of: fn(&IpNet) -> bool| {
        let prefixes = told.iter().map(|route| route.prefix).filter(of);
        context! { name, networks => prefixes.map(|prefix| prefix.to_string()).collect::<Vec<_>>() }
    };
    let bgpd = context! {
        delay => DELAY,
        last => LAST,
        asn => bgp.my_asn,
        router_id => wanted.router_id(&peers).to_string(),
        graceful => peers.iter().any(|peer| peer.enable_graceful_restart),
        peers => Value::from(Serde(neighbors)),
        families => [
            family(IPV4, |prefix| matches!(prefix, IpNet::V4(_))),
            family(IPV6, |prefix| matches!(prefix, IpNet::V6(_))),
        ],
        lists => Value::from(Serde(lists)),
    };
    let bfdd = (!profiles.is_empty()).then(|| context! { profiles => Value::from(Serde(profiles)) });
    Config {
        bgpd: render(include_str!("../../templates/bgp.conf"), bgpd),
        bfdd: bfdd.map(|of| render(include_str!("../../templates/bfd.conf"), of)).unwrap_or_default(),
    }
}

fn render(template: &str, of: Value) -> String {
    // The template is part of this binary and every value is set: tests render it.
    Environment::new().render_str(template, of).unwrap_or_default()
}

/// The lines of a neighbour. What is FRR's default is not shown by it, and so is None.
#[derive(Serialize)]
struct Session<'a> {
    address: String,
    /// Addresses of the other family have no next hop on it.
    family: &'static str,
    asn: u32,
    name: &'a str,
    bfd: Option<&'a str>,
    password: Option<&'a str>,
    port: Option<u16>,
    multihop: bool,
    source: Option<String>,
    keepalive: u16,
    hold: u16,
    connect: u16,
    graceful: bool,
}

fn session<'a>(peer: &'a BgpPeer, my_asn: u32, passwords: &'a Passwords) -> Session<'a> {
    Session {
        address: peer.peer_address.to_string(),
        family: if peer.peer_address.is_ipv4() { IPV4 } else { IPV6 },
        asn: peer.peer_asn,
        name: &peer.name,
        bfd: peer.bfd_profile.as_deref(),
        password: passwords.get(&peer.name).filter(|_| peer.password),
        port: (peer.peer_port != BgpPeer::PORT).then_some(peer.peer_port),
        // Routers of the same autonomous system may be anywhere.
        multihop: peer.ebgp_multi_hop && peer.peer_asn != my_asn,
        source: peer.source_address.map(|address| address.to_string()),
        keepalive: peer.keepalive_time,
        hold: peer.hold_time,
        connect: peer.connect_time,
        graceful: peer.enable_graceful_restart,
    }
}

/// Prefixes of one family that a peer is told of alike: a prefix-list, and the entry of the peer's route-map for it.
#[derive(Serialize)]
struct List<'a> {
    peer: &'a str,
    family: &'static str,
    name: String,
    /// Number of the route-map's entry.
    seq: u32,
    entries: Vec<Entry>,
    communities: String,
    large_communities: String,
    local_pref: Option<u32>,
}

#[derive(Serialize)]
struct Entry {
    seq: u32,
    prefix: String,
}

fn lists<'a>(peer: &'a str, routes: &[&Route]) -> Vec<List<'a>> {
    let mut alike: BTreeMap<(String, &'static str), (&Attributes, Vec<String>)> = BTreeMap::new();
    for route in routes {
        let Some(attributes) = route.peers.get(peer) else { continue };
        let family = if matches!(route.prefix, IpNet::V4(_)) { "ip" } else { "ipv6" };
        let name = format!("{peer}-{:08x}", hash(&format!("{attributes:?}")));
        let (_, prefixes) = alike.entry((name, family)).or_insert_with(|| (attributes, Vec::new()));
        prefixes.push(route.prefix.to_string());
    }
    let places = places(alike.keys().map(|(name, family)| format!("{family} {name}")), u32::from(LAST) - 1);
    let list = |((name, family), (attributes, prefixes)): ((String, _), (&Attributes, Vec<String>)), seq| {
        let places = self::places(prefixes.iter(), u32::MAX);
        let join = |large: bool| {
            let all = attributes.communities.iter();
            let some = all.filter(|c| matches!(c, BgpCommunity::Large(..)) == large);
            some.map(community).collect::<Vec<_>>().join(" ")
        };
        List {
            peer,
            family,
            name,
            seq,
            entries: prefixes.into_iter().zip(places).map(|(prefix, seq)| Entry { seq, prefix }).collect(),
            communities: join(false),
            large_communities: join(true),
            local_pref: attributes.local_pref,
        }
    };
    alike.into_iter().zip(places).map(|(one, seq)| list(one, seq)).collect()
}

/// A community as FRR shows it: the well-known ones by name (`lib/community.c`).
fn community(community: &BgpCommunity) -> String {
    let BgpCommunity::Standard(high, low) = community else { return community.to_string() };
    let name = match (high, low) {
        (0, 0) => "internet",
        (65535, value) => match value {
            0 => "graceful-shutdown",
            1 => "accept-own",
            2 => "route-filter-translated-v4",
            3 => "route-filter-v4",
            4 => "route-filter-translated-v6",
            5 => "route-filter-v6",
            6 => "llgr-stale",
            7 => "no-llgr",
            8 => "accept-own-nexthop",
            666 => "blackhole",
            65281 => "no-export",
            65282 => "no-advertise",
            65283 => "local-AS",
            65284 => "no-peer",
            _ => return community.to_string(),
        },
        _ => return community.to_string(),
    };
    name.to_owned()
}

/// The lines of a BFD profile. What is FRR's default is not shown by it, and so is None.
#[derive(Serialize)]
struct Profile<'a> {
    name: &'a str,
    detect_multiplier: Option<u8>,
    transmit_interval: Option<u32>,
    receive_interval: Option<u32>,
    echo_interval: Option<u32>,
    passive_mode: bool,
    echo_mode: bool,
    minimum_ttl: Option<u8>,
}

fn profile(profile: &BfdProfile) -> Profile<'_> {
    fn unless<T: PartialEq>(value: T, default: T) -> Option<T> {
        (value != default).then_some(value)
    }
    Profile {
        name: &profile.name,
        detect_multiplier: unless(profile.detect_multiplier, BfdProfile::DETECT_MULTIPLIER),
        transmit_interval: unless(profile.transmit_interval, BfdProfile::INTERVAL),
        receive_interval: unless(profile.receive_interval, BfdProfile::INTERVAL),
        echo_interval: unless(profile.echo_interval, BfdProfile::ECHO_INTERVAL),
        passive_mode: profile.passive_mode,
        echo_mode: profile.echo_mode,
        minimum_ttl: unless(profile.minimum_ttl, BfdProfile::MINIMUM_TTL),
    }
}

fn hash(text: &str) -> u32 {
    let digest = Sha256::digest(text);
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// A number of 1..=`last` for each of the keys, each another: its hash, or the next free one after it.
fn places<K: AsRef<str>>(keys: impl Iterator<Item = K>, last: u32) -> Vec<u32> {
    let mut taken = BTreeSet::new();
    let mut place = |key: K| {
        let mut place = hash(key.as_ref()) % last + 1;
        while !taken.insert(place) {
            place = place % last + 1;
        }
        place
    };
    keys.map(&mut place).collect()
}
