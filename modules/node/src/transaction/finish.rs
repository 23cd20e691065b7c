//! The laptop's word: the changes stay.

use std::collections::BTreeSet;

use homelab_model::{Change, Confirmed, Key, NodeObject, Object, Phase, Previous, Spec, ours};
use homelab_protocol::Fault;

use super::journal::{ConfirmedRecord, Journal};
use super::{Refusal, error, lock_apply, refuse, undo};
use crate::host::{Host, Record};

/// The command that takes a confirmed transaction back: what it leads to is not taken back in turn.
const ROLLBACK: &str = "rollback";

/// The changes of `id` stay. May be said twice.
pub(crate) fn confirm<H: Host>(host: &mut H, id: &str) -> Result<(), Refusal> {
    let _alone = lock_apply(host)?;
    let Some(journal) = waiting(host, id)? else { return Ok(()) };
    let point = host.marker();
    let previous = Previous {
        confirmed: Confirmed {
            id: journal.id.clone(),
            by: journal.by.clone(),
            at: host.unix_seconds(),
            spec: journal.spec(),
            revertible: journal.by.command != ROLLBACK,
        },
        before: without_strangers(&journal),
    };
    point("confirm.record.before");
    // This write is the moment from which on nothing takes the changes back.
    let record = ConfirmedRecord::new(previous, journal.farewell);
    let mut written = record.write(host);
    if written.is_err() {
        // On a full disk there is room laid aside; without it there is no way but one.
        host.free_reserve().map_err(error)?;
        point("confirm.reserve.after");
        written = record.write(host);
    }
    if let Err(message) = written {
        let reason = format!("that it was confirmed could not be written down: {message}");
        let left = match undo::roll_back(host, journal, &reason) {
            Ok(reverted) => reverted.left,
            Err(message) => vec![message],
        };
        let mut failure = error(message);
        failure.undone = left.is_empty();
        failure.left = left;
        return Err(failure);
    }
    point("confirm.record.after");
    finish(host, &journal).map_err(error)
}

/// The changes of `id` stay for so many seconds; then they are taken back, unless they are confirmed.
pub(crate) fn hold<H: Host>(host: &mut H, id: &str, seconds: u64) -> Result<(), Refusal> {
    let _alone = lock_apply(host)?;
    let Some(mut journal) = waiting(host, id)? else {
        return Err(refuse(Fault::NoTransaction, "the transaction was confirmed already"));
    };
    let point = host.marker();
    if seconds.saturating_mul(1000) < journal.remaining(host) {
        point("hold.timer.before");
        host.rearm(id, seconds).map_err(error)?;
        point("hold.timer.after");
    }
    // A later time needs no timer of its own: the one of the beginning comes before, and waits for it.
    journal.phase = Phase::Held;
    journal.wait(host, seconds);
    point("journal.held.before");
    journal.write(host).map_err(error)?;
    point("journal.held.after");
    Ok(())
}

/// The last confirmed transaction and the state before it.
pub(crate) fn previous<H: Host>(host: &mut H) -> Result<Option<Previous>, Refusal> {
    Ok(ConfirmedRecord::read(host).map_err(error)?.map(|record| record.previous))
}

/// The open transaction `id`, if it waits for the laptop's word; None if that was said.
fn waiting<H: Host>(host: &mut H, id: &str) -> Result<Option<Journal>, Refusal> {
    let journal = Journal::read(host).map_err(error)?.filter(|j| j.id == id);
    if is_confirmed(host, id) {
        match journal {
            Some(journal) => finish(host, &journal),
            None => tidy(host, Some(id)),
        }
        .map_err(error)?;
        return Ok(None);
    }
    let Some(journal) = journal else {
        return Err(refuse(Fault::NoTransaction, "there is no such transaction: it was taken back"));
    };
    match journal.phase {
        Phase::Armed => Err(error("its changes are not made yet")),
        Phase::Applied | Phase::Held if host.reserved() => Ok(Some(journal)),
        _ => Err(refuse(Fault::NoTransaction, "the transaction is being taken back")),
    }
}

/// Whether `id` is the last confirmed transaction.
pub(super) fn is_confirmed<H: Host>(host: &mut H, id: &str) -> bool {
    matches!(ConfirmedRecord::read(host), Ok(Some(record)) if record.previous.confirmed.id == id)
}

/// What remains to be done once a transaction is on record as confirmed. May be interrupted anywhere and done again.
pub(super) fn finish<H: Host>(host: &mut H, journal: &Journal) -> Result<(), String> {
    let point = host.marker();
    host.adopt_asides(&journal.changes);
    if host.retire_asides(&journal.id).is_err() {
        let _ = host.free_reserve();
        host.adopt_asides(&journal.changes);
        // Without room a later rollback does without what no plan has words for.
        host.retire_asides(&journal.id).or_else(|_| {
            host.adopt_asides(&journal.changes);
            host.drop_asides()
        })?;
    }
    point("confirm.asides.after");
    host.remove_record(Record::Reverted)?;
    point("confirm.journal.before");
    host.remove_transaction()?;
    point("confirm.journal.after");
    tidy(host, Some(&journal.id))
}

/// Takes away what is left once there is no journal: of a beginning, or of an end, that was cut short.
pub(super) fn tidy<H: Host>(host: &mut H, id: Option<&str>) -> Result<(), String> {
    let point = host.marker();
    sweep(host)?;
    host.disarm(id)?;
    point("confirm.disarm.after");
    Ok(())
}

/// The same, but what is armed stays.
pub(super) fn sweep<H: Host>(host: &mut H) -> Result<(), String> {
    let point = host.marker();
    host.remove_transaction()?;
    if let Ok(Some(record)) = ConfirmedRecord::read(host)
        && record.farewell
    {
        point("confirm.farewell.before");
        host.farewell()?;
        point("confirm.farewell.after");
    }
    Ok(())
}

/// The state before, without links under names of ours that are not ours, and what hangs on them.
fn without_strangers(journal: &Journal) -> Vec<NodeObject> {
    let ours = |key: &Key| journal.changes.iter().any(|change: &Change<NodeObject>| change.key() == *key);
    let strangers: BTreeSet<Key> = journal
        .before
        .iter()
        .filter(|o| matches!(&o.spec, Spec::Link(link) if link.alias != ours::LINK_ALIAS) && !ours(&o.key()))
        .map(Object::key)
        .collect();
    let kept = |o: &&NodeObject| {
        !strangers.contains(&o.key()) && o.parent().is_none_or(|parent| !strangers.contains(&parent))
    };
    journal.before.iter().filter(kept).cloned().collect()
}
