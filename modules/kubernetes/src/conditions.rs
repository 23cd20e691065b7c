//! Conditions of Nodes.

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The condition by which a Node says that pods on it cannot be reached; the node lifecycle controller taints such Nodes.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The strategic merge patch of `nodes/NAME/status` that says that the network is there, as flannel does once its own is
/// (`subnet/kube`, setNodeNetworkUnavailableFalse); None: the Node says so already.
///
/// The list is merged by `type`: other conditions stay.
pub fn network_is_there(node: &Node, now: Timestamp) -> Option<Value> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let has = conditions.iter().find(|condition| condition.type_ == NETWORK_UNAVAILABLE);
    if has.is_some_and(|condition| condition.status == "False") {
        return None;
    }
    let condition = NodeCondition {
        type_: NETWORK_UNAVAILABLE.to_owned(),
        status: "False".to_owned(),
        reason: Some("HomelabIsUp".to_owned()),
        message: Some("homelab is running on this node".to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    Some(json!({ "status": { "conditions": [condition] } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_cleared_once_and_left_to_whoever_cleared_it() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let node = |status: Option<&str>| -> Node {
            let condition = status.map(|status| json!({ "type": NETWORK_UNAVAILABLE, "status": status }));
            let ready = json!({ "type": "Ready", "status": "True" });
            let conditions: Vec<Value> = [ready].into_iter().chain(condition).collect();
            serde_json::from_value(json!({
                "metadata": { "name": "node1" },
                "status": { "conditions": conditions },
            }))
            .unwrap()
        };
        let patch = network_is_there(&node(Some("True")), now).unwrap();
        assert_eq!(patch["status"]["conditions"][0]["type"], NETWORK_UNAVAILABLE);
        assert_eq!(patch["status"]["conditions"][0]["status"], "False");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2027-01-15T08:00:00Z");
        assert_eq!(network_is_there(&node(None), now), Some(patch.clone()));
        assert_eq!(network_is_there(&node(Some("Unknown")), now), Some(patch));
        assert_eq!(network_is_there(&node(Some("False")), now), None);
    }
}
