//! How the nodes are.

use std::net::IpAddr;

use homelab_driver::PlannedNode;
use homelab_model::{History, KubernetesFact, LinkKind, NodeSpec, Observed, Spec};
use serde::Serialize;
use serde_json::{Value, json};

use super::history::{history_json, history_lines};
use super::markdown::{cell, code, prose};
use super::page::{Page, Paint, Shown, Span, bold, green, line, red, yellow};
use super::{ErrorText, count};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Node name.
    pub name: String,
    /// Its address on the LAN.
    pub address: IpAddr,
    /// Whether it could be asked.
    pub reachable: bool,
    /// Why it could not be asked or planned.
    pub error: Option<ErrorText>,
    /// Host name, kernel and boot.
    pub host: Option<HostStatus>,
    /// The agent; None: it does not run.
    pub agent: Option<AgentStatus>,
    /// The tunnel; None: there is none.
    pub vtep: Option<VtepStatus>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<String>,
    /// Pods that are attached.
    pub pods: Option<u32>,
    /// Objects that are not as they should be; None: unknown.
    pub drift: Option<usize>,
    /// Its lock and its transactions.
    #[serde(serialize_with = "history_out")]
    pub history: History,
}

fn history_out<S: serde::Serializer>(history: &History, out: S) -> Result<S::Ok, S::Error> {
    history_json(history).serialize(out)
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostStatus {
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// `uname -m`.
    pub arch: String,
}

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// Version of its binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Whether it has loaded what the cluster file says today.
    pub config_current: bool,
    /// Objects repaired since it started.
    pub repairs: u64,
    /// Errors of its last full check.
    pub errors: Vec<String>,
    /// How it stands with the Kubernetes API; None: it is told of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesFact>,
}

impl AgentStatus {
    fn healthy(&self) -> bool {
        self.config_current
            && self.errors.is_empty()
            && self.kubernetes.as_ref().is_none_or(|kubernetes| kubernetes.connected)
    }
}

/// The tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VtepStatus {
    /// Link name.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Link MTU, bytes.
    pub mtu: u32,
    /// MAC address.
    pub mac: String,
    /// Whether it is up.
    pub up: bool,
    /// Peers with a forwarding entry.
    pub peers: usize,
    /// Peers that there should be; None: unknown.
    pub peers_expected: Option<usize>,
    /// Whether checksums are left to the network card.
    pub checksum_offload: bool,
    /// Packets that came in with wrong checksums since boot.
    pub checksum_errors: u64,
}

/// What is known of a node.
pub fn node_status(node: &PlannedNode, observed: Option<&Observed>, spec: Option<&NodeSpec>) -> NodeStatus {
    let facts = observed.map(|o| &o.facts);
    let own = spec.or(observed.and_then(|o| o.spec.as_ref()));
    NodeStatus {
        name: node.name.clone(),
        address: node.address,
        reachable: observed.is_some(),
        error: node.outcome.as_ref().err().map(ErrorText::of),
        host: facts.map(|f| HostStatus {
            hostname: f.hostname.clone(),
            kernel: f.kernel.clone(),
            arch: f.arch.clone(),
        }),
        agent: facts.and_then(|f| f.agent.as_ref()).map(|a| AgentStatus {
            version: a.version.clone(),
            pid: a.pid,
            config_current: spec.is_some_and(|s| s.digest() == a.config),
            repairs: a.repairs,
            errors: a.errors.clone(),
            kubernetes: a.kubernetes.clone(),
        }),
        vtep: observed.and_then(|o| vtep(o, spec)),
        pod_cidrs: own.map(|s| s.pod_cidrs.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        pods: facts.map(|f| f.pods),
        drift: node.outcome.as_ref().ok().map(|p| p.shown().len()),
        history: node.history.clone(),
    }
}

fn vtep(observed: &Observed, spec: Option<&NodeSpec>) -> Option<VtepStatus> {
    observed.objects.iter().find_map(|object| {
        let Spec::Link(link) = &object.spec else { return None };
        let LinkKind::Vxlan { vni, port, checksum_offload, .. } = &link.kind else { return None };
        let entry = |s: &&Spec| matches!(s, Spec::Fdb(f) if f.link == link.name);
        Some(VtepStatus {
            device: link.name.clone(),
            vni: *vni,
            port: *port,
            mtu: link.mtu,
            mac: link.mac.clone(),
            up: link.up,
            peers: observed.objects.iter().map(|o| &o.spec).filter(entry).count(),
            peers_expected: spec.map(|s| s.peers.len()),
            checksum_offload: *checksum_offload,
            checksum_errors: observed.facts.checksum_errors,
        })
    })
}

impl NodeStatus {
    /// Whether everything known is good.
    pub fn healthy(&self) -> bool {
        self.reachable
            && self.error.is_none()
            && self.drift == Some(0)
            && self.history.open.is_none()
            && self.history.reverted.is_none()
            && self.agent.as_ref().is_some_and(AgentStatus::healthy)
    }
}

/// The status for programs.
pub fn status_json(cluster: &str, nodes: &[NodeStatus], warnings: &[String]) -> Value {
    let healthy = nodes.iter().all(NodeStatus::healthy);
    json!({"format_version": 1, "cluster": cluster, "healthy": healthy, "nodes": nodes, "warnings": warnings})
}

/// What an agent has of the Kubernetes API, and what keeps it from more.
fn kubernetes(fact: &KubernetesFact) -> Vec<(&'static str, bool, String)> {
    let known = format!(
        "{}, {}, {}",
        count(fact.services, "service"),
        count(fact.slices, "EndpointSlice"),
        count(fact.nodes, "node")
    );
    let text = match (fact.connected, fact.known) {
        (true, _) => format!("{known} from {}", fact.server),
        (false, true) => format!("no connection to {}; serves what it knows: {known}", fact.server),
        (false, false) => format!("no connection to {}, and nothing known from before", fact.server),
    };
    let mut lines = vec![("kubernetes", fact.connected, text)];
    lines.extend(fact.troubles.iter().map(|trouble| ("kubernetes", false, trouble.clone())));
    lines.extend(fact.notes.iter().map(|note| ("kubernetes", false, note.clone())));
    if !fact.peers.is_empty() {
        lines.push(("kubernetes", true, format!("peers by the API alone: {}", fact.peers.join(", "))));
    }
    lines.extend(fact.hidden.iter().map(|name| {
        ("kubernetes", true, format!("service {name} is served as the cluster file says, not as the API"))
    }));
    lines
}

/// Label and text of each thing known of a node; the flag says whether it is good.
fn lines(node: &NodeStatus) -> Vec<(&'static str, bool, String)> {
    let mut lines = Vec::new();
    if let Some(host) = &node.host {
        lines.push(("host", true, format!("{}, Linux {} {}", host.hostname, host.kernel, host.arch)));
    }
    match &node.agent {
        Some(agent) => {
            let config =
                if agent.config_current { "configuration current" } else { "configuration outdated" };
            let repairs = count(usize::try_from(agent.repairs).unwrap_or(usize::MAX), "repair");
            let text = format!("running, version {}, {config}, {repairs}", agent.version);
            lines.push(("agent", agent.config_current, text));
            lines.extend(agent.errors.iter().map(|e| ("agent", false, e.clone())));
            lines.extend(agent.kubernetes.iter().flat_map(kubernetes));
        }
        None if node.reachable => lines.push(("agent", false, "not running".to_owned())),
        None => {}
    }
    match &node.vtep {
        Some(vtep) => {
            let peers = match vtep.peers_expected {
                Some(expected) => format!("{} of {}", vtep.peers, count(expected, "peer")),
                None => count(vtep.peers, "peer"),
            };
            let good = vtep.up && vtep.peers_expected.is_none_or(|e| e == vtep.peers);
            let text = format!(
                "{} {}, VNI {}, UDP {}, MTU {}, {peers}",
                vtep.device,
                if vtep.up { "up" } else { "down" },
                vtep.vni,
                vtep.port,
                vtep.mtu
            );
            lines.push(("tunnel", good, text));
            let offload =
                if vtep.checksum_offload { "left to the network card" } else { "computed by the kernel" };
            let text = format!("{offload}, {} wrong ones received since boot", vtep.checksum_errors);
            lines.push(("checksums", true, text));
        }
        None if node.reachable => lines.push(("tunnel", false, "none".to_owned())),
        None => {}
    }
    if let Some(pods) = node.pods {
        let ranges =
            if node.pod_cidrs.is_empty() { "no range".to_owned() } else { node.pod_cidrs.join(", ") };
        let text = format!("{} in {ranges}", count(pods as usize, "pod"));
        lines.push(("pods", true, text));
    }
    match node.drift {
        Some(0) => lines.push(("drift", true, "none".to_owned())),
        Some(n) => {
            lines.push(("drift", false, format!("{} to change; homelab plan shows them", count(n, "object"))))
        }
        None => {}
    }
    lines.extend(history_lines(&node.history));
    lines
}

fn state(node: &NodeStatus) -> &'static str {
    match (node.reachable, node.healthy()) {
        (false, _) => "unreachable",
        (true, true) => "good",
        (true, false) => "needs attention",
    }
}

/// The status for people.
pub fn status_human(nodes: &[NodeStatus], warnings: &[String], paint: Paint) -> Shown {
    let mut page = Page::new(paint);
    for node in nodes {
        let color = match (node.reachable, node.healthy()) {
            (false, _) => red,
            (true, true) => green,
            (true, false) => yellow,
        };
        line!(page, bold(&node.name), format!(" ({}): ", node.address), color(state(node)));
        if let Some(error) = &node.error {
            error.show(&mut page, 2);
        }
        for (label, good, text) in lines(node) {
            line!(page, format!("  {label:<10} "), if good { Span::from(text) } else { yellow(text) });
        }
        page.blank();
    }
    for warning in warnings {
        page.paragraph(&[yellow("warning:"), " ".into()], warning);
    }
    let good = nodes.iter().filter(|n| n.healthy()).count();
    line!(page, bold(format!("{good} of {} good.", count(nodes.len(), "node"))));
    page.end()
}

/// The status for comments.
pub fn status_markdown(nodes: &[NodeStatus], warnings: &[String]) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, "| node | address | state | details |");
    line!(page, "|---|---|---|---|");
    for node in nodes {
        let mut details: Vec<String> = node.error.iter().map(|e| cell(&e.message)).collect();
        details.extend(lines(node).into_iter().map(|(label, _, text)| format!("{label}: {}", cell(&text))));
        let details = details.join("<br>");
        line!(page, format!("| {} | {} | {} | {details} |", prose(&node.name), node.address, state(node)));
    }
    for warning in warnings {
        page.blank();
        line!(page, format!("> **Warning:** {}", code(warning)));
    }
    page.end()
}
