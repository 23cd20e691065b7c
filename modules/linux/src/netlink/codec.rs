//! Netlink messages and their attributes as bytes (RFC 3549; native byte order).

use std::net::IpAddr;

/// Length of a netlink message header.
pub(super) const HEADER: usize = 16;

/// A message under construction. The socket fills in length, sequence and flags.
#[derive(Debug, Clone)]
pub struct Message {
    pub(super) bytes: Vec<u8>,
}

impl Message {
    /// A message of type `kind` with `flags` and the fixed `header` of its type.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        // Values are a few bytes each; the kernel refuses a message that is cut short.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds an attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Message {
        self.bytes(kind, &[])
    }

    /// Adds a byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Message {
        self.bytes(kind, &[value])
    }

    /// Adds a 16-bit number in network byte order.
    pub fn be16(&mut self, kind: u16, value: u16) -> &mut Message {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a 32-bit number.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a text and its final NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds an address.
    pub fn ip(&mut self, kind: u16, value: IpAddr) -> &mut Message {
        self.bytes(kind, &ip_bytes(value))
    }

    /// Adds raw bytes that are no attribute: the fixed header of a nested message.
    pub fn raw(&mut self, value: &[u8]) -> &mut Message {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.open(kind);
        fill(self);
        self.close(start);
        self
    }

    /// Begins an attribute that holds what is added until [`Message::close`] with the number that this gives.
    pub(crate) fn open(&mut self, kind: u16) -> usize {
        const NESTED: u16 = 0x8000;
        let start = self.bytes.len();
        self.bytes(kind | NESTED, &[]);
        start
    }

    /// Ends the attribute that [`Message::open`] began.
    pub(crate) fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The whole message with its header.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Attributes in a row: pairs of type and value. Ends at the first one that is cut short.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in `bytes` after a fixed header of `skip` bytes.
    pub fn after(bytes: &'a [u8], skip: usize) -> Attributes<'a> {
        Attributes { bytes: bytes.get(skip.next_multiple_of(4)..).unwrap_or_default() }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const TYPE: u16 = 0x3fff;
        let length = usize::from(ne_u16(self.bytes)?);
        let kind = ne_u16(self.bytes.get(2..)?)?;
        let value = self.bytes.get(4..length)?;
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, value))
    }
}

/// The first two bytes as a number.
pub(crate) fn ne_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// The first four bytes as a number.
pub(crate) fn ne_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A text up to its NUL.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address of four or sixteen bytes.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The bytes of an address.
pub(crate) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_written() {
        let mut message = Message::new(16, 0, &[0; 16]);
        message.text(3, "eth0").u32(4, 1450).nest(18, |m| {
            m.text(1, "vxlan").nest(2, |m| {
                m.be16(15, 8472).flag(7);
            });
        });
        let body = &message.bytes[HEADER..];
        let top: Vec<(u16, &[u8])> = Attributes::after(body, 16).collect();
        assert_eq!(top.iter().map(|a| a.0).collect::<Vec<_>>(), [3, 4, 18]);
        assert_eq!(text(top[0].1), "eth0");
        assert_eq!(ne_u32(top[1].1), Some(1450));
        let info: Vec<_> = Attributes::after(top[2].1, 0).collect();
        assert_eq!(text(info[0].1), "vxlan");
        let data: Vec<_> = Attributes::after(info[1].1, 0).collect();
        assert_eq!(data, [(15, &8472_u16.to_be_bytes()[..]), (7, &[][..])]);
    }

    #[test]
    fn garbage_ends_the_attributes() {
        for garbage in [&[][..], &[1], &[0, 0, 0, 0], &[3, 0, 1, 0], &[200, 0, 1, 0, 9], &[255; 7]] {
            assert_eq!(Attributes::after(garbage, 0).count(), 0, "{garbage:?}");
        }
    }
}
