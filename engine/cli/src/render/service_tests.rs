//! Golden outputs of services and traces.

use homelab_model::service::{Affinity, Policy, Protocol, Type};
use homelab_model::{
    Absence, AbsentContainer, EndpointReport, FrontendKind, FrontendReport, FrontendState, ServiceReport,
    ToldPort, ToldService, TraceEndpoint, TraceOutcome, TracePacket, TraceReport, TraceStep,
};

use super::*;

fn told(r#type: Type, ports: &[(u16, Option<u16>)], external: Policy) -> ToldService {
    let port = |(port, node_port): &(u16, Option<u16>)| ToldPort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: *port,
        node_port: *node_port,
    };
    ToldService {
        r#type,
        internal_traffic_policy: Policy::Cluster,
        external_traffic_policy: external,
        session_affinity: Affinity::ClientIp,
        ports: ports.iter().map(port).collect(),
        ready: 2,
        total: 3,
    }
}

fn frontend(
    (address, port): (&str, u16),
    kind: FrontendKind,
    state: FrontendState,
    connections: &[(&str, u64)],
) -> FrontendReport {
    let endpoint = |(address, connections): &(&str, u64)| EndpointReport {
        address: address.parse().unwrap(),
        internal: false,
        connections: *connections,
    };
    FrontendReport {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
        port,
        kind: Some(kind),
        state,
        policy: Policy::Cluster,
        affinity: None,
        endpoints: connections.iter().map(endpoint).collect(),
    }
}

fn service(name: &str, told: Option<ToldService>, frontends: Vec<FrontendReport>) -> ServiceReport {
    ServiceReport {
        name: name.into(),
        told,
        frontends,
        absent: Vec::new(),
        missing: Vec::new(),
        extra: Vec::new(),
    }
}

/// A load balancer; `here` says whether the node has an endpoint.
fn web(node: u8, here: bool, connections: u64) -> ServiceReport {
    let told = told(Type::LoadBalancer, &[(80, Some(30080))], Policy::Local);
    let state = if here { FrontendState::Served } else { FrontendState::Dropped };
    let endpoints = [("10.244.1.5:8080", connections), ("10.244.2.5:8080", 1)];
    let own = format!("192.168.50.1{node}");
    let frontends = vec![
        frontend(("10.96.0.1", 80), FrontendKind::Cluster, FrontendState::Served, &endpoints),
        frontend((&own, 30080), FrontendKind::NodePort, state, &[]),
        frontend(("192.168.50.200", 80), FrontendKind::LoadBalancer, state, &endpoints[..1]),
    ];
    service("default/web", Some(told), frontends)
}

fn empty() -> ServiceReport {
    let mut told = told(Type::ClusterIp, &[(53, None), (54, None)], Policy::Cluster);
    (told.ready, told.total, told.session_affinity) = (0, 0, Affinity::None);
    let refused = frontend(("10.96.0.2", 53), FrontendKind::Cluster, FrontendState::Refused, &[]);
    service("default/empty", Some(told), vec![refused])
}

fn nodes() -> Vec<ServicesOfNode> {
    let mut third = web(3, false, 0);
    third.missing = ["a", "b", "c", "d", "e"].map(|e| format!("frontends4 {e}")).to_vec();
    third.extra = vec!["hairpin4 #00".into()];
    let mut outdated = web(2, true, 40);
    outdated.told.as_mut().unwrap().ready = 1;
    let gone = |why| AbsentContainer { node: "node2".into(), container: "db".into(), why };
    third.absent = vec![gone(Absence::NodeDown)];
    outdated.absent = vec![gone(Absence::NotRunning)];
    let answer = |name: &str, answer| ServicesOfNode { name: name.into(), answer };
    let error =
        ErrorText { message: "cannot connect to 192.168.50.14:22".into(), hints: vec!["is it on?".into()] };
    vec![
        answer("node1", Ok(vec![empty(), web(1, false, 2)])),
        answer("node2", Ok(vec![outdated])),
        answer("node3", Ok(vec![service("", None, vec![]), empty(), third])),
        answer("node4", Err(error)),
    ]
}

#[test]
fn services_of_all_nodes_are_one_table() {
    let nodes = nodes();
    let rows = service_rows(&nodes);
    insta::assert_snapshot!(services_human(&nodes, &rows, Paint(false), false));
    insta::assert_snapshot!(services_markdown(&nodes, &rows));
    assert!(services_human(&nodes, &rows, Paint(false), true).contains("missing frontends4 e"));
    let json = services_json("home", &nodes, &rows);
    assert_eq!((&json["format_version"], &json["agrees"]), (&1.into(), &false.into()));
    let web = json["services"].as_array().unwrap().iter().find(|s| s["name"] == "default/web").unwrap();
    assert_eq!(web["endpoints"][0]["connections"], 84, "42 by each of two addresses");
    assert_eq!(web["nodes"][1]["differs"], "was told something else of it");
    assert_eq!(web["nodes"][2]["missing"].as_array().unwrap().len(), 5);
    assert_eq!(web["nodes"][2]["frontends"][1]["kind"], "node-port");
    let absent = serde_json::json!([{ "node": "node2", "container": "db", "why": "node-down" }]);
    assert_eq!(web["nodes"][2]["absent"], absent);
    assert!(json["nodes"][3]["error"]["message"].as_str().unwrap().contains("cannot connect"));
}

#[test]
fn nodes_that_agree_are_good() {
    let of = |name: &str, node| ServicesOfNode {
        name: name.into(),
        answer: Ok(vec![empty(), web(node, true, 1)]),
    };
    let nodes = [of("node1", 1), of("node2", 2)];
    let rows = service_rows(&nodes);
    assert!(rows.iter().all(ServiceRow::agrees), "{rows:?}");
    assert_eq!(services_json("home", &nodes, &rows)["agrees"], true);
    assert!(rows[1].is_called("web") && rows[1].is_called("default/web") && !rows[1].is_called("eb"));
    let shown = services_human(&nodes, &rows, Paint(false), false);
    assert!(
        shown.contains("refused on every node") && shown.ends_with("2 services on 2 nodes.\n"),
        "{shown}"
    );
}

fn step(chain: &str, rule: &str, matched: bool, why: &str) -> TraceStep {
    TraceStep { chain: chain.into(), rule: rule.into(), matched, why: why.into() }
}

fn traced(outcome: TraceOutcome) -> TraceReport {
    TraceReport {
        service: Some("default/web".into()),
        outcome,
        remembered: None,
        steps: vec![
            step("proxy-prerouting-sources", "ip daddr @source-ranged4 drop", false, "this source may not"),
            step(
                "proxy-prerouting",
                "ip daddr @frontends4 goto proxy-service4",
                true,
                "an address of a service",
            ),
            step("proxy-service4", "goto proxy-pick4", true, "the endpoints of its policy"),
        ],
        warnings: Vec::new(),
    }
}

fn endpoints(masqueraded: &[bool]) -> TraceOutcome {
    let endpoint = |(number, masqueraded): (usize, &bool)| TraceEndpoint {
        address: format!("10.244.{}.5:8080", number + 1).parse().unwrap(),
        masqueraded: *masqueraded,
    };
    TraceOutcome::Translated { endpoints: masqueraded.iter().enumerate().map(endpoint).collect() }
}

fn question() -> TraceQuestion {
    TraceQuestion {
        source: "node1/c1".into(),
        source_node: Some("node1".into()),
        destination: "web".into(),
        packet: TracePacket {
            source: "10.244.1.9".parse().unwrap(),
            destination: "10.96.0.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
        },
    }
}

#[test]
fn a_trace_says_first_what_happens_and_then_why() {
    let mut altered = traced(TraceOutcome::Dropped);
    altered.warnings = vec!["not as homelab makes it: chain proxy-pick4".into()];
    let error = ErrorText { message: "it is away".into(), hints: vec!["is it on?".into()] };
    let nodes = [
        TracedNode { name: "node1".into(), answer: Ok(traced(endpoints(&[true, false, false]))) },
        TracedNode { name: "node2".into(), answer: Ok(altered) },
        TracedNode { name: "node3".into(), answer: Err(error) },
    ];
    insta::assert_snapshot!(trace_human(&question(), &nodes, Paint(false), false));
    insta::assert_snapshot!(trace_markdown(&question(), &nodes));
    let verbose = trace_human(&question(), &nodes, Paint(false), true);
    assert!(verbose.contains("proxy-prerouting-sources: does not match (this source may not)"), "{verbose}");
    let json = trace_json("home", &question(), &nodes);
    assert_eq!((&json["format_version"], &json["source"]["node"]), (&1.into(), &"node1".into()));
    assert_eq!(json["nodes"][0]["endpoints"][0]["masqueraded"], true);
    assert_eq!(
        (&json["nodes"][1]["outcome"], &json["nodes"][2]["error"]["message"]),
        (&"dropped".into(), &"it is away".into())
    );
}

#[test]
fn summaries() {
    let mut kept = traced(endpoints(&[false]));
    kept.remembered = Some("10.244.1.5:8080".parse().unwrap());
    let foreign = TraceReport { service: None, steps: vec![], ..traced(TraceOutcome::Untouched) };
    for (traced, words) in [
        (traced(endpoints(&[false; 3])), "default/web: one of 3 endpoints; the source stays"),
        (
            traced(endpoints(&[true])),
            "default/web: the endpoint 10.244.1.5:8080; the node's address becomes the source",
        ),
        (kept, "default/web: 10.244.1.5:8080, as this client had before; the source stays"),
        (traced(TraceOutcome::Refused), "default/web: refused: the endpoints of its policy"),
        (foreign, "no service has this address and port; the packet goes on as it is"),
    ] {
        let json = trace_json("home", &question(), &[TracedNode { name: "n".into(), answer: Ok(traced) }]);
        assert_eq!(json["nodes"][0]["summary"], words);
    }
}
