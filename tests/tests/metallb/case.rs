//! Cases about who announces an address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_model::{LbReport, LbState, LbUnfit};
use homelab_tests::{Check, Cluster, Place, SERVER, To};
use serde_json::{Map, Value, json};

use crate::stage::{INTERFACES, LONG, NODES, Problems, Stage};

/// A case for one address family: its address, alone in a pool, and the service of the same name.
pub(crate) struct Slot {
    /// Names its pool and its service.
    pub(crate) name: String,
    number: u8,
    six: bool,
    /// Who has the address when nothing is preferred, then the others.
    pub(crate) order: Vec<String>,
}

/// What a case has at a time, and what comes of it.
pub(crate) struct Step {
    advertisements: Vec<Value>,
    labels: Vec<(String, String)>,
    /// The service's fields over those that it has anyway; none: it is the only service.
    services: Vec<Value>,
    expected: Vec<Expected>,
}

struct Expected {
    address: IpAddr,
    owner: Owner,
    interfaces: Vec<&'static str>,
}

/// Who shall have an address.
#[derive(Clone)]
pub(crate) enum Owner {
    Is(String),
    /// Any of these.
    Among(Vec<String>),
    /// Nobody, with what all nodes are told of it.
    Nobody(LbUnfit),
}

/// Its steps, by the slot.
pub(crate) type Case = (&'static str, fn(&Slot) -> Vec<Step>);

/// The cases of a module, by their names.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => { &[$((stringify!($case), $case)),+] };
}
pub(crate) use cases;

/// A selector of one node.
pub(crate) fn of_node(name: &str) -> Value {
    json!({ "matchLabels": { "kubernetes.io/hostname": name } })
}

impl Slot {
    /// The slot's address, or the `n`th of its others.
    pub(crate) fn address(&self, n: u8) -> IpAddr {
        let last = 200 + 2 * self.number + n;
        let text = if self.six { format!("fd00:50::{last}") } else { format!("192.168.50.{last}") };
        text.parse().expect("an address")
    }

    pub(crate) fn pool(&self, n: u8) -> String {
        format!("{}-{n}", self.name)
    }

    /// A label that is this case's alone.
    pub(crate) fn label(&self, key: &str) -> String {
        format!("{key}-{}", self.name)
    }

    /// A selector of nodes or services by such a label.
    pub(crate) fn selector(&self, key: &str) -> Value {
        json!({ "matchLabels": { self.label(key): "true" } })
    }

    /// A service with the `n`th address.
    pub(crate) fn service(&self, n: u8, fields: Value) -> Value {
        let mut service = json!({
            "name": self.pool(n), "type": "LoadBalancer", "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [if self.six { "IPv6" } else { "IPv4" }],
            "annotations": { "metallb.io/address-pool": self.pool(n) },
            "ports": [{ "port": 80, "targetPort": SERVER }], "endpoints": Stage::endpoints(&NODES),
        });
        let own = service.as_object_mut().expect("a map");
        own.extend(fields.as_object().cloned().unwrap_or_default());
        service
    }

    /// With these advertisements (of the slot's pools, unless they say otherwise).
    pub(crate) fn step(&self, advertisements: &[Value]) -> Step {
        let pools = [self.pool(0), self.pool(1)];
        let named = advertisements.iter().enumerate().map(|(n, advertisement)| {
            let mut full = Map::new();
            full.insert("name".to_owned(), json!(format!("{}-{n}", self.name)));
            full.insert("ipAddressPools".to_owned(), json!(pools));
            full.extend(advertisement.as_object().cloned().unwrap_or_default());
            Value::Object(full)
        });
        let services = vec![self.service(0, json!({}))];
        Step { advertisements: named.collect(), labels: Vec::new(), services, expected: Vec::new() }
    }

    /// The owner when nothing is preferred.
    pub(crate) fn natural(&self) -> Owner {
        Owner::Is(self.order[0].clone())
    }
}

impl Step {
    /// A node has a label of the slot's.
    pub(crate) fn label(mut self, node: &str, key: String) -> Step {
        self.labels.push((node.to_owned(), key));
        self
    }

    /// Other services than the one.
    pub(crate) fn services(mut self, services: Vec<Value>) -> Step {
        self.services = services;
        self
    }

    /// Expects an owner on the first LAN.
    pub(crate) fn owner(self, address: IpAddr, owner: Owner) -> Step {
        self.on(address, owner, &["eth0"])
    }

    /// Expects an owner on these interfaces.
    pub(crate) fn on(mut self, address: IpAddr, owner: Owner, interfaces: &[&'static str]) -> Step {
        self.expected.push(Expected { address, owner, interfaces: interfaces.to_vec() });
        self
    }
}

/// Has the cases go through their steps together, each for both families; the last step of a case stays.
pub(crate) fn run(cluster: &mut Cluster, stage: &mut Stage, cases: &[Case]) -> Problems {
    let mut problems: Problems = cases.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let twice = cases.iter().flat_map(|case| [(case, false), (case, true)]);
    let mut slots: Vec<(&Case, Slot)> = (0..)
        .zip(twice)
        .map(|(number, (case, six))| {
            (case, Slot { name: format!("c{number}"), number, six, order: Vec::new() })
        })
        .collect();
    let natural: Vec<Vec<Step>> = slots.iter().map(|(_, slot)| vec![slot.step(&[json!({})])]).collect();
    set(cluster, &slots, &natural, 0);
    let owners = cluster.lb_settled(&NODES);
    for (_, slot) in &mut slots {
        let owner = owners[&slot.address(0)].clone();
        slot.order = NODES.iter().map(|node| (*node).to_owned()).filter(|node| *node != owner).collect();
        slot.order.insert(0, owner);
    }
    let steps: Vec<Vec<Step>> = slots.iter().map(|(case, slot)| (case.1)(slot)).collect();
    for number in 0..steps.iter().map(Vec::len).max().unwrap_or_default() {
        set(cluster, &slots, &steps, number);
        let start = Instant::now();
        loop {
            let mut wrong = Problems::new();
            for (what, (case, _)) in check(cluster, stage, &steps, number).into_iter().zip(&slots) {
                let what = what.into_iter().map(|what| format!("step {number}: {what}"));
                wrong.entry(case.0).or_default().extend(what);
            }
            if wrong.values().all(Vec::is_empty) {
                break;
            }
            if start.elapsed() > LONG {
                for (case, what) in wrong {
                    problems.entry(case).or_default().extend(what);
                }
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    problems
}

fn now(steps: &[Step], number: usize) -> &Step {
    &steps[number.min(steps.len() - 1)]
}

/// Applies a step of all slots.
fn set(cluster: &mut Cluster, slots: &[(&Case, Slot)], steps: &[Vec<Step>], number: usize) {
    let steps: Vec<&Step> = steps.iter().map(|steps| now(steps, number)).collect();
    let mut labels: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (node, key) in steps.iter().flat_map(|step| &step.labels) {
        labels.entry(node).or_default().insert(key.clone(), json!("true"));
    }
    for (index, node) in NODES.iter().enumerate() {
        cluster
            .file
            .set(&format!("nodes.{index}.labels"), json!(labels.get(node).cloned().unwrap_or_default()));
    }
    let of_slot =
        |slot: &Slot, n| json!({ "name": slot.pool(n), "addresses": [format!("{0}-{0}", slot.address(n))] });
    let pools: Vec<Value> = slots.iter().flat_map(|(_, slot)| [0, 1].map(|n| of_slot(slot, n))).collect();
    let list = |get: fn(&Step) -> &Vec<Value>| -> Vec<Value> {
        steps.iter().flat_map(|step| get(step).iter().cloned()).collect()
    };
    cluster.file.set("loadBalancer.pools", json!(pools));
    cluster.file.set("loadBalancer.l2Advertisements", json!(list(|step| &step.advertisements)));
    cluster.file.set("services", json!(list(|step| &step.services)));
    cluster.apply();
}

/// What is wrong now with each slot: the nodes' reports, the answers on the wire, and the service itself.
fn check(cluster: &Cluster, stage: &mut Stage, steps: &[Vec<Step>], number: usize) -> Vec<Vec<String>> {
    let steps: Vec<&Step> = steps.iter().map(|steps| now(steps, number)).collect();
    let reports: Vec<LbReport> = NODES.iter().filter_map(|node| cluster.lb(node)).collect();
    if reports.len() != NODES.len() {
        return steps.iter().map(|_| vec!["a node says nothing".to_owned()]).collect();
    }
    let all: Vec<IpAddr> = steps.iter().flat_map(|step| step.expected.iter().map(|e| e.address)).collect();
    let answers: Vec<_> = (0..INTERFACES.len()).map(|lan| stage.answering(lan, &all)).collect();
    let mut wrong: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            let all = step.expected.iter().flat_map(|expected| {
                let heard =
                    answers.iter().map(|answers| answers.get(&expected.address).cloned().unwrap_or_default());
                expected.wrong(&reports, &heard.collect::<Vec<_>>())
            });
            all.collect()
        })
        .collect();
    if wrong.iter().all(Vec::is_empty) {
        let expected =
            steps.iter().enumerate().flat_map(|(n, step)| step.expected.iter().map(move |e| (n, e)));
        let owned: Vec<(usize, &Expected)> =
            expected.filter(|(_, expected)| !matches!(expected.owner, Owner::Nobody(_))).collect();
        for (n, what) in unreached(cluster, &owned) {
            wrong[n].push(what);
        }
    }
    wrong
}

impl Expected {
    fn wrong(&self, reports: &[LbReport], heard: &[Vec<String>]) -> Vec<String> {
        let (address, mut wrong) = (self.address, Vec::new());
        let found = |report: &LbReport| report.addresses.iter().find(|a| a.address == address).cloned();
        let all: Option<Vec<_>> = reports.iter().map(found).collect();
        let Some(all) = all else { return vec![format!("{address}: a node does not know it")] };
        let owner = &all[0].owner;
        if all.iter().any(|one| one.owner != *owner) {
            return vec![format!("{address}: they do not agree")];
        }
        let right = match (&self.owner, owner) {
            (Owner::Is(wanted), Some(owner)) => wanted == owner,
            (Owner::Among(wanted), Some(owner)) => wanted.contains(owner),
            (Owner::Nobody(why), None) => all
                .iter()
                .all(|one| one.unfit.len() == NODES.len() && one.unfit.iter().all(|(_, unfit)| unfit == why)),
            _ => false,
        };
        if !right {
            wrong.push(format!("{address}: owner {owner:?}, unfit {:?}", all[0].unfit));
        }
        let mut on = Vec::new();
        for (report, one) in reports.iter().zip(&all) {
            let announced = one.interfaces.iter().filter(|interface| interface.state == LbState::Announced);
            on.extend(announced.map(|interface| (report.node.clone(), interface.name.clone())));
        }
        let wanted = self.interfaces.iter().filter_map(|name| Some((owner.clone()?, (*name).to_owned())));
        let wanted: Vec<(String, String)> = wanted.collect();
        if on != wanted {
            wrong.push(format!("{address}: announced by {on:?}, not {wanted:?}"));
        }
        for (interface, heard) in INTERFACES.iter().zip(heard) {
            let wanted: Vec<String> =
                owner.iter().filter(|_| self.interfaces.contains(interface)).cloned().collect();
            if *heard != wanted {
                wrong.push(format!("{address}: {heard:?} answer on {interface}, not {wanted:?}"));
            }
        }
        wrong
    }
}

/// The client's own kernel resolves them, and the services answer. Gives those that do not.
fn unreached(cluster: &Cluster, all: &[(usize, &Expected)]) -> Vec<(usize, String)> {
    let mut script = String::new();
    for (_, Expected { address, interfaces, .. }) in all {
        let six = if address.is_ipv6() { "-6" } else { "-4" };
        let interface = interfaces[0];
        script +=
            &format!("ip {six} route replace {address} dev {interface}; ip {six} neigh flush to {address}\n");
    }
    cluster.sh("client", &script);
    let checks: Vec<Check> = all.iter().map(|(_, e)| To::new(e.address, 80, &[]).check("tcp")).collect();
    let answers = cluster.probe(&Place::host("client"), &checks);
    let failed = all.iter().zip(answers).filter(|(_, answer)| !answer.error.is_empty());
    failed.map(|((n, expected), answer)| (*n, format!("{}: {}", expected.address, answer.error))).collect()
}
