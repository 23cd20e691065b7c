//! Routers that are told of load-balancer addresses: each entry by itself. What several of them mean together is in
//! [`super::bgp_meaning`].

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use homelab_model::{BfdProfile, BgpAdvertisement, BgpCommunity, BgpPeer, BgpSettings, BgpSpec, Selector};

use super::advertisements::{DEFAULT, NAMES};
use super::pools::{self, ParsedPool};
use super::{bgp_meaning, bgp_values, clean, family, known, labels, name, nodes, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, Bgp};
use crate::spanned::Spanned;
use crate::value::quote;
use crate::words::nearest;

/// A peer as far as it can be understood.
pub(super) struct Peer {
    /// As it was written.
    pub(super) span: Span,
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<IpAddr>>,
    /// AS number; None where it is missing.
    pub(super) asn: Option<u32>,
    pub(super) router_id: Option<Spanned<Ipv4Addr>>,
    pub(super) source: Option<Spanned<IpAddr>>,
    /// Nodes that have a session with it, by index; None if its selectors are wrong.
    pub(super) nodes: Option<Vec<usize>>,
}

/// An advertisement as far as it can be understood.
pub(super) struct Advertisement<'a> {
    pub(super) raw: &'a raw::BgpAdvertisement,
    pub(super) span: Span,
    pub(super) model: BgpAdvertisement,
    /// Nodes that tell it, by index; None if its selectors are wrong.
    pub(super) nodes: Option<Vec<usize>>,
}

/// All of `loadBalancer.bgp`. Of use only where no fault came.
pub(super) fn bgp(
    raw: &Bgp,
    pools: &[ParsedPool],
    nodes: &[nodes::Parsed],
    faults: &mut Vec<Fault>,
) -> BgpSettings {
    let my_asn = raw.my_asn.as_ref().map(|asn| asn.value);
    let profiles = profiles(raw, faults);
    let communities = communities(raw, faults);
    let mut names = HashMap::new();
    let (mut peers, mut told, mut password_files) = (Vec::new(), Vec::new(), BTreeMap::new());
    for item in raw.peers.iter().flatten() {
        let (peer, model) = peer(item, my_asn, &profiles, nodes, &mut names, faults);
        if let (Some(name), Some(file)) = (&peer.name, &item.value.password_file) {
            password_files.insert(name.value.clone(), file.value.clone());
        }
        told.extend(model);
        peers.push(peer);
    }
    let mut names = HashMap::new();
    let mut advertisements = Vec::new();
    for item in raw.advertisements.iter().flatten() {
        advertisements.push(advertisement(item, pools, &peers, &communities, nodes, &mut names, faults));
    }
    bgp_meaning::peers(&peers, nodes, pools, faults);
    bgp_meaning::advertisements(&advertisements, &peers, my_asn, nodes, pools, faults);
    if pools.is_empty()
        && let Some(asn) = &raw.my_asn
    {
        let message = "there are no pools, so routers are told of nothing";
        faults.push(
            Fault::new("no-pools", asn.span, message).help("add addresses to `loadBalancer.pools`").warning(),
        );
    }
    let mut advertisements: Vec<BgpAdvertisement> = advertisements.into_iter().map(|one| one.model).collect();
    if advertisements.is_empty() {
        advertisements.push(BgpAdvertisement {
            name: DEFAULT.to_owned(),
            aggregation_length: 32,
            aggregation_length_v6: 128,
            ..BgpAdvertisement::default()
        });
    }
    let bfd_profiles = profiles.into_iter().map(|(_, profile)| profile).collect();
    let spec = BgpSpec { my_asn: my_asn.unwrap_or_default(), peers: told, advertisements, bfd_profiles };
    BgpSettings { spec, password_files }
}

fn profiles(raw: &Bgp, faults: &mut Vec<Fault>) -> Vec<(Option<Spanned<String>>, BfdProfile)> {
    let mut names = HashMap::new();
    let profile = |item: &Spanned<raw::BfdProfile>| {
        let raw = &item.value;
        let name = name(&mut names, raw.name.as_ref(), ("a profile name", "profiles"), faults);
        let interval =
            |written: &Option<Spanned<u32>>, default| written.as_ref().map_or(default, |t| t.value);
        let byte = |written: &Option<Spanned<u8>>, default| written.as_ref().map_or(default, |n| n.value);
        let profile = BfdProfile {
            name: name.as_ref().map(|n| n.value.clone()).unwrap_or_default(),
            receive_interval: interval(&raw.receive_interval, BfdProfile::INTERVAL),
            transmit_interval: interval(&raw.transmit_interval, BfdProfile::INTERVAL),
            detect_multiplier: byte(&raw.detect_multiplier, BfdProfile::DETECT_MULTIPLIER),
            echo_interval: interval(&raw.echo_interval, BfdProfile::ECHO_INTERVAL),
            echo_mode: is(&raw.echo_mode),
            passive_mode: is(&raw.passive_mode),
            minimum_ttl: byte(&raw.minimum_ttl, BfdProfile::MINIMUM_TTL),
        };
        (name, profile)
    };
    raw.bfd_profiles.iter().flatten().map(profile).collect()
}

/// A flag that is off unless it is written.
fn is(written: &Option<Spanned<bool>>) -> bool {
    written.as_ref().is_some_and(|flag| flag.value)
}

/// Communities by name; None for one whose value is wrong.
fn communities(raw: &Bgp, faults: &mut Vec<Fault>) -> HashMap<String, Option<BgpCommunity>> {
    let mut names = HashMap::new();
    let mut communities = HashMap::new();
    for item in raw.communities.iter().flatten() {
        let name = item.value.name.as_ref().and_then(|n| take(faults, n, bgp_values::community_name));
        let value = item.value.value.as_ref().and_then(|v| take(faults, v, bgp_values::community));
        let Some(name) = name else { continue };
        if let Some(first) = seen_before(&mut names, &name.value, name.span) {
            faults.push(super::duplicate("communities", &name, first));
        }
        communities.insert(name.value, value.map(|v| v.value));
    }
    communities
}

/// Nodes that selectors choose, by index; `before` is how many faults there were before the selectors were read.
fn chosen(
    selectors: &[Selector],
    nodes: &[nodes::Parsed],
    faults: &[Fault],
    before: usize,
) -> Option<Vec<usize>> {
    let chosen = |node: &nodes::Parsed| Selector::any(selectors, &node.effective_labels());
    let all = nodes.iter().enumerate();
    clean(faults, before).then(|| all.filter(|(_, node)| chosen(node)).map(|(index, _)| index).collect())
}

fn peer(
    item: &Spanned<raw::BgpPeer>,
    my_asn: Option<u32>,
    profiles: &[(Option<Spanned<String>>, BfdProfile)],
    nodes: &[nodes::Parsed],
    names: &mut HashMap<String, Span>,
    faults: &mut Vec<Fault>,
) -> (Peer, Option<BgpPeer>) {
    let raw = &item.value;
    let name = name(names, raw.name.as_ref(), ("a peer name", "peers"), faults);
    let address = |text: Option<&Spanned<String>>, what: &str, faults: &mut Vec<Fault>| {
        let address = take(faults, text?, values::address)?;
        let Some(why) = values::unusable(address.value) else { return Some(address) };
        let message = format!("{} is {why}; {what}", address.value);
        faults.push(Fault::new("address", address.span, message).help("write the address on the LAN"));
        None
    };
    let peer_address = address(raw.peer_address.as_ref(), "no router can be reached there", faults);
    let source = address(raw.source_address.as_ref(), "no session can begin there", faults);
    if let (Some(to), Some(from)) = (&peer_address, &source)
        && to.value.is_ipv4() != from.value.is_ipv4()
    {
        let (there, here) = (family(to.value.is_ipv4()), family(from.value.is_ipv4()));
        faults.push(
            Fault::new(
                "mixed-families",
                from.span,
                format!("a session with an {there} address cannot come from an {here} address"),
            )
            .label(here)
            .also(to.span, there)
            .help(format!("write an {there} address of the node, or leave `sourceAddress` out")),
        );
    }
    let router_id = raw.router_id.as_ref().and_then(|id| take(faults, id, bgp_values::router_id));
    let (hold_time, keepalive_time) = timers(raw, faults);
    let connect_time = raw.connect_time.as_ref().and_then(|t| take(faults, t, bgp_values::some_seconds));
    if let Some(hops) = raw.ebgp_multi_hop.as_ref().filter(|hops| hops.value)
        && let Some(asn) = raw.peer_asn.as_ref().filter(|asn| my_asn == Some(asn.value))
    {
        faults.push(
            Fault::new("ebgp-multi-hop", hops.span, "`ebgpMultiHop` is for routers of another AS")
                .also(asn.span, "the same as `myASN`")
                .help("leave it out: iBGP sessions pass any number of hops"),
        );
    }
    if let Some(file) = raw.password_file.as_ref().filter(|file| file.value.trim().is_empty()) {
        faults.push(
            Fault::new("password-file", file.span, "the path of the password's file is empty")
                .help("for example `bgp.password`, beside this file; or leave the key out"),
        );
    }
    if let Some(text) = &raw.bfd_profile {
        let home = ("unknown-profile", "profile", "loadBalancer.bgp.bfdProfiles");
        known(profiles.iter().map(|(name, _)| name.as_ref()), text, home, faults);
        let profile = profiles.iter().find(|(_, profile)| profile.name == text.value);
        let echo = profile.is_some_and(|(_, profile)| profile.echo_mode);
        let why = match &peer_address {
            _ if is(&raw.ebgp_multi_hop) => Some("more than one hop away"),
            Some(address) if address.value.is_ipv6() => Some("reached by IPv6"),
            _ => None,
        };
        if let Some(why) = why.filter(|_| echo) {
            let message = format!(
                "profile `{}` has `echoMode`, which is not possible with a router that is {why}",
                text.value
            );
            faults.push(
                Fault::new("bfd-echo", text.span, message)
                    .help("give this router a profile without `echoMode`"),
            );
        }
    }
    if let Some(graceful) = raw.enable_graceful_restart.as_ref().filter(|graceful| graceful.value)
        && let Some(profile) = &raw.bfd_profile
    {
        let message = "a router that helps nodes to start again may keep the routes of a dead one, too";
        faults.push(
            Fault::new("graceful-restart", graceful.span, message)
                .also(profile.span, "although BFD finds it dead at once")
                .help("FRR keeps them for two minutes; leave one of the two out, unless you know that your router does not")
                .warning(),
        );
    }
    let before = faults.len();
    let node_selectors = labels::selectors(raw.node_selectors.as_ref(), "nodeSelectors", "all nodes", faults);
    let nodes = chosen(&node_selectors, nodes, faults, before);
    let asn = raw.peer_asn.as_ref().map(|asn| asn.value);
    let model = BgpPeer {
        name: name.as_ref().map(|n| n.value.clone()).unwrap_or_default(),
        peer_address: peer_address.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.value),
        peer_asn: asn.unwrap_or_default(),
        peer_port: raw.peer_port.as_ref().map_or(BgpPeer::PORT, |p| p.value),
        source_address: source.as_ref().map(|s| s.value),
        router_id: router_id.as_ref().map(|id| id.value),
        hold_time,
        keepalive_time,
        connect_time: connect_time.map_or(BgpPeer::CONNECT_TIME, |t| t.value),
        password: raw.password_file.is_some(),
        bfd_profile: raw.bfd_profile.as_ref().map(|p| p.value.clone()),
        ebgp_multi_hop: is(&raw.ebgp_multi_hop),
        enable_graceful_restart: is(&raw.enable_graceful_restart),
        node_selectors,
    };
    // Without an address nothing can be said of it.
    let model = peer_address.is_some().then_some(model);
    (Peer { span: item.span, name, address: peer_address, asn, router_id, source, nodes }, model)
}

/// Hold time and time between keepalives, in seconds; each from the other where one is written, as in MetalLB.
fn timers(raw: &raw::BgpPeer, faults: &mut Vec<Fault>) -> (u16, u16) {
    let default = (BgpPeer::HOLD_TIME, BgpPeer::HOLD_TIME / 3);
    let before = faults.len();
    let hold = raw.hold_time.as_ref().and_then(|t| take(faults, t, bgp_values::hold_time));
    let keepalive = raw.keepalive_time.as_ref().and_then(|t| take(faults, t, bgp_values::seconds));
    if faults.len() > before {
        return default;
    }
    let wrong =
        |at: Span, message: String, help: String| Fault::new("keepalive-time", at, message).help(help);
    match (hold, keepalive) {
        (None, None) => default,
        (Some(hold), None) => (hold.value, hold.value / 3),
        (None, Some(keepalive)) => match keepalive.value.checked_mul(3) {
            Some(0) => (0, 0),
            Some(hold) => (hold, keepalive.value),
            None => {
                let message = format!("{}s are too long between keepalives", keepalive.value);
                faults.push(wrong(keepalive.span, message, "the longest is `21845s`".into()));
                default
            }
        },
        (Some(hold), Some(keepalive)) => {
            let fits = match hold.value {
                0 => keepalive.value == 0,
                hold => (1..=hold / 3).contains(&keepalive.value),
            };
            if !fits {
                let message = format!(
                    "a keepalive every {}s does not fit a hold time of {}s",
                    keepalive.value, hold.value
                );
                let help = match hold.value {
                    0 => "without a hold time there are no keepalives: leave `keepaliveTime` out".to_owned(),
                    hold => format!("it is from `1s` to a third, `{}s`; leave it out for that", hold / 3),
                };
                faults.push(wrong(keepalive.span, message, help).also(hold.span, "the hold time"));
            }
            (hold.value, keepalive.value)
        }
    }
}

fn advertisement<'a>(
    item: &'a Spanned<raw::BgpAdvertisement>,
    pools: &[ParsedPool],
    peers: &[Peer],
    communities: &HashMap<String, Option<BgpCommunity>>,
    nodes: &[nodes::Parsed],
    names: &mut HashMap<String, Span>,
    faults: &mut Vec<Fault>,
) -> Advertisement<'a> {
    let raw = &item.value;
    let name = name(names, raw.name.as_ref(), NAMES, faults);
    for text in raw.ip_address_pools.iter().flatten() {
        pools::known(pools, text, faults);
    }
    for text in raw.peers.iter().flatten() {
        let home = ("unknown-peer", "peer", "loadBalancer.bgp.peers");
        known(peers.iter().map(|peer| peer.name.as_ref()), text, home, faults);
    }
    let mut chosen_communities: Vec<BgpCommunity> =
        raw.communities.iter().flatten().filter_map(|text| community(text, communities, faults)).collect();
    chosen_communities.sort_unstable();
    chosen_communities.dedup();
    let service_selectors =
        labels::selectors(raw.service_selectors.as_ref(), "serviceSelectors", "all services", faults);
    let before = faults.len();
    let node_selectors = labels::selectors(raw.node_selectors.as_ref(), "nodeSelectors", "all nodes", faults);
    let nodes = chosen(&node_selectors, nodes, faults, before);
    let texts =
        |list: &Option<Vec<Spanned<String>>>| list.iter().flatten().map(|t| t.value.clone()).collect();
    let model = BgpAdvertisement {
        name: name.map(|n| n.value).unwrap_or_default(),
        ip_address_pools: texts(&raw.ip_address_pools),
        aggregation_length: raw.aggregation_length.as_ref().map_or(32, |l| l.value),
        aggregation_length_v6: raw.aggregation_length_v6.as_ref().map_or(128, |l| l.value),
        local_pref: raw.local_pref.as_ref().map(|p| p.value),
        communities: chosen_communities,
        node_selectors,
        service_selectors,
        peers: texts(&raw.peers),
    };
    Advertisement { raw, span: item.span, model, nodes }
}

/// A community by its numbers, its name in the file, or its well-known name.
fn community(
    text: &Spanned<String>,
    communities: &HashMap<String, Option<BgpCommunity>>,
    faults: &mut Vec<Fault>,
) -> Option<BgpCommunity> {
    if bgp_values::numbers(&text.value).is_some() {
        return take(faults, text, bgp_values::community).map(|c| c.value);
    }
    if let Some(community) = communities.get(&text.value) {
        return *community;
    }
    if let Some((_, community)) = BgpCommunity::WELL_KNOWN.iter().find(|(name, _)| *name == text.value) {
        return Some(*community);
    }
    let mut names: Vec<&str> = communities.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.extend(BgpCommunity::WELL_KNOWN.map(|(name, _)| name));
    let help = match nearest(&text.value, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "write its numbers, e.g. `64512:100`, or add it to `loadBalancer.bgp.communities`".to_owned(),
    };
    let message = format!("there is no community {}", quote(&text.value));
    faults.push(Fault::new("unknown-community", text.span, message).help(help));
    None
}
