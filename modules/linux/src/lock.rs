//! One at a time: the agent's repairs and an apply exclude each other.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use homelab_model::ours;

use crate::error::Error;
use crate::root::Root;

/// How often a held lock is tried again.
const INTERVAL: Duration = Duration::from_millis(20);

/// The lock is held until this is dropped, or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the node's lock, and waits for it at most `wait`.
pub fn lock(root: &Root, wait: Duration) -> Result<Lock, Error> {
    named(root, "lock", wait)
}

/// Takes the lock that an apply holds from its first look to its last, and waits for it at most `wait`. The agent
/// does not need it.
pub fn lock_apply(root: &Root, wait: Duration) -> Result<Lock, Error> {
    named(root, "apply.lock", wait)
}

fn named(root: &Root, name: &str, wait: Duration) -> Result<Lock, Error> {
    let path = root.path(ours::RUN).join(name);
    let open = || {
        fs::create_dir_all(root.path(ours::RUN))?;
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)
    };
    let start = Instant::now();
    loop {
        let file = open().map_err(|e| Error::io("opening", &path, e))?;
        match file.try_lock() {
            Ok(()) => {
                // A farewell may have taken the file away while we waited: then it locks nobody out.
                use std::os::unix::fs::MetadataExt;
                let same = file.metadata().and_then(|own| Ok(own.ino() == fs::metadata(&path)?.ino()));
                if same.unwrap_or(false) {
                    return Ok(Lock { _file: file });
                }
            }
            Err(TryLockError::WouldBlock) if start.elapsed() >= wait => return Err(Error::Locked(wait)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(INTERVAL),
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", &path, e)),
        }
    }
}
