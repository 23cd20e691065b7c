//! What a pod's link says of it in its alias: what holds it back on its bridge, and whose it is.

use std::fmt;
use std::net::IpAddr;

/// Longest `IFLA_IFALIAS`, bytes: with the terminator that is sent along less than `IFALIASZ`, which is 256.
pub const ALIAS_MAX: usize = 254;

/// What of a pod's traffic its bridge lets pass, and which runtime answers for it. It stands in the alias of the pod's link
/// on the node, behind its name: `homelab-pod:c1/eth0 isolated own=02:68:0a:f4:01:02,10.244.1.2 cri=0a1b2c3d`. There it is as lasting as the link, so that the agent can
/// bring back what others took away, and nothing is left of it when the pod goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodMarks {
    /// Exchanges no frames with other isolated ports (`IFLA_BRPORT_ISOLATED`).
    pub isolated: bool,
    /// Sends by these addresses only; None: by any.
    pub own: Option<OwnAddresses>,
    /// Mark of the runtime whose pod sandbox it is, of hexadecimal digits, as the reservation has it.
    pub runtime: Option<String>,
}

/// The addresses that a pod may send by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAddresses {
    /// MAC address.
    pub mac: [u8; 6],
    /// IP addresses, one per family, without the link-local one.
    pub addresses: Vec<IpAddr>,
}

impl PodMarks {
    /// The marks in a link's alias.
    pub fn of_alias(alias: &str) -> PodMarks {
        let mut marks = PodMarks::default();
        for word in alias.split(' ').skip(1) {
            match word.split_once('=') {
                None if word == "isolated" => marks.isolated = true,
                Some(("own", own)) => marks.own = OwnAddresses::parse(own),
                Some(("cri", mark)) if !mark.is_empty() => marks.runtime = Some(mark.to_owned()),
                _ => {}
            }
        }
        marks
    }

    /// The alias of a link of this name: cut to the kernel's limit, the marks whole.
    pub fn alias(&self, name: &str) -> String {
        let marks = self.to_string();
        let room = ALIAS_MAX.saturating_sub(marks.len()).min(name.len());
        let end = (0..=room).rev().find(|end| name.is_char_boundary(*end)).unwrap_or_default();
        format!("{}{marks}", name.get(..end).unwrap_or_default())
    }
}

impl fmt::Display for PodMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.isolated {
            f.write_str(" isolated")?;
        }
        if let Some(own) = &self.own {
            let mac: Vec<String> = own.mac.iter().map(|byte| format!("{byte:02x}")).collect();
            write!(f, " own={}", mac.join(":"))?;
            own.addresses.iter().try_for_each(|address| write!(f, ",{address}"))?;
        }
        self.runtime.iter().try_for_each(|mark| write!(f, " cri={mark}"))
    }
}

impl OwnAddresses {
    fn parse(text: &str) -> Option<OwnAddresses> {
        let mut parts = text.split(',');
        let mac: Option<Vec<u8>> =
            parts.next()?.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
        let addresses: Option<Vec<IpAddr>> = parts.map(|part| part.parse().ok()).collect();
        Some(OwnAddresses { mac: mac?.try_into().ok()?, addresses: addresses? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_from_an_alias_however_long_the_name_is() {
        let own = OwnAddresses {
            mac: [2, 0x68, 10, 244, 1, 2],
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        };
        let all = PodMarks { isolated: true, own: Some(own.clone()), runtime: Some("0a1b2c3d".into()) };
        assert_eq!(
            all.alias("homelab-pod:c1/eth0"),
            "homelab-pod:c1/eth0 isolated own=02:68:0a:f4:01:02,10.244.1.2,fd00::2 cri=0a1b2c3d"
        );
        let alone = PodMarks { own: Some(own), ..PodMarks::default() };
        let isolated = PodMarks { isolated: true, ..PodMarks::default() };
        for marks in [all, alone, isolated, PodMarks::default()] {
            for length in [1, 200, 600] {
                let alias = marks.alias(&"c".repeat(length));
                assert!(alias.len() <= ALIAS_MAX);
                assert_eq!(PodMarks::of_alias(&alias), marks, "{alias}");
            }
        }
        for strange in ["", "homelab", "x own=", "x own=02:68,10.0.0.1", "x own=02:68:00:00:00:01,no"] {
            assert_eq!(PodMarks::of_alias(strange), PodMarks::default(), "{strange}");
        }
    }
}
