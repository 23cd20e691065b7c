//! Writing what `nft -f -` carries out, and what is left for netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use homelab_model::{Change, NftChain, NftTable, NodeObject, Spec, ours};

use super::rules::{Known, needs_netlink};
use super::{Table, Tables};
use crate::error::Error;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    /// One transaction for `nft -f -`. Empty: nothing.
    pub text: String,
    /// Rules that nft cannot read, by table, each with its chain: to be appended afterwards
    /// ([`super::rules::append`]).
    pub by_netlink: BTreeMap<String, Vec<(String, String)>>,
}

/// The transaction for changes of our tables and chains; `now` are the tables that exist.
///
/// Order within it: chains that others may jump to come first, all chains that change are emptied before any is
/// deleted, rules come last. So no jump is ever dangling, whatever the order of the changes. Rules for netlink must be
/// the last ones of their chain: they are appended to it.
pub fn script(changes: &[&Change<NodeObject>], now: &Tables) -> Result<Script, Error> {
    let mut wanted: BTreeMap<&str, Wanted<'_>> = BTreeMap::new();
    for change in changes {
        for (object, after) in
            change.before().map(|o| (o, false)).into_iter().chain(change.after().map(|o| (o, true)))
        {
            match &object.spec {
                Spec::NftTable(table) => {
                    check_table(&table.name)?;
                    let wanted = wanted.entry(&table.name).or_default();
                    // An update leaves it where it is.
                    wanted.goes |= !after && !matches!(change, Change::Update { .. });
                    wanted.table = after.then_some(table);
                }
                Spec::NftChain(chain) => {
                    check_table(&chain.table)?;
                    let wanted = wanted.entry(&chain.table).or_default();
                    wanted.chains.insert(&chain.name, after.then_some(chain));
                }
                _ => {}
            }
        }
    }
    let mut script = Script::default();
    for (name, wanted) in wanted {
        of_table(&mut script, name, &wanted, now.get(name))?;
    }
    Ok(script)
}

/// What is to become of a table. The last word on each part counts.
#[derive(Default)]
struct Wanted<'a> {
    /// It goes, and may come again.
    goes: bool,
    table: Option<&'a NftTable>,
    /// None: the chain goes.
    chains: BTreeMap<&'a str, Option<&'a NftChain>>,
}

fn of_table(script: &mut Script, name: &str, wanted: &Wanted<'_>, now: Option<&Table>) -> Result<(), Error> {
    let Script { text, by_netlink } = script;
    let now = match now {
        Some(_) if wanted.goes => {
            let _ = writeln!(text, "delete table {name}");
            None
        }
        now => now,
    };
    let new: Vec<&NftChain> = wanted.chains.values().copied().flatten().collect();
    if now.is_none() && wanted.table.is_none() && new.is_empty() {
        return Ok(());
    }
    if now.is_none() {
        let _ = writeln!(text, "add table {name}");
    }
    let there = |set: &str| now.is_some_and(|table| table.sets.iter().any(|s| s == set));
    for set in wanted.table.iter().flat_map(|table| &table.sets).filter(|set| !there(set)) {
        check_set(set)?;
        let (keyword, rest) = set.split_once(' ').unwrap_or_default();
        // nft lists no separator before the brace, and wants one.
        let _ = writeln!(text, "add {keyword} {name} {}; }}", rest.trim_end_matches(" }"));
    }
    let mut exists: BTreeMap<&str, &NftChain> =
        now.iter().flat_map(|table| &table.chains).map(|c| (c.name.as_str(), c)).collect();
    let touched: BTreeSet<&str> = wanted.chains.keys().copied().filter(|c| exists.contains_key(c)).collect();
    for chain in &touched {
        let _ = writeln!(text, "flush chain {name} {chain}");
    }
    for chain in touched {
        let stays = wanted.chains[chain].is_some_and(|after| exists[chain].hook == after.hook);
        if !stays {
            let _ = writeln!(text, "delete chain {name} {chain}");
            exists.remove(chain);
        }
    }
    for chain in &new {
        check_name(&chain.name)?;
        if exists.contains_key(chain.name.as_str()) {
            continue;
        }
        let _ = write!(text, "add chain {name} {}", chain.name);
        if let Some(hook) = &chain.hook {
            for word in [&hook.r#type, &hook.hook, &hook.policy] {
                check_name(word)?;
            }
            let _ = write!(
                text,
                " {{ type {} hook {} priority {}; policy {}; }}",
                hook.r#type, hook.hook, hook.priority, hook.policy
            );
        }
        text.push('\n');
    }
    for chain in new {
        let mut appended = false;
        for rule in &chain.rules {
            check_rule(&chain.name, rule)?;
            if needs_netlink(rule) {
                Known::parse(&chain.name, rule)?;
                by_netlink.entry(name.to_owned()).or_default().push((chain.name.clone(), rule.clone()));
                appended = true;
            } else if appended {
                return Err(Error::Invalid(format!(
                    "nft chain {}: the rule {rule:?} is after one that is added by netlink and so comes last: move it \
                     before that one",
                    chain.name
                )));
            } else {
                let _ = writeln!(text, "add rule {name} {} {rule}", chain.name);
            }
        }
    }
    Ok(())
}

fn check_table(name: &str) -> Result<(), Error> {
    if ours::NFT_TABLES.contains(&name) {
        return Ok(());
    }
    Err(Error::Invalid(format!("nft table {name} is not ours")))
}

/// A declaration must stay one declaration.
fn check_set(set: &str) -> Result<(), Error> {
    let fault = || Error::Invalid(format!("{set:?} is no declaration of an nft set"));
    let (name, body) = set
        .strip_prefix("set ")
        .or_else(|| set.strip_prefix("map "))
        .and_then(|rest| rest.strip_suffix(" }")?.split_once(" { "))
        .ok_or_else(fault)?;
    check_name(name)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || " .:;,_-@".contains(c);
    if body.chars().all(plain) { Ok(()) } else { Err(fault()) }
}

pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 127
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if good { Ok(()) } else { Err(Error::Invalid(format!("{name:?} is no name of an nft chain"))) }
}

/// A rule must stay one rule: nothing in it may end the line, the statement or the rest of the script.
fn check_rule(chain: &str, rule: &str) -> Result<(), Error> {
    let fault = |what: &str| Err(Error::Invalid(format!("nft chain {chain}: a rule with {what}: {rule:?}")));
    if rule.trim().is_empty() {
        return fault("nothing in it");
    }
    if rule.chars().any(|c| c.is_control()) {
        return fault("a control character");
    }
    let (mut quoted, mut depth) = (false, 0_i32);
    for c in rule.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            ';' | '#' => return fault("a separator or comment sign"),
            '\\' => return fault("a backslash"),
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            break;
        }
    }
    if quoted || depth != 0 {
        return fault("quotes or braces that do not match");
    }
    Ok(())
}

/// The chain of the line that nft complains about (`/dev/stdin:LINE:COLUMN-COLUMN: Error: ..`).
pub(super) fn chain_at_fault(script: &str, message: &str) -> Option<(String, String)> {
    let place = message.lines().find_map(|line| line.split_once(": Error").map(|(place, _)| place))?;
    let number: usize = place.split(':').nth_back(1)?.parse().ok()?;
    let line = script.lines().nth(number.checked_sub(1)?)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [_, "chain" | "rule", family, table, chain, ..] => {
            Some((format!("{family} {table}"), chain.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use homelab_model::{Hook, Module, NftTable};

    use super::*;

    fn object(spec: Spec) -> NodeObject {
        NodeObject { module: Module::Vtep, spec }
    }

    fn chain(name: &str, base: bool, rules: &[&str]) -> NftChain {
        let hook = base.then(|| Hook {
            r#type: "nat".into(),
            hook: "postrouting".into(),
            priority: 100,
            policy: "accept".into(),
        });
        let rules = rules.iter().map(|r| (*r).to_owned()).collect();
        NftChain { table: ours::NFT_TABLE.into(), name: name.into(), hook, rules }
    }

    /// Our table with these chains.
    fn there(chains: Vec<NftChain>) -> Tables {
        Tables::from([(ours::NFT_TABLE.to_owned(), Table { sets: Vec::new(), chains })])
    }

    #[test]
    fn sets_come_before_rules_and_a_table_with_other_ones_is_made_anew() {
        let table = |sets: &[&str]| NftTable {
            name: ours::PROXY_TABLE.into(),
            sets: sets.iter().map(|s| (*s).to_owned()).collect(),
        };
        let rules = NftChain { table: ours::PROXY_TABLE.into(), ..chain("a", false, &["ip daddr @b drop"]) };
        let (old, more) = (
            table(&["set b { typeof ip daddr }"]),
            table(&["map a { typeof ip daddr : ip saddr; size 9 }", "set b { typeof ip daddr }"]),
        );
        let now = Tables::from([(
            ours::PROXY_TABLE.to_owned(),
            Table { sets: old.sets.clone(), chains: vec![rules.clone()] },
        )]);
        let update = Change::Update {
            before: object(Spec::NftTable(old.clone())),
            after: object(Spec::NftTable(more)),
        };
        assert_eq!(
            script(&[&update], &now).unwrap().text,
            "add map inet homelab-proxy a { typeof ip daddr : ip saddr; size 9; }\n"
        );
        let replace = Change::Replace {
            before: object(Spec::NftTable(old)),
            after: object(Spec::NftTable(table(&["set b { typeof ip6 daddr }"]))),
        };
        let (gone, back) = (
            Change::Delete { before: object(Spec::NftChain(rules.clone())) },
            Change::Create { after: object(Spec::NftChain(rules)) },
        );
        assert_eq!(
            script(&[&gone, &replace, &back], &now).unwrap().text,
            "delete table inet homelab-proxy\nadd table inet homelab-proxy\n\
             add set inet homelab-proxy b { typeof ip6 daddr; }\n\
             add chain inet homelab-proxy a\nadd rule inet homelab-proxy a ip daddr @b drop\n"
        );
    }

    #[test]
    fn a_set_cannot_break_out() {
        for set in [
            "set b { typeof ip daddr }; flush ruleset",
            "set b { typeof ip daddr\n}",
            "set b { elements = { 1.2.3.4 } }",
            "set b c { typeof ip daddr } }",
            "chain b { drop }",
            "set b",
            "",
        ] {
            let table = NftTable { name: ours::NFT_TABLE.into(), sets: vec![set.to_owned()] };
            let create = Change::Create { after: object(Spec::NftTable(table)) };
            assert!(matches!(script(&[&create], &Tables::new()), Err(Error::Invalid(_))), "{set:?}");
        }
    }

    #[test]
    fn a_new_table_is_one_transaction() {
        let table = Change::Create {
            after: object(Spec::NftTable(NftTable { name: "inet homelab".into(), sets: Vec::new() })),
        };
        let base = Change::Create { after: object(Spec::NftChain(chain("a", true, &["jump z"]))) };
        let other = Change::Create { after: object(Spec::NftChain(chain("z", false, &["masquerade"]))) };
        assert_eq!(
            script(&[&table, &base, &other], &Tables::new()).unwrap().text,
            "add table inet homelab\n\
             add chain inet homelab a { type nat hook postrouting priority 100; policy accept; }\n\
             add chain inet homelab z\n\
             add rule inet homelab a jump z\n\
             add rule inet homelab z masquerade\n"
        );
    }

    #[test]
    fn a_chain_that_others_jump_to_can_go() {
        let now = [chain("a", true, &["jump z"]), chain("z", false, &[])];
        let delete = Change::Delete { before: object(Spec::NftChain(now[1].clone())) };
        let update = Change::Update {
            before: object(Spec::NftChain(now[0].clone())),
            after: object(Spec::NftChain(chain("a", true, &["masquerade"]))),
        };
        assert_eq!(
            script(&[&delete, &update], &there(now.to_vec())).unwrap().text,
            "flush chain inet homelab a\n\
             flush chain inet homelab z\n\
             delete chain inet homelab z\n\
             add rule inet homelab a masquerade\n"
        );
    }

    #[test]
    fn what_is_gone_needs_no_transaction() {
        let delete = Change::Delete { before: object(Spec::NftChain(chain("a", true, &[]))) };
        assert_eq!(script(&[&delete], &there(Vec::new())).unwrap().text, "");
        let table = Change::Delete {
            before: object(Spec::NftTable(NftTable { name: "inet homelab".into(), sets: Vec::new() })),
        };
        assert_eq!(script(&[&delete, &table], &Tables::new()).unwrap().text, "");
        assert_eq!(
            script(&[&delete, &table], &there(Vec::new())).unwrap().text,
            "delete table inet homelab\n"
        );
    }

    const REMEMBER: &str = "udp dport != 0 ct original ip6 daddr . meta l4proto . ct original proto-dst @a update @b \
                            { ct original ip6 daddr . meta l4proto . ct original proto-dst . ip6 saddr timeout 5s : \
                            ip6 daddr . udp dport }";

    #[test]
    fn rules_for_netlink_are_left_out_and_come_last() {
        let of = |rules: &[&str]| {
            let change = Change::Create { after: object(Spec::NftChain(chain("a", false, rules))) };
            script(&[&change], &there(Vec::new()))
        };
        let remember = ("a".to_owned(), REMEMBER.to_owned());
        let expected = Script {
            text: "add chain inet homelab a\nadd rule inet homelab a accept\n".to_owned(),
            by_netlink: BTreeMap::from([("inet homelab".to_owned(), vec![remember.clone(), remember])]),
        };
        assert_eq!(of(&["accept", REMEMBER, REMEMBER]).unwrap(), expected);
        let error = of(&[REMEMBER, "accept"]).unwrap_err().to_string();
        assert!(error.contains("chain a: the rule \"accept\" is after one"), "{error}");
        let unknown = REMEMBER.replace("!= 0", "80");
        assert!(
            matches!(of(&[&unknown]), Err(Error::NftRule { .. })),
            "neither nft nor netlink can carry it"
        );
    }

    #[test]
    fn a_rule_cannot_break_out() {
        for rule in [
            "accept; flush ruleset",
            "accept\nflush ruleset",
            "accept\rx",
            "accept } flush ruleset {",
            "accept }",
            "ip saddr { 10.0.0.0/8",
            "accept # and no more",
            "accept comment \"open",
            "accept \\",
            "",
            "  ",
        ] {
            let change = Change::Create { after: object(Spec::NftChain(chain("a", false, &[rule]))) };
            assert!(matches!(script(&[&change], &Tables::new()), Err(Error::Invalid(_))), "{rule:?}");
        }
        for name in ["a b", "a;b", "", "1a", "a{", "ä", "a\n"] {
            let change = Change::Create { after: object(Spec::NftChain(chain(name, false, &[]))) };
            assert!(matches!(script(&[&change], &Tables::new()), Err(Error::Invalid(_))), "{name:?}");
        }
        let mut foreign = chain("a", false, &[]);
        foreign.table = "inet filter".into();
        let change = Change::Create { after: object(Spec::NftChain(foreign)) };
        assert!(script(&[&change], &Tables::new()).is_err());
    }

    #[test]
    fn nfts_complaint_names_the_chain() {
        let script =
            "add table inet homelab\nadd chain inet homelab pods\nadd rule inet homelab pods nonsense\n";
        let message = "/dev/stdin:3:31-38: Error: syntax error, unexpected string\nadd rule ...";
        assert_eq!(chain_at_fault(script, message), Some(("inet homelab".to_owned(), "pods".to_owned())));
        assert_eq!(chain_at_fault(script, "no"), None);
        assert_eq!(chain_at_fault(script, "a:99:1: Error: x"), None);
    }
}
