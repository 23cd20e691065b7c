//! Digests of files. Large ones are remembered for as long as the file stays the same.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use sha2::{Digest, Sha256};

/// What changes whenever a file's content does: device, inode, size, times of content and of inode.
type Identity = (u64, u64, u64, i64, i64, i64, i64);

static KNOWN: Mutex<Option<HashMap<Identity, String>>> = Mutex::new(None);
/// More than that are never in use at a time.
const REMEMBERED: usize = 64;

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
}

fn known(identity: &Identity) -> Option<String> {
    KNOWN.lock().ok()?.as_ref()?.get(identity).cloned()
}

fn remember(identity: Identity, digest: String) {
    if let Ok(mut guard) = KNOWN.lock() {
        let map = guard.get_or_insert_with(HashMap::new);
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(identity, digest);
    }
}

/// SHA-256 of a file's content, lower-case hex.
pub fn file_digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let identity = identity(&file.metadata()?);
    if let Some(digest) = known(&identity) {
        return Ok(digest);
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let digest = hex(&hasher.finalize());
    remember(identity, digest.clone());
    Ok(digest)
}

/// Does `work`, which gives the file at `before` a name more, or less, or another one: then it is at `after`. That
/// changes a time of the inode but not the content, so that its digest stays known.
pub(crate) fn carry_digest<T>(before: &Path, after: &Path, work: impl FnOnce() -> T) -> T {
    let old = before.symlink_metadata().ok().filter(Metadata::is_file).map(|meta| identity(&meta));
    let result = work();
    let new = after.symlink_metadata().ok().filter(Metadata::is_file).map(|meta| identity(&meta));
    if let (Some(old), Some(new)) = (old, new)
        && (old.0, old.1, old.2, old.3, old.4) == (new.0, new.1, new.2, new.3, new.4)
        && let Some(digest) = known(&old)
    {
        remember(new, digest);
    }
    result
}

/// Nobody can write to a running executable.
static OWN: OnceLock<String> = OnceLock::new();

/// SHA-256 of the running executable, if somebody asked for it before.
pub(crate) fn known_digest_of_self() -> Option<&'static str> {
    OWN.get().map(String::as_str)
}

/// SHA-256 of the running executable, lower-case hex.
pub fn digest_of_self() -> io::Result<String> {
    if let Some(digest) = OWN.get() {
        return Ok(digest.clone());
    }
    let digest = file_digest(Path::new("/proc/self/exe"))?;
    Ok(OWN.get_or_init(|| digest).clone())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_digest_goes_with_its_file_and_not_with_another_content() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&a, "old").unwrap();
        let old = file_digest(&a).unwrap();
        let knows = |path: &Path| known(&identity(&path.symlink_metadata().unwrap()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::hard_link(&a, &b).unwrap();
        assert_eq!(knows(&a), None, "the time of the inode is another");
        assert_eq!(file_digest(&a).unwrap(), old);
        std::thread::sleep(std::time::Duration::from_millis(20));
        carry_digest(&a, &a, || std::fs::remove_file(&b)).unwrap();
        assert_eq!(knows(&a).as_ref(), Some(&old));
        carry_digest(&a, &b, || std::fs::rename(&a, &b)).unwrap();
        assert_eq!(knows(&b).as_ref(), Some(&old));
        std::thread::sleep(std::time::Duration::from_millis(20));
        carry_digest(&b, &b, || std::fs::write(&b, "new")).unwrap();
        assert_eq!(knows(&b), None);
        assert_ne!(file_digest(&b).unwrap(), old);
    }
}
