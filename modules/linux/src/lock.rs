//! One at a time: the agent's repairs and an apply exclude each other, and so do laptops.
//!
//! All locks are `flock`s in [`ours::RUN`]: they end with the process that holds them. The lock of a session and that
//! of an apply say in their file who holds them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use homelab_model::{Holder, ours};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clock::boottime_ms;
use crate::error::Error;
use crate::root::Root;

/// How often a held lock is tried again.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long a process may take to end when asked to, and again when forced to.
const END: Duration = Duration::from_secs(1);
/// A lock whose file names nobody alive is about to be free, or its holder is about to write its name.
const UNNAMED: Duration = Duration::from_millis(200);

const LOCK: &str = "lock";
const APPLY: &str = "apply.lock";
const SESSION: &str = "session.lock";
const PROGRESS: &str = "progress";

/// The lock is held until this is dropped, or the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Whether the file says who holds it.
    signed: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.signed {
            // Before the lock is free: whoever comes next signs.
            let _ = self.file.set_len(0);
        }
    }
}

/// Takes the node's lock, and waits for it at most `wait`.
pub fn lock(root: &Root, wait: Duration) -> Result<Lock, Error> {
    named(root, LOCK, wait)
}

/// Takes the lock that an apply or a rollback holds from its first look to its last, and waits for it at most `wait`.
/// The agent does not need it. Its file names the process that holds it: see [`kill_apply`].
pub fn lock_apply(root: &Root, wait: Duration) -> Result<Lock, Error> {
    let mut lock = named(root, APPLY, wait)?;
    sign(root, APPLY, &mut lock, None)?;
    Ok(lock)
}

/// The lock that a laptop's session holds. Free when this is dropped, or the process ends.
#[derive(Debug)]
pub struct SessionLock {
    _lock: Lock,
    waited: bool,
}

impl SessionLock {
    /// Whether another holder had to be waited for.
    pub fn waited(&self) -> bool {
        self.waited
    }
}

/// Takes the session lock in the name of `holder` and waits for it at most `wait`; otherwise gives who has it, and
/// the id of the process on this node that holds it.
pub fn session_lock(
    root: &Root,
    holder: &Holder,
    wait: Duration,
) -> Result<Result<SessionLock, (Holder, u32)>, Error> {
    let start = Instant::now();
    let mut waited = false;
    loop {
        if let Some(mut lock) = attempt(root, SESSION)? {
            sign(root, SESSION, &mut lock, Some(holder))?;
            return Ok(Ok(SessionLock { _lock: lock, waited }));
        }
        let signature = Signature::of(root, SESSION);
        let passed = start.elapsed();
        match signature {
            Some(other) if passed >= wait => {
                return Ok(Err((other.holder.unwrap_or_default(), other.pid)));
            }
            Some(_) => waited = true,
            None if passed >= wait.max(UNNAMED) => return Ok(Err((Holder::default(), 0))),
            None => {}
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Who else holds the session lock, and the id of the process on this node.
pub fn session_holder(root: &Root) -> Option<(Holder, u32)> {
    let signature = Signature::of(root, SESSION).filter(|s| s.pid != std::process::id())?;
    Some((signature.holder.unwrap_or_default(), signature.pid))
}

/// Ends the process that holds the session lock, and gives whose it was; None if nobody else has it. A transaction
/// that it began stays open.
pub fn displace(root: &Root) -> Result<Option<Holder>, Error> {
    let Some(signature) = end_holder(root, SESSION)? else { return Ok(None) };
    Ok(Some(signature.holder.unwrap_or_default()))
}

/// Ends the process that holds the lock of [`lock_apply`], if it is another one, and gives its id.
pub fn kill_apply(root: &Root) -> Result<Option<u32>, Error> {
    Ok(end_holder(root, APPLY)?.map(|signature| signature.pid))
}

/// Notes that the apply that is under way gets on. Not synced: a reboot ends it anyway.
pub fn touch_progress(root: &Root) -> Result<(), Error> {
    let path = root.path(ours::RUN).join(PROGRESS);
    // Always as long, so that no reader finds half a number.
    let text = format!("{:020}\n", boottime_ms());
    let write = || {
        fs::create_dir_all(root.path(ours::RUN))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
        file.write_all_at(text.as_bytes(), 0)
    };
    write().map_err(|e| Error::io("writing", &path, e))
}

/// How long ago [`touch_progress`] was called; None if it was not since boot.
pub fn progress_age(root: &Root) -> Option<Duration> {
    let text = fs::read_to_string(root.path(ours::RUN).join(PROGRESS)).ok()?;
    let then: u64 = text.trim().parse().ok()?;
    Some(Duration::from_millis(boottime_ms().saturating_sub(then)))
}

/// What a lock's file says of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    /// The laptop's, of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<Holder>,
    pid: u32,
    /// When the process began, clock ticks since boot: tells it from a later one with its id.
    started: u64,
}

impl Signature {
    /// The living process that the file names. It writes only while it holds the lock, and empties the file first
    /// when it gives the lock up: so there is no need to try the lock, which would lock out others for that moment.
    fn of(root: &Root, name: &str) -> Option<Signature> {
        let bytes = fs::read(root.path(ours::RUN).join(name)).ok()?;
        let signature: Signature = serde_json::from_slice(&bytes).ok()?;
        signature.lives(root).then_some(signature)
    }

    fn lives(&self, root: &Root) -> bool {
        started(root, self.pid) == Some(self.started)
    }
}

/// When a process began, clock ticks since boot; None if it has ended, whether or not its parent has noticed.
fn started(root: &Root, pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(root.proc(&format!("{pid}/stat"))).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    // proc_pid_stat(5): field 22, and the state is field 3.
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

fn sign(root: &Root, name: &str, lock: &mut Lock, holder: Option<&Holder>) -> Result<(), Error> {
    let pid = std::process::id();
    let signature =
        Signature { holder: holder.cloned(), pid, started: started(root, pid).unwrap_or_default() };
    let path = root.path(ours::RUN).join(name);
    let bytes = serde_json::to_vec(&signature)
        .map_err(|e| Error::Record { path: path.display().to_string(), reason: e.to_string() })?;
    lock.signed = true;
    let write = |file: &mut File| file.set_len(0).and_then(|()| file.write_all(&bytes));
    write(&mut lock.file).map_err(|e| Error::io("writing", &path, e))
}

/// Ends the other process that holds a lock.
fn end_holder(root: &Root, name: &str) -> Result<Option<Signature>, Error> {
    let Some(signature) = Signature::of(root, name).filter(|s| s.pid != std::process::id()) else {
        return Ok(None);
    };
    let pid = signature.pid;
    let executable = fs::read_link(root.proc(&format!("{pid}/exe"))).unwrap_or_default();
    let executable = executable.display().to_string();
    let file = Path::new(executable.trim_end_matches(" (deleted)")).file_name();
    if file != Path::new(ours::BINARY).file_name() {
        let message = format!("process {pid} holds {name} and is no homelab-node but {executable:?}");
        return Err(Error::Foreign(message));
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // Nothing that was looked up above may be another process by now.
        if !signature.lives(root) {
            break;
        }
        let raw = i32::try_from(pid).map_err(|e| Error::Invalid(format!("process {pid}: {e}")))?;
        match kill(Pid::from_raw(raw), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(Error::Invalid(format!("process {pid} cannot be ended: {e}"))),
        }
        let start = Instant::now();
        while signature.lives(root) && start.elapsed() < END {
            std::thread::sleep(INTERVAL);
        }
    }
    if signature.lives(root) {
        return Err(Error::Invalid(format!("process {pid} does not end")));
    }
    // The last of its threads to go takes the lock along.
    let start = Instant::now();
    while attempt(root, name)?.is_none() && start.elapsed() < END {
        std::thread::sleep(INTERVAL);
    }
    Ok(Some(signature))
}

fn named(root: &Root, name: &str, wait: Duration) -> Result<Lock, Error> {
    let start = Instant::now();
    loop {
        match attempt(root, name)? {
            Some(lock) => return Ok(lock),
            None if start.elapsed() >= wait => return Err(Error::Locked(wait)),
            None => std::thread::sleep(INTERVAL),
        }
    }
}

/// Takes the lock if it is free.
fn attempt(root: &Root, name: &str) -> Result<Option<Lock>, Error> {
    let path = root.path(ours::RUN).join(name);
    let open = || {
        fs::create_dir_all(root.path(ours::RUN))?;
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)
    };
    loop {
        let file = open().map_err(|e| Error::io("opening", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", &path, e)),
        }
        // A farewell may have taken the file away while we waited: then it locks nobody out.
        let same = file.metadata().and_then(|own| Ok(own.ino() == fs::metadata(&path)?.ino()));
        if same.unwrap_or(false) {
            return Ok(Some(Lock { file, signed: false }));
        }
    }
}
