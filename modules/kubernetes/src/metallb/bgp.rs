//! BGPPeer, BGPAdvertisement, BFDProfile and Community.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::{BfdProfile, BgpAdvertisement, BgpCommunity, BgpPeer, BgpSpec, SpeakerSpec};

use super::spec::{BfdProfileSpec, BgpAdvertisementSpec, BgpPeerSpec, Resource, Resources};
use super::{Meaning, Note, pools_of, selectors};

/// Adds what is said by BGP. There are no sessions without peers, and nothing to tell without pools.
pub(super) fn bgp(resources: &Resources, file: &SpeakerSpec, meaning: &mut Meaning) {
    let own = file.bgp.clone().unwrap_or_default();
    let mut peers = resources.bgp_peers.clone();
    peers.sort_by(|a, b| a.name().cmp(b.name()));
    let my_asn = match (own.my_asn, peers.first()) {
        (0, Some(first)) => first.spec.my_asn,
        (asn, _) => asn,
    };
    let mut bgp = BgpSpec { my_asn, ..BgpSpec::default() };
    for one in &resources.bfd_profiles {
        if own.bfd_profiles.iter().any(|profile| profile.name == one.name()) {
            let text = "homelab.yaml has a profile of that name: that one counts";
            meaning.notes.push(Note::new("BFDProfile", one.name(), text));
        } else {
            bgp.bfd_profiles.push(profile(one));
        }
    }
    let profiles: Vec<&str> =
        own.bfd_profiles.iter().chain(&bgp.bfd_profiles).map(|profile| profile.name.as_str()).collect();
    let mut told = Vec::new();
    for one in &peers {
        match peer(one, &own, my_asn, &profiles) {
            Ok(peer) => told.push(peer),
            Err(text) => meaning.notes.push(Note::new("BGPPeer", one.name(), text)),
        }
    }
    bgp.peers = told;
    let communities = communities(resources);
    for one in &resources.bgp_advertisements {
        match advertisement(one, &own, resources, meaning, &communities) {
            Ok(advertisement) => bgp.advertisements.push(advertisement),
            Err(text) => meaning.notes.push(Note::new("BGPAdvertisement", one.name(), text)),
        }
    }
    if own.peers.is_empty() {
        let text = "FRR comes to nodes by peers of homelab.yaml (`loadBalancer.bgp.peers`), and there are none: no session \
                    with it; write it into homelab.yaml and apply";
        meaning.notes.extend(bgp.peers.iter().map(|peer| Note::new("BGPPeer", &peer.name, text)));
        return;
    }
    if !bgp.peers.is_empty() || (file.bgp.is_some() && !bgp.advertisements.is_empty()) {
        meaning.bgp = Some(bgp.sorted());
    }
}

fn peer(
    one: &Resource<BgpPeerSpec>,
    own: &BgpSpec,
    my_asn: u32,
    profiles: &[&str],
) -> Result<BgpPeer, String> {
    let spec = &one.spec;
    if own.peers.iter().any(|peer| peer.name == one.name()) {
        return Err("homelab.yaml has a peer of that name: that one counts".to_owned());
    }
    for (there, what) in [
        (!spec.dynamic_asn.is_empty(), "`dynamicASN`"),
        (!spec.interface.is_empty(), "`interface`"),
        (!spec.vrf.is_empty(), "`vrf`"),
    ] {
        if there {
            return Err(format!("homelab does not know {what}: the peer is left out"));
        }
    }
    if spec.has_password || spec.has_secret {
        return Err("agents may not read passwords of the cluster: the peer is left out; write it into homelab.yaml with \
                    `passwordFile`"
            .to_owned());
    }
    if spec.my_asn != my_asn {
        return Err(format!("its `myASN` is not {my_asn}, that of the others: the peer is left out"));
    }
    if spec.my_asn == 0 || spec.peer_asn == 0 {
        return Err("`myASN` and `peerASN` cannot be 0: the peer is left out".to_owned());
    }
    let address: IpAddr = spec
        .peer_address
        .parse()
        .map_err(|_| format!("`{}` is no address: the peer is left out", spec.peer_address))?;
    if let Some(peer) = own.peers.iter().find(|peer| peer.peer_address == address) {
        return Err(format!("peer {} of homelab.yaml has the same address: that one counts", peer.name));
    }
    if !spec.bfd_profile.is_empty() && !profiles.contains(&spec.bfd_profile.as_str()) {
        return Err(format!("there is no BFDProfile {}: the peer is left out", spec.bfd_profile));
    }
    let time = |text: &Option<String>, otherwise: u16| match text {
        None => Ok(otherwise),
        Some(text) => {
            seconds(text).ok_or(format!("`{text}` is no whole number of seconds: the peer is left out"))
        }
    };
    let hold_time = time(&spec.hold_time, BgpPeer::HOLD_TIME)?;
    let keepalive_time = time(&spec.keepalive_time, hold_time / 3)?;
    if matches!(hold_time, 1 | 2) || keepalive_time > hold_time / 3 {
        return Err("its times do not fit: `holdTime` is 0 or at least 3s, `keepaliveTime` at most a third of it; the \
                    peer is left out"
            .to_owned());
    }
    let optional = |text: &str, what: &str| match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("`{text}` is no {what}: the peer is left out")),
    };
    let router_id = match spec.router_id.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("`{text}` is no router id: the peer is left out"))?),
    };
    Ok(BgpPeer {
        peer_port: if spec.peer_port == 0 { BgpPeer::PORT } else { spec.peer_port },
        source_address: optional(&spec.source_address, "address")?,
        router_id,
        hold_time,
        keepalive_time,
        connect_time: time(&spec.connect_time, BgpPeer::CONNECT_TIME)?,
        bfd_profile: Some(spec.bfd_profile.clone()).filter(|name| !name.is_empty()),
        ebgp_multi_hop: spec.ebgp_multi_hop,
        enable_graceful_restart: spec.enable_graceful_restart,
        node_selectors: selectors(&spec.node_selectors)?,
        ..BgpPeer::new(one.name(), address, spec.peer_asn)
    })
}

fn profile(one: &Resource<BfdProfileSpec>) -> BfdProfile {
    let spec = &one.spec;
    BfdProfile {
        name: one.name().to_owned(),
        receive_interval: spec.receive_interval.unwrap_or(BfdProfile::INTERVAL),
        transmit_interval: spec.transmit_interval.unwrap_or(BfdProfile::INTERVAL),
        detect_multiplier: spec.detect_multiplier.unwrap_or(BfdProfile::DETECT_MULTIPLIER),
        echo_interval: spec.echo_interval.unwrap_or(BfdProfile::ECHO_INTERVAL),
        echo_mode: spec.echo_mode.unwrap_or_default(),
        passive_mode: spec.passive_mode.unwrap_or_default(),
        minimum_ttl: spec.minimum_ttl.unwrap_or(BfdProfile::MINIMUM_TTL),
    }
}

fn advertisement(
    one: &Resource<BgpAdvertisementSpec>,
    own: &BgpSpec,
    resources: &Resources,
    meaning: &Meaning,
    communities: &BTreeMap<&str, &str>,
) -> Result<BgpAdvertisement, String> {
    if own.advertisements.iter().any(|other| other.name == one.name()) {
        return Err("homelab.yaml has an advertisement of that name: that one counts".to_owned());
    }
    let spec = &one.spec;
    let lengths = (spec.aggregation_length.unwrap_or(32), spec.aggregation_length_v6.unwrap_or(128));
    if !(1..=32).contains(&lengths.0) || !(1..=128).contains(&lengths.1) {
        return Err("its aggregation lengths are not possible: it is left out".to_owned());
    }
    let mut numbers = Vec::new();
    for text in &spec.communities {
        let known = BgpCommunity::WELL_KNOWN.iter().find(|(name, _)| name == text).map(|(_, value)| *value);
        let value = known.or_else(|| community(communities.get(text.as_str()).copied().unwrap_or(text)));
        numbers.push(value.ok_or(format!("`{text}` is no community, nor the name of one: it is left out"))?);
    }
    numbers.sort_unstable();
    numbers.dedup();
    let pools = pools_of(&spec.ip_address_pools, &spec.ip_address_pool_selectors, resources, &meaning.pools)?;
    Ok(BgpAdvertisement {
        name: one.name().to_owned(),
        ip_address_pools: pools,
        aggregation_length: lengths.0,
        aggregation_length_v6: lengths.1,
        local_pref: Some(spec.local_pref).filter(|value| *value != 0),
        communities: numbers,
        node_selectors: selectors(&spec.node_selectors)?,
        service_selectors: selectors(&spec.service_selectors)?,
        peers: spec.peers.clone(),
    })
}

fn communities(resources: &Resources) -> BTreeMap<&str, &str> {
    let all = resources.communities.iter().flat_map(|one| &one.spec.communities);
    all.map(|one| (one.name.as_str(), one.value.as_str())).collect()
}

/// `64512:100`, `large:64512:1:2`.
fn community(text: &str) -> Option<BgpCommunity> {
    let large = text.strip_prefix("large:");
    let parts: Vec<&str> = large.unwrap_or(text).split(':').collect();
    match (large, parts.as_slice()) {
        (None, [a, b]) => Some(BgpCommunity::Standard(a.parse().ok()?, b.parse().ok()?)),
        (Some(_), [a, b, c]) => Some(BgpCommunity::Large(a.parse().ok()?, b.parse().ok()?, c.parse().ok()?)),
        _ => None,
    }
}

/// A duration as Go writes it (`1m30s`), if it is whole seconds.
fn seconds(text: &str) -> Option<u16> {
    let (mut total, mut number) = (0_u64, String::new());
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        number.clear();
        number.push_str(rest.get(..digits)?);
        rest = rest.get(digits..)?;
        let (unit, after) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
            .into_iter()
            .find_map(|(unit, ms)| Some((ms, rest.strip_prefix(unit)?)))?;
        rest = after;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
    }
    (!text.is_empty() && total.is_multiple_of(1000)).then_some(())?;
    u16::try_from(total / 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("1m30s", Some(90)),
            ("1h", Some(3600)),
            ("3000ms", Some(3)),
            ("0s", Some(0)),
            ("1500ms", None),
            ("", None),
            ("90", None),
            ("s", None),
            ("100h", None),
            ("-3s", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
