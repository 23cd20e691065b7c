//! The laws of the object model, over the objects of all modules.
//!
//! The fake is strict where a kernel is: a child needs its parent, nothing is made twice, and a link that goes takes
//! everything on it along.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;

use fixtures::{net, peer};
use homelab_model::{
    Backend, Change, Key, NodeObject, NodeSpec, Object, PeerSpec, Spec, VtepSpec, diff, invert, plan_node,
    subnet_at,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

#[derive(Default)]
struct Fake(BTreeMap<Key, NodeObject>);

impl Fake {
    fn of(objects: &[NodeObject]) -> Fake {
        Fake(objects.iter().map(|o| (o.key(), o.clone())).collect())
    }

    fn objects(&self) -> Vec<NodeObject> {
        self.0.values().cloned().collect()
    }

    fn remove(&mut self, key: &Key) {
        self.0.remove(key);
        let children: Vec<Key> =
            self.0.values().filter(|o| o.parent().as_ref() == Some(key)).map(Object::key).collect();
        for child in children {
            self.remove(&child);
        }
    }

    fn create(&mut self, object: &NodeObject) -> Result<(), String> {
        if let Some(parent) = object.parent()
            && !self.0.contains_key(&parent)
        {
            return Err(format!("{} without {parent}", object.key()));
        }
        match self.0.insert(object.key(), object.clone()) {
            None => Ok(()),
            Some(_) => Err(format!("{} twice", object.key())),
        }
    }
}

impl Backend<NodeObject> for Fake {
    type Error = String;

    fn apply(&mut self, change: &Change<NodeObject>) -> Result<(), String> {
        match change {
            Change::Create { after } => self.create(after),
            Change::Delete { before } => {
                self.remove(&before.key());
                Ok(())
            }
            Change::Replace { before, after } => {
                self.remove(&before.key());
                self.create(after)
            }
            Change::Update { before, after } => {
                if !before.updates_in_place(after) {
                    return Err(format!("{} cannot be updated in place", before.key()));
                }
                match self.0.insert(after.key(), after.clone()) {
                    Some(old) if old == *before => Ok(()),
                    other => Err(format!("{} was {other:?}", after.key())),
                }
            }
        }
    }
}

prop_compose! {
    fn specs()(
        vni in 1_u32..3, port in prop_oneof![Just(8472_u16), Just(4789)], mtu in prop_oneof![Just(1450_u32), Just(1400)],
        device in prop_oneof![Just("homelab.1"), Just("vx")], own in 0_u128..3, dual in any::<bool>(),
        offload in any::<bool>(), binary in 0_u8..3, name in prop_oneof![Just("node1"), Just("n1")],
        peers in proptest::collection::btree_map(0_u128..6, (2_u8..6, 0_u8..2), 0..5),
    ) -> NodeSpec {
        let nets = |index: u128| {
            let mut nets = vec![subnet_at(net("10.244.0.0/16"), 24, index).expect("subnet")];
            if dual {
                nets.push(subnet_at(net("fd00:10:244::/56"), 64, index).expect("subnet"));
            }
            nets
        };
        let spec = fixtures::spec(true);
        let mac = homelab_vtep::mac("home", name);
        NodeSpec {
            node: name.into(), pod_cidrs: nets(own), pod_mtu: mtu, binary_sha256: binary.to_string().repeat(64),
            vtep: VtepSpec { device: device.into(), vni, port, mtu, mac, checksum_offload: offload },
            peers: peers.into_iter().map(|(index, (host, generation))| PeerSpec {
                mac: homelab_vtep::mac("home", &format!("peer{index}-{generation}")),
                ..peer(&format!("peer{index}"), &format!("192.168.50.{}", 20 + host), nets(10 + index))
            }).collect(),
            ..spec
        }
    }
}

/// A node in some state: what an apply left, with some objects lost.
fn states() -> impl Strategy<Value = Vec<NodeObject>> {
    (proptest::option::of(specs()), any::<u64>(), 0_u32..4).prop_map(|(spec, seed, rate)| {
        let objects = spec.map_or(Vec::new(), |s| homelab_desired::desired(&s));
        let mut fake = Fake::of(&objects);
        for (i, object) in objects.iter().enumerate() {
            if rate > 0 && (seed >> (i % 64)) & 3 < u64::from(rate) - 1 {
                fake.remove(&object.key());
            }
        }
        fake.objects()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn applying_the_diff_gives_the_desired_state(a in states(), b in states()) {
        let mut fake = Fake::of(&a);
        for change in diff(&a, &b) {
            prop_assert_eq!(fake.apply(&change), Ok(()));
        }
        prop_assert_eq!(fake.objects(), Fake::of(&b).objects());
    }

    #[test]
    fn the_diff_with_itself_is_empty(a in states()) {
        prop_assert_eq!(diff(&a, &a), vec![]);
    }

    #[test]
    fn undoing_any_prefix_restores_the_state(a in states(), b in states(), share in 0.0_f64..=1.0) {
        let changes = diff(&a, &b);
        let prefix = &changes[..(changes.len() as f64 * share) as usize];
        let mut fake = Fake::of(&a);
        for change in prefix {
            prop_assert_eq!(fake.apply(change), Ok(()));
        }
        for change in invert(prefix) {
            prop_assert_eq!(fake.apply(&change), Ok(()));
        }
        prop_assert_eq!(fake.objects(), Fake::of(&a).objects());
    }

    #[test]
    fn a_plan_shows_every_object_once_and_survives_json(a in states(), b in states()) {
        let plan = plan_node("node1", &a, &b);
        let shown = plan.shown();
        let mut names: Vec<&str> = shown.iter().map(|c| c.object.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        prop_assert_eq!(names.len(), count);
        let back: homelab_model::NodePlan =
            serde_json::from_str(&serde_json::to_string(&plan).expect("json")).expect("plan");
        prop_assert_eq!(back, plan);
    }
}

#[test]
fn a_new_vni_replaces_the_link_and_all_on_it() {
    let strategy = specs();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut before = strategy.new_tree(&mut runner).expect("spec").current();
    before.vtep.vni = 1;
    let mut after = before.clone();
    after.vtep.vni = 2;
    let plan = plan_node("node1", &homelab_desired::desired(&before), &homelab_desired::desired(&after));
    let shown = plan.shown();
    let link = shown.iter().find(|c| c.object.starts_with("link ")).expect("link in plan");
    assert_eq!(link.action, homelab_model::Action::Replace);
    assert_eq!(link.impact, homelab_model::Impact::Disruptive);
    for object in homelab_desired::desired(&before) {
        if matches!(object.spec, Spec::Fdb(_) | Spec::Neighbour(_)) {
            let name = object.key().to_string();
            assert!(
                shown.iter().any(|c| c.object == name && c.action == homelab_model::Action::Replace),
                "{name}"
            );
        }
    }
}
