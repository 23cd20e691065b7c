//! Stands in for a daemon of FRR: takes commands in the form of a configuration file and shows what it has then. It is
//! stricter than the real one: what changes nothing, or speaks of what is not there, is an error.

use std::collections::BTreeMap;

/// Lines by the blocks that they are in, outermost first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frr {
    blocks: BTreeMap<Vec<String>, Vec<String>>,
}

fn opens(line: &str) -> bool {
    ["router bgp ", "route-map ", "address-family ", "profile "].iter().any(|start| line.starts_with(start))
        || line == "bfd"
}

/// Whether a second line takes the place of the first one.
fn replaces(old: &str, new: &str) -> bool {
    let single = |words: &[&str]| match words {
        ["neighbor", at, "route-map", _, way] => Some(format!("{at} {way}")),
        ["neighbor", at, "timers", "connect", _] => Some(format!("{at} connect")),
        ["neighbor", at, "bfd", "profile", _] => Some(format!("{at} profile")),
        ["neighbor", at, what, _, ..] => Some(format!("{at} {what}")),
        ["bgp", "router-id", _] => Some("router-id".to_owned()),
        ["bgp", "route-map", "delay-timer", _] => Some("delay".to_owned()),
        ["ip" | "ipv6", "prefix-list", name, "seq", seq, ..] => Some(format!("{} {name} {seq}", words[0])),
        ["set", what, ..] | [what @ ("detect-multiplier" | "minimum-ttl"), _] => Some((*what).to_owned()),
        [what @ ("transmit-interval" | "receive-interval"), _] => Some((*what).to_owned()),
        ["echo", what, _] => Some(format!("echo {what}")),
        _ => None,
    };
    let of = |line: &str| single(&line.split(' ').collect::<Vec<_>>());
    old != new && of(old).is_some() && of(old) == of(new)
}

impl Frr {
    /// Carries commands out.
    pub(crate) fn take(&mut self, commands: &[String]) {
        let open = self.take_some(commands, commands.len());
        assert!(open.is_empty(), "{open:?} is left open");
    }

    /// Carries the first `count` of them out; the blocks that are open then.
    pub(crate) fn take_some(&mut self, commands: &[String], count: usize) -> Vec<String> {
        let mut at: Vec<String> = Vec::new();
        for command in commands.iter().take(count) {
            if command == "exit" || command == "exit-address-family" {
                assert!(at.pop().is_some(), "{command} of nothing");
            } else if opens(command) {
                let lines = self.blocks.entry(at.clone()).or_default();
                if !lines.contains(command) {
                    lines.push(command.clone());
                }
                at.push(command.clone());
                self.blocks.entry(at.clone()).or_default();
            } else {
                self.line(&at, command);
            }
        }
        at
    }

    fn line(&mut self, at: &[String], command: &str) {
        let positive = command.strip_prefix("no ");
        let words: Vec<&str> = command.split(' ').collect();
        if let ["no", "neighbor", address] = words[..] {
            let start = format!("neighbor {address} ");
            let mut found = false;
            for (_, lines) in self.blocks.range_mut(at.to_vec()..) {
                let before = lines.len();
                lines.retain(|line| !line.starts_with(&start));
                found |= lines.len() < before;
            }
            return assert!(found, "{command}: no such neighbour");
        }
        if let ["neighbor", address, what, ..] = words[..] {
            let router = &self.blocks[&at[..1]];
            let known = router.iter().any(|line| line.starts_with(&format!("neighbor {address} remote-as ")));
            assert!(known != (what == "remote-as"), "{command}: the neighbour is known: {known}");
        }
        let lines = self.blocks.entry(at.to_vec()).or_default();
        if let Some(place) = lines.iter().position(|line| Some(line.as_str()) == positive) {
            let gone = lines.remove(place);
            if opens(&gone) {
                let inner = [at, &[gone]].concat();
                self.blocks.retain(|path, _| !path.starts_with(&inner));
            }
            return;
        }
        let negative = format!("no {command}");
        if let Some(place) = lines.iter().position(|line| *line == negative) {
            lines.remove(place);
            return;
        }
        // What FRR does unless it is told otherwise.
        let default = positive.is_some_and(|line| line.starts_with("bgp "));
        assert!(positive.is_none() || default, "{command}: there is no such line");
        assert!(!lines.iter().any(|line| line == command), "{command}: it is there already");
        match lines.iter().position(|line| replaces(line, command)) {
            Some(place) => command.clone_into(&mut lines[place]),
            None => lines.push(command.to_owned()),
        }
    }

    /// What it has, as FRR shows it.
    pub(crate) fn show(&self) -> String {
        let mut text =
            "Building configuration...\n\nCurrent configuration:\n!\nfrr version 8.4.4\nbgp no-rib\n!\n"
                .to_owned();
        self.write(&[], &mut text);
        text + "end\n"
    }

    fn write(&self, at: &[String], text: &mut String) {
        let indent = " ".repeat(at.len());
        for line in self.blocks.get(at).into_iter().flatten() {
            *text += &format!("{indent}{line}\n");
            if opens(line) {
                self.write(&[at, std::slice::from_ref(line)].concat(), text);
                let exit = if line.starts_with("address-family ") { "exit-address-family" } else { "exit" };
                *text += &format!("{indent}{exit}\n{indent}!\n");
            }
        }
    }
}
