//! Single values of `loadBalancer.bgp`: times, communities, identifiers.

use std::net::{IpAddr, Ipv4Addr};

use homelab_model::BgpCommunity;

use super::values::{Parsed, address};
use crate::value::{is_qualified_part, quote, words};

/// Longest time of a session, in seconds.
const LONGEST: u64 = 65535;

/// A time in Go's form (`90s`, `1m30s`), as whole seconds.
pub(super) fn seconds(text: &str) -> Parsed<u16> {
    let code = "duration";
    let no = || format!("{} is not a time", quote(text));
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut total, mut last) = (text, 0_u64, u64::MAX);
    if rest.is_empty() {
        return words(code, "the time is empty", "for example `90s` or `1m30s`");
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default();
        let scale = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            "" if text.bytes().all(|b| b.is_ascii_digit()) => {
                return words(
                    code,
                    format!("{} has no unit", quote(text)),
                    format!("write `{text}s` for seconds"),
                );
            }
            "ms" | "us" | "ns" => return words(code, no(), "write whole seconds, e.g. `10s`"),
            _ => return words(code, no(), "for example `90s` or `1m30s`"),
        };
        let Some(number) = number.parse::<u64>().ok().filter(|n| *n <= LONGEST && scale < last) else {
            let help = if scale < last {
                "it is too long: the longest is `65535s`"
            } else {
                "for example `90s` or `1m30s`"
            };
            return words(code, no(), help);
        };
        (total, last, rest) = (total + number * scale, scale, &after[unit.len()..]);
    }
    match u16::try_from(total) {
        Ok(total) => Ok(total),
        Err(_) => words(code, format!("{} is too long", quote(text)), format!("the longest is `{LONGEST}s`")),
    }
}

/// A time between attempts: not zero.
pub(super) fn some_seconds(text: &str) -> Parsed<u16> {
    match seconds(text)? {
        0 => words("duration", format!("{} is no time between attempts", quote(text)), "write at least `1s`"),
        seconds => Ok(seconds),
    }
}

/// A time in which the session is lost: none, or one in which it can be kept (RFC 4271, 4.2).
pub(super) fn hold_time(text: &str) -> Parsed<u16> {
    match seconds(text)? {
        1 | 2 => words(
            "hold-time",
            format!("{} is too short for a hold time", quote(text)),
            "write at least `3s`, or `0s` for a session that silence does not end; BFD is quicker",
        ),
        seconds => Ok(seconds),
    }
}

/// A BGP identifier.
pub(super) fn router_id(text: &str) -> Parsed<Ipv4Addr> {
    let message = || format!("{} is no router ID", quote(text));
    match address(text)? {
        IpAddr::V4(id) if !id.is_unspecified() => Ok(id),
        _ => words("router-id", message(), "write it like an IPv4 address, e.g. `192.168.50.11`"),
    }
}

/// The name of a community: not one that a community has already, and no number.
pub(super) fn community_name(text: &str) -> Parsed<String> {
    if BgpCommunity::WELL_KNOWN.iter().any(|(name, _)| *name == text) {
        return words(
            "name",
            format!("{} is the name of a well-known community", quote(text)),
            "it can be used without being listed here; give yours another name",
        );
    }
    if is_qualified_part(text) && text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Ok(text.to_owned());
    }
    let rule = "begin with a letter; letters, digits, `-`, `_` and `.` can follow";
    words("name", format!("{} cannot be the name of a community", quote(text)), rule)
}

/// A community in numbers: `A:B`, or `A:B:C` for a large one, also with MetalLB's `large:` before it. None if the text is none
/// of these at all.
pub(super) fn numbers(text: &str) -> Option<Parsed<BgpCommunity>> {
    if !text.contains(':') {
        return None;
    }
    let parts: Vec<&str> = text.strip_prefix("large:").unwrap_or(text).split(':').collect();
    let (most, count) = match parts.as_slice() {
        [_, _] if !text.starts_with("large:") => (u64::from(u16::MAX), 2),
        [_, _, _] => (u64::from(u32::MAX), 3),
        _ => {
            return Some(words(
                "community",
                format!("{} is not a community", quote(text)),
                "write two numbers, e.g. `64512:100`, or three for a large one, e.g. `64512:1:2`",
            ));
        }
    };
    let number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u64>().ok())?;
    let numbers: Vec<u64> = parts.iter().filter_map(number).filter(|n| *n <= most).collect();
    let narrow = |n: u64| u16::try_from(n).ok();
    let wide = |n: u64| u32::try_from(n).ok();
    let community = match numbers.as_slice() {
        [a, b] if count == 2 => narrow(*a).zip(narrow(*b)).map(|(a, b)| BgpCommunity::Standard(a, b)),
        [a, b, c] if count == 3 => {
            wide(*a).zip(wide(*b)).zip(wide(*c)).map(|((a, b), c)| BgpCommunity::Large(a, b, c))
        }
        _ => None,
    };
    Some(match community {
        Some(community) => Ok(community),
        None => {
            let large =
                if count == 2 { "; a large community has three numbers, e.g. `4200000000:1:2`" } else { "" };
            words(
                "community",
                format!("{} is not a community", quote(text)),
                format!("each of its numbers is from 0 to {most}{large}"),
            )
        }
    })
}

/// A community in numbers, where a name cannot stand.
pub(super) fn community(text: &str) -> Parsed<BgpCommunity> {
    numbers(text).unwrap_or_else(|| {
        words(
            "community",
            format!("{} is not a community", quote(text)),
            "write its numbers, e.g. `64512:100` or `64512:1:2`",
        )
    })
}
