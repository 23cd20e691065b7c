//! The beginning: what must hold before a change, and what must be on the disk.

use std::collections::BTreeMap;

use homelab_model::{Change, Content, Key, LinkKind, NodeObject, Object, Phase, Spec};
use homelab_protocol::{Fault, Transaction};

use super::journal::{ConfirmedRecord, Journal, whole_scope};
use super::{Refusal, error, finish, lock_apply, refuse, undo};
use crate::host::Host;

/// Writes `transaction` down and arms its undo. Changes nothing of ours yet. If it is refused, nothing of it remains.
pub(crate) fn begin<H: Host>(host: &mut H, transaction: &Transaction) -> Result<(), Refusal> {
    let id = &transaction.id;
    // It becomes a part of a unit's name.
    if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err(error("the name of a transaction must be hex digits"));
    }
    let point = host.marker();
    let _alone = lock_apply(host)?;
    clear_the_way(host)?;
    let before = host.observe(&whole_scope(transaction)).map_err(error)?.objects;
    let stale = stale(&before, &transaction.changes);
    if !stale.is_empty() {
        let mut refusal = refuse(Fault::Stale, "the node is not as it was when the plan was made");
        refusal.left = stale;
        return Err(refusal);
    }
    if let Some((key, reason)) = irreversible(&transaction.changes) {
        let mut refusal = refuse(Fault::Irreversible, reason);
        refusal.object = key.to_string();
        return Err(refusal);
    }
    host.can_arm().map_err(|message| refuse(Fault::Irreversible, message))?;

    let fresh = before.is_empty() && ConfirmedRecord::read(host).ok().flatten().is_none();
    let mut journal = Journal::new(transaction, before, fresh);
    // The timer first: it takes away whatever it finds of a beginning that was cut short.
    point("arm.timer.before");
    let armed = host.arm(id, journal.timeout);
    point("arm.timer.after");
    let written = armed.and_then(|()| {
        point("journal.reserve.before");
        host.reserve()?;
        point("journal.begin.before");
        let timeout = journal.timeout;
        journal.wait(host, timeout);
        journal.write(host)?;
        point("journal.begin.after");
        host.keep_asides(&journal.changes)?;
        point("asides.keep.after");
        Ok(())
    });
    if let Err(message) = written {
        host.adopt_asides(&journal.changes);
        let _ = host.drop_asides();
        let _ = host.remove_transaction();
        let _ = host.disarm(Some(id));
        return Err(refuse(Fault::Irreversible, format!("the change could not be taken back: {message}")));
    }
    Ok(())
}

/// Ends what an earlier transaction left open: its laptop is gone, for this session holds the lock.
fn clear_the_way<H: Host>(host: &mut H) -> Result<(), Refusal> {
    let open = Journal::read(host).map_err(|message| refuse(Fault::Open, message))?;
    let Some(journal) = open else {
        return finish::sweep(host).map_err(error);
    };
    if finish::is_confirmed(host, &journal.id) {
        return finish::finish(host, &journal).map_err(error);
    }
    if journal.phase == Phase::Held {
        let message = format!(
            "{} tries a change here; homelab confirm keeps it, homelab rollback takes it back",
            journal.by
        );
        return Err(refuse(Fault::Open, message));
    }
    undo::roll_back(host, journal, "the next apply found it unconfirmed").map_err(error)?;
    Ok(())
}

/// Objects that are neither as the changes expect them nor as the changes leave them.
fn stale(before: &[NodeObject], changes: &[Change<NodeObject>]) -> Vec<String> {
    let mut now: BTreeMap<Key, NodeObject> = before.iter().map(|o| (o.key(), o.clone())).collect();
    let mut stale = Vec::new();
    for change in changes {
        let key = change.key();
        let found = now.get(&key);
        if found != change.before() && found != change.after() {
            stale.push(key.to_string());
        }
        // A later change of the same object meets what this one leaves.
        match change.after() {
            Some(after) => now.insert(key, after.clone()),
            None => now.remove(&key),
        };
    }
    stale.dedup();
    stale
}

/// The first object that could not be brought back, and why.
fn irreversible(changes: &[Change<NodeObject>]) -> Option<(Key, String)> {
    changes.iter().find_map(|change| {
        let before = change.before()?;
        let why = match &before.spec {
            Spec::File(file) if file.content == Content::Opaque("directory".to_owned()) => "a directory",
            Spec::Symlink(link) if link.target == "(directory)" => "a directory",
            Spec::Binary(binary) if binary.sha256 == "(directory)" => "a directory",
            Spec::Link(link) if matches!(link.kind, LinkKind::Other { .. }) => "a link of another type",
            _ => return None,
        };
        Some((before.key(), format!("{why} is in its place; homelab could not bring it back")))
    })
}

#[cfg(test)]
mod tests {
    use homelab_model::{File, Module, Symlink, diff};

    use super::*;

    fn file(content: Content) -> NodeObject {
        let file = File { path: "/etc/x".into(), mode: 0o644, owner: "0:0".into(), content };
        NodeObject { module: Module::Agent, spec: Spec::File(file) }
    }

    fn link(target: &str) -> NodeObject {
        let link = Symlink { path: "/opt/x".into(), target: target.into() };
        NodeObject { module: Module::Agent, spec: Spec::Symlink(link) }
    }

    #[test]
    fn an_object_may_be_as_before_or_as_after_and_not_else() {
        let text = |t: &str| file(Content::Text(t.into()));
        let update = diff(&[text("a")], &[text("b")]);
        assert!(stale(&[text("a")], &update).is_empty());
        assert!(stale(&[text("b")], &update).is_empty());
        assert_eq!(stale(&[text("c")], &update), ["file /etc/x"]);
        assert_eq!(stale(&[], &update), ["file /etc/x"]);
        let create = diff(&[], &[text("b")]);
        assert!(stale(&[], &create).is_empty());
        assert_eq!(stale(&[text("a")], &create), ["file /etc/x"]);
        let delete = diff(&[text("a")], &[]);
        assert!(stale(&[], &delete).is_empty());
        assert_eq!(stale(&[text("c")], &delete), ["file /etc/x"]);
        // Deleted and made again with its parent: the second change meets what the first one leaves.
        let both = [delete[0].clone(), create[0].clone()];
        assert!(stale(&[text("a")], &both).is_empty());
    }

    #[test]
    fn directories_and_strange_links_are_refused() {
        for before in [file(Content::Opaque("directory".into())), link("(directory)")] {
            let key = before.key();
            assert_eq!(irreversible(&diff(&[before], &[])).map(|(k, _)| k), Some(key));
        }
        for before in [file(Content::Opaque("binary file, sha256 0".into())), link("(regular file)")] {
            assert_eq!(irreversible(&diff(&[before], &[])), None);
        }
    }
}
