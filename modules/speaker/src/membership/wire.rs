//! What a sealed datagram carries.

use bytes::{Buf, BufMut};

use super::id::Malformed;
use super::seal::{MAX_PAYLOAD, Nonce, Tag};
use super::states::{Piece, Stamp};

/// No challenge, or no answer.
pub(super) const NOTHING: Nonce = [0; 16];
/// Entries of a [`Message::Sync`] in one datagram.
pub(super) const SYNC_ENTRIES: usize = (MAX_PAYLOAD - 1) / SYNC_ENTRY;
const SYNC_ENTRY: usize = 28;

/// A message between two nodes. All but `Hello` are heeded only in a proven session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// Proof of a session: a challenge for the receiver, the answer to the receiver's, and the newest epoch and boot
    /// of the receiver that the sender knows of (0 and 0: none).
    Hello { challenge: Nonce, answer: Nonce, epoch: u32, boot: u64 },
    /// A datagram of foca's.
    Swim(Vec<u8>),
    /// Are you there?
    Ping,
    /// Yes.
    Ack,
    /// Do you hear this node? I do not.
    Ask(Tag),
    /// I hear this node, since you asked.
    Vouch(Tag),
    /// The sender, in this epoch, has left in order.
    Left { epoch: u32 },
    /// The states that the sender has, by their owners.
    Sync(Vec<(Tag, Stamp)>),
    /// The sender lacks the states of these owners.
    Want(Vec<Tag>),
    /// A piece of a state.
    State(Piece),
}

impl Message {
    /// The bytes: a number for the kind, then its fields, big-endian.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Message::Hello { challenge, answer, epoch, boot } => {
                out.put_u8(0);
                out.put_slice(challenge);
                out.put_slice(answer);
                out.put_u32(*epoch);
                out.put_u64(*boot);
            }
            Message::Swim(datagram) => {
                out.put_u8(1);
                out.put_slice(datagram);
            }
            Message::Ping => out.put_u8(2),
            Message::Ack => out.put_u8(3),
            Message::Ask(tag) => {
                out.put_u8(4);
                out.put_u64(*tag);
            }
            Message::Vouch(tag) => {
                out.put_u8(5);
                out.put_u64(*tag);
            }
            Message::Left { epoch } => {
                out.put_u8(6);
                out.put_u32(*epoch);
            }
            Message::Sync(entries) => {
                out.put_u8(7);
                for (owner, stamp) in entries {
                    out.put_u64(*owner);
                    put_stamp(stamp, &mut out);
                }
            }
            Message::Want(owners) => {
                out.put_u8(8);
                owners.iter().for_each(|owner| out.put_u64(*owner));
            }
            Message::State(piece) => {
                out.put_u8(9);
                out.put_u64(piece.owner);
                put_stamp(&piece.stamp, &mut out);
                out.put_u8(piece.index);
                out.put_u8(piece.count);
                out.put_slice(&piece.bytes);
            }
        }
        out
    }

    /// Reads the bytes; all of them must make sense.
    pub(super) fn decode(payload: &[u8]) -> Result<Message, Malformed> {
        let mut buf = payload;
        let message = read(&mut buf).map_err(|_| Malformed)?.ok_or(Malformed)?;
        if buf.is_empty() { Ok(message) } else { Err(Malformed) }
    }
}

fn put_stamp(stamp: &Stamp, out: &mut Vec<u8>) {
    out.put_u32(stamp.epoch);
    out.put_u64(stamp.version);
    out.put_u64(stamp.boot);
}

fn get_stamp(buf: &mut &[u8]) -> Result<Stamp, bytes::TryGetError> {
    Ok(Stamp { epoch: buf.try_get_u32()?, version: buf.try_get_u64()?, boot: buf.try_get_u64()? })
}

fn get_nonce(buf: &mut &[u8]) -> Result<Nonce, bytes::TryGetError> {
    let mut nonce = NOTHING;
    buf.try_copy_to_slice(&mut nonce)?;
    Ok(nonce)
}

/// None: a number that is no kind.
fn read(buf: &mut &[u8]) -> Result<Option<Message>, bytes::TryGetError> {
    Ok(Some(match buf.try_get_u8()? {
        0 => Message::Hello {
            challenge: get_nonce(buf)?,
            answer: get_nonce(buf)?,
            epoch: buf.try_get_u32()?,
            boot: buf.try_get_u64()?,
        },
        1 => Message::Swim(std::mem::take(buf).to_vec()),
        2 => Message::Ping,
        3 => Message::Ack,
        4 => Message::Ask(buf.try_get_u64()?),
        5 => Message::Vouch(buf.try_get_u64()?),
        6 => Message::Left { epoch: buf.try_get_u32()? },
        7 => {
            let mut entries = Vec::with_capacity(buf.len() / SYNC_ENTRY);
            while !buf.is_empty() {
                entries.push((buf.try_get_u64()?, get_stamp(buf)?));
            }
            Message::Sync(entries)
        }
        8 => {
            let mut owners = Vec::with_capacity(buf.len() / 8);
            while !buf.is_empty() {
                owners.push(buf.try_get_u64()?);
            }
            Message::Want(owners)
        }
        9 => Message::State(Piece {
            owner: buf.try_get_u64()?,
            stamp: get_stamp(buf)?,
            index: buf.try_get_u8()?,
            count: buf.try_get_u8()?,
            bytes: std::mem::take(buf).to_vec(),
        }),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamps() -> impl Strategy<Value = Stamp> {
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(epoch, version, boot)| Stamp {
            epoch,
            version,
            boot,
        })
    }

    fn messages() -> impl Strategy<Value = Message> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..1200);
        prop_oneof![
            (any::<Nonce>(), any::<Nonce>(), any::<u32>(), any::<u64>()).prop_map(
                |(challenge, answer, epoch, boot)| Message::Hello { challenge, answer, epoch, boot }
            ),
            bytes().prop_map(Message::Swim),
            Just(Message::Ping),
            Just(Message::Ack),
            any::<Tag>().prop_map(Message::Ask),
            any::<Tag>().prop_map(Message::Vouch),
            any::<u32>().prop_map(|epoch| Message::Left { epoch }),
            proptest::collection::vec((any::<Tag>(), stamps()), 0..SYNC_ENTRIES).prop_map(Message::Sync),
            proptest::collection::vec(any::<Tag>(), 0..40).prop_map(Message::Want),
            (any::<Tag>(), stamps(), any::<u8>(), any::<u8>(), bytes()).prop_map(
                |(owner, stamp, index, count, bytes)| Message::State(Piece {
                    owner,
                    stamp,
                    index,
                    count,
                    bytes
                })
            ),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_were(message in messages()) {
            let bytes = message.encode();
            prop_assert!(bytes.len() <= MAX_PAYLOAD);
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
        }

        #[test]
        fn what_decodes_encodes_to_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
