//! What homelab makes in the API and follows there, and Services inside the cluster.

use homelab_model::Token;
use homelab_tests::{Cluster, Place, To, until};
use serde_json::Value;

use crate::stage::{Is, NODES, RANGES, Stage, cluster_ip, report};

/// Accounts, roles and tokens are there, the plan is empty, agents are connected; pods have addresses of the ranges that
/// the Nodes have; the Nodes say that their network is there.
pub(crate) fn homelab_makes_what_it_needs_in_the_api(cluster: &mut Cluster, stage: &mut Stage) {
    cluster.assert_converged();
    for (node, range) in NODES.iter().zip(RANGES) {
        let fact = report(cluster, node).and_then(|report| report.kubernetes).expect("it is told of the API");
        assert!(
            fact.connected && fact.known && fact.nodes == 3 && fact.troubles.is_empty(),
            "{node}: {fact:?}"
        );
        let range: ipnet::IpNet = range.parse().expect("a range");
        for pod in stage.pods.iter().filter(|pod| pod.node == **node) {
            assert!(range.contains(&pod.addresses[0]), "{pod:?}");
        }
        let text = cluster.sh(node, "cd /var/lib/homelab/kubernetes; stat -c '%a %u' token; cat token");
        let (mode, token) = text.split_once('\n').expect("two lines");
        assert_eq!(mode, "600 0", "{node}");
        let token = Token::parse(token).expect("a token");
        assert_eq!(token.account, format!("homelab-{node}"));
        let network = |node: Value| {
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|one| one["type"] == "NetworkUnavailable")
        };
        until("its Node says that the network is there", || {
            let node = stage.kube.get(&format!("/api/v1/nodes/{node}")).expect("the Node");
            network(node).is_some_and(|condition| condition["status"] == "False")
        });
    }
    cluster.assert_mesh(&stage.pods);
}

/// "[sig-network] Services should serve a basic endpoint from pods": endpoints come, change, and go.
pub(crate) fn should_serve_a_basic_endpoint_from_pods(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.service("basic", &cluster_ip(numbers));
    let steps: [(&[Is<'_>], &[&str]); 4] = [
        (&[Is::Ready("c2")], &["c2"]),
        (&[Is::Ready("c1"), Is::Ready("c3")], &["c1", "c3"]),
        (&[Is::Unready("c1"), Is::Ready("c3")], &["c3"]),
        (&[], &[]),
    ];
    for (endpoints, names) in steps {
        stage.endpoints("basic", endpoints);
        stage.carried_out(cluster);
        let to = To::new(numbers.cluster_ip, 80, names);
        for from in [stage.place("c1"), stage.place("c3"), Place::host("node2")] {
            if names.is_empty() {
                cluster.assert_fails(&from, &to, "refused");
            } else {
                stage.assert_answers(cluster, &from, &to);
            }
        }
    }
    stage.delete("basic");
    stage.carried_out(cluster);
    cluster.assert_fails(&stage.place("c1"), &To::new(numbers.cluster_ip, 80, &[]), "timed out");
}
