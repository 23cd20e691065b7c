//! Ethernet frames (IEEE 802.3, DIX form), as far as ARP and NDP need them.

use thiserror::Error;

use crate::mac::Mac;

/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Bytes of the header.
pub(crate) const HEADER: usize = 14;

/// Why a frame is not what a parser reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// It ends too early.
    #[error("the frame has {0} bytes and ends too early")]
    Short(usize),
    /// It has a VLAN tag (IEEE 802.1Q, 802.1ad). The kernel takes tags off before a packet socket sees a frame; one
    /// that still has some was tagged twice and is for somebody else.
    #[error("the frame has a VLAN tag (EtherType {0:#06x})")]
    Tagged(u16),
    /// Another protocol.
    #[error("the frame's EtherType is {0:#06x}")]
    EtherType(u16),
    /// A field that has one right value has another.
    #[error("{field} is {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u32,
    },
    /// The checksum is wrong (RFC 4443 2.3).
    #[error("the checksum is wrong")]
    Checksum,
    /// An option is cut off, or has no length (RFC 4861 4.6).
    #[error("an option is cut off or has no length")]
    Option,
    /// Addresses that do not go together, or that nobody can have.
    #[error("{0}")]
    Address(&'static str),
}

/// Bytes that are read from the front.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader::within(bytes, bytes.len())
    }

    /// A part of a frame of `length` bytes: what an error says.
    pub(crate) fn within(bytes: &'a [u8], length: usize) -> Reader<'a> {
        Reader { rest: bytes, length }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(FrameError::Short(self.length))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn mac(&mut self) -> Result<Mac, FrameError> {
        self.take().map(Mac)
    }

    /// Reads a field that has one right value.
    pub(crate) fn expect(&mut self, field: &'static str, right: u16) -> Result<(), FrameError> {
        let value = self.u16()?;
        if value == right { Ok(()) } else { Err(FrameError::Field { field, value: value.into() }) }
    }
}

/// Reads the header of a frame of this EtherType: destination and source.
pub(crate) fn header(reader: &mut Reader<'_>, ether_type: u16) -> Result<(Mac, Mac), FrameError> {
    let (destination, source) = (reader.mac()?, reader.mac()?);
    match reader.u16()? {
        found if found == ether_type => {}
        tag @ (0x8100 | 0x88a8 | 0x9100) => return Err(FrameError::Tagged(tag)),
        other => return Err(FrameError::EtherType(other)),
    }
    if !source.is_station() {
        return Err(FrameError::Address("the frame's source is no machine's"));
    }
    Ok((destination, source))
}

/// Writes a header.
pub(crate) fn write_header(frame: &mut Vec<u8>, destination: Mac, source: Mac, ether_type: u16) {
    frame.extend(destination.0);
    frame.extend(source.0);
    frame.extend(ether_type.to_be_bytes());
}

/// EtherType of a frame, whatever it is.
pub(crate) fn ether_type(frame: &[u8]) -> Option<u16> {
    frame.get(12..HEADER).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes)
}
