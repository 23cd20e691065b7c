//! Golden outputs of hand-made plans.

use std::time::Duration;

use homelab_driver::{
    Departed, Farewell, NodeError, NodeReport, Outcome, Plan, PlannedNode, Report, TransportError,
};
use homelab_model::{
    AgentFact, Confirmed, Content, Facts, Fdb, File, History, Holder, Hook, KubernetesFact, Link, LinkKind,
    Module, NftChain, NodeObject, NodePlan, Observed, OpenTransaction, Phase, Problem, Reverted, Route, Spec,
    Summary, Unit, plan_node,
};

use super::*;

fn link(mtu: u32, vni: u32) -> NodeObject {
    let spec = Spec::Link(Link {
        name: "homelab.1".into(),
        mac: "02:00:00:00:00:01".into(),
        mtu,
        up: true,
        alias: "homelab".into(),
        kind: LinkKind::Vxlan {
            vni,
            port: 8472,
            local: "192.168.50.11".parse().unwrap(),
            learning: false,
            checksum_offload: true,
        },
    });
    NodeObject { module: Module::Vtep, spec }
}

fn route() -> NodeObject {
    let spec = Spec::Route(Route {
        destination: "10.244.2.0/24".parse().unwrap(),
        metric: 0,
        via: Some("10.244.2.0".parse().unwrap()),
        link: Some("homelab.1".into()),
        onlink: true,
        source: None,
        r#type: "unicast".into(),
    });
    NodeObject { module: Module::Vtep, spec }
}

fn file(text: &str) -> NodeObject {
    let spec = Spec::File(File {
        path: "/etc/sysctl.d/90-homelab.conf".into(),
        mode: 0o644,
        owner: "0:0".into(),
        content: Content::Text(text.into()),
    });
    NodeObject { module: Module::Vtep, spec }
}

fn chain(rules: &[&str]) -> NodeObject {
    let spec = Spec::NftChain(NftChain {
        table: "inet homelab".into(),
        name: "vtep-postrouting".into(),
        hook: Some(Hook {
            r#type: "nat".into(),
            hook: "postrouting".into(),
            priority: 100,
            policy: "accept".into(),
        }),
        rules: rules.iter().map(|r| (*r).to_owned()).collect(),
    });
    NodeObject { module: Module::Vtep, spec }
}

fn unit(running: char) -> NodeObject {
    let spec = Spec::Unit(Unit {
        name: "homelab-node.service".into(),
        enabled: true,
        state: "active".into(),
        reload_needed: false,
        running: running.to_string().repeat(64),
        config: "c".repeat(64),
    });
    NodeObject { module: Module::Agent, spec }
}

fn conflist() -> NodeObject {
    let spec = Spec::File(File {
        path: "/etc/cni/net.d/05-homelab.conflist".into(),
        mode: 0o644,
        owner: "0:0".into(),
        content: Content::Text("{}\n".into()),
    });
    NodeObject { module: Module::Cni, spec }
}

fn mixed() -> NodePlan {
    let before = [unit('a'), link(1450, 1), file("a = 1\nb = 2\n"), chain(&["old rule", "kept"]), conflist()];
    let after = [unit('b'), link(1400, 1), file("a = 1\nb = 3\n"), chain(&["kept", "new rule"]), route()];
    plan_node("node1", &before, &after)
}

fn plan() -> Plan {
    let node = |i: u8, outcome| PlannedNode {
        name: format!("node{i}"),
        address: format!("192.168.50.1{i}").parse().unwrap(),
        outcome,
        history: History::default(),
    };
    let down =
        TransportError::Connect { endpoint: "192.168.50.14:22".into(), reason: "no route to host".into() };
    let problem =
        Problem { message: "the command nft is missing".into(), help: "apt install nftables".into() };
    Plan {
        cluster: "home".into(),
        destroy: false,
        nodes: vec![
            node(1, Ok(mixed())),
            node(2, Ok(plan_node("node2", &[link(1450, 1), route()], &[link(1450, 2), route()]))),
            node(3, Ok(NodePlan { node: "node3".into(), changes: Vec::new() })),
            node(4, Err(NodeError::Transport(down))),
            node(5, Err(NodeError::Blocked(vec![problem]))),
        ],
        kubernetes: None,
        departed: vec![gone()],
        warnings: vec!["node2: something is odd".into()],
    }
}

fn gone() -> Departed {
    Departed {
        name: Some("node9".into()),
        address: "192.168.50.19".parse().unwrap(),
        pod_cidrs: vec!["10.244.8.0/24".parse().unwrap()],
        known_to: vec!["node1".into(), "node2".into()],
    }
}

#[test]
fn human_plan() {
    insta::assert_snapshot!(plan_human(&plan(), Paint(false), false));
}

#[test]
fn human_plan_in_colour() {
    let mut plan = plan();
    plan.nodes.drain(1..);
    insta::assert_snapshot!(plan_human(&plan, Paint(true), false).replace('\x1b', "␛"));
}

#[test]
fn json_plan() {
    insta::assert_snapshot!(format!("{:#}", plan_json(&plan())));
}

#[test]
fn markdown_plan() {
    insta::assert_snapshot!(plan_markdown(&plan()));
}

#[test]
fn no_changes() {
    let mut plan = plan();
    plan.nodes.retain(|n| n.name == "node3");
    plan.departed.clear();
    plan.warnings.clear();
    insta::assert_snapshot!(plan_human(&plan, Paint(false), false).to_string(), @"No changes. The node is as the cluster file says.");
    plan.destroy = true;
    insta::assert_snapshot!(plan_human(&plan, Paint(false), false).to_string(), @"No changes. Nothing of homelab is on the node.");
}

#[test]
fn a_plan_over_a_trial_says_how_to_end_it() {
    let mut plan = plan();
    plan.nodes.retain(|n| n.name == "node3");
    plan.departed.clear();
    plan.nodes[0].history = history();
    let human = plan_human(&plan, Paint(false), false);
    let hint = "homelab confirm keeps that change, homelab rollback takes it back now";
    assert!(human.lines().any(|line| line == format!("hint: {hint}")), "{human}");
    assert!(plan_markdown(&plan).lines().any(|line| line == format!("> {hint}")), "{}", plan_markdown(&plan));
    plan.nodes[0].history = History::default();
    assert!(!plan_human(&plan, Paint(false), false).contains("homelab confirm"));
    assert!(!plan_markdown(&plan).contains("homelab confirm"));
}

#[test]
fn markdown_stays_below_its_limit() {
    let mut plan = plan();
    let objects: Vec<NodeObject> = (0..300)
        .map(|i| {
            let spec = Spec::Fdb(Fdb {
                link: "homelab.1".into(),
                mac: format!("02:00:00:00:{:02x}:{:02x}", i / 256, i % 256),
                remote: "192.168.50.12".parse().unwrap(),
            });
            NodeObject { module: Module::Vtep, spec }
        })
        .collect();
    plan.nodes = (0..40_u8)
        .map(|i| PlannedNode {
            name: format!("node{i}"),
            address: "192.168.50.11".parse().unwrap(),
            outcome: Ok(plan_node("n", &[], &objects)),
            history: History::default(),
        })
        .collect();
    plan.warnings = vec!["<x>".repeat(40_000)];
    let text = plan_markdown(&plan);
    assert!(text.len() <= MARKDOWN_LIMIT, "{}", text.len());
    assert!(text.contains("left out here"));
    plan.warnings.clear();
    let text = plan_markdown(&plan);
    assert!(text.len() <= MARKDOWN_LIMIT && text.contains("<details>") && text.contains("left out here"));
}

#[test]
fn long_values_are_cut() {
    let digest = "0123456789abcdef".repeat(4);
    assert_eq!(short(&format!("/lib/{digest}/x")), "/lib/0123456789ab…/x");
    assert_eq!(short(&digest), "0123456789ab…");
    assert_eq!(short("no digest é"), "no digest é");
    assert_eq!(short(&"y".repeat(500)).chars().count(), 97);
}

#[test]
fn verbose_shows_whole_files() {
    let text: String = (0..60).map(|i| format!("line {i}\n")).collect();
    let planned = plan_node("n", &[], &[file(&text)]);
    let mut plan = plan();
    plan.nodes.truncate(1);
    plan.nodes[0].outcome = Ok(planned);
    let brief = plan_human(&plan, Paint(false), false);
    assert!(
        brief.contains("… 52 more lines (--verbose shows them)") && !brief.contains("line 59"),
        "{brief}"
    );
    assert!(plan_human(&plan, Paint(false), true).contains("+ line 59"));
}

fn report() -> (Report, Vec<(Departed, Option<Farewell>)>) {
    let node = |i: u8, outcome, ms| NodeReport {
        name: format!("node{i}"),
        address: format!("192.168.50.1{i}").parse().unwrap(),
        outcome,
        elapsed: Duration::from_millis(ms),
    };
    let summary = Summary { create: 40, update: 1, replace: 0, delete: 0 };
    let failure = homelab_driver::NodeError::Unsettled(vec!["route 10.244.2.0/24".into()]);
    let nodes = vec![
        node(1, Outcome::Changed(summary), 420),
        node(2, Outcome::Unchanged, 0),
        node(3, Outcome::Failed(failure), 3100),
        node(4, Outcome::NotStarted, 0),
        node(5, Outcome::Unplanned(NodeError::Cancelled), 0),
    ];
    let warnings = vec!["pods of node1 do not reach node2: is UDP 8472 open between them?".into()];
    (Report { nodes, traffic: (540_000, 23_000), warnings, ..Report::default() }, vec![(gone(), None)])
}

#[test]
fn report_of_a_rollback() {
    let (mut report, _) = report();
    report.warnings.clear();
    report.nodes.truncate(4);
    let lost = NodeError::Transport(TransportError::Lost {
        endpoint: "192.168.50.12:22".into(),
        reason: "broken pipe".into(),
    });
    report.nodes[1].outcome = Outcome::RolledBack {
        reason: "nobody confirmed it within 60 s".into(),
        error: Some(Box::new(lost)),
        left: Vec::new(),
    };
    report.nodes[2].outcome = Outcome::RolledBack {
        reason: "another node failed".into(),
        error: None,
        left: vec!["unit homelab-node.service".into()],
    };
    report.nodes[3].outcome = Outcome::Unsure(NodeError::Cancelled);
    let gone = vec![(
        gone(),
        Some(Farewell::RolledBack { reason: "it could not be verified".into(), left: Vec::new() }),
    )];
    let total = Duration::from_secs(64);
    insta::assert_snapshot!(report_human(&report, &gone, total, false, Paint(false)).to_string());
    insta::assert_snapshot!(report_markdown(&report, &gone, total, false).to_string());
    insta::assert_snapshot!(format!("{:#}", report_json(&report, &gone, total)));
}

#[test]
fn report_of_a_trial() {
    let (mut report, _) = report();
    report.nodes.truncate(2);
    report.warnings.clear();
    let summary = Summary { create: 0, update: 2, replace: 0, delete: 0 };
    report.nodes[0].outcome = Outcome::Held { summary, seconds: 600 };
    insta::assert_snapshot!(
        report_human(&report, &[], Duration::from_secs(2), false, Paint(false)).to_string()
    );
}

fn me() -> Holder {
    Holder { who: "me@laptop".into(), pid: 4711, command: "apply".into(), since: 1_764_098_305 }
}

fn history() -> History {
    let open = OpenTransaction { id: "ab".into(), by: me(), phase: Phase::Held, remaining: 540, changes: 3 };
    let reverted = Reverted {
        id: "aa".into(),
        by: me(),
        at: 1_764_098_305,
        reason: "nobody confirmed it within 60 s".into(),
        left: vec!["route 10.244.2.0/24".into()],
    };
    let confirmed = Confirmed { id: "a9".into(), by: me(), at: 1_764_000_000, spec: None, revertible: true };
    History { holder: Some(me()), open: Some(open), reverted: Some(reverted), confirmed: Some(confirmed) }
}

#[test]
fn status_tells_of_locks_and_transactions() {
    let mut node = plan().nodes.remove(2);
    node.history = history();
    let status = [node_status(&node, Some(&Observed::default()), None)];
    insta::assert_snapshot!(status_human(&status, &[], Paint(false)).to_string());
    assert_eq!(status_json("home", &status, &[])["nodes"][0]["history"]["open"]["phase"], "held");
    assert!(!status[0].healthy());
    insta::assert_snapshot!(format!("{:#}", history_json(&history())));
}

#[test]
fn drift_tells_hands_from_the_file() {
    // As the last apply made it; somebody altered the link and the file, removed the route and added a chain.
    let base = [link(1450, 1), file("a = 1\n"), route()];
    let now = [link(9000, 1), file("a = 2\n"), chain(&["x"])];
    // The file wants another MTU than the last apply, and a conflist.
    let wanted = [link(1400, 1), file("a = 1\n"), route(), conflist()];
    let mut plan = plan();
    plan.nodes.truncate(4);
    plan.nodes[0].outcome = Ok(plan_node("node1", &now, &wanted));
    plan.nodes[1].outcome = Ok(plan_node("node2", &base, &wanted));
    plan.nodes[2].outcome = Ok(plan_node("node3", &[], &wanted));
    plan.nodes.swap(2, 3);
    let undo = [Some(plan_node("node1", &now, &base)), Some(plan_node("node2", &base, &base)), None, None];
    let mut nodes: Vec<NodeDrift> =
        plan.nodes.iter().zip(undo).map(|(node, undo)| node_drift(node, undo, false)).collect();
    assert_eq!(nodes.iter().map(NodeDrift::drifted).collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(nodes[0].by_file, ["file /etc/cni/net.d/05-homelab.conflist", "link homelab.1"]);
    insta::assert_snapshot!(drift_human(&nodes, &[], Paint(false), false).to_string());
    insta::assert_snapshot!(drift_markdown("home", &nodes, &["odd".into()]).to_string());
    let json = drift_json("home", &nodes, &[]);
    assert_eq!(json["drifted"], true);
    assert_eq!(json["nodes"][2]["by_hand"], serde_json::Value::Null);
    insta::assert_snapshot!(format!("{:#}", json["nodes"][0]));
    assert_eq!(
        nodes[0].sentence().unwrap(),
        "node1: changed by hand since the last apply: nft chain inet homelab vtep-postrouting, file \
         /etc/sysctl.d/90-homelab.conf, link homelab.1, route 10.244.2.0/24"
    );
    nodes[0].other_build = true;
    assert_eq!(nodes[0].sentence(), None);
    assert!(drift_human(&nodes, &[], Paint(false), false).contains("by another build of homelab"));
}

#[test]
fn human_report() {
    let (report, departed) = report();
    let total = Duration::from_millis(3800);
    insta::assert_snapshot!(report_human(&report, &departed, total, false, Paint(false)));
}

#[test]
fn json_and_markdown_report() {
    let (report, departed) = report();
    let total = Duration::from_secs(64);
    insta::assert_snapshot!(report_markdown(&report, &departed, total, false));
    insta::assert_snapshot!(format!("{:#}", report_json(&report, &departed, total)));
}

#[test]
fn human_status() {
    let mut plan = plan();
    plan.nodes.retain(|n| n.name == "node3" || n.name == "node4");
    let observed = Observed {
        facts: Facts {
            hostname: "node3".into(),
            kernel: "6.1.0".into(),
            arch: "x86_64".into(),
            pods: 2,
            agent: Some(AgentFact {
                pid: 7,
                version: "0.1.0".into(),
                config: "old".into(),
                repairs: 1,
                errors: vec!["nft: busy".into()],
                kubernetes: Some(KubernetesFact {
                    connected: false,
                    server: "https://192.168.50.10:6443".into(),
                    known: true,
                    services: 1,
                    slices: 2,
                    nodes: 3,
                    hidden: vec!["default/web".into()],
                    notes: vec!["BGPPeer router: the cluster file has no `bgp`".into()],
                    peers: vec!["node7".into(), "node8 (flannel)".into()],
                    troubles: vec!["services: https://192.168.50.10:6443: the token is refused".into()],
                }),
            }),
            ..Facts::default()
        },
        objects: vec![link(1450, 1)],
        ..Observed::default()
    };
    let nodes = [node_status(&plan.nodes[0], Some(&observed), None), node_status(&plan.nodes[1], None, None)];
    insta::assert_snapshot!(status_human(&nodes, &[], Paint(false)));
    insta::assert_snapshot!(status_markdown(&nodes, &[]));
    let json = status_json("home", &nodes, &[]);
    assert_eq!(json["healthy"], false);
    assert_eq!(json["nodes"][0]["agent"]["config_current"], false);
    assert_eq!(json["nodes"][0]["agent"]["kubernetes"]["connected"], false);
    assert_eq!(json["nodes"][1]["reachable"], false);
}
