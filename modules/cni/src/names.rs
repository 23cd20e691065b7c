//! Names that come from outside and end up in paths and in the kernel.

/// Container ids and network names: a letter or digit, then letters, digits, `_`, `.`, `-` (specification 1.1.0,
/// section "Parameters"), at most `longest` bytes. So no name is `..`, holds a slash or begins with a dash.
pub(crate) fn check_name(name: &str, longest: usize) -> bool {
    name.len() <= longest
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// What the kernel takes as a link's name (`dev_valid_name`): 1 to 15 bytes, no slash, colon, white space, not `.`
/// or `..`; no control characters, which would garble every listing; and not `all` or `default`, which are no single link
/// in `/proc/sys/net` (`sysctl_dev_name_is_allowed`).
pub(crate) fn is_ifname(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && ![".", "..", "all", "default"].contains(&name)
        && !name.chars().any(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
}
