//! The two protocols as one: who speaks, what is claimed, what is asked.

use std::net::IpAddr;

use crate::arp::{Arp, Operation};
use crate::frame::{self, FrameError};
use crate::mac::Mac;
use crate::ndp::{Message, Ndp};

/// A packet of either protocol.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packet {
    Arp(Arp),
    Ndp(Ndp),
}

impl Packet {
    pub(super) fn parse(bytes: &[u8]) -> Result<Packet, FrameError> {
        if frame::ether_type(bytes) == Some(frame::IPV6) {
            Ndp::parse(bytes).map(Packet::Ndp)
        } else {
            Arp::parse(bytes).map(Packet::Arp)
        }
    }

    /// Destination of the frame.
    pub(super) fn destination(&self) -> Mac {
        match self {
            Packet::Arp(arp) => arp.destination,
            Packet::Ndp(ndp) => ndp.destination_mac,
        }
    }

    /// The machine that says it.
    pub(super) fn speaker(&self) -> Mac {
        match self {
            Packet::Arp(arp) => arp.sender_mac,
            Packet::Ndp(ndp) => ndp.speaker(),
        }
    }

    /// The address that the speaker has, as it says.
    pub(super) fn claim(&self) -> Option<IpAddr> {
        let address = match self {
            Packet::Arp(arp) => IpAddr::V4(arp.sender),
            Packet::Ndp(Ndp { message: Message::Advertisement { .. }, target, .. }) => IpAddr::V6(*target),
            Packet::Ndp(ndp) => IpAddr::V6(ndp.source),
        };
        Some(address).filter(|address| !address.is_unspecified())
    }

    /// The address that the speaker looks for.
    pub(super) fn question(&self) -> Option<IpAddr> {
        match self {
            Packet::Arp(arp) => (arp.operation == Operation::Request).then_some(IpAddr::V4(arp.target)),
            Packet::Ndp(ndp) => match ndp.message {
                Message::Solicitation(_) => Some(IpAddr::V6(ndp.target)),
                Message::Advertisement { .. } => None,
            },
        }
    }

    /// Whether the speaker wants the address itself.
    pub(super) fn is_probe(&self) -> bool {
        match self {
            Packet::Arp(arp) => arp.is_probe(),
            Packet::Ndp(ndp) => ndp.is_probe(),
        }
    }

    /// The frame that answers the question: the address is at `mac`.
    pub(super) fn answer(&self, mac: Mac) -> Vec<u8> {
        match self {
            Packet::Arp(arp) => arp.answer(mac).build(),
            Packet::Ndp(ndp) => ndp.answer(mac).build(),
        }
    }
}

/// The frame that asks whether anybody has an address.
pub(super) fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => Arp::probe(mac, address).build(),
        IpAddr::V6(address) => Ndp::probe(mac, address).build(),
    }
}

/// The frame that says where an address is.
pub(super) fn announcement(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => Arp::announcement(mac, address).build(),
        IpAddr::V6(address) => Ndp::announcement(mac, address).build(),
    }
}

/// The same in another form, where there is one.
pub(super) fn second_form(mac: Mac, address: IpAddr) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => Some(Arp::announcement_reply(mac, address).build()),
        IpAddr::V6(_) => None,
    }
}
