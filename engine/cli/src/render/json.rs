//! Plans for programs.

use homelab_driver::{Plan, PlannedNode};
use homelab_model::{NodeObject, PlannedChange};
use serde_json::{Value, json};

use super::kubernetes::kubernetes_json;
use super::{ErrorText, history_json};

/// The plan as JSON. Names that other things rely on: `format_version`, `nodes[].name`, `nodes[].changes[]` with
/// `module`, `object`, `action`, `before`, `after`, `impact`; `summary`; `kubernetes` with `changes` of the same form,
/// where the cluster file speaks of it.
pub fn plan_json(plan: &Plan) -> Value {
    let summary = plan.summary();
    let mut value = json!({
        "format_version": Plan::FORMAT,
        "cluster": plan.cluster,
        "destroy": plan.destroy,
        "nodes": plan.nodes.iter().map(node).collect::<Vec<_>>(),
        "departed": plan.departed,
        "warnings": plan.warnings,
        "summary": {
            "create": summary.create,
            "update": summary.update,
            "replace": summary.replace,
            "delete": summary.delete,
            "changed_nodes": plan.changed_nodes(),
            "failed_nodes": plan.failed_nodes(),
            "impact": plan.impact(),
        },
    });
    if let Some(planned) = &plan.kubernetes {
        value["kubernetes"] = kubernetes_json(planned);
    }
    value
}

fn node(node: &PlannedNode) -> Value {
    let (changes, error) = match &node.outcome {
        Ok(plan) => (plan.shown().iter().map(change_json).collect(), None),
        Err(error) => (Vec::new(), Some(ErrorText::of(error))),
    };
    json!({
        "name": node.name,
        "address": node.address,
        "changes": changes,
        "error": error,
        "history": history_json(&node.history),
    })
}

pub(super) fn change_json(change: &PlannedChange) -> Value {
    json!({
        "module": change.module,
        "object": change.object,
        "action": change.action,
        "before": change.change.before().map(object),
        "after": change.change.after().map(object),
        "impact": change.impact,
        "reason": change.reason,
    })
}

/// The object's own fields; its module stands beside it.
fn object(object: &NodeObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("module");
    }
    value
}
