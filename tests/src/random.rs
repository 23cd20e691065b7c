//! Random numbers that a printed seed brings back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From `$HOMELAB_TEST_SEED`, else from the clock; says which seed it is.
    pub fn new() -> Random {
        let given = std::env::var("HOMELAB_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| u64::from(time.subsec_nanos()))
        });
        crate::measured(format_args!("HOMELAB_TEST_SEED={seed}"));
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A time below `limit`, in steps of 1 ms.
    pub fn below(&mut self, limit: Duration) -> Duration {
        let most = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.number() % most)
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
