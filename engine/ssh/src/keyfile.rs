//! What can be told of a private key file without its passphrase.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A public key as in the SSH protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Public {
    pub(crate) blob: Vec<u8>,
}

impl Public {
    /// e.g. `ssh-ed25519`.
    pub(crate) fn algorithm(&self) -> &str {
        let text = take(&mut &self.blob[..]).and_then(|name| std::str::from_utf8(name).ok());
        text.unwrap_or("unknown")
    }

    /// The text of a `.pub` file.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.algorithm(), STANDARD.encode(&self.blob))
    }

    fn of_line(line: &str) -> Option<Public> {
        let mut words = line.split_ascii_whitespace();
        let algorithm = words.next()?;
        let blob = STANDARD.decode(words.next()?).ok()?;
        let public = Public { blob };
        (public.algorithm() == algorithm).then_some(public)
    }
}

/// An identity file.
pub(crate) struct KeyFile {
    pub(crate) path: PathBuf,
    /// None: the file holds only a public key, whose private key an agent may have.
    pub(crate) private: Option<String>,
    pub(crate) public: Option<Public>,
    pub(crate) encrypted: bool,
}

impl KeyFile {
    /// Reads `path`; a missing private key with a public one beside it is the latter.
    pub(crate) fn read(path: &Path) -> io::Result<KeyFile> {
        let beside = {
            let mut name = path.as_os_str().to_owned();
            name.push(".pub");
            fs::read_to_string(PathBuf::from(name)).ok().and_then(|text| Public::of_line(&text))
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && beside.is_some() => {
                return Ok(KeyFile {
                    path: path.to_owned(),
                    private: None,
                    public: beside,
                    encrypted: false,
                });
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(io::Error::other("it is no key")),
            Err(e) => return Err(e),
        };
        if let Some(public) = Public::of_line(&text) {
            return Ok(KeyFile {
                path: path.to_owned(),
                private: None,
                public: Some(public),
                encrypted: false,
            });
        }
        if !text.contains("-----BEGIN ") {
            return Err(io::Error::other("it is no key"));
        }
        let (public, encrypted) = match openssh_head(&text) {
            Some((public, encrypted)) => (Some(public), encrypted),
            None => (beside, text.contains("ENCRYPTED")),
        };
        Ok(KeyFile { path: path.to_owned(), private: Some(text), public, encrypted })
    }
}

/// Public key and whether the private one is encrypted, from the head of OpenSSH's own format (PROTOCOL.key).
fn openssh_head(text: &str) -> Option<(Public, bool)> {
    let (_, after) = text.split_once("-----BEGIN OPENSSH PRIVATE KEY-----")?;
    let (body, _) = after.split_once("-----END OPENSSH PRIVATE KEY-----")?;
    let packed: String = body.split_ascii_whitespace().collect();
    let data = STANDARD.decode(packed).ok()?;
    let mut rest = data.strip_prefix(b"openssh-key-v1\0")?;
    let cipher = take(&mut rest)?;
    let _kdf = take(&mut rest)?;
    let _kdf_options = take(&mut rest)?;
    let (_count, after) = rest.split_at_checked(4)?;
    rest = after;
    let public = Public { blob: take(&mut rest)?.to_vec() };
    Some((public, cipher != b"none"))
}

/// A string of the SSH protocol: four bytes of length, then the bytes.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (taken, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(taken)
}
