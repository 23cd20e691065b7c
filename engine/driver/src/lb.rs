//! Load-balancer addresses: one picture from what every node says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_model::{
    Holder, LbAddress, LbInterface, LbNode, LbReport, LbSession, LbStanding, LbState, LbUnfit, LbWhere,
};

/// Load-balancer addresses over all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LbPicture {
    /// The addresses, sorted.
    pub addresses: Vec<LbRow>,
    /// The nodes that were asked, in the order of the file.
    pub nodes: Vec<LbNodeRow>,
    /// Sessions with routers, by node in the order of the file.
    pub sessions: Vec<LbSessionRow>,
}

/// A node's session with a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LbSessionRow {
    /// Node name.
    pub node: String,
    /// What it says of the session.
    pub session: LbSession,
    /// For how long it is established, seconds.
    pub age: Option<u64>,
}

/// A load-balancer address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LbRow {
    /// Address.
    pub address: IpAddr,
    /// The services that share it, `namespace/name`.
    pub services: Vec<String>,
    /// Its pool; None: no pool holds it.
    pub pool: Option<String>,
    /// Node that has it: the one that says so itself, else the one that most others name.
    pub owner: Option<String>,
    /// Where it stands, by its owner's word; [`LbWhere::Elsewhere`]: its owner has not said.
    pub state: LbWhere,
    /// Since when the owner has it, milliseconds since 1970 by the clock of the node that said so.
    pub since_unix_ms: Option<u64>,
    /// For how long, seconds.
    pub age: Option<u64>,
    /// The owner's interfaces.
    pub interfaces: Vec<LbInterface>,
    /// MAC address of a foreign machine that has it.
    pub conflict: Option<String>,
    /// How often its owner changed, as seen by the node that saw most.
    pub moves: u64,
    /// Nodes that cannot have it, and why.
    pub unfit: Vec<(String, LbUnfit)>,
    /// Who has it as nodes see it, and which nodes; empty if all see the same.
    pub views: Vec<(Option<String>, Vec<String>)>,
    /// Nodes that announce it, if there are several.
    pub doubled: Vec<String>,
    /// Nodes that tell routers of it over established sessions, with the peers' names.
    pub told_by: Vec<(String, Vec<String>)>,
}

/// A node that announces addresses, or should.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LbNodeRow {
    /// Node name.
    pub name: String,
    /// It could be asked.
    pub answered: bool,
    /// Its configuration tells it to announce addresses.
    pub told: bool,
    /// Its agent runs.
    pub agent: bool,
    /// It takes part in elections; None: its agent says nothing.
    pub settled: Option<bool>,
    /// Its services are in place, by its own word.
    pub ready: Option<bool>,
    /// It is cordoned, by its own word, else by what others heard of it last.
    pub cordoned: bool,
    /// Who cordoned it, if it said.
    pub by: Option<Holder>,
    /// Its interfaces that it can announce on, with their MAC addresses, by its own word, else by others'.
    pub interfaces: Vec<(String, String)>,
    /// Nodes for which it is no member, how it stands there, and since when (milliseconds since 1970).
    pub away: Vec<(String, LbStanding, Option<u64>)>,
    /// What is wrong with its FRR, by its own word.
    pub bgp_problem: Option<String>,
}

impl LbRow {
    /// Whether one node announces it, and all know it; or it is for routers alone, and one knows it.
    pub fn is_good(&self) -> bool {
        let announced = self.state == LbWhere::Announced || self.is_routed();
        announced && self.views.is_empty() && self.doubled.is_empty()
    }

    /// Whether routers know it, and it is not to be announced on the LAN.
    pub fn is_routed(&self) -> bool {
        let no_advertisement = |(_, why): &(String, LbUnfit)| *why == LbUnfit::NoAdvertisement;
        self.state == LbWhere::Nobody && !self.told_by.is_empty() && self.unfit.iter().all(no_advertisement)
    }
}

impl LbSessionRow {
    /// Whether it is established, and BFD does not say otherwise.
    pub fn is_good(&self) -> bool {
        is_established(&self.session) && self.session.bfd.as_deref() != Some("Down")
    }
}

fn is_established(session: &LbSession) -> bool {
    session.state == LbSession::ESTABLISHED
}

impl LbNodeRow {
    /// Whether it does what it was told. A cordoned node does.
    pub fn is_good(&self) -> bool {
        let works = !self.told || (self.agent && self.settled == Some(true));
        self.answered && works && self.away.is_empty() && self.bgp_problem.is_none()
    }
}

impl LbPicture {
    /// Puts together what nodes say, or why they could not be asked.
    pub fn of<E>(answers: &[(String, Result<LbNode, E>)]) -> LbPicture {
        let said = said(answers);
        let addresses: BTreeSet<IpAddr> =
            said.iter().flat_map(|word| word.report.addresses.iter().map(|a| a.address)).collect();
        LbPicture {
            addresses: addresses.into_iter().map(|address| row(address, &said)).collect(),
            nodes: answers.iter().map(|(name, answer)| node(name, answer.as_ref().ok(), &said)).collect(),
            sessions: said.iter().flat_map(sessions).collect(),
        }
    }

    /// Whether any node announces addresses, or should.
    pub fn is_used(&self) -> bool {
        !self.addresses.is_empty() || self.nodes.iter().any(|node| node.told)
    }

    /// Whether every address is announced by one node, or known to routers, and every node does what it was told.
    pub fn is_good(&self) -> bool {
        let (addresses, sessions) = (&self.addresses, &self.sessions);
        addresses.iter().all(LbRow::is_good)
            && self.nodes.iter().all(LbNodeRow::is_good)
            && sessions.iter().all(LbSessionRow::is_good)
    }

    /// The picture without what changes all the time: counters and ages.
    pub fn still(&self) -> LbPicture {
        let mut still = self.clone();
        for row in &mut still.addresses {
            row.age = None;
            for interface in &mut row.interfaces {
                (interface.answered, interface.announcements, interface.claims) = (0, 0, 0);
            }
        }
        for row in &mut still.sessions {
            row.age = None;
        }
        still
    }
}

/// Whether all agents that say anything know that `node` is cordoned, or is not, and agree about who has what.
pub(crate) fn is_known<E>(answers: &[(String, Result<LbNode, E>)], node: &str, cordoned: bool) -> bool {
    let said = said(answers);
    let knows = |word: &Word<'_>| word.report.member(node).is_none_or(|m| m.cordoned == cordoned);
    let mut owners: BTreeMap<IpAddr, Option<&str>> = BTreeMap::new();
    said.iter().filter(|word| word.report.settled).all(|word| {
        knows(word)
            && word.report.addresses.iter().all(|a| {
                let owner = a.owner.as_deref();
                !(cordoned && owner == Some(node)) && *owners.entry(a.address).or_insert(owner) == owner
            })
    })
}

/// What one node says.
struct Word<'a> {
    node: &'a str,
    /// Its clock.
    now: u64,
    report: &'a LbReport,
}

fn said<E>(answers: &[(String, Result<LbNode, E>)]) -> Vec<Word<'_>> {
    let words = answers.iter().filter_map(|(node, answer)| {
        let answer = answer.as_ref().ok()?;
        Some(Word { node, now: answer.time_unix_ms, report: answer.report.as_ref()? })
    });
    words.collect()
}

fn sessions(word: &Word<'_>) -> Vec<LbSessionRow> {
    let row = |session: &LbSession| LbSessionRow {
        node: word.node.to_owned(),
        session: session.clone(),
        age: session.since_unix_ms.map(|since| word.now.saturating_sub(since) / 1000),
    };
    word.report.bgp.iter().flat_map(|bgp| bgp.sessions.iter().map(row)).collect()
}

/// Who tells routers of an address.
fn told_by(address: IpAddr, said: &[Word<'_>]) -> Vec<(String, Vec<String>)> {
    let of_node = |word: &Word<'_>| {
        let bgp = word.report.bgp.as_ref()?;
        let up = |peer: &&String| bgp.sessions.iter().any(|s| s.peer == **peer && is_established(s));
        let routes = bgp.routes.iter().filter(|route| route.addresses.contains(&address));
        let peers: BTreeSet<String> = routes.flat_map(|r| r.peers.iter().filter(up).cloned()).collect();
        (!peers.is_empty()).then(|| (word.node.to_owned(), peers.into_iter().collect()))
    };
    said.iter().filter_map(of_node).collect()
}

fn row(address: IpAddr, said: &[Word<'_>]) -> LbRow {
    let words: Vec<(&Word<'_>, &LbAddress)> = said
        .iter()
        .filter_map(|word| Some((word, word.report.addresses.iter().find(|a| a.address == address)?)))
        .collect();
    // One that has heard of nobody yet knows of no owner.
    let voters: Vec<&(&Word<'_>, &LbAddress)> = words.iter().filter(|(w, _)| w.report.settled).collect();
    let mut views: BTreeMap<Option<&str>, Vec<String>> = BTreeMap::new();
    for (word, told) in &voters {
        views.entry(told.owner.as_deref()).or_default().push(word.node.to_owned());
    }
    let announces = |told: &LbAddress| told.interfaces.iter().any(|i| i.state == LbState::Announced);
    let votes = |name: &str| views.get(&Some(name)).map_or(0, Vec::len);
    let own = voters
        .iter()
        .filter(|(word, told)| told.owner.as_deref() == Some(word.node))
        .max_by_key(|(word, told)| (announces(told), votes(word.node), std::cmp::Reverse(word.node)));
    let named = views.iter().filter_map(|(owner, by)| Some(((*owner)?, by.len())));
    let named = named.max_by_key(|(owner, votes)| (*votes, std::cmp::Reverse(*owner)));
    let owner = own.map(|(word, _)| word.node).or(named.map(|(owner, _)| owner));
    // Who tells of it: the owner, else somebody who names the same one.
    let teller = own
        .copied()
        .or_else(|| voters.iter().find(|(_, told)| told.owner.as_deref() == owner).copied())
        .or_else(|| words.first());
    let announcers: Vec<String> =
        words.iter().filter(|(_, told)| announces(told)).map(|(word, _)| word.node.to_owned()).collect();
    let since = teller.and_then(|(_, told)| told.since_unix_ms).filter(|_| owner.is_some());
    let state = match (owner, own) {
        (None, _) => LbWhere::Nobody,
        (Some(_), Some((_, told))) => told.state(),
        (Some(_), None) if teller.is_some_and(|(_, told)| told.conflict.is_some()) => LbWhere::Conflict,
        (Some(_), None) => LbWhere::Elsewhere,
    };
    LbRow {
        address,
        services: teller.map(|(_, told)| told.services.clone()).unwrap_or_default(),
        pool: teller.and_then(|(_, told)| told.pool.clone()),
        owner: owner.map(str::to_owned),
        state,
        since_unix_ms: since,
        age: since.zip(teller).map(|(since, (word, _))| word.now.saturating_sub(since) / 1000),
        interfaces: own.map(|(_, told)| told.interfaces.clone()).unwrap_or_default(),
        conflict: teller.and_then(|(_, told)| told.conflict.clone()),
        moves: words.iter().map(|(_, told)| told.moves).max().unwrap_or_default(),
        unfit: unfit(&words),
        views: match views.len() {
            0 | 1 => Vec::new(),
            _ => views.into_iter().map(|(owner, by)| (owner.map(str::to_owned), by)).collect(),
        },
        doubled: if announcers.len() > 1 { announcers } else { Vec::new() },
        told_by: told_by(address, said),
    }
}

/// Who cannot have an address: by its own word, else by the first other's that says so.
fn unfit(words: &[(&Word<'_>, &LbAddress)]) -> Vec<(String, LbUnfit)> {
    let mut all: BTreeMap<&str, LbUnfit> = BTreeMap::new();
    for (_, told) in words {
        for (node, why) in &told.unfit {
            all.entry(node).or_insert(*why);
        }
    }
    for (word, told) in words {
        match told.unfit.iter().find(|(node, _)| node == word.node) {
            Some((_, why)) => drop(all.insert(word.node, *why)),
            // It could; that others do not hear of it is said with the members.
            None if all.get(word.node) != Some(&LbUnfit::Away) => drop(all.remove(word.node)),
            None => {}
        }
    }
    all.into_iter().map(|(node, why)| (node.to_owned(), why)).collect()
}

fn node(name: &str, answer: Option<&LbNode>, said: &[Word<'_>]) -> LbNodeRow {
    let own = said.iter().find(|word| word.node == name);
    let others = said.iter().filter(|word| word.node != name);
    let heard: Vec<_> = others.filter_map(|word| Some((word, word.report.member(name)?))).collect();
    let of_own = own.and_then(|word| word.report.member(name));
    // A member that is heard of now knows better than what was heard of it last.
    let fresh = heard.iter().map(|(_, m)| *m).max_by_key(|member| member.standing.is_member());
    let best = of_own.or(fresh);
    LbNodeRow {
        name: name.to_owned(),
        answered: answer.is_some(),
        told: answer.is_some_and(|node| node.told),
        agent: answer.is_some_and(|node| node.agent),
        settled: own.map(|word| word.report.settled),
        ready: of_own.map(|member| member.ready),
        cordoned: match answer {
            Some(node) => node.cordoned.is_some(),
            None => best.is_some_and(|member| member.cordoned),
        },
        by: answer.and_then(|node| node.cordoned.clone()),
        interfaces: best.map(|member| member.interfaces.clone()).unwrap_or_default(),
        away: heard
            .iter()
            // An agent that has just started has not met anybody.
            .filter(|(word, member)| word.report.settled && !member.standing.is_member())
            .map(|(word, member)| (word.node.to_owned(), member.standing, member.since_unix_ms))
            .collect(),
        bgp_problem: own.and_then(|word| word.report.bgp.as_ref()?.problem.clone()),
    }
}

#[cfg(test)]
#[path = "lb_tests.rs"]
mod tests;
