//! `interface_selector.go`, "L2-interface selector".

use homelab_model::LbUnfit;
use homelab_tests::Cluster;
use serde_json::json;

use crate::case::{Case, Owner, Slot, Step, cases, of_node, run};
use crate::stage::{NODES, Problems, Stage};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        validate_l2_service_status_interface,
        validate_the_lb_ips_mac,
        modify_l2_interface,
        specify_not_existing_interfaces,
        address_pool_connected_with_two_l2_advertisements,
        node_selector,
    ];
    run(cluster, stage, CASES)
}

/// "Validate L2ServiceStatus interface": every step of every case compares what the owner reports.
pub(crate) fn validate_l2_service_status_interface(slot: &Slot) -> Vec<Step> {
    let one =
        |name| slot.step(&[json!({ "interfaces": [name] })]).on(slot.address(0), slot.natural(), &[name]);
    vec![one("eth0")]
}

/// "Validate the LB IP's mac".
pub(crate) fn validate_the_lb_ips_mac(slot: &Slot) -> Vec<Step> {
    let advertisement = json!({ "interfaces": ["eth1"] });
    vec![slot.step(&[advertisement]).on(slot.address(0), slot.natural(), &["eth1"])]
}

/// "Modify L2 interface".
pub(crate) fn modify_l2_interface(slot: &Slot) -> Vec<Step> {
    let on =
        |name| slot.step(&[json!({ "interfaces": [name] })]).on(slot.address(0), slot.natural(), &[name]);
    vec![on("eth0"), on("eth1"), on("eth0")]
}

/// "Specify not existing interfaces". Theirs elects a node that cannot announce; ours none, and says why.
pub(crate) fn specify_not_existing_interfaces(slot: &Slot) -> Vec<Step> {
    let nobody = Owner::Nobody(LbUnfit::NoInterface);
    let advertisement = json!({ "interfaces": ["foo"] });
    vec![slot.step(&[advertisement]).on(slot.address(0), nobody, &[])]
}

/// "Address pool connected with two L2 advertisements".
pub(crate) fn address_pool_connected_with_two_l2_advertisements(slot: &Slot) -> Vec<Step> {
    let both = ["eth0", "eth1"];
    let advertisements = both.map(|name| json!({ "interfaces": [name] }));
    vec![slot.step(&advertisements).on(slot.address(0), slot.natural(), &both)]
}

/// "node selector".
pub(crate) fn node_selector(slot: &Slot) -> Vec<Step> {
    let on = |node: &str| {
        let advertisement = json!({ "interfaces": ["eth0"], "nodeSelectors": [of_node(node)] });
        slot.step(&[advertisement]).owner(slot.address(0), Owner::Is(node.to_owned()))
    };
    NODES.map(on).into()
}
