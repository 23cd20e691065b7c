//! Writing what `nft -f -` carries out, and what is left for netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use homelab_model::{Change, NftChain, NodeObject, Spec, ours};

use super::rules::{Remember, needs_netlink};
use crate::error::Error;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    /// One transaction for `nft -f -`. Empty: nothing.
    pub text: String,
    /// Rules that nft cannot read, each with its chain: to be appended afterwards ([`super::rules::append`]).
    pub by_netlink: Vec<(String, String)>,
}

/// The transaction for changes of our table and chains; `now` are the chains that exist, None if the table does not.
///
/// Order within it: chains that others may jump to come first, all chains that change are emptied before any is
/// deleted, rules come last. So no jump is ever dangling, whatever the order of the changes. Rules for netlink must be
/// the last ones of their chain: they are appended to it.
pub fn script(changes: &[&Change<NodeObject>], now: Option<&[NftChain]>) -> Result<Script, Error> {
    let mut table_exists = now.is_some();
    let mut exists: BTreeMap<&str, &NftChain> =
        now.unwrap_or_default().iter().map(|c| (c.name.as_str(), c)).collect();
    // The last word on each chain counts, and on the table.
    let mut table: Option<bool> = None;
    let mut chains: BTreeMap<&str, Option<&NftChain>> = BTreeMap::new();
    for change in changes {
        for (object, after) in
            change.before().map(|o| (o, false)).into_iter().chain(change.after().map(|o| (o, true)))
        {
            match &object.spec {
                Spec::NftTable(t) => {
                    check_table(&t.name)?;
                    table = Some(after);
                }
                Spec::NftChain(c) => {
                    check_table(&c.table)?;
                    chains.insert(&c.name, after.then_some(c));
                }
                _ => {}
            }
        }
    }
    let mut text = String::new();
    let name = ours::NFT_TABLE;
    if table == Some(false) {
        if table_exists {
            let _ = writeln!(text, "delete table inet {name}");
        }
        (table_exists, exists) = (false, BTreeMap::new());
    }
    let wanted: Vec<&NftChain> = chains.values().copied().flatten().collect();
    if !table_exists && (table == Some(true) || !wanted.is_empty()) {
        let _ = writeln!(text, "add table inet {name}");
    }
    let touched: BTreeSet<&str> = chains.keys().copied().filter(|c| exists.contains_key(c)).collect();
    for chain in &touched {
        let _ = writeln!(text, "flush chain inet {name} {chain}");
    }
    for chain in touched {
        let stays = chains[chain].is_some_and(|after| exists[chain].hook == after.hook);
        if !stays {
            let _ = writeln!(text, "delete chain inet {name} {chain}");
            exists.remove(chain);
        }
    }
    for chain in &wanted {
        check_name(&chain.name)?;
        if exists.contains_key(chain.name.as_str()) {
            continue;
        }
        let _ = write!(text, "add chain inet {name} {}", chain.name);
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
    let mut by_netlink = Vec::new();
    for chain in wanted {
        let mut appended = false;
        for rule in &chain.rules {
            check_rule(&chain.name, rule)?;
            if needs_netlink(rule) {
                Remember::parse(&chain.name, rule)?;
                by_netlink.push((chain.name.clone(), rule.clone()));
                appended = true;
            } else if appended {
                return Err(Error::Invalid(format!(
                    "nft chain {}: the rule {rule:?} is after one that is added by netlink and so comes last: move it \
                     before that one",
                    chain.name
                )));
            } else {
                let _ = writeln!(text, "add rule inet {name} {} {rule}", chain.name);
            }
        }
    }
    Ok(Script { text, by_netlink })
}

fn check_table(name: &str) -> Result<(), Error> {
    if name == ours::NFT_TABLE {
        return Ok(());
    }
    Err(Error::Invalid(format!("nft table inet {name} is not ours")))
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
pub(super) fn chain_at_fault(script: &str, message: &str) -> Option<String> {
    let place = message.lines().find_map(|line| line.split_once(": Error").map(|(place, _)| place))?;
    let number: usize = place.split(':').nth_back(1)?.parse().ok()?;
    let line = script.lines().nth(number.checked_sub(1)?)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [_, "chain" | "rule", "inet", _, chain, ..] => Some(chain.to_owned()),
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

    #[test]
    fn a_new_table_is_one_transaction() {
        let table = Change::Create { after: object(Spec::NftTable(NftTable { name: "homelab".into() })) };
        let base = Change::Create { after: object(Spec::NftChain(chain("a", true, &["jump z"]))) };
        let other = Change::Create { after: object(Spec::NftChain(chain("z", false, &["masquerade"]))) };
        assert_eq!(
            script(&[&table, &base, &other], None).unwrap().text,
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
            script(&[&delete, &update], Some(&now)).unwrap().text,
            "flush chain inet homelab a\n\
             flush chain inet homelab z\n\
             delete chain inet homelab z\n\
             add rule inet homelab a masquerade\n"
        );
    }

    #[test]
    fn what_is_gone_needs_no_transaction() {
        let delete = Change::Delete { before: object(Spec::NftChain(chain("a", true, &[]))) };
        assert_eq!(script(&[&delete], Some(&[])).unwrap(), Script::default());
        let table = Change::Delete { before: object(Spec::NftTable(NftTable { name: "homelab".into() })) };
        assert_eq!(script(&[&delete, &table], None).unwrap(), Script::default());
        assert_eq!(script(&[&delete, &table], Some(&[])).unwrap().text, "delete table inet homelab\n");
    }

    const REMEMBER: &str = "udp dport != 0 ct original ip6 daddr . meta l4proto . ct original proto-dst @a update @b \
                            { ct original ip6 daddr . meta l4proto . ct original proto-dst . ip6 saddr timeout 5s : \
                            ip6 daddr . udp dport }";

    #[test]
    fn rules_for_netlink_are_left_out_and_come_last() {
        let of = |rules: &[&str]| {
            let change = Change::Create { after: object(Spec::NftChain(chain("a", false, rules))) };
            script(&[&change], Some(&[]))
        };
        let remember = ("a".to_owned(), REMEMBER.to_owned());
        let expected = Script {
            text: "add chain inet homelab a\nadd rule inet homelab a accept\n".to_owned(),
            by_netlink: vec![remember.clone(), remember],
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
            assert!(matches!(script(&[&change], None), Err(Error::Invalid(_))), "{rule:?}");
        }
        for name in ["a b", "a;b", "", "1a", "a{", "ä", "a\n"] {
            let change = Change::Create { after: object(Spec::NftChain(chain(name, false, &[]))) };
            assert!(matches!(script(&[&change], None), Err(Error::Invalid(_))), "{name:?}");
        }
        let mut foreign = chain("a", false, &[]);
        foreign.table = "filter".into();
        let change = Change::Create { after: object(Spec::NftChain(foreign)) };
        assert!(script(&[&change], None).is_err());
    }

    #[test]
    fn nfts_complaint_names_the_chain() {
        let script =
            "add table inet homelab\nadd chain inet homelab pods\nadd rule inet homelab pods nonsense\n";
        let message = "/dev/stdin:3:31-38: Error: syntax error, unexpected string\nadd rule ...";
        assert_eq!(chain_at_fault(script, message).as_deref(), Some("pods"));
        assert_eq!(chain_at_fault(script, "no"), None);
        assert_eq!(chain_at_fault(script, "a:99:1: Error: x"), None);
    }
}
