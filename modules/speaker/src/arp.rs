//! ARP for IPv4 over Ethernet (RFC 826) and the uses of it that RFC 5227 adds: probes and announcements.
//!
//! ```text
//!  0  destination MAC, 6        14  hardware type 1        22  sender MAC, 6
//!  6  source MAC, 6             16  protocol type 0x0800   28  sender address, 4
//! 12  EtherType 0x0806          18  lengths 6 and 4        32  target MAC, 6
//!                               20  operation 1 or 2       38  target address, 4
//! ```

use std::net::Ipv4Addr;

use crate::frame::{self, FrameError, HEADER, Reader, write_header};
use crate::mac::Mac;

/// Bytes of an ARP frame that count. Drivers add zeroes up to what Ethernet wants.
pub const LENGTH: usize = HEADER + 28;

/// What an ARP packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender address is at the sender MAC.
    Reply,
}

/// An ARP packet in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Destination of the frame.
    pub destination: Mac,
    /// Source of the frame. Bridges of wireless networks may put theirs here: what counts is `sender_mac`.
    pub source: Mac,
    /// Operation.
    pub operation: Operation,
    /// `ar$sha`.
    pub sender_mac: Mac,
    /// `ar$spa`. Unspecified in a probe, which claims nothing.
    pub sender: Ipv4Addr,
    /// `ar$tha`. Means nothing in a request.
    pub target_mac: Mac,
    /// `ar$tpa`.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Asks everybody who has `target`.
    pub fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Arp {
        Arp {
            destination: Mac::BROADCAST,
            source: mac,
            operation: Operation::Request,
            sender_mac: mac,
            sender,
            target_mac: Mac::ZERO,
            target,
        }
    }

    /// Asks whether anybody has `address`, without a claim to it (RFC 5227 1.1).
    pub fn probe(mac: Mac, address: Ipv4Addr) -> Arp {
        Arp::request(mac, Ipv4Addr::UNSPECIFIED, address)
    }

    /// Says that `address` is at `mac` from now on, as a request (RFC 5227 2.3: "ARP Announcement").
    pub fn announcement(mac: Mac, address: Ipv4Addr) -> Arp {
        Arp::request(mac, address, address)
    }

    /// The same as a reply: some machines heed only one of the two forms (RFC 5944 4.6 has both). The target MAC is the one
    /// that caches are to be updated to.
    pub fn announcement_reply(mac: Mac, address: Ipv4Addr) -> Arp {
        Arp { operation: Operation::Reply, target_mac: mac, ..Arp::announcement(mac, address) }
    }

    /// The answer from `mac` to who sent this request, to it alone. A probe is answered too, so that the other finds the
    /// address in use.
    pub fn answer(&self, mac: Mac) -> Arp {
        Arp {
            destination: self.sender_mac,
            source: mac,
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// Whether it only asks (RFC 5227 1.1).
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender.is_unspecified()
    }

    /// The frame, without padding.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH);
        write_header(&mut bytes, self.destination, self.source, frame::ARP);
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        bytes.extend([0, 1, 8, 0, 6, 4, 0, operation]);
        bytes.extend(self.sender_mac.0);
        bytes.extend(self.sender.octets());
        bytes.extend(self.target_mac.0);
        bytes.extend(self.target.octets());
        bytes
    }

    /// Reads a frame. What follows the packet is padding.
    pub fn parse(frame: &[u8]) -> Result<Arp, FrameError> {
        let mut reader = Reader::new(frame);
        let (destination, source) = frame::header(&mut reader, frame::ARP)?;
        reader.expect("the hardware type", 1)?;
        reader.expect("the protocol type", 0x0800)?;
        reader.expect("the pair of address lengths", 0x0604)?;
        let operation = match reader.u16()? {
            1 => Operation::Request,
            2 => Operation::Reply,
            value => return Err(FrameError::Field { field: "the operation", value: value.into() }),
        };
        let (sender_mac, sender) = (reader.mac()?, Ipv4Addr::from(reader.take::<4>()?));
        let (target_mac, target) = (reader.mac()?, Ipv4Addr::from(reader.take::<4>()?));
        if !sender_mac.is_station() {
            return Err(FrameError::Address("the sender's MAC address is no machine's"));
        }
        Ok(Arp { destination, source, operation, sender_mac, sender, target_mac, target })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: Mac = Mac([2, 0, 0, 0, 0, 0x11]);
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 240);

    /// `ends`: the sender address, the target MAC and the target address.
    fn golden(destination: [u8; 6], operation: u8, ends: [u8; 14]) -> Vec<u8> {
        let mut bytes = destination.to_vec();
        bytes.extend(ME.0);
        bytes.extend([0x08, 0x06]); // ARP
        bytes.extend([0, 1, 8, 0, 6, 4, 0, operation]); // Ethernet, IPv4, their lengths
        bytes.extend(ME.0);
        bytes.extend(ends);
        bytes
    }

    #[test]
    fn frames_are_those_of_the_rfcs() {
        let all = [0xff; 6];
        let asker = Mac([4, 0, 0, 0, 0, 0x77]);
        let question = Arp::request(asker, Ipv4Addr::new(192, 168, 50, 7), VIP);
        for (name, packet, bytes) in [
            (
                "probe: sender address zero, target MAC zero",
                Arp::probe(ME, VIP),
                golden(all, 1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 168, 50, 240]),
            ),
            (
                "announcement: sender and target are the address",
                Arp::announcement(ME, VIP),
                golden(all, 1, [192, 168, 50, 240, 0, 0, 0, 0, 0, 0, 192, 168, 50, 240]),
            ),
            (
                "announcement as a reply",
                Arp::announcement_reply(ME, VIP),
                golden(all, 2, [192, 168, 50, 240, 2, 0, 0, 0, 0, 0x11, 192, 168, 50, 240]),
            ),
            (
                "answer: to the asker alone, sender and target turned",
                question.answer(ME),
                golden(asker.0, 2, [192, 168, 50, 240, 4, 0, 0, 0, 0, 0x77, 192, 168, 50, 7]),
            ),
        ] {
            assert_eq!(packet.build(), bytes, "{name}");
            assert_eq!(bytes.len(), LENGTH);
            let padded = [&bytes[..], &[0; 18]].concat();
            assert_eq!(Arp::parse(&padded), Ok(packet), "{name}");
        }
        assert!(Arp::probe(ME, VIP).is_probe() && !question.is_probe());
    }

    #[test]
    fn other_frames_are_refused_with_their_reason() {
        let right = Arp::announcement(ME, VIP).build();
        let field = |field, value| Err(FrameError::Field { field, value });
        for (at, byte, expected) in [
            (12, 0x81, Err(FrameError::EtherType(0x8106))),
            (13, 0x00, Err(FrameError::EtherType(0x0800))),
            (15, 6, field("the hardware type", 6)),
            (16, 0x86, field("the protocol type", 0x8600)),
            (18, 8, field("the pair of address lengths", 0x0804)),
            (21, 3, field("the operation", 3)),
            (6, 3, Err(FrameError::Address("the frame's source is no machine's"))),
            (22, 3, Err(FrameError::Address("the sender's MAC address is no machine's"))),
        ] {
            let mut wrong = right.clone();
            wrong[at] = byte;
            assert_eq!(Arp::parse(&wrong), expected, "byte {at}");
        }
        let tagged = [&right[..12], &[0x81, 0, 0, 10], &right[12..]].concat();
        assert_eq!(Arp::parse(&tagged), Err(FrameError::Tagged(0x8100)));
        for end in 0..LENGTH {
            assert_eq!(Arp::parse(&right[..end]), Err(FrameError::Short(end)));
        }
    }

    fn station() -> impl Strategy<Value = Mac> {
        any::<[u8; 6]>().prop_map(|mut mac| {
            mac[0] = mac[0] & !1 | 2;
            Mac(mac)
        })
    }

    proptest! {
        #[test]
        fn what_is_built_is_read_back(
            destination in any::<[u8; 6]>(),
            source in station(),
            sender_mac in station(),
            target_mac in any::<[u8; 6]>(),
            addresses in any::<[Ipv4Addr; 2]>(),
            reply in any::<bool>(),
            padding in prop::collection::vec(any::<u8>(), 0..32),
        ) {
            let packet = Arp {
                destination: Mac(destination),
                source,
                operation: if reply { Operation::Reply } else { Operation::Request },
                sender_mac,
                sender: addresses[0],
                target_mac: Mac(target_mac),
                target: addresses[1],
            };
            prop_assert_eq!(Arp::parse(&[packet.build(), padding].concat()), Ok(packet));
        }

        /// Whatever is on the wire is refused or read whole.
        #[test]
        fn any_bytes_are_no_packet_or_one(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            changes in prop::collection::vec((0_usize..LENGTH, any::<u8>()), 0..4),
            like in any::<bool>(),
        ) {
            if like {
                bytes = Arp::probe(ME, VIP).build();
                changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
            }
            if let Ok(packet) = Arp::parse(&bytes) {
                prop_assert_eq!(&packet.build()[..], &bytes[..LENGTH]);
            }
        }
    }
}
