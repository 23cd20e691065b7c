//! Who announces an address: the same answer on every node that knows the same, without a word between them.
//!
//! Of the nodes that may ([`crate::candidates`]), are members, are ready, are not cordoned and have an interface for it, the
//! one with the highest weight; among equals the one with the highest hash of node and address (rendezvous hashing). So the
//! addresses of a node that goes are spread over the others, and no other address moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_model::LbUnfit;
use sha2::{Digest, Sha256};

use crate::announce::Wanted;
use crate::candidates::{Candidate, Eligible, Interfaces};
use crate::state::{Interface, MemberState, Members};

/// The outcome for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Address.
    pub address: IpAddr,
    /// Node that announces it, if one can.
    pub owner: Option<String>,
    /// Its interfaces, sorted; at least one if there is an owner.
    pub interfaces: Vec<String>,
}

/// Elects the owners. `members`: those that are alive.
pub fn elect(candidates: &[Candidate], members: &Members) -> Vec<Owned> {
    candidates.iter().map(|candidate| one(candidate, members)).collect()
}

fn one(candidate: &Candidate, members: &Members) -> Owned {
    let address = candidate.address;
    let fit: Vec<(&Eligible, Vec<&str>)> = candidate
        .placement
        .nodes
        .iter()
        .filter_map(|eligible| Some((eligible, fitness(eligible, address, members).ok()?)))
        .collect();
    let weight = fit.iter().map(|(eligible, _)| eligible.weight).max();
    let mut best = fit.into_iter().filter(|(eligible, _)| Some(eligible.weight) == weight);
    // A hash is what costs most here, and a single one needs none.
    let first = best.next();
    let winner = match (first, best.next()) {
        (Some(first), Some(second)) => {
            [first, second].into_iter().chain(best).max_by_key(|(eligible, _)| rank(&eligible.node, address))
        }
        (first, _) => first,
    };
    let (owner, interfaces) = match winner {
        Some((eligible, interfaces)) => (Some(eligible.node.clone()), interfaces),
        None => (None, Vec::new()),
    };
    Owned { address, owner, interfaces: interfaces.into_iter().map(str::to_owned).collect() }
}

/// Rank of a node for an address: SHA-256 of the node's name, a zero byte and the address's bytes.
fn rank(node: &str, address: IpAddr) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(node.as_bytes());
    hash.update([0]);
    match address {
        IpAddr::V4(address) => hash.update(address.octets()),
        IpAddr::V6(address) => hash.update(address.octets()),
    }
    hash.finalize().into()
}

/// The interfaces that a node would announce an address on, sorted, or why it cannot. `members`: those that are alive.
pub fn fitness<'a>(
    eligible: &Eligible,
    address: IpAddr,
    members: &'a Members,
) -> Result<Vec<&'a str>, LbUnfit> {
    let member = members.get(&eligible.node).ok_or(LbUnfit::Away)?;
    if !member.ready {
        return Err(LbUnfit::NotReady);
    }
    if member.cordoned {
        return Err(LbUnfit::Cordoned);
    }
    let mut interfaces = interfaces(eligible, address, member);
    interfaces.sort_unstable();
    if interfaces.is_empty() { Err(LbUnfit::NoInterface) } else { Ok(interfaces) }
}

fn interfaces<'a>(eligible: &Eligible, address: IpAddr, member: &'a MemberState) -> Vec<&'a str> {
    let having = |fits: &dyn Fn(&Interface) -> bool| -> Vec<&'a str> {
        member.interfaces.iter().filter(|i| fits(i)).map(|interface| interface.name.as_str()).collect()
    };
    let speaks = |interface: &Interface| {
        interface.networks.iter().any(|network| network.addr().is_ipv4() == address.is_ipv4())
    };
    match &eligible.interfaces {
        Interfaces::Named(names) => having(&|interface| names.contains(&interface.name)),
        Interfaces::ByNetwork => {
            let on_link = having(&|i| i.networks.iter().any(|network| network.contains(&address)));
            // A node that has no address of the family yet has no way for its packets.
            let of_node =
                |i: &Interface| i.networks.iter().any(|n| n.addr() == eligible.address) && speaks(i);
            if on_link.is_empty() { having(&of_node) } else { on_link }
        }
    }
}

/// What the announcer of a node is told. `announced`: what others announce, or announced until now, dead ones too: whose
/// address it was needs no probe.
pub fn wanted(owned: &[Owned], node: &str, announced: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Wanted> {
    let ours = owned.iter().filter(|owned| owned.owner.as_deref() == Some(node));
    ours.map(|owned| {
        let interfaces = owned.interfaces.iter().cloned().collect();
        (owned.address, Wanted { interfaces, takeover: announced.contains(&owned.address) })
    })
    .collect()
}
