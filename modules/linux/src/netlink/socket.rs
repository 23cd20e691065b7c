//! Requests and dumps over one socket, with sequence checks and the kernel's own words in errors.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::SocketAddr;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use thiserror::Error;

use super::codec::{Attributes, HEADER, Message, ne_u16, ne_u32, text};
use super::flag;

/// Message types that end an answer.
pub(super) const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// A dump that changes keep interrupting is started this many times.
const DUMP_TRIES: usize = 10;
/// Messages sent at once: their answers must fit the socket's receive buffer.
const BATCH: usize = 64;
/// The kernel never sends more in one datagram of a dump.
const BUFFER: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused the request.
    #[error("{}", refused(*.code, .message))]
    Refused {
        /// errno.
        code: Errno,
        /// The kernel's explanation, empty if it gave none.
        message: String,
    },
    /// The kernel's state changed during every try of a dump.
    #[error("the kernel's tables changed during each of {DUMP_TRIES} readings")]
    Interrupted,
    /// An answer that cannot be understood.
    #[error("an answer of the kernel that cannot be understood")]
    Malformed,
}

fn refused(code: Errno, message: &str) -> String {
    if message.is_empty() { code.desc().to_owned() } else { format!("{} ({message})", code.desc()) }
}

impl NetlinkError {
    /// Whether the kernel refused with `code`.
    pub fn is(&self, code: Errno) -> bool {
        matches!(self, NetlinkError::Refused { code: c, .. } if *c == code)
    }
}

/// A netlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    pub(super) inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl Socket {
    /// An rtnetlink socket in the caller's network namespace.
    pub fn route() -> Result<Socket, NetlinkError> {
        Socket::open(NETLINK_ROUTE)
    }

    /// An nfnetlink socket (nftables, conntrack) in the caller's network namespace.
    pub fn netfilter() -> Result<Socket, NetlinkError> {
        Socket::open(NETLINK_NETFILTER)
    }

    /// A socket of `protocol` (`NETLINK_*`) in the caller's network namespace.
    pub fn open(protocol: isize) -> Result<Socket, NetlinkError> {
        let mut inner = netlink_sys::Socket::new(protocol)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        if protocol == NETLINK_ROUTE {
            // Without it the kernel ignores filters of a dump (before 4.20 it has no filters: refuse).
            inner.set_netlink_get_strict_chk(true)?;
        }
        Ok(Socket { inner, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Its port, by which others know who asked for a change.
    pub fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        match self.inner.get_address(&mut address) {
            Ok(()) => address.port_number(),
            Err(_) => 0,
        }
    }

    pub(super) fn prepare(&mut self, message: &mut Message, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(message.bytes.len()).unwrap_or(u32::MAX);
        let own = ne_u16(&message.bytes[6..]).unwrap_or(0);
        message.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        message.bytes[6..8].copy_from_slice(&(own | flags | flag::REQUEST).to_ne_bytes());
        message.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.sequence
    }

    /// Receives one datagram and hands `each` (type, flags, sequence, body) of its messages.
    pub(super) fn receive(&mut self, mut each: impl FnMut(u16, u16, u32, &[u8])) -> Result<(), NetlinkError> {
        self.buffer.clear();
        loop {
            match self.inner.recv(&mut self.buffer, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
                Ok(_) => break,
            }
        }
        for_each_message(&self.buffer, &mut each);
        Ok(())
    }

    /// Sends one request and waits until the kernel has carried it out.
    pub fn request(&mut self, mut message: Message) -> Result<(), NetlinkError> {
        let sequence = self.prepare(&mut message, flag::ACK);
        self.inner.send(&message.bytes, 0)?;
        let mut result = None;
        while result.is_none() {
            self.receive(|kind, flags, seq, body| {
                if seq == sequence && kind == ERROR {
                    result = Some(acknowledged(flags, body));
                }
            })?;
        }
        result.unwrap_or(Err(NetlinkError::Malformed))
    }

    /// Sends several requests at once. The kernel carries out all of them, whatever becomes of one, and no
    /// signal to this process can come between them.
    pub fn batch(
        &mut self,
        mut messages: Vec<Message>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut results = Vec::with_capacity(messages.len());
        for chunk in messages.chunks_mut(BATCH) {
            let mut bytes = Vec::new();
            let first = self.sequence.wrapping_add(1);
            for message in chunk.iter_mut() {
                self.prepare(message, flag::ACK);
                bytes.extend_from_slice(&message.bytes);
            }
            self.inner.send(&bytes, 0)?;
            let mut answers: Vec<Option<Result<(), NetlinkError>>> = chunk.iter().map(|_| None).collect();
            while answers.iter().any(Option::is_none) {
                self.receive(|kind, flags, seq, body| {
                    let index = seq.wrapping_sub(first) as usize;
                    if kind == ERROR && index < answers.len() {
                        answers[index] = Some(acknowledged(flags, body));
                    }
                })?;
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Sends one request and gives the bodies of the messages that answer it.
    pub fn query(&mut self, mut message: Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let sequence = self.prepare(&mut message, flag::ACK);
        self.inner.send(&message.bytes, 0)?;
        let mut answers = Vec::new();
        let mut end = None;
        while end.is_none() {
            self.receive(|kind, flags, seq, body| match kind {
                _ if seq != sequence => {}
                ERROR => end = Some(acknowledged(flags, body)),
                _ => answers.push(body.to_vec()),
            })?;
        }
        end.unwrap_or(Ok(())).map(|()| answers)
    }

    /// Reads a table: `read` makes an entry of a message's body, or leaves it out. A reading that the kernel
    /// marks as inconsistent is done again.
    pub fn dump<T>(
        &mut self,
        message: Message,
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let mut message = message.clone();
            let sequence = self.prepare(&mut message, flag::DUMP);
            self.inner.send(&message.bytes, 0)?;
            let mut entries = Vec::new();
            let mut end = None;
            let mut torn = false;
            while end.is_none() {
                self.receive(|kind, flags, seq, body| {
                    if seq != sequence {
                        return;
                    }
                    torn |= flags & flag::DUMP_INTR != 0;
                    match kind {
                        ERROR => end = Some(acknowledged(flags, body)),
                        DONE => end = Some(outcome(flags, body, 4)),
                        OVERRUN => end = Some(Err(NetlinkError::Malformed)),
                        _ => entries.extend(read(body)),
                    }
                })?;
            }
            end.unwrap_or(Ok(()))?;
            if !torn {
                return Ok(entries);
            }
        }
        Err(NetlinkError::Interrupted)
    }
}

/// The header of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The port of who asked for it; 0 is the kernel.
    pub(super) port: u32,
}

/// The messages in a datagram.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = (Head, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = ne_u32(rest)? as usize;
        let head = Head {
            kind: rest.get(4..).and_then(ne_u16)?,
            flags: rest.get(6..).and_then(ne_u16)?,
            sequence: rest.get(8..).and_then(ne_u32)?,
            port: rest.get(12..).and_then(ne_u32)?,
        };
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((head, body))
    })
}

/// Hands `each` (type, flags, sequence, body) of the messages in a datagram.
fn for_each_message(datagram: &[u8], each: &mut impl FnMut(u16, u16, u32, &[u8])) {
    messages(datagram).for_each(|(head, body)| each(head.kind, head.flags, head.sequence, body));
}

/// What an error message says. After the number stands the header of our request (`NETLINK_CAP_ACK`: without
/// its body).
fn acknowledged(flags: u16, body: &[u8]) -> Result<(), NetlinkError> {
    outcome(flags, body, 4 + HEADER)
}

/// The number at the front, and the kernel's words in the attributes after `skip` bytes.
fn outcome(flags: u16, body: &[u8], skip: usize) -> Result<(), NetlinkError> {
    let code = ne_u32(body).ok_or(NetlinkError::Malformed)?.cast_signed();
    if code == 0 {
        return Ok(());
    }
    const MESSAGE: u16 = 1;
    let mut message = String::new();
    if flags & flag::ACK_TLVS != 0 {
        message = Attributes::after(body, skip)
            .find(|(kind, _)| *kind == MESSAGE)
            .map(|(_, value)| text(value))
            .unwrap_or_default();
    }
    Err(NetlinkError::Refused { code: Errno::from_raw(code.saturating_neg()), message })
}

/// Subsystem nf_tables of nfnetlink (`linux/netfilter/nf_tables.h`).
pub(crate) const NFT: u16 = 10 << 8;
/// Family of tables for IPv4 and IPv6 (`linux/netfilter.h`).
const NFPROTO_INET: u8 = 1;
/// Family of tables for what bridges forward.
const NFPROTO_BRIDGE: u8 = 7;

/// A table's family, as netlink has it, and its name.
pub(crate) fn nft_table(table: &str) -> (u8, &str) {
    match table.split_once(' ') {
        Some(("bridge", name)) => (NFPROTO_BRIDGE, name),
        Some((_, name)) => (NFPROTO_INET, name),
        None => (NFPROTO_INET, table),
    }
}

/// The number that every change of any nftables table raises; None where the kernel has no nf_tables.
pub(crate) fn nft_generation(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    const GETGEN: u16 = 16;
    const GEN_ID: u16 = 1;
    match socket.query(Message::new(NFT | GETGEN, 0, &[0; 4])) {
        Ok(answers) => Ok(answers.iter().find_map(|body| {
            let (_, value) = Attributes::after(body, 4).find(|(kind, _)| *kind == GEN_ID)?;
            Some(u32::from_be_bytes(value.try_into().ok()?))
        })),
        Err(NetlinkError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An nfnetlink socket; None where the kernel has none.
pub(crate) fn nfnetlink() -> Option<Socket> {
    Socket::netfilter().ok()
}
