//! What bgpd says of its sessions.

use std::collections::BTreeMap;

use homelab_model::{BgpPeer, LbSession};
use serde::Deserialize;

/// A neighbour in FRR 8.4's `show bgp neighbors json`, as far as it is of use.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Neighbor {
    bgp_state: String,
    bgp_timer_up_established_epoch: Option<u64>,
    address_family_info: BTreeMap<String, Family>,
    connections_dropped: u32,
    last_reset_due_to: Option<String>,
    last_notification_reason: Option<String>,
    peer_bfd_info: Option<Bfd>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Family {
    sent_prefix_counter: u32,
}

#[derive(Debug, Deserialize)]
struct Bfd {
    status: String,
}

/// The sessions with `peers`, of which bgpd says `json` (`show bgp neighbors json`). One that it doesn't know is `Idle`.
///
/// # Errors
/// What is wrong with the JSON text.
pub fn sessions(json: &str, peers: &[&BgpPeer]) -> Result<Vec<LbSession>, serde_json::Error> {
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_str(json)?;
    peers.iter().map(|peer| session(peer, all.get(&peer.peer_address.to_string()))).collect()
}

fn session(peer: &BgpPeer, said: Option<&serde_json::Value>) -> Result<LbSession, serde_json::Error> {
    let neighbor = said.map(Neighbor::deserialize).transpose()?.unwrap_or_default();
    let established = neighbor.bgp_state == LbSession::ESTABLISHED;
    let reset = neighbor.last_reset_due_to.filter(|_| neighbor.connections_dropped > 0 || !established);
    Ok(LbSession {
        peer: peer.name.clone(),
        router: format!("{} AS{}", peer.peer_address, peer.peer_asn),
        state: if neighbor.bgp_state.is_empty() { "Idle".to_owned() } else { neighbor.bgp_state },
        since_unix_ms: neighbor.bgp_timer_up_established_epoch.filter(|_| established).map(|s| s * 1000),
        routes_sent: neighbor.address_family_info.values().map(|family| family.sent_prefix_counter).sum(),
        dropped: neighbor.connections_dropped,
        last_reset: reset.map(|why| match neighbor.last_notification_reason {
            Some(reason) if !reason.is_empty() => format!("{why}: {reason}"),
            _ => why,
        }),
        bfd: neighbor.peer_bfd_info.map(|bfd| bfd.status),
    })
}
