//! Pods are replaced, one after the other, while clients ask all the time.

use homelab_tests::{Clients, Cluster, Place, Pod, SERVER, To};
use serde_json::{Value, json};

use crate::stage::{LB_CLUSTER, LB_LOCAL, Stage, address};

/// The service and what the EndpointSlice controller would write of its pods: some terminating, some ready.
fn objects(name: &str, spec: Value, terminating: &[&Pod], ready: &[&Pod]) -> [Value; 2] {
    let endpoint = |pod: &Pod, terminating: bool| {
        let address = pod.addresses.iter().find(|a| a.is_ipv4()).expect("IPv4").to_string();
        json!({
            "addresses": [address], "nodeName": pod.node,
            "conditions": { "ready": !terminating, "serving": true, "terminating": terminating },
        })
    };
    let all: Vec<Value> = terminating
        .iter()
        .map(|pod| endpoint(pod, true))
        .chain(ready.iter().map(|pod| endpoint(pod, false)))
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("{name}-1"), "labels": { "kubernetes.io/service-name": name } },
        "ports": [{ "name": "http", "port": SERVER }], "endpoints": all,
    });
    [json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec }), slice]
}

/// "[sig-network] LoadBalancers should not have connectivity disruption during rolling update with
/// externalTrafficPolicy=Cluster", "[...] with externalTrafficPolicy=Local": no request fails, of the LAN's client nor of
/// a pod, and no request meets a pod that has gone.
pub(crate) fn should_not_have_connectivity_disruption_during_rolling_update(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    let spec = |ip: &str, policy: &str| {
        json!({
            "type": "LoadBalancer", "loadBalancerIP": ip, "externalTrafficPolicy": policy,
            "clusterIP": format!("10.96.8.{}", ip.rsplit('.').next().unwrap_or_default()),
            "ports": [{ "name": "http", "port": 80 }],
        })
    };
    let roll = |terminating: &[&Pod], ready: &[&Pod]| -> Vec<Value> {
        [("roll", LB_CLUSTER, "Cluster"), ("roll-local", LB_LOCAL, "Local")]
            .into_iter()
            .flat_map(|(name, ip, policy)| objects(name, spec(ip, policy), terminating, ready))
            .collect()
    };
    cluster.via(LB_CLUSTER, "node1");
    cluster.via(LB_LOCAL, "node2");
    let mut pods = vec![cluster.pod("node2", "roll1")];
    stage.have_manifest(cluster, &roll(&[], &[&pods[0]]));
    let to = |text: &str| To::new(address(text), 80, &[]).check("tcp");
    let mut clients: Vec<Clients> = vec![
        cluster.clients(&Place::host("client"), &[to(LB_CLUSTER), to(LB_LOCAL)]),
        cluster.clients(&stage.place("c1"), &[to("10.96.8.200"), to(LB_LOCAL)]),
    ];
    for round in 2..=3 {
        let old = pods.remove(0);
        let new = cluster.pod("node2", &format!("roll{round}"));
        stage.have_manifest(cluster, &roll(&[], &[&old, &new]));
        clients.iter_mut().for_each(Clients::go_on);
        stage.have_manifest(cluster, &roll(&[&old], &[&new]));
        for clients in &mut clients {
            clients.until("the new pod answers", |one| one.last == new.name);
        }
        stage.have_manifest(cluster, &roll(&[], &[&new]));
        cluster.remove_pod(&old);
        clients.iter_mut().for_each(Clients::go_on);
        pods.push(new);
    }
    let asked: u64 = clients.into_iter().map(|clients| clients.none_failed("a rolling update")).sum();
    homelab_tests::measured(format_args!("{asked} requests during two rolling updates, none failed"));
    cluster.remove_pod(&pods[0]);
}
