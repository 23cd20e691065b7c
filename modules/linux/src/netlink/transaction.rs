//! Transactions of nf_tables: one datagram of many messages that the kernel carries out as a whole or not at all
//! (`linux/netfilter/nfnetlink.h`).

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::codec::{Attributes, HEADER, Message, ne_u32, text};
use super::flag;
use super::socket::{ERROR, NetlinkError, Socket};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Room in the receive buffer for one answer, with what the kernel counts for its own upkeep.
const ANSWER: usize = 4 << 10;
const RECEIVE_BUFFER: usize = 1 << 20;

/// What the kernel refused of a transaction, and so all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Place of the message at fault. None: the transaction as a whole.
    pub(crate) message: Option<usize>,
    /// errno.
    pub(crate) code: Errno,
    /// The kernel's explanation, empty if it gave none.
    pub(crate) words: String,
    /// Where in the message, from the beginning of its header, the attribute at fault is (`NLMSGERR_ATTR_OFFS`).
    pub(crate) offset: Option<usize>,
}

impl Socket {
    /// Carries out `messages` of the subsystem `subsystem` (in the high byte) as one transaction. An `Ok(Some(_))`
    /// is the first thing that the kernel refused; nothing has changed then.
    pub(crate) fn transaction(
        &mut self,
        subsystem: u16,
        messages: &mut [Message],
    ) -> Result<Option<Refusal>, NetlinkError> {
        if messages.is_empty() {
            return Ok(None);
        }
        let edge = |kind: u16| {
            // nfgenmsg: family, version, subsystem in network byte order.
            let [high, low] = (subsystem >> 8).to_be_bytes();
            Message::new(kind, 0, &[0, 0, high, low])
        };
        let (mut begin, mut end) = (edge(BATCH_BEGIN), edge(BATCH_END));
        let count = messages.len();
        let length: usize = messages.iter().map(|m| m.bytes.len()).sum();
        let mut bytes = Vec::with_capacity(length + 2 * begin.bytes.len());
        let first = self.prepare(&mut begin, 0);
        bytes.extend_from_slice(&begin.bytes);
        for (index, message) in messages.iter_mut().enumerate() {
            // Errors are always told, in the order of the messages, when all is done: the answer for the last
            // message is the end of them. Old kernels do not acknowledge the end of a batch itself.
            self.prepare(message, if index + 1 == count { flag::ACK } else { 0 });
            bytes.extend_from_slice(&message.bytes);
        }
        self.prepare(&mut end, 0);
        bytes.extend_from_slice(&end.bytes);
        self.make_room(bytes.len(), count);
        self.inner.send(&bytes, 0)?;
        drop(bytes);

        let (mut refusal, mut ended, mut malformed) = (None, false, false);
        while !ended {
            self.receive(|kind, flags, sequence, body| {
                let place = sequence.wrapping_sub(first) as usize;
                if kind != ERROR || place > count {
                    return;
                }
                match refused(flags, body, place.checked_sub(1)) {
                    Some(answer) => {
                        // After a word on the whole the rest need not come.
                        ended |= place == count || (place == 0 && answer.is_some());
                        refusal = refusal.take().or(answer);
                    }
                    None => (ended, malformed) = (true, true),
                }
            })?;
        }
        if malformed && refusal.is_none() {
            return Err(NetlinkError::Malformed);
        }
        Ok(refusal)
    }

    /// Buffers for a datagram of `length` bytes and the answers to `messages`. Where this process may not, the kernel
    /// says so when the datagram is sent.
    fn make_room(&self, length: usize, messages: usize) {
        let _ = setsockopt(&self.inner, sockopt::SndBufForce, &(length + (64 << 10)));
        let _ = setsockopt(&self.inner, sockopt::RcvBufForce, &(messages * ANSWER).max(RECEIVE_BUFFER));
    }
}

/// Reads the body of an error message: None if it cannot be understood, `Some(None)` if it says success.
fn refused(flags: u16, body: &[u8], message: Option<usize>) -> Option<Option<Refusal>> {
    const WORDS: u16 = 1;
    const OFFSET: u16 = 2;
    let code = ne_u32(body)?.cast_signed();
    if code == 0 {
        return Some(None);
    }
    let code = Errno::from_raw(code.saturating_neg());
    let mut refusal = Refusal { message, code, words: String::new(), offset: None };
    if flags & flag::ACK_TLVS != 0 {
        for (kind, value) in Attributes::after(body, 4 + HEADER) {
            match kind {
                WORDS => refusal.words = text(value),
                OFFSET => refusal.offset = ne_u32(value).and_then(|offset| usize::try_from(offset).ok()),
                _ => {}
            }
        }
    }
    Some(Some(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_and_garbage_is_not() {
        let mut body = Vec::new();
        body.extend_from_slice(&(-17_i32).to_ne_bytes());
        body.extend_from_slice(&[0; 16]);
        let mut attributes = Message::new(0, 0, &[]);
        attributes.text(1, "no").u32(2, 60);
        body.extend_from_slice(&attributes.bytes[HEADER..]);
        let whole = Refusal { message: Some(3), code: Errno::EEXIST, words: "no".into(), offset: Some(60) };
        assert_eq!(refused(flag::ACK_TLVS, &body, Some(3)), Some(Some(whole.clone())));
        let bare = Refusal { words: String::new(), offset: None, ..whole };
        assert_eq!(refused(0, &body, Some(3)), Some(Some(bare)));
        assert_eq!(refused(0, &[0; 4], None), Some(None));
        assert_eq!(refused(0, &[0; 3], None), None);
        assert!(refused(flag::ACK_TLVS, &i32::MIN.to_ne_bytes(), None).is_some());
    }
}
