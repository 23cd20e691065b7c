//! One session with a node: the script that starts the node binary, then messages.

use std::fmt::Write as _;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homelab_model::{Observed, Scope, ours};
use homelab_protocol::{FrameError, Hello, PROTOCOL, Request, Response, read_frame, write_frame};

use crate::{Event, NodeBinaries, NodeError, Session, Target, Transport};

/// Most noise of a login shell in front of the script's own words, bytes.
const MAX_NOISE: usize = 64 << 10;
/// Upload progress is told in steps of this size, bytes.
const CHUNK: usize = 64 << 10;

/// Longest time for a word without an answer.
const WORD: Duration = Duration::from_secs(1);

/// How the script finds its places on the node.
#[derive(Debug, Clone)]
pub struct Places {
    /// Directory of installed binaries.
    pub lib: String,
    /// Directories that may hold the temporary copy, in order of preference.
    pub scratch: Vec<String>,
}

impl Default for Places {
    fn default() -> Self {
        let scratch = ["/run", "/tmp", "/var/tmp", "/root"];
        Places { lib: ours::LIB.to_owned(), scratch: scratch.map(str::to_owned).to_vec() }
    }
}

/// The `sh` script that starts the node binary. `skip` bytes of stdin are dropped before an upload.
pub fn script(binaries: &NodeBinaries, places: &Places, skip: usize, forced: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "lib='{}'\ndirs='{}'", places.lib, places.scratch.join(" "));
    let _ = writeln!(text, "skip={skip}\nforced={}\ndigest() {{ case $1 in", u8::from(forced));
    for (arch, sha256) in binaries.digests() {
        let _ = writeln!(text, "{arch}) echo {sha256};;");
    }
    text.push_str("esac; }\n");
    // Comments are for readers of this repository.
    for line in include_str!("bootstrap.sh").lines().filter(|l| !l.trim_start().starts_with('#')) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// What the script says.
#[derive(Debug, PartialEq, Eq)]
enum Marker {
    Serve { arch: String, installed: bool },
    Need { arch: String },
}

impl Marker {
    fn parse(line: &str) -> Option<Marker> {
        let mut words = line.split_whitespace();
        let marker = match (words.next()?, words.next()?, words.next()) {
            ("homelab-serve", arch, Some(how @ ("installed" | "temporary"))) => {
                Marker::Serve { arch: arch.to_owned(), installed: how == "installed" }
            }
            ("homelab-need", arch, None) => Marker::Need { arch: arch.to_owned() },
            _ => return None,
        };
        words.next().is_none().then_some(marker)
    }
}

/// A session with an end: no read or write lasts beyond it, however slowly the peer drips.
struct Timed {
    session: Box<dyn Session>,
    end: Option<Instant>,
}

impl Timed {
    fn hurry(&mut self) -> io::Result<()> {
        let Some(end) = self.end else { return Ok(()) };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "the node did not answer in time"));
        }
        self.session.patience(left);
        Ok(())
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.hurry()?;
        self.session.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        self.session.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hurry()?;
        self.session.flush()
    }
}

/// A node binary that listens.
pub(crate) struct Connection {
    /// None once something failed: a late answer to one request is never taken for that to another, and the node
    /// hears at once that nobody listens, and frees its lock.
    io: Option<BufReader<Timed>>,
    /// Bytes sent and received when it ended.
    spent: (u64, u64),
    /// Longest time for an observation.
    limit: Duration,
}

/// A connection that the heartbeat shares.
#[derive(Clone)]
pub(crate) struct Line(Arc<Mutex<Connection>>);

impl Line {
    pub(crate) fn new(connection: Connection) -> Line {
        Line(Arc::new(Mutex::new(connection)))
    }

    /// The connection, once nobody else uses it.
    pub(crate) fn get(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the laptop is still there, unless the connection is in use.
    pub(crate) fn beat(&self) {
        if let Ok(mut connection) = self.0.try_lock() {
            connection.within(WORD);
            // Whoever uses it next hears of a loss.
            let _ = connection.send(&Request::Beat);
        }
    }

    /// Says goodbye. The node's process ends by itself, and nobody waits for that.
    pub(crate) fn close(&self) {
        self.get().bye();
    }
}

/// How a node is opened.
pub(crate) struct Opening<'a> {
    pub(crate) transport: &'a dyn Transport,
    pub(crate) binaries: &'a NodeBinaries,
    pub(crate) places: &'a Places,
    pub(crate) scope: &'a Scope,
    /// Longest time for the node to answer, once it is connected and has its binary.
    pub(crate) limit: Duration,
}

impl Opening<'_> {
    /// Opens a session and observes the node. With the binary in place this is one exec and no further round
    /// trip: the first messages travel behind the command.
    pub(crate) fn open(
        &self,
        target: &Target,
        event: &dyn Fn(Event<'_>),
    ) -> Result<(Connection, Observed), NodeError> {
        match self.attempt(target, false, event) {
            // What is installed under our digest is not our binary: look at the node with our own copy.
            Err(Attempt::Distrusted(_)) => self.attempt(target, true, event).map_err(Attempt::into_error),
            Err(failed) => Err(failed.into_error()),
            Ok(opened) => Ok(opened),
        }
    }

    fn attempt(
        &self,
        target: &Target,
        forced: bool,
        event: &dyn Fn(Event<'_>),
    ) -> Result<(Connection, Observed), Attempt> {
        event(Event::Connecting);
        let digests = self.binaries.digests();
        // Which binary will answer is not known before it does, unless there is only one.
        let guess = if digests.len() == 1 { digests.values().next().cloned() } else { None };
        let first = self.first_messages(&guess.unwrap_or_default())?;
        let command = script(self.binaries, self.places, first.len(), forced);
        let session = self.transport.open(target, &command).map_err(NodeError::from)?;
        let end = Some(Instant::now() + self.limit);
        let mut connection =
            Connection { io: Some(BufReader::new(Timed { session, end })), spent: (0, 0), limit: self.limit };
        // What a script or a binary that has ended already said explains more than the broken pipe.
        let _ = connection.write(&first);
        let (arch, installed) = match connection.marker()? {
            Marker::Serve { arch, installed } => (arch, installed),
            Marker::Need { arch } => {
                // A slow link may take as long as the transport's own patience lasts.
                connection.without_end();
                connection.upload(self.binaries, &arch, event)?;
                connection.within(self.limit);
                match connection.marker()? {
                    Marker::Serve { arch, installed } => {
                        let hello = self.first_messages(digests.get(&arch).map_or("", String::as_str))?;
                        let _ = connection.write(&hello);
                        (arch, installed)
                    }
                    Marker::Need { .. } => return Err(NodeError::OutOfTurn.into()),
                }
            }
        };
        // A lost connection says nothing about the binary.
        let lost = |e: &NodeError| matches!(e, NodeError::Broken { source: FrameError::Io(_), .. });
        let distrust = |error: NodeError| {
            if installed && !lost(&error) { Attempt::Distrusted(error) } else { Attempt::Failed(error) }
        };
        let hello = match connection.receive() {
            Ok(Response::Hello(hello)) => hello,
            Ok(_) => return Err(distrust(NodeError::OutOfTurn)),
            Err(error) => return Err(distrust(error)),
        };
        if hello.protocol != PROTOCOL {
            let error = NodeError::Protocol { node: hello.protocol, version: hello.version, ours: PROTOCOL };
            return Err(distrust(error));
        }
        match digests.get(&arch) {
            Some(want) if *want == hello.sha256 => {}
            want => {
                let want = want.cloned().unwrap_or_default();
                return Err(distrust(NodeError::WrongBinary { got: hello.sha256, want }));
            }
        }
        let observed = connection.observed()?;
        event(Event::Observed);
        Ok((connection, observed))
    }

    fn first_messages(&self, sha256: &str) -> Result<Vec<u8>, NodeError> {
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: sha256.to_owned(),
        };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &Request::Hello(hello)).map_err(|e| NodeError::broken(e, ""))?;
        let observe = Request::Observe { scope: self.scope.clone() };
        write_frame(&mut bytes, &observe).map_err(|e| NodeError::broken(e, ""))?;
        Ok(bytes)
    }
}

enum Attempt {
    /// What is installed on the node does not behave like our binary.
    Distrusted(NodeError),
    Failed(NodeError),
}

impl Attempt {
    fn into_error(self) -> NodeError {
        match self {
            Attempt::Distrusted(error) | Attempt::Failed(error) => error,
        }
    }
}

impl From<NodeError> for Attempt {
    fn from(error: NodeError) -> Self {
        Attempt::Failed(error)
    }
}

impl Connection {
    /// From now on everything ends after `limit`.
    pub(crate) fn within(&mut self, limit: Duration) {
        if let Some(io) = &mut self.io {
            io.get_mut().end = Some(Instant::now() + limit);
        }
    }

    fn without_end(&mut self) {
        if let Some(io) = &mut self.io {
            io.get_mut().end = None;
        }
    }

    /// Sends a request and receives its answer within `limit`.
    pub(crate) fn ask(&mut self, request: &Request, limit: Duration) -> Result<Response, NodeError> {
        self.within(limit);
        self.send(request)?;
        self.receive()
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, request: &Request) -> Result<(), NodeError> {
        let sent = match &mut self.io {
            Some(io) => write_frame(io.get_mut(), request),
            None => Err(FrameError::Closed),
        };
        sent.map_err(|e| self.broken(e))
    }

    /// Receives a response.
    pub(crate) fn receive(&mut self) -> Result<Response, NodeError> {
        let received = match &mut self.io {
            Some(io) => read_frame(io),
            None => Err(FrameError::Closed),
        };
        received.map_err(|e| self.broken(e))
    }

    /// Receives the answer to an observation that was asked for.
    pub(crate) fn observed(&mut self) -> Result<Observed, NodeError> {
        match self.receive()? {
            Response::Observed(observed) => Ok(*observed),
            Response::Failed(failure) => Err(NodeError::Unobserved(failure.message)),
            _ => Err(NodeError::OutOfTurn),
        }
    }

    /// Looks at the node again.
    pub(crate) fn observe(&mut self, scope: &Scope) -> Result<Observed, NodeError> {
        self.within(self.limit);
        self.send(&Request::Observe { scope: scope.clone() })?;
        self.observed()
    }

    /// Bytes sent and received.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        self.io.as_ref().map_or(self.spent, |io| io.get_ref().session.traffic())
    }

    /// Says goodbye.
    pub(crate) fn bye(&mut self) {
        self.within(WORD);
        // The work is done: what fails now changes nothing.
        let _ = self.send(&Request::Bye);
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(io) = &mut self.io else { return Err(ErrorKind::NotConnected.into()) };
        io.get_mut().write_all(bytes)?;
        io.get_mut().flush()
    }

    fn broken(&mut self, error: FrameError) -> NodeError {
        self.spent = self.traffic();
        let stderr = self.io.take().map(|mut io| io.get_mut().session.stderr()).unwrap_or_default();
        NodeError::broken(error, &stderr)
    }

    /// Reads up to the script's next marker; what a login shell's start-up files print before it is skipped.
    fn marker(&mut self) -> Result<Marker, NodeError> {
        let mut noise = Vec::new();
        let mut line = Vec::new();
        loop {
            let mut byte = [0_u8];
            let Some(io) = &mut self.io else { return Err(self.broken(FrameError::Closed)) };
            match io.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.broken(e.into())),
            }
            line.push(byte[0]);
            if byte[0] == b'\n' {
                if let Some(marker) = Marker::parse(&String::from_utf8_lossy(&line)) {
                    return Ok(marker);
                }
                noise.append(&mut line);
            }
            if noise.len() + line.len() > MAX_NOISE {
                noise.append(&mut line);
                noise.truncate(400);
                let text = String::from_utf8_lossy(&noise).into_owned();
                return Err(self.broken(FrameError::NotAFrame(text)));
            }
        }
        noise.append(&mut line);
        let mut io = self.io.take();
        let session = io.as_mut().map(|io| &mut io.get_mut().session);
        let (status, errors) = session.map_or((None, String::new()), |s| (s.finish(), s.stderr()));
        let mut output = errors.trim().to_owned();
        let said = String::from_utf8_lossy(&noise);
        if output.is_empty() {
            output = said.trim().chars().take(2000).collect();
        }
        Err(NodeError::Bootstrap { output, status })
    }

    fn upload(
        &mut self,
        binaries: &NodeBinaries,
        arch: &str,
        event: &dyn Fn(Event<'_>),
    ) -> Result<(), NodeError> {
        let (Some(sha256), Some(bytes)) = (binaries.digest(arch), binaries.compressed(arch)?) else {
            let have = binaries.digests().into_keys().collect();
            return Err(NodeError::NoBinary { arch: arch.to_owned(), have });
        };
        let mut message = format!("{sha256} {}\n", bytes.len()).into_bytes();
        let head = message.len();
        message.extend_from_slice(&bytes);
        let total = bytes.len() as u64;
        let mut sent = 0;
        for chunk in message.chunks(CHUNK) {
            // The script says why it stopped listening; the broken pipe does not.
            if self.write(chunk).is_err() {
                return Ok(());
            }
            sent += chunk.len();
            event(Event::Uploading { sent: sent.saturating_sub(head) as u64, total });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers() {
        let serve = Marker::Serve { arch: "x86_64".into(), installed: true };
        assert_eq!(Marker::parse("homelab-serve x86_64 installed\r\n"), Some(serve));
        assert_eq!(Marker::parse("homelab-need arm\n"), Some(Marker::Need { arch: "arm".into() }));
        for noise in ["", "homelab-serve", "homelab-serve x", "homelab-serve x installed y", "Welcome to x"] {
            assert_eq!(Marker::parse(noise), None, "{noise}");
        }
    }
}
