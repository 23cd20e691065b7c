//! Services, with real pods, real nodes and a client on the LAN.

use std::collections::BTreeSet;
use std::net::IpAddr;

use homelab_tests::{Answer, Check, Cluster, Place, Pod, Server, run};
use serde_json::{Value, json};

fn main() {
    run(
        "services",
        &[
            ("services_of_every_kind", services_of_every_kind),
            ("a_stale_udp_connection_ends_with_its_endpoint_k8s_48370", a_stale_udp_connection_ends),
            ("an_agent_that_starts_again_leaves_services_alone", an_agent_that_starts_again),
            ("manifests_are_services", manifests_are_services),
            ("what_a_hand_does_to_services_is_seen_and_undone", what_a_hand_does),
            ("status_and_trace", status_and_trace),
        ],
    )
}

/// Where all servers of pods listen.
const SERVER: u16 = 7000;
const LB_CLUSTER: &str = "192.168.50.200";
const LB_LOCAL: &str = "192.168.50.201";
const LB_RANGED: &str = "192.168.50.202";
const EXTERNAL: &str = "192.168.50.150";

/// Two containers on the first node, one on each other one.
fn containers(cluster: &mut Cluster) -> Vec<Pod> {
    [("node1", "c1"), ("node1", "c1b"), ("node2", "c2"), ("node3", "c3")]
        .map(|(node, name)| cluster.container(node, name))
        .into()
}

fn in_container(pod: &str) -> Value {
    let node = format!("node{}", &pod[1..2]);
    json!({ "node": node, "container": pod })
}

/// A service with a TCP and a UDP port 80, and endpoints in these containers.
fn service(name: &str, pods: &[&str], more: Value) -> Value {
    let mut service = json!({
        "name": name,
        "ipFamilyPolicy": "RequireDualStack",
        "ports": [
            { "name": "tcp", "port": 80, "targetPort": SERVER },
            { "name": "udp", "protocol": "UDP", "port": 80, "targetPort": SERVER },
        ],
        "endpoints": pods.iter().map(|pod| in_container(pod)).collect::<Vec<_>>(),
    });
    for (key, value) in more.as_object().expect("a map") {
        service[key] = value.clone();
    }
    service
}

fn node_ports(number: u16) -> Value {
    json!([
        { "name": "tcp", "port": 80, "targetPort": SERVER, "nodePort": number },
        { "name": "udp", "protocol": "UDP", "port": 80, "targetPort": SERVER, "nodePort": number },
    ])
}

/// Where a service's packets go.
struct To<'a> {
    address: IpAddr,
    port: u16,
    /// Who may answer.
    pods: &'a [&'a str],
}

/// Asks a place often enough that every endpoint has had its chance; gives what answered.
fn ask(cluster: &Cluster, from: &Place, kind: &'static str, to: &To<'_>) -> Vec<Answer> {
    let server = Server { name: String::new(), address: to.address };
    let checks = vec![Check::new(kind, &server).port(to.port); 12];
    cluster.probe(from, &checks)
}

/// All pods of the service answer, and nobody else; each sees one of `sources`.
#[track_caller]
fn assert_served(cluster: &Cluster, from: &Place, to: &To<'_>, sources: impl Fn(&str) -> Vec<IpAddr>) {
    for kind in ["tcp", "udp"] {
        let what = format!("{} -> {}:{} {kind}", from.name, to.address, to.port);
        let mut seen = BTreeSet::new();
        // By chance one of three is left out in one of a hundred tries.
        for _ in 0..5 {
            for answer in ask(cluster, from, kind, to) {
                assert_eq!(answer.error, "", "{what}");
                assert!(to.pods.contains(&answer.name.as_str()), "{what}: {answer:?}");
                let peer: IpAddr = answer.peer.parse().expect("an address");
                assert!(sources(&answer.name).contains(&peer), "{what}: {answer:?}");
                seen.insert(answer.name);
            }
            if seen.len() == to.pods.len() {
                break;
            }
        }
        assert_eq!(seen.len(), to.pods.len(), "{what}: {seen:?} of {:?}", to.pods);
    }
}

#[track_caller]
fn assert_fails(cluster: &Cluster, from: &Place, address: IpAddr, port: u16, how: &str) {
    for kind in ["tcp", "udp"] {
        let check = Check::new(kind, &Server { name: String::new(), address }).port(port).fails();
        let ask = || cluster.probe(from, std::slice::from_ref(&check)).remove(0);
        let mut answer = ask();
        // The kernel sends few ICMP errors to one host in a second.
        for _ in 0..8 {
            if kind == "udp" && how == "refused" && answer.error == "timed out" {
                std::thread::sleep(std::time::Duration::from_secs(1));
                answer = ask();
            }
        }
        {
            // A node's own datagrams are refused where they are sent.
            let there = how == "refused" && from.netns.is_none() && answer.error.contains("not permitted");
            assert!(
                there || answer.error.contains(how),
                "{} -> {address}:{port} {kind}: {answer:?}",
                from.name
            );
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The services as the nodes were told them.
fn told(cluster: &Cluster) -> Vec<homelab_model::service::Service> {
    cluster.spec("node1").services
}

fn cluster_ips(cluster: &Cluster, name: &str) -> Vec<IpAddr> {
    let services = told(cluster);
    services.iter().find(|s| s.name == name).expect("the service").cluster_ips.clone()
}

/// Addresses that a node's masquerade can have towards a pod: the bridge's, the tunnel's, its own.
fn of_node(cluster: &Cluster, node: &str) -> Vec<IpAddr> {
    let text = cluster.sh(node, "ip -json address show");
    let links: Value = serde_json::from_str(&text).expect("JSON");
    let all = links
        .as_array()
        .expect("links")
        .iter()
        .flat_map(|l| l["addr_info"].as_array().cloned().unwrap_or_default());
    all.filter_map(|a| a["local"].as_str()?.parse().ok()).collect()
}

fn services_of_every_kind(cluster: &mut Cluster) {
    cluster.file.dual_stack(&cluster.lab);
    cluster.apply();
    let pods = containers(cluster);
    let pod = |name: &str| pods.iter().find(|p| p.name == name).expect("the pod");
    cluster.file.set(
        "services",
        json!([
            service("web", &["c1", "c2", "c3"], json!({})),
            service("itself", &["c1"], json!({})),
            service("empty", &[], json!({})),
            service("local", &["c1", "c2"], json!({ "internalTrafficPolicy": "Local" })),
            service("ports", &["c1", "c2"], json!({ "type": "NodePort", "ports": node_ports(30080) })),
            service("ports-local", &["c2"], json!({
                "type": "NodePort", "externalTrafficPolicy": "Local", "ports": node_ports(30081),
            })),
            service("lb", &["c3"], json!({ "type": "LoadBalancer", "loadBalancerIP": LB_CLUSTER })),
            service("lb-local", &["c2"], json!({
                "type": "LoadBalancer", "loadBalancerIP": LB_LOCAL, "externalTrafficPolicy": "Local",
            })),
            service("lb-ranged", &["c2"], json!({
                "type": "LoadBalancer", "loadBalancerIP": LB_RANGED, "loadBalancerSourceRanges": ["192.168.50.0/30"],
            })),
            service("external", &["c3"], json!({ "externalIPs": [EXTERNAL] })),
            service("sticky", &["c1", "c2", "c3"], json!({ "sessionAffinity": "ClientIP" })),
        ]),
    );
    cluster.apply();
    let from_pod = |name: &str| Place::from(pod(name));
    let own = |name: &str, like: IpAddr| vec![pod(name).address_like(like)];

    // Pods of the same and of other nodes, by both families, under their own addresses; but not to themselves.
    for vip in cluster_ips(cluster, "web") {
        let to = To { address: vip, port: 80, pods: &["c1", "c2", "c3"] };
        for from in ["c1", "c1b", "c2"] {
            let node = &pod(from).node;
            assert_served(cluster, &from_pod(from), &to, |answering| match answering == from {
                true => of_node(cluster, node),
                false => own(from, vip),
            });
        }
        // A node itself: it has its tunnel's or bridge's address towards pods.
        for node in ["node1", "node3"] {
            assert_served(cluster, &Place::host(node), &to, |_| of_node(cluster, node));
        }
        assert_fails(cluster, &from_pod("c1"), vip, 81, "refused");
    }
    for vip in cluster_ips(cluster, "itself") {
        let to = To { address: vip, port: 80, pods: &["c1"] };
        assert_served(cluster, &from_pod("c1"), &to, |_| of_node(cluster, "node1"));
        assert_served(cluster, &from_pod("c1b"), &to, |_| own("c1b", vip));
    }
    for vip in cluster_ips(cluster, "empty") {
        assert_fails(cluster, &from_pod("c1"), vip, 80, "refused");
        assert_fails(cluster, &Place::host("node2"), vip, 80, "refused");
    }
    // A service address that no service has.
    assert_fails(cluster, &from_pod("c2"), address("10.111.0.1"), 80, "timed out");
    assert_fails(cluster, &from_pod("c2"), address("fd00:10:96::ffff"), 80, "timed out");
    for vip in cluster_ips(cluster, "local") {
        assert_served(cluster, &from_pod("c1b"), &To { address: vip, port: 80, pods: &["c1"] }, |_| {
            own("c1b", vip)
        });
        assert_served(cluster, &from_pod("c2"), &To { address: vip, port: 80, pods: &["c2"] }, |_| {
            of_node(cluster, "node2")
        });
        assert_fails(cluster, &from_pod("c3"), vip, 80, "timed out");
    }
    node_ports_of_all_nodes(cluster, &pods);
    load_balancers(cluster, &pods);

    // Affinity: one endpoint for each client, whatever happens to others.
    for vip in cluster_ips(cluster, "sticky") {
        for from in [from_pod("c1b"), Place::host("node3")] {
            let to = To { address: vip, port: 80, pods: &[] };
            // Connections that begin at the same moment may each find nothing remembered.
            let check = Check::new("tcp", &Server { name: String::new(), address: vip }).port(80);
            let first = cluster.probe(&from, &[check]).remove(0).name;
            let mut names: BTreeSet<String> =
                ask(cluster, &from, "tcp", &to).into_iter().map(|a| a.name).collect();
            names.insert(first);
            assert_eq!(names.len(), 1, "{} -> {vip}: {names:?}", from.name);
        }
    }
    cluster.assert_converged();
}

fn node_ports_of_all_nodes(cluster: &Cluster, pods: &[Pod]) {
    let client = Place::host("client");
    for node in cluster.nodes() {
        for like in [true, false] {
            let address: IpAddr = if like {
                cluster.lab.address(&node).expect("address").into()
            } else {
                cluster.lab.address6(&node).expect("address").into()
            };
            // Policy Cluster: from anywhere to any endpoint, under the node's name.
            let to = To { address, port: 30080, pods: &["c1", "c2"] };
            assert_served(cluster, &client, &to, |_| of_node(cluster, &node));
            // Policy Local: only where an endpoint is, and the client's address stays.
            if node == "node2" {
                let own: IpAddr = if like {
                    cluster.lab.address("client").expect("address").into()
                } else {
                    cluster.lab.address6("client").expect("address").into()
                };
                assert_served(cluster, &client, &To { address, port: 30081, pods: &["c2"] }, |_| vec![own]);
            } else {
                assert_fails(cluster, &client, address, 30081, "timed out");
            }
            // Pods are short-circuited to any endpoint.
            let from = &pods[1];
            let mut sources = of_node(cluster, "node1");
            sources.push(from.address_like(address));
            assert_served(
                cluster,
                &Place::from(from),
                &To { address, port: 30080, pods: &["c1", "c2"] },
                |_| {
                    let mut all = sources.clone();
                    all.extend(of_node(cluster, &node));
                    all
                },
            );
        }
    }
    // Not on loopback.
    let check =
        Check::new("tcp", &Server { name: String::new(), address: address("127.0.0.1") }).port(30080).fails();
    let answers = cluster.probe(&Place::host("node1"), &[check]);
    assert!(answers[0].error.contains("refused"), "{answers:?}");
}

/// A load balancer in front asks every node whether it has endpoints (`healthCheckNodePort`), and the agent how it fares.
fn health_checks(cluster: &Cluster) {
    let service = told(cluster).into_iter().find(|s| s.name == "lb-local").expect("the service");
    let port = service.health_check_node_port.expect("a port was chosen");
    let ask = "import sys, urllib.request, urllib.error\n\
               try: answer = urllib.request.urlopen(sys.argv[1], timeout=3)\n\
               except urllib.error.HTTPError as error: answer = error\n\
               print(answer.status, answer.headers.get('X-Load-Balancing-Endpoint-Weight'), answer.read().decode())";
    let get = |host: &str, url: &str| cluster.sh(host, &format!("python3 -c \"{ask}\" {url}"));
    for (node, status, endpoints) in [("node1", "503", 0), ("node2", "200", 1), ("node3", "503", 0)] {
        let address = cluster.lab.address(node).expect("address");
        let answer = get("client", &format!("http://{address}:{port}/"));
        assert!(answer.starts_with(&format!("{status} {endpoints} ")), "{node}: {answer}");
        let body: Value = serde_json::from_str(answer.splitn(3, ' ').nth(2).expect("a body")).expect("JSON");
        assert_eq!(
            (&body["localEndpoints"], &body["service"]["name"]),
            (&json!(endpoints), &json!("lb-local"))
        );
        assert!(get(node, "http://127.0.0.1:10256/healthz").starts_with("200 "), "{node}");
        assert!(get(node, "http://127.0.0.1:10256/metrics").contains("\nhomelab_services "), "{node}");
    }
}

fn load_balancers(cluster: &Cluster, pods: &[Pod]) {
    let client = Place::host("client");
    let own: IpAddr = cluster.lab.address("client").expect("address").into();
    let via = |vip: &str, node: &str| {
        let node = cluster.lab.address(node).expect("address");
        cluster.sh("client", &format!("ip route replace {vip} via {node}"));
    };
    via(LB_CLUSTER, "node1");
    let to = To { address: address(LB_CLUSTER), port: 80, pods: &["c3"] };
    assert_served(cluster, &client, &to, |_| of_node(cluster, "node1"));
    // metallb#257, #572, #825: a pod of a node without endpoints reaches an address with policy Local.
    let to = To { address: address(LB_LOCAL), port: 80, pods: &["c2"] };
    via(LB_LOCAL, "node2");
    assert_served(cluster, &client, &to, |_| vec![own]);
    let pod = &pods[1];
    assert_served(cluster, &Place::from(pod), &to, |_| {
        let mut all = of_node(cluster, "node1");
        all.push(pod.address_like(own));
        all
    });
    assert_served(cluster, &Place::host("node3"), &to, |_| of_node(cluster, "node3"));
    health_checks(cluster);
    via(LB_LOCAL, "node3");
    assert_fails(cluster, &client, address(LB_LOCAL), 80, "timed out");
    // The client is outside of the ranges.
    via(LB_RANGED, "node2");
    assert_fails(cluster, &client, address(LB_RANGED), 80, "timed out");
    via(EXTERNAL, "node2");
    let to = To { address: address(EXTERNAL), port: 80, pods: &["c3"] };
    assert_served(cluster, &client, &to, |_| of_node(cluster, "node2"));
    for vip in [LB_CLUSTER, LB_LOCAL, LB_RANGED, EXTERNAL] {
        cluster.sh("client", &format!("ip route del {vip}"));
    }
}

/// k8s#48370, #59368, #66651, #125467: a UDP client that goes on sending moves to another endpoint within one apply, and
/// one that began before there were endpoints is served once there are.
fn a_stale_udp_connection_ends(cluster: &mut Cluster) {
    cluster.apply();
    let pods = containers(cluster);
    let single = |name: &str, pods: &[&str]| service(name, pods, json!({ "ipFamilyPolicy": "SingleStack" }));
    cluster.file.set("services", json!([single("dns", &["c2"]), single("late", &[])]));
    cluster.apply();
    let (dns, late) = (cluster_ips(cluster, "dns")[0], cluster_ips(cluster, "late")[0]);
    let ask = |cluster: &Cluster, address: IpAddr| {
        let check = Check::new("udp", &Server { name: String::new(), address }).port(80).from_port(5353);
        cluster.probe(&Place::from(&pods[1]), &[check]).remove(0)
    };
    assert_eq!(ask(cluster, dns).name, "c2");
    assert_ne!(ask(cluster, late).error, "");
    cluster.file.set("services", json!([single("dns", &["c3"]), single("late", &["c1"])]));
    cluster.apply();
    assert_eq!(cluster_ips(cluster, "dns"), [dns], "an address stays with its service");
    assert_eq!(ask(cluster, dns).name, "c3");
    assert_eq!(ask(cluster, late).name, "c1");
    // Gone altogether.
    cluster.file.set("services", json!([single("late", &["c1"])]));
    cluster.apply();
    assert_eq!(ask(cluster, dns).name, "");
}

/// A restart of the agent drops no connection and resets no affinity.
fn an_agent_that_starts_again(cluster: &mut Cluster) {
    cluster.apply();
    let pods = containers(cluster);
    let more = json!({ "ipFamilyPolicy": "SingleStack", "sessionAffinity": "ClientIP" });
    cluster.file.set("services", json!([service("web", &["c1", "c2", "c3"], more)]));
    cluster.apply();
    let vip = cluster_ips(cluster, "web")[0];
    let ask = |cluster: &Cluster| {
        let check = Check::new("tcp", &Server { name: String::new(), address: vip }).port(80);
        cluster.probe(&Place::from(&pods[1]), &[check]).remove(0)
    };
    let first = ask(cluster);
    assert_eq!(first.error, "");
    let generation = |cluster: &Cluster| {
        cluster.sh(
            "node1",
            "nft --handle list set inet homelab-proxy frontends4; nft list map inet homelab-proxy endpoints4",
        )
    };
    let before = generation(cluster);
    let repairs = |cluster: &Cluster| cluster.sh("node1", "jq .repairs /run/homelab/agent.json");
    for _ in 0..3 {
        cluster.sh("node1", "systemctl restart homelab-node && sleep 1");
        assert_eq!(repairs(cluster), "0");
        assert_eq!(generation(cluster), before);
        assert_eq!(ask(cluster).name, first.name);
    }
    // Killed in the middle of whatever it does.
    for _ in 0..3 {
        cluster.sh("node1", "systemctl kill --signal=KILL homelab-node; sleep 0.3");
    }
    cluster.sh(
        "node1",
        "for i in $(seq 50); do systemctl is-active -q homelab-node && break; sleep 0.1; done; sleep 1",
    );
    assert_eq!(generation(cluster), before);
    assert_eq!(ask(cluster).name, first.name);
    cluster.assert_converged();
}

fn manifests_are_services(cluster: &mut Cluster) {
    cluster.apply();
    let pods = containers(cluster);
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
    let to = To { address: address("10.96.7.7"), port: 80, pods: &["c3"] };
    for answer in ask(cluster, &Place::from(&pods[0]), "tcp", &to) {
        assert_eq!(answer.name, "c3", "{answer:?}");
    }
    std::fs::write(&path, format!("{service}{}", slice(&pods[2]))).expect("written");
    let plan = cluster.plan();
    assert!(plan.node("node1").entries().contains("update service default/web"), "{plan:?}");
    cluster.apply();
    for answer in ask(cluster, &Place::from(&pods[0]), "tcp", &to) {
        assert_eq!(answer.name, "c2", "{answer:?}");
    }
}

/// Elements and rules that somebody takes away come back, what somebody adds goes.
fn what_a_hand_does(cluster: &mut Cluster) {
    cluster.apply();
    let pods = containers(cluster);
    let more = json!({ "ipFamilyPolicy": "SingleStack" });
    cluster.file.set("services", json!([service("web", &["c2"], more)]));
    cluster.apply();
    let vip = cluster_ips(cluster, "web")[0];
    for hand in [
        "nft flush map inet homelab-proxy endpoints4",
        "nft flush set inet homelab-proxy frontends4",
        "nft flush chain inet homelab-proxy proxy-pick4-8",
        "nft delete table inet homelab-proxy",
        "nft add element inet homelab-proxy no-endpoints4 '{ 9.9.9.9 . tcp . 9 }'",
        "nft delete table bridge homelab",
        "nft flush ruleset",
    ] {
        cluster.sh("node1", hand);
        let start = std::time::Instant::now();
        loop {
            let plan = cluster.plan();
            if plan.node("node1").changes.is_empty() {
                break;
            }
            assert!(start.elapsed().as_secs() < 10, "{hand}: {plan:?}");
        }
        let to = To { address: vip, port: 80, pods: &["c2"] };
        for answer in ask(cluster, &Place::from(&pods[1]), "tcp", &to) {
            assert_eq!(answer.name, "c2", "{hand}: {answer:?}");
        }
    }
    // All at once: no rule was tried before the chain that it jumps to was there.
    assert_eq!(cluster.sh("node1", "journalctl --unit homelab-node | grep -c 'cannot repair' || true"), "0");
}

/// `status services` counts what pods did and names the node that differs; `trace` says what then happens.
fn status_and_trace(cluster: &mut Cluster) {
    cluster.apply();
    let pods = containers(cluster);
    let more = |more: Value| {
        let mut all = json!({ "ipFamilyPolicy": "SingleStack" });
        for (key, value) in more.as_object().expect("a map") {
            all[key] = value.clone();
        }
        all
    };
    let local = json!({
        "type": "LoadBalancer", "loadBalancerIP": LB_LOCAL, "externalTrafficPolicy": "Local",
    });
    cluster.file.set(
        "services",
        json!([
            service("web", &["c2", "c3"], more(json!({}))),
            service("sticky", &["c2", "c3"], more(json!({ "sessionAffinity": "ClientIP" }))),
            service("empty", &[], more(json!({}))),
            service("lb-local", &["c2"], more(local)),
        ]),
    );
    cluster.apply();
    let json_of = |output: &homelab_lab::Output| -> Value {
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    };

    // Every connection of a pod is counted once, on its own node.
    let vip = cluster_ips(cluster, "web")[0];
    let to = To { address: vip, port: 80, pods: &["c2", "c3"] };
    let asked = ask(cluster, &Place::from(&pods[0]), "udp", &to);
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
    let sticky = cluster_ips(cluster, "sticky")[0];
    let check = || Check::new("tcp", &Server { name: String::new(), address: sticky }).port(80);
    let answer = cluster.probe(&Place::from(&pods[0]), &[check()]).remove(0);
    let kept = trace(cluster, &["node1/c1", "sticky:tcp"]).remove(0);
    let pod = pods.iter().find(|pod| pod.name == answer.name).expect("the pod");
    let endpoint = std::net::SocketAddr::new(pod.address_like(sticky), SERVER).to_string();
    assert_eq!((&kept["remembered"], &kept["endpoints"][0]["address"]), (&json!(endpoint), &json!(endpoint)));

    // What is traced is what the kernel holds, and who differs is named, while nobody mends it.
    cluster.sh("node1", "systemctl stop homelab-node && nft flush set inet homelab-proxy frontends4");
    let output = cluster.homelab(&["status", "services", "--format", "json"]);
    let status = json_of(&output);
    assert_eq!((output.code, &status["agrees"]), (1, &false.into()), "{status}");
    let services = status["services"].as_array().expect("services");
    let web = services.iter().find(|s| s["name"] == "default/web").expect("the service");
    let differing: Vec<bool> =
        web["nodes"].as_array().expect("nodes").iter().map(|n| !n["differs"].is_null()).collect();
    assert_eq!(differing, [true, false, false], "{web}");
    assert_eq!(trace(cluster, &["node1/c1", "web:tcp"])[0]["outcome"], "refused");
    let check = Check::new("tcp", &Server { name: String::new(), address: vip }).port(80).fails();
    let answer = cluster.probe(&Place::from(&pods[0]), &[check]).remove(0);
    assert!(answer.error.contains("refused"), "{answer:?}");
    cluster.sh("node1", "systemctl start homelab-node");
    let start = std::time::Instant::now();
    while !cluster.homelab(&["status", "services"]).success() {
        assert!(start.elapsed().as_secs() < 10, "node1 is not mended");
    }
}
