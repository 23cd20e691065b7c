//! What the nodes' transactions mean for a plan. Pure.

use homelab_model::{History, Holder, NodePlan, Observed, OpenTransaction, Phase, plan_node};

use crate::keys;
use crate::kubernetes;
use crate::passwords;
use crate::plan::owned;

/// What a user should know of a node's transactions, in plain sentences. `now`: seconds since 1970.
pub(crate) fn warnings(name: &str, history: &History, now: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(holder) = &history.holder {
        warnings.push(format!("{name} is locked by {holder}"));
    }
    match &history.open {
        Some(open) if open.phase == Phase::Held => warnings.push(format!(
            "{name}: {} tries out a change; the node takes it back in {} unless it is confirmed",
            open.by.who,
            span(open.remaining)
        )),
        Some(open) if history.holder.is_none() => warnings.push(format!(
            "{name} still has a change by {} that nobody confirmed; it takes it back in {}, apply takes it back at once",
            open.by.who,
            span(open.remaining)
        )),
        _ => {}
    }
    if let Some(reverted) = &history.reverted {
        let mut text = format!(
            "{name}: the last change (by {}, {} ago) was taken back: {}",
            reverted.by.who,
            span(now.saturating_sub(reverted.at)),
            reverted.reason
        );
        if !reverted.left.is_empty() {
            text.push_str(&format!("; these are not as before: {}", reverted.left.join(", ")));
        }
        warnings.push(text);
    }
    warnings
}

/// A node has no load-balancer addresses because somebody said so.
pub(crate) fn cordoned(name: &str, by: &Holder, now: u64) -> String {
    let ago = span(now.saturating_sub(by.since));
    format!(
        "{name} is cordoned (by {}, {ago} ago): it has no load-balancer addresses until homelab uncordon {name}",
        by.who
    )
}

/// What was done about a change that a dead laptop left.
pub(crate) fn taken_back(name: &str, open: &OpenTransaction, left: &[String]) -> String {
    let mut text = format!("{name}: a change by {} that nobody confirmed was taken back", open.by.who);
    if !left.is_empty() {
        text.push_str(&format!("; these are not as before: {}", left.join(", ")));
    }
    text
}

/// A span of time in the largest unit that fits.
fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..=119 => return format!("{seconds} s"),
        120..=7199 => (seconds / 60, "minutes"),
        7200..=172_799 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

/// What was changed by hand since the last apply, as the changes that would undo it.
pub(crate) fn drift(name: &str, observed: &Observed, ring: Option<&str>) -> Option<NodePlan> {
    if observed.history.open.is_some() {
        // What that one changed is not told from the work of a hand.
        return None;
    }
    let confirmed = observed.history.confirmed.as_ref().and_then(|c| c.spec.as_ref());
    let told = confirmed.or(observed.spec.as_ref())?;
    let mut base = homelab_desired::desired(told);
    if let Some(ring) = ring {
        base.push(keys::object(ring));
    }
    base.extend(passwords::unseen(told, observed));
    base.extend(kubernetes::unseen(told, observed));
    Some(plan_node(name, &owned(observed), &base))
}

#[cfg(test)]
mod tests {
    use homelab_model::Reverted;

    use super::*;

    fn me() -> Holder {
        Holder { who: "me@laptop".into(), pid: 7, command: "apply".into(), since: 1000 }
    }

    #[test]
    fn sentences() {
        let open =
            OpenTransaction { id: "1".into(), by: me(), phase: Phase::Applied, remaining: 41, changes: 3 };
        let reverted = Reverted {
            id: "0".into(),
            by: me(),
            at: 1000,
            reason: "nobody confirmed it within 60 s".into(),
            left: Vec::new(),
        };
        let history = History { open: Some(open.clone()), reverted: Some(reverted), ..History::default() };
        assert_eq!(
            warnings("node2", &history, 1180),
            [
                "node2 still has a change by me@laptop that nobody confirmed; it takes it back in 41 s, apply takes \
                 it back at once",
                "node2: the last change (by me@laptop, 3 minutes ago) was taken back: nobody confirmed it within 60 s"
            ]
        );
        let working = History { holder: Some(me()), open: Some(open.clone()), ..History::default() };
        assert_eq!(
            warnings("node2", &working, 0),
            ["node2 is locked by me@laptop (homelab apply, process 7)"]
        );
        let held = OpenTransaction { phase: Phase::Held, remaining: 600, ..open };
        let held = History { open: Some(held), ..History::default() };
        assert_eq!(
            warnings("node2", &held, 0),
            [
                "node2: me@laptop tries out a change; the node takes it back in 10 minutes unless it is confirmed"
            ]
        );
        assert_eq!(
            cordoned("node2", &me(), 1180),
            "node2 is cordoned (by me@laptop, 3 minutes ago): it has no load-balancer addresses until homelab \
             uncordon node2"
        );
        // Clocks differ.
        assert_eq!(span(0u64.saturating_sub(9)), "0 s");
    }
}
