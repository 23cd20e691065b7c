//! What the fuzz tests of `engine/config`, `engine/protocol`, `modules/cni` and `modules/speaker` share.
//! `HOMELAB_FUZZ_SECONDS` says how long each runs (default 1.5), `HOMELAB_FUZZ_SEED` where to begin.

use std::time::Duration;

/// xorshift64*: the same inputs for the same seed.
pub(crate) struct Random(u64);

impl Random {
    /// The seed of `HOMELAB_FUZZ_SEED`, or always the same.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("HOMELAB_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed);
        Random(u64::max(seed, 1))
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// How long one target may run.
pub(crate) fn time() -> Duration {
    let seconds =
        std::env::var("HOMELAB_FUZZ_SECONDS").ok().and_then(|s| s.parse::<f64>().ok()).unwrap_or(1.5);
    Duration::from_secs_f64(seconds)
}

/// Alters an input in a few places: bytes flipped, parts dropped, doubled, moved, words put in, or joined with another.
pub(crate) fn mutate(random: &mut Random, corpus: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        let end = at + random.below((input.len() - at).min(40) + 1);
        match random.below(6) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 => drop(input.drain(at..end)),
            2 => {
                let part = input[at..end].repeat(random.below(4));
                input.splice(at..at, part);
            }
            3 => drop(input.splice(at..end, words[random.below(words.len())].iter().copied())),
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => input.truncate(at),
        }
    }
    input
}

/// Most memory that this process ever had, MiB.
pub(crate) fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or(0) / 1024
}
