//! What goes wrong with the API and with nodes: traffic goes on, changes come afterwards, no address is given twice.
//!
//! That clocks differ cannot be had here, as nodes share the machine's. It is proved where time is an argument: of Leases
//! in `homelab_kubernetes::lease`, of tokens in `homelab_model::Token`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_tests::{Cluster, Place, SERVICES, To, until};
use serde_json::{Value, json};

use crate::stage::{Is, NODES, Stage, cluster_ip, load_balancer, report};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/homelab-system/leases/homelab-controller";
const ACCOUNTS: &str = "/api/v1/namespaces/homelab-system/serviceaccounts";

/// Waits until a node's agent is connected, or is not.
#[track_caller]
fn connected(cluster: &Cluster, node: &str, wanted: bool) {
    until(&format!("{node} is connected: {wanted}"), || {
        let fact = report(cluster, node).and_then(|report| report.kubernetes);
        fact.is_some_and(|fact| fact.connected == wanted)
    });
}

/// A Service of type LoadBalancer that answers; its cluster address and its own.
#[track_caller]
fn balanced(cluster: &Cluster, stage: &mut Stage, name: &str, pod: &str) -> (IpAddr, IpAddr) {
    let numbers = stage.numbers();
    stage.service(name, &load_balancer(numbers));
    stage.endpoints(name, &[Is::Ready(pod)]);
    let (address, _) = stage.announced(cluster, name);
    (numbers.cluster_ip, address)
}

/// All addresses that Services have; no two have the same.
#[track_caller]
fn given(stage: &Stage) -> BTreeMap<IpAddr, String> {
    let mut all = BTreeMap::new();
    let list = stage.kube.get(SERVICES).expect("a list");
    for service in list["items"].as_array().into_iter().flatten() {
        let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        for one in ingress.into_iter().flatten() {
            let address = one["ip"].as_str().and_then(|ip| ip.parse().ok()).expect("an address");
            let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let other = all.insert(address, name);
            assert!(other.is_none(), "{address} is given twice: {other:?}, {list}");
        }
    }
    all
}

/// The node whose controller is active.
#[track_caller]
fn leader(stage: &Stage) -> Option<String> {
    let lease = stage.kube.get(LEASE)?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    NODES.iter().find(|node| holder.starts_with(**node)).map(|node| (*node).to_owned())
}

/// The API server is killed: what was served is served. It comes back, and changes come.
pub(crate) fn api_server_killed_and_back(cluster: &mut Cluster, stage: &mut Stage) {
    let (vip, address) = balanced(cluster, stage, "killed", "c2");
    let (pod, client) = (stage.place("c1"), Place::host("client"));
    let inside =
        cluster.clients(&pod, &[To::new(vip, 80, &[]).check("tcp"), To::new(vip, 80, &[]).check("held")]);
    let outside = cluster.clients(&client, &[To::new(address, 80, &[]).check("tcp")]);
    stage.kube.kill();
    for node in NODES {
        connected(cluster, node, false);
    }
    // A plan says so, and works on nodes all the same.
    let plan = cluster.homelab(&["plan"]);
    assert!(plan.code == 1 && (plan.stdout.clone() + &plan.stderr).contains("192.168.50.1:6443"), "{plan:?}");
    stage.assert_answers(cluster, &client, &To::new(address, 80, &["c2"]));
    stage.kube.go_on(cluster);
    stage.endpoints("killed", &[Is::Ready("c2"), Is::Ready("c3")]);
    stage.carried_out(cluster);
    inside.none_failed("inside, while there was no API");
    outside.none_failed("from the LAN, while there was no API");
    stage.assert_answers(cluster, &pod, &To::new(vip, 80, &["c2", "c3"]));
    for node in NODES {
        connected(cluster, node, true);
    }
    stage.delete("killed");
}

/// An agent that starts while there is no API serves what the last one knew, also after the machine has booted.
pub(crate) fn agent_restarted_with_the_api_down(cluster: &mut Cluster, stage: &mut Stage) {
    let (vip, address) = balanced(cluster, stage, "kept", "c2");
    // Service and slice are told apart, and what is kept is written at most every two seconds.
    let file = "/var/lib/homelab/kubernetes/snapshot";
    let kept = format!("grep -q '{vip}.*{address}' {file} && grep -q kept-1 {file}");
    let snapshot = format!("timeout 60 sh -c \"until {kept}; do sleep 0.1; done\"");
    cluster.everywhere(&snapshot);
    stage.kube.kill();
    cluster.everywhere(
        "systemctl stop homelab-node && nft delete table inet homelab-proxy && systemctl start homelab-node",
    );
    let has =
        format!("nft list table inet homelab-proxy 2>/dev/null | grep -q '{vip} ' && echo yes || echo no");
    until("what was known is in the kernels again", || {
        cluster.everywhere(&has).iter().all(|said| said == "yes")
    });
    cluster.lb_until(&NODES, "it is announced", |owners| owners.contains_key(&address));
    stage.assert_answers(cluster, &stage.place("c1"), &To::new(vip, 80, &["c2"]));
    stage.assert_answers(cluster, &Place::host("client"), &To::new(address, 80, &["c2"]));
    stage.kube.go_on(cluster);
    stage.endpoints("kept", &[Is::Ready("c3")]);
    stage.carried_out(cluster);
    stage.assert_answers(cluster, &stage.place("c1"), &To::new(vip, 80, &["c3"]));
    stage.delete("kept");
}

/// One node does not reach the API: it serves on as the others were told then, they follow, and it catches up.
pub(crate) fn api_server_partitioned_from_one_node(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.service("parted", &cluster_ip(numbers));
    stage.endpoints("parted", &[Is::Ready("c2")]);
    stage.carried_out(cluster);
    stage.kube.part(cluster, "node3");
    stage.endpoints("parted", &[Is::Ready("c1")]);
    stage.kube.carried_out(cluster, &NODES[..2]);
    let vip = |names| To::new(numbers.cluster_ip, 80, names);
    stage.assert_answers(cluster, &stage.place("c2"), &vip(&["c1"]));
    stage.assert_answers(cluster, &stage.place("c3"), &vip(&["c2"]));
    // Another has the Lease by then, if it had it.
    let spec = load_balancer(stage.numbers());
    stage.service("meanwhile", &spec);
    stage.endpoints("meanwhile", &[Is::Ready("c1")]);
    let address = stage.allocated("meanwhile");
    stage.kube.heal(cluster);
    stage.carried_out(cluster);
    stage.assert_answers(cluster, &stage.place("c3"), &vip(&["c1"]));
    connected(cluster, "node3", true);
    cluster.lb_until(&NODES, "it is announced", |owners| owners.contains_key(&address));
    stage.assert_answers(cluster, &Place::host("client"), &To::new(address, 80, &["c1"]));
    given(stage);
    stage.delete("parted");
    stage.delete("meanwhile");
}

/// The API is restored from an older state of etcd: resource versions go back, objects of later times are gone, those that
/// were deleted since are there again. What it says is right; addresses are given once.
pub(crate) fn api_server_restored_from_an_older_state(cluster: &mut Cluster, stage: &mut Stage) {
    let (stays, _) = balanced(cluster, stage, "stays", "c2");
    let (_, comes_back) = balanced(cluster, stage, "comes-back", "c1");
    let saved = stage.kube.save();
    stage.kube.go_on(cluster);
    stage.carried_out(cluster);
    stage.delete("comes-back");
    stage.withdrawn(cluster, comes_back);
    stage.endpoints("stays", &[Is::Ready("c3")]);
    // It may well get the address that is free now.
    let (later_ip, later) = balanced(cluster, stage, "later", "c3");
    stage.assert_answers(cluster, &stage.place("c1"), &To::new(stays, 80, &["c3"]));
    stage.kube.restore(&saved);
    stage.kube.go_on(cluster);
    stage.carried_out(cluster);
    stage.assert_answers(cluster, &stage.place("c1"), &To::new(stays, 80, &["c2"]));
    cluster.assert_fails(&stage.place("c1"), &To::new(later_ip, 80, &[]), "timed out");
    assert_eq!(stage.ingress("comes-back"), Some(comes_back));
    cluster.lb_until(&NODES, "what the API says is announced", |owners| {
        owners.contains_key(&comes_back) && (later == comes_back || !owners.contains_key(&later))
    });
    stage.assert_answers(cluster, &Place::host("client"), &To::new(comes_back, 80, &["c1"]));
    balanced(cluster, stage, "afterwards", "c1");
    assert_eq!(given(stage).len(), 3);
    for name in ["stays", "comes-back", "afterwards"] {
        stage.delete(name);
    }
}

/// The account is made anew by somebody: the agent says that its token is refused, serves on, and `apply` mends it.
pub(crate) fn token_revoked(cluster: &mut Cluster, stage: &mut Stage) {
    let numbers = stage.numbers();
    stage.service("revoked", &cluster_ip(numbers));
    stage.endpoints("revoked", &[Is::Ready("c2")]);
    stage.carried_out(cluster);
    let account = stage.kube.get(&format!("{ACCOUNTS}/homelab-node2")).expect("the account");
    stage.kube.delete(&format!("{ACCOUNTS}/homelab-node2"));
    let metadata = json!({ "name": "homelab-node2", "labels": account["metadata"]["labels"] });
    stage.kube.put(ACCOUNTS, &json!({ "metadata": metadata, "automountServiceAccountToken": false }));
    // The real server remembers for some seconds whom it has let in.
    let ask = "curl --silent --insecure --max-time 10 --output /dev/null --write-out '%{http_code}' --header \
               \"Authorization: Bearer $(cat /var/lib/homelab/kubernetes/token)\" https://192.168.50.1:6443/api/v1/services";
    until("the token is refused", || cluster.sh("node2", ask) == "401");
    // Watches that are up are asked nothing.
    cluster.sh("node2", "systemctl restart homelab-node");
    until("the agent says so", || {
        let fact = report(cluster, "node2").and_then(|report| report.kubernetes);
        fact.is_some_and(|fact| fact.troubles.iter().any(|trouble| trouble.contains("the token is refused")))
    });
    let journal = cluster.sh("node2", "journalctl --unit=homelab-node --output=cat --no-pager");
    assert!(journal.contains("the token is refused: Unauthorized; run homelab apply"), "{journal}");
    stage.assert_answers(cluster, &stage.place("c2"), &To::new(numbers.cluster_ip, 80, &["c2"]));
    let plan = cluster.plan();
    assert!(!plan.is_empty());
    cluster.apply();
    cluster.assert_converged();
    stage.endpoints("revoked", &[Is::Ready("c3")]);
    stage.carried_out(cluster);
    connected(cluster, "node2", true);
    stage.assert_answers(cluster, &stage.place("c2"), &To::new(numbers.cluster_ip, 80, &["c3"]));
    stage.delete("revoked");
}

/// The agent of the active controller is stopped: the Lease is another's at once, not when it runs out.
pub(crate) fn controller_hands_over_in_order(cluster: &mut Cluster, stage: &mut Stage) {
    let (_, first) = balanced(cluster, stage, "handed", "c1");
    let active = leader(stage).expect("there is one");
    cluster.sh(&active, "systemctl stop homelab-node");
    assert_ne!(leader(stage).as_ref(), Some(&active), "it is given up");
    let spec = load_balancer(stage.numbers());
    stage.service("handed-2", &spec);
    assert_ne!(stage.allocated("handed-2"), first);
    cluster.sh(&active, "systemctl start homelab-node");
    connected(cluster, &active, true);
    given(stage);
    stage.delete("handed");
    stage.delete("handed-2");
}

/// The node of the active controller loses power: another gives addresses, and none that is given.
pub(crate) fn controller_fails_over(cluster: &mut Cluster, stage: &mut Stage) {
    let (_, first) = balanced(cluster, stage, "before", "c1");
    let active = leader(stage).expect("there is one");
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != active).collect();
    cluster.lab.power_cut(&[&active]).expect("the node is off");
    let names = ["during-1", "during-2", "during-3"];
    for name in names {
        let spec = load_balancer(stage.numbers());
        stage.service(name, &spec);
    }
    let all: BTreeSet<IpAddr> = names.iter().map(|name| stage.allocated(name)).chain([first]).collect();
    assert_eq!(all.len(), 4, "{all:?}");
    let now = leader(stage).expect("there is one");
    assert!(others.contains(&&*now), "{now}");
    cluster.lab.start(&active).expect("the node boots");
    connected(cluster, &active, true);
    cluster.lb_until(&NODES, "all are announced", |owners| all.iter().all(|a| owners.contains_key(a)));
    let spec = load_balancer(stage.numbers());
    stage.service("after", &spec);
    stage.allocated("after");
    assert_eq!(given(stage).len(), 5);
    for name in ["before", "after"].iter().chain(&names) {
        stage.delete(name);
    }
}
