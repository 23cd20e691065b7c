//! Sessions with routers, below the table of load-balancer addresses.

use std::collections::BTreeSet;

use homelab_driver::{LbNodeRow, LbPicture, LbRow, LbSessionRow};
use serde_json::{Value, json};

use super::lb_notes::Note;
use super::markdown::cell;
use super::page::{Page, Span, bold, line, yellow};
use super::table::aligned;
use crate::amounts::words;
use crate::planfile::utc_ms;

/// Heads of the table.
const HEADS: [&str; 8] = ["node", "peer", "router", "session", "since", "routes", "bfd", "lost"];

fn cells(row: &LbSessionRow) -> [String; 8] {
    let (none, session) = (|| "-".to_owned(), &row.session);
    [
        row.node.clone(),
        session.peer.clone(),
        session.router.clone(),
        session.state.clone(),
        row.age.map_or_else(none, words),
        session.routes_sent.to_string(),
        session.bfd.clone().unwrap_or_else(none),
        session.dropped.to_string(),
    ]
}

/// Nodes that have an address for routers alone, and the routers: what stands in the place of owner and interface.
pub(super) fn places(row: &LbRow) -> [String; 2] {
    let nodes: Vec<&str> = row.told_by.iter().map(|(node, _)| node.as_str()).collect();
    let peers: BTreeSet<&str> = row.told_by.iter().flat_map(|(_, peers)| peers).map(String::as_str).collect();
    [nodes.join(", "), format!("by {}", peers.into_iter().collect::<Vec<_>>().join(", "))]
}

/// The table for people.
pub(super) fn human(page: &mut Page, picture: &LbPicture) {
    let table: Vec<[String; 8]> = picture.sessions.iter().map(cells).collect();
    if table.is_empty() {
        return;
    }
    let (head, lines) = aligned(HEADS, table.iter());
    line!(page, bold(head));
    for (row, text) in picture.sessions.iter().zip(lines) {
        line!(page, if row.is_good() { Span::from(text) } else { yellow(text) });
    }
    page.blank();
}

/// The table for comments.
pub(super) fn markdown(page: &mut Page, picture: &LbPicture) {
    if picture.sessions.is_empty() {
        return;
    }
    line!(page, format!("| {} |", HEADS.join(" | ")));
    line!(page, format!("|{}", "---|".repeat(HEADS.len())));
    for row in &picture.sessions {
        let cells: Vec<String> = cells(row).iter().map(|text| cell(text)).collect();
        line!(page, format!("| {} |", cells.join(" | ")));
    }
    page.blank();
}

/// The sessions for programs.
pub(super) fn json(picture: &LbPicture) -> Vec<Value> {
    let one = |row: &LbSessionRow| {
        let session = &row.session;
        json!({
            "node": row.node, "peer": session.peer, "router": session.router, "state": session.state,
            "good": row.is_good(), "since": session.since_unix_ms.map(utc_ms), "seconds": row.age,
            "routes_sent": session.routes_sent, "dropped": session.dropped, "last_reset": session.last_reset,
            "bfd": session.bfd,
        })
    };
    picture.sessions.iter().map(one).collect()
}

/// What there is to say of a session.
pub(super) fn of_session(row: &LbSessionRow) -> Option<Note> {
    let (node, session) = (&row.node, &row.session);
    if row.is_good() {
        return None;
    }
    let of = format!("{} ({})", session.peer, session.router);
    if session.bfd.as_deref() == Some("Down") && row.age.is_some() {
        return Some(Note::new(true, format!("{node}: BFD does not hear {of}")).hint(
            "is BFD switched on for this session at the router, and UDP port 3784 open between them?",
        ));
    }
    let mut note = Note::new(true, format!("{node} has no BGP session with {of}: it is {}", session.state));
    note.details.extend(session.last_reset.iter().map(|why| format!("lost last: {why}")));
    Some(note.hint(format!(
        "the router must expect {node} as a neighbour, with the same AS numbers, password and TTL; on {node}: journalctl \
         -u homelab-bgp"
    )))
}

/// What is wrong with a node's FRR.
pub(super) fn of_node(node: &LbNodeRow) -> Option<Note> {
    let problem = node.bgp_problem.as_ref()?;
    let name = &node.name;
    Some(
        Note::new(true, format!("{name}: BGP does not work as it should: {problem}"))
            .hint(format!("on {name}: systemctl status 'homelab-bgp*', journalctl -u homelab-node")),
    )
}
