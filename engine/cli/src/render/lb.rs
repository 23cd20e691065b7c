//! Load-balancer addresses as the nodes' agents see them.

use homelab_driver::{LbNodeRow, LbPicture, LbRow};
use homelab_model::{LbInterface, LbNode, LbWhere};
use serde_json::{Value, json};

use super::lb_notes::{Note, of_address, of_node};
use super::lb_routers;
use super::markdown::{cell, code, prose};
use super::page::{Page, Paint, Shown, Span, bold, line, yellow};
use super::table::aligned;
use super::{ErrorText, count};
use crate::amounts::words;
use crate::planfile::utc_ms;

/// What a node says of load-balancer addresses, or why it could not be asked; by its name.
pub type LbAnswer = (String, Result<LbNode, ErrorText>);

/// Heads of the table.
const HEADS: [&str; 8] = ["address", "service", "pool", "owner", "interface", "since", "state", "moves"];

fn interface(interface: &LbInterface) -> String {
    match &interface.mac {
        Some(mac) => format!("{} {mac}", interface.name),
        None => interface.name.clone(),
    }
}

/// Where an address stands, in one word.
fn state(row: &LbRow) -> &'static str {
    match row.state {
        // Its owner has not said.
        LbWhere::Elsewhere => "unknown",
        _ if row.is_routed() => "routed",
        state => state.as_str(),
    }
}

fn cells(row: &LbRow) -> [String; 8] {
    let none = || "-".to_owned();
    let interfaces: Vec<String> = row.interfaces.iter().map(interface).collect();
    let [owner, interface] = if row.is_routed() {
        lb_routers::places(row)
    } else {
        let owner = row.owner.clone().unwrap_or_else(none);
        [owner, if interfaces.is_empty() { none() } else { interfaces.join(", ") }]
    };
    [
        row.address.to_string(),
        row.services.join(", "),
        row.pool.clone().unwrap_or_else(none),
        owner,
        interface,
        row.age.map_or_else(none, words),
        state(row).to_owned(),
        row.moves.to_string(),
    ]
}

fn conclusion(nodes: &[LbAnswer], picture: &LbPicture) -> String {
    let silent: Vec<&str> =
        nodes.iter().filter(|(_, answer)| answer.is_err()).map(|(name, _)| name.as_str()).collect();
    let mut text = if picture.is_used() {
        let addresses = match picture.addresses.len() {
            1 => "1 address".to_owned(),
            number => format!("{number} addresses"),
        };
        let mut text = format!("{addresses} on {}", count(nodes.len(), "node"));
        match picture.addresses.iter().filter(|row| !row.is_good()).count() {
            0 => {}
            1 => text.push_str("; 1 needs attention"),
            bad => text.push_str(&format!("; {bad} need attention")),
        }
        let sessions = &picture.sessions;
        if !sessions.is_empty() {
            let up = sessions.iter().filter(|row| row.is_good()).count();
            text.push_str(&format!("; {up} of {} with routers up", count(sessions.len(), "session")));
        }
        let cordoned: Vec<&str> =
            picture.nodes.iter().filter(|n| n.cordoned).map(|n| n.name.as_str()).collect();
        if !cordoned.is_empty() {
            text.push_str(&format!("; cordoned: {}", cordoned.join(", ")));
        }
        text
    } else if !silent.is_empty() {
        "No node that could be asked is told to announce load-balancer addresses".to_owned()
    } else {
        "No node is told to announce load-balancer addresses".to_owned()
    };
    if !silent.is_empty() {
        text.push_str(&format!("; not asked: {}", silent.join(", ")));
    }
    text.push('.');
    text
}

fn notes(picture: &LbPicture) -> impl Iterator<Item = Note> {
    let addresses = picture.addresses.iter().flat_map(of_address);
    let sessions = picture.sessions.iter().filter_map(lb_routers::of_session);
    addresses.chain(sessions).chain(picture.nodes.iter().flat_map(of_node))
}

/// The addresses for people. `picture` may hold fewer addresses than `nodes` tell of.
pub fn lb_human(nodes: &[LbAnswer], picture: &LbPicture, paint: Paint) -> Shown {
    let mut page = Page::new(paint);
    let table: Vec<[String; 8]> = picture.addresses.iter().map(cells).collect();
    let (head, lines) = aligned(HEADS, table.iter());
    if !table.is_empty() {
        line!(page, bold(head));
        for (row, text) in picture.addresses.iter().zip(lines) {
            line!(page, if row.is_good() { Span::from(text) } else { yellow(text) });
        }
        page.blank();
    }
    lb_routers::human(&mut page, picture);
    let mut said = false;
    for note in notes(picture) {
        said = true;
        line!(page, if note.bad { yellow(note.text) } else { Span::from(note.text) });
        for detail in &note.details {
            line!(page, format!("  {detail}"));
        }
        for hint in &note.hints {
            page.paragraph(&["  ".into(), bold("hint:"), " ".into()], hint);
        }
    }
    for (name, answer) in nodes {
        if let Err(error) = answer {
            said = true;
            line!(page, bold(name), " could not be asked:");
            error.show(&mut page, 2);
        }
    }
    if said {
        page.blank();
    }
    line!(page, bold(conclusion(nodes, picture)));
    page.end()
}

/// The addresses for comments.
pub fn lb_markdown(nodes: &[LbAnswer], picture: &LbPicture) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("| {} |", HEADS.join(" | ")));
    line!(page, format!("|{}", "---|".repeat(HEADS.len())));
    for row in &picture.addresses {
        let cells: Vec<String> = cells(row).iter().map(|text| cell(text)).collect();
        line!(page, format!("| {} |", cells.join(" | ")));
    }
    page.blank();
    lb_routers::markdown(&mut page, picture);
    for note in notes(picture) {
        let details =
            if note.details.is_empty() { String::new() } else { format!(": {}", note.details.join("; ")) };
        line!(page, format!("- {}", code(&format!("{}{details}", note.text))));
    }
    for (name, answer) in nodes {
        if let Err(error) = answer {
            line!(page, format!("- {} could not be asked: {}", prose(name), code(&error.message)));
        }
    }
    page.blank();
    line!(page, prose(&conclusion(nodes, picture)));
    page.end()
}

fn interface_json(interface: &LbInterface) -> Value {
    json!({
        "name": interface.name, "mac": interface.mac, "state": interface.state,
        "since": utc_ms(interface.since_unix_ms), "answered": interface.answered,
        "announcements": interface.announcements, "claims": interface.claims,
    })
}

fn row_json(row: &LbRow) -> Value {
    let unfit: Vec<Value> =
        row.unfit.iter().map(|(node, why)| json!({"node": node, "reason": why})).collect();
    let views: Vec<Value> =
        row.views.iter().map(|(owner, by)| json!({"owner": owner, "seen_by": by})).collect();
    let told_by: Vec<Value> =
        row.told_by.iter().map(|(node, peers)| json!({"node": node, "peers": peers})).collect();
    json!({
        "address": row.address, "services": row.services, "pool": row.pool, "owner": row.owner,
        "state": state(row), "good": row.is_good(), "since": row.since_unix_ms.map(utc_ms),
        "seconds": row.age, "moves": row.moves, "conflict": row.conflict,
        "interfaces": row.interfaces.iter().map(interface_json).collect::<Vec<_>>(),
        "unfit": unfit, "views": views, "announced_by": row.doubled, "told_by": told_by,
    })
}

fn node_json(node: &LbNodeRow, error: Option<&ErrorText>) -> Value {
    let interfaces: Vec<Value> =
        node.interfaces.iter().map(|(name, mac)| json!({"name": name, "mac": mac})).collect();
    let away: Vec<Value> = node
        .away
        .iter()
        .map(|(by, standing, since)| json!({"seen_by": by, "standing": standing, "since": since.map(utc_ms)}))
        .collect();
    json!({
        "name": node.name, "error": error, "told": node.told, "agent": node.agent, "settled": node.settled,
        "ready": node.ready, "cordoned": node.cordoned, "cordoned_by": node.by, "interfaces": interfaces,
        "away": away, "bgp_problem": node.bgp_problem,
    })
}

/// The addresses for programs.
pub fn lb_json(cluster: &str, nodes: &[LbAnswer], picture: &LbPicture) -> Value {
    let error =
        |name: &str| nodes.iter().find(|(n, _)| n == name).and_then(|(_, answer)| answer.as_ref().err());
    let of_nodes: Vec<Value> = picture.nodes.iter().map(|n| node_json(n, error(&n.name))).collect();
    let addresses: Vec<Value> = picture.addresses.iter().map(row_json).collect();
    json!({
        "format_version": 1, "cluster": cluster, "healthy": picture.is_good(), "addresses": addresses,
        "nodes": of_nodes, "sessions": lb_routers::json(picture),
    })
}
