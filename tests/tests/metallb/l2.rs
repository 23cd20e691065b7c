//! `l2.go`, "L2", and `speaker_failover.go`.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use homelab_model::{LbUnfit, ours};
use homelab_tests::{Cluster, Owners, Place, To};
use serde_json::json;

use crate::case::{Case, Owner, Slot, Step, cases, run};
use crate::stage::{LONG, NODES, Problems, Stage, service};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        should_work_for_external_traffic_policy_cluster,
        should_work_for_external_traffic_policy_local
    ];
    run(cluster, stage, CASES)
}

/// "should work for ExternalTrafficPolicy=Cluster".
pub(crate) fn should_work_for_external_traffic_policy_cluster(slot: &Slot) -> Vec<Step> {
    vec![slot.step(&[json!({})]).owner(slot.address(0), slot.natural())]
}

/// "should work for ExternalTrafficPolicy=Local": the endpoint's node has it, and nobody without endpoints.
pub(crate) fn should_work_for_external_traffic_policy_local(slot: &Slot) -> Vec<Step> {
    let step = |nodes: &[&str]| {
        let fields = json!({ "externalTrafficPolicy": "Local", "endpoints": Stage::endpoints(nodes) });
        slot.step(&[json!({})]).services(vec![slot.service(0, fields)])
    };
    let on = |node: &str| step(&[node]).owner(slot.address(0), Owner::Is(node.to_owned()));
    let nobody = step(&[]).on(slot.address(0), Owner::Nobody(LbUnfit::NoLocalEndpoint), &[]);
    NODES.map(on).into_iter().chain([nobody]).collect()
}

/// All endpoints answer the client on this port of both addresses.
fn served(cluster: &Cluster, stage: &Stage, addresses: [IpAddr; 2], port: u16, kind: &'static str) {
    let names: Vec<&str> = stage.pods.iter().map(|pod| pod.name.as_str()).collect();
    // Policy Cluster: the owner's address, towards its own endpoint or another node's.
    let any: Vec<IpAddr> = NODES.iter().flat_map(|node| cluster.addresses_of(node)).collect();
    for address in addresses {
        let to = To::new(address, port, &names);
        cluster.assert_served(&Place::host("client"), &to.by(&[kind]), |_| any.clone());
    }
}

/// "Should work with mixed protocol services": TCP and UDP on one port of one service.
pub(crate) fn should_work_with_mixed_protocol_services(cluster: &mut Cluster, stage: &mut Stage) {
    let mixed = json!({ "metallb.io/loadBalancerIPs": "192.168.50.201,fd00:50::201" });
    let mut mixed = service("mixed", "TCP", 80, &mixed);
    let mut udp = mixed["ports"][0].clone();
    (udp["protocol"], udp["name"], mixed["ports"][0]["name"]) = (json!("UDP"), json!("udp"), json!("tcp"));
    mixed["ports"].as_array_mut().expect("ports").push(udp);
    stage.balanced(cluster, &[mixed], &[json!({})]);
    let addresses = ["192.168.50.201", "fd00:50::201"].map(|address| address.parse().expect("an address"));
    served(cluster, stage, addresses, 80, "tcp");
    served(cluster, stage, addresses, 80, "udp");
}

/// "different services sharing the same ip should advertise from the same node", IPv4 and IPv6.
pub(crate) fn different_services_sharing_the_same_ip_should_advertise_from_the_same_node(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    let shared = json!({
        "metallb.io/allow-shared-ip": "key", "metallb.io/loadBalancerIPs": "192.168.50.202,fd00:50::202",
    });
    let services = [service("first", "TCP", 81, &shared), service("second", "TCP", 82, &shared)];
    stage.balanced(cluster, &services, &[json!({})]);
    let addresses = ["192.168.50.202", "fd00:50::202"].map(|address| address.parse().expect("an address"));
    let owners = cluster.lb_settled(&NODES);
    for address in addresses {
        let report = cluster.lb("node1").expect("a report");
        let found = report.addresses.iter().find(|a| a.address == address).expect("the address").clone();
        assert_eq!(found.services, ["default/first", "default/second"]);
        stage.announced(cluster, address, &owners[&address].clone());
    }
    served(cluster, stage, addresses, 81, "tcp");
    served(cluster, stage, addresses, 82, "tcp");
}

/// Something happens to the owner of `lb`'s IPv4 address: others have both addresses, and it has its own again when it is
/// over.
fn leaves_and_comes_back(
    cluster: &mut Cluster,
    stage: &mut Stage,
    others_alone: bool,
    happens: &mut dyn FnMut(&mut Cluster, &Stage, &str),
    over: &mut dyn FnMut(&mut Cluster, &Stage, &str),
) {
    let addresses = stage.balanced(cluster, &[], &[json!({})]);
    let before = cluster.lb_settled(&NODES);
    let victim = before[&addresses[0]].clone();
    let rest: Vec<&str> = NODES.into_iter().filter(|node| !others_alone || *node != victim).collect();
    happens(cluster, stage, &victim);
    let gone = |owners: &Owners| owners.values().all(|owner| *owner != victim);
    let after = cluster.lb_until(&rest, "it has none", gone);
    for address in addresses {
        stage.answers(address, &after[&address]);
    }
    served(cluster, stage, addresses, 80, "tcp");
    over(cluster, stage, &victim);
    cluster.lb_until(&NODES, "all is as it was", |owners| *owners == before);
    for address in addresses {
        stage.announced(cluster, address, &before[&address].clone());
    }
}

/// "It should be work when adding NodeExcludeBalancers label to a node".
pub(crate) fn it_should_be_work_when_adding_node_exclude_balancers_label_to_a_node(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    leaves_and_comes_back(
        cluster,
        stage,
        false,
        &mut |cluster, stage, node| stage.exclude(cluster, node, true),
        &mut |cluster, stage, node| stage.exclude(cluster, node, false),
    );
}

/// "should move L2 advertisement when the announcing node stops running a ready speaker".
pub(crate) fn should_move_l2_advertisement_when_the_announcing_node_stops_running_a_ready_speaker(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    leaves_and_comes_back(
        cluster,
        stage,
        true,
        &mut |cluster, _, node| drop(cluster.sh(node, "systemctl stop homelab-node")),
        &mut |cluster, _, node| drop(cluster.sh(node, "systemctl start homelab-node")),
    );
}

/// "should not be announced from a node with a NetworkUnavailable condition". Ours is that the node's services are not in
/// place: here, because another program holds their table in nftables and keeps the agent from it (`flags owner`).
pub(crate) fn should_not_be_announced_from_a_node_with_a_network_unavailable_condition(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    let holder = RefCell::new(None);
    let table = ours::PROXY_TABLE;
    leaves_and_comes_back(
        cluster,
        stage,
        false,
        &mut |cluster, _, node| {
            let mut command = cluster.lab.command_in(node).expect("the node");
            let mut child = command
                .args(["nft", "-i"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("nft starts");
            let mut pipe = child.stdin.take().expect("a pipe");
            writeln!(pipe, "delete table {table}; add table {table} {{ flags owner; }}").expect("nft reads");
            let start = Instant::now();
            loop {
                let report = cluster.lb(node).expect("a report");
                let unready = (node.to_owned(), LbUnfit::NotReady);
                if report.addresses.iter().all(|address| address.unfit.contains(&unready)) {
                    break;
                }
                assert!(start.elapsed() < LONG, "{report:#?}");
                std::thread::sleep(Duration::from_millis(50));
            }
            *holder.borrow_mut() = Some((child, pipe));
        },
        &mut |_, _, _| {
            let (mut child, pipe) = holder.take().expect("it holds the table");
            drop(pipe);
            child.wait().expect("nft ends");
        },
    );
}
