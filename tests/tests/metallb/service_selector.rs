//! `service_selector.go`, "L2-ServiceSelector".

use homelab_model::LbUnfit;
use homelab_tests::Cluster;
use serde_json::{Value, json};

use crate::case::{Case, Owner, Slot, Step, cases, of_node, run};
use crate::stage::{Problems, Stage};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        should_only_advertise_services_matching_both_pool_and_service_selectors,
        should_announce_from_exactly_one_node_when_both_advertisements_match_the_service,
        should_not_announce_when_no_advertisement_matches_both_service_and_node,
        should_use_or_logic_for_multiple_selectors,
    ];
    run(cluster, stage, CASES)
}

fn app(name: &str) -> Value {
    json!({ "matchLabels": { "app": name } })
}

fn labelled(slot: &Slot, n: u8, name: &str) -> Value {
    slot.service(n, json!({ "labels": { "app": name } }))
}

fn nobody(why: LbUnfit) -> Owner {
    Owner::Nobody(why)
}

/// "should only advertise services matching both pool and service selectors".
pub(crate) fn should_only_advertise_services_matching_both_pool_and_service_selectors(
    slot: &Slot,
) -> Vec<Step> {
    let of_first = json!({ "ipAddressPools": [slot.pool(0)], "serviceSelectors": [app("web")] });
    let step = |first| {
        slot.step(std::slice::from_ref(&of_first))
            .services(vec![labelled(slot, 0, first), labelled(slot, 1, "web")])
    };
    let other_pool = |step: Step| step.on(slot.address(1), nobody(LbUnfit::NoAdvertisement), &[]);
    vec![
        other_pool(step("web").owner(slot.address(0), slot.natural())),
        other_pool(step("db").on(slot.address(0), nobody(LbUnfit::NoAdvertisement), &[])),
    ]
}

/// "should announce from exactly one node when both advertisements match the service".
pub(crate) fn should_announce_from_exactly_one_node_when_both_advertisements_match_the_service(
    slot: &Slot,
) -> Vec<Step> {
    let nodes = ["node1", "node2"];
    let two =
        nodes.map(|node| json!({ "serviceSelectors": [app("test")], "nodeSelectors": [of_node(node)] }));
    let step = slot.step(&two).services(vec![labelled(slot, 0, "test")]);
    vec![step.owner(slot.address(0), Owner::Among(nodes.map(str::to_owned).into()))]
}

/// "should not announce when no advertisement matches both service and node".
pub(crate) fn should_not_announce_when_no_advertisement_matches_both_service_and_node(
    slot: &Slot,
) -> Vec<Step> {
    let other = json!({ "serviceSelectors": [app("other")] });
    let nowhere =
        json!({ "serviceSelectors": [app("web")], "nodeSelectors": [of_node("non-existing-node")] });
    let step = slot.step(&[other, nowhere]).services(vec![labelled(slot, 0, "web")]);
    vec![step.on(slot.address(0), nobody(LbUnfit::NotSelected), &[])]
}

/// "should use OR logic for multiple selectors".
pub(crate) fn should_use_or_logic_for_multiple_selectors(slot: &Slot) -> Vec<Step> {
    let step = |name| {
        let advertisement = json!({ "serviceSelectors": [app("nginx"), app("apache")] });
        slot.step(&[advertisement]).services(vec![labelled(slot, 0, name)])
    };
    vec![
        step("nginx").owner(slot.address(0), slot.natural()),
        step("other").on(slot.address(0), nobody(LbUnfit::NoAdvertisement), &[]),
        step("apache").owner(slot.address(0), slot.natural()),
    ]
}
