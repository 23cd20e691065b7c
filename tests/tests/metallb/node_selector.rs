//! `node_selector.go`, "Node Selector".

use homelab_model::LbUnfit;
use homelab_tests::Cluster;
use serde_json::json;

use crate::case::{Case, Owner, Slot, Step, cases, of_node, run};
use crate::stage::{NODES, Problems, Stage};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        should_work_selecting_one_node,
        should_work_with_multiple_node_selectors,
        should_work_when_adding_nodes,
    ];
    run(cluster, stage, CASES)
}

/// "should work selecting one node".
pub(crate) fn should_work_selecting_one_node(slot: &Slot) -> Vec<Step> {
    let on = |node: &str| {
        let step = slot.step(&[json!({ "nodeSelectors": [of_node(node)] })]);
        step.owner(slot.address(0), Owner::Is(node.to_owned()))
    };
    NODES.map(on).into()
}

/// "should work with multiple node selectors": one for another node, one for all, and an endpoint on node1 alone.
pub(crate) fn should_work_with_multiple_node_selectors(slot: &Slot) -> Vec<Step> {
    let local = json!({ "externalTrafficPolicy": "Local", "endpoints": Stage::endpoints(&["node1"]) });
    let step = slot.step(&[json!({ "nodeSelectors": [of_node("node2")] }), json!({})]);
    vec![step.services(vec![slot.service(0, local)]).owner(slot.address(0), Owner::Is("node1".to_owned()))]
}

/// "should work when adding nodes".
pub(crate) fn should_work_when_adding_nodes(slot: &Slot) -> Vec<Step> {
    let step = || slot.step(&[json!({ "nodeSelectors": [slot.selector("l2-node-selector-test")] })]);
    let mut steps = vec![step().on(slot.address(0), Owner::Nobody(LbUnfit::NotSelected), &[])];
    for node in NODES {
        let labelled = step().label(node, slot.label("l2-node-selector-test"));
        steps.push(labelled.owner(slot.address(0), Owner::Is(node.to_owned())));
    }
    steps
}
