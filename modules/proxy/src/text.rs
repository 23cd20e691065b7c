//! Rules and sets in the words of nft, just as `nft --stateless --numeric` lists them.

use std::fmt::Write as _;

use crate::compile::NodeView;
use crate::element::{Set, slots};
use crate::rules::{Action, Chain, Key, Match, Rule, chains, families};

/// A set or map as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// `set` or `map`.
    pub keyword: &'static str,
    /// Name.
    pub name: String,
    /// What stands between its braces, a line each.
    pub lines: Vec<String>,
}

impl Declaration {
    /// The declaration in one line.
    pub fn to_line(&self) -> String {
        format!("{} {} {{ {} }}", self.keyword, self.name, self.lines.join("; "))
    }
}

/// The declarations of all sets.
pub fn sets(view: &NodeView) -> Vec<Declaration> {
    let declare = |v4: bool| {
        Set::all().into_iter().map(move |set| Declaration {
            keyword: if matches!(set, Set::Endpoints | Set::Affinity) { "map" } else { "set" },
            name: set.name(v4),
            lines: declaration(set, v4),
        })
    };
    families(view).into_iter().flat_map(declare).collect()
}

fn declaration(set: Set, v4: bool) -> Vec<String> {
    let ip = if v4 { "ip" } else { "ip6" };
    let frontend = format!("{ip} daddr . meta l4proto . th dport");
    let line = |key: String| vec![format!("typeof {key}")];
    match set {
        Set::Endpoints => line(format!("{frontend} . numgen random mod 65536 : {ip} daddr . th dport")),
        Set::LargePools => line(format!("{frontend} . numgen random mod 65536")),
        Set::ClusterAddresses => line(format!("{ip} daddr")),
        // nft does not keep the expressions of a key with five fields, so it would list something else.
        Set::Hairpin => {
            let address = if v4 { "ipv4_addr" } else { "ipv6_addr" };
            vec![format!("type {address} . inet_proto . inet_service . {address} . {address}")]
        }
        Set::SourceAllowed => {
            vec![format!("typeof {frontend} . {ip} saddr"), "flags interval".to_owned()]
        }
        Set::Affinity => vec![
            format!("typeof {frontend} . {ip} saddr : {ip} daddr . th dport"),
            // As many clients as kube-proxy's sets hold by nft's default; the oldest do not make room for new ones.
            "size 65535".to_owned(),
            "flags dynamic,timeout".to_owned(),
        ],
        _ => line(frontend),
    }
}

impl Rule {
    /// The rule as `nft --stateless --numeric` lists it.
    pub fn to_nft(&self) -> String {
        let mut words: Vec<String> = self.matches.iter().map(|m| self.match_text(m)).collect();
        words.push(self.action_text());
        words.join(" ")
    }

    fn ip(&self) -> &'static str {
        if self.v4 { "ip" } else { "ip6" }
    }

    fn key_text(&self, key: Key) -> String {
        let ip = self.ip();
        let frontend = format!("{ip} daddr . meta l4proto . th dport");
        let original = format!("ct original {ip} daddr . meta l4proto . ct original proto-dst");
        match key {
            Key::Frontend => frontend,
            Key::FrontendSource => format!("{frontend} . {ip} saddr"),
            Key::Original => original,
            Key::OriginalHairpin => format!("{original} . {ip} saddr . {ip} daddr"),
            Key::Destination => format!("{ip} daddr"),
            Key::OriginalDestination => format!("ct original {ip} daddr"),
            Key::Marker(number) => format!("{frontend} . numgen random mod 1 offset {number}"),
        }
    }

    fn match_text(&self, condition: &Match) -> String {
        let not = |yes: bool| if yes { "" } else { "!= " };
        let ip = self.ip();
        match condition {
            Match::New => "ct state 0x8".to_owned(),
            Match::Established => "ct state 0x2".to_owned(),
            Match::Invalid => "ct state 0x1".to_owned(),
            Match::Translated => "ct status 0x20".to_owned(),
            Match::Protocol(protocol) => format!("{} dport != 0", protocol.as_str()),
            Match::In(key, set, yes) => {
                format!("{} {}@{}", self.key_text(*key), not(*yes), set.name(self.v4))
            }
            Match::Source(range, yes) => format!("{ip} saddr {}{range}", not(*yes)),
            Match::SourceIsLocal => "fib saddr type 2".to_owned(),
            Match::Destination(range) => format!("{ip} daddr {range}"),
            Match::Family => format!("meta nfproto {}", if self.v4 { 2 } else { 10 }),
            Match::Tcp => "meta l4proto 6".to_owned(),
        }
    }

    fn action_text(&self) -> String {
        let ip = self.ip();
        let frontend = self.key_text(Key::Frontend);
        match &self.action {
            Action::Jump(chain) => format!("jump {chain}"),
            Action::Goto(chain) => format!("goto {chain}"),
            Action::Accept => "accept".to_owned(),
            Action::Drop => "drop".to_owned(),
            Action::Reset => "reject with tcp reset".to_owned(),
            Action::Unreachable => "reject".to_owned(),
            Action::Masquerade => "masquerade fully-random".to_owned(),
            Action::Stay => {
                format!("dnat {ip} to {frontend} . {ip} saddr map @{}", Set::Affinity.name(self.v4))
            }
            Action::Draw(pool, rung) => format!(
                "dnat {ip} to {frontend} . numgen random mod {rung} offset {} map @{}",
                slots(*pool, *rung),
                Set::Endpoints.name(self.v4)
            ),
            Action::Remember(seconds) => {
                // nft lists the last port by the protocol that a rule has named.
                let protocol = self.matches.iter().find_map(|m| match m {
                    Match::Protocol(protocol) => Some(protocol.as_str()),
                    _ => None,
                });
                format!(
                    "update @{} {{ {} . {ip} saddr timeout {seconds}s : {ip} daddr . {} dport }}",
                    Set::Affinity.name(self.v4),
                    self.key_text(Key::Original),
                    protocol.unwrap_or("th")
                )
            }
        }
    }
}

/// The whole empty ruleset in the table `inet <table>`, as it is once it is loaded. Not for `nft -f`: [`for_nft`].
pub fn to_nft(table: &str, view: &NodeView) -> String {
    ruleset(table, view, |_| true)
}

/// A file for `nft -f` that makes the ruleset but for the rules of [`for_netlink`].
pub fn for_nft(table: &str, view: &NodeView) -> String {
    ruleset(table, view, |rule| !rule.needs_netlink())
}

/// Rules to be appended by netlink ([`Rule::needs_netlink`]), in order, each with its chain.
pub fn for_netlink(view: &NodeView) -> Vec<(String, String)> {
    let of_chain = |chain: Chain| {
        let rules = chain.rules.into_iter().filter(Rule::needs_netlink);
        rules.map(move |rule| (chain.name.clone(), rule.to_nft())).collect::<Vec<_>>()
    };
    chains(view).into_iter().flat_map(of_chain).collect()
}

fn ruleset(table: &str, view: &NodeView, holds: impl Fn(&Rule) -> bool) -> String {
    let mut text = format!("table inet {table} {{\n");
    for Declaration { keyword, name, lines } in sets(view) {
        let _ = writeln!(text, "\t{keyword} {name} {{");
        for line in lines {
            let _ = writeln!(text, "\t\t{line}");
        }
        text.push_str("\t}\n");
    }
    for chain in chains(view) {
        let _ = writeln!(text, "\tchain {} {{", chain.name);
        if let Some((r#type, hook, priority)) = chain.hook {
            let _ =
                writeln!(text, "\t\ttype {type} hook {} priority {priority}; policy accept;", hook.as_str());
        }
        for rule in chain.rules.iter().filter(|rule| holds(rule)) {
            let _ = writeln!(text, "\t\t{}", rule.to_nft());
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}
