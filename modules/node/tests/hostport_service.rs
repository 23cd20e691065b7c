//! A port of the node that a pod and a service both want: whose packets are they, and does the other get them when the one
//! goes? With the rulesets of both in place, in every order of coming and going.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
mod stage;

use homelab_linux::{Node as Machine, Root};
use homelab_model::service::Service;
use homelab_model::{NodeObject, NodeSpec, diff};
use pods::talk::{Client, Server, tcp};
use pods::{Pod, run};
use serde_json::{Value, json};
use stage::{NODE, NODE6, OTHER, Stage, assert_clean, elements, on_a_stage, spec};

/// An address that the speaker announces and no interface has.
const VIRTUAL: &str = "192.168.7.50";

/// The proxy of the node, and what it has now.
struct Proxy {
    spec: NodeSpec,
    machine: Machine,
    held: Vec<NodeObject>,
    _root: tempfile::TempDir,
}

impl Proxy {
    fn start() -> Proxy {
        let root = tempfile::tempdir().expect("directory");
        let mut spec = spec();
        spec.proxy.node_port_addresses = [NODE, NODE6, OTHER].map(|a| a.parse().expect("address")).to_vec();
        let machine = Machine::open(Root::at(root.path())).expect("node");
        let mut proxy = Proxy { spec, machine, held: Vec::new(), _root: root };
        proxy.serve(Vec::new());
        proxy
    }

    /// These services and no others.
    fn serve(&mut self, services: Vec<Service>) {
        self.spec.services = services;
        let mut wanted = homelab_proxy::foundation(&self.spec);
        wanted.extend(homelab_proxy::services(&self.spec));
        self.machine.apply_all(&diff(&self.held, &wanted), &mut |_| {}).expect("apply");
        self.held = wanted;
    }
}

/// A service on the node's port 8080, on port 80 of the virtual address, and on port 8081 of an address of the node.
fn service(endpoints: &[String]) -> Service {
    let endpoint = |address: &String| json!({ "address": address, "node": "node1", "ports": { "tcp": 8000, "udp": 8000, "more": 8000 } });
    let value = json!({
        "namespace": "home", "name": "web", "type": "LoadBalancer", "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
        "loadBalancer": [{ "ip": VIRTUAL }], "externalIPs": [OTHER],
        "ports": [
            { "name": "tcp", "port": 80, "nodePort": 8080 },
            { "name": "udp", "protocol": "UDP", "port": 80, "nodePort": 8080 },
            { "name": "more", "port": 8081, "nodePort": 30081 },
        ],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    serde_json::from_value(value).expect("a service")
}

/// The pod's ports: that of the service on the node, its port of the virtual address, and that on the node's other address.
fn ports() -> Value {
    let port =
        |host: u16, protocol: &str| json!({ "hostPort": host, "containerPort": 80, "protocol": protocol });
    json!([port(8080, "tcp"), port(8080, "udp"), port(80, "tcp"), port(8081, "tcp")])
}

/// Who answers, by name; None: nobody.
fn who(stage: &Stage<'_>, protocol: &str, to: &str, answered: bool) -> Option<String> {
    let said = match protocol {
        "udp" => Client::new(Some(&stage.client), to).ask(answered),
        _ => tcp(Some(&stage.client), to, answered),
    };
    said.map(|said| said.split(' ').next().unwrap_or_default().to_owned())
}

/// What each of the ports leads to: `shared` are the node's port by both protocols and families, and the external address;
/// `own` is port 80 of the node, which is the pod's alone; `virtual_` is port 80 of the service's address.
fn assert_leads(
    stage: &Stage<'_>,
    when: &str,
    shared: Option<&str>,
    own: Option<&str>,
    virtual_: Option<&str>,
) {
    for (protocol, to, whose) in [
        ("tcp", format!("{NODE}:8080"), shared),
        ("tcp", format!("[{NODE6}]:8080"), shared),
        ("udp", format!("{NODE}:8080"), shared),
        ("tcp", format!("{OTHER}:8081"), shared),
        ("tcp", format!("{NODE}:80"), own),
        ("tcp", format!("{VIRTUAL}:80"), virtual_),
    ] {
        let found = who(stage, protocol, &to, whose.is_some());
        assert_eq!(found.as_deref(), whose, "{when}: {protocol} {to}");
    }
}

#[test]
fn a_service_comes_first_and_the_pod_gets_the_port_back() {
    on_a_stage(|stage| {
        let mut proxy = Proxy::start();
        stage.client.run(&format!("ip route add {VIRTUAL} via {NODE}"));
        // Nothing but the two rulesets answers for the virtual address.
        run("ip route add blackhole 192.168.7.50/32");
        let backend = Pod::new("backend");
        let addresses = stage.add(&backend, &json!([]));
        let _backend = Server::start(Some(&backend), "service", 8000);
        let web = service(&addresses);
        let pod = Pod::new("web");
        let (service, owner) = (Some("service"), Some("pod"));
        for order in ["pod first", "service first"] {
            let (mut serve, add) = (
                |services: Vec<Service>| proxy.serve(services),
                || {
                    stage.add(&pod, &ports());
                    Server::start(Some(&pod), "pod", 80)
                },
            );
            let server = if order == "pod first" {
                let server = add();
                assert_leads(stage, "the pod alone", owner, owner, None);
                serve(vec![web.clone()]);
                server
            } else {
                serve(vec![web.clone()]);
                assert_leads(stage, "the service alone", service, None, service);
                add()
            };
            assert_leads(stage, order, service, owner, service);
            // The same client of UDP is led over, there and back.
            let client = Client::new(Some(&stage.client), &format!("{NODE}:8080"));
            assert!(client.ask(true).is_some_and(|said| said.starts_with("service ")), "{order}");
            // The service goes: the pod's port was there all the time.
            serve(Vec::new());
            assert_leads(stage, "the pod again", owner, owner, None);
            assert!(client.ask(true).is_some_and(|said| said.starts_with("pod ")), "{order}: the old flow");
            serve(vec![web.clone()]);
            assert_leads(stage, "the service again", service, owner, service);
            // The pod goes: that is nothing to the service.
            drop(server);
            stage.del(&pod);
            assert_leads(stage, "the service alone again", service, None, service);
            serve(Vec::new());
            assert_leads(stage, "nobody", None, None, None);
        }
        stage.del(&backend);
        assert_clean(stage);
    });
}

/// A service without endpoints leaves its node port to the pod; where it has some again, it is the service's.
#[test]
fn a_service_without_endpoints_leaves_its_port() {
    on_a_stage(|stage| {
        let mut proxy = Proxy::start();
        let (backend, pod) = (Pod::new("backend"), Pod::new("web"));
        let addresses = stage.add(&backend, &json!([]));
        stage.add(&pod, &ports());
        let before = elements();
        let _servers = [Server::start(Some(&backend), "service", 8000), Server::start(Some(&pod), "pod", 80)];
        let port = format!("{NODE}:8080");
        for round in 0..2 {
            proxy.serve(vec![service(&[])]);
            assert_eq!(who(stage, "tcp", &port, true).as_deref(), Some("pod"), "round {round}");
            proxy.serve(vec![service(&addresses)]);
            assert_eq!(who(stage, "tcp", &port, true).as_deref(), Some("service"), "round {round}");
        }
        assert_eq!(elements(), before, "services are nothing to the pod's ports");
        stage.del(&pod);
        stage.del(&backend);
        assert_clean(stage);
    });
}
