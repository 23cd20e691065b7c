//! Neighbour discovery for IPv6 over Ethernet: solicitations and advertisements (RFC 4861), and duplicate address detection
//! by them (RFC 4862 5.4).
//!
//! ```text
//!  0  destination MAC, 6     14  version 6, class, flow, 4     54  type 135 or 136     58  flags R S O (advertisements)
//!  6  source MAC, 6          18  payload length, 2             55  code 0              62  target, 16
//! 12  EtherType 0x86dd       20  next header 58                56  checksum, 2         78  options: type, length / 8, ..
//!                            21  hop limit 255
//!                            22  source, 16
//!                            38  destination, 16
//! ```

use std::net::Ipv6Addr;

use crate::frame::{self, FrameError, Reader, write_header};
use crate::mac::Mac;

/// ff02::1, all nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Bytes of an IPv6 header.
const IPV6_HEADER: usize = 40;
/// Next header: ICMPv6.
const ICMPV6: u8 = 58;
/// A router would have lowered it: proof that the packet is from this link (RFC 4861 3.1).
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;

/// The group of a solicitation for an address: ff02::1:ff and its last three bytes (RFC 4291 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The MAC address of a group: 33:33 and its last four bytes (RFC 2464 7).
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// What a message says beside the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Who has the target? With the asker's MAC address; None in duplicate address detection.
    Solicitation(Option<Mac>),
    /// The target is here.
    Advertisement {
        /// R: the sender is a router.
        router: bool,
        /// S: the answer to a solicitation.
        solicited: bool,
        /// O: caches take the new MAC address for the one that they have.
        r#override: bool,
        /// Where; None: at the frame's source.
        mac: Option<Mac>,
    },
}

/// A message in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ndp {
    /// Destination of the frame.
    pub destination_mac: Mac,
    /// Source of the frame.
    pub source_mac: Mac,
    /// Source of the packet.
    pub source: Ipv6Addr,
    /// Destination of the packet.
    pub destination: Ipv6Addr,
    /// The address that it is about.
    pub target: Ipv6Addr,
    /// The rest.
    pub message: Message,
}

impl Ndp {
    /// Asks who has `target`.
    pub fn solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Ndp {
        let destination = solicited_node(target);
        let message = Message::Solicitation(Some(mac));
        Ndp { destination_mac: group_mac(destination), source_mac: mac, source, destination, target, message }
    }

    /// Asks whether anybody has `address`, without a claim to it (RFC 4862 5.4.2).
    pub fn probe(mac: Mac, address: Ipv6Addr) -> Ndp {
        let message = Message::Solicitation(None);
        Ndp { message, ..Ndp::solicitation(mac, Ipv6Addr::UNSPECIFIED, address) }
    }

    /// Says to all that `address` is at `mac` from now on (RFC 4861 7.2.6).
    pub fn announcement(mac: Mac, address: Ipv6Addr) -> Ndp {
        Ndp {
            destination_mac: group_mac(ALL_NODES),
            source_mac: mac,
            source: address,
            destination: ALL_NODES,
            target: address,
            // R is for those who route what hosts send elsewhere; nobody's gateway is a load-balancer address.
            message: Message::Advertisement {
                router: false,
                solicited: false,
                r#override: true,
                mac: Some(mac),
            },
        }
    }

    /// The answer from `mac` to this solicitation: to the asker alone; to all where the asker has no address yet
    /// (RFC 4861 7.2.4). It overrides as an announcement does: the address is the sender's alone.
    pub fn answer(&self, mac: Mac) -> Ndp {
        let announcement = Ndp::announcement(mac, self.target);
        if self.source.is_unspecified() {
            return announcement;
        }
        Ndp {
            destination_mac: self.speaker(),
            destination: self.source,
            message: Message::Advertisement {
                router: false,
                solicited: true,
                r#override: true,
                mac: Some(mac),
            },
            ..announcement
        }
    }

    /// Whether it only asks: duplicate address detection.
    pub fn is_probe(&self) -> bool {
        matches!(self.message, Message::Solicitation(_)) && self.source.is_unspecified()
    }

    /// The machine that speaks: what it says of itself, else the frame's source.
    pub fn speaker(&self) -> Mac {
        let said = match self.message {
            Message::Solicitation(mac) | Message::Advertisement { mac, .. } => mac,
        };
        said.filter(|mac| mac.is_station()).unwrap_or(self.source_mac)
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let (kind, flags, option) = match self.message {
            Message::Solicitation(mac) => (SOLICITATION, 0, mac.map(|mac| (OPTION_SOURCE, mac))),
            Message::Advertisement { router, solicited, r#override, mac } => {
                let flags = u8::from(router) << 7 | u8::from(solicited) << 6 | u8::from(r#override) << 5;
                (ADVERTISEMENT, flags, mac.map(|mac| (OPTION_TARGET, mac)))
            }
        };
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend(self.target.octets());
        if let Some((number, mac)) = option {
            message.extend([number, 1]);
            message.extend(mac.0);
        }
        let sum = checksum(self.source, self.destination, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());

        let mut bytes = Vec::with_capacity(frame::HEADER + IPV6_HEADER + message.len());
        write_header(&mut bytes, self.destination_mac, self.source_mac, frame::IPV6);
        let length = message.len() as u8; // 24 or 32.
        bytes.extend([0x60, 0, 0, 0, 0, length, ICMPV6, HOP_LIMIT]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(message);
        bytes
    }

    /// Reads a frame and checks it as RFC 4861 7.1.1 and 7.1.2 demand. Unknown options are passed over; what follows the
    /// packet is padding. A packet with extension headers is refused: nobody puts one before these messages.
    pub fn parse(frame: &[u8]) -> Result<Ndp, FrameError> {
        let mut reader = Reader::new(frame);
        let (destination_mac, source_mac) = frame::header(&mut reader, frame::IPV6)?;
        let field = |field, value: u8| Err(FrameError::Field { field, value: value.into() });
        match reader.take::<4>()?[0] >> 4 {
            6 => {}
            version => return field("the IP version", version),
        }
        let length = usize::from(reader.u16()?);
        match reader.u8()? {
            ICMPV6 => {}
            other => return field("the next header", other),
        }
        match reader.u8()? {
            HOP_LIMIT => {}
            other => return field("the hop limit", other),
        }
        let (source, destination) =
            (Ipv6Addr::from(reader.take::<16>()?), Ipv6Addr::from(reader.take::<16>()?));
        let message = reader.rest().get(..length).ok_or(FrameError::Short(frame.len()))?;
        let ndp = Message::parse(message, frame.len()).map(|(target, message)| Ndp {
            destination_mac,
            source_mac,
            source,
            destination,
            target,
            message,
        })?;
        // Last: most of what fails above is some other ICMPv6 message, and not worth the sum.
        if checksum(source, destination, message) != 0 {
            return Err(FrameError::Checksum);
        }
        ndp.check()
    }

    fn check(self) -> Result<Ndp, FrameError> {
        let wrong = |text| Err(FrameError::Address(text));
        if self.target.is_multicast() {
            return wrong("the target is a group");
        }
        if self.source.is_multicast() {
            return wrong("the packet's source is a group");
        }
        match self.message {
            Message::Solicitation(mac) if self.source.is_unspecified() => {
                if mac.is_some() {
                    return wrong("a solicitation without a source has a source's MAC address");
                }
                if self.destination != solicited_node(self.target) {
                    return wrong("a solicitation without a source is not to the target's group");
                }
            }
            Message::Advertisement { solicited: true, .. } if self.destination.is_multicast() => {
                return wrong("an answer to a solicitation is to a group");
            }
            _ => {}
        }
        Ok(self)
    }
}

impl Message {
    /// The target and the rest.
    fn parse(message: &[u8], frame: usize) -> Result<(Ipv6Addr, Message), FrameError> {
        let mut reader = Reader::within(message, frame);
        let kind = reader.u8()?;
        if !matches!(kind, SOLICITATION | ADVERTISEMENT) {
            return Err(FrameError::Field { field: "the ICMPv6 type", value: kind.into() });
        }
        match reader.u8()? {
            0 => {}
            code => return Err(FrameError::Field { field: "the ICMPv6 code", value: code.into() }),
        }
        let [_, _, flags, ..] = reader.take::<6>()?;
        let target = Ipv6Addr::from(reader.take::<16>()?);
        let wanted = if kind == SOLICITATION { OPTION_SOURCE } else { OPTION_TARGET };
        let mac = link_layer_address(reader.rest(), wanted)?;
        let message = match kind {
            SOLICITATION => Message::Solicitation(mac),
            _ => Message::Advertisement {
                router: flags & 0x80 != 0,
                solicited: flags & 0x40 != 0,
                r#override: flags & 0x20 != 0,
                mac,
            },
        };
        Ok((target, message))
    }
}

/// The MAC address in the first option with this number. An option of another length is for another kind of link.
fn link_layer_address(mut options: &[u8], number: u8) -> Result<Option<Mac>, FrameError> {
    let mut found = None;
    while let [kind, length, ..] = *options {
        let (option, rest) = options
            .split_at_checked(usize::from(length) * 8)
            .filter(|(option, _)| !option.is_empty())
            .ok_or(FrameError::Option)?;
        options = rest;
        if let (true, [_, _, a, b, c, d, e, f]) = (kind == number && found.is_none(), option) {
            found = Some(Mac([*a, *b, *c, *d, *e, *f]));
        }
    }
    if options.is_empty() { Ok(found) } else { Err(FrameError::Option) }
}

/// RFC 4443 2.3: over the pseudo-header (RFC 8200 8.1) and the message. Zero over a message that has its right one.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    let of = |bytes: &[u8]| bytes.chunks(2).map(word).sum::<u64>();
    let mut sum = of(&source.octets()) + of(&destination.octets()) + of(message);
    sum += message.len() as u64 + u64::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: Mac = Mac([2, 0, 0, 0, 0, 0x11]);
    const ASKER: Mac = Mac([4, 0, 0, 0, 0, 0x77]);

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn vip() -> Ipv6Addr {
        address("fd00:50::f0:1234")
    }

    fn golden(macs: [[u8; 6]; 2], length: u8, addresses: [Ipv6Addr; 2], message: &[u8]) -> Vec<u8> {
        let mut bytes = macs.concat();
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, 255]);
        addresses.iter().for_each(|a| bytes.extend(a.octets()));
        bytes.extend(message);
        bytes
    }

    #[test]
    fn groups_and_their_mac_addresses() {
        // RFC 4291 2.7.1's own example.
        assert_eq!(solicited_node(address("4037::01:800:200e:8c6c")), address("ff02::1:ff0e:8c6c"));
        assert_eq!(group_mac(address("ff02::1:ff0e:8c6c")), Mac([0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]));
        assert_eq!(group_mac(ALL_NODES), Mac([0x33, 0x33, 0, 0, 0, 1]));
    }

    #[test]
    fn frames_are_those_of_the_rfcs() {
        let target = [0xfd, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x12, 0x34];
        let message = |head: [u8; 8], option: &[u8]| [&head[..], &target, option].concat();
        let client = address("fe80::77");
        let question = Ndp::solicitation(ASKER, client, vip());
        let group = [0x33, 0x33, 0xff, 0xf0, 0x12, 0x34];
        // The sums, by hand: T is the target's words, fd00 + 50 + f0 + 1234 = 10f74.
        // ff02 + 1 + fff0 + 1234, length 18 and next header 3a, 8700, T: 3a8ed, folded a8f0, its complement 570f.
        let probe = message([135, 0, 0x57, 0x0f, 0, 0, 0, 0], &[]);
        // T, ff02 + 1, 20 + 3a, 8800 + 2000, T, 0201 + 0200 + 0011: 3cc57, cc5a.
        let announcement = message([136, 0, 0x33, 0xa5, 0x20, 0, 0, 0], &[2, 1, 2, 0, 0, 0, 0, 0x11]);
        // The same with fe80 + 77 for ff02 + 1 and 6000 for 2000: 40c4b, 0c4f.
        let answer = message([136, 0, 0xf3, 0xb0, 0x60, 0, 0, 0], &[2, 1, 2, 0, 0, 0, 0, 0x11]);
        // fe80 + 77, ff02 + 1 + fff0 + 1234, 20 + 3a, 8700, T, 0101 + 0400 + 0077: 4ad64, ad68.
        let asked = message([135, 0, 0x52, 0x97, 0, 0, 0, 0], &[1, 1, 4, 0, 0, 0, 0, 0x77]);
        let none = Ipv6Addr::UNSPECIFIED;
        for (name, packet, bytes) in [
            (
                "probe: from ::, to the target's group, no option",
                Ndp::probe(ME, vip()),
                golden([group, ME.0], 24, [none, address("ff02::1:fff0:1234")], &probe),
            ),
            (
                "announcement: to all nodes, O alone",
                Ndp::announcement(ME, vip()),
                golden([[0x33, 0x33, 0, 0, 0, 1], ME.0], 32, [vip(), ALL_NODES], &announcement),
            ),
            (
                "answer: to the asker, S and O",
                question.answer(ME),
                golden([ASKER.0, ME.0], 32, [vip(), client], &answer),
            ),
            (
                "solicitation: to the target's group, with the asker's MAC address",
                question,
                golden([group, ASKER.0], 32, [client, address("ff02::1:fff0:1234")], &asked),
            ),
        ] {
            assert_eq!(packet.build(), bytes, "{name}");
            let padded = [&bytes[..], &[7; 9]].concat();
            assert_eq!(Ndp::parse(&padded), Ok(packet), "{name}");
        }
        assert_eq!(Ndp::probe(ASKER, vip()).answer(ME), Ndp::announcement(ME, vip()));
        assert!(Ndp::probe(ME, vip()).is_probe() && !question.is_probe());
    }

    /// A frame after a change of its message, with the checksum made right again.
    fn changed(packet: Ndp, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = packet.build();
        change(&mut bytes);
        let length = bytes.len() - 54;
        bytes[19] = u8::try_from(length).unwrap();
        bytes[56..58].fill(0);
        let octets = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
        let sum = checksum(octets(22), octets(38), &bytes[54..]);
        bytes[56..58].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn other_frames_are_refused_with_their_reason() {
        let question = Ndp::solicitation(ASKER, address("fe80::77"), vip());
        let answer = question.answer(ME);
        let set = |packet, at: usize, byte: u8| changed(packet, |bytes| bytes[at] = byte);
        let field = |field, value| Err(FrameError::Field { field, value });
        let wrong = |text| Err(FrameError::Address(text));
        for (frame, expected) in [
            (set(question, 12, 8), Err(FrameError::EtherType(0x08dd))),
            (set(question, 14, 0x45), field("the IP version", 4)),
            (set(question, 20, 0), field("the next header", 0)),
            (set(question, 21, 254), field("the hop limit", 254)),
            (set(question, 54, 128), field("the ICMPv6 type", 128)),
            (set(question, 55, 1), field("the ICMPv6 code", 1)),
            (set(question, 62, 0xff), wrong("the target is a group")),
            (set(question, 22, 0xff), wrong("the packet's source is a group")),
            (
                changed(question, |bytes| bytes[22..38].fill(0)),
                wrong("a solicitation without a source has a source's MAC address"),
            ),
            (
                set(Ndp::probe(ME, vip()), 77, 0),
                wrong("a solicitation without a source is not to the target's group"),
            ),
            (set(answer, 38, 0xff), wrong("an answer to a solicitation is to a group")),
            (set(question, 79, 0), Err(FrameError::Option)),
            (set(question, 79, 2), Err(FrameError::Option)),
            (changed(question, |bytes| bytes.push(1)), Err(FrameError::Option)),
        ] {
            assert_eq!(Ndp::parse(&frame), expected, "{frame:02x?}");
        }
        let mut damaged = answer.build();
        damaged[80] ^= 1;
        assert_eq!(Ndp::parse(&damaged), Err(FrameError::Checksum));
        for end in 0..answer.build().len() {
            assert_eq!(Ndp::parse(&answer.build()[..end]), Err(FrameError::Short(end)));
        }
    }

    #[test]
    fn options_of_others_are_passed_over() {
        // Linux puts a nonce (RFC 7527) into its probes.
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        let probe = Ndp::probe(ASKER, vip());
        assert_eq!(Ndp::parse(&changed(probe, |bytes| bytes.extend(nonce))), Ok(probe));
        let question = Ndp::solicitation(ASKER, address("fe80::77"), vip());
        let before = changed(question, |bytes| drop(bytes.splice(78..78, nonce)));
        assert_eq!(Ndp::parse(&before), Ok(question));
        // A MAC address that no machine has is not spoken to.
        let odd = changed(question, |bytes| bytes[80] = 0xff);
        assert_eq!(Ndp::parse(&odd).unwrap().answer(ME).destination_mac, ASKER);
    }

    prop_compose! {
        fn message()(
            kind in any::<[bool; 4]>(),
            option in prop::option::of(any::<[u8; 6]>().prop_map(Mac)),
        ) -> Message {
            match kind {
                [true, ..] => Message::Solicitation(option),
                [_, router, solicited, r#override] => {
                    Message::Advertisement { router, solicited, r#override, mac: option }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_built_is_read_back(
            macs in any::<[[u8; 6]; 2]>(),
            addresses in any::<[Ipv6Addr; 3]>(),
            message in message(),
            padding in prop::collection::vec(any::<u8>(), 0..32),
        ) {
            let mut packet = Ndp {
                destination_mac: Mac(macs[0]),
                source_mac: Mac(macs[1]),
                source: addresses[0],
                destination: addresses[1],
                target: addresses[2],
                message,
            };
            packet.source_mac.0[0] = packet.source_mac.0[0] & !1 | 2;
            prop_assert_eq!(Ndp::parse(&[packet.build(), padding].concat()), packet.check());
        }

        /// Whatever is on the wire is refused or read whole, and one that is read is built again in the same words.
        #[test]
        fn any_bytes_are_no_packet_or_one(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            changes in prop::collection::vec((0_usize..86, any::<u8>()), 0..4),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            like in any::<bool>(),
        ) {
            if like {
                let question = Ndp::solicitation(ASKER, address("fe80::77"), vip());
                bytes = changed(question, |bytes| {
                    changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
                    bytes.extend(&tail);
                });
            }
            if let Ok(packet) = Ndp::parse(&bytes) {
                prop_assert_eq!(Ndp::parse(&packet.build()), Ok(packet));
            }
        }
    }
}
