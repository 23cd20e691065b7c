//! What every member tells the others of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::ContainerWord;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// The state of one member. Whoever carries it may use any format of serde, one without names of fields too: no field is
/// ever left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberState {
    /// Its proxy is in place: packets to load-balancer addresses find their way.
    pub ready: bool,
    /// Is to have no addresses (`homelab cordon`), or is about to stop.
    pub cordoned: bool,
    /// Interfaces that it can announce on: up, with carrier, and none of homelab's own or of pods.
    pub interfaces: Vec<Interface>,
    /// Addresses that it should announce.
    pub holds: Vec<Hold>,
}

/// An interface of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// MAC address.
    pub mac: Mac,
    /// Its addresses with their prefix lengths: `192.168.50.11/24`, not `192.168.50.0/24`.
    pub networks: Vec<IpNet>,
}

/// An address that a member should announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hold {
    /// Address.
    pub address: IpAddr,
    /// Since when it announces it, by its clock: milliseconds since 1970. None while it does not.
    pub since_unix_ms: Option<u64>,
    /// Who has it instead, if a foreign machine does.
    pub conflict: Option<Mac>,
}

/// Members by node name.
pub type Members = BTreeMap<String, MemberState>;

/// What a node says, as it goes to the others: of itself, then of its containers, if there are any. Builds that know nothing of
/// containers read the first part alone. None: there are no words for it.
pub(crate) fn encode(state: &MemberState, words: &[ContainerWord]) -> Option<Vec<u8>> {
    let mut bytes = postcard::to_allocvec(state).ok()?;
    if !words.is_empty() {
        bytes.extend(postcard::to_allocvec(words).ok()?);
    }
    Some(bytes)
}

/// The same, read. What cannot be read is not said.
pub(crate) fn decode(bytes: &[u8]) -> (Option<MemberState>, Vec<ContainerWord>) {
    match postcard::take_from_bytes::<MemberState>(bytes) {
        Ok((state, rest)) => (Some(state), postcard::from_bytes(rest).unwrap_or_default()),
        Err(_) => (None, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_with_and_without_containers_understand_each_other() {
        let interface =
            Interface { name: "eth0".to_owned(), mac: Mac([2, 0, 0, 0, 0, 1]), networks: Vec::new() };
        let state = MemberState { ready: true, interfaces: vec![interface], ..MemberState::default() };
        let words = vec![ContainerWord {
            container: "web".to_owned(),
            interface: "eth0".to_owned(),
            addresses: vec![IpAddr::from([10, 244, 0, 2])],
        }];
        let bytes = encode(&state, &words).expect("bytes");
        assert_eq!(decode(&bytes), (Some(state.clone()), words));
        // As an earlier build reads it, and as it writes it.
        assert_eq!(postcard::from_bytes(&bytes), Ok(state.clone()));
        let earlier = postcard::to_allocvec(&state).expect("bytes");
        assert_eq!(encode(&state, &[]), Some(earlier.clone()));
        assert_eq!(decode(&earlier), (Some(state.clone()), Vec::new()));
        // Cut anywhere: nothing is half said.
        for end in 0..bytes.len() {
            let (cut, words) = decode(&bytes[..end]);
            assert_eq!((cut.is_some(), words.len()), (end >= earlier.len(), 0), "{end}");
        }
    }
}
