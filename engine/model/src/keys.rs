//! The keys that authenticate the agents' membership traffic.
//!
//! A ring is replaced in steps, each on all nodes before the next: the new key is added, it becomes the one that
//! signs, the old one goes. Nodes at neighbouring steps understand each other: whatever one of them signs with, the
//! other accepts.

use std::fmt;

use thiserror::Error;

use crate::sha256_hex;

/// First line of the file: format and version.
const HEADER: &str = "homelab-keys 1";

/// Keys in order: the first one signs, all are accepted.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRing {
    generation: u64,
    keys: Vec<[u8; 32]>,
}

/// The text of a ring cannot be understood. It does not say more: the text is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a file of membership keys")]
pub struct KeyError;

impl KeyRing {
    /// A first ring with one key.
    pub fn first(key: [u8; 32]) -> KeyRing {
        KeyRing { generation: 1, keys: vec![key] }
    }

    /// Number of changes of the ring; of two rings the one with the higher number is newer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The key that signs.
    pub fn signing(&self) -> &[u8; 32] {
        &self.keys[0]
    }

    /// The keys that are accepted.
    pub fn accepted(&self) -> &[[u8; 32]] {
        &self.keys
    }

    /// Step 1 of a replacement: `key` is accepted, too.
    pub fn adding(&self, key: [u8; 32]) -> KeyRing {
        let mut next = self.next();
        next.keys.truncate(1);
        next.keys.push(key);
        next
    }

    /// Step 2: the newest key signs.
    pub fn switched(&self) -> KeyRing {
        let mut next = self.next();
        next.keys.rotate_right(1);
        next
    }

    /// Step 3: only the key that signs remains.
    pub fn trimmed(&self) -> KeyRing {
        let mut next = self.next();
        next.keys.truncate(1);
        next
    }

    fn next(&self) -> KeyRing {
        KeyRing { generation: self.generation + 1, keys: self.keys.clone() }
    }

    /// What tells this ring from others without giving it away:
    /// `generation 3: 0a1b2c3d4e5f signs, 99aabbccddee accepted`.
    pub fn summary(&self) -> String {
        let names: Vec<String> = self
            .keys
            .iter()
            .enumerate()
            .map(|(place, key)| {
                let role = if place == 0 { "signs" } else { "accepted" };
                format!("{} {role}", &sha256_hex(key)[..12])
            })
            .collect();
        format!("generation {}: {}", self.generation, names.join(", "))
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\ngeneration {}\n", self.generation);
        for key in &self.keys {
            text.extend(key.iter().map(|byte| format!("{byte:02x}")));
            text.push('\n');
        }
        text
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<KeyRing, KeyError> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(KeyError);
        }
        let generation = lines.next().and_then(|l| l.strip_prefix("generation ")).ok_or(KeyError)?;
        let generation = generation.parse().map_err(|_| KeyError)?;
        let keys = lines.map(parse_key).collect::<Option<Vec<_>>>().ok_or(KeyError)?;
        if keys.is_empty() || keys.len() > 2 {
            return Err(KeyError);
        }
        Ok(KeyRing { generation, keys })
    }
}

/// Keys are never printed.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

/// The generation in a [`KeyRing::summary`].
pub fn generation_of(summary: &str) -> Option<u64> {
    summary.strip_prefix("generation ")?.split(':').next()?.parse().ok()
}

fn parse_key(line: &str) -> Option<[u8; 32]> {
    let digits = line.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(line.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_steps_understand_each_other() {
        let old = KeyRing::first([1; 32]);
        let steps = [old.clone(), old.adding([2; 32]), old.adding([2; 32]).switched()];
        let last = steps[2].trimmed();
        let steps = [&steps[0], &steps[1], &steps[2], &last];
        for pair in steps.windows(2) {
            for (a, b) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                assert!(b.accepted().contains(a.signing()), "{a:?} -> {b:?}");
            }
            assert_eq!(pair[0].generation() + 1, pair[1].generation());
        }
        assert_eq!(last.accepted(), [[2; 32]]);
    }

    #[test]
    fn text_and_summary() {
        let ring = KeyRing::first([7; 32]).adding([8; 32]);
        assert_eq!(KeyRing::parse(&ring.to_text()), Ok(ring.clone()));
        assert_eq!(generation_of(&ring.summary()), Some(2));
        let secret = "07".repeat(32);
        assert!(ring.to_text().contains(&secret));
        assert!(!format!("{ring:?}").contains(&secret[..16]));
        for bad in
            ["", "homelab-keys 1\n", "homelab-keys 1\ngeneration 1\n", "homelab-keys 2\ngeneration 1\n"]
        {
            assert_eq!(KeyRing::parse(bad), Err(KeyError), "{bad:?}");
        }
        assert_eq!(KeyRing::parse(&ring.to_text().replace("08", "0x")), Err(KeyError));
    }
}
