//! A running command: both directions and stderr over one non-blocking channel.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use homelab_driver::Session;
use ssh2::Channel;

use crate::link::{Link, words};
use crate::sudo::own_errors;

/// Bytes that `write` may hold back.
const SEND_ROOM: usize = 256 * 1024;
/// Bytes that are taken from the network ahead of a `read`.
const READ_AHEAD: usize = 256 * 1024;
/// Bytes that may arrive during a `write` before it fails instead of eating the machine's memory.
const FLOOD: usize = 256 * 1024 * 1024;
/// Bytes of stderr that are kept.
const STDERR: usize = 64 * 1024;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) idle: Duration,
    pub(crate) end: Option<Instant>,
}

/// An open exec channel.
pub(crate) struct Exec {
    // Dropped first: it shuts the socket, so that nothing below waits for the peer.
    link: Link,
    channel: Channel,
    patience: Patience,
    /// Contiguous, and taken from the front: libssh2 wants a packet that it has begun from the same place again.
    out: Vec<u8>,
    out_start: usize,
    inbox: VecDeque<u8>,
    errors: Vec<u8>,
    scratch: Vec<u8>,
    sent: u64,
    received: u64,
    /// The peer sends no more.
    eof: bool,
    /// The peer has closed the channel.
    closed: bool,
    /// We have said that we send no more.
    said_eof: bool,
    lost: Option<(io::ErrorKind, String)>,
}

impl Exec {
    pub(crate) fn new(link: Link, channel: Channel, patience: Patience) -> Self {
        Exec {
            link,
            channel,
            patience,
            out: Vec::new(),
            out_start: 0,
            inbox: VecDeque::new(),
            errors: Vec::new(),
            scratch: vec![0; 32 * 1024],
            sent: 0,
            received: 0,
            eof: false,
            closed: false,
            said_eof: false,
            lost: None,
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.link.endpoint
    }

    pub(crate) fn inbox(&mut self) -> &mut VecDeque<u8> {
        &mut self.inbox
    }

    pub(crate) fn errors(&mut self) -> &mut Vec<u8> {
        &mut self.errors
    }

    pub(crate) fn ended(&self) -> bool {
        self.eof
    }

    /// Forgets the silence while the user typed.
    pub(crate) fn refresh(&mut self) {
        self.link.refresh();
    }

    /// Moves what can be moved without waiting, up to `ahead` unread bytes.
    pub(crate) fn pump(&mut self, ahead: usize) -> io::Result<bool> {
        if let Some((kind, text)) = &self.lost {
            return Err(io::Error::new(*kind, text.clone()));
        }
        self.pump_inner(ahead).map_err(|e| self.fail(&e))
    }

    fn pump_inner(&mut self, ahead: usize) -> io::Result<bool> {
        let mut moved = false;
        while self.out_start < self.out.len() && !self.closed {
            match self.channel.write(&self.out[self.out_start..]) {
                Ok(0) => break,
                Ok(n) => {
                    self.out_start += n;
                    self.sent += n as u64;
                    moved = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if self.out_start == self.out.len() {
            self.out.clear();
            self.out_start = 0;
        }
        while self.inbox.len() < ahead {
            match self.channel.read(&mut self.scratch) {
                Ok(0) => break,
                Ok(n) => {
                    self.inbox.extend(&self.scratch[..n]);
                    self.received += n as u64;
                    // It may have been there without anybody having had to wait for it.
                    self.link.hear();
                    moved = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        loop {
            match self.channel.stderr().read(&mut self.scratch) {
                Ok(0) => break,
                Ok(n) => {
                    self.errors.extend_from_slice(&self.scratch[..n]);
                    let excess = self.errors.len().saturating_sub(STDERR);
                    self.errors.drain(..excess);
                    self.received += n as u64;
                    moved = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if !self.eof && self.channel.eof() {
            self.eof = true;
            moved = true;
        }
        if self.eof && !self.closed && self.channel.wait_close().is_ok() {
            self.closed = true;
            moved = true;
        }
        Ok(moved)
    }

    /// Remembers how the connection ended, in words for people.
    fn fail(&mut self, error: &io::Error) -> io::Error {
        let (kind, text) = match error.kind() {
            io::ErrorKind::TimedOut => (io::ErrorKind::TimedOut, words(error)),
            _ => {
                let text =
                    format!("the connection to {} was lost: {}", self.link.endpoint, self.link.cause(error));
                (io::ErrorKind::ConnectionAborted, text)
            }
        };
        let text = self.link.explain(text);
        tracing::debug!(text, "session failed");
        self.lost = Some((kind, text.clone()));
        io::Error::new(kind, text)
    }

    /// Sends `text` soon.
    pub(crate) fn say(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Waits for the network until `until`.
    pub(crate) fn wait_until(&mut self, until: Instant) -> io::Result<()> {
        self.link.wait(until, false).map_err(|e| self.fail(&e))
    }

    /// Waits for the network; fails when `since` is too long ago.
    fn wait(&mut self, since: Instant, deaf: bool) -> io::Result<()> {
        let idle_end = since + self.patience.idle;
        let until = self.patience.end.map_or(idle_end, |end| end.min(idle_end));
        let now = Instant::now();
        if now >= until {
            let endpoint = &self.link.endpoint;
            let text = if now >= idle_end {
                format!("nothing came from {endpoint} for {:?}", self.patience.idle)
            } else {
                format!("the session with {endpoint} has used up its time")
            };
            return Err(self.fail(&io::Error::new(io::ErrorKind::TimedOut, text)));
        }
        self.link.wait(until, deaf).map_err(|e| self.fail(&e))
    }

    /// Pumps until `done`, taking in up to `ahead` bytes.
    fn until(&mut self, ahead: usize, mut done: impl FnMut(&Exec) -> bool) -> io::Result<()> {
        let mut since = Instant::now();
        let mut stuck = false;
        loop {
            let moved = self.pump(ahead)?;
            if done(self) {
                return Ok(());
            }
            if moved {
                since = Instant::now();
                stuck = false;
                continue;
            }
            self.wait(since, stuck)?;
            // Woken and still nothing moved: what has arrived cannot be taken before a begun packet is out.
            stuck = true;
        }
    }

    fn pending(&self) -> usize {
        self.out.len() - self.out_start
    }

    fn gone(&self) -> io::Error {
        io::Error::new(io::ErrorKind::BrokenPipe, format!("the command on {} has ended", self.link.endpoint))
    }
}

impl Read for Exec {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.inbox.is_empty() || self.pending() > 0 {
            match self.pump(READ_AHEAD) {
                // What came before the loss is still good.
                Err(_) if !self.inbox.is_empty() => {}
                result => drop(result?),
            }
        }
        if self.inbox.is_empty() && !self.eof {
            self.until(READ_AHEAD, |s| !s.inbox.is_empty() || s.eof)?;
        }
        self.inbox.read(buffer)
    }
}

impl Write for Exec {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.closed || self.said_eof {
            return Err(self.gone());
        }
        if self.pending() >= SEND_ROOM {
            self.until(FLOOD, |s| s.pending() < SEND_ROOM || s.closed || s.inbox.len() >= FLOOD)?;
            if self.closed {
                return Err(self.gone());
            }
            if self.inbox.len() >= FLOOD {
                return Err(io::Error::other(format!("{} sends without end", self.link.endpoint)));
            }
        }
        let n = buffer.len().min(SEND_ROOM - self.pending());
        if self.out_start > SEND_ROOM {
            self.out.drain(..self.out_start);
            self.out_start = 0;
        }
        self.out.extend_from_slice(&buffer[..n]);
        if self.pending() >= SEND_ROOM / 4 {
            self.pump(FLOOD)?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until(FLOOD, |s| s.pending() == 0 || s.closed)?;
        if self.pending() > 0 { Err(self.gone()) } else { Ok(()) }
    }
}

impl Session for Exec {
    fn stderr(&mut self) -> String {
        // Not an error here: the next read or write reports it.
        let _ = self.pump(READ_AHEAD);
        own_errors(&String::from_utf8_lossy(&self.errors)).to_owned()
    }

    fn finish(&mut self) -> Option<i32> {
        // The whole of it gets one idle time, however much still arrives.
        let end = Instant::now() + self.patience.idle;
        self.patience.end = Some(self.patience.end.map_or(end, |e| e.min(end)));
        if self.flush().is_err() && !self.closed {
            return None;
        }
        let mut since = Instant::now();
        while !self.closed {
            if !self.said_eof {
                match self.channel.send_eof().map_err(io::Error::from) {
                    Ok(()) => self.said_eof = true,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return None,
                }
            }
            // Nobody reads any more: keep what fits.
            if self.inbox.len() >= READ_AHEAD {
                self.inbox.clear();
            }
            if self.pump(2 * READ_AHEAD).ok()? {
                since = Instant::now();
            } else if !self.closed {
                self.wait(since, false).ok()?;
            }
        }
        self.said_eof = true;
        match self.channel.exit_signal() {
            Ok(signal) if signal.exit_signal.is_some() => None,
            _ => self.channel.exit_status().ok(),
        }
    }

    fn patience(&mut self, idle: Duration) {
        self.patience.idle = idle;
    }

    fn traffic(&self) -> (u64, u64) {
        (self.sent, self.received)
    }
}
