//! `preferred_node.go`, "Preferred Node Selector".

use homelab_tests::Cluster;
use serde_json::{Value, json};

use crate::case::{Case, Owner, Slot, Step, cases, of_node, run};
use crate::stage::{NODES, Problems, Stage};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        should_prefer_the_labeled_node_and_fall_back_to_the_baseline_election_when_the_label_is_removed,
        should_behave_like_the_baseline_advertisement_when_no_node_matches_the_preferred_selector,
        should_re_elect_when_the_l2advertisement_spec_changes_at_runtime,
        should_respect_node_selectors_as_a_hard_filter_while_preferred_node_selectors_orders_the_eligible_set,
        should_announce_from_the_node_selectors_set_when_it_is_disjoint_from_preferred_node_selectors,
        should_sum_weights_across_multiple_l2advertisements_targeting_the_same_pool,
        should_scope_preferred_node_selectors_to_services_matching_service_selectors,
    ];
    run(cluster, stage, CASES)
}

fn preferring(weight: u8, preference: Value) -> Value {
    json!({ "preferredNodeSelectors": [{ "weight": weight, "preference": preference }] })
}

fn is(node: &str) -> Owner {
    Owner::Is(node.to_owned())
}

/// "should prefer the labeled node and fall back to the baseline election when the label is removed".
pub(crate) fn should_prefer_the_labeled_node_and_fall_back_to_the_baseline_election_when_the_label_is_removed(
    slot: &Slot,
) -> Vec<Step> {
    let step = || slot.step(&[preferring(100, slot.selector("preferred"))]);
    let other = slot.order[1].as_str();
    vec![
        step().label(other, slot.label("preferred")).owner(slot.address(0), is(other)),
        step().owner(slot.address(0), slot.natural()),
    ]
}

/// "should behave like the baseline advertisement when no node matches the preferred selector".
pub(crate) fn should_behave_like_the_baseline_advertisement_when_no_node_matches_the_preferred_selector(
    slot: &Slot,
) -> Vec<Step> {
    let weights = json!([
        { "weight": 100, "preference": slot.selector("nomatch") }, { "weight": 10, "preference": {} },
    ]);
    let advertisement = json!({ "preferredNodeSelectors": weights });
    vec![slot.step(&[advertisement]).owner(slot.address(0), slot.natural())]
}

/// "should re-elect when the L2Advertisement spec changes at runtime".
pub(crate) fn should_re_elect_when_the_l2advertisement_spec_changes_at_runtime(slot: &Slot) -> Vec<Step> {
    let prefer = |node: &str| {
        let step = slot.step(&[preferring(100, slot.selector(&format!("rt-{node}")))]);
        let labelled =
            NODES.iter().fold(step, |step, node| step.label(node, slot.label(&format!("rt-{node}"))));
        labelled.owner(slot.address(0), is(node))
    };
    let baseline = slot.step(&[json!({})]).owner(slot.address(0), slot.natural());
    vec![prefer(&slot.order[1]), prefer(&slot.order[2]), baseline]
}

/// "should respect nodeSelectors as a hard filter while preferredNodeSelectors orders the eligible set".
pub(crate) fn should_respect_node_selectors_as_a_hard_filter_while_preferred_node_selectors_orders_the_eligible_set(
    slot: &Slot,
) -> Vec<Step> {
    let mut advertisement = preferring(100, slot.selector("preferred"));
    advertisement["nodeSelectors"] = json!([slot.selector("eligible")]);
    let prefer = |node: &str| {
        let step = slot.step(&[advertisement.clone()]).label(node, slot.label("preferred"));
        let eligible =
            ["node1", "node2"].iter().fold(step, |step, node| step.label(node, slot.label("eligible")));
        eligible.owner(slot.address(0), is(node))
    };
    vec![prefer("node1"), prefer("node2")]
}

/// "should announce from the nodeSelectors set when it is disjoint from preferredNodeSelectors".
pub(crate) fn should_announce_from_the_node_selectors_set_when_it_is_disjoint_from_preferred_node_selectors(
    slot: &Slot,
) -> Vec<Step> {
    let mut advertisement = preferring(100, of_node("node2"));
    advertisement["nodeSelectors"] = json!([of_node("node1")]);
    vec![slot.step(&[advertisement]).owner(slot.address(0), is("node1"))]
}

/// "should sum weights across multiple L2Advertisements targeting the same pool": 110 against 60, and 60 against 50.
pub(crate) fn should_sum_weights_across_multiple_l2advertisements_targeting_the_same_pool(
    slot: &Slot,
) -> Vec<Step> {
    let two = [preferring(60, slot.selector("zone")), preferring(50, slot.selector("role"))];
    let (double, single) = (slot.order[2].as_str(), slot.order[1].as_str());
    let step = || slot.step(&two).label(single, slot.label("zone")).label(double, slot.label("role"));
    vec![
        step().label(double, slot.label("zone")).owner(slot.address(0), is(double)),
        step().owner(slot.address(0), is(single)),
    ]
}

/// "should scope preferredNodeSelectors to services matching serviceSelectors".
pub(crate) fn should_scope_preferred_node_selectors_to_services_matching_service_selectors(
    slot: &Slot,
) -> Vec<Step> {
    let services =
        vec![slot.service(0, json!({})), slot.service(1, json!({ "labels": { "app": "matched" } }))];
    let step = |node: &str| {
        let mut scoped = preferring(100, of_node(node));
        scoped["serviceSelectors"] = json!([{ "matchLabels": { "app": "matched" } }]);
        let step = slot.step(&[json!({}), scoped]).services(services.clone());
        step.owner(slot.address(0), slot.natural()).owner(slot.address(1), is(node))
    };
    slot.order.iter().map(|node| step(node)).collect()
}

/// "should fail over when the preferred node becomes unschedulable and reclaim when it returns": by the label, and by
/// `homelab cordon`.
pub(crate) fn should_fail_over_when_the_preferred_node_becomes_unschedulable_and_reclaim_when_it_returns(
    cluster: &mut Cluster,
    stage: &mut Stage,
) {
    let [address, _] = stage.balanced(cluster, &[], &[json!({})]);
    let natural = cluster.lb_settled(&NODES)[&address].clone();
    let preferred = *NODES.iter().find(|node| **node != natural).expect("another");
    stage.balanced(cluster, &[], &[preferring(100, of_node(preferred))]);
    stage.announced(cluster, address, preferred);
    stage.exclude(cluster, preferred, true);
    stage.announced(cluster, address, &natural);
    stage.exclude(cluster, preferred, false);
    stage.announced(cluster, address, preferred);
    cluster.homelab_ok(&["cordon", preferred]);
    stage.announced(cluster, address, &natural);
    cluster.homelab_ok(&["uncordon", preferred]);
    stage.announced(cluster, address, preferred);
}
