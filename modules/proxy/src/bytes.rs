//! Elements as the kernel stores them: fields of a key one after the other, in network byte order but for slots, each
//! padded to four bytes (`NFT_REG32_SIZE`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use homelab_model::service::Protocol;
use ipnet::IpNet;

use crate::element::{Element, Frontend, Set};
use crate::stale::Remembered;

/// An element's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes {
    /// Key, or the first one of an interval.
    pub key: Vec<u8>,
    /// The last key of an interval.
    pub key_end: Option<Vec<u8>>,
    /// A map's value.
    pub data: Option<Vec<u8>>,
}

impl From<&Element> for Bytes {
    fn from(element: &Element) -> Bytes {
        let mut key = match element.frontend() {
            Some(frontend) => frontend_bytes(frontend),
            None => Vec::new(),
        };
        let (mut key_end, mut data) = (None, None);
        match element {
            Element::ClusterAddress(address) => key.extend(address_bytes(*address)),
            Element::Endpoint { slot, to, .. } => {
                // numgen counts in the machine's own order.
                key.extend(slot.to_ne_bytes());
                data = Some([address_bytes(to.ip()), port_bytes(to.port())].concat());
            }
            Element::Large { slot, .. } => key.extend(slot.to_ne_bytes()),
            Element::Allowed(_, range) => {
                key_end = Some([key.clone(), address_bytes(range.broadcast())].concat());
                key.extend(address_bytes(range.network()));
            }
            Element::Hairpin(_, address) => {
                key.extend(address_bytes(*address));
                key.extend(address_bytes(*address));
            }
            _ => {}
        }
        Bytes { key, key_end, data }
    }
}

impl From<&Remembered> for Bytes {
    fn from(Remembered { frontend, client, endpoint }: &Remembered) -> Bytes {
        let key = [frontend_bytes(*frontend), address_bytes(*client)].concat();
        let data = [address_bytes(endpoint.ip()), port_bytes(endpoint.port())].concat();
        Bytes { key, key_end: None, data: Some(data) }
    }
}

impl Bytes {
    /// The client that these are, where they are of [`Set::Affinity`]; None if nothing of ours looks like that.
    pub fn remembered(&self, v4: bool) -> Option<Remembered> {
        let mut key = Fields { bytes: &self.key, v4 };
        let mut data = Fields { bytes: self.data.as_ref()?, v4 };
        let (frontend, client) = (key.frontend()?, key.address()?);
        let client =
            Remembered { frontend, client, endpoint: SocketAddr::new(data.address()?, data.port()?) };
        (Bytes::from(&client) == *self).then_some(client)
    }

    /// The element of `set` that these are; None if nothing of ours looks like that.
    pub fn element(&self, set: Set, v4: bool) -> Option<Element> {
        let mut rest = Fields { bytes: &self.key, v4 };
        let element = if set == Set::ClusterAddresses {
            Element::ClusterAddress(rest.address()?)
        } else {
            let frontend = rest.frontend()?;
            match set {
                Set::Frontends => Element::Served(frontend),
                Set::PlainFrontends => Element::Plain(frontend),
                Set::Endpoints => {
                    let slot = rest.slot()?;
                    let mut data = Fields { bytes: self.data.as_ref()?, v4 };
                    Element::Endpoint { frontend, slot, to: SocketAddr::new(data.address()?, data.port()?) }
                }
                Set::LargePools => Element::Large { frontend, slot: rest.slot()? },
                Set::NoEndpoints => Element::Unserved(frontend),
                Set::NoLocalEndpoints => Element::Dropped(frontend),
                Set::ExternalCluster => Element::ExternalCluster(frontend),
                Set::ExternalLocal => Element::ExternalLocal(frontend),
                Set::SourceRanged => Element::Ranged(frontend),
                Set::SourceAllowed => {
                    let mut end = Fields { bytes: self.key_end.as_ref()?, v4 };
                    (end.frontend()? == frontend).then_some(())?;
                    Element::Allowed(frontend, range(rest.address()?, end.address()?)?)
                }
                Set::Hairpin => {
                    let address = rest.address()?;
                    (rest.address()? == address).then_some(())?;
                    Element::Hairpin(frontend, address)
                }
                Set::AffinityServices => Element::Sticky(frontend),
                Set::AffinityTimeout(seconds) => Element::StickyFor(frontend, seconds),
                // The kernel's own, or handled above.
                Set::Affinity | Set::ClusterAddresses => return None,
            }
        };
        // Whatever else is there is none of ours.
        (Bytes::from(&element) == *self).then_some(element)
    }
}

fn frontend_bytes(frontend: Frontend) -> Vec<u8> {
    let protocol = [frontend.protocol.number(), 0, 0, 0];
    [&address_bytes(frontend.address)[..], &protocol, &port_bytes(frontend.port)].concat()
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn port_bytes(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![high, low, 0, 0]
}

/// The range from its first to its last address.
fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let all = if first.is_ipv4() { 32 } else { 128 };
    (0..=all)
        .filter_map(|length| IpNet::new(first, length).ok())
        .find(|r| r.network() == first && r.broadcast() == last)
}

/// What is left to read.
struct Fields<'a> {
    bytes: &'a [u8],
    v4: bool,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*taken)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.v4 {
            true => Some(Ipv4Addr::from(self.take::<4>()?).into()),
            false => Some(Ipv6Addr::from(self.take::<16>()?).into()),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn slot(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take()?))
    }

    fn frontend(&mut self) -> Option<Frontend> {
        let address = self.address()?;
        let [number, ..] = self.take::<4>()?;
        let protocol = Protocol::ALL.into_iter().find(|p| p.number() == number)?;
        Some(Frontend { address, protocol, port: self.port()? })
    }
}
