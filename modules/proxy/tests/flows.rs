//! Packet flows after kube-proxy's own tests, carried out by the evaluator. `homelab-linux` has the same ones carried
//! out by a kernel.

mod cases;

use homelab_proxy::compile;
use homelab_proxy::element::Frontend;
use homelab_proxy::evaluate::{Machine, Outcome, Packet};

#[test]
fn packets_go_where_kube_proxy_sends_them() {
    let cases = cases::cases();
    let mut wrong = Vec::new();
    let mut flows = 0;
    for (file, case) in &cases {
        let (elements, conflicts) = compile(&case.services, &case.node);
        assert_eq!(conflicts, [], "{file}");
        let machine = Machine::new(&case.node, &elements);
        for flow in &case.flows {
            flows += 1;
            let to = Frontend { address: flow.to, protocol: flow.protocol, port: flow.port };
            let trace = machine.run(Packet { source: flow.from, to });
            if trace.outcome != flow.expect.outcome() {
                let steps: Vec<String> =
                    trace.steps.iter().map(|s| format!("    {}: {}", s.chain, s.rule)).collect();
                wrong.push(format!(
                    "{file}: {}\n  expected {:?}\n  got      {:?}\n{}",
                    flow.name,
                    flow.expect.outcome(),
                    trace.outcome,
                    steps.join("\n")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {flows} flows are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(flows >= 100 && cases.len() >= 10, "{flows} flows in {} files: cases are missing", cases.len());
}

/// A translated packet of a service with session affinity is remembered, whatever its family; and a remembered client
/// has one endpoint.
#[test]
fn session_affinity_remembers_clients_of_both_families() {
    let case = cases::cases().remove("session-affinity").expect("the file");
    let (elements, _) = compile(&case.services, &case.node);
    let mut families = [0, 0];
    for flow in &case.flows {
        let v4 = flow.to.is_ipv4();
        let to = Frontend { address: flow.to, protocol: flow.protocol, port: flow.port };
        let packet = Packet { source: flow.from, to };
        let mut machine = Machine::new(&case.node, &elements);
        let Outcome::Translated(endpoints) = flow.expect.outcome() else {
            assert!(machine.run(packet).steps.iter().all(|s| !s.chain.contains("remember")), "{}", flow.name);
            continue;
        };
        let chain = format!("proxy-remember{}", if v4 { 4 } else { 6 });
        let rules: Vec<String> =
            machine.run(packet).steps.into_iter().filter(|s| s.chain == chain).map(|s| s.rule).collect();
        let ip = if v4 { "ip" } else { "ip6" };
        let seconds = if flow.name.starts_with("policy Local") { 10800 } else { 600 };
        let update =
            format!("{ip} saddr timeout {seconds}s : {ip} daddr . {} dport }}", flow.protocol.as_str());
        assert!(matches!(&rules[..], [only] if only.ends_with(&update)), "{}: {rules:#?}", flow.name);
        families[usize::from(v4)] += 1;
        let (last, masqueraded) = endpoints.into_iter().next_back().expect("an endpoint");
        machine.stick(to, flow.from, last);
        let stuck = Outcome::Translated([(last, masqueraded)].into());
        assert_eq!(machine.run(packet).outcome, stuck, "{}", flow.name);
    }
    assert_eq!(families, [5, 5]);
}
