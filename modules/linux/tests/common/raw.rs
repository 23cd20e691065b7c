//! Packets with any source.

use std::net::{IpAddr, SocketAddr};

use homelab_model::service::Protocol;
use socket2::{Domain, SockAddr, Socket, Type};

/// Raw sockets for packets with headers of our own, in the caller's namespace.
pub(crate) struct Sender(Socket, Socket);

impl Sender {
    pub(crate) fn open() -> Sender {
        // IPPROTO_RAW: the header is the sender's (raw(7)); in IPv6 as well.
        let raw = socket2::Protocol::from(255);
        let v6 = Socket::new(Domain::IPV6, Type::RAW, Some(raw)).unwrap();
        Sender(Socket::new(Domain::IPV4, Type::RAW, Some(raw)).unwrap(), v6)
    }

    pub(crate) fn send(&self, from: IpAddr, to: IpAddr, protocol: Protocol, source_port: u16, port: u16) {
        let packet = packet(from, to, protocol, source_port, port);
        let socket = if to.is_ipv4() { &self.0 } else { &self.1 };
        // A reject of one's own packet is an error here (EPERM, ECONNREFUSED); what was seen decides.
        let _ = socket.send_to(&packet, &SockAddr::from(SocketAddr::new(to, 0)));
    }
}

/// The first packet of a connection, whole.
fn packet(from: IpAddr, to: IpAddr, protocol: Protocol, source_port: u16, port: u16) -> Vec<u8> {
    let mut segment = [source_port.to_be_bytes(), port.to_be_bytes()].concat();
    let sum_at = match protocol {
        Protocol::Tcp => {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 255, 255, 0, 0, 0, 0]);
            Some(16)
        }
        Protocol::Udp => {
            segment.extend([0, 12, 0, 0, b'p', b'i', b'n', b'g']);
            Some(6)
        }
        // INIT (RFC 9260 3.3.2): tag 0 outside, a tag, a window, streams and a TSN inside. No checksum is verified.
        Protocol::Sctp => {
            segment.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]);
            segment.extend([0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            None
        }
    };
    let length = u16::try_from(segment.len()).unwrap();
    let addresses: Vec<u8> = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("two families"),
    };
    if let Some(at) = sum_at {
        let pseudo = [&addresses[..], &[0, protocol.number()], &length.to_be_bytes(), &segment[..]].concat();
        segment[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    }
    let header = if from.is_ipv4() {
        let total = (20 + length).to_be_bytes();
        let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol.number(), 0, 0];
        header.extend(&addresses);
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([protocol.number(), 64]);
        header.extend(&addresses);
        header
    };
    [header, segment].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
