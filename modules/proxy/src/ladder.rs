//! Sizes of endpoint pools.
//!
//! A fixed ruleset can only draw from fixed numbers of slots: `numgen random mod N` for every rung N of this ladder.
//! Up to [`EXACT`] endpoints there is a rung of that very size, and every endpoint gets the same share. Beyond, a pool
//! is put on a rung of at least [`REPEATS`] times its size, its endpoints over and over: the busiest endpoint gets at
//! most 1 + 1/[`REPEATS`] = 1.25 times the connections of the idlest, up to 4096 endpoints; twice up to [`LARGEST`],
//! beyond which the rest of the endpoints gets none.

/// Largest pool that has a rung of its own.
pub const EXACT: u32 = 64;
/// How often an endpoint is repeated at least on a larger rung.
pub const REPEATS: u32 = 4;
/// The last rung.
pub const LARGEST: u32 = 16384;
/// Rungs up to here are tried one after the other; larger pools say by [`group`] where to look.
pub const FIRST_GROUP: u32 = 8;

/// Every rung, rising.
pub fn rungs() -> Vec<u32> {
    let mut rungs: Vec<u32> = (1..=EXACT).collect();
    let mut octave = 256;
    while octave < LARGEST {
        rungs.extend((0..4).map(|quarter| octave + octave / 4 * quarter));
        octave *= 2;
    }
    rungs.push(LARGEST);
    rungs
}

/// Bounds of the groups of rungs, each up to and with its number.
pub const GROUPS: [u32; 5] = [FIRST_GROUP, 16, 32, EXACT, LARGEST];

/// The group of a rung: the smallest of [`GROUPS`] that holds it.
pub fn group(rung: u32) -> u32 {
    GROUPS.into_iter().find(|bound| rung <= *bound).unwrap_or(LARGEST)
}

/// The rung for a pool of `endpoints` (at least 1).
pub fn rung(endpoints: usize) -> u32 {
    let endpoints = u32::try_from(endpoints).unwrap_or(LARGEST).min(LARGEST);
    if endpoints <= EXACT {
        return endpoints.max(1);
    }
    let wanted = endpoints * REPEATS;
    rungs().into_iter().find(|rung| *rung >= wanted).unwrap_or(LARGEST)
}

/// Timeouts of session affinity that the ruleset has, seconds. Another one is rounded up to the next.
pub const TIMEOUTS: [u32; 24] = [
    1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600,
    43200, 86400,
];

/// The timeout of the ruleset that stands for this one.
pub fn timeout(seconds: u32) -> u32 {
    TIMEOUTS.into_iter().find(|rung| *rung >= seconds).unwrap_or(86400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imbalance_keeps_within_its_bound() {
        for endpoints in 1..=LARGEST as usize {
            let rung = rung(endpoints);
            assert!(rungs().contains(&rung), "{endpoints}: {rung}");
            let n = endpoints as u32;
            let (least, most) = (rung / n, rung.div_ceil(n));
            let bound = if n <= 4096 { 4 * most <= 5 * least } else { most <= 2 * least };
            assert!(bound, "{endpoints} endpoints on {rung} slots: {least} to {most}");
        }
    }

    #[test]
    fn timeouts_are_never_shortened() {
        assert_eq!([0, 1, 4, 5, 10800, 10801, 86400].map(timeout), [1, 1, 5, 5, 10800, 14400, 86400]);
    }

    #[test]
    fn every_rung_has_a_group() {
        assert_eq!([1, 8, 9, 16, 17, 64, 256, LARGEST].map(group), [8, 8, 16, 16, 32, 64, LARGEST, LARGEST]);
    }
}
