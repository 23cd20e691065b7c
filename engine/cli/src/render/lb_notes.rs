//! What is to be said of load-balancer addresses beside the table.

use std::collections::BTreeSet;

use homelab_driver::{LbNodeRow, LbPicture, LbRow};
use homelab_model::{LABEL_EXCLUDE, LbStanding, LbUnfit, LbWhere, SpeakerSpec};

use super::lb_routers;
use crate::planfile::{utc, utc_ms};

/// Something to be said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Note {
    /// Whether somebody should do something.
    pub(super) bad: bool,
    /// What it is.
    pub(super) text: String,
    /// More of it, a line each.
    pub(super) details: Vec<String>,
    /// What to do next.
    pub(super) hints: Vec<String>,
}

impl Note {
    pub(super) fn new(bad: bool, text: String) -> Note {
        Note { bad, text, ..Note::default() }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Note {
        self.hints.push(hint.into());
        self
    }
}

/// Why a node cannot have an address, and what to do about it.
fn unfit(why: LbUnfit, node: &str) -> (String, Option<String>) {
    let (text, hint) = match why {
        LbUnfit::NoAdvertisement => (
            "no advertisement is for its pool and its services",
            Some(
                "see loadBalancer.l2Advertisements in the cluster file: which of them are for the pool"
                    .to_owned(),
            ),
        ),
        LbUnfit::ExcludeLabel => {
            let text = format!("has the label {LABEL_EXCLUDE}");
            return (text, Some(format!("take that label off {node} if it is to have addresses")));
        }
        LbUnfit::NotSelected => ("the advertisements are for other nodes", None),
        LbUnfit::NoLocalEndpoint => (
            "externalTrafficPolicy Local, and no ready endpoint there",
            Some("homelab status services shows where the endpoints are".to_owned()),
        ),
        LbUnfit::NoCommonInterface => (
            "services that share it are to be announced on different interfaces",
            Some("let them share interfaces, or give each an address of its own".to_owned()),
        ),
        LbUnfit::Away => ("is no member now, or has said nothing of itself yet", None),
        LbUnfit::NotReady => (
            "its services are not in place",
            Some("homelab status services shows what is missing there".to_owned()),
        ),
        // The note about the node says what to do.
        LbUnfit::Cordoned => ("is cordoned, or about to stop", None),
        LbUnfit::NoInterface => (
            "has no interface for it that is up",
            Some(
                "the interface must have an address in the same network, or be named by an advertisement"
                    .to_owned(),
            ),
        ),
    };
    (text.to_owned(), hint)
}

/// `node1, node2 see` and `node1 sees`.
fn seen_by(nodes: &[String]) -> String {
    format!("{} {}", nodes.join(", "), if nodes.len() == 1 { "sees" } else { "see" })
}

fn nobody(row: &LbRow) -> Note {
    let mut note = Note::new(true, format!("{}: no node can have it", row.address));
    if row.unfit.is_empty() {
        note.text = format!("{}: no node has it yet", row.address);
    }
    let mut told = BTreeSet::new();
    for (node, why) in &row.unfit {
        let (text, hint) = unfit(*why, node);
        note.details.push(format!("{node}: {text}"));
        // One hint is enough for many nodes.
        if told.insert(*why) {
            note.hints.extend(hint);
        }
    }
    note
}

/// What there is to say of an address.
pub(super) fn of_address(row: &LbRow) -> Vec<Note> {
    let address = row.address;
    let owner = row.owner.as_deref().unwrap_or("nobody");
    let mut notes = Vec::new();
    match (row.state, &row.conflict) {
        (LbWhere::Nobody, _) if row.is_routed() => {}
        (LbWhere::Nobody, _) => notes.push(nobody(row)),
        (LbWhere::Conflict, mac) => {
            let mac = mac.as_deref().map(|mac| format!(" with the MAC {mac}")).unwrap_or_default();
            notes.push(
                Note::new(true, format!("{address}: another machine{mac} has it, so {owner} does not announce it"))
                    .hint(
                        "give that machine another address, or keep the pool apart from what the router's DHCP gives \
                         away; the address is asked for every 10 s and taken once it is free",
                    ),
            );
        }
        (LbWhere::Down, _) => {
            notes.push(
                Note::new(true, format!("{address}: {owner} has it, and no interface for it that is up"))
                    .hint(format!("on {owner}: ip link")),
            );
        }
        (LbWhere::Elsewhere, _) => {
            notes.push(Note::new(
                true,
                format!("{address}: the others name {owner}, which did not say so itself"),
            ));
        }
        (LbWhere::Probing, _) => {
            notes.push(Note::new(false, format!("{address}: {owner} asks whether another machine has it")));
        }
        (LbWhere::Announced, _) => {}
    }
    if !row.views.is_empty() {
        let view = |(owner, by): &(Option<String>, Vec<String>)| {
            format!("{} as {} it", owner.as_deref().unwrap_or("nobody"), seen_by(by))
        };
        let views: Vec<String> = row.views.iter().map(view).collect();
        notes.push(Note::new(
            true,
            format!("{address}: nodes disagree about who has it: {}", views.join("; ")),
        ));
    }
    if !row.doubled.is_empty() {
        notes.push(
            Note::new(true, format!("{address}: announced by {} at once", row.doubled.join(" and ")))
                .hint("nodes that do not hear each other do that; it heals once they do"),
        );
    }
    notes
}

/// What there is to say of a node.
pub(super) fn of_node(node: &LbNodeRow) -> Vec<Note> {
    let name = &node.name;
    let mut notes = Vec::new();
    if node.cordoned {
        let by = node.by.as_ref();
        let by = by.map(|by| format!(" (by {} at {})", by.who, utc(by.since))).unwrap_or_default();
        notes.push(
            Note::new(false, format!("{name} is cordoned{by}: it has no addresses"))
                .hint(format!("homelab uncordon {name}")),
        );
    }
    if node.answered && node.told {
        match (node.agent, node.settled) {
            (false, _) => notes.push(
                Note::new(true, format!("{name}: its agent does not run"))
                    .hint(format!("on {name}: systemctl status homelab-node")),
            ),
            (true, None) => notes.push(
                Note::new(true, format!("{name}: its agent says nothing of addresses"))
                    .hint("it may have just started; else homelab status shows what it complains of"),
            ),
            (true, Some(false)) => {
                notes.push(Note::new(true, format!("{name}: its agent waits to hear of the others")));
            }
            (true, Some(true)) => {}
        }
        if node.ready == Some(false) {
            notes.push(
                Note::new(true, format!("{name}: its services are not in place, so it has no addresses"))
                    .hint("homelab status services shows what is missing there"),
            );
        }
    }
    notes.extend(lb_routers::of_node(node));
    for standing in [LbStanding::Down, LbStanding::Left, LbStanding::Unknown] {
        let by: Vec<String> =
            node.away.iter().filter(|(_, s, _)| *s == standing).map(|(by, _, _)| by.clone()).collect();
        let Some(since) =
            node.away.iter().filter(|(_, s, _)| *s == standing).map(|(_, _, since)| *since).min()
        else {
            continue;
        };
        let since = since.map(|since| format!(", since {}", utc_ms(since))).unwrap_or_default();
        let word = match standing {
            LbStanding::Left => "gone in order",
            LbStanding::Unknown => "no member yet",
            _ => "down",
        };
        let note = Note::new(true, format!("{name} is {word} as {} it{since}", seen_by(&by)));
        // Whoever answers us and not its peers has a wall between.
        notes.push(match node.answered && node.agent {
            true => note.hint(format!(
                "it answers over SSH: is the UDP port of the membership ({} by default) open between the nodes?",
                SpeakerSpec::PORT
            )),
            false => note,
        });
    }
    notes
}

/// What a look at the nodes should say of load-balancer addresses, in plain sentences. Cordoned nodes are left to the
/// plan, which names them.
pub fn lb_warnings(picture: &LbPicture) -> Vec<String> {
    let lost =
        |row: &&LbRow| matches!(row.state, LbWhere::Nobody | LbWhere::Conflict) || !row.doubled.is_empty();
    let notes = picture.addresses.iter().filter(lost).flat_map(of_address).filter(|note| note.bad);
    let addresses = notes.map(|note| format!("load-balancer address {}", note.text));
    let sessions = picture.sessions.iter().filter_map(lb_routers::of_session);
    let nodes = picture.nodes.iter().filter_map(lb_routers::of_node);
    let all = addresses.chain(sessions.chain(nodes).map(|note| note.text));
    all.map(|text| format!("{text}; homelab status lb says more")).collect()
}
