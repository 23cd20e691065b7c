//! What is known of the API as it stands on disk: a record of everything, then of what changed since, batch by batch.
//!
//! A first line names the format. Each batch begins with a line of its length in bytes and its digest; then comes a record
//! a line. The first batch is everything. Later ones are added to the file, so that a change costs what it is and not what
//! is known; one that was cut off, and what comes after it, was never written.

use std::sync::Arc;

use homelab_model::{sha256_hex, sha256_hex_of};
use serde::{Deserialize, Serialize};

use crate::world::{Kind, Name};
use crate::{KubeNode, KubeService, KubeSlice};

/// The first line of the file, with the version of its format.
pub const HEADER: &str = "homelab-kubernetes-snapshot 2\n";

/// An object, or that it is gone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Record {
    /// A Service.
    Service(KubeService),
    /// An EndpointSlice.
    Slice(Name, KubeSlice),
    /// A Node.
    Node(String, KubeNode),
    /// What is no longer there.
    Gone(Kind, Name),
}

impl Record {
    /// As one line, without its end.
    pub(crate) fn text(&self) -> Arc<str> {
        serde_json::to_string(self).unwrap_or_default().into()
    }

    pub(crate) fn parse(text: &str) -> serde_json::Result<Record> {
        serde_json::from_str(text)
    }
}

/// Records that count together or not at all.
#[derive(Debug, Clone)]
pub struct Batch(Vec<Arc<str>>);

impl Batch {
    pub(crate) fn new(records: Vec<Arc<str>>) -> Batch {
        Batch(records)
    }

    /// Its text, in pieces: everything in one would be large.
    pub fn pieces(&self) -> impl Iterator<Item = String> + '_ {
        let length: usize = self.0.iter().map(|record| record.len() + 1).sum();
        let lines = || self.0.iter().flat_map(|record| [record.as_bytes(), b"\n"]);
        let head = format!("{length} {}\n", sha256_hex_of(lines()));
        std::iter::once(head).chain(self.0.chunks(PIECE).map(|records| {
            let lines = records.iter().flat_map(|record| [record, "\n"]);
            lines.collect()
        }))
    }
}

/// Records of a piece.
const PIECE: usize = 256;

/// The text is nothing that this build reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of this version: {0}")]
pub struct SnapshotError(String);

/// Reads a file's batches, but those that were cut off; each with its lines.
///
/// # Errors
/// It is of another version, or not even the first batch is whole.
pub(crate) fn batches(text: &[u8]) -> Result<Vec<Vec<&str>>, SnapshotError> {
    let error = |why: &str| SnapshotError(why.to_owned());
    let rest = text.strip_prefix(HEADER.as_bytes());
    let mut rest = rest.ok_or_else(|| error("its first line says otherwise"))?;
    let mut batches = Vec::new();
    while let Some((batch, after)) = batch(rest) {
        batches.push(batch.lines().collect());
        rest = after;
    }
    if batches.is_empty() { Err(error("it is cut off, or its digest is another")) } else { Ok(batches) }
}

impl From<serde_json::Error> for SnapshotError {
    fn from(error: serde_json::Error) -> SnapshotError {
        SnapshotError(error.to_string())
    }
}

/// The first batch of a text, and the rest; None if it is not whole.
fn batch(text: &[u8]) -> Option<(&str, &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let (head, rest) = text.split_at(end);
    let (length, digest) = str::from_utf8(head).ok()?.split_once(' ')?;
    let (batch, after) = rest.get(1..)?.split_at_checked(length.parse().ok()?)?;
    (sha256_hex(batch) == digest).then_some((str::from_utf8(batch).ok()?, after))
}
