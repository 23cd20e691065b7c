//! Where services come from, and what people are shown of them.

use homelab_tests::{Cluster, Place, Pod, SERVER, To};
use serde_json::{Value, json};

use crate::stage::{LB_LOCAL, Stage, address, service, with};

/// Services and EndpointSlices of Kubernetes, from a file.
pub(crate) fn manifests_are_services(cluster: &mut Cluster, stage: &mut Stage) {
    let pods = stage.pods.clone();
    stage.spoiled();
    let path = cluster.lab.dir().join("manifests.yaml");
    let slice = |pod: &Pod| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: \
             {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{{name: http, port: {SERVER}}}]\n\
             endpoints:\n- addresses: [{}]\n  nodeName: {}\n",
            pod.addresses[0], pod.node
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.7.7\n  ports: \
                   [{name: http, port: 80}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: wrong}\nspec:\n  \
                   ports: [{port: 99999}]\n";
    std::fs::write(&path, format!("{service}{}", slice(&pods[3]))).expect("written");
    cluster.file.set("manifests", json!(["manifests.yaml"]));
    let output = cluster.apply();
    // One that is wrong is named, and stops nobody.
    assert!(output.stderr.contains("manifests.yaml:"), "{}", output.stderr);
    let to = To::new(address("10.96.7.7"), 80, &["c3"]);
    for answer in cluster.ask(&Place::from(&pods[0]), "tcp", &to) {
        assert_eq!(answer.name, "c3", "{answer:?}");
    }
    std::fs::write(&path, format!("{service}{}", slice(&pods[2]))).expect("written");
    let plan = cluster.plan();
    assert!(plan.node("node1").entries().contains("update service default/web"), "{plan:?}");
    cluster.apply();
    for answer in cluster.ask(&Place::from(&pods[0]), "tcp", &to) {
        assert_eq!(answer.name, "c2", "{answer:?}");
    }
}

/// "[sig-network] Services should support named targetPorts that resolve to different ports on different endpoints": a slice
/// for each.
pub(crate) fn should_support_named_target_ports_that_differ(cluster: &mut Cluster, stage: &mut Stage) {
    let slice = |name: &str, port: u16| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": { "name": format!("named-{name}"), "labels": { "kubernetes.io/service-name": "named" } },
            "ports": [{ "name": "http", "port": port }],
            "endpoints": [{ "addresses": [stage.pod(name).address_like(address("::"))], "nodeName": stage.pod(name).node }],
        })
    };
    let spec = json!({
        "clusterIP": "fd00:10:96::77", "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
    });
    let service =
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "named" }, "spec": spec });
    let items = [service, slice("c2", SERVER), slice("c3", 7100)];
    stage.have_manifest(cluster, &items);
    let to = To::new(address("fd00:10:96::77"), 80, &["c2", "c3:7100"]).by(&["tcp"]);
    cluster.assert_served(&stage.place("c1"), &to, |_| stage.own("c1", to.address));
}

/// `status services` counts what pods did and names the node that differs; `trace` says what then happens.
pub(crate) fn status_and_trace(cluster: &mut Cluster, stage: &mut Stage) {
    let pods = stage.pods.clone();
    let more = |more: Value| with(json!({ "ipFamilyPolicy": "SingleStack" }), more);
    let local = json!({
        "type": "LoadBalancer", "loadBalancerIP": LB_LOCAL, "externalTrafficPolicy": "Local",
    });
    stage.have(
        cluster,
        &[
            // An address that no other scenario made connections to.
            service("web", &["c2", "c3"], more(json!({ "clusterIP": "10.96.9.9" }))),
            service("sticky", &["c2", "c3"], more(json!({ "sessionAffinity": "ClientIP" }))),
            service("empty", &[], more(json!({}))),
            service("lb-local", &["c2"], more(local)),
        ],
    );
    let json_of = |output: &homelab_lab::Output| -> Value {
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    };

    // Every connection of a pod is counted once, on its own node.
    let vip = cluster.cluster_ips("web")[0];
    let to = To::new(vip, 80, &["c2", "c3"]);
    let asked = cluster.ask(&Place::from(&pods[0]), "udp", &to);
    assert!(asked.iter().all(|answer| answer.error.is_empty()), "{asked:?}");
    let status = json_of(&cluster.homelab_ok(&["status", "services", "web", "--format", "json"]));
    assert_eq!((&status["agrees"], &status["services"][0]["ready"]), (&true.into(), &2.into()), "{status}");
    let endpoints = status["services"][0]["endpoints"].as_array().expect("endpoints").clone();
    let sum: u64 = endpoints.iter().filter_map(|e| e["connections"].as_u64()).sum();
    // Two of them may have had the same port.
    let all = asked.len() as u64;
    assert!(endpoints.len() == 2 && (all - 1..=all).contains(&sum), "{sum} of {all}: {status}");

    let trace = |cluster: &Cluster, words: &[&str]| {
        let answer = json_of(&cluster.homelab_ok(&[&["trace", "--format", "json"], words].concat()));
        answer["nodes"].as_array().expect("nodes").clone()
    };
    let from_pod = trace(cluster, &["node1/c1", "web:tcp"]);
    assert_eq!((from_pod.len(), &from_pod[0]["name"]), (1, &"node1".into()), "{from_pod:?}");
    assert_eq!((&from_pod[0]["outcome"], &from_pod[0]["warnings"]), (&"translated".into(), &json!([])));
    let summary = "default/web: one of 2 endpoints; the source stays";
    assert_eq!(from_pod[0]["summary"], summary);
    let from_node = trace(cluster, &["node1", "web:tcp"]);
    let summary = "default/web: one of 2 endpoints; the node's address becomes the source";
    assert_eq!(from_node[0]["summary"], summary);
    assert_eq!(trace(cluster, &["node2/c2", "empty:tcp"])[0]["outcome"], "refused");
    assert_eq!(trace(cluster, &["node2/c2", "1.1.1.1:80"])[0]["outcome"], "untouched");
    // A client of the LAN: which node it meets is not known, and only one has an endpoint.
    let client = cluster.lab.address("client").expect("address").to_string();
    let outcomes: Vec<Value> = trace(cluster, &[client.as_str(), &format!("{LB_LOCAL}:80")])
        .iter()
        .map(|node| node["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["dropped", "translated", "dropped"]);

    // The client that the kernel remembers has one endpoint, and it is the one that answers.
    let sticky = cluster.cluster_ips("sticky")[0];
    let check = || To::new(sticky, 80, &[]).check("tcp");
    let answer = cluster.probe(&Place::from(&pods[0]), &[check()]).remove(0);
    let kept = trace(cluster, &["node1/c1", "sticky:tcp"]).remove(0);
    let pod = pods.iter().find(|pod| pod.name == answer.name).expect("the pod");
    let endpoint = std::net::SocketAddr::new(pod.address_like(sticky), SERVER).to_string();
    assert_eq!((&kept["remembered"], &kept["endpoints"][0]["address"]), (&json!(endpoint), &json!(endpoint)));

    // What is traced is what the kernel holds, and who differs is named, while nobody mends it.
    cluster.sh("node1", "systemctl stop homelab-node && nft flush set inet homelab-proxy plain-frontends4");
    let output = cluster.homelab(&["status", "services", "--format", "json"]);
    let status = json_of(&output);
    assert_eq!((output.code, &status["agrees"]), (1, &false.into()), "{status}");
    let services = status["services"].as_array().expect("services");
    let web = services.iter().find(|s| s["name"] == "default/web").expect("the service");
    let differing: Vec<bool> =
        web["nodes"].as_array().expect("nodes").iter().map(|n| !n["differs"].is_null()).collect();
    assert_eq!(differing, [true, false, false], "{web}");
    assert_eq!(trace(cluster, &["node1/c1", "web:tcp"])[0]["outcome"], "refused");
    let check = To::new(vip, 80, &[]).check("tcp").fails();
    let answer = cluster.probe(&Place::from(&pods[0]), &[check]).remove(0);
    assert!(answer.error.contains("refused"), "{answer:?}");
    cluster.sh("node1", "systemctl start homelab-node");
    let start = std::time::Instant::now();
    while !cluster.homelab(&["status", "services"]).success() {
        assert!(start.elapsed().as_secs() < 60, "node1 is not mended");
    }
}
