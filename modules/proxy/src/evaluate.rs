//! Carries out the ruleset on a packet, as the kernel would: for `trace`, and for tests that the kernel must agree with.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use homelab_model::service::Protocol;
use ipnet::IpNet;

use crate::compile::{Elements, NodeView};
use crate::element::{Element, Frontend, Set, slots};
use crate::rules::{Action, Chain, Hook, Key, Match, Rule, chains};

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source address. One of the node's own: a process of the node sends it.
    pub source: IpAddr,
    /// Where to.
    pub to: Frontend,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No rule of ours touches it.
    Untouched,
    /// Dropped without a word.
    Dropped,
    /// The sender is told that nobody answers.
    Rejected,
    /// Goes to one of these endpoints: whether its source is masqueraded then.
    Translated(BTreeMap<SocketAddr, bool>),
}

/// A rule that the packet met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Chain name.
    pub chain: String,
    /// The rule in nft's words.
    pub rule: String,
    /// Whether it did anything.
    pub matched: bool,
    /// Why it is there.
    pub why: &'static str,
}

/// The outcome and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// Rules in order; after a choice among endpoints, those of the first.
    pub steps: Vec<Step>,
}

/// What is noted on the way.
#[derive(Default)]
struct Notes {
    steps: Vec<Step>,
    /// Rules that do not match, too.
    all: bool,
}

impl Notes {
    fn matched(&mut self, chain: &Chain, rule: &Rule) {
        self.push(chain, rule, true);
    }

    fn passed(&mut self, chain: &Chain, rule: &Rule) {
        if self.all {
            self.push(chain, rule, false);
        }
    }

    fn push(&mut self, chain: &Chain, rule: &Rule, matched: bool) {
        self.steps.push(Step { chain: chain.name.clone(), rule: rule.to_nft(), matched, why: rule.why });
    }
}

/// A loaded ruleset: chains and what their sets hold.
#[derive(Debug)]
pub struct Machine {
    chains: HashMap<String, Chain>,
    bases: Vec<Chain>,
    own: HashSet<IpAddr>,
    keys: HashSet<Element>,
    endpoints: HashMap<(Frontend, u32), SocketAddr>,
    large: HashSet<(Frontend, u32)>,
    allowed: HashMap<Frontend, Vec<IpNet>>,
    sticky: HashMap<(Frontend, IpAddr), SocketAddr>,
}

/// A packet on its way.
#[derive(Clone)]
struct Flight {
    source: IpAddr,
    original: Frontend,
    now: Frontend,
    translated: bool,
}

/// What a chain came to.
enum Verdict {
    Continue,
    Accept,
    Drop,
    Reject,
    Masquerade,
    Endpoints(BTreeSet<SocketAddr>),
}

impl Machine {
    /// The ruleset of a node, its sets filled.
    pub fn new(view: &NodeView, elements: &Elements) -> Machine {
        let (bases, rest): (Vec<Chain>, Vec<Chain>) =
            chains(view).into_iter().partition(|c| c.hook.is_some());
        let mut machine = Machine {
            chains: rest.into_iter().map(|chain| (chain.name.clone(), chain)).collect(),
            bases,
            own: view.addresses.iter().copied().collect(),
            keys: HashSet::new(),
            endpoints: HashMap::new(),
            large: HashSet::new(),
            allowed: HashMap::new(),
            sticky: HashMap::new(),
        };
        for element in elements.values().flatten() {
            match *element {
                Element::Endpoint { frontend, slot, to } => {
                    machine.endpoints.insert((frontend, slot), to);
                }
                Element::Large { frontend, slot } => {
                    machine.large.insert((frontend, slot));
                }
                Element::Allowed(frontend, range) => machine.allowed.entry(frontend).or_default().push(range),
                other => {
                    machine.keys.insert(other);
                }
            }
        }
        machine.bases.sort_by_key(|chain| chain.hook.map(|(_, _, priority)| priority));
        machine
    }

    /// The client stays with this endpoint, as an element of the kernel's affinity map says.
    pub fn stick(&mut self, frontend: Frontend, client: IpAddr, endpoint: SocketAddr) {
        self.sticky.insert((frontend, client), endpoint);
    }

    /// What becomes of a packet, with the rules that match it.
    pub fn run(&self, packet: Packet) -> Trace {
        self.start(packet, Notes::default())
    }

    /// The same with all rules that it meets.
    pub fn run_in_full(&self, packet: Packet) -> Trace {
        self.start(packet, Notes { all: true, ..Notes::default() })
    }

    fn start(&self, packet: Packet, mut notes: Notes) -> Trace {
        let first = match self.own.contains(&packet.source) {
            true => Hook::Output,
            false => Hook::Prerouting,
        };
        let flight = Flight { source: packet.source, original: packet.to, now: packet.to, translated: false };
        let outcome = self.pass(first, i32::MIN, flight, &mut notes);
        Trace { outcome, steps: notes.steps }
    }

    /// Runs the chains of a hook from a priority on, then the hooks after it.
    fn pass(&self, hook: Hook, after: i32, flight: Flight, notes: &mut Notes) -> Outcome {
        let at = |chain: &&Chain| chain.hook.is_some_and(|(_, h, priority)| h == hook && priority > after);
        for chain in self.bases.iter().filter(at) {
            match self.chain(chain, &flight, notes) {
                Verdict::Continue | Verdict::Accept => {}
                Verdict::Drop => return Outcome::Dropped,
                Verdict::Reject => return Outcome::Rejected,
                Verdict::Masquerade => {
                    return Outcome::Translated(BTreeMap::from([(socket(flight.now), true)]));
                }
                Verdict::Endpoints(endpoints) => {
                    let priority = chain.hook.map_or(after, |(_, _, priority)| priority);
                    return self.each(hook, priority, &flight, &endpoints, notes);
                }
            }
        }
        match hook {
            Hook::Prerouting => {
                let next = if self.own.contains(&flight.now.address) { Hook::Input } else { Hook::Forward };
                self.pass(next, i32::MIN, flight, notes)
            }
            Hook::Forward | Hook::Output => self.pass(Hook::Postrouting, i32::MIN, flight, notes),
            Hook::Input | Hook::Postrouting if flight.translated => {
                Outcome::Translated(BTreeMap::from([(socket(flight.now), false)]))
            }
            Hook::Input | Hook::Postrouting => Outcome::Untouched,
        }
    }

    /// Goes on with every endpoint that the packet may be sent to.
    fn each(
        &self,
        hook: Hook,
        priority: i32,
        flight: &Flight,
        endpoints: &BTreeSet<SocketAddr>,
        notes: &mut Notes,
    ) -> Outcome {
        let mut all = BTreeMap::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let mut sent = flight.clone();
            (sent.now.address, sent.now.port, sent.translated) = (endpoint.ip(), endpoint.port(), true);
            let mut others = Notes::default();
            let noted = if index == 0 { &mut *notes } else { &mut others };
            match self.pass(hook, priority, sent, noted) {
                Outcome::Translated(to) => all.extend(to),
                // Rules for translated packets neither drop nor reject; if ever one does, it shows.
                other => return other,
            }
        }
        Outcome::Translated(all)
    }

    fn chain(&self, chain: &Chain, flight: &Flight, notes: &mut Notes) -> Verdict {
        for rule in &chain.rules {
            if !rule.matches.iter().all(|m| self.holds(rule, m, flight)) {
                notes.passed(chain, rule);
                continue;
            }
            let verdict = match &rule.action {
                Action::Jump(next) | Action::Goto(next) => {
                    notes.matched(chain, rule);
                    let verdict = match self.chains.get(next) {
                        Some(next) => self.chain(next, flight, notes),
                        None => Verdict::Continue,
                    };
                    let stays = matches!((&verdict, &rule.action), (Verdict::Continue, Action::Jump(_)));
                    if stays {
                        continue;
                    }
                    return verdict;
                }
                Action::Accept => Verdict::Accept,
                Action::Drop => Verdict::Drop,
                Action::Reset | Action::Unreachable => Verdict::Reject,
                Action::Masquerade => Verdict::Masquerade,
                Action::Stay => match self.sticky.get(&(flight.now, flight.source)) {
                    Some(endpoint) => Verdict::Endpoints(BTreeSet::from([*endpoint])),
                    None => {
                        notes.passed(chain, rule);
                        continue;
                    }
                },
                Action::Draw(pool, rung) => {
                    let first = slots(*pool, *rung);
                    let at = |slot| self.endpoints.get(&(flight.now, slot)).copied();
                    let endpoints: BTreeSet<SocketAddr> = (first..first + rung).filter_map(at).collect();
                    match endpoints.is_empty() {
                        true => {
                            notes.passed(chain, rule);
                            continue;
                        }
                        false => Verdict::Endpoints(endpoints),
                    }
                }
                Action::Remember(_) => {
                    notes.matched(chain, rule);
                    continue;
                }
            };
            notes.matched(chain, rule);
            return verdict;
        }
        Verdict::Continue
    }

    fn holds(&self, rule: &Rule, condition: &Match, flight: &Flight) -> bool {
        // Whatever names an address is of the rule's family, and so is no packet of the other.
        let family = flight.now.address.is_ipv4() == rule.v4;
        match condition {
            Match::New => true,
            Match::Established | Match::Invalid => false,
            Match::Translated => flight.translated,
            Match::Protocol(protocol) => flight.now.protocol == *protocol,
            Match::In(key, set, yes) => family && self.contains(*key, *set, flight) == *yes,
            Match::Source(range, yes) => family && range.contains(&flight.source) == *yes,
            Match::SourceIsLocal => self.own.contains(&flight.source),
            Match::Destination(range) => range.contains(&flight.now.address),
            Match::Family => family,
            Match::Tcp => flight.now.protocol == Protocol::Tcp,
        }
    }

    fn contains(&self, key: Key, set: Set, flight: &Flight) -> bool {
        let has = |element| self.keys.contains(&element);
        let frontend = match key {
            Key::Marker(slot) => return self.large.contains(&(flight.now, slot)),
            Key::FrontendSource => {
                let ranges = self.allowed.get(&flight.now);
                return ranges.is_some_and(|ranges| ranges.iter().any(|r| r.contains(&flight.source)));
            }
            Key::Destination => return has(Element::ClusterAddress(flight.now.address)),
            Key::OriginalDestination => return has(Element::ClusterAddress(flight.original.address)),
            Key::OriginalHairpin => {
                let itself = flight.source == flight.now.address;
                return itself && has(Element::Hairpin(flight.original, flight.source));
            }
            Key::Frontend => flight.now,
            Key::Original => flight.original,
        };
        match set {
            Set::Frontends => has(Element::Served(frontend)),
            Set::PlainFrontends => has(Element::Plain(frontend)),
            Set::NoEndpoints => has(Element::Unserved(frontend)),
            Set::NoLocalEndpoints => has(Element::Dropped(frontend)),
            Set::ExternalCluster => has(Element::ExternalCluster(frontend)),
            Set::ExternalLocal => has(Element::ExternalLocal(frontend)),
            Set::SourceRanged => has(Element::Ranged(frontend)),
            Set::AffinityServices => has(Element::Sticky(frontend)),
            Set::AffinityTimeout(seconds) => has(Element::StickyFor(frontend, seconds)),
            Set::Endpoints
            | Set::LargePools
            | Set::SourceAllowed
            | Set::ClusterAddresses
            | Set::Hairpin
            | Set::Affinity => false,
        }
    }
}

fn socket(frontend: Frontend) -> SocketAddr {
    SocketAddr::new(frontend.address, frontend.port)
}
