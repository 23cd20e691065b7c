//! Durations and shares on the command line.

use std::time::Duration;

use homelab_driver::Batch;

/// Longest time that a flag takes: a week.
const LONGEST: u64 = 7 * 24 * 3600;

/// Reads `90`, `90s`, `10m`, `1h` or `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write seconds, or e.g. 90s, 10m, 1h, 1h30m");
    let mut seconds: u64 = 0;
    let mut rest = text;
    // Units come from the largest to the smallest, each once.
    let mut below = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest[digits..].chars().next() {
            None if below == u64::MAX => 1,
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            _ => return Err(wrong()),
        };
        if unit >= below {
            return Err(wrong());
        }
        below = unit;
        seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or_else(wrong)?;
        rest = rest.get(digits + 1..).unwrap_or_default();
    }
    match (text.is_empty(), seconds > LONGEST) {
        (true, _) => Err(wrong()),
        (_, true) => Err(format!("{text} is more than a week")),
        _ => Ok(Duration::from_secs(seconds)),
    }
}

/// A [`duration`] that is not zero.
pub(crate) fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text} is no time at all: write e.g. 60s, 10m, 1h")),
        time => Ok(time),
    }
}

/// Reads `3` or `25%`.
pub(crate) fn share(text: &str) -> Result<Batch, String> {
    let wrong = || format!("{text:?} is neither a number of nodes, e.g. 2, nor a part of them, e.g. 25%");
    match text.strip_suffix('%') {
        Some(number) => match number.parse() {
            Ok(percent @ 1..=100) => Ok(Batch::Percent(percent)),
            _ => Err(wrong()),
        },
        None => match text.parse() {
            Ok(nodes) if nodes > 0 => Ok(Batch::Nodes(nodes)),
            _ => Err(wrong()),
        },
    }
}

/// Seconds in a user's words: `45 s`, `10 min`, `1 h 30 min`.
pub(crate) fn words(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let parts = [(hours, "h"), (minutes, "min"), (rest, "s")];
    let shown: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).take(2).map(|(n, unit)| format!("{n} {unit}")).collect();
    if shown.is_empty() { "0 s".to_owned() } else { shown.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("0", 0),
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("1h", 3600),
            ("1h30m", 5400),
            ("1h30m5s", 5405),
            ("168h", LONGEST),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "m",
            "10 m",
            "1.5h",
            "-1",
            "10m1h",
            "1m1m",
            "1h30",
            "1d",
            "10µ",
            "169h",
            "99999999999999999999",
            "9999999999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("soon").unwrap_err().contains("90s, 10m, 1h"));
        assert!(some_time("0s").is_err());
        assert_eq!(some_time("1s"), Ok(Duration::from_secs(1)));
    }

    #[test]
    fn shares() {
        assert_eq!(share("3"), Ok(Batch::Nodes(3)));
        assert_eq!(share("25%"), Ok(Batch::Percent(25)));
        for text in ["0", "0%", "101%", "", "%", "-1", "half"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_in_words() {
        for (seconds, text) in
            [(0, "0 s"), (45, "45 s"), (600, "10 min"), (3661, "1 h 1 min"), (61, "1 min 1 s")]
        {
            assert_eq!(words(seconds), text);
        }
    }
}
