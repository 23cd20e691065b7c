//! Reading `nft --stateless --numeric list table ..`.

use homelab_model::{Hook, NftChain};

use super::{Table, Tables};
use crate::error::Error;

/// Listed tables, with their chains in the order of the listing, by family and name. Elements of sets are left out.
pub fn parse_tables(text: &str) -> Result<Tables, Error> {
    let mut tables = Tables::new();
    let mut statements = Statements { text };
    while let Some(statement) = statements.next() {
        let Statement::Open(head) = &statement else {
            return Err(Error::NftOutput(format!("{statement:?}")));
        };
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            ["table", family, name] => {
                let name = format!("{family} {name}");
                let table = parse_table(&name, &mut statements)?;
                tables.insert(name, table);
            }
            _ => return Err(Error::NftOutput(head.to_owned())),
        }
    }
    Ok(tables)
}

/// A block inside of a table.
enum Block {
    Chain(NftChain),
    Set { head: String, lines: Vec<String> },
    Other,
}

/// The rest of a table after its first line.
fn parse_table(name: &str, statements: &mut Statements<'_>) -> Result<Table, Error> {
    let mut table = Table::default();
    let mut open: Vec<Block> = Vec::new();
    for statement in statements {
        match (statement, open.last_mut()) {
            (Statement::Open(head), None) => {
                open.push(if let Some(chain) = head.strip_prefix("chain ") {
                    let (table, name) = (name.to_owned(), chain.trim().to_owned());
                    Block::Chain(NftChain { table, name, hook: None, rules: Vec::new() })
                } else if head.starts_with("set ") || head.starts_with("map ") {
                    Block::Set { head, lines: Vec::new() }
                } else {
                    Block::Other
                });
            }
            (Statement::Open(_), Some(Block::Other)) => open.push(Block::Other),
            (Statement::Open(head), Some(_)) => return Err(Error::NftOutput(head)),
            (Statement::Close, Some(_)) => match open.pop() {
                Some(Block::Chain(chain)) => table.chains.push(chain),
                Some(Block::Set { head, lines }) => {
                    table.sets.push(format!("{head} {{ {} }}", lines.join("; ")));
                }
                _ => {}
            },
            (Statement::Close, None) => break,
            (Statement::Line(line), Some(Block::Chain(chain))) => match line.strip_prefix("type ") {
                // A rule cannot begin with this word.
                Some(rest) if chain.rules.is_empty() && rest.contains(" hook ") => {
                    let hook = parse_hook(rest, name.starts_with("bridge "));
                    chain.hook = Some(hook.ok_or_else(|| Error::NftOutput(line.clone()))?);
                }
                _ if line.starts_with("comment ") || line.starts_with("policy ") => {}
                _ => chain.rules.push(line),
            },
            (Statement::Line(line), Some(Block::Set { lines, .. })) => {
                if !line.starts_with("elements = ") {
                    lines.push(line);
                }
            }
            (Statement::Line(_), _) => {}
        }
    }
    table.sets.sort_by(|a, b| set_name(a).cmp(&set_name(b)));
    Ok(table)
}

/// The name in a declaration of a set or map.
fn set_name(declaration: &str) -> Option<&str> {
    declaration.split_whitespace().nth(1)
}

/// `nat hook postrouting priority 100; policy accept;`
fn parse_hook(text: &str, bridge: bool) -> Option<Hook> {
    let mut parts = text.split(';').map(str::trim);
    let words: Vec<&str> = parts.next()?.split_whitespace().collect();
    let [r#type, "hook", hook, "priority", priority @ ..] = &words[..] else { return None };
    let policy = parts.find_map(|p| p.strip_prefix("policy ")).unwrap_or("accept").trim().to_owned();
    Some(Hook {
        r#type: (*r#type).to_owned(),
        hook: (*hook).to_owned(),
        priority: parse_priority(priority, bridge)?,
        policy,
    })
}

/// `100`, `srcnat`, `filter + 10`, `dstnat - 5`. Some versions print names in spite of `--numeric`.
fn parse_priority(words: &[&str], bridge: bool) -> Option<i32> {
    const NAMES: [(&str, i32); 6] =
        [("raw", -300), ("mangle", -150), ("dstnat", -100), ("filter", 0), ("security", 50), ("srcnat", 100)];
    const BRIDGE: [(&str, i32); 4] = [("dstnat", -300), ("filter", -200), ("out", 100), ("srcnat", 300)];
    let names: &[(&str, i32)] = if bridge { &BRIDGE } else { &NAMES };
    let base = |word: &str| {
        word.parse().ok().or_else(|| names.iter().find(|(name, _)| *name == word).map(|(_, value)| *value))
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
        let mut chains = parse_tables(&table).unwrap().remove("inet homelab").unwrap().chains;
        assert_eq!(chains.len(), 1, "{table}");
        chains.remove(0)
    }

    #[test]
    fn a_whole_table() {
        let text = include_str!("../../tests/nft/table.txt");
        let tables = parse_tables(text).unwrap();
        let shown: Vec<String> = tables.values().flat_map(|t| &t.chains).map(|c| format!("{c:#?}")).collect();
        let expected = include_str!("../../tests/nft/table.chains.txt");
        assert_eq!(shown.join("\n"), expected.trim_end());
    }

    #[test]
    fn an_empty_table_has_no_chains() {
        let tables = parse_tables("table inet homelab {\n}\ntable bridge homelab {\n}\n").unwrap();
        assert_eq!(tables["inet homelab"], Table::default());
        assert_eq!(tables["bridge homelab"], Table::default());
        assert_eq!(parse_tables("").unwrap(), Tables::new());
    }

    #[test]
    fn sets_are_declarations_without_elements() {
        let text = "table inet p {\n\tmap b {\n\t\ttypeof ip daddr : ip saddr\n\t\tsize 65535\n\t\tflags dynamic,timeout\n\t\telements = { 1.2.3.4 : 1.1.1.1,\n\t\t\t     1.2.3.5 : 1.1.1.2 }\n\t}\n\n\tset a {\n\t\ttypeof ip daddr\n\t}\n}\n";
        let expected = [
            "set a { typeof ip daddr }",
            "map b { typeof ip daddr : ip saddr; size 65535; flags dynamic,timeout }",
        ];
        assert_eq!(parse_tables(text).unwrap()["inet p"].sets, expected);
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
        assert!(parse_tables("hello").is_err());
        assert!(parse_tables("table x {\n}\n").is_err());
        assert!(
            parse_tables("table inet x {\n\tchain a {\n\t\ttype nat hook x priority y; policy z;\n").is_err()
        );
        for text in
            ["table inet x {", "table inet x {\n\tchain a {", "}", "\"", "table inet x {\n\tset s {\n\t\t}"]
        {
            let _ = parse_tables(text);
        }
    }
}
