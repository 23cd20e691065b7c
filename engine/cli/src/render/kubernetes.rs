//! The Kubernetes API's part of plans and reports.

use homelab_driver::{KubernetesOutcome, PlannedKubernetes};
use homelab_model::{ApiChange, ApiError, ApiObject};
use serde_json::{Map, Value, json};

use super::fields::{Field, fields_of};
use super::human::item_human;
use super::markdown::{code, details_of, item_markdown};
use super::page::{Page, bold};
use super::words::Words;
use super::{ErrorText, parts};
use crate::hints;

/// What the section is called.
pub(crate) const TITLE: &str = "kubernetes";

fn error_text(error: &ApiError) -> ErrorText {
    ErrorText { message: error.to_string(), hints: hints::kubernetes(error) }
}

/// The fields that a change makes or alters. Names and labels are in its title.
fn api_fields(change: &ApiChange, full: bool) -> Vec<Field> {
    let shown = |object: &ApiObject| {
        let mut fields: Map<String, Value> =
            object.fields.iter().map(|(name, value)| (name.clone(), readable(value))).collect();
        fields.extend(object.uid.as_ref().map(|uid| ("uid".to_owned(), json!(uid))));
        Value::Object(fields)
    };
    fields_of(
        &change.object,
        change.action,
        change.change.before().map(shown),
        change.change.after().map(shown),
        full,
    )
}

/// Rules and subjects in a line each.
fn readable(value: &Value) -> Value {
    let Value::Array(items) = value else { return value.clone() };
    items.iter().map(line).collect()
}

fn line(item: &Value) -> Value {
    let list =
        |key: &str| -> Option<Vec<&str>> { item.get(key)?.as_array()?.iter().map(Value::as_str).collect() };
    if let (Some(verbs), Some(resources)) = (list("verbs"), list("resources")) {
        let named =
            list("resourceNames").map(|names| format!(" named {}", names.join(", "))).unwrap_or_default();
        let groups = list("apiGroups").unwrap_or_default().join(", ");
        let of = if groups.is_empty() { String::new() } else { format!(" of {groups}") };
        return json!(format!("{} {}{of}{named}", verbs.join(", "), resources.join(", ")));
    }
    match (item["kind"].as_str(), item["namespace"].as_str(), item["name"].as_str()) {
        (Some(kind), Some(namespace), Some(name)) => json!(format!("{kind} {namespace}/{name}")),
        _ => item.clone(),
    }
}

/// The section for people.
pub(super) fn kubernetes_human(page: &mut Page, planned: &PlannedKubernetes, verbose: bool) {
    let head = [bold(TITLE), format!(" ({})", planned.server).into()];
    match &planned.outcome {
        Ok(changes) if changes.is_empty() => {}
        Ok(changes) => {
            page.line(&head);
            for change in changes {
                let fields = api_fields(change, verbose);
                item_human(
                    page,
                    change.action,
                    change.object.clone(),
                    &fields,
                    (change.impact, change.reason),
                );
            }
            page.blank();
        }
        Err(error) => {
            page.line(&head);
            error_text(error).show(page, 2);
            page.blank();
        }
    }
}

/// The section for comments, and what is said above it where there is no plan.
pub(super) fn kubernetes_markdown(planned: &PlannedKubernetes) -> (Option<Page>, Option<String>) {
    match &planned.outcome {
        Ok(changes) if changes.is_empty() => (None, None),
        Ok(changes) => {
            let mut body = Vec::new();
            for change in changes {
                let fields = api_fields(change, false);
                item_markdown(
                    &mut body,
                    change.action,
                    &change.object,
                    &fields,
                    (change.impact, change.reason),
                );
            }
            let title = format!("{TITLE} ({}): {}", planned.server, parts(&planned.summary(), true));
            (Some(details_of(&title, body)), None)
        }
        Err(error) => {
            let text = error_text(error);
            let mut note = format!("> **{TITLE}** could not be planned: {}", code(&text.message));
            for hint in &text.hints {
                note.push_str(&format!("\n> Hint: {}", code(hint)));
            }
            (None, Some(note))
        }
    }
}

/// The section for programs.
pub(super) fn kubernetes_json(planned: &PlannedKubernetes) -> Value {
    let change = |change: &ApiChange| {
        json!({
            "object": change.object,
            "action": change.action,
            "before": change.change.before(),
            "after": change.change.after(),
            "impact": change.impact,
            "reason": change.reason,
        })
    };
    let summary = planned.summary();
    json!({
        "server": planned.server,
        "changes": planned.changes().iter().map(change).collect::<Vec<_>>(),
        "error": planned.outcome.as_ref().err().map(error_text),
        "summary": {
            "create": summary.create,
            "update": summary.update,
            "replace": summary.replace,
            "delete": summary.delete,
            "impact": planned.impact(),
        },
    })
}

/// `15 to create in the Kubernetes API`, if there is anything.
pub(super) fn sentence_part(planned: &PlannedKubernetes) -> Option<String> {
    let some = !planned.changes().is_empty();
    some.then(|| format!("{} in the Kubernetes API", parts(&planned.summary(), true)))
}

/// How it went, for people.
pub(super) fn kubernetes_words(outcome: &KubernetesOutcome) -> Words {
    match outcome {
        KubernetesOutcome::Changed(summary) => Words::good(parts(summary, false)),
        KubernetesOutcome::Unchanged => Words::good("nothing to do"),
        KubernetesOutcome::Unplanned(error) => Words::bad("not changed").error(Some(error_text(error))),
        KubernetesOutcome::Failed { done, error } => {
            let before =
                if done.is_empty() { String::new() } else { format!(" after {}", parts(done, false)) };
            Words::bad(format!("failed{before}")).error(Some(error_text(error)))
        }
        KubernetesOutcome::NotStarted => {
            Words::bad("not changed: nodes still need it, or the run was stopped")
                .hint("run the command again when all nodes can be reached")
        }
    }
}

/// How it went, for programs.
pub(super) fn outcome_json(outcome: &KubernetesOutcome) -> Value {
    let (word, summary, error) = match outcome {
        KubernetesOutcome::Changed(summary) => ("changed", Some(*summary), None),
        KubernetesOutcome::Unchanged => ("unchanged", None, None),
        KubernetesOutcome::Unplanned(error) => ("unplanned", None, Some(error)),
        KubernetesOutcome::Failed { done, error } => ("failed", Some(*done), Some(error)),
        KubernetesOutcome::NotStarted => ("not_started", None, None),
    };
    json!({ "outcome": word, "summary": summary, "error": error.map(error_text) })
}
