//! The kernel's table of flows (`linux/netfilter/nfnetlink_conntrack.h`, subsystem `NFNL_SUBSYS_CTNETLINK`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;

use crate::netlink::{AF_INET, AF_INET6, Attributes, Message, NetlinkError, Socket, family, ip};

const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_*`.
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// `CTA_*`.
mod attribute {
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
}

/// `CTA_TUPLE_*`, `CTA_IP_*`, `CTA_PROTO_*`.
mod part {
    pub(super) const IP: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const SOURCE4: u16 = 1;
    pub(super) const DESTINATION4: u16 = 2;
    pub(super) const SOURCE6: u16 = 3;
    pub(super) const DESTINATION6: u16 = 4;
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
}

/// Bits of [`Flow::status`] (`linux/netfilter/nf_conntrack_common.h`).
pub mod status {
    /// Packets were seen in both directions.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// The flow is not dropped early when the table is full.
    pub const ASSURED: u32 = 1 << 2;
    /// The source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
}

/// Which flows to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Number of the protocol (`IPPROTO_*`).
    pub protocol: u8,
    /// Where its packets come from.
    pub source: SocketAddr,
    /// Where its packets go.
    pub destination: SocketAddr,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// As the one who opened it sends.
    pub original: Tuple,
    /// As it is answered: the source is who really answers.
    pub reply: Tuple,
    /// [`status`].
    pub status: u32,
    /// When the kernel forgets it if nothing more comes.
    pub timeout: Option<Duration>,
    /// The kernel's number of it (`CTA_ID`): a later flow of the same tuple has another.
    pub id: Option<u32>,
    /// The zone of conntrack, 0 unless a firewall uses them.
    pub zone: u16,
}

fn be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination) = (None::<IpAddr>, None::<IpAddr>);
    let (mut number, mut source_port, mut destination_port) = (None, 0, 0);
    for (kind, bytes) in Attributes::after(bytes, 0) {
        match kind {
            part::IP => {
                for (kind, bytes) in Attributes::after(bytes, 0) {
                    match kind {
                        part::SOURCE4 | part::SOURCE6 => source = ip(bytes),
                        part::DESTINATION4 | part::DESTINATION6 => destination = ip(bytes),
                        _ => {}
                    }
                }
            }
            part::PROTOCOL => {
                for (kind, bytes) in Attributes::after(bytes, 0) {
                    match kind {
                        part::NUMBER => number = bytes.first().copied(),
                        part::SOURCE_PORT => source_port = be16(bytes)?,
                        part::DESTINATION_PORT => destination_port = be16(bytes)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (source, destination) = (source?, destination?);
    (source.is_ipv4() == destination.is_ipv4()).then_some(Tuple {
        protocol: number?,
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

/// Reads a flow from the body of a message (`nfgenmsg` and attributes). Protocols without ports have port 0.
pub fn parse(body: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut timeout, mut id, mut zone) = (0, None, None, 0);
    for (kind, bytes) in Attributes::after(body, 4) {
        match kind {
            attribute::ORIGINAL => original = tuple(bytes),
            attribute::REPLY => reply = tuple(bytes),
            attribute::STATUS => status = be32(bytes)?,
            attribute::TIMEOUT => timeout = be32(bytes).map(|seconds| Duration::from_secs(seconds.into())),
            attribute::ID => id = be32(bytes),
            attribute::ZONE => zone = be16(bytes)?,
            _ => {}
        }
    }
    Some(Flow { original: original?, reply: reply?, status, timeout, id, zone })
}

/// Reads the flows of a family and a protocol (`IPPROTO_*`).
pub fn dump(socket: &mut Socket, family: Family, protocol: u8) -> Result<Vec<Flow>, NetlinkError> {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    socket.dump(Message::new(GET, 0, &[family, 0, 0, 0]), |body| {
        parse(body).filter(|flow| flow.original.protocol == protocol)
    })
}

fn deletion(original: &Tuple, zone: u16, id: Option<u32>) -> Message {
    let (source, destination) = (original.source.ip(), original.destination.ip());
    let (source_kind, destination_kind) = match source {
        IpAddr::V4(_) => (part::SOURCE4, part::DESTINATION4),
        IpAddr::V6(_) => (part::SOURCE6, part::DESTINATION6),
    };
    let mut message = Message::new(DELETE, 0, &[family(source), 0, 0, 0]);
    // Without a tuple the kernel would delete all flows.
    message.nest(attribute::ORIGINAL, |m| {
        m.nest(part::IP, |m| {
            m.ip(source_kind, source).ip(destination_kind, destination);
        });
        m.nest(part::PROTOCOL, |m| {
            m.u8(part::NUMBER, original.protocol)
                .be16(part::SOURCE_PORT, original.source.port())
                .be16(part::DESTINATION_PORT, original.destination.port());
        });
    });
    if zone != 0 {
        message.be16(attribute::ZONE, zone);
    }
    if let Some(id) = id {
        message.bytes(attribute::ID, &id.to_be_bytes());
    }
    message
}

/// Deletes the flow of an original tuple of a protocol with ports; with `id` only the very flow that has it. Says
/// whether there was one.
pub fn delete(
    socket: &mut Socket,
    original: &Tuple,
    zone: u16,
    id: Option<u32>,
) -> Result<bool, NetlinkError> {
    match socket.request(deletion(original, zone, id)) {
        Ok(()) => Ok(true),
        Err(error) if error.is(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(six: bool) -> Tuple {
        let address = |n: u8| if six { format!("[fd00::{n}]:{n}") } else { format!("10.0.0.{n}:{n}") };
        let parse = |n| address(n).parse().unwrap_or_else(|e| panic!("{e}"));
        Tuple { protocol: 17, source: parse(1), destination: parse(2) }
    }

    /// What the kernel would say of a flow.
    fn body(original: &Tuple) -> Vec<u8> {
        let mut message = deletion(original, 7, Some(9));
        message.bytes(attribute::STATUS, &status::SEEN_REPLY.to_be_bytes());
        message.bytes(attribute::TIMEOUT, &30_u32.to_be_bytes());
        let original = message.as_bytes()[16..].to_vec();
        let mut reply = original[4..].to_vec();
        let length = usize::from(u16::from_ne_bytes([reply[0], reply[1]]));
        reply.truncate(length);
        reply[2..4].copy_from_slice(&(attribute::REPLY | 0x8000).to_ne_bytes());
        [original, reply].concat()
    }

    #[test]
    fn flows_come_back_as_written() {
        for six in [false, true] {
            let original = example(six);
            let flow = Flow {
                original,
                reply: original,
                status: status::SEEN_REPLY,
                timeout: Some(Duration::from_secs(30)),
                id: Some(9),
                zone: 7,
            };
            assert_eq!(parse(&body(&original)), Some(flow));
        }
    }

    #[test]
    fn hostile_bytes_do_no_harm() {
        let whole = body(&example(false));
        for end in 0..whole.len() {
            let _ = parse(&whole[..end]);
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 3, 0x7f, 0xff] {
                let mut bad = whole.clone();
                bad[at] = byte;
                let _ = parse(&bad);
            }
        }
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn a_tuple_of_two_families_is_none() {
        let mut message = Message::new(0, 0, &[0; 4]);
        message.nest(attribute::ORIGINAL, |m| {
            m.nest(part::IP, |m| {
                m.bytes(part::SOURCE4, &[1; 4]).bytes(part::DESTINATION6, &[1; 16]);
            });
        });
        assert_eq!(parse(&message.as_bytes()[16..]), None);
    }
}
