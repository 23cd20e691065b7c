//! Digests of files. Large ones are remembered for as long as the file stays the same.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

/// What changes whenever a file's content does: device, inode, size, times of content and of inode.
type Identity = (u64, u64, u64, i64, i64, i64, i64);

static KNOWN: Mutex<Option<HashMap<Identity, String>>> = Mutex::new(None);
/// More than that are never in use at a time.
const REMEMBERED: usize = 64;

/// SHA-256 of a file's content, lower-case hex.
pub fn file_digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    let identity = (
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    let known = |map: &mut dyn FnMut(&mut HashMap<Identity, String>)| {
        if let Ok(mut guard) = KNOWN.lock() {
            map(guard.get_or_insert_with(HashMap::new));
        }
    };
    let mut found = None;
    known(&mut |map| found = map.get(&identity).cloned());
    if let Some(digest) = found {
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
    known(&mut |map| {
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(identity, digest.clone());
    });
    Ok(digest)
}

/// SHA-256 of the running executable, lower-case hex.
pub fn digest_of_self() -> io::Result<String> {
    file_digest(Path::new("/proc/self/exe"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
