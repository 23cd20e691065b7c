//! ethtool over generic netlink: the one feature of a link that rtnetlink cannot set.

use netlink_sys::protocols::NETLINK_GENERIC;

use super::codec::{Attributes, Message, ne_u16, text};
use super::socket::{NetlinkError, Socket};

const CHECKSUM: &str = "tx-checksum-ip-generic";
const HEADER: u16 = 1;
const DEV_INDEX: u16 = 1;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// A socket of the ethtool family.
#[derive(Debug)]
pub(crate) struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    /// Opens a socket in the caller's network namespace.
    pub(crate) fn open() -> Result<Ethtool, NetlinkError> {
        const CONTROL: u16 = 0x10;
        const GETFAMILY: u8 = 3;
        const FAMILY_ID: u16 = 1;
        const FAMILY_NAME: u16 = 2;
        let mut socket = Socket::open(NETLINK_GENERIC)?;
        let mut message = Message::new(CONTROL, 0, &[GETFAMILY, 1, 0, 0]);
        message.text(FAMILY_NAME, "ethtool");
        let answers = socket.query(message)?;
        let family = answers
            .iter()
            .find_map(|body| Attributes::after(body, 4).find(|(kind, _)| *kind == FAMILY_ID))
            .and_then(|(_, value)| ne_u16(value))
            .ok_or(NetlinkError::Malformed)?;
        Ok(Ethtool { socket, family })
    }

    /// Whether the link leaves checksums of what it sends to the hardware below.
    pub(crate) fn checksum_offload(&mut self, index: u32) -> Result<bool, NetlinkError> {
        const FEATURES_GET: u8 = 11;
        let mut message = Message::new(self.family, 0, &[FEATURES_GET, 1, 0, 0]);
        message.nest(HEADER, |m| {
            m.u32(DEV_INDEX, index);
        });
        let answers = self.socket.query(message)?;
        let active = answers
            .iter()
            .find_map(|body| Attributes::after(body, 4).find(|(kind, _)| *kind == ACTIVE))
            .ok_or(NetlinkError::Malformed)?;
        // A bit set of names lists those that are on.
        Ok(Attributes::after(active.1, 0)
            .filter(|(kind, _)| *kind == BITS)
            .flat_map(|(_, bits)| Attributes::after(bits, 0))
            .flat_map(|(_, bit)| Attributes::after(bit, 0))
            .any(|(kind, value)| kind == BIT_NAME && text(value) == CHECKSUM))
    }

    /// Switches the same on or off.
    pub(crate) fn set_checksum_offload(&mut self, index: u32, on: bool) -> Result<(), NetlinkError> {
        const FEATURES_SET: u8 = 12;
        let mut message = Message::new(self.family, 0, &[FEATURES_SET, 1, 0, 0]);
        message.nest(HEADER, |m| {
            m.u32(DEV_INDEX, index);
        });
        message.nest(WANTED, |m| {
            m.nest(BITS, |m| {
                m.nest(BIT, |m| {
                    m.text(BIT_NAME, CHECKSUM);
                    if on {
                        m.flag(BIT_VALUE);
                    }
                });
            });
        });
        self.socket.request(message)
    }
}
