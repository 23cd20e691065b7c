//! All ports of a node.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{Interface, Port};

/// Frames of one port that [`Lan::receive`] reads at most: its caller has other things to do, and answers to send.
const AT_ONCE: usize = 1024;
/// Of so many it hands over at most these: an answer costs ten times what a question does.
const OF_FLOOD: usize = 256;

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

    /// Hands over frames that are there, those that are alike once: a question is answered once, however often it was asked
    /// meanwhile. Of a flood not all are read, the descriptor stays readable then, and not all are handed over: each
    /// machine has its share, so that who asks little is not lost among those who ask much. Gives how many were left out.
    /// A port that fails is closed: the interface went.
    pub fn receive(&mut self, each: &mut dyn FnMut(&str, &[u8])) -> usize {
        let mut left_out = 0;
        self.ports.retain(|name, port| {
            let mut batch = Batch::default();
            let mut works = true;
            for _ in 0..AT_ONCE {
                match port.receive() {
                    Ok(Some(frame)) => batch.add(frame),
                    Ok(None) => break,
                    Err(_) => {
                        works = false;
                        break;
                    }
                }
            }
            left_out += batch.share(&mut |frame| each(name, frame));
            works
        });
        left_out
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The interface is gone or down, or its queue is full.
    pub fn send(&mut self, interface: &str, frame: &[u8]) -> io::Result<()> {
        self.port(interface)?.send(frame)
    }
}

/// Frames that were read together.
#[derive(Debug, Default)]
struct Batch {
    read: usize,
    seen: HashSet<Vec<u8>>,
    /// One of each kind, by the machine that sent it; machines and frames in the order in which they came.
    machines: VecDeque<VecDeque<Vec<u8>>>,
    places: BTreeMap<[u8; 6], usize>,
}

impl Batch {
    fn add(&mut self, frame: &[u8]) {
        self.read += 1;
        if !self.seen.insert(frame.to_vec()) {
            return;
        }
        let source: [u8; 6] = frame.get(6..12).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        let place = *self.places.entry(source).or_insert_with(|| {
            self.machines.push_back(VecDeque::new());
            self.machines.len() - 1
        });
        if let Some(frames) = self.machines.get_mut(place) {
            frames.push_back(frame.to_vec());
        }
    }

    /// Hands over a frame of each machine in turn; gives how many are left out.
    fn share(mut self, each: &mut dyn FnMut(&[u8])) -> usize {
        // With less there was nothing more to read: all of it is dealt with.
        let mut most = if self.read < AT_ONCE { AT_ONCE } else { OF_FLOOD };
        while most > 0
            && let Some(mut frames) = self.machines.pop_front()
        {
            if let Some(frame) = frames.pop_front() {
                each(&frame);
                most -= 1;
                self.machines.push_back(frames);
            }
        }
        self.machines.iter().map(VecDeque::len).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(machine: u8, about: u16) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, machine]);
        frame.extend(about.to_be_bytes());
        frame
    }

    fn shared(frames: impl Iterator<Item = Vec<u8>>) -> (Vec<Vec<u8>>, usize) {
        let (mut batch, mut all) = (Batch::default(), Vec::new());
        frames.for_each(|frame| batch.add(&frame));
        let left_out = batch.share(&mut |frame| all.push(frame.to_vec()));
        (all, left_out)
    }

    #[test]
    fn what_is_alike_is_handed_over_once_and_in_order() {
        let (all, left_out) = shared((0..1023).map(|n| frame(1, n % 300)));
        assert_eq!((all, left_out), ((0..300).map(|n| frame(1, n)).collect(), 0));
    }

    #[test]
    fn of_a_flood_each_machine_has_its_share() {
        // Two ask for something else each time; a third asks twice, a fourth last of all.
        let flood = (0..1021).map(|n| frame(1 + (n % 2) as u8, n));
        let (all, left_out) = shared(flood.chain([frame(3, 7), frame(3, 8), frame(4, 9)]));
        assert_eq!((all.len(), left_out), (256, 1024 - 256));
        let of = |machine: u8| all.iter().filter(|frame| frame[11] == machine).count();
        assert_eq!((of(1), of(2), of(3), of(4)), (127, 126, 2, 1));
    }
}
