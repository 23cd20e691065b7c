//! Bytes that nobody can guess, for keys and names of transactions.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use homelab_model::sha256_hex;

use crate::error::CliError;

/// SHA-256 of a seed of the system and a counter: after the seed nothing can fail.
pub(crate) struct Random {
    seed: [u8; 32],
    count: AtomicU64,
}

impl Random {
    /// Takes a seed from the system.
    pub(crate) fn new() -> Result<Random, CliError> {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut seed))
            .map_err(|e| CliError::new(format!("cannot read /dev/urandom: {e}")))?;
        Ok(Random { seed, count: AtomicU64::new(0) })
    }

    /// The next 32 bytes.
    pub(crate) fn next(&self) -> [u8; 32] {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let digest = sha256_hex(&[&self.seed[..], &count.to_le_bytes()].concat());
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digest.as_bytes().chunks(2)) {
            let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        let (a, b) = (Random::new().unwrap(), Random::new().unwrap());
        let all: std::collections::BTreeSet<[u8; 32]> = [a.next(), a.next(), b.next(), b.next()].into();
        assert_eq!(all.len(), 4);
        let same = Random { seed: [7; 32], count: AtomicU64::new(0) };
        let digest = sha256_hex(&[&[7; 32][..], &[0; 8]].concat());
        assert_eq!(same.next().iter().map(|b| format!("{b:02x}")).collect::<String>(), digest);
    }
}
