//! One hop of a ProxyJump: a `direct-tcpip` channel of the outer session, pumped into a socket pair by a thread,
//! because the inner session wants a socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use homelab_driver::TransportError;
use nix::poll::{PollFd, PollFlags};
use ssh2::Channel;

use crate::config::Settings;
use crate::link::{Below, Limit, Link, Socket, Stopped, poll, words};

/// Bytes on the way, per direction; more waits in the sockets.
const ROOM: usize = 128 * 1024;

/// A socket to the host of `settings` as seen from the far end of `outer`.
pub(crate) fn through(
    mut outer: Link,
    settings: &Settings,
    limit: &Limit,
) -> Result<(Socket, Below), TransportError> {
    let (host, port) = (settings.host.clone(), settings.port);
    let channel =
        outer.drive(limit, |session| session.channel_direct_tcpip(&host, port, None)).map_err(|stopped| {
            match stopped {
                Stopped::Ssh(e) => TransportError::Connect {
                    endpoint: settings.endpoint(),
                    reason: outer.explain(format!("{} cannot reach it: {}", outer.endpoint, e.message())),
                },
                Stopped::Timeout => TransportError::Timeout {
                    endpoint: settings.endpoint(),
                    limit: limit.length,
                    stage: "connecting through the jump host",
                },
                other => outer.error(other, limit, "opening a way through the jump host"),
            }
        })?;
    let failed = |e: io::Error| TransportError::Lost { endpoint: settings.endpoint(), reason: words(&e) };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    theirs.set_nonblocking(true).map_err(failed)?;
    let below = Below::default();
    let reason: Arc<Mutex<String>> = below.reason.clone();
    thread::Builder::new()
        .name(format!("jump {}", outer.endpoint))
        .spawn(move || {
            let endpoint = outer.endpoint.clone();
            if let Err(e) = pump(outer, channel, &theirs)
                && let Ok(mut reason) = reason.lock()
            {
                *reason = format!("jump host {endpoint}: {}", words(&e));
            }
            // Closed only now, so that the reason is there when the inner session sees the end.
            drop(theirs);
        })
        .map_err(failed)?;
    Ok((Socket::Unix(ours), below))
}

fn pump(mut outer: Link, mut channel: Channel, mut inner: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    let mut down: VecDeque<u8> = VecDeque::new();
    // A packet that libssh2 has begun must be offered again from the same place: contiguous, taken from the front.
    let mut up: Vec<u8> = Vec::new();
    let mut inner_closed = false;
    loop {
        let mut moved = false;
        while down.len() < ROOM {
            match channel.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => down.extend(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            moved = true;
        }
        while !down.is_empty() {
            match inner.write(down.as_slices().0) {
                Ok(n) => drop(down.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // The inner session is over.
                Err(_) => return Ok(()),
            }
            moved = true;
        }
        while !inner_closed && up.len() < ROOM {
            match inner.read(&mut buffer) {
                Ok(0) => inner_closed = true,
                Ok(n) => up.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Ok(()),
            }
            moved = true;
        }
        let mut sent = 0;
        while sent < up.len() {
            match channel.write(&up[sent..]) {
                Ok(0) => break,
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            moved = true;
        }
        up.drain(..sent);
        if inner_closed && up.is_empty() {
            return Ok(());
        }
        if channel.eof() && down.is_empty() {
            return Err(io::Error::other("the way through it was closed"));
        }
        if moved {
            continue;
        }
        let hour = Instant::now() + Duration::from_secs(3600);
        let until = outer.probe()?.unwrap_or(hour);
        let mut wanted = PollFlags::empty();
        if !inner_closed && up.len() < ROOM {
            wanted |= PollFlags::POLLIN;
        }
        if !down.is_empty() {
            wanted |= PollFlags::POLLOUT;
        }
        let (fd, mut events) = outer.interest();
        if down.len() >= ROOM {
            events.remove(PollFlags::POLLIN);
        }
        let mut fds = [PollFd::new(fd, events), PollFd::new(inner.as_fd(), wanted)];
        poll(&mut fds, until)?;
        let events = fds[0].revents().unwrap_or(PollFlags::empty());
        outer.polled(events);
    }
}
