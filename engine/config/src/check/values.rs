//! Single values: names, addresses, ranges.

use std::net::IpAddr;

use homelab_model::PoolRange;
use ipnet::IpNet;

pub(super) use crate::value::{Parsed, unusable};
use crate::value::{Words, is_qualified_part, quote, short, words};

/// A DNS label (RFC 1123); `what` with its article.
pub(super) fn label(text: &str, what: &str) -> Parsed<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() {
        return words("name", "the name is empty", "use lower-case letters, digits and `-`");
    }
    if text.len() > 63 {
        return words(
            "name",
            format!("{what} has at most 63 characters, this one {}", text.chars().count()),
            "shorten it",
        );
    }
    if text.chars().all(good) && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(text.to_owned());
    }
    let near: String = text
        .to_lowercase()
        .chars()
        .map(|c| if good(c) { c } else { '-' })
        .collect::<String>()
        .trim_matches('-')
        .into();
    let rule = "use lower-case letters, digits and `-`, beginning and ending with a letter or digit";
    let help = if near.is_empty() { rule.to_owned() } else { format!("{rule}, e.g. `{near}`") };
    words("name", format!("{} cannot be {what}", quote(text)), help)
}

/// The name of a service: a DNS label that begins with a letter (RFC 1035).
pub(super) fn service_name(text: &str) -> Parsed<String> {
    let name = label(text, "a service name")?;
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        let help = format!("begin it with a letter, e.g. `svc-{}`", short(text));
        return words("name", format!("{} cannot be a service name", quote(text)), help);
    }
    Ok(name)
}

/// A zone: the value of a Kubernetes label.
pub(super) fn zone(text: &str) -> Parsed<String> {
    if is_qualified_part(text) {
        return Ok(text.to_owned());
    }
    let rule =
        "use at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit";
    words("name", format!("{} cannot be a zone", quote(text)), rule)
}

/// `first-last`, both ports.
pub(super) fn port_range(text: &str) -> Parsed<(u16, u16)> {
    let code = "port-range";
    let example = "for example `30000-32767`";
    let Some((first, last)) = text.split_once('-') else {
        return words(code, format!("{} is not a range of ports", quote(text)), example);
    };
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first == 0 || last == 0 => {
            words(code, format!("{} begins with port 0, which is none", quote(text)), example)
        }
        (Ok(first), Ok(last)) if first > last => {
            words(code, format!("{} runs backwards", quote(text)), format!("did you mean `{last}-{first}`?"))
        }
        (Ok(first), Ok(last)) => Ok((first, last)),
        _ => words(
            code,
            format!("{} is not a range of ports", quote(text)),
            format!("both ends are numbers from 1 to 65535, {example}"),
        ),
    }
}

/// The name or id of a container.
pub(super) fn container(text: &str) -> Parsed<String> {
    if text.is_empty() || text.chars().any(|c| c == '/' || c.is_whitespace() || c.is_control()) {
        return words(
            "container",
            format!("{} cannot be the name or id of a container", quote(text)),
            "it is not empty and has no spaces and no `/`",
        );
    }
    Ok(text.to_owned())
}

/// The address of a node: as [`address`], with a word on what belongs to `ssh`.
pub(super) fn node_address(text: &str) -> Parsed<IpAddr> {
    address(text).map_err(|why| match why.code {
        "address-name" => {
            Words { help: "write the address itself; a host name can stand in `ssh.host`".into(), ..why }
        }
        "address-port" => Words { help: format!("{}; an SSH port belongs to `ssh.port`", why.help), ..why },
        _ => why,
    })
}

/// An address without prefix length or port.
pub(super) fn address(text: &str) -> Parsed<IpAddr> {
    let code = "address";
    if text.trim().is_empty() {
        return words(code, "the address is empty", "for example `192.168.50.11` or `fd00:50::11`");
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return words(
                code,
                format!("{} is an IPv4 address in IPv6 form", quote(text)),
                format!("write `{v4}`"),
            );
        }
        return Ok(address);
    }
    let message = format!("{} is not an IP address", quote(text));
    if let Some((ip, _)) = text.split_once('/')
        && ip.parse::<IpAddr>().is_ok()
    {
        return words(
            code,
            format!("{} is a range; one address is wanted", quote(text)),
            format!("write `{ip}`"),
        );
    }
    if let Some((ip, port)) = text.rsplit_once(':')
        && ip.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        && port.parse::<u16>().is_ok()
    {
        let ip = ip.trim_matches(['[', ']']);
        return words("address-port", message, format!("write `{ip}`, without a port"));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return words(code, message, format!("write `{ip}`, without brackets"));
    }
    if text.contains('%') {
        return words(
            code,
            message,
            "an address with an interface (link-local) cannot be used; take one of the LAN",
        );
    }
    let bare = unpad(text);
    if bare.parse::<IpAddr>().is_ok() {
        return words(code, message, format!("write it without leading zeros: `{bare}`"));
    }
    let dotted: Vec<&str> = text.split('.').collect();
    if dotted.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit())) {
        let help = match (dotted.len(), dotted.iter().find(|p| p.parse::<u8>().is_err())) {
            (4, Some(part)) => format!("{part} is larger than 255"),
            (count, _) => format!("an IPv4 address has four numbers, this one {count}"),
        };
        return words(code, message, help);
    }
    if text.chars().any(|c| c.is_ascii_alphabetic() && !c.is_ascii_hexdigit()) {
        return words("address-name", message, "write the address itself, not a name");
    }
    words(code, message, "for example `192.168.50.11` or `fd00:50::11`")
}

/// Dotted numbers without leading zeros.
fn unpad(text: &str) -> String {
    let part = |p: &str| match p.trim_start_matches('0') {
        "" if !p.is_empty() => "0".to_owned(),
        bare => bare.to_owned(),
    };
    text.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// A range with a prefix length and no host bits.
pub(super) fn cidr(text: &str) -> Parsed<IpNet> {
    let code = "cidr";
    let message = format!("{} is not a range", quote(text));
    let Some((ip, length)) = text.split_once('/') else {
        let Ok(ip) = address(text) else {
            return words(code, message, "for example `10.244.0.0/16` or `fd00:10:244::/48`");
        };
        let zeros = match ip {
            IpAddr::V4(v4) => match v4.octets() {
                [_, 0, 0, 0] => 8,
                [_, _, 0, 0] => 16,
                [_, _, _, 0] => 24,
                _ => 32,
            },
            IpAddr::V6(v6) if v6.segments()[3..].iter().all(|s| *s == 0) => 48,
            IpAddr::V6(_) => 64,
        };
        let help = match IpNet::new(ip, zeros) {
            Ok(net) if net.trunc() == net && zeros != 32 => format!("add the prefix length, e.g. `{net}`"),
            _ => "add the prefix length, e.g. `10.244.0.0/16`".into(),
        };
        return words(code, format!("{} has no prefix length", quote(text)), help);
    };
    let ip = match address(ip) {
        Ok(ip) => ip,
        Err(why) => return words(code, message, why.help),
    };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let Some(length) = length.parse::<u8>().ok().filter(|l| *l <= most && !length.starts_with('+')) else {
        let mask = length.parse::<IpAddr>().ok().and_then(|m| IpNet::with_netmask(ip, m).ok());
        let help = match mask {
            Some(net) => format!("did you mean `{net}`?"),
            None => format!("the part after `/` is a number from 0 to {most}"),
        };
        return words(code, message, help);
    };
    match IpNet::new(ip, length) {
        Ok(net) if net.trunc() == net => Ok(net),
        Ok(net) => words(
            "host-bits",
            format!("{} is an address inside a range, not a range", quote(text)),
            format!("did you mean `{}`?", net.trunc()),
        ),
        Err(_) => words(code, message, ""),
    }
}

/// A range in which single addresses are usual: as [`cidr`], with a word on those.
pub(super) fn cidr_of_hosts(text: &str) -> Parsed<IpNet> {
    cidr(text).map_err(|why| match text.parse::<IpAddr>() {
        Ok(ip) => Words { help: format!("write `{}`, or the range that holds it", IpNet::from(ip)), ..why },
        Err(_) => why,
    })
}

/// An address, a CIDR or `first-last`.
pub(super) fn pool_range(text: &str) -> Parsed<PoolRange> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (first.trim(), last.trim());
        if first.is_empty() || last.is_empty() {
            let end = if first.is_empty() { "beginning" } else { "end" };
            let message = format!("{} has no {end}", quote(text));
            return words("pool-range", message, "for example `192.168.50.200-192.168.50.220`");
        }
        let ends = match (address(first), address(last)) {
            (Ok(first), Ok(last)) => (first, last),
            // `192.168.1.10-20`, as some routers write it.
            (Ok(IpAddr::V4(first)), Err(_)) if last.parse::<u8>().is_ok() => {
                let [a, b, c, _] = first.octets();
                let help = format!("write both ends in full: `{first}-{a}.{b}.{c}.{last}`");
                return words("pool-range", format!("{} is not a range", quote(text)), help);
            }
            (Err(why), _) | (_, Err(why)) => {
                return words(
                    "pool-range",
                    format!("{} is not a range: {}", quote(text), why.message),
                    why.help,
                );
            }
        };
        return match ends {
            (a, b) if a.is_ipv4() != b.is_ipv4() => words(
                "pool-range",
                format!("{} mixes IPv4 and IPv6", quote(text)),
                "give each family a range of its own",
            ),
            (a, b) if a > b => words(
                "pool-range",
                format!("{} runs backwards", quote(text)),
                format!("did you mean `{b}-{a}`?"),
            ),
            (first, last) => Ok(PoolRange { first, last }),
        };
    }
    if text.contains('/') {
        let net = cidr(text).map_err(|why| match (why.code, text.split_once('/')) {
            ("host-bits", Some((ip, _))) => {
                Words { help: format!("{} Or the one address `{ip}`?", why.help), ..why }
            }
            _ => why,
        })?;
        return Ok(PoolRange { first: net.network(), last: net.broadcast() });
    }
    match address(text) {
        Ok(ip) => Ok(PoolRange { first: ip, last: ip }),
        Err(why) => words(
            "pool-range",
            format!("{} is neither an address nor a range", quote(text)),
            if why.code == "address-name" {
                "for example `192.168.50.200-192.168.50.220`".into()
            } else {
                why.help
            },
        ),
    }
}

/// A name that the kernel accepts for a link.
pub(super) fn interface(text: &str) -> Parsed<String> {
    let code = "interface";
    let message = format!("{} cannot be the name of a network interface", quote(text));
    if text.is_empty() {
        return words(code, "the name of the interface is empty", "for example `eth0`");
    }
    if text.len() > 15 {
        return words(code, message, format!("Linux allows 15 bytes, this name has {}", text.len()));
    }
    if text == "."
        || text == ".."
        || text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
    {
        return words(code, message, "it cannot contain spaces, `/` or `:`");
    }
    Ok(text.to_owned())
}

/// A part of an ssh command line: not empty, no spaces, no option.
pub(super) fn ssh_word(text: &str, what: &str) -> Parsed<String> {
    if text.trim().is_empty() {
        return words(
            "ssh",
            format!("{what} cannot be empty"),
            "leave the key out to use what ~/.ssh/config says",
        );
    }
    if text.starts_with('-') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return words(
            "ssh",
            format!("{} cannot be {what}", quote(text)),
            "it cannot begin with `-` or contain spaces",
        );
    }
    Ok(text.to_owned())
}

/// `[user@]host[:port][,...]`
pub(super) fn jump(text: &str) -> Parsed<String> {
    let message = || format!("{} is not a jump host", quote(text));
    let form = "write `[user@]host[:port]`, several separated by commas";
    for hop in text.split(',') {
        let hop = hop.strip_prefix("ssh://").unwrap_or(hop);
        let (user, rest) = hop.rsplit_once('@').map_or((None, hop), |(u, r)| (Some(u), r));
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => match v6.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) if port.starts_with(':') => (host, Some(&port[1..])),
                _ => return words("ssh", message(), form),
            },
            // A bare IPv6 address has no port.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => rest.split_once(':').map_or((rest, None), |(h, p)| (h, Some(p))),
        };
        let bad = |t: &str| {
            t.is_empty()
                || t.starts_with('-')
                || t.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
        };
        if bad(host) || user.is_some_and(bad) {
            return words("ssh", message(), form);
        }
        if let Some(port) = port
            && !port.parse::<u16>().is_ok_and(|p| p > 0)
        {
            return words("ssh", message(), format!("{} is not a port; {form}", quote(port)));
        }
    }
    Ok(text.to_owned())
}
