//! One libssh2 session over a socket that never blocks, with deadlines of our own.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use homelab_driver::TransportError;
use libssh2_sys as raw;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use ssh2::{BlockDirections, ErrorCode};

const EAGAIN: ErrorCode = ErrorCode::Session(raw::LIBSSH2_ERROR_EAGAIN);

/// How long an error waits for a ProxyCommand's explanation.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Time that may pass until a stage of connecting is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) length: Duration,
    end: Instant,
}

impl Limit {
    pub(crate) fn new(length: Duration) -> Self {
        Limit { length, end: Instant::now() + length }
    }

    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    pub(crate) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Runs `wait`, which waits for the user: its time does not count.
    pub(crate) fn pause<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = wait();
        self.end += start.elapsed();
        result
    }
}

/// What carries the session's bytes.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn try_clone(&self) -> io::Result<Socket> {
        Ok(match self {
            Socket::Tcp(s) => Socket::Tcp(s.try_clone()?),
            Socket::Unix(s) => Socket::Unix(s.try_clone()?),
        })
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(s) => s.set_nonblocking(true),
            Socket::Unix(s) => s.set_nonblocking(true),
        }
    }

    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = match self {
            Socket::Tcp(s) => s.shutdown(Shutdown::Both),
            Socket::Unix(s) => s.shutdown(Shutdown::Both),
        };
    }

    /// Asks the kernel to acknowledge at once what comes next; it forgets this by itself.
    fn quick_ack(&self) {
        #[cfg(target_os = "linux")]
        if let Socket::Tcp(s) = self {
            use std::os::linux::net::TcpStreamExt;
            let _ = s.set_quickack(true);
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(s) => s.as_fd(),
            Socket::Unix(s) => s.as_fd(),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// What the socket itself stands on.
#[derive(Default)]
pub(crate) struct Below {
    /// The ProxyCommand.
    pub(crate) command: Option<Child>,
    /// Why the way to here broke, in words; written by the jump's pump or the ProxyCommand's stderr.
    pub(crate) reason: Arc<Mutex<String>>,
    /// Reads the ProxyCommand's stderr.
    pub(crate) reader: Option<JoinHandle<()>>,
}

impl Below {
    fn reason(&self) -> Option<String> {
        // A command that has just ended may have words on the way.
        let start = Instant::now();
        while self.reader.as_ref().is_some_and(|r| !r.is_finished()) && start.elapsed() < LAST_WORDS {
            thread::sleep(Duration::from_millis(5));
        }
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = reason.trim();
        (!reason.is_empty()).then(|| reason.to_owned())
    }
}

/// Why an operation ended without its result.
#[derive(Debug)]
pub(crate) enum Stopped {
    Timeout,
    Ssh(ssh2::Error),
    Io(io::Error),
}

/// A session and its socket.
pub(crate) struct Link {
    pub(crate) session: ssh2::Session,
    socket: Socket,
    below: Below,
    /// `host:port`, for people.
    pub(crate) endpoint: String,
    /// None: no probes (yet).
    alive: Option<(Duration, u32)>,
    heard: Instant,
    probed: Instant,
    /// When somebody last came to wait for the peer.
    listened: Instant,
}

impl Link {
    pub(crate) fn new(socket: Socket, below: Below, endpoint: String) -> Result<Link, TransportError> {
        let failed = |reason: String| TransportError::Lost { endpoint: endpoint.clone(), reason };
        socket.set_nonblocking().map_err(|e| failed(words(&e)))?;
        let mut session = ssh2::Session::new().map_err(|e| failed(e.message().to_owned()))?;
        session.set_tcp_stream(socket.try_clone().map_err(|e| failed(words(&e)))?);
        session.set_blocking(false);
        let now = Instant::now();
        Ok(Link { session, socket, below, endpoint, alive: None, heard: now, probed: now, listened: now })
    }

    /// From here on a silent peer is probed every `interval` and given up after `count` probes without a sign.
    pub(crate) fn keep_alive(&mut self, interval: Option<Duration>, count: u32) {
        // libssh2 takes whole seconds and no less than two.
        self.session.set_keepalive(true, 2);
        self.alive = interval.map(|i| (i.max(Duration::from_secs(2)), count.max(1)));
        self.refresh();
    }

    /// Forgets silence, e.g. of the time in which the user typed.
    pub(crate) fn refresh(&mut self) {
        self.hear();
        self.probed = self.heard;
    }

    /// Something has come from the peer.
    pub(crate) fn hear(&mut self) {
        self.heard = Instant::now();
    }

    /// Repeats `op` until it no longer would block.
    pub(crate) fn drive<T>(
        &mut self,
        limit: &Limit,
        mut op: impl FnMut(&mut ssh2::Session) -> Result<T, ssh2::Error>,
    ) -> Result<T, Stopped> {
        loop {
            match op(&mut self.session) {
                Err(e) if e.code() == EAGAIN => {}
                result => return result.map_err(Stopped::Ssh),
            }
            if limit.left().is_zero() {
                return Err(Stopped::Timeout);
            }
            self.wait(limit.end(), false).map_err(Stopped::Io)?;
        }
    }

    /// What a failed [`drive`](Link::drive) means where nothing better is known.
    pub(crate) fn error(&self, stopped: Stopped, limit: &Limit, stage: &'static str) -> TransportError {
        let endpoint = self.endpoint.clone();
        let reason = match stopped {
            Stopped::Timeout => return TransportError::Timeout { endpoint, limit: limit.length, stage },
            Stopped::Ssh(e) => e.message().to_owned(),
            Stopped::Io(e) => words(&e),
        };
        TransportError::Lost { endpoint, reason: self.explain(reason) }
    }

    /// `reason`, with what the jump host or ProxyCommand said.
    pub(crate) fn explain(&self, reason: String) -> String {
        match self.below.reason() {
            Some(below) => format!("{reason} ({below})"),
            None => reason,
        }
    }

    /// What an I/O error of a channel means; libssh2 puts only its own function into words.
    pub(crate) fn cause(&self, error: &io::Error) -> String {
        match ssh2::Error::last_session_error(&self.session).map(|e| e.code()) {
            Some(ErrorCode::Session(
                raw::LIBSSH2_ERROR_SOCKET_DISCONNECT
                | raw::LIBSSH2_ERROR_SOCKET_SEND
                | raw::LIBSSH2_ERROR_SOCKET_RECV,
            )) => "closed by the other side".to_owned(),
            Some(ErrorCode::Session(raw::LIBSSH2_ERROR_INVALID_MAC | raw::LIBSSH2_ERROR_DECRYPT)) => {
                format!("what arrived was damaged ({})", words(error))
            }
            _ => words(error),
        }
    }

    /// The socket's descriptor and what libssh2 waits for on it.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let events = match self.session.block_directions() {
            BlockDirections::Outbound | BlockDirections::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
            BlockDirections::Inbound | BlockDirections::None => PollFlags::POLLIN,
        };
        self.socket.quick_ack();
        (self.socket.as_fd(), events)
    }

    /// Notes what a poll of [`interest`](Link::interest) said.
    pub(crate) fn polled(&mut self, events: PollFlags) {
        if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.hear();
        }
    }

    /// Waits until libssh2 can go on, at the longest until `until`. `deaf`: what has arrived cannot be taken before
    /// something is sent, so do not wake for it.
    pub(crate) fn wait(&mut self, until: Instant, deaf: bool) -> io::Result<()> {
        let until = self.probe()?.map_or(until, |next| next.min(until));
        let (fd, mut events) = self.interest();
        if deaf && events.contains(PollFlags::POLLOUT) {
            events.remove(PollFlags::POLLIN);
        }
        let mut fds = [PollFd::new(fd, events)];
        poll(&mut fds, until)?;
        let events = fds[0].revents().unwrap_or(PollFlags::empty());
        self.polled(events);
        Ok(())
    }

    /// Sends a probe if one is due; when to come back. Fails if the peer has left too many unanswered.
    pub(crate) fn probe(&mut self) -> io::Result<Option<Instant>> {
        let Some((interval, count)) = self.alive else { return Ok(None) };
        let now = Instant::now();
        // Who listens comes by at every interval. What nobody asked for and nobody read is no silence of the peer's.
        if now.saturating_duration_since(std::mem::replace(&mut self.listened, now)) > interval * 2 {
            self.refresh();
        }
        let silent = now.saturating_duration_since(self.heard);
        if silent > interval * count + interval / 2 {
            let text = format!("{} has not answered for {} s", self.endpoint, silent.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if now >= self.heard.max(self.probed) + interval {
            self.probed = now;
            // libssh2 1.11 wedges if a probe is sent in part: send it only where there is room for it.
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            poll(&mut fds, now)?;
            if fds[0].revents().is_some_and(|e| e.contains(PollFlags::POLLOUT)) {
                let _ = self.session.keepalive_send();
            }
        }
        Ok(Some((self.heard.max(self.probed) + interval).min(self.heard + interval * (count + 1))))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.session.disconnect(None, "done", None);
        // libssh2 frees a non-blocking session only when nothing is left to wait for.
        self.socket.shutdown();
        if let Some(command) = &mut self.below.command {
            let _ = command.kill();
            let _ = command.wait();
        }
    }
}

/// `poll(2)` until an instant.
pub(crate) fn poll(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    // Rounded up, so that the deadline has passed when nothing happened.
    let millis = if left.is_zero() { 0 } else { left.as_millis() + 1 };
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match nix::poll::poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// An I/O error without Rust's `(os error N)`.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
