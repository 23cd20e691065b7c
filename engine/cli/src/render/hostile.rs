//! Nodes that say whatever could deceive: nothing of it reaches a terminal, a log or a comment as it is.

use std::time::Duration;

use homelab_driver::{
    Departed, Event, Farewell, LbPicture, NodeError, NodeReport, Outcome, Plan, PlannedNode, Report,
    TransportError,
};
use homelab_model::service::Protocol;
use homelab_model::{
    AgentFact, Confirmed, Content, Facts, File, History, Holder, LbBgp, LbRoute, LbSession, LbStanding,
    LbUnfit, Module, NodeObject, Observed, OpenTransaction, Phase, Problem, Reverted, ServiceReport, Spec,
    Summary, TraceOutcome, TracePacket, TraceReport, TraceStep, plan_node,
};
use proptest::prelude::*;

use super::words::{Words, list_human, list_markdown};
use super::*;

/// What a node may say: plain words, and what terminals, CI runners and Markdown listen to.
fn foreign() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z ]{1,6}",
        any::<char>().prop_map(String::from),
        prop::sample::select(vec![
            "\x1b[31m",
            "\x1b[2J",
            "\x1b]0;t\x07",
            "\u{9b}1m",
            "\n",
            "\r",
            "\r\n",
            "\t",
            "\0",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{202e}",
            "\u{2066}",
            "\u{200b}",
            "\u{feff}",
            "\u{e0041}",
            "::error file=x::y",
            "\n::set-env::",
            "##[error]",
            "`",
            "``",
            "```",
            "````\n",
            "~~~",
            "<img src=x>",
            "</details>",
            "<!--",
            "@octocat",
            "#1",
            "[a](http://x)",
            "![a](http://x)",
            "|",
            "\\",
            "\\|",
            "**",
            "_",
            "> ",
            "&lt;",
            "…",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn file(path: &str, text: &str) -> NodeObject {
    let content = Content::Text(text.to_owned());
    let spec = Spec::File(File { path: path.into(), mode: 0o644, owner: text.to_owned(), content });
    NodeObject { module: Module::Agent, spec }
}

fn holder(said: &str) -> Holder {
    Holder { who: said.into(), pid: 1, command: said.into(), since: 1 }
}

fn history(said: &str) -> History {
    let open =
        OpenTransaction { id: said.into(), by: holder(said), phase: Phase::Held, remaining: 9, changes: 2 };
    let reverted = Reverted {
        id: said.into(),
        by: holder(said),
        at: u64::MAX / 4,
        reason: said.into(),
        left: vec![said.into()],
    };
    let confirmed = Confirmed { id: said.into(), by: holder(said), at: 1, spec: None, revertible: true };
    History {
        holder: Some(holder(said)),
        open: Some(open),
        reverted: Some(reverted),
        confirmed: Some(confirmed),
    }
}

fn error(said: &str) -> NodeError {
    let problem = Problem { message: said.into(), help: said.into() };
    match said.len() % 4 {
        0 => NodeError::Bootstrap { output: said.into(), status: None },
        1 => NodeError::Blocked(vec![problem]),
        2 => NodeError::Unsettled(vec![said.into()]),
        _ => NodeError::Transport(TransportError::Lost { endpoint: said.into(), reason: said.into() }),
    }
}

fn gone(said: &str) -> Departed {
    Departed {
        name: Some(said.into()),
        address: "192.168.50.19".parse().unwrap(),
        pod_cidrs: Vec::new(),
        known_to: vec!["node1".into()],
    }
}

fn plan(said: &str) -> Plan {
    let objects =
        |text: &str| vec![file("/etc/a", text), file(&format!("/b{text}"), &format!("1\n2\n{text}"))];
    let node = |name: &str, outcome| PlannedNode {
        name: name.to_owned(),
        address: "192.168.50.11".parse().unwrap(),
        outcome,
        history: history(said),
    };
    Plan {
        cluster: "home".into(),
        destroy: false,
        nodes: vec![
            node("node1", Ok(plan_node("node1", &objects(said), &objects("good")))),
            node("node2", Ok(plan_node("node2", &[], &objects(said)))),
            node("node3", Err(error(said))),
        ],
        kubernetes: None,
        departed: vec![gone(said)],
        warnings: vec![said.to_owned()],
    }
}

fn report(said: &str) -> (Report, Vec<Goodbye>) {
    let outcomes = vec![
        Outcome::Changed(Summary::default()),
        Outcome::Failed(error(said)),
        Outcome::RolledBack {
            reason: said.into(),
            error: Some(Box::new(error(said))),
            left: vec![said.to_owned()],
        },
        Outcome::Unsure(error(said)),
    ];
    let node = |outcome| NodeReport {
        name: "node1".into(),
        address: "192.168.50.11".parse().unwrap(),
        outcome,
        elapsed: Duration::ZERO,
    };
    let nodes = outcomes.into_iter().map(node).collect();
    let back = Farewell::RolledBack { reason: said.into(), left: vec![said.into()] };
    let goodbyes = vec![(gone(said), Some(Farewell::Failed(error(said)))), (gone(said), Some(back))];
    (Report { nodes, warnings: vec![said.to_owned()], ..Report::default() }, goodbyes)
}

fn statuses(said: &str) -> Vec<NodeStatus> {
    let agent = AgentFact {
        pid: 1,
        version: said.into(),
        config: said.into(),
        repairs: 1,
        errors: vec![said.into()],
        kubernetes: None,
    };
    let facts = Facts {
        hostname: said.into(),
        kernel: said.into(),
        arch: said.into(),
        agent: Some(agent),
        ..Facts::default()
    };
    let observed = Observed { facts, ..Observed::default() };
    plan(said).nodes.iter().map(|n| node_status(n, Some(&observed), None)).collect()
}

fn services(said: &str) -> Vec<ServicesOfNode> {
    let service = |extra: &str| ServiceReport {
        name: said.into(),
        told: None,
        frontends: Vec::new(),
        absent: vec![homelab_model::AbsentContainer {
            node: said.into(),
            container: said.into(),
            why: homelab_model::Absence::NodeDown,
        }],
        missing: vec![said.into()],
        extra: vec![extra.into()],
    };
    let silent = Err(ErrorText { message: said.into(), hints: vec![said.into()] });
    vec![
        ServicesOfNode { name: "node1".into(), answer: Ok(vec![service(said)]) },
        ServicesOfNode { name: "node2".into(), answer: silent },
    ]
}

fn balancers(said: &str) -> Vec<LbAnswer> {
    let mut node = crate::fake::says("node1", &[("192.168.50.200", "node1"), ("192.168.50.201", "node9")]);
    node.cordoned = Some(holder(said));
    let report = node.report.as_mut().unwrap();
    for member in &mut report.members {
        (member.standing, member.since_unix_ms) = (LbStanding::Down, Some(u64::MAX));
        member.interfaces = vec![(said.into(), said.into())];
    }
    for address in &mut report.addresses {
        (address.services, address.pool) = (vec![said.into()], Some(said.into()));
        (address.conflict, address.unfit) = (Some(said.into()), vec![(said.into(), LbUnfit::NoInterface)]);
        address.interfaces.iter_mut().for_each(|i| (i.name, i.mac) = (said.into(), Some(said.into())));
    }
    let word = || said.to_owned();
    let session = LbSession {
        peer: word(),
        router: word(),
        state: word(),
        last_reset: Some(word()),
        bfd: Some(word()),
        ..LbSession::default()
    };
    let told = LbSession { state: LbSession::ESTABLISHED.into(), ..session.clone() };
    let route = LbRoute {
        prefix: "192.168.50.200/32".parse().unwrap(),
        addresses: vec!["192.168.50.200".parse().unwrap()],
        peers: vec![word()],
    };
    report.bgp = Some(LbBgp { problem: Some(word()), sessions: vec![session, told], routes: vec![route] });
    let mut other = node.clone();
    let report = other.report.as_mut().unwrap();
    report.node = "node2".into();
    report.addresses.iter_mut().for_each(|address| address.owner = Some(said.into()));
    report.addresses[1].owner = None;
    let silent = Err(ErrorText { message: said.into(), hints: vec![said.into()] });
    vec![("node1".into(), Ok(node)), ("node2".into(), Ok(other)), ("node3".into(), silent)]
}

fn cordon(said: &str) -> CordonSaid {
    let address = "192.168.50.200".parse().unwrap();
    let name = Some(said.to_owned());
    CordonSaid {
        node: said.into(),
        on: true,
        changed: true,
        agent: false,
        told: false,
        known: false,
        moved: vec![Move { address, services: vec![said.into()], from: name.clone(), to: name }],
        kept: vec![address],
        silent: vec![(said.into(), ErrorText { message: said.into(), hints: vec![said.into()] })],
    }
}

fn traces(said: &str) -> (TraceQuestion, Vec<TracedNode>) {
    let address = "10.96.0.1".parse().unwrap();
    let packet = TracePacket { source: address, destination: address, protocol: Protocol::Tcp, port: 80 };
    let question = TraceQuestion {
        source: said.into(),
        source_node: Some(said.into()),
        destination: said.into(),
        packet,
    };
    let step = TraceStep { chain: said.into(), rule: said.into(), matched: true, why: said.into() };
    let traced = TraceReport {
        service: Some(said.into()),
        outcome: TraceOutcome::Dropped,
        remembered: None,
        steps: vec![step.clone(), TraceStep { matched: false, ..step }],
        warnings: vec![said.into()],
    };
    let silent = Err(ErrorText { message: said.into(), hints: vec![said.into()] });
    let node = |answer| TracedNode { name: "node1".into(), answer };
    (question, vec![node(Ok(traced)), node(silent)])
}

fn drifts(said: &str) -> Vec<NodeDrift> {
    let undo = || plan_node("node1", &[file("/etc/a", said)], &[file("/etc/b", said)]);
    plan(said).nodes.iter().map(|n| node_drift(n, Some(undo()), true)).collect()
}

fn humans(said: &str, paint: Paint) -> Vec<Shown> {
    let (report, goodbyes) = report(said);
    let words = vec![("node1".to_owned(), Words::bad(said).hint(said))];
    vec![
        plan_human(&plan(said), paint, false),
        plan_human(&plan(said), paint, true),
        report_human(&report, &goodbyes, Duration::ZERO, false, paint),
        status_human(&statuses(said), &[said.to_owned()], paint),
        drift_human(&drifts(said), &[said.to_owned()], paint, true),
        list_human(&words, said, paint),
        services_human(&services(said), &service_rows(&services(said)), paint, true),
        trace_human(&traces(said).0, &traces(said).1, paint, true),
        lb_human(&balancers(said), &LbPicture::of(&balancers(said)), paint),
        cordon_human(&cordon(said), paint),
    ]
}

fn comments(said: &str) -> Vec<Shown> {
    let (report, goodbyes) = report(said);
    let words = vec![("node1".to_owned(), Words::bad(said).hint(said))];
    vec![
        plan_markdown(&plan(said)),
        report_markdown(&report, &goodbyes, Duration::ZERO, false),
        status_markdown(&statuses(said), &[said.to_owned()]),
        drift_markdown("home", &drifts(said), &[said.to_owned()]),
        list_markdown(&words, said),
        services_markdown(&services(said), &service_rows(&services(said))),
        trace_markdown(&traces(said).0, &traces(said).1),
        lb_markdown(&balancers(said), &LbPicture::of(&balancers(said))),
        cordon_markdown(&cordon(said)),
    ]
}

fn values(said: &str) -> Vec<Shown> {
    let (report, goodbyes) = report(said);
    vec![
        Shown::json(&plan_json(&plan(said))),
        Shown::json_line(&report_json(&report, &goodbyes, Duration::ZERO)),
        Shown::json(&status_json("home", &statuses(said), &[said.to_owned()])),
        Shown::json_line(&drift_json("home", &drifts(said), &[said.to_owned()])),
        Shown::json(&services_json("home", &services(said), &service_rows(&services(said)))),
        Shown::json(&trace_json("home", &traces(said).0, &traces(said).1)),
        Shown::json(&lb_json("home", &balancers(said), &LbPicture::of(&balancers(said)))),
        Shown::json(&cordon_json(&cordon(said))),
    ]
}

/// Whether a letter has no business in what is shown. Written anew: not the function that is tested.
fn steers(letter: char) -> bool {
    let code = letter as u32;
    letter != '\n' && (code < 0x20 || (0x7f..0xa0).contains(&code))
        || (0x200b..=0x200f).contains(&code)
        || (0x2028..=0x202e).contains(&code)
        || (0x2066..=0x2069).contains(&code)
        || code == 0xfeff
        || (0xe0000..=0xe007f).contains(&code)
}

fn commands(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        line.contains("##[") || line.strip_prefix("::").is_some_and(|rest| rest.contains("::"))
    })
}

/// What of a comment GitHub reads as Markdown or HTML: neither fenced blocks nor code spans.
fn read_as_markdown(text: &str) -> String {
    let mut out = String::new();
    let mut fence: Option<String> = None;
    for line in text.lines() {
        let run: String = line.chars().take_while(|c| *c == '`').collect();
        match &fence {
            Some(open) => {
                if run.len() >= open.len() && line.trim_end() == run {
                    fence = None;
                }
                continue;
            }
            None if run.len() >= 3 => {
                fence = Some(run);
                continue;
            }
            None => {}
        }
        let mut rest = line;
        while let Some(start) = rest.find('`') {
            if rest[..start].ends_with('\\') && !rest[..start].ends_with("\\\\") {
                out.push_str(&rest[..=start]);
                rest = &rest[start + 1..];
                continue;
            }
            out.push_str(&rest[..start]);
            let ticks = rest[start..].bytes().take_while(|b| *b == b'`').count();
            let inner = &rest[start + ticks..];
            // A span ends at the next run of exactly as many backticks.
            let mut at = 0;
            let end = loop {
                let Some(found) = inner[at..].find('`') else { break None };
                let length = inner[at + found..].bytes().take_while(|b| *b == b'`').count();
                if length == ticks {
                    break Some(at + found + length);
                }
                at += found + length;
            };
            let end = end.expect("a code span that does not end");
            rest = &inner[end..];
        }
        out.push_str(rest);
        out.push('\n');
    }
    assert!(fence.is_none(), "a block that does not end");
    out
}

proptest! {
    // Each case renders everything there is.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nothing_that_steers_gets_out(said in foreign()) {
        for text in humans(&said, Paint(false)).iter().chain(&comments(&said)).chain(&values(&said)) {
            prop_assert!(!text.chars().any(steers), "{:?}", text);
            prop_assert!(!commands(text), "{:?}", text);
        }
        for value in values(&said) {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&value).is_ok());
        }
    }

    #[test]
    fn colours_are_our_own(said in foreign()) {
        for (painted, plain) in humans(&said, Paint(true)).iter().zip(humans(&said, Paint(false))) {
            let mut bare = painted.to_string();
            for code in ["0", "1", "2", "31", "32", "33"] {
                bare = bare.replace(&format!("\x1b[{code}m"), "");
            }
            prop_assert!(!bare.contains('\x1b'));
            // A line that only looks like a command once the colours are gone is none.
            prop_assert_eq!(bare.replace("\\u{3a}", ":").replace("\\u{23}", "#"), plain.replace("\\u{3a}", ":").replace("\\u{23}", "#"));
        }
    }

    #[test]
    fn comments_hold_no_markup_of_a_node(said in foreign()) {
        for comment in comments(&said) {
            let read = read_as_markdown(&comment);
            let ours = ["<details>", "</details>", "<summary>", "</summary>", "<br>"];
            let bare = ours.iter().fold(read, |text, tag| text.replace(tag, ""));
            prop_assert!(!bare.contains('<') && !bare.contains("@octocat") && !bare.contains("](") , "{:?}\n{}", said, bare);
        }
    }

    #[test]
    fn events_are_single_lines(said in foreign()) {
        let wrong = error(&said);
        let who = holder(&said);
        for event in [Event::Unreachable(&wrong), Event::Waiting(&who), Event::RollingBack(&said), Event::Failed(&wrong)] {
            let line = crate::stream::line(&said, &event).expect("an event");
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(!line.chars().any(steers) && !commands(&line), "{:?}", line);
        }
    }
}
