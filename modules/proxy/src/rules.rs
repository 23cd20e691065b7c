//! The fixed ruleset as data: rendered for the kernel and for people, and carried out by [`crate::evaluate`].

use homelab_model::service::Protocol;
use ipnet::IpNet;

use crate::compile::NodeView;
use crate::element::{Pool, Set, slots};
use crate::ladder;

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Where it is hooked in: type, hook, priority.
    pub hook: Option<(&'static str, Hook, i32)>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that arrive.
    Prerouting,
    /// Packets for this node.
    Input,
    /// Packets for others.
    Forward,
    /// Packets of this node.
    Output,
    /// Packets that leave.
    Postrouting,
}

impl Hook {
    /// Lower-case name, as in nft.
    pub fn as_str(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// A rule: what must hold, and what is done then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Family that its addresses are of.
    pub v4: bool,
    /// All must hold.
    pub matches: Vec<Match>,
    /// What is done.
    pub action: Action,
    /// For whoever asks why.
    pub why: &'static str,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The first packet of a connection.
    New,
    /// A packet of a connection of which both sides have been heard.
    Established,
    /// Of no connection that the kernel knows, as far as it can tell: a TCP segment outside of the window, for one.
    Invalid,
    /// The connection's destination was translated.
    Translated,
    /// This protocol; also tells nft what `ct original proto-dst` is.
    Protocol(Protocol),
    /// The key is in the set, or (false) is not.
    In(Key, Set, bool),
    /// The source is in the range, or (false) is not.
    Source(IpNet, bool),
    /// The source is an address of this node.
    SourceIsLocal,
    /// The destination is in the range.
    Destination(IpNet),
    /// The packet is of the rule's family.
    Family,
    /// The packet is a TCP segment.
    Tcp,
}

/// What is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Destination, protocol, port.
    Frontend,
    /// The same and the source.
    FrontendSource,
    /// The same as the connection's first packet had them.
    Original,
    /// The same, then source and destination of the packet as it is now.
    OriginalHairpin,
    /// Destination alone.
    Destination,
    /// Destination alone, as the connection's first packet had it.
    OriginalDestination,
    /// Destination, protocol, port and this number.
    Marker(u32),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// On with another chain, and back.
    Jump(String),
    /// On with another chain, for good.
    Goto(String),
    /// No more of this hook's rules of this base chain.
    Accept,
    /// Drop.
    Drop,
    /// TCP reset.
    Reset,
    /// ICMP port unreachable.
    Unreachable,
    /// The node's address becomes the source.
    Masquerade,
    /// To the endpoint that the client had before, if there is one.
    Stay,
    /// To an endpoint of this pool and rung at random, if the frontend has such.
    Draw(Pool, u32),
    /// Remembers the client's endpoint for so many seconds.
    Remember(u32),
}

impl Rule {
    /// Whether `nft` cannot be given the rule: version 1.0.6 aborts where a map update has a key or data longer than
    /// 16 bytes, and knows no translation by a map whose data is an address and a port where the map is there already.
    /// The kernel takes it by netlink, and `nft` lists it. Such rules have their chain to themselves.
    pub fn needs_netlink(&self) -> bool {
        match self.action {
            Action::Remember(_) => !self.v4,
            Action::Draw(..) | Action::Stay => true,
            _ => false,
        }
    }
}

/// Beginning of the names of all chains.
pub const PREFIX: &str = "proxy-";

/// The families that a node's pods have: IPv4, IPv6.
pub(crate) fn families(view: &NodeView) -> Vec<bool> {
    [true, false].into_iter().filter(|v4| of_family(&view.pod_cidrs, *v4).next().is_some()).collect()
}

/// The ranges of one family.
fn of_family(ranges: &[IpNet], v4: bool) -> impl Iterator<Item = IpNet> + '_ {
    ranges.iter().copied().filter(move |range| range.addr().is_ipv4() == v4)
}

/// All chains, base chains last: what they jump to stands before them.
pub fn chains(view: &NodeView) -> Vec<Chain> {
    let families = families(view);
    let mut chains = vec![Chain { name: name("reject"), hook: None, rules: reject() }];
    for v4 in &families {
        chains.extend(picks(*v4));
        chains.extend(choosing(*v4, view));
        chains.push(unserved(*v4, view));
        chains.push(remember(*v4));
        chains.extend(translated(*v4, view));
    }
    chains.extend(bases(&families, view));
    chains
}

fn name(what: &str) -> String {
    format!("{PREFIX}{what}")
}

fn of(what: &str, v4: bool) -> String {
    name(&format!("{what}{}", if v4 { 4 } else { 6 }))
}

/// The chain that finds an endpoint of a pool.
fn pick(pool: Pool, v4: bool) -> String {
    match pool {
        Pool::Main => of("pick", v4),
        Pool::Internal => of("pick-internal", v4),
    }
}

/// The chain that draws from pools of one group of rungs.
fn draw(pool: Pool, group: u32, v4: bool) -> String {
    format!("{}-{group}", pick(pool, v4))
}

fn reject() -> Vec<Rule> {
    let rule = |matches, action, why| Rule { v4: true, matches, action, why };
    vec![
        rule(vec![Match::Tcp], Action::Reset, "nobody answers: say so to a TCP client"),
        rule(vec![], Action::Unreachable, "nobody answers: say so by ICMP"),
    ]
}

/// The chains that draw an endpoint: one for each group of rungs, per pool, and one that chooses among them.
fn picks(v4: bool) -> Vec<Chain> {
    let mut chains = Vec::new();
    for pool in [Pool::Internal, Pool::Main] {
        for (index, group) in ladder::GROUPS.into_iter().enumerate() {
            let above = if index == 0 { 0 } else { ladder::GROUPS[index - 1] };
            let rungs = ladder::rungs().into_iter().filter(|rung| *rung > above && *rung <= group);
            let rule = |rung| Rule {
                v4,
                matches: vec![],
                action: Action::Draw(pool, rung),
                why: "one of the endpoints, by chance",
            };
            chains.push(Chain { name: draw(pool, group, v4), hook: None, rules: rungs.map(rule).collect() });
        }
        let mut rules = vec![Rule {
            v4,
            matches: vec![],
            action: Action::Jump(draw(pool, ladder::FIRST_GROUP, v4)),
            why: "most pools are small",
        }];
        for larger in &ladder::GROUPS[1..] {
            rules.push(Rule {
                v4,
                matches: vec![Match::In(Key::Marker(slots(pool, *larger)), Set::LargePools, true)],
                action: Action::Goto(draw(pool, *larger, v4)),
                why: "the pool is large",
            });
        }
        chains.push(Chain { name: pick(pool, v4), hook: None, rules });
    }
    chains
}

/// From a frontend to a pool.
fn choosing(v4: bool, view: &NodeView) -> Vec<Chain> {
    let rule = |matches, action, why| Rule { v4, matches, action, why };
    let internal = || Action::Goto(pick(Pool::Internal, v4));
    let main = || Action::Goto(pick(Pool::Main, v4));
    let mut local: Vec<Rule> = of_family(&view.pod_cidrs, v4)
        .map(|pods| {
            let why = "from a pod: as if it went out to the load balancer and came back to any node";
            rule(vec![Match::Source(pods, true)], internal(), why)
        })
        .collect();
    local.push(rule(vec![Match::SourceIsLocal], internal(), "from this node itself: to any endpoint"));
    local.push(rule(
        vec![],
        main(),
        "from outside: externalTrafficPolicy Local, endpoints of this node only",
    ));
    let service = vec![
        rule(
            vec![
                Match::In(Key::Frontend, Set::SourceRanged, true),
                Match::In(Key::FrontendSource, Set::SourceAllowed, false),
            ],
            Action::Drop,
            "loadBalancerSourceRanges: this source may not",
        ),
        rule(vec![], Action::Jump(of("stay", v4)), "sessionAffinity: had this client an endpoint before?"),
        rule(
            vec![Match::In(Key::Frontend, Set::ExternalLocal, true)],
            Action::Goto(of("local", v4)),
            "an external address with externalTrafficPolicy Local",
        ),
        rule(vec![], main(), "the endpoints of its policy"),
    ];
    let stay = vec![rule(vec![], Action::Stay, "the endpoint that this client had before")];
    vec![
        Chain { name: of("stay", v4), hook: None, rules: stay },
        Chain { name: of("local", v4), hook: None, rules: local },
        Chain { name: of("service", v4), hook: None, rules: service },
    ]
}

/// For packets that no endpoint was found for.
fn unserved(v4: bool, view: &NodeView) -> Chain {
    let rule = |matches, action, why| Rule { v4, matches, action, why };
    let reject = || Action::Goto(name("reject"));
    let is_in = |key, set| vec![Match::In(key, set, true)];
    let mut rules = vec![
        rule(is_in(Key::Frontend, Set::NoEndpoints), reject(), "the service has no endpoints"),
        rule(
            is_in(Key::Frontend, Set::NoLocalEndpoints),
            Action::Drop,
            "policy Local, and no endpoint on this node: another node may have one",
        ),
        rule(is_in(Key::Destination, Set::ClusterAddresses), reject(), "the service has no such port"),
    ];
    rules.extend(of_family(&view.service_cidrs, v4).map(|range| {
        rule(vec![Match::Destination(range.trunc())], Action::Drop, "a service address that no service has")
    }));
    Chain { name: of("unserved", v4), hook: None, rules }
}

/// Keeps a client's endpoint.
fn remember(v4: bool) -> Chain {
    let rule = |protocol, seconds| Rule {
        v4,
        matches: vec![
            Match::Protocol(protocol),
            Match::In(Key::Original, Set::AffinityTimeout(seconds), true),
        ],
        action: Action::Remember(seconds),
        why: "sessionAffinity: the client stays with this endpoint",
    };
    let each = |protocol| ladder::TIMEOUTS.map(|seconds| rule(protocol, seconds));
    Chain { name: of("remember", v4), hook: None, rules: Protocol::ALL.into_iter().flat_map(each).collect() }
}

/// For the first packet of a connection that was translated, when its endpoint is known. Most services are plain: what
/// is asked for others alone has its own chains, and of what is the same for all the cheapest comes first.
fn translated(v4: bool, view: &NodeView) -> Vec<Chain> {
    let rule = |matches, action, why| Rule { v4, matches, action, why };
    let original = |protocol, key, set, yes| vec![Match::Protocol(protocol), Match::In(key, set, yes)];
    let (mut affinity, mut special, mut masquerade) = (Vec::new(), Vec::new(), Vec::new());
    special.push(rule(vec![], Action::Jump(of("affinity", v4)), "whether the client is to be remembered"));
    for protocol in Protocol::ALL {
        affinity.push(rule(
            original(protocol, Key::Original, Set::AffinityServices, true),
            Action::Jump(of("remember", v4)),
            "a service with sessionAffinity",
        ));
        special.push(rule(
            original(protocol, Key::Original, Set::ExternalCluster, true),
            Action::Masquerade,
            "externalTrafficPolicy Cluster: the endpoint may be elsewhere, answers must come back here",
        ));
        let mut local = original(protocol, Key::Original, Set::ExternalLocal, true);
        local.push(Match::SourceIsLocal);
        special.push(rule(
            local,
            Action::Masquerade,
            "from this node itself: its source may be an address that others do not answer to",
        ));
        masquerade.push(rule(
            original(protocol, Key::Original, Set::PlainFrontends, false),
            Action::Jump(of("special", v4)),
            "an address from outside of the cluster, or sessionAffinity",
        ));
        masquerade.push(rule(
            original(protocol, Key::OriginalHairpin, Set::Hairpin, true),
            Action::Masquerade,
            "a pod that reaches itself: else it would answer itself past this node",
        ));
    }
    let cluster = Match::In(Key::OriginalDestination, Set::ClusterAddresses, true);
    masquerade.push(if view.masquerade_all {
        rule(vec![cluster], Action::Masquerade, "masqueradeAll")
    } else {
        // One range per family is what a cluster has; with none, nobody is a pod.
        let pods = of_family(&view.pod_cidrs, v4).map(|pods| Match::Source(pods, false));
        rule(
            pods.chain([cluster]).collect(),
            Action::Masquerade,
            "from outside of the cluster to a cluster address: answers must come back here",
        )
    });
    vec![
        Chain { name: of("affinity", v4), hook: None, rules: affinity },
        Chain { name: of("special", v4), hook: None, rules: special },
        Chain { name: of("masquerade", v4), hook: None, rules: masquerade },
    ]
}

fn bases(families: &[bool], view: &NodeView) -> Vec<Chain> {
    let base = |what: &str, r#type, hook, priority, rules| Chain {
        name: name(what),
        hook: Some((r#type, hook, priority)),
        rules,
    };
    let each = |rules: &dyn Fn(bool) -> Vec<Rule>| -> Vec<Rule> {
        families.iter().flat_map(|v4| rules(*v4)).collect()
    };
    let services = |v4: bool| {
        let rule = |set, to, why| Rule {
            v4,
            matches: vec![Match::In(Key::Frontend, set, true)],
            action: Action::Goto(to),
            why,
        };
        vec![
            rule(
                Set::PlainFrontends,
                pick(Pool::Main, v4),
                "a cluster address and port of a service with endpoints, without sessionAffinity",
            ),
            rule(Set::Frontends, of("service", v4), "an address and port of a service"),
        ]
    };
    // Every packet that goes through a node meets these.
    let settled = || {
        let rule = |matches, why| Rule { v4: true, matches: vec![matches], action: Action::Accept, why };
        vec![
            rule(Match::Translated, "translated to an endpoint: nothing more to ask"),
            rule(Match::Established, "what was asked of its connection's first packet holds"),
        ]
    };
    let translated = |v4: bool, to: &str, why| {
        let matches = vec![Match::Translated, Match::Family];
        vec![Rule { v4, matches, action: Action::Jump(of(to, v4)), why }]
    };
    let sticky = |v4: bool| translated(v4, "affinity", "translated to an endpoint that is this node itself");
    let masquerade = |v4: bool| translated(v4, "masquerade", "translated to an endpoint");
    let unserved = |v4: bool| {
        vec![Rule {
            v4,
            matches: vec![Match::New, Match::Family],
            action: Action::Jump(of("unserved", v4)),
            why: "not translated so far",
        }]
    };
    // kube-proxy drops all such packets that a node forwards. Only a pod's can be answers that are to be translated.
    let invalid = |v4: bool| {
        let rule = |pods| Rule {
            v4,
            matches: vec![Match::Invalid, Match::Tcp, Match::Source(pods, true)],
            action: Action::Drop,
            why: "not known to be a connection's, so not translated back: the client would reset the endpoint's connection",
        };
        of_family(&view.pod_cidrs, v4).map(rule).collect::<Vec<_>>()
    };
    let arriving = |v4: bool| [invalid(v4), unserved(v4)].concat();
    let filter = |rules: &dyn Fn(bool) -> Vec<Rule>| [settled(), each(rules)].concat();
    // Chains of type nat see first packets alone, and cost the others nothing.
    vec![
        base("prerouting", "nat", Hook::Prerouting, -100, each(&services)),
        base("input", "filter", Hook::Input, -110, filter(&arriving)),
        base("input-affinity", "nat", Hook::Input, 95, each(&sticky)),
        base("forward", "filter", Hook::Forward, -110, filter(&arriving)),
        base("output", "nat", Hook::Output, -100, each(&services)),
        base("output-translated", "filter", Hook::Output, -90, filter(&unserved)),
        base("postrouting", "nat", Hook::Postrouting, 95, each(&masquerade)),
    ]
}
