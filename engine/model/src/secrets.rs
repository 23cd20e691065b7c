//! Secrets of nodes that the user makes: passwords of BGP peers. And what objects say of any secret file.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{KeyRing, Token, ours, sha256_hex};

/// Longest password that FRR and the kernel's TCP MD5 option take, bytes (RFC 2385; `PEER_PASSWORD_MAXLEN`,
/// `TCP_MD5SIG_MAXKEYLEN`).
const LONGEST: usize = 80;

/// Passwords of BGP peers by the peers' names. Never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Passwords(BTreeMap<String, String>);

impl Passwords {
    /// A password for `peer`, as the text of a file says it: a line end at its end is no part of it. An error says
    /// what is wrong with it, and does not show it.
    pub fn add(&mut self, peer: &str, text: &str) -> Result<(), &'static str> {
        let password = text.strip_suffix('\n').unwrap_or(text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        // FRR reads it as a word of a line.
        if password.is_empty() {
            return Err("it is empty");
        }
        if password.len() > LONGEST {
            return Err("it is longer than 80 bytes, which the kernel does not take");
        }
        if !password.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it has other characters than printable ASCII without blanks");
        }
        self.0.insert(peer.to_owned(), password.to_owned());
        Ok(())
    }

    /// Those of some peers.
    #[must_use]
    pub fn of<'a>(&self, peers: impl Iterator<Item = &'a str>) -> Passwords {
        let of_peer = |peer: &str| Some((peer.to_owned(), self.0.get(peer)?.clone()));
        Passwords(peers.filter_map(of_peer).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names of the peers.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The password of a peer.
    pub fn get(&self, peer: &str) -> Option<&str> {
        self.0.get(peer).map(String::as_str)
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.peers()).finish()
    }
}

/// The file [`ours::BGP_PASSWORDS`]: passwords, and a random text that nobody else knows. With it what is said of the
/// file gives away nothing of a password, however weak it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordFile {
    salt: String,
    #[serde(with = "as_map")]
    passwords: Passwords,
}

/// The text of the file cannot be understood. It does not say more: the text is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a file of BGP passwords")]
pub struct PasswordFileError;

impl PasswordFile {
    /// A file with a salt that nobody can guess.
    pub fn new(salt: [u8; 32], passwords: Passwords) -> PasswordFile {
        PasswordFile { salt: salt.iter().map(|byte| format!("{byte:02x}")).collect(), passwords }
    }

    /// The passwords.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// What tells this file from others without giving it away: `for edge, router: 0a1b2c3d4e5f`.
    pub fn summary(&self) -> String {
        let peers: Vec<&str> = self.passwords.peers().collect();
        format!("for {}: {}", peers.join(", "), &sha256_hex(self.to_text().as_bytes())[..12])
    }

    /// The text of the file: JSON.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<PasswordFile, PasswordFileError> {
        let file: PasswordFile = serde_json::from_str(text).map_err(|_| PasswordFileError)?;
        let mut again = Passwords::default();
        let sound = file.passwords.0.iter().all(|(peer, password)| again.add(peer, password).is_ok());
        let salted = file.salt.len() == 64 && file.salt.bytes().all(|byte| byte.is_ascii_hexdigit());
        if sound && salted && again == file.passwords && !again.is_empty() {
            Ok(file)
        } else {
            Err(PasswordFileError)
        }
    }
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

mod as_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Passwords;

    pub(super) fn serialize<S: Serializer>(passwords: &Passwords, to: S) -> Result<S::Ok, S::Error> {
        passwords.0.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Passwords, D::Error> {
        BTreeMap::deserialize(from).map(Passwords)
    }
}

/// What objects say of a secret file with this text ([`crate::Content::Secret`]), without giving it away. None if the
/// path is that of no secret; `Some(None)` if the text is not what belongs there.
pub fn secret_summary(path: &str, text: &str) -> Option<Option<String>> {
    match path {
        ours::KEYS => Some(KeyRing::parse(text).ok().map(|ring| ring.summary())),
        ours::BGP_PASSWORDS => Some(PasswordFile::parse(text).ok().map(|file| file.summary())),
        ours::KUBERNETES_TOKEN => Some(Token::parse(text).ok().map(|token| token.summary())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords(pairs: &[(&str, &str)]) -> Passwords {
        let mut all = Passwords::default();
        for (peer, password) in pairs {
            all.add(peer, password).unwrap();
        }
        all
    }

    #[test]
    fn a_line_end_is_no_part_of_a_password_and_a_blank_is_refused() {
        let all = passwords(&[("a", "s3cret\n"), ("b", "s3cret\r\n"), ("c", "s3cret")]);
        assert!(["a", "b", "c"].iter().all(|peer| all.get(peer) == Some("s3cret")));
        for bad in ["", "\n", "two words", "é", "a\n\n", &"x".repeat(81)] {
            let error = Passwords::default().add("a", bad).unwrap_err();
            assert!(bad.len() < 3 || !error.contains(bad), "{error}");
        }
        assert!(Passwords::default().add("a", &"x".repeat(80)).is_ok());
    }

    #[test]
    fn what_is_said_of_a_file_depends_on_the_salt_and_shows_nothing() {
        let weak = passwords(&[("router", "cisco"), ("edge", "cisco")]);
        let (one, two) = (PasswordFile::new([1; 32], weak.clone()), PasswordFile::new([2; 32], weak.clone()));
        assert_ne!(one.summary(), two.summary());
        assert!(one.summary().starts_with("for edge, router: "));
        for shown in [one.summary(), format!("{one:?}"), format!("{weak:?}")] {
            assert!(!shown.contains("cisco") && !shown.contains(&"01".repeat(16)), "{shown}");
        }
        assert_eq!(PasswordFile::parse(&one.to_text()), Ok(one.clone()));
        assert_eq!(secret_summary(ours::BGP_PASSWORDS, &one.to_text()), Some(Some(one.summary())),);
        assert_eq!(secret_summary(ours::BGP_PASSWORDS, "{}"), Some(None));
        assert_eq!(secret_summary("/etc/passwd", ""), None);
    }

    #[test]
    fn strange_files_are_refused() {
        let file = PasswordFile::new([7; 32], passwords(&[("router", "cisco")]));
        let text = file.to_text();
        for bad in [
            text.replace("cisco", "two words"),
            text.replace("cisco", "cisco\\n"),
            text.replace("0707", "07"),
            text.replace("salt", "pepper"),
            text.replace("\"router\":\"cisco\"", ""),
        ] {
            assert_eq!(PasswordFile::parse(&bad), Err(PasswordFileError), "{bad}");
        }
        let some = file.passwords().of(["router", "other"].into_iter());
        assert_eq!(some.peers().collect::<Vec<_>>(), ["router"]);
        assert!(file.passwords().of(["other"].into_iter()).is_empty());
    }
}
