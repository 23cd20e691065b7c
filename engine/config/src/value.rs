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
