//! Cases about which addresses services get.

use std::net::IpAddr;
use std::time::Instant;

use homelab_tests::{Cluster, SERVER};
use serde_json::{Value, json};

use crate::stage::{LONG, NODES, Problems, Stage};

/// A case's own namespace and addresses.
pub(crate) struct Ground {
    number: u8,
}

/// What a case has at a time, and what its services get.
pub(crate) struct Step {
    pools: Vec<Value>,
    services: Vec<Value>,
    expected: Vec<(&'static str, Vec<IpAddr>)>,
}

/// Its steps, by the ground.
pub(crate) type Case = (&'static str, fn(&Ground) -> Vec<Step>);

impl Ground {
    pub(crate) fn new(number: u8) -> Ground {
        Ground { number }
    }

    pub(crate) fn namespace(&self) -> String {
        format!("n{}", self.number)
    }

    /// An IPv4 address of the LAN, one of four.
    pub(crate) fn v4(&self, n: u8) -> IpAddr {
        format!("192.168.50.{}", 152 + 4 * self.number + n).parse().expect("an address")
    }

    /// An IPv6 address of the LAN, one of four.
    pub(crate) fn v6(&self, n: u8) -> IpAddr {
        format!("fd00:50::{:x}", 0x1000 + 4 * u16::from(self.number) + u16::from(n))
            .parse()
            .expect("an address")
    }

    /// A pool of single addresses, for the case's namespace alone unless `to` says for whom it is.
    pub(crate) fn pool(&self, name: &str, addresses: &[IpAddr], to: Option<Value>) -> Value {
        let ranges: Vec<String> = addresses.iter().map(|address| format!("{address}-{address}")).collect();
        let to = to.unwrap_or_else(|| json!({ "namespaces": [self.namespace()] }));
        json!({ "name": format!("{}-{name}", self.namespace()), "addresses": ranges, "serviceAllocation": to })
    }

    /// A pool for the case's namespace with a priority.
    pub(crate) fn ranked(&self, name: &str, address: IpAddr, priority: u8) -> Value {
        self.pool(name, &[address], Some(json!({ "namespaces": [self.namespace()], "priority": priority })))
    }

    /// A service of IPv4, with endpoints on all nodes, and other fields.
    pub(crate) fn service(&self, name: &str, fields: &Value) -> Value {
        let mut service = json!({
            "name": name, "namespace": self.namespace(), "type": "LoadBalancer", "ipFamilyPolicy": "SingleStack",
            "ipFamilies": ["IPv4"], "ports": [{ "port": 80, "targetPort": SERVER }],
            "endpoints": Stage::endpoints(&NODES),
        });
        service.as_object_mut().expect("a map").extend(fields.as_object().cloned().unwrap_or_default());
        service
    }
}

impl Step {
    pub(crate) fn new(pools: &[Value], services: &[Value]) -> Step {
        Step { pools: pools.into(), services: services.into(), expected: Vec::new() }
    }

    /// Expects that a service has these addresses and no others.
    pub(crate) fn gets(mut self, service: &'static str, addresses: &[IpAddr]) -> Step {
        self.expected.push((service, addresses.into()));
        self
    }
}

/// Has the cases go through their steps together; the last step of a case stays.
pub(crate) fn run(cluster: &mut Cluster, stage: &mut Stage, cases: &[Case]) -> Problems {
    let grounds: Vec<Ground> = (0..).take(cases.len()).map(Ground::new).collect();
    let all: Vec<Vec<Step>> = cases.iter().zip(&grounds).map(|(case, ground)| (case.1)(ground)).collect();
    let mut problems: Problems = cases.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for number in 0..all.iter().map(Vec::len).max().unwrap_or_default() {
        let steps: Vec<&Step> = all.iter().map(|steps| &steps[number.min(steps.len() - 1)]).collect();
        set(cluster, &steps);
        let start = Instant::now();
        loop {
            let wrong = check(cluster, stage, &grounds, &steps);
            let late = start.elapsed() > LONG;
            if late {
                for ((name, _), wrong) in cases.iter().zip(&wrong) {
                    let wrong = wrong.iter().map(|wrong| format!("step {number}: {wrong}"));
                    problems.entry(name).or_default().extend(wrong);
                }
            }
            if late || wrong.iter().all(Vec::is_empty) {
                break;
            }
        }
    }
    problems
}

fn set(cluster: &mut Cluster, steps: &[&Step]) {
    for index in 0..NODES.len() {
        cluster.file.set(&format!("nodes.{index}.labels"), json!({}));
    }
    let pools: Vec<&Value> = steps.iter().flat_map(|step| &step.pools).collect();
    let services: Vec<&Value> = steps.iter().flat_map(|step| &step.services).collect();
    cluster.file.set("loadBalancer.pools", json!(pools));
    cluster.file.set("loadBalancer.l2Advertisements", json!([]));
    cluster.file.set("services", json!(services));
    cluster.apply();
}

/// Addresses that a service was given, as a node was told.
pub(crate) fn given(cluster: &Cluster, namespace: &str, name: &str) -> Vec<IpAddr> {
    let services = cluster.told();
    let found = services.iter().find(|service| service.namespace == namespace && service.name == name);
    found.into_iter().flat_map(|service| service.load_balancer.iter().map(|ingress| ingress.ip)).collect()
}

/// What is wrong with each case: what services were given, and which of the case's addresses the client resolves.
fn check(cluster: &Cluster, stage: &mut Stage, grounds: &[Ground], steps: &[&Step]) -> Vec<Vec<String>> {
    let all: Vec<IpAddr> =
        grounds.iter().flat_map(|ground| (0..4).flat_map(|n| [ground.v4(n), ground.v6(n)])).collect();
    let answering = stage.answering(0, &all);
    let one = |ground: &Ground, step: &&Step| {
        let mut wrong = Vec::new();
        for (name, wanted) in &step.expected {
            let given = given(cluster, &ground.namespace(), name);
            if given != *wanted {
                wrong.push(format!("{name} has {given:?}, not {wanted:?}"));
            }
        }
        for address in (0..4).flat_map(|n| [ground.v4(n), ground.v6(n)]) {
            let wanted = step.expected.iter().any(|(_, wanted)| wanted.contains(&address));
            let nodes = &answering[&address];
            if nodes.len() != usize::from(wanted) {
                wrong.push(format!("{address}: {nodes:?} answer"));
            }
        }
        wrong
    };
    grounds.iter().zip(steps).map(|(ground, step)| one(ground, step)).collect()
}
