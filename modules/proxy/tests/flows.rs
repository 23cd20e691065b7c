//! Packet flows after kube-proxy's own tests, carried out by the evaluator. `homelab-linux` has the same ones carried
//! out by a kernel.

mod cases;

use homelab_proxy::compile;
use homelab_proxy::element::Frontend;
use homelab_proxy::evaluate::{Machine, Packet};

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
