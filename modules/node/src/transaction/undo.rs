//! Taking a transaction back.

use std::collections::BTreeMap;

use homelab_model::{Change, Key, Module, NodeObject, Phase, Reverted, Spec, diff, ours, sha256_hex};
use homelab_protocol::Fault;

use super::journal::{Journal, read_reverted, write_reverted};
use super::{Refusal, error, finish, is_durable, is_nft, is_unlocked, lock_apply, refuse};
use crate::host::Host;

/// How often to look and mend. The second time is for what the agent did meanwhile.
const PASSES: usize = 3;

/// Takes the open transaction `id` back, or says what became of it if that was done already.
pub(crate) fn roll_back_open<H: Host>(host: &mut H, id: &str, reason: &str) -> Result<Vec<String>, Refusal> {
    let _alone = lock_apply(host)?;
    let Some(journal) = Journal::read(host).map_err(error)?.filter(|j| j.id == id) else {
        return match read_reverted(host).filter(|r| r.id == id) {
            Some(reverted) => Ok(reverted.left),
            None => Err(refuse(Fault::NoTransaction, "there is no such transaction")),
        };
    };
    if finish::is_confirmed(host, id) {
        finish::finish(host, &journal).map_err(error)?;
        return Err(refuse(Fault::NoTransaction, "the transaction was confirmed"));
    }
    roll_back(host, journal, reason).map(|reverted| reverted.left).map_err(error)
}

/// Leads the node back to what it was before the transaction. The caller holds the apply lock.
///
/// An error means that the node could not be looked at, or that something of the transaction is still there: it stays
/// open for another try.
pub(super) fn roll_back<H: Host>(host: &mut H, journal: Journal, reason: &str) -> Result<Reverted, String> {
    take_back(host, journal, reason, false)
}

/// The same while the machine starts: the agent does not run yet, and makes what a reboot takes away again.
pub(super) fn roll_back_at_boot<H: Host>(
    host: &mut H,
    journal: Journal,
    reason: &str,
) -> Result<Reverted, String> {
    host.at_boot();
    take_back(host, journal, reason, true)
}

fn take_back<H: Host>(
    host: &mut H,
    mut journal: Journal,
    reason: &str,
    boot: bool,
) -> Result<Reverted, String> {
    let point = host.marker();
    point("rollback.begin.before");
    // This alone marks the transaction as one that cannot be confirmed any more; it works on a full disk.
    host.free_reserve()?;
    point("rollback.reserve.after");
    if journal.phase != Phase::RollingBack {
        journal.phase = Phase::RollingBack;
        journal.reason = Some(reason.to_owned());
        // It only tells why.
        let _ = journal.write(host);
    }
    point("rollback.begin.after");
    host.adopt_asides(&journal.changes);
    let left = restore(host, &journal, boot)?;
    let reverted = Reverted {
        id: journal.id.clone(),
        by: journal.by.clone(),
        at: host.unix_seconds(),
        reason: journal.reason.clone().unwrap_or_else(|| reason.to_owned()),
        left,
    };
    point("rollback.record.before");
    // A node that is as before is worth more than the note that it is.
    let _ = write_reverted(host, reverted.clone(), journal.fresh);
    point("rollback.record.after");
    // While something of it is left it is not over: the timer tries again.
    host.drop_asides()?;
    point("rollback.journal.before");
    host.remove_transaction()?;
    point("rollback.journal.after");
    host.disarm(Some(&journal.id))?;
    point("rollback.disarm.after");
    Ok(reverted)
}

/// Looks and mends until nothing differs. Gives what still does.
fn restore<H: Host>(host: &mut H, journal: &Journal, boot: bool) -> Result<Vec<String>, String> {
    let point = host.marker();
    let mut failures: BTreeMap<Key, String> = BTreeMap::new();
    let mut reload = Ok(());
    let mut step = 0;
    for pass in 0.. {
        // An agent that cannot be kept out is no reason to leave the node half changed.
        let mut guard = host.lock().ok();
        let now = host.observe(&journal.scope)?.objects;
        let todo = differences(&now, journal, pass > 0 && failures.is_empty(), boot);
        if pass == PASSES || (todo.is_empty() && reload.is_ok()) {
            let names = todo.iter().map(|change| match failures.get(&change.key()) {
                Some(message) => format!("{}: {message}", change.key()),
                None => change.key().to_string(),
            });
            let mut left: Vec<String> = names.collect();
            left.extend(reload.err());
            return Ok(left);
        }
        failures.clear();
        // Rules refer to each other: those of the first pass change together.
        for part in todo.chunk_by(|a, b| pass == 0 && is_nft(a) && is_nft(b)) {
            if is_unlocked(&part[0]) {
                guard = None;
            } else if guard.is_none() {
                guard = host.lock().ok();
            }
            point(&format!("rollback.{step}.before"));
            // One by one: what cannot be restored must not keep the rest from being restored.
            if let Err(failure) = host.apply(part, &mut |_| {}) {
                failures.insert(part[0].key(), failure.message);
            }
            point(&format!("rollback.{step}.after"));
            step += 1;
        }
        drop(guard);
        reload = host.reload_if_needed();
    }
    Ok(Vec::new())
}

/// What is to be done to get from `now` to the state before. `loosely`: without what cannot be brought back, and
/// without what the agent has mended since.
fn differences(now: &[NodeObject], journal: &Journal, loosely: bool, boot: bool) -> Vec<Change<NodeObject>> {
    let mut now = now.to_vec();
    let mut before = journal.before.clone();
    if loosely || boot {
        for object in &mut before {
            settle_for(object, journal, boot);
        }
        for object in &mut now {
            if let Spec::Unit(unit) = &mut object.spec {
                unit.state = simple_state(&unit.state, boot);
                unit.reload_needed = false;
                if boot {
                    (unit.running, unit.config) = Default::default();
                }
            }
        }
    }
    let mut changes = diff(&now, &before);
    if boot {
        changes.retain(|change| {
            // Kernel parameters of ours may have been set by a file at this very boot.
            change.after().is_none_or(is_durable)
        });
    }
    if loosely {
        let wanted = wanted_before(journal);
        changes.retain(|change| change.before().is_none_or(|found| !wanted.contains(found)));
    }
    changes
}

/// What the agent keeps in place once the node is as before, if it ran then: drift from that is mended while we look.
fn wanted_before(journal: &Journal) -> Vec<NodeObject> {
    let runs =
        |o: &NodeObject| matches!(&o.spec, Spec::Unit(u) if u.name == ours::UNIT && u.state == "active");
    if !journal.before.iter().any(runs) {
        return Vec::new();
    }
    let mut wanted = journal.spec_before().map(|spec| homelab_desired::desired(&spec)).unwrap_or_default();
    wanted.retain(|o| o.module != Module::Agent);
    wanted
}

fn simple_state(state: &str, boot: bool) -> String {
    if state == "active" && !boot { "active" } else { "inactive" }.to_owned()
}

/// A process cannot be brought back, only a unit that runs what the files say; and while the machine starts not even
/// that.
fn settle_for(object: &mut NodeObject, journal: &Journal, boot: bool) {
    let Spec::Unit(unit) = &mut object.spec else { return };
    unit.state = simple_state(&unit.state, boot);
    unit.reload_needed = false;
    if boot || unit.state != "active" {
        (unit.running, unit.config) = Default::default();
    } else if unit.name == ours::UNIT {
        let link = journal.before.iter().find_map(|o| match &o.spec {
            Spec::Symlink(link) if link.path == ours::BINARY => link.target.split_once('/'),
            _ => None,
        });
        if let (Some((digest, _)), Some(text)) = (link, journal.spec_text_before()) {
            unit.running = digest.to_owned();
            unit.config = sha256_hex(text.as_bytes());
        }
    }
}
