//! What people are told.

use homelab_model::{LbAddress, LbInterface, LbMember, LbReport, LbStanding, LbState};

use super::Speaker;
use crate::announce::{State, Status, Time};
use crate::candidates::Candidate;
use crate::election::fitness;
use crate::membership::Standing;
use crate::state::MemberState;

impl Speaker {
    /// How this node sees things.
    pub fn report(&self, now: Time) -> LbReport {
        let own = self.said();
        let mut members = self.others.eligible();
        if self.settled() {
            members.insert(self.node.clone(), own.clone());
        }
        let statuses = self.announcer.status();
        let address = |candidate: &Candidate| {
            let at = candidate.address;
            let record = self.owners.get(&at);
            let owner = record.and_then(|record| record.owner.clone());
            let conflict = owner.as_ref().and_then(|owner| members.get(owner)).and_then(|state| {
                // As they were sent, sorted.
                let place = state.holds.binary_search_by_key(&at, |hold| hold.address).ok()?;
                state.holds[place].conflict
            });
            let excluded = candidate.placement.excluded.iter().cloned();
            let unfit =
                candidate.placement.nodes.iter().filter_map(|eligible| {
                    Some((eligible.node.clone(), fitness(eligible, at, &members).err()?))
                });
            let mut unfit: Vec<_> = excluded.chain(unfit).collect();
            unfit.sort();
            LbAddress {
                address: at,
                services: candidate.services.clone(),
                pool: candidate.pool.clone(),
                since_unix_ms: record.filter(|r| r.owner.is_some()).map(|r| self.unix(r.since)),
                moves: record.map_or(0, |record| record.moves),
                owner,
                conflict: conflict.map(|mac| mac.to_string()),
                interfaces: statuses[statuses.partition_point(|s| s.address < at)..]
                    .iter()
                    .take_while(|s| s.address == at)
                    .map(|s| self.interface(s))
                    .collect(),
                unfit,
            }
        };
        LbReport {
            bgp: None,
            node: self.node.clone(),
            time_unix_ms: self.unix(now),
            settled: self.settled(),
            members: self.members(&own),
            addresses: self.candidates.iter().map(address).collect(),
        }
    }

    fn members(&self, own: &MemberState) -> Vec<LbMember> {
        let of = |name: &str, standing, since: Option<Time>, state: Option<&MemberState>| LbMember {
            name: name.to_owned(),
            standing,
            since_unix_ms: since.map(|since| self.unix(since)),
            ready: state.is_some_and(|state| state.ready),
            cordoned: state.is_some_and(|state| state.cordoned),
            interfaces: state.map_or_else(Vec::new, |state| {
                state.interfaces.iter().map(|i| (i.name.clone(), i.mac.to_string())).collect()
            }),
        };
        let others = self.membership.members().into_iter().map(|member| {
            let standing = match member.standing {
                Standing::Unknown => LbStanding::Unknown,
                Standing::Alive => LbStanding::Alive,
                Standing::Suspect => LbStanding::Suspect,
                Standing::Down => LbStanding::Down,
                Standing::Left => LbStanding::Left,
            };
            of(member.name, standing, Some(member.since), self.others.state(member.name))
        });
        let mut members: Vec<LbMember> = others.collect();
        members.push(of(&self.node, LbStanding::Itself, None, Some(own)));
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    fn interface(&self, status: &Status) -> LbInterface {
        let mut own = self.own.interfaces.iter();
        LbInterface {
            name: status.interface.clone(),
            mac: own.find(|i| i.name == status.interface).map(|i| i.mac.to_string()),
            state: match status.state {
                State::Down => LbState::Down,
                State::Probing => LbState::Probing,
                State::Announced => LbState::Announced,
                State::Conflict => LbState::Conflict,
            },
            since_unix_ms: self.unix(status.since),
            answered: status.answered,
            announcements: status.announcements,
            claims: status.claims,
        }
    }
}
