//! OpenSSH's known_hosts: names, patterns, hashed names, markers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// What a line says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    /// The host has this key.
    Key,
    /// Nobody may have this key.
    Revoked,
    /// The key signs hosts' certificates, which libssh2's session is not asked for.
    CertAuthority,
}

/// A line that names the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) file: PathBuf,
    /// From 1.
    pub(crate) line: usize,
    pub(crate) marker: Marker,
    /// e.g. `ssh-ed25519`.
    pub(crate) algorithm: String,
    /// The key as in the SSH protocol.
    pub(crate) key: Vec<u8>,
}

/// All lines of `files` that name the host `name` (lower case, `host` or `[host]:port`). Files that are missing count
/// as empty, lines that make no sense are passed over, as `ssh` does.
pub(crate) fn lookup(files: &[PathBuf], name: &str) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for file in files {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", file.display()))),
        };
        for (index, line) in String::from_utf8_lossy(&text).lines().enumerate() {
            if let Some((marker, algorithm, key)) = parse(line, name) {
                found.push(Entry { file: file.clone(), line: index + 1, marker, algorithm, key });
            }
        }
    }
    Ok(found)
}

/// The key of `line` if the line names `name`.
fn parse(line: &str, name: &str) -> Option<(Marker, String, Vec<u8>)> {
    let mut words = line.split_ascii_whitespace();
    let mut names = words.next()?;
    if names.starts_with('#') {
        return None;
    }
    let mut marker = Marker::Key;
    if names.starts_with('@') {
        marker = match names {
            "@revoked" => Marker::Revoked,
            "@cert-authority" => Marker::CertAuthority,
            _ => return None,
        };
        names = words.next()?;
    }
    if !names_match(names, name) {
        return None;
    }
    let algorithm = words.next()?.to_owned();
    let key = STANDARD.decode(words.next()?).ok()?;
    Some((marker, algorithm, key))
}

fn names_match(names: &str, name: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        let Some((salt, hash)) = hashed.split_once('|') else { return false };
        let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
        return hash_name(&salt, name).is_some_and(|h| h == hash);
    }
    let mut matched = false;
    for pattern in names.split(',') {
        match pattern.strip_prefix('!') {
            Some(not) if wild(not.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => matched |= wild(pattern.as_bytes(), name.as_bytes()),
        }
    }
    matched
}

/// `*` and `?`, any case; linear but for nested stars, which is what a short pattern needs.
fn wild(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == b'?' || c.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    p = after;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn hash_name(salt: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut mac = Hmac::<Sha1>::new_from_slice(salt).ok()?;
    mac.update(name.as_bytes());
    Some(mac.finalize().into_bytes().to_vec())
}

/// The line that makes `name` known.
pub(crate) fn line(name: &str, algorithm: &str, key: &[u8], hashed: bool) -> io::Result<String> {
    let name = if hashed {
        let mut salt = [0u8; 20];
        File::open("/dev/urandom")?.read_exact(&mut salt)?;
        let hash = hash_name(&salt, name).unwrap_or_default();
        format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(hash))
    } else {
        name.to_owned()
    };
    Ok(format!("{name} {algorithm} {}\n", STANDARD.encode(key)))
}

/// Adds a line in one write, after making the directory (0700) and the file (0600) where they are missing. Callers
/// of one process must hold a common lock.
pub(crate) fn append(file: &Path, line: &str) -> io::Result<()> {
    if let Some(dir) = file.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    let mut last = [b'\n'];
    if open.metadata()?.is_file() && open.metadata()?.len() > 0 {
        open.seek(SeekFrom::End(-1))?;
        open.read_exact(&mut last)?;
    }
    let text = if last == [b'\n'] { line.to_owned() } else { format!("\n{line}") };
    open.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";

    fn names(line: &str, name: &str) -> bool {
        parse(&format!("{line} ssh-ed25519 {KEY} comment"), name).is_some()
    }

    #[test]
    fn patterns() {
        assert!(names("node1,10.0.0.1", "10.0.0.1"));
        assert!(names("Node1", "node1"));
        assert!(names("*.lan,!gw.lan", "a.lan"));
        assert!(!names("*.lan,!gw.lan", "gw.lan"));
        assert!(!names("!gw.lan", "a.lan"));
        assert!(names("10.0.?.*", "10.0.7.12"));
        assert!(names("[node1]:2222", "[node1]:2222"));
        assert!(!names("node1", "[node1]:2222"));
        assert!(names("*", "anything"));
        assert!(!names("#node1", "#node1"));
        assert!(names("*a*b*c", "xxaybzzbc"));
        assert!(!names("*a*b*c", "xxaybzzb"));
    }

    #[test]
    fn markers() {
        let line = |marker: &str| parse(&format!("{marker} * ssh-ed25519 {KEY}"), "n").map(|p| p.0);
        assert_eq!(line("@revoked"), Some(Marker::Revoked));
        assert_eq!(line("@cert-authority"), Some(Marker::CertAuthority));
        assert_eq!(line("@other"), None);
        assert_eq!(line(""), Some(Marker::Key));
    }

    #[test]
    fn hashed_as_ssh_keygen_does() {
        // Made by `ssh-keygen -H`.
        let made = "|1|p4QfsuBMB+5zyXTHWUPKrVvaVZ0=|GOQ7lznUe987VxFaH1tlT5UqoCI=";
        assert!(names(made, "[127.0.0.1]:2222"));
        assert!(!names(made, "127.0.0.1"));
        let text = line("node1", "ssh-ed25519", &STANDARD.decode(KEY).unwrap(), true).unwrap();
        assert!(
            text.starts_with("|1|") && parse(&text, "node1").is_some() && parse(&text, "node2").is_none()
        );
    }

    #[test]
    fn append_mends_a_missing_newline() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/known_hosts");
        append(&file, "a b c\n").unwrap();
        append(&file, "d e f").unwrap();
        append(&file, "g h i\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "a b c\nd e f\ng h i\n");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
