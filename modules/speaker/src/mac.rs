//! MAC addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A MAC address (EUI-48). Shown, and written in formats for people, as `02:00:00:00:00:01`; six bytes in others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

/// Not six pairs of hexadecimal digits with colons between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a MAC address")]
pub struct MacError;

impl Mac {
    /// To everybody on the link.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// None: what an ARP request says of the target, which it does not know.
    pub const ZERO: Mac = Mac([0; 6]);

    /// Whether frames to it are for several machines: the I/G bit (IEEE 802, first bit on the wire).
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether a machine can have it.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Mac::ZERO
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2 && !p.starts_with('+')).ok_or(MacError)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacError)?;
        }
        if parts.next().is_some() { Err(MacError) } else { Ok(Mac(mac)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 6]>::deserialize(deserializer).map(Mac)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_back_and_nothing_else_is() {
        let mac = Mac([2, 0, 0xab, 0xcd, 0xef, 0xff]);
        assert_eq!(mac.to_string(), "02:00:ab:cd:ef:ff");
        assert_eq!("02:00:AB:cd:ef:ff".parse(), Ok(mac));
        assert_eq!(serde_json::from_str::<Mac>(&serde_json::to_string(&mac).unwrap()).unwrap(), mac);
        for wrong in ["", "02:00:ab:cd:ef", "02:00:ab:cd:ef:ff:00", "2:0:ab:cd:ef:ff", "+2:00:ab:cd:ef:ff"] {
            assert_eq!(wrong.parse::<Mac>(), Err(MacError), "{wrong}");
        }
    }

    #[test]
    fn stations_and_groups() {
        assert!(Mac([2, 0, 0, 0, 0, 1]).is_station());
        assert!(!Mac::ZERO.is_station() && !Mac::ZERO.is_group());
        assert!(Mac::BROADCAST.is_group() && Mac([0x33, 0x33, 0, 0, 0, 1]).is_group());
    }
}
