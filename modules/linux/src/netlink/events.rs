//! What happens in the kernel, in coarse classes: a reason to look again, never a source of state.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::SocketAddr;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use homelab_model::ours;

use super::codec::{Attributes, ne_u32, text};
use super::rtm;
use super::socket::{Head, messages, nft_table};

/// `RTNLGRP_*`: link, neigh, IPv4 and IPv6 address and route, netconf (sysctls of links).
const ROUTE_GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];
/// Those of links and of addresses alone.
const LINK_GROUPS: [u32; 3] = [1, 5, 9];
/// `NFNLGRP_NFTABLES`.
const NFT_GROUP: u32 = 7;
const RECEIVE_BUFFER: usize = 1 << 20;

/// What happened since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Happened {
    /// A link came, went or changed.
    pub links: bool,
    /// An address came or went.
    pub addresses: bool,
    /// A route came or went.
    pub routes: bool,
    /// A neighbour or FDB entry of a watched link came, went or changed.
    pub neighbours: bool,
    /// A chain, rule or set of an nftables table of ours changed.
    pub nft: bool,
    /// Another process than this one changed elements of the proxy's sets.
    pub services: bool,
    /// A network parameter changed (forwarding, rp_filter, ...).
    pub sysctls: bool,
    /// Events were lost: anything may have happened.
    pub overflow: bool,
}

impl Happened {
    /// Whether there is a reason to look again.
    pub fn any(&self) -> bool {
        *self != Happened::default()
    }
}

/// Subscriptions to the kernel's events in one network namespace. Its descriptor becomes readable when there
/// is something to [`Events::drain`].
#[derive(Debug)]
pub struct Events {
    route: netlink_sys::Socket,
    netfilter: Option<netlink_sys::Socket>,
    ready: Epoll,
    watched: Option<BTreeSet<u32>>,
    own: u32,
    buffer: Vec<u8>,
}

/// A part of a table of ours.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// Elements of the proxy's sets.
    Elements,
    /// Anything else.
    Rules,
}

/// What of ours an nftables message is about.
fn of_ours(kind: u16, body: &[u8]) -> Option<Part> {
    /// `NFT_MSG_*`.
    const NEWSETELEM: u16 = 12;
    const DELSETELEM: u16 = 14;
    /// `NFTA_*_TABLE`, `NFTA_TABLE_NAME`; of the message that ends a transaction another attribute, of four bytes.
    const TABLE: u16 = 1;
    const NEWGEN: u16 = 15;
    let kind = kind & 0xff;
    let table = Attributes::after(body, 4).find(|(kind, _)| *kind == TABLE).map(|(_, value)| text(value))?;
    let is = |ours: &str| nft_table(ours) == (body[0], table.as_str());
    match kind {
        NEWGEN => None,
        // Host ports come and go with pods; who loses them without that loses the table, or is found out by the timer.
        NEWSETELEM | DELSETELEM => is(ours::PROXY_TABLE).then_some(Part::Elements),
        _ => ours::NFT_TABLES.into_iter().any(is).then_some(Part::Rules),
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    socket.set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX))?;
    for &group in groups {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

impl Events {
    /// Subscribes in the caller's network namespace.
    pub fn open() -> io::Result<Events> {
        Events::with(&ROUTE_GROUPS, subscribe(NETLINK_NETFILTER, &[NFT_GROUP]).ok())
    }

    /// Subscribes to what happens to links and addresses, and to nothing else.
    pub fn of_links() -> io::Result<Events> {
        Events::with(&LINK_GROUPS, None)
    }

    fn with(groups: &[u32], netfilter: Option<netlink_sys::Socket>) -> io::Result<Events> {
        let route = subscribe(NETLINK_ROUTE, groups)?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = || EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR, 0);
        // The sockets live as long as the epoll instance.
        ready.add(&route, interest())?;
        if let Some(socket) = &netfilter {
            ready.add(socket, interest())?;
        }
        Ok(Events { route, netfilter, ready, watched: None, own: 0, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Counts neighbour events of links with these indices only: on a LAN they come all the time.
    pub fn watch_neighbours_of(&mut self, links: impl IntoIterator<Item = u32>) {
        self.watched = Some(links.into_iter().collect());
    }

    /// Whose changes of services are no news: the port of a socket of this process ([`crate::Node::port`]).
    pub fn ignore_services_of(&mut self, port: u32) {
        self.own = port;
    }

    /// Waits until there is something to [`Events::drain`].
    pub fn wait(&self) -> io::Result<()> {
        let mut ready = [EpollEvent::empty()];
        loop {
            match self.ready.wait(&mut ready, nix::sys::epoll::EpollTimeout::NONE) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes all waiting events. Never blocks.
    pub fn drain(&mut self) -> io::Result<Happened> {
        let mut happened = Happened::default();
        let watched = &self.watched;
        take(&self.route, &mut self.buffer, &mut happened, &mut |happened, head, body| match head.kind {
            rtm::NEWLINK..=rtm::SETLINK => happened.links = true,
            rtm::NEWADDR..=rtm::GETADDR => happened.addresses = true,
            rtm::NEWROUTE..=rtm::GETROUTE => happened.routes = true,
            rtm::NEWNEIGH..=rtm::GETNEIGH => {
                let link = body.get(4..).and_then(ne_u32);
                happened.neighbours |=
                    watched.as_ref().is_none_or(|links| link.is_none_or(|l| links.contains(&l)));
            }
            rtm::NEWNETCONF.. => happened.sysctls = true,
            _ => {}
        })?;
        if let Some(socket) = &self.netfilter {
            let own = self.own;
            take(socket, &mut self.buffer, &mut happened, &mut |happened, head, body| {
                let own = head.port == own;
                match of_ours(head.kind, body) {
                    Some(Part::Elements) => happened.services |= !own,
                    Some(Part::Rules) => happened.nft = true,
                    None => {}
                }
            })?;
        }
        Ok(happened)
    }
}

fn take(
    socket: &netlink_sys::Socket,
    buffer: &mut Vec<u8>,
    happened: &mut Happened,
    each: &mut impl FnMut(&mut Happened, Head, &[u8]),
) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => messages(buffer).for_each(|(head, body)| each(happened, head, body)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => happened.overflow = true,
            Err(e) => return Err(e),
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.0.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }
}
