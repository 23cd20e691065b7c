//! Identities as foca sees them, and their bytes. Records have a fixed size, so that what a datagram says of others can
//! be looked through before foca sees it.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Member, Message, State};
use thiserror::Error;

use super::seal::Tag;

/// One start of a node. Nobody's clock is right, so starts are ordered by an epoch: a node that starts learns from its
/// peers the epoch they know of it and takes a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) tag: Tag,
    pub(super) epoch: u32,
    /// Random, one per start.
    pub(super) boot: u64,
}

impl Identity for Id {
    type Addr = Tag;

    /// The identity to come back with after the others took us for dead.
    fn renew(&self) -> Option<Id> {
        Some(Id { epoch: self.epoch.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> Tag {
        self.tag
    }

    fn win_addr_conflict(&self, other: &Id) -> bool {
        (self.epoch, self.boot) > (other.epoch, other.boot)
    }
}

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no record of the membership")]
pub(super) struct Malformed;

/// The records' bytes, big-endian.
pub(super) struct Records;

const ID: usize = 20;
const MEMBER: usize = ID + 3;

fn put_id(id: &Id, buf: &mut impl BufMut) {
    buf.put_u64(id.tag);
    buf.put_u32(id.epoch);
    buf.put_u64(id.boot);
}

fn get_id(buf: &mut impl Buf) -> Result<Id, Malformed> {
    let tag = buf.try_get_u64().map_err(|_| Malformed)?;
    let epoch = buf.try_get_u32().map_err(|_| Malformed)?;
    Ok(Id { tag, epoch, boot: buf.try_get_u64().map_err(|_| Malformed)? })
}

/// Number of a message and what it carries: the member it speaks of and the number of the probe.
fn parts(message: &Message<Id>) -> (u8, Option<&Id>, Option<u8>) {
    match message {
        Message::Ping(number) => (0, None, Some(*number)),
        Message::Ack(number) => (1, None, Some(*number)),
        Message::PingReq { target, probe_number } => (2, Some(target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => (3, Some(origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => (4, Some(target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(origin), Some(*probe_number)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    }
}

fn get_message(buf: &mut impl Buf) -> Result<Message<Id>, Malformed> {
    let kind = buf.try_get_u8().map_err(|_| Malformed)?;
    let other = if (2..=5).contains(&kind) { Some(get_id(buf)?) } else { None };
    let number = if kind <= 5 { buf.try_get_u8().map_err(|_| Malformed)? } else { 0 };
    Ok(match (kind, other) {
        (0, None) => Message::Ping(number),
        (1, None) => Message::Ack(number),
        (2, Some(target)) => Message::PingReq { target, probe_number: number },
        (3, Some(origin)) => Message::IndirectPing { origin, probe_number: number },
        (4, Some(target)) => Message::IndirectAck { target, probe_number: number },
        (5, Some(origin)) => Message::ForwardedAck { origin, probe_number: number },
        (6, None) => Message::Announce,
        (7, None) => Message::Feed,
        (8, None) => Message::Gossip,
        (10, None) => Message::TurnUndead,
        _ => return Err(Malformed),
    })
}

impl Codec<Id> for Records {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<Id>, mut buf: impl BufMut) -> Result<(), Malformed> {
        if buf.remaining_mut() < 3 * ID + 4 {
            return Err(Malformed);
        }
        put_id(&header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put_id(&header.dst, &mut buf);
        let (kind, other, number) = parts(&header.message);
        buf.put_u8(kind);
        if let Some(other) = other {
            put_id(other, &mut buf);
        }
        if let Some(number) = number {
            buf.put_u8(number);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Id>, Malformed> {
        let src = get_id(&mut buf)?;
        let src_incarnation = buf.try_get_u16().map_err(|_| Malformed)?;
        let dst = get_id(&mut buf)?;
        Ok(Header { src, src_incarnation, dst, message: get_message(&mut buf)? })
    }

    fn encode_member(&mut self, member: &Member<Id>, mut buf: impl BufMut) -> Result<(), Malformed> {
        if buf.remaining_mut() < MEMBER {
            return Err(Malformed);
        }
        put_id(member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Id>, Malformed> {
        let id = get_id(&mut buf)?;
        let incarnation = buf.try_get_u16().map_err(|_| Malformed)?;
        let state = match buf.try_get_u8() {
            Ok(0) => State::Alive,
            Ok(1) => State::Suspect,
            Ok(2) => State::Down,
            _ => return Err(Malformed),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

/// A datagram of foca's with what it says of others put through `keep`, which may change or drop it. `known` says
/// which nodes there are: a message from, or about, another one is malformed.
pub(super) fn screened(
    datagram: &[u8],
    known: impl Fn(&Id) -> bool,
    mut keep: impl FnMut(Member<Id>) -> Option<Member<Id>>,
) -> Result<(Header<Id>, Vec<u8>), Malformed> {
    let mut rest = datagram;
    let header = Records.decode_header(&mut rest)?;
    if !known(&header.src) || parts(&header.message).1.is_some_and(|other| !known(other)) {
        return Err(Malformed);
    }
    let mut kept = datagram[..datagram.len() - rest.len()].to_vec();
    if rest.is_empty() {
        return Ok((header, kept));
    }
    let count = rest.try_get_u16().map_err(|_| Malformed)?;
    if rest.len() != usize::from(count) * MEMBER {
        return Err(Malformed);
    }
    let mut members = Vec::with_capacity(rest.len());
    let mut left = 0u16;
    while !rest.is_empty() {
        let member = Records.decode_member(&mut rest)?;
        if let Some(member) = Some(member).filter(|member| known(member.id())).and_then(&mut keep) {
            Records.encode_member(&member, &mut members)?;
            left += 1;
        }
    }
    kept.put_u16(left);
    kept.extend_from_slice(&members);
    Ok((header, kept))
}
