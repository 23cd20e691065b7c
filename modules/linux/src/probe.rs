//! Which machines answer, without ICMP sockets and without a program of theirs: a UDP packet to a port where nobody
//! listens makes the other kernel say so, and that is an answer.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The port of the discard protocol (RFC 863), which nobody serves any more.
const PORT: u16 = 9;
/// A kernel answers a host about six times in a row and then once a second (`icmp_ratelimit`).
const TRIES: u32 = 3;

/// A target and its socket, while there is no answer. There is no socket as long as there is no route.
struct Waiting {
    place: usize,
    target: IpAddr,
    socket: Option<UdpSocket>,
}

/// Which of `targets` answer within `limit`, in their order. Packets leave from the first of `sources` that has the
/// target's family; the kernel chooses if none has.
pub fn probe(targets: &[IpAddr], sources: &[IpAddr], limit: Duration) -> Vec<bool> {
    let mut reached = vec![false; targets.len()];
    let mut waiting: Vec<Waiting> =
        targets.iter().enumerate().map(|(place, &target)| Waiting { place, target, socket: None }).collect();
    let start = Instant::now();
    for round in 1..=TRIES {
        waiting.retain_mut(|w| {
            w.socket = w.socket.take().or_else(|| open(w.target, sources));
            let sent = w.socket.as_ref().map(|socket| socket.send(&[0]));
            // The answer to the packet before comes with the next call.
            reached[w.place] = matches!(sent, Some(Err(e)) if e.kind() == ErrorKind::ConnectionRefused);
            // A neighbour that is not known yet may be so the next time.
            !reached[w.place]
        });
        let end = start + limit * round / TRIES;
        while !waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait(&waiting, left) {
                break;
            }
            waiting.retain(|w| {
                let error = w.socket.as_ref().and_then(|socket| socket.take_error().ok().flatten());
                reached[w.place] = error.is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused);
                !reached[w.place]
            });
        }
    }
    reached
}

/// Waits until a socket has an error to tell. False if the time is over.
fn wait(waiting: &[Waiting], limit: Duration) -> bool {
    // Errors are told without being asked for.
    let sockets = waiting.iter().filter_map(|w| w.socket.as_ref());
    let mut fds: Vec<PollFd<'_>> = sockets.map(|s| PollFd::new(s.as_fd(), PollFlags::empty())).collect();
    // Rounded up, so that the last fraction of a millisecond is not spent spinning.
    let timeout = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(0) => false,
        Ok(_) | Err(nix::errno::Errno::EINTR) => true,
        Err(_) => false,
    }
}

fn open(target: IpAddr, sources: &[IpAddr]) -> Option<UdpSocket> {
    let any = match target {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let source = sources.iter().copied().find(|s| s.is_ipv4() == target.is_ipv4()).unwrap_or(any);
    let socket = UdpSocket::bind(SocketAddr::new(source, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(SocketAddr::new(target, PORT)).ok()?;
    Some(socket)
}
