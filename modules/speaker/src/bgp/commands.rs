//! What to say to a daemon of FRR so that its running configuration becomes another one: nothing to sessions whose lines do
//! not change, and what is no longer to be told first.

use std::collections::BTreeSet;

/// The parts of a running configuration that are ours. FRR shows more (`frr version`, `hostname`), which stays.
const OURS: [&str; 6] =
    ["bgp route-map ", "router bgp ", "ip prefix-list ", "ipv6 prefix-list ", "route-map ", "bfd"];
/// Lines of a neighbour that take effect with its next session only: it is made anew.
const ANEW: [&str; 2] = ["remote-as", "graceful-restart"];

/// A line, and the lines of the block that it opens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Block {
    line: String,
    lines: Vec<Block>,
}

/// The commands, in the form of a configuration file (`vtysh -f`). They may hold passwords. Empty if `running` is all that
/// `wanted` is; the order of lines does not matter.
pub fn commands(running: &str, wanted: &str) -> Vec<String> {
    let (have, want) = (parse(running), parse(wanted));
    let is_router = |block: &&Block| block.line.starts_with("router bgp ");
    let router = |blocks: &[Block]| blocks.iter().find(is_router).cloned();
    let (mut has, wants) = (router(&have), router(&want));
    let mut commands = Vec::new();
    if let Some(old) = &has
        && wants.as_ref().is_none_or(|new| new.line != old.line)
    {
        commands.push(no(&old.line));
        has = None;
    }
    let rest = |blocks: &[Block]| blocks.iter().filter(|b| !is_router(b)).cloned().collect::<Vec<_>>();
    let (have, want) = (rest(&have), rest(&want));
    let router = wants.map(|wants| Router::new(has.unwrap_or_default(), wants));
    if let Some(router) = &router {
        commands.extend(router.take_away());
    }
    commands.extend(added(&have, &want));
    if let Some(router) = &router {
        commands.extend(router.add());
    }
    commands.extend(removed(&have, &want));
    commands
}

/// Reads a configuration by its indentation.
fn parse(text: &str) -> Vec<Block> {
    let mut open: Vec<(usize, Block)> = Vec::new();
    let mut top = Vec::new();
    fn close(open: &mut Vec<(usize, Block)>, top: &mut Vec<Block>, indent: usize) {
        while open.last().is_some_and(|(at, _)| *at >= indent) {
            let Some((_, block)) = open.pop() else { return };
            match open.last_mut() {
                Some((_, parent)) => parent.lines.push(block),
                None => top.push(block),
            }
        }
    }
    for raw in text.lines() {
        let line = raw.trim();
        if matches!(line, "" | "!" | "exit" | "exit-address-family" | "end") {
            continue;
        }
        let indent = raw.len() - raw.trim_start().len();
        close(&mut open, &mut top, indent);
        open.push((indent, Block { line: line.to_owned(), lines: Vec::new() }));
    }
    close(&mut open, &mut top, 0);
    top.retain(|block| OURS.iter().any(|ours| block.line.starts_with(ours)));
    top
}

/// What takes a line back.
fn no(line: &str) -> String {
    line.strip_prefix("no ").map_or_else(|| format!("no {line}"), str::to_owned)
}

/// What a line says something of: of two lines with the same subject the later one counts.
fn subject(line: &str) -> Vec<&str> {
    let words: Vec<&str> = line.split(' ').collect();
    let (first, many) = match words.as_slice() {
        ["neighbor", _, "timers", "connect", ..] | ["neighbor", _, "bfd", "profile", ..] => (4, 0),
        ["neighbor", _, "route-map", ..] => (3, words.len().min(1)),
        ["neighbor", ..] => (3, 0),
        ["ip" | "ipv6", "prefix-list", ..] => (5, 0),
        ["match", ..] | ["bgp", "route-map", ..] => (3, 0),
        ["bgp", "router-id", ..] | ["set" | "echo", ..] => (2, 0),
        ["detect-multiplier" | "transmit-interval" | "receive-interval" | "minimum-ttl", ..] => (1, 0),
        all => (all.len(), 0),
    };
    let tail = words.len() - many;
    words.iter().enumerate().filter(|(i, _)| *i < first || *i >= tail).map(|(_, word)| *word).collect()
}

/// Whether a line opens a block even if there is nothing in it.
fn opens(line: &str) -> bool {
    ["route-map ", "profile ", "address-family "].iter().any(|start| line.starts_with(start)) || line == "bfd"
}

fn find<'a>(blocks: &'a [Block], line: &str) -> Option<&'a Block> {
    blocks.iter().find(|block| block.line == line)
}

/// Commands that add what is missing, and within blocks that stay take away what is too much.
fn added(have: &[Block], want: &[Block]) -> Vec<String> {
    let mut commands = Vec::new();
    for block in want {
        let old = find(have, &block.line);
        let lines = old.map_or(&[][..], |old| &old.lines);
        let mut inside = removed(lines, &block.lines);
        inside.extend(added(lines, &block.lines));
        if old.is_some() && inside.is_empty() {
            continue;
        }
        commands.push(block.line.clone());
        if opens(&block.line) {
            commands.extend(inside);
            commands.push("exit".to_owned());
        }
    }
    commands
}

/// Commands that take away what nobody wants, the last line first. What another line takes the place of needs none.
fn removed(have: &[Block], want: &[Block]) -> Vec<String> {
    let replaced: BTreeSet<Vec<&str>> = want.iter().map(|block| subject(&block.line)).collect();
    let gone = have.iter().rev().filter(|old| find(want, &old.line).is_none());
    gone.filter(|old| !replaced.contains(&subject(&old.line))).map(|old| no(&old.line)).collect()
}

/// The router's block as it is and as it is to be.
struct Router {
    line: String,
    /// Without the neighbours that go or are made anew.
    have: Vec<Block>,
    want: Vec<Block>,
    /// Addresses of neighbours to delete.
    gone: Vec<String>,
    /// Addresses of neighbours that begin when all is said.
    begin: Vec<String>,
}

/// The address in a neighbour's line, and the words after it.
fn neighbor(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("neighbor ")?.split_once(' ')
}

fn shutdown(address: &str) -> String {
    format!("neighbor {address} shutdown")
}

impl Router {
    fn new(has: Block, wants: Block) -> Router {
        let addresses = |block: &Block| -> BTreeSet<String> {
            block
                .lines
                .iter()
                .filter_map(|l| neighbor(&l.line))
                .map(|(address, _)| address.to_owned())
                .collect()
        };
        let (old, new) = (addresses(&has), addresses(&wants));
        let anew = |address: &str| {
            let of = |block: &Block| -> BTreeSet<String> {
                let lines = block.lines.iter().filter_map(|l| neighbor(&l.line));
                let first = lines.filter(|(at, _)| *at == address);
                first
                    .map(|(_, words)| words.to_owned())
                    .filter(|w| ANEW.iter().any(|a| w.starts_with(a)))
                    .collect()
            };
            of(&has) != of(&wants)
        };
        let gone: Vec<String> =
            old.iter().filter(|address| !new.contains(*address) || anew(address)).cloned().collect();
        let stays = |block: &Block| neighbor(&block.line).is_none_or(|(at, _)| !gone.iter().any(|g| g == at));
        let mut have = has.lines;
        have.retain(stays);
        for family in &mut have {
            family.lines.retain(stays);
        }
        // One that was told all but to begin, when somebody was interrupted, is among them.
        let waits = |address: &str| find(&have, &shutdown(address)).is_some();
        let fresh = |address: &str| !old.contains(address) || gone.iter().any(|g| g == address);
        let begin: Vec<String> = new.iter().filter(|a| fresh(a) || waits(a)).cloned().collect();
        have.retain(|block| !begin.iter().any(|address| block.line == shutdown(address)));
        Router { line: wants.line, have, want: wants.lines, gone, begin }
    }

    /// Neighbours and networks that go.
    fn take_away(&self) -> Vec<String> {
        let mut inside: Vec<String> =
            self.gone.iter().map(|address| format!("no neighbor {address}")).collect();
        for family in self.have.iter().filter(|block| opens(&block.line)) {
            let want = find(&self.want, &family.line).map_or(&[][..], |block| &block.lines);
            inside.extend(within(&family.line, removed(&family.lines, want)));
        }
        self.inside(inside)
    }

    /// Neighbours and networks that come or are told otherwise.
    fn add(&self) -> Vec<String> {
        let flat = |blocks: &[Block]| -> Vec<Block> {
            blocks.iter().filter(|block| !opens(&block.line)).cloned().collect()
        };
        let (have, want) = (flat(&self.have), flat(&self.want));
        let mut inside = removed(&have, &want);
        for line in added(&have, &want) {
            let begins = neighbor(&line)
                .filter(|(_, words)| words.starts_with("remote-as"))
                .map(|(at, _)| shutdown(at));
            inside.push(line);
            inside.extend(begins);
        }
        for family in self.want.iter().filter(|block| opens(&block.line)) {
            let have = find(&self.have, &family.line).map_or(&[][..], |block| &block.lines);
            // How routers are told comes before what they are told.
            let (networks, neighbors): (Vec<_>, Vec<_>) =
                added(have, &family.lines).into_iter().partition(|line| neighbor(line).is_none());
            inside.extend(within(&family.line, neighbors.into_iter().chain(networks).collect()));
        }
        inside.extend(self.begin.iter().map(|address| no(&shutdown(address))));
        self.inside(inside)
    }

    fn inside(&self, commands: Vec<String>) -> Vec<String> {
        if commands.is_empty() {
            return commands;
        }
        let head = std::iter::once(self.line.clone());
        head.chain(commands).chain(["exit".to_owned()]).collect()
    }
}

fn within(family: &str, commands: Vec<String>) -> Vec<String> {
    if commands.is_empty() {
        return commands;
    }
    let head = std::iter::once(family.to_owned());
    head.chain(commands).chain(["exit-address-family".to_owned()]).collect()
}
