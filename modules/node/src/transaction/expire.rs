//! What the timer and the boot do with a transaction that nobody confirmed.

use std::time::Duration;

use homelab_model::{Phase, Reverted};

use super::journal::Journal;
use super::{finish, undo};
use crate::host::Host;

/// How often to look whether an apply that is at work has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// An undo at boot that did not end well is tried again after this, seconds.
const BOOT_RETRY: u64 = 5;

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There was nothing to take back.
    Nothing,
    /// It was confirmed.
    Confirmed,
    /// It was taken back.
    TakenBack(Reverted),
}

/// The timer of transaction `id`: waits until its time is over, and takes it back unless it was confirmed.
///
/// An apply that is at work is waited for, as long as it gets on: a slow node is no broken one.
pub(crate) fn expire<H: Host>(host: &mut H, id: &str) -> Result<Ended, String> {
    loop {
        let Some(alone) = host.lock_apply(Duration::ZERO)? else {
            // Its patience is its own; a journal that cannot be read is not written yet.
            let patience = Journal::read(host).ok().flatten().map_or(u64::MAX, |j| j.timeout);
            if host.progress_age().is_some_and(|age| age.as_secs() >= patience) {
                host.kill_apply();
            }
            host.sleep(LOOK_AGAIN);
            continue;
        };
        host.touch_progress();
        let journal = match Journal::read(host)? {
            None => {
                finish::tidy(host, Some(id))?;
                return Ok(Ended::Nothing);
            }
            // It belongs to the timer of that other one.
            Some(journal) if journal.id != id => return Ok(Ended::Nothing),
            Some(journal) => journal,
        };
        if finish::is_confirmed(host, id) {
            finish::finish(host, &journal)?;
            return Ok(Ended::Confirmed);
        }
        let remaining = journal.remaining(host);
        if remaining == 0 {
            let reason = match journal.phase {
                Phase::Held => "the time to try it is over".to_owned(),
                Phase::Armed => "the apply ended in the middle of its changes".to_owned(),
                _ => format!("nobody confirmed it within {} s", journal.timeout),
            };
            return undo::roll_back(host, journal, &reason).map(Ended::TakenBack);
        }
        drop(alone);
        host.sleep(Duration::from_millis(remaining));
    }
}

/// At boot, before the agent starts: takes back whatever is open, also what was held for a try.
pub(crate) fn recover<H: Host>(host: &mut H) -> Result<Ended, String> {
    // Nobody else is at work so early, or must wait.
    let _alone = host.lock_apply(Duration::from_secs(20))?;
    let Some(journal) = Journal::read(host)? else {
        finish::tidy(host, None)?;
        return Ok(Ended::Nothing);
    };
    if finish::is_confirmed(host, &journal.id) {
        finish::finish(host, &journal)?;
        return Ok(Ended::Confirmed);
    }
    // If this ends too early, or the node cannot be looked at yet.
    let _ = host.rearm(&journal.id, BOOT_RETRY);
    undo::roll_back_at_boot(host, journal, "the node went down before it was confirmed").map(Ended::TakenBack)
}
