//! Reading `nft --stateless --numeric list table inet homelab`.

use homelab_model::{Hook, NftChain};

use crate::error::Error;

/// The chains of one listed table, in the order of the listing. Sets and maps are left out: the table has none of
/// ours.
pub fn parse_table(text: &str) -> Result<Vec<NftChain>, Error> {
    let mut chains = Vec::new();
    let mut statements = Statements { text };
    let table = match statements.next() {
        Some(Statement::Open(head)) => match head.split_whitespace().collect::<Vec<_>>()[..] {
            ["table", "inet", name] => name.to_owned(),
            _ => return Err(Error::NftOutput(head.to_owned())),
        },
        None => return Ok(chains),
        Some(other) => return Err(Error::NftOutput(format!("{other:?}"))),
    };
    // Depth of blocks that are no chains.
    let mut foreign = 0_u32;
    let mut chain: Option<NftChain> = None;
    for statement in statements {
        match (statement, &mut chain) {
            (Statement::Open(head), None) if foreign == 0 && head.starts_with("chain ") => {
                let name = head["chain ".len()..].trim().to_owned();
                chain = Some(NftChain { table: table.clone(), name, hook: None, rules: Vec::new() });
            }
            (Statement::Open(_), None) => foreign += 1,
            (Statement::Open(head), Some(_)) => return Err(Error::NftOutput(head.to_owned())),
            (Statement::Close, Some(_)) => chains.extend(chain.take()),
            (Statement::Close, None) if foreign > 0 => foreign -= 1,
            (Statement::Close, None) => break,
            (Statement::Line(line), Some(chain)) => match line.strip_prefix("type ") {
                // A rule cannot begin with this word.
                Some(rest) if chain.rules.is_empty() && rest.contains(" hook ") => {
                    chain.hook = Some(parse_hook(rest).ok_or_else(|| Error::NftOutput(line.clone()))?);
                }
                _ if line.starts_with("comment ") || line.starts_with("policy ") => {}
                _ => chain.rules.push(line),
            },
            (Statement::Line(_), None) => {}
        }
    }
    Ok(chains)
}

/// `nat hook postrouting priority 100; policy accept;`
fn parse_hook(text: &str) -> Option<Hook> {
    let mut parts = text.split(';').map(str::trim);
    let words: Vec<&str> = parts.next()?.split_whitespace().collect();
    let [r#type, "hook", hook, "priority", priority @ ..] = &words[..] else { return None };
    let policy = parts.find_map(|p| p.strip_prefix("policy ")).unwrap_or("accept").trim().to_owned();
    Some(Hook {
        r#type: (*r#type).to_owned(),
        hook: (*hook).to_owned(),
        priority: parse_priority(priority)?,
        policy,
    })
}

/// `100`, `srcnat`, `filter + 10`, `dstnat - 5`. Some versions print names in spite of `--numeric`.
fn parse_priority(words: &[&str]) -> Option<i32> {
    const NAMES: [(&str, i32); 6] =
        [("raw", -300), ("mangle", -150), ("dstnat", -100), ("filter", 0), ("security", 50), ("srcnat", 100)];
    let base = |word: &str| {
        word.parse().ok().or_else(|| NAMES.iter().find(|(name, _)| *name == word).map(|(_, value)| *value))
    };
    match words {
        [word] => base(word),
        [word, "+", offset] => base(word)?.checked_add(offset.parse().ok()?),
        [word, "-", offset] => base(word)?.checked_sub(offset.parse().ok()?),
        _ => None,
    }
}

/// A line of a listing, with the lines that continue it.
#[derive(Debug, PartialEq, Eq)]
enum Statement {
    /// A block begins: what stands before the brace.
    Open(String),
    /// A block ends.
    Close,
    /// Anything else.
    Line(String),
}

struct Statements<'a> {
    text: &'a str,
}

impl Iterator for Statements<'_> {
    type Item = Statement;

    fn next(&mut self) -> Option<Statement> {
        let mut statement = String::new();
        loop {
            let (line, rest) = match self.text.split_once('\n') {
                Some(split) => split,
                None if self.text.is_empty() => return None,
                None => (self.text, ""),
            };
            self.text = rest;
            let line = line.trim();
            if !statement.is_empty() {
                statement.push(' ');
            }
            statement.push_str(line);
            if statement.is_empty() {
                continue;
            }
            let open = open_braces(&statement);
            if statement == "}" {
                return Some(Statement::Close);
            }
            // `table inet x {`: the brace is the last character; `{ 1, 2,` at a line's end goes on.
            if open == 1 && statement.ends_with('{') && BLOCKS.iter().any(|b| statement.starts_with(b)) {
                return Some(Statement::Open(statement.trim_end_matches('{').trim().to_owned()));
            }
            if open <= 0 || self.text.is_empty() {
                return Some(Statement::Line(statement));
            }
        }
    }
}

/// Words that begin a block of a table.
const BLOCKS: [&str; 10] =
    ["table ", "chain ", "set ", "map ", "counter ", "quota ", "limit ", "flowtable ", "ct ", "secmark "];

/// Braces that are opened and not closed, outside of quotes.
fn open_braces(text: &str) -> i32 {
    let mut quoted = false;
    let mut open = 0;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' if !quoted => open += 1,
            '}' if !quoted => open -= 1,
            _ => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(text: &str) -> NftChain {
        let table = format!("table inet homelab {{\n\tchain c {{\n{text}\n\t}}\n}}\n");
        let mut chains = parse_table(&table).unwrap();
        assert_eq!(chains.len(), 1, "{table}");
        chains.remove(0)
    }

    #[test]
    fn a_whole_table() {
        let text = include_str!("../../tests/nft/table.txt");
        let chains = parse_table(text).unwrap();
        let shown: Vec<String> = chains.iter().map(|c| format!("{c:#?}")).collect();
        let expected = include_str!("../../tests/nft/table.chains.txt");
        assert_eq!(shown.join("\n"), expected.trim_end());
    }

    #[test]
    fn an_empty_table_has_no_chains() {
        assert_eq!(parse_table("table inet homelab {\n}\n").unwrap(), []);
        assert_eq!(parse_table("").unwrap(), []);
    }

    #[test]
    fn rules_stay_as_they_are() {
        for rule in [
            r#"ip saddr 10.244.0.0/16 comment "a { b ; c }" accept"#,
            r#"comment "prüfen: 日本" accept"#,
            "ip daddr { 10.0.0.0/8, 192.168.0.0/16 } accept",
            "meta l4proto vmap { 6 : accept, 17 : jump other }",
            "ct state 0x2,0x4 accept",
            "tcp option maxseg size set rt mtu",
        ] {
            // A leading word `comment` is a chain's comment, not a rule.
            let rule =
                rule.strip_prefix("comment ").map_or(rule.to_owned(), |r| format!("counter comment {r}"));
            assert_eq!(chain(&format!("\t\t{rule}")).rules, [rule]);
        }
    }

    #[test]
    fn a_rule_over_several_lines_is_one_rule() {
        let wrapped = "\t\tip daddr { 10.0.0.0/8,\n\t\t\t     192.168.0.0/16 } accept\n\t\tdrop";
        assert_eq!(chain(wrapped).rules, ["ip daddr { 10.0.0.0/8, 192.168.0.0/16 } accept", "drop"]);
    }

    #[test]
    fn hooks_in_every_spelling() {
        for (text, priority) in [
            ("100", 100),
            ("-300", -300),
            ("srcnat", 100),
            ("srcnat + 1", 101),
            ("filter - 5", -5),
            ("raw", -300),
        ] {
            let hook = chain(&format!("\t\ttype nat hook postrouting priority {text}; policy accept;")).hook;
            assert_eq!(hook.map(|h| h.priority), Some(priority), "{text}");
        }
        let hook = chain("\t\ttype filter hook forward priority 0; policy drop;").hook.unwrap();
        assert_eq!(
            (hook.r#type.as_str(), hook.hook.as_str(), hook.policy.as_str()),
            ("filter", "forward", "drop")
        );
        assert_eq!(chain("\t\taccept").hook, None);
    }

    #[test]
    fn nonsense_is_an_error_or_nothing_but_no_panic() {
        assert!(parse_table("hello").is_err());
        assert!(parse_table("table ip x {\n}\n").is_err());
        assert!(
            parse_table("table inet x {\n\tchain a {\n\t\ttype nat hook x priority y; policy z;\n").is_err()
        );
        for text in
            ["table inet x {", "table inet x {\n\tchain a {", "}", "\"", "table inet x {\n\tset s {\n\t\t}"]
        {
            let _ = parse_table(text);
        }
    }
}
