//! What a text is when it is no value, in words; and addresses that nothing can be reached at.

use std::net::IpAddr;

/// Why a text is no value of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: String,
}

pub(crate) type Parsed<T> = Result<T, Words>;

pub(crate) fn words<T>(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> Parsed<T> {
    Err(Words { code, message: message.into(), help: help.into() })
}

/// A text cut where it is long, in one line.
pub(crate) fn short(text: &str) -> String {
    let cut: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() { format!("{cut}...") } else { cut }
}

/// A text in a message.
pub(crate) fn quote(text: &str) -> String {
    format!("`{}`", short(text))
}

/// Why no host can have this address.
pub(crate) fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        a if a.is_unspecified() => Some("the unspecified address"),
        a if a.is_loopback() => Some("a loopback address"),
        a if a.is_multicast() => Some("a multicast address"),
        IpAddr::V4(a) if a.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(a) if a.octets()[0] == 0 => Some("an address of 0.0.0.0/8"),
        IpAddr::V4(a) if a.is_link_local() => Some("a link-local address"),
        IpAddr::V6(a) if a.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

/// Whether a text is a DNS label (RFC 1123).
pub(crate) fn is_label(text: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(good) && !text.starts_with('-') && !text.ends_with('-')
}

/// DNS labels with dots between (RFC 1123 subdomain).
pub(crate) fn subdomain(text: &str) -> Parsed<String> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    let rule = "at most 253 lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit";
    words("name", format!("{} is no DNS name", quote(text)), rule)
}

/// The value of a label; zones are such.
pub(crate) fn label_value(text: &str) -> Parsed<String> {
    if text.is_empty() || is_qualified_part(text) {
        return Ok(text.to_owned());
    }
    let rule = "at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit";
    words("name", format!("{} cannot be the value of a label", quote(text)), rule)
}

/// The part of a label's key behind its prefix, and a value that is not empty.
pub(crate) fn is_qualified_part(text: &str) -> bool {
    let end = |c: char| c.is_ascii_alphanumeric();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| end(c) || matches!(c, '-' | '_' | '.'))
        && text.starts_with(end)
        && text.ends_with(end)
}

/// `name` or `prefix/name`.
pub(crate) fn qualified(text: &str) -> Parsed<String> {
    let good = match text.split_once('/') {
        Some((prefix, name)) => subdomain(prefix).is_ok() && is_qualified_part(name),
        None => is_qualified_part(text),
    };
    if good {
        return Ok(text.to_owned());
    }
    words("name", format!("{} is no qualified name", quote(text)), "for example `example.org/name`")
}
