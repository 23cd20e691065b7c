//! All ports of a node.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{Interface, Port};

/// Frames of one port that [`Lan::receive`] hands over at most.
const AT_ONCE: usize = 64;

/// The ports that are open, by interface. Its descriptor becomes readable when there is something to [`Lan::receive`].
#[derive(Debug)]
pub struct Lan {
    ports: BTreeMap<String, Port>,
    ready: Epoll,
}

impl Lan {
    /// None is open.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Lan> {
        Ok(Lan { ports: BTreeMap::new(), ready: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Opens and closes ports so that these addresses are heard about on these interfaces. Gives what does not work; it is
    /// tried again the next time.
    pub fn hear(&mut self, wanted: &BTreeMap<String, Vec<IpAddr>>) -> Vec<(String, io::Error)> {
        self.ports.retain(|interface, _| wanted.contains_key(interface));
        let mut errors = Vec::new();
        for (interface, addresses) in wanted {
            let result = self.port(interface).and_then(|port| port.hear(addresses));
            if let Err(error) = result {
                errors.push((interface.clone(), error));
            }
        }
        errors
    }

    fn port(&mut self, interface: &str) -> io::Result<&mut Port> {
        if !self.ports.contains_key(interface) {
            let port = Port::open(interface)?;
            self.ready.add(&port, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            self.ports.insert(interface.to_owned(), port);
        }
        self.ports.get_mut(interface).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Closes ports of interfaces that are gone, or were made anew under the same name.
    pub fn keep(&mut self, interfaces: &[Interface]) {
        let is_there = |name: &str, index| interfaces.iter().any(|i| i.name == name && i.index == index);
        self.ports.retain(|name, port| is_there(name, port.index()));
    }

    /// Hands over frames that are there, of a flood not all: its caller has other things to do, and answers to send. The
    /// descriptor stays readable then. A port that fails is closed: the interface went.
    pub fn receive(&mut self, each: &mut dyn FnMut(&str, &[u8])) {
        self.ports.retain(|name, port| {
            for _ in 0..AT_ONCE {
                match port.receive() {
                    Ok(Some(frame)) => each(name, frame),
                    Ok(None) => return true,
                    Err(_) => return false,
                }
            }
            true
        });
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The interface is gone or down, or its queue is full.
    pub fn send(&mut self, interface: &str, frame: &[u8]) -> io::Result<()> {
        self.port(interface)?.send(frame)
    }
}

impl AsFd for Lan {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }
}

impl AsRawFd for Lan {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.0.as_raw_fd()
    }
}
