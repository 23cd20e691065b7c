//! What every node says of itself, held by all: opaque bytes, the newest of each owner.
//!
//! A change is pushed to all members at once. What is lost is repaired by comparing stamps with two members four times
//! a second; any node that has a state passes it on, so a cut between two nodes does not keep it from either.

use std::collections::BTreeMap;

use super::seal::{MAX_PAYLOAD, Tag};
use super::wire::SYNC_ENTRIES;

/// Largest state, in bytes.
pub const MAX_STATE: usize = 16 * 1024;
/// Bytes of a state in one piece; what precedes them takes 31.
const PIECE: usize = MAX_PAYLOAD - 31;
/// States sent in answer to one comparison.
const AT_ONCE: usize = 4;

/// Orders the states of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Stamp {
    /// The owner's epoch: a later start's first state is newer than an earlier start's last.
    pub(super) epoch: u32,
    /// Counts changes since the owner's start.
    pub(super) version: u64,
    /// The owner's start.
    pub(super) boot: u64,
}

/// A piece of a state: number `index` of `count`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) owner: Tag,
    pub(super) stamp: Stamp,
    pub(super) index: u8,
    pub(super) count: u8,
    pub(super) bytes: Vec<u8>,
}

/// A state that is here in part.
struct Partial {
    stamp: Stamp,
    pieces: Vec<Option<Vec<u8>>>,
}

/// The newest states.
#[derive(Default)]
pub(super) struct States {
    held: BTreeMap<Tag, (Stamp, Vec<u8>)>,
    /// At most one per owner, of at most [`MAX_STATE`] bytes.
    partial: BTreeMap<Tag, Partial>,
}

impl States {
    pub(super) fn get(&self, owner: Tag) -> Option<(Stamp, &[u8])> {
        self.held.get(&owner).map(|(stamp, bytes)| (*stamp, bytes.as_slice()))
    }

    fn stamp(&self, owner: Tag) -> Stamp {
        self.held.get(&owner).map(|(stamp, _)| *stamp).unwrap_or_default()
    }

    pub(super) fn put(&mut self, owner: Tag, stamp: Stamp, bytes: Vec<u8>) {
        self.held.insert(owner, (stamp, bytes));
        self.partial.remove(&owner);
    }

    /// Stamps the state of `owner` anew, if there is one.
    pub(super) fn restamp(&mut self, owner: Tag, epoch: u32) {
        if let Some((stamp, _)) = self.held.get_mut(&owner) {
            stamp.epoch = epoch;
        }
    }

    pub(super) fn forget(&mut self, owner: Tag) {
        self.held.remove(&owner);
        self.partial.remove(&owner);
    }

    /// The state of `owner` in pieces.
    pub(super) fn pieces(&self, owner: Tag) -> Vec<Piece> {
        let Some((stamp, bytes)) = self.held.get(&owner) else { return Vec::new() };
        let count = bytes.len().div_ceil(PIECE).max(1);
        let piece = |index: usize| Piece {
            owner,
            stamp: *stamp,
            index: index as u8,
            count: count as u8,
            bytes: bytes[index * PIECE..bytes.len().min((index + 1) * PIECE)].to_vec(),
        };
        (0..count).map(piece).collect()
    }

    /// Takes a piece; true if a newer state of its owner is complete now.
    pub(super) fn take(&mut self, piece: Piece) -> bool {
        let (index, count) = (usize::from(piece.index), usize::from(piece.count));
        if index >= count || count > MAX_STATE.div_ceil(PIECE) || piece.bytes.len() > PIECE {
            return false;
        }
        if piece.stamp <= self.stamp(piece.owner) {
            return false;
        }
        let fresh = || Partial { stamp: piece.stamp, pieces: vec![None; count] };
        let partial = self.partial.entry(piece.owner).or_insert_with(fresh);
        if piece.stamp < partial.stamp {
            return false;
        }
        if piece.stamp > partial.stamp || partial.pieces.len() != count {
            *partial = fresh();
        }
        partial.pieces[index] = Some(piece.bytes);
        if partial.pieces.iter().any(Option::is_none) {
            return false;
        }
        let bytes = partial.pieces.iter().flatten().flatten().copied().collect();
        self.put(piece.owner, piece.stamp, bytes);
        true
    }

    /// Stamps of what is held: of all owners, or from a random one on if they do not fit a datagram.
    pub(super) fn digest(&self, start: usize) -> Vec<(Tag, Stamp)> {
        let all = self.held.iter().map(|(owner, (stamp, _))| (*owner, *stamp));
        let start = if self.held.len() > SYNC_ENTRIES { start % self.held.len() } else { 0 };
        all.clone().skip(start).chain(all.take(start)).take(SYNC_ENTRIES).collect()
    }

    /// Compares with another's digest: the owners whose states the other lacks, and those that we lack.
    pub(super) fn compare(&self, theirs: &[(Tag, Stamp)]) -> (Vec<Tag>, Vec<Tag>) {
        let stamps: BTreeMap<Tag, Stamp> = theirs.iter().copied().collect();
        let whole = stamps.len() < SYNC_ENTRIES;
        let older = |owner: &Tag, mine: Stamp| stamps.get(owner).map_or(whole, |stamp| *stamp < mine);
        let push = self.held.iter().filter(|(owner, (mine, _))| older(owner, *mine));
        let push = push.map(|(owner, _)| *owner).take(AT_ONCE).collect();
        let newer = stamps.iter().filter(|(owner, stamp)| **stamp > self.stamp(**owner));
        (push, newer.map(|(owner, _)| *owner).take(AT_ONCE).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(epoch: u32, version: u64) -> Stamp {
        Stamp { epoch, version, boot: 7 }
    }

    proptest! {
        #[test]
        fn a_state_comes_together_from_its_pieces_in_any_order_and_number(
            bytes in proptest::collection::vec(any::<u8>(), 0..MAX_STATE),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..30),
        ) {
            let (mut from, mut to) = (States::default(), States::default());
            from.put(1, stamp(1, 1), bytes.clone());
            let pieces = from.pieces(1);
            let mut done = 0;
            for index in order.iter().map(|i| i.index(pieces.len())).chain(0..pieces.len()) {
                done += usize::from(to.take(pieces[index].clone()));
            }
            prop_assert_eq!(done, 1);
            prop_assert_eq!(to.get(1), Some((stamp(1, 1), bytes.as_slice())));
        }
    }

    #[test]
    fn only_a_newer_state_replaces() {
        let mut from = States::default();
        let mut to = States::default();
        from.put(1, stamp(2, 1), b"second start".to_vec());
        assert!(to.take(from.pieces(1).remove(0)));
        from.put(1, stamp(1, 9), b"first start".to_vec());
        assert!(!to.take(from.pieces(1).remove(0)));
        assert_eq!(to.get(1), Some((stamp(2, 1), b"second start".as_slice())));
        // Half of an older state does not hinder a newer one, and the other way round.
        from.put(1, stamp(2, 2), vec![1; 3000]);
        let older = from.pieces(1);
        from.put(1, stamp(2, 3), vec![2; 2000]);
        let newer = from.pieces(1);
        assert!(!to.take(older[0].clone()));
        assert!(!to.take(newer[0].clone()));
        assert!(!to.take(older[1].clone()) && !to.take(older[2].clone()));
        assert!(to.take(newer[1].clone()));
        assert_eq!(to.get(1), Some((stamp(2, 3), vec![2; 2000].as_slice())));
    }

    #[test]
    fn comparing_names_what_either_lacks() {
        let (mut a, mut b) = (States::default(), States::default());
        a.put(1, stamp(1, 2), vec![]);
        b.put(1, stamp(1, 1), vec![]);
        a.put(2, stamp(1, 1), vec![]);
        b.put(3, stamp(1, 1), vec![]);
        assert_eq!(a.compare(&b.digest(0)), (vec![1, 2], vec![3]));
        assert_eq!(b.compare(&a.digest(0)), (vec![3], vec![1, 2]));
        assert_eq!(a.compare(&a.digest(5)), (vec![], vec![]));
    }

    #[test]
    fn nonsense_in_a_piece_is_nothing() {
        let mut states = States::default();
        let piece =
            |index, count, len| Piece { owner: 1, stamp: stamp(1, 1), index, count, bytes: vec![0; len] };
        for bad in [piece(0, 0, 1), piece(2, 2, 1), piece(0, 255, 1), piece(0, 1, PIECE + 1)] {
            assert!(!states.take(bad));
        }
        assert!(states.held.is_empty() && states.partial.is_empty());
    }
}
