//! What is on the disk about a transaction. Private to this binary: the one that undoes is the one that wrote.

use homelab_model::{
    Change, Content, File, Holder, NodeObject, NodeSpec, Object, Phase, Previous, Reverted, Scope, Spec, ours,
};
use homelab_protocol::Transaction;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::{Host, Record};

/// Version of the formats below.
const FORMAT: u32 = 1;

/// An open transaction with all that its undo needs; no secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Journal {
    #[serde(deserialize_with = "version")]
    format_version: u32,
    /// Its name.
    pub(super) id: String,
    /// Whose it is.
    pub(super) by: Holder,
    /// How far it has come.
    pub(super) phase: Phase,
    /// Why it is being taken back, if it is.
    pub(super) reason: Option<String>,
    /// Time without a word after which it is taken back, seconds.
    pub(super) timeout: u64,
    /// When it is taken back, milliseconds of this boot's clock.
    pub(super) deadline: u64,
    /// The boot that the deadline belongs to.
    pub(super) boot_id: String,
    /// Nothing of ours shall remain once it is confirmed.
    pub(super) farewell: bool,
    /// Nothing of ours was on the node before: nothing may remain of a transaction that was taken back.
    pub(super) fresh: bool,
    /// Where to look.
    pub(super) scope: Scope,
    /// What it does.
    pub(super) changes: Vec<Change<NodeObject>>,
    /// All objects in its scope before the first change.
    pub(super) before: Vec<NodeObject>,
}

impl Journal {
    pub(super) fn new(transaction: &Transaction, before: Vec<NodeObject>, fresh: bool) -> Journal {
        Journal {
            format_version: FORMAT,
            id: transaction.id.clone(),
            by: transaction.by.clone(),
            phase: Phase::Armed,
            reason: None,
            timeout: transaction.timeout.max(1),
            deadline: 0,
            boot_id: String::new(),
            farewell: transaction.farewell,
            fresh,
            scope: whole_scope(transaction),
            changes: transaction.changes.clone(),
            before,
        }
    }

    /// The node takes the transaction back so many seconds from now.
    pub(super) fn wait<H: Host>(&mut self, host: &mut H, seconds: u64) {
        self.boot_id = host.boot_id();
        self.deadline = host.now_ms().saturating_add(seconds.saturating_mul(1000));
    }

    /// Milliseconds until it is taken back; 0 if that is due.
    pub(super) fn remaining<H: Host>(&self, host: &mut H) -> u64 {
        if self.phase == Phase::RollingBack || self.boot_id != host.boot_id() {
            return 0;
        }
        self.deadline.saturating_sub(host.now_ms())
    }

    /// What the transaction tells the node to be, if it does.
    pub(super) fn spec(&self) -> Option<NodeSpec> {
        let text = self.changes.iter().rev().find_map(|change| text_of_spec(change.after()?))?;
        serde_json::from_str(text).ok()
    }

    /// What the node was told to be before, as text.
    pub(super) fn spec_text_before(&self) -> Option<&str> {
        self.before.iter().find_map(text_of_spec)
    }

    /// What the node was told to be before.
    pub(super) fn spec_before(&self) -> Option<NodeSpec> {
        serde_json::from_str(self.spec_text_before()?).ok()
    }

    /// Writes the journal down.
    pub(super) fn write<H: Host>(&self, host: &mut H) -> Result<(), String> {
        let bytes = serde_json::to_vec(self).map_err(|e| format!("the journal: {e}"))?;
        host.write_journal(&bytes)
    }

    /// The journal of the open transaction.
    pub(super) fn read<H: Host>(host: &mut H) -> Result<Option<Journal>, String> {
        host.read_journal()?.map(|bytes| parse("the journal", &bytes)).transpose()
    }
}

fn text_of_spec(object: &NodeObject) -> Option<&str> {
    match &object.spec {
        Spec::File(File { path, content: Content::Text(text), .. }) if path == ours::NODE_SPEC => Some(text),
        _ => None,
    }
}

/// The scope of a transaction, and what it changes: a change that is not looked at could not be undone.
pub(super) fn whole_scope(transaction: &Transaction) -> Scope {
    let mut scope = transaction.scope.clone();
    for change in &transaction.changes {
        if let Some(object) = change.after().or(change.before())
            && !scope.keys.iter().any(|(key, _)| *key == object.key())
        {
            scope.keys.push((object.key(), object.module));
        }
    }
    scope
}

/// The last confirmed transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfirmedRecord {
    #[serde(deserialize_with = "version")]
    format_version: u32,
    /// It and the state before it.
    pub(super) previous: Previous,
    /// The node's records shall go, too.
    pub(super) farewell: bool,
}

impl ConfirmedRecord {
    pub(super) fn new(previous: Previous, farewell: bool) -> ConfirmedRecord {
        ConfirmedRecord { format_version: FORMAT, previous, farewell }
    }

    pub(super) fn read<H: Host>(host: &mut H) -> Result<Option<ConfirmedRecord>, String> {
        let bytes = host.read_record(Record::Confirmed)?;
        bytes.map(|bytes| parse("the record of the last transaction", &bytes)).transpose()
    }

    pub(super) fn write<H: Host>(&self, host: &mut H) -> Result<(), String> {
        let bytes = serde_json::to_vec(self).map_err(|e| e.to_string())?;
        host.write_record(Record::Confirmed, true, &bytes)
    }
}

/// A transaction that was taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RevertedRecord {
    #[serde(deserialize_with = "version")]
    format_version: u32,
    reverted: Reverted,
}

/// Writes down that a transaction was taken back. Where there is no room on the disk, or nothing of ours shall remain,
/// the record is one that a reboot takes away.
pub(super) fn write_reverted<H: Host>(host: &mut H, reverted: Reverted, fresh: bool) -> Result<(), String> {
    let record = RevertedRecord { format_version: FORMAT, reverted };
    let bytes = serde_json::to_vec(&record).map_err(|e| e.to_string())?;
    if !fresh && host.write_record(Record::Reverted, true, &bytes).is_ok() {
        return Ok(());
    }
    host.write_record(Record::Reverted, false, &bytes)
}

/// The last transaction that was taken back, if nothing was confirmed since.
pub(super) fn read_reverted<H: Host>(host: &mut H) -> Option<Reverted> {
    let bytes = host.read_record(Record::Reverted).ok()??;
    parse::<RevertedRecord>("", &bytes).ok().map(|record| record.reverted)
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        format_version: u32,
    }
    serde_json::from_slice(bytes).map_err(|error| match serde_json::from_slice::<Version>(bytes) {
        Ok(Version { format_version }) if format_version != FORMAT => {
            format!("{what} has format {format_version}, mine is {FORMAT}")
        }
        _ => format!("{what}: {error}"),
    })
}

/// The version of a format, which must be ours.
fn version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        FORMAT => Ok(FORMAT),
        other => Err(serde::de::Error::custom(format!("format {other}"))),
    }
}
