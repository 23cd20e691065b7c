//! What a node says of its lock and of its transactions.

use homelab_model::{History, Phase};
use serde_json::{Value, json};

use crate::amounts::words;
use crate::planfile::utc;

/// For programs.
pub(crate) fn history_json(history: &History) -> Value {
    json!({
        "holder": history.holder,
        "open": history.open.as_ref().map(|open| json!({
            "id": open.id,
            "by": open.by,
            "phase": open.phase,
            "remaining": open.remaining,
            "changes": open.changes,
        })),
        "reverted": history.reverted.as_ref().map(|back| json!({
            "id": back.id,
            "by": back.by,
            "at": utc(back.at),
            "reason": back.reason,
            "left": back.left,
        })),
        "confirmed": history.confirmed.as_ref().map(|done| json!({
            "id": done.id,
            "by": done.by,
            "at": utc(done.at),
            "revertible": done.revertible,
        })),
    })
}

/// Label and text of what there is to say; the flag says whether it is good.
pub(super) fn history_lines(history: &History) -> Vec<(&'static str, bool, String)> {
    let mut lines = Vec::new();
    if let Some(holder) = &history.holder {
        lines.push(("lock", true, format!("held by {holder} since {}", utc(holder.since))));
    }
    if let Some(open) = &history.open {
        let state = match open.phase {
            Phase::Held => "on trial",
            Phase::Armed => "being made",
            Phase::Applied => "made and not confirmed",
            Phase::RollingBack => "being taken back",
        };
        let end = match (open.phase, open.remaining) {
            (Phase::RollingBack, _) => String::new(),
            (_, 0) => ", taken back now".to_owned(),
            (_, seconds) => format!(", taken back in {} unless confirmed", words(seconds)),
        };
        let changes = super::count(open.changes, "change");
        lines.push(("open", false, format!("{changes} of {} {state}{end}", open.by)));
    }
    if let Some(reverted) = &history.reverted {
        let mut text = format!(
            "the change of {} was taken back at {}: {}",
            reverted.by,
            utc(reverted.at),
            reverted.reason
        );
        if !reverted.left.is_empty() {
            text.push_str(&format!("; not as before: {}", reverted.left.join(", ")));
        }
        lines.push(("rollback", false, text));
    }
    if let Some(done) = &history.confirmed {
        let back = if done.revertible { "; homelab rollback takes it back" } else { "" };
        lines.push(("applied", true, format!("by {} at {}{back}", done.by.who, utc(done.at))));
    }
    lines
}
