//! Single values by Kubernetes' rules, which differ from those of homelab.yaml: host bits in a range are allowed.

use std::net::IpAddr;

use ipnet::IpNet;

pub(super) use crate::value::{Parsed, label_value, qualified, quote, short, subdomain};
use crate::value::{is_label, unusable, words};

/// An address that a packet can go to.
pub(super) fn address(text: &str) -> Parsed<IpAddr> {
    let ip = match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            let help = v6.to_ipv4_mapped().map_or(String::new(), |v4| format!("write `{v4}`"));
            return words("address", format!("{} is an IPv4 address in IPv6 form", quote(text)), help);
        }
        Ok(ip) => ip,
        Err(_) => {
            let bare = text.split('.').map(|p| if p.len() > 1 { p.trim_start_matches('0') } else { p });
            let bare: Vec<&str> = bare.map(|p| if p.is_empty() { "0" } else { p }).collect();
            let bare = bare.join(".");
            let help = match bare.parse::<IpAddr>() {
                Ok(ip) => format!("write it without leading zeros: `{ip}`"),
                Err(_) => "for example `10.244.1.5` or `fd00:10:244::5`".into(),
            };
            return words("address", format!("{} is not an IP address", quote(text)), help);
        }
    };
    let Some(what) = unusable(ip) else { return Ok(ip) };
    words("address", format!("{ip} is {what}"), "nothing can be reached there from another machine")
}

/// A range; what is behind the prefix is cut off, as kube-proxy does.
pub(super) fn cidr(text: &str) -> Parsed<IpNet> {
    let text = text.trim();
    let why = || format!("{} is not a range", quote(text));
    let help = "for example `192.168.50.0/24` or `fd00:50::/64`";
    let Some((ip, length)) = text.split_once('/') else { return words("cidr", why(), help) };
    let net = match (ip.parse::<IpAddr>(), length.parse::<u8>()) {
        (Ok(IpAddr::V6(v6)), _) if v6.to_ipv4_mapped().is_some() => return words("cidr", why(), help),
        // `+8` and `08` are numbers to Rust, not to Kubernetes.
        (Ok(ip), Ok(number)) if number.to_string() == length => IpNet::new(ip, number).ok(),
        _ => None,
    };
    net.map_or_else(|| words("cidr", why(), help), |net| Ok(net.trunc()))
}

/// A DNS label (RFC 1123).
pub(super) fn label(text: &str) -> Parsed<String> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    let rule = "at most 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit";
    words("name", format!("{} is no DNS label", quote(text)), rule)
}

/// The name of a container's port (IANA service name).
pub(super) fn port_name(text: &str) -> Parsed<String> {
    let good = text.len() <= 15
        && is_label(text)
        && !text.contains("--")
        && text.contains(|c: char| c.is_ascii_lowercase());
    if good {
        return Ok(text.to_owned());
    }
    let rule = "a number, or at most 15 lower-case letters, digits and `-` with a letter among them";
    words("name", format!("{} is no name of a port", quote(text)), rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["10.0.0.1", "fd00::1", "2001:db8::a"] {
            assert_eq!(address(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "10.0.0",
            "10.0.0.256",
            "010.0.0.1",
            "10.0.0.1/24",
            "::ffff:10.0.0.1",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "fe80::1%eth0",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "0.1.2.3",
            " 10.0.0.1",
            "host",
        ] {
            assert_eq!(address(bad).unwrap_err().code, "address", "{bad}");
        }
        assert!(address("010.0.0.08").unwrap_err().help.contains("`10.0.0.8`"));
        assert!(address("::ffff:10.0.0.1").unwrap_err().help.contains("`10.0.0.1`"));
    }

    #[test]
    fn ranges() {
        for (text, net) in
            [("10.1.2.3/8", "10.0.0.0/8"), (" fd00::1/64 ", "fd00::/64"), ("0.0.0.0/0", "0.0.0.0/0")]
        {
            assert_eq!(cidr(text).unwrap().to_string(), net);
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "010.0.0.0/8",
            "::ffff:10.0.0.0/104",
            "a/8",
        ] {
            assert_eq!(cidr(bad).unwrap_err().code, "cidr", "{bad}");
        }
    }

    #[test]
    fn names() {
        assert!(label("web-1").is_ok() && label(&"a".repeat(63)).is_ok());
        for bad in ["", "Web", "-a", "a-", "a.b", "a_b", &"a".repeat(64)] {
            assert!(label(bad).is_err(), "{bad}");
        }
        assert!(subdomain("a.b-c.1").is_ok());
        for bad in ["", "a..b", ".a", "a.", "A", &format!("{}a", "a.".repeat(127))] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok() && label_value("Zone_a.1").is_ok() && label_value("-a").is_err());
        assert!(qualified("example.org/x").is_ok() && qualified("x").is_ok());
        assert!(qualified("a/b/c").is_err() && qualified("/x").is_err() && qualified("x/").is_err());
        assert!(port_name("http-1").is_ok());
        for bad in ["", "123", "a--b", "Http", &"a".repeat(16)] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
    }
}
