//! Clocks. Deadlines are on the one that nobody sets and that runs on while the machine sleeps.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::root::Root;

/// Milliseconds since boot, time asleep included (`CLOCK_BOOTTIME`).
pub fn boottime_ms() -> u64 {
    // The kernel has had this clock since 2.6.39.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The kernel's name of this boot; empty if it cannot be read.
pub fn boot_id(root: &Root) -> String {
    let text = fs::read_to_string(root.proc("sys/kernel/random/boot_id")).unwrap_or_default();
    text.trim().to_owned()
}

/// Seconds since 1970 by the machine's clock, which may be wrong.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run() {
        let before = boottime_ms();
        std::thread::sleep(Duration::from_millis(12));
        let passed = boottime_ms() - before;
        assert!((12..5_000).contains(&passed), "{passed} ms");
        assert_eq!(boot_id(&Root::system()).len(), 36);
        assert!(unix_seconds() > 1_700_000_000);
    }
}
