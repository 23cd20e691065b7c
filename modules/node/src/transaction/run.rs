//! The changes themselves.

use homelab_model::{Change, NodeObject, Phase};
use homelab_protocol::{Failure, Fault};

use super::journal::Journal;
use super::{Refusal, error, is_unlocked, lock_apply, refuse, undo};
use crate::host::{ApplyFailure, Host};

/// Carries out the changes of the open transaction `id`, or undoes them if one fails. Afterwards it waits to be
/// confirmed.
pub(crate) fn run<H: Host>(host: &mut H, id: &str, progress: &mut dyn FnMut(usize)) -> Result<(), Refusal> {
    let point = host.marker();
    let _alone = lock_apply(host)?;
    let journal = Journal::read(host).map_err(error)?;
    let Some(mut journal) = journal.filter(|j| j.id == id && j.phase == Phase::Armed) else {
        return Err(refuse(Fault::NoTransaction, "the transaction is no longer open"));
    };
    if !host.reserved() {
        return Err(refuse(Fault::NoTransaction, "the transaction is being taken back"));
    }
    host.adopt_asides(&journal.changes);
    let result = in_segments(host, &journal.changes, progress);
    let result = result.and_then(|()| host.reload_if_needed().map_err(nameless)).and_then(|()| {
        point("journal.applied.before");
        journal.phase = Phase::Applied;
        let timeout = journal.timeout;
        journal.wait(host, timeout);
        journal.write(host).map_err(nameless)?;
        point("journal.applied.after");
        Ok(())
    });
    let Err(failed) = result else { return Ok(()) };
    let reason = if failed.object.is_empty() {
        failed.message.clone()
    } else {
        format!("{}: {}", failed.object, failed.message)
    };
    let left = match undo::roll_back(host, journal, &reason) {
        Ok(reverted) => reverted.left,
        // The timer tries again.
        Err(message) => vec![message],
    };
    Err(Box::new(Failure {
        fault: Fault::Error,
        object: failed.object,
        message: failed.message,
        undone: left.is_empty(),
        left,
    }))
}

fn nameless(message: String) -> ApplyFailure {
    ApplyFailure { object: String::new(), message }
}

/// Applies `changes` with the agent locked out, except while units are changed: the agent that starts then may
/// need the lock before systemd counts it as started.
fn in_segments<H: Host>(
    host: &mut H,
    changes: &[Change<NodeObject>],
    progress: &mut dyn FnMut(usize),
) -> Result<(), ApplyFailure> {
    let point = host.marker();
    let total = changes.len();
    let mut done = 0;
    for segment in changes.chunk_by(|a, b| is_unlocked(a) == is_unlocked(b)) {
        let guard = if is_unlocked(&segment[0]) { None } else { Some(host.lock().map_err(nameless)?) };
        point(&format!("effect.{done}.before"));
        host.apply(segment, &mut |n| {
            point(&format!("effect.{}.after", done + n - 1));
            progress(done + n);
            // The first of the next segment has its own.
            if n < segment.len() && done + n < total {
                point(&format!("effect.{}.before", done + n));
            }
        })?;
        drop(guard);
        done += segment.len();
    }
    Ok(())
}
