//! Services as the nodes hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use homelab_model::service::{Affinity, Policy, Type};
use homelab_model::{
    Absence, AbsentContainer, FrontendKind, FrontendReport, FrontendState, ServiceReport, ToldPort,
    ToldService,
};
use serde_json::{Value, json};

use super::markdown::{cell, code, prose};
use super::page::{Page, Paint, Shown, Span, bold, line, yellow};
use super::table::aligned;
use super::{ErrorText, count};

/// Most elements that are named where nobody asked for all.
const SOME: usize = 3;

/// What one node says of its services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicesOfNode {
    /// Node name.
    pub name: String,
    /// Its services, or why it could not be asked.
    pub answer: Result<Vec<ServiceReport>, ErrorText>,
}

/// A service over all nodes that could be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// `namespace/name`; empty for elements that name no service.
    pub name: String,
    /// What most nodes were told.
    pub told: Option<ToldService>,
    /// Its addresses, but for those of the nodes.
    pub addresses: Vec<IpAddr>,
    /// Connections by endpoint, those of all nodes together.
    pub connections: BTreeMap<SocketAddr, u64>,
    /// What each node has.
    pub nodes: Vec<RowOfNode>,
}

/// A service on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowOfNode {
    /// Node name.
    pub name: String,
    /// How it differs from what it was told, or from what others were told.
    pub differs: Option<String>,
    /// What it says.
    pub report: ServiceReport,
}

impl ServiceRow {
    /// Whether all nodes that could be asked hold the same, and what they were told.
    pub fn agrees(&self) -> bool {
        self.nodes.iter().all(|node| node.differs.is_none())
    }

    /// Whether it has this name, with or without its namespace.
    pub fn is_called(&self, name: &str) -> bool {
        is_called(&self.name, name)
    }

    /// Containers that are no endpoints, and the nodes that say so.
    fn absent(&self) -> BTreeMap<&AbsentContainer, Vec<&str>> {
        let mut all: BTreeMap<&AbsentContainer, Vec<&str>> = BTreeMap::new();
        for node in &self.nodes {
            for absent in &node.report.absent {
                all.entry(absent).or_default().push(&node.name);
            }
        }
        all
    }

    /// Addresses whose packets do not reach an endpoint on some nodes: how, where, and which nodes these are.
    fn unserved(&self) -> BTreeMap<(FrontendState, String), Vec<&str>> {
        let mut all: BTreeMap<(FrontendState, String), Vec<&str>> = BTreeMap::new();
        for node in &self.nodes {
            for frontend in &node.report.frontends {
                if matches!(frontend.state, FrontendState::Refused | FrontendState::Dropped) {
                    let place = match frontend.kind {
                        // Another address on every node.
                        Some(FrontendKind::NodePort) => {
                            format!("node port {}/{}", frontend.port, frontend.protocol.as_str())
                        }
                        _ => place(frontend),
                    };
                    let nodes = all.entry((frontend.state, place)).or_default();
                    // One of several addresses of a node.
                    if nodes.last() != Some(&node.name.as_str()) {
                        nodes.push(&node.name);
                    }
                }
            }
        }
        all
    }
}

/// Why a container is no endpoint.
fn absence(absent: &AbsentContainer) -> String {
    let AbsentContainer { node, container, why } = absent;
    match why {
        Absence::NotRunning => format!("{container} of {node} is no endpoint: it does not run"),
        Absence::NodeDown => {
            format!(
                "{container} of {node} takes nothing new while others are left: {node} is dead, or out of reach"
            )
        }
    }
}

fn place(frontend: &FrontendReport) -> String {
    format!("{}/{}", SocketAddr::new(frontend.address, frontend.port), frontend.protocol.as_str())
}

/// Whether the service `full`, `namespace/name`, goes by this name, with or without its namespace.
pub(crate) fn is_called(full: &str, name: &str) -> bool {
    full == name || full.split_once('/').is_some_and(|(_, short)| short == name)
}

/// What the nodes say, by service.
pub fn service_rows(nodes: &[ServicesOfNode]) -> Vec<ServiceRow> {
    let answers: Vec<(&str, &Vec<ServiceReport>)> =
        nodes.iter().filter_map(|n| Some((n.name.as_str(), n.answer.as_ref().ok()?))).collect();
    let names: BTreeSet<&str> =
        answers.iter().flat_map(|(_, services)| services.iter().map(|s| s.name.as_str())).collect();
    names.into_iter().map(|name| row(name, &answers)).collect()
}

/// What all nodes should have in common.
type Common = (Option<ToldService>, Vec<IpAddr>);

fn common(report: &ServiceReport) -> Common {
    let of_cluster = |f: &&FrontendReport| !matches!(f.kind, None | Some(FrontendKind::NodePort));
    let addresses: BTreeSet<IpAddr> = report.frontends.iter().filter(of_cluster).map(|f| f.address).collect();
    (report.told.clone(), addresses.into_iter().collect())
}

fn row(name: &str, answers: &[(&str, &Vec<ServiceReport>)]) -> ServiceRow {
    let empty = ServiceReport {
        name: name.to_owned(),
        told: None,
        frontends: Vec::new(),
        absent: Vec::new(),
        missing: Vec::new(),
        extra: Vec::new(),
    };
    let of_node = |(node, services): &(&str, &Vec<ServiceReport>)| {
        let report = services.iter().find(|service| service.name == name);
        ((*node).to_owned(), report.cloned().unwrap_or_else(|| empty.clone()))
    };
    let reports: Vec<(String, ServiceReport)> = answers.iter().map(of_node).collect();
    let mut votes: BTreeMap<Common, usize> = BTreeMap::new();
    for (_, report) in &reports {
        *votes.entry(common(report)).or_default() += 1;
    }
    // With as many of each those that were told something count.
    let (told, addresses) = votes
        .into_iter()
        .max_by_key(|((told, _), votes)| (*votes, told.is_some()))
        .map_or((None, Vec::new()), |(common, _)| common);
    let usual = (told, addresses);
    let mut connections: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    for endpoint in reports.iter().flat_map(|(_, report)| &report.frontends).flat_map(|f| &f.endpoints) {
        let sum = connections.entry(endpoint.address).or_default();
        *sum = sum.saturating_add(endpoint.connections);
    }
    let nodes = reports.into_iter().map(|(name, report)| {
        let differs = differs(&report, &usual);
        RowOfNode { name, differs, report }
    });
    let nodes = nodes.collect();
    let (told, addresses) = usual;
    ServiceRow { name: name.to_owned(), told, addresses, connections, nodes }
}

fn differs(report: &ServiceReport, usual: &Common) -> Option<String> {
    let mut parts = Vec::new();
    match (&report.told, &usual.0) {
        (None, Some(_)) => parts.push("was not told of it".to_owned()),
        (Some(_), None) => parts.push("alone was told of it".to_owned()),
        _ if common(report) != *usual => parts.push("was told something else of it".to_owned()),
        _ => {}
    }
    let amounts = [(&report.missing, "missing"), (&report.extra, "too much")];
    for (elements, word) in amounts.into_iter().filter(|(elements, _)| !elements.is_empty()) {
        parts.push(format!("{} {word}", count(elements.len(), "element")));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn type_word(told: &ToldService) -> &'static str {
    match told.r#type {
        Type::ClusterIp => "ClusterIP",
        Type::NodePort => "NodePort",
        Type::LoadBalancer => "LoadBalancer",
    }
}

/// `80:30080/tcp`.
fn port_word(port: &ToldPort) -> String {
    match port.node_port {
        Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol.as_str()),
        None => format!("{}/{}", port.port, port.protocol.as_str()),
    }
}

fn policy_word(told: &ToldService) -> String {
    let policies = match (told.internal_traffic_policy, told.external_traffic_policy) {
        (Policy::Cluster, Policy::Cluster) => "Cluster",
        (Policy::Local, Policy::Cluster) => "internal Local",
        (Policy::Cluster, Policy::Local) => "external Local",
        (Policy::Local, Policy::Local) => "Local",
    };
    match told.session_affinity {
        Affinity::None => policies.to_owned(),
        Affinity::ClientIp => format!("{policies}, ClientIP"),
    }
}

/// Heads of the table.
const HEADS: [&str; 8] =
    ["service", "type", "addresses", "ports", "ready", "policy", "endpoint", "connections"];

/// The lines of a service in the table: its cells, then one more line for each further endpoint.
fn cells(row: &ServiceRow) -> Vec<[String; 8]> {
    let list = |words: Vec<String>| words.join(", ");
    let told = row.told.as_ref();
    let name = if row.name.is_empty() { "(no service)".to_owned() } else { row.name.clone() };
    let mut lines = vec![[
        name,
        told.map_or("?", type_word).to_owned(),
        list(row.addresses.iter().map(ToString::to_string).collect()),
        list(told.map(|t| t.ports.iter().map(port_word).collect()).unwrap_or_default()),
        told.map_or(String::new(), |t| format!("{}/{}", t.ready, t.total)),
        told.map(policy_word).unwrap_or_default(),
        String::new(),
        String::new(),
    ]];
    for (index, (endpoint, connections)) in row.connections.iter().enumerate() {
        if index > 0 {
            lines.push(Default::default());
        }
        if let Some(last) = lines.last_mut() {
            (last[6], last[7]) = (endpoint.to_string(), connections.to_string());
        }
    }
    lines
}

/// What is to be said of a service beside the table; the flag says whether it is good.
fn notes(row: &ServiceRow, verbose: bool) -> Vec<(bool, String)> {
    let on = |nodes: &[&str]| {
        let everywhere = nodes.len() == row.nodes.len();
        if everywhere { "every node".to_owned() } else { nodes.join(", ") }
    };
    let mut notes = Vec::new();
    for (absent, nodes) in row.absent() {
        let says = match nodes.len() == row.nodes.len() {
            true => String::new(),
            false => format!(" (so says {})", nodes.join(", ")),
        };
        notes.push((true, format!("{}{says}", absence(absent))));
    }
    for ((state, place), nodes) in row.unserved() {
        let nodes = on(&nodes);
        notes.push((
            true,
            match state {
                FrontendState::Refused => format!("{place} is refused on {nodes}: there are no endpoints"),
                _ => format!("{place} is dropped on {nodes}: policy Local, and no endpoint there"),
            },
        ));
    }
    for node in &row.nodes {
        let Some(differs) = &node.differs else { continue };
        notes.push((false, format!("{}: {differs}", node.name)));
        let lines = |sign: &str, elements: &[String]| {
            let most = if verbose { usize::MAX } else { SOME };
            let mut lines: Vec<String> =
                elements.iter().take(most).map(|e| format!("  {sign} {e}")).collect();
            if let Some(more) = elements.len().checked_sub(lines.len()).filter(|more| *more > 0) {
                lines.push(format!("  {sign}: {more} more; --verbose shows them"));
            }
            lines
        };
        let all =
            lines("missing", &node.report.missing).into_iter().chain(lines("extra", &node.report.extra));
        notes.extend(all.map(|line| (false, line)));
    }
    notes
}

fn conclusion(nodes: &[ServicesOfNode], rows: &[ServiceRow]) -> String {
    let differing: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.nodes.iter().filter(|node| node.differs.is_some()))
        .map(|node| node.name.as_str())
        .collect();
    let silent: Vec<&str> =
        nodes.iter().filter(|node| node.answer.is_err()).map(|node| node.name.as_str()).collect();
    let mut text = format!(
        "{} on {}",
        count(rows.iter().filter(|row| !row.name.is_empty()).count(), "service"),
        count(nodes.len(), "node")
    );
    if !differing.is_empty() {
        text.push_str(&format!("; different: {}", differing.into_iter().collect::<Vec<_>>().join(", ")));
    }
    if !silent.is_empty() {
        text.push_str(&format!("; not asked: {}", silent.join(", ")));
    }
    text.push('.');
    text
}

/// The services for people.
pub fn services_human(nodes: &[ServicesOfNode], rows: &[ServiceRow], paint: Paint, verbose: bool) -> Shown {
    let mut page = Page::new(paint);
    let table: Vec<Vec<[String; 8]>> = rows.iter().map(cells).collect();
    let (head, lines) = aligned(HEADS, table.iter().flatten());
    let mut lines = lines.into_iter();
    if !rows.is_empty() {
        line!(page, bold(head));
    }
    for (row, own) in rows.iter().zip(&table) {
        for text in lines.by_ref().take(own.len()) {
            line!(page, text);
        }
        for (good, note) in notes(row, verbose) {
            let note = format!("  {note}");
            line!(page, if good { Span::from(note) } else { yellow(note) });
        }
    }
    if !rows.is_empty() {
        page.blank();
    }
    for node in nodes {
        if let Err(error) = &node.answer {
            line!(page, bold(&node.name), " could not be asked:");
            error.show(&mut page, 2);
        }
    }
    line!(page, bold(conclusion(nodes, rows)));
    page.end()
}

/// The services for comments.
pub fn services_markdown(nodes: &[ServicesOfNode], rows: &[ServiceRow]) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("| {} |", HEADS.join(" | ")));
    line!(page, format!("|{}", "---|".repeat(HEADS.len())));
    for cells in rows.iter().flat_map(cells) {
        let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
        line!(page, format!("| {} |", cells.join(" | ")));
    }
    page.blank();
    for row in rows {
        for (_, note) in notes(row, false) {
            line!(page, format!("- {}: {}", code(&row.name), code(note.trim_start())));
        }
    }
    for node in nodes {
        if let Err(error) = &node.answer {
            line!(page, format!("- {} could not be asked: {}", prose(&node.name), code(&error.message)));
        }
    }
    page.blank();
    line!(page, prose(&conclusion(nodes, rows)));
    page.end()
}

fn frontend_json(frontend: &FrontendReport) -> Value {
    let endpoints: Vec<Value> = frontend
        .endpoints
        .iter()
        .map(|e| json!({"address": e.address, "internal": e.internal, "connections": e.connections}))
        .collect();
    json!({
        "address": frontend.address, "protocol": frontend.protocol, "port": frontend.port,
        "kind": frontend.kind, "state": frontend.state, "policy": frontend.policy,
        "affinity_seconds": frontend.affinity, "endpoints": endpoints,
    })
}

fn row_json(row: &ServiceRow) -> Value {
    let told = row.told.as_ref();
    let ports = told.map(|told| {
        let port = |p: &ToldPort| {
            json!({"name": p.name, "protocol": p.protocol, "port": p.port, "node_port": p.node_port})
        };
        told.ports.iter().map(port).collect::<Vec<_>>()
    });
    let connections: Vec<Value> =
        row.connections.iter().map(|(a, n)| json!({"address": a, "connections": n})).collect();
    let node = |node: &RowOfNode| {
        let report = &node.report;
        let frontends: Vec<Value> = report.frontends.iter().map(frontend_json).collect();
        json!({
            "name": node.name, "told": report.told.is_some(), "differs": node.differs, "absent": report.absent,
            "missing": report.missing, "extra": report.extra, "frontends": frontends,
        })
    };
    json!({
        "name": row.name, "agrees": row.agrees(), "type": told.map(|t| t.r#type), "addresses": row.addresses,
        "ports": ports, "ready": told.map(|t| t.ready), "total": told.map(|t| t.total),
        "internal_traffic_policy": told.map(|t| t.internal_traffic_policy),
        "external_traffic_policy": told.map(|t| t.external_traffic_policy),
        "session_affinity": told.map(|t| t.session_affinity),
        "endpoints": connections, "nodes": row.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// The services for programs.
pub fn services_json(cluster: &str, nodes: &[ServicesOfNode], rows: &[ServiceRow]) -> Value {
    let agrees = nodes.iter().all(|node| node.answer.is_ok()) && rows.iter().all(ServiceRow::agrees);
    let nodes: Vec<Value> =
        nodes.iter().map(|n| json!({"name": n.name, "error": n.answer.as_ref().err()})).collect();
    let rows: Vec<Value> = rows.iter().map(row_json).collect();
    json!({"format_version": 1, "cluster": cluster, "agrees": agrees, "services": rows, "nodes": nodes})
}
