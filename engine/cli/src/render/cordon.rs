//! A node that was cordoned, or may have addresses again.

use std::net::IpAddr;

use homelab_driver::LbPicture;
use serde_json::{Value, json};

use super::ErrorText;
use super::markdown::{code, prose};
use super::page::{Page, Paint, Shown, bold, line, yellow};

/// An address that moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Address.
    pub address: IpAddr,
    /// The services that share it, `namespace/name`.
    pub services: Vec<String>,
    /// Node that had it.
    pub from: Option<String>,
    /// Node that has it.
    pub to: Option<String>,
}

/// Addresses whose owner is another one in `after`.
pub fn moves(before: &LbPicture, after: &LbPicture) -> Vec<Move> {
    let moved = after.addresses.iter().filter_map(|row| {
        let old = before.addresses.iter().find(|old| old.address == row.address)?;
        let (from, to) = (old.owner.clone(), row.owner.clone());
        (from != to).then(|| Move { address: row.address, services: row.services.clone(), from, to })
    });
    moved.collect()
}

/// What came of `homelab cordon` or `homelab uncordon`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CordonSaid {
    /// Node name.
    pub node: String,
    /// Cordoned, or not.
    pub on: bool,
    /// Whether it was otherwise before.
    pub changed: bool,
    /// Its agent runs.
    pub agent: bool,
    /// Its configuration tells it to announce addresses.
    pub told: bool,
    /// All agents that could be asked know it, and agree about who has which address.
    pub known: bool,
    /// Addresses that moved.
    pub moved: Vec<Move>,
    /// Addresses that it still has, or that the others still say it has.
    pub kept: Vec<IpAddr>,
    /// Nodes that could not be asked.
    pub silent: Vec<(String, ErrorText)>,
}

impl CordonSaid {
    /// Whether the node has what it is to have.
    pub fn is_done(&self) -> bool {
        self.known && (!self.on || self.kept.is_empty())
    }

    fn sentence(&self) -> String {
        let node = &self.node;
        match (self.on, self.changed) {
            (true, true) if !self.is_done() => format!("{node} is cordoned. Its pods stay."),
            (true, true) => format!("{node} is cordoned: it has no load-balancer addresses. Its pods stay."),
            (true, false) => format!("{node} was cordoned already. Its pods stay."),
            (false, true) => format!("{node} is no longer cordoned: it may have load-balancer addresses."),
            (false, false) => format!("{node} was not cordoned."),
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.agent {
            notes.push(format!("the agent of {} does not run: this holds from its next start", self.node));
        } else if !self.told {
            notes.push(format!("{} is not told to announce addresses; this holds once it is", self.node));
        }
        if !self.kept.is_empty() && self.on {
            let kept: Vec<String> = self.kept.iter().map(ToString::to_string).collect();
            notes.push(format!("{} still has {}; homelab status lb says more", self.node, kept.join(", ")));
        } else if !self.known {
            notes.push(
                "not all nodes agree yet about who has which address; homelab status lb says more".to_owned(),
            );
        }
        notes
    }
}

fn text(moved: &Move) -> String {
    let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "nobody".to_owned());
    format!("{} ({}): {} -> {}", moved.address, moved.services.join(", "), name(&moved.from), name(&moved.to))
}

/// For people.
pub fn cordon_human(said: &CordonSaid, paint: Paint) -> Shown {
    let mut page = Page::new(paint);
    for moved in &said.moved {
        line!(page, text(moved));
    }
    for (name, error) in &said.silent {
        line!(page, bold(name), " could not be asked:");
        error.show(&mut page, 2);
    }
    for note in said.notes() {
        page.paragraph(&[yellow("warning:"), " ".into()], &note);
    }
    line!(page, bold(said.sentence()));
    page.end()
}

/// For comments.
pub fn cordon_markdown(said: &CordonSaid) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("**{}**", prose(&said.sentence())));
    page.blank();
    for moved in &said.moved {
        line!(page, format!("- {}", code(&text(moved))));
    }
    for (name, error) in &said.silent {
        line!(page, format!("- {} could not be asked: {}", prose(name), code(&error.message)));
    }
    for note in said.notes() {
        line!(page, format!("- **Warning:** {}", code(&note)));
    }
    page.end()
}

/// For programs.
pub fn cordon_json(said: &CordonSaid) -> Value {
    let moved: Vec<Value> = said
        .moved
        .iter()
        .map(|m| json!({"address": m.address, "services": m.services, "from": m.from, "to": m.to}))
        .collect();
    let silent: Vec<Value> = said.silent.iter().map(|(name, e)| json!({"name": name, "error": e})).collect();
    json!({
        "format_version": 1, "node": said.node, "cordoned": said.on, "changed": said.changed,
        "agent": said.agent, "told": said.told, "known": said.known, "moved": moved, "kept": said.kept,
        "not_asked": silent,
    })
}
