//! Frames of the LAN: ARP and neighbour discovery about some addresses, past the kernel's own tables (packet(7)).

mod filter;
mod interfaces;
mod lan;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{LinkAddr, bind, setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};

pub use interfaces::{Interface, interfaces};
pub use lan::Lan;

/// Ethernet types (`linux/if_ether.h`).
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// Longer than any frame that is let through: jumbo frames of neighbour discovery do not occur.
const FRAME: usize = 1518;
/// Bytes that the kernel keeps for a socket, twice what it is told; a short frame counts as some 800. That is for 50 ms of
/// 50,000 frames a second: what has waited longer was asked again. The kernel's own 208 KiB are full after 5 ms, which
/// a busy machine may well let the agent wait.
const BUFFER: usize = 1 << 20;

/// An ear and a mouth on one interface: hears ARP and neighbour discovery about the addresses that it is told, and sends
/// frames. Its descriptor becomes readable when there is something to [`Port::receive`].
#[derive(Debug)]
pub struct Port {
    index: u32,
    arp: Socket,
    ndp: Socket,
    ready: Epoll,
    heard: Vec<IpAddr>,
    /// Members of solicited-node groups, so that network card and switches pass their frames (RFC 4291 2.7.1, RFC 3810).
    /// A socket of its own for each: what one socket may hold is bounded.
    groups: BTreeMap<Ipv6Addr, Socket>,
    buffer: Box<[u8; FRAME]>,
    /// Whether neighbour discovery is read first the next time: neither protocol's flood is to silence the other.
    ndp_first: bool,
}

/// The link address of an interface, as bind(2) takes it.
fn link_address(interface: &str) -> io::Result<LinkAddr> {
    let address = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied());
    address
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {interface}")))
}

fn open(kind: u16, address: &LinkAddr) -> io::Result<Socket> {
    // Until it is bound it hears all interfaces.
    let protocol = Protocol::from(i32::from(kind.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    socket.attach_filter(&filter::nothing())?;
    socket.set_nonblocking(true)?;
    // Needs CAP_NET_ADMIN, which the agent has; others, as a scan from a laptop, do without.
    let _ = setsockopt(&socket, RcvBufForce, &BUFFER);
    bind(socket.as_raw_fd(), address)?;
    discard(&socket)?;
    Ok(socket)
}

/// Throws away what came before a filter stood.
fn discard(mut socket: &Socket) -> io::Result<()> {
    use io::Read as _;
    let mut buffer = [0; 64];
    loop {
        match socket.read(&mut buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The solicited-node multicast address of an address.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

impl Port {
    /// Opens an interface of the caller's network namespace. It hears nothing yet.
    ///
    /// # Errors
    /// There is no such interface, or the process may not (CAP_NET_RAW).
    pub fn open(interface: &str) -> io::Result<Port> {
        let address = link_address(interface)?;
        let (arp, ndp) = (open(ARP, &address)?, open(IPV6, &address)?);
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for socket in [&arp, &ndp] {
            ready.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        let index = u32::try_from(address.ifindex()).unwrap_or_default();
        let buffer = Box::new([0; FRAME]);
        Ok(Port {
            index,
            arp,
            ndp,
            ready,
            heard: Vec::new(),
            groups: BTreeMap::new(),
            buffer,
            ndp_first: false,
        })
    }

    /// Index of the interface. One that was taken away and made anew has another.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Hears about these addresses from now on, and about no others.
    ///
    /// # Errors
    /// The kernel refuses the filter, or the membership of a group (IPv6 is off on the interface).
    pub fn hear(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        if addresses == self.heard {
            return Ok(());
        }
        let mut four: Vec<Ipv4Addr> = Vec::new();
        let mut six: Vec<Ipv6Addr> = Vec::new();
        for address in addresses {
            match address {
                IpAddr::V4(a) => four.push(*a),
                IpAddr::V6(a) => six.push(*a),
            }
        }
        let program = if four.is_empty() { filter::nothing() } else { filter::arp(self.index, &four) };
        self.arp.attach_filter(&program)?;
        let program = if six.is_empty() { filter::nothing() } else { filter::ndp(self.index, &six) };
        self.ndp.attach_filter(&program)?;
        self.heard.clear();
        let groups: std::collections::BTreeSet<Ipv6Addr> = six.into_iter().map(solicited_node).collect();
        self.groups.retain(|group, _| groups.contains(group));
        for group in groups {
            if !self.groups.contains_key(&group) {
                let member = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
                member.join_multicast_v6(&group, self.index)?;
                self.groups.insert(group, member);
            }
        }
        self.heard = addresses.to_vec();
        Ok(())
    }

    /// The next frame, Ethernet header included; None: there is none now.
    ///
    /// # Errors
    /// The interface is gone or down.
    pub fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        use io::Read as _;
        let both = if self.ndp_first { [&self.ndp, &self.arp] } else { [&self.arp, &self.ndp] };
        self.ndp_first = !self.ndp_first;
        for mut socket in both {
            match socket.read(&mut self.buffer[..]) {
                Ok(length) => return Ok(Some(&self.buffer[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Sends a frame, Ethernet header included.
    ///
    /// # Errors
    /// The interface is gone or down, or its queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        use io::Write as _;
        (&self.arp).write_all(frame)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }
}

impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.0.as_raw_fd()
    }
}
