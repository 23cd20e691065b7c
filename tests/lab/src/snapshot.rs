//! All that a node is, as far as a tool like `homelab` can change it, in a form that can be compared.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Everything observable of a node: section, then entry, then its value as text.
///
/// | section | entries |
/// |---|---|
/// | `link` | by name; kind, master, flags, MTU, MAC and settings; without indices and timers |
/// | `address` | by link and address |
/// | `route`, `route6` | of all tables |
/// | `rule`, `rule6` | policy rules |
/// | `neighbour` | permanent and proxy entries |
/// | `fdb` | all but learned entries |
/// | `nftables` | by table; rules, sets and maps, without counters |
/// | `netns` | named network namespaces |
/// | `sysctl` | `net.*` |
/// | `unit-file` | by name; enabled, disabled, masked, static |
/// | `unit` | services, timers, sockets and mounts; whether active |
/// | `file` | below [`NodeSnapshot::DIRECTORIES`]; kind, mode, owner, size, SHA-256 or link target |
/// | `mtime` | the same paths |
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeSnapshot {
    pub(crate) sections: BTreeMap<String, BTreeMap<String, String>>,
}

/// What distinguishes two snapshots; prints one entry a line, longer values line by line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotDiff {
    /// Section, entry, value before and value after.
    pub entries: Vec<(String, String, Option<String>, Option<String>)>,
}

impl NodeSnapshot {
    /// Where a snapshot looks for files.
    pub const DIRECTORIES: [&str; 5] = ["/etc", "/usr/local", "/opt", "/var/lib", "/run/homelab"];

    /// What changes there by itself, or as the trace of any ssh login and sudo.
    pub const LEFT_OUT: [&str; 6] = [
        "/var/lib/containerd",
        "/var/lib/containers",
        "/var/lib/systemd/random-seed",
        "/var/lib/systemd/timers",
        "/var/lib/sudo",
        "/var/lib/private",
    ];

    /// Entries of a section; none if it has none.
    pub fn section(&self, name: &str) -> impl Iterator<Item = (&str, &str)> {
        self.sections.get(name).into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of one entry.
    pub fn get(&self, section: &str, key: &str) -> Option<&str> {
        Some(self.sections.get(section)?.get(key)?.as_str())
    }

    /// The same without the named sections.
    #[must_use]
    pub fn without(&self, sections: &[&str]) -> Self {
        let mut rest = self.clone();
        rest.sections.retain(|name, _| !sections.contains(&name.as_str()));
        rest
    }

    /// The same without the named entries, in whatever section.
    #[must_use]
    pub fn without_entries(mut self, names: &[&str]) -> Self {
        for entries in self.sections.values_mut() {
            entries.retain(|name, _| !names.contains(&name.as_str()));
        }
        self
    }

    /// The same without units that are loaded and do nothing: systemd remembers some for what refers to them, and
    /// others not.
    #[must_use]
    pub fn without_idle_units(mut self) -> Self {
        if let Some(units) = self.sections.get_mut("unit") {
            units.retain(|_, state| state != "loaded inactive dead");
        }
        self
    }

    /// The same without times of modification: what was made and removed again leaves its directory's time changed.
    #[must_use]
    pub fn without_times(&self) -> Self {
        self.without(&["mtime"])
    }

    /// What changed from this snapshot to a later one.
    pub fn diff(&self, after: &Self) -> SnapshotDiff {
        let empty = BTreeMap::new();
        let mut entries = Vec::new();
        let names: std::collections::BTreeSet<_> =
            self.sections.keys().chain(after.sections.keys()).collect();
        for name in names {
            let old = self.sections.get(name).unwrap_or(&empty);
            let new = after.sections.get(name).unwrap_or(&empty);
            let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let (before, after) = (old.get(key).cloned(), new.get(key).cloned());
                if before != after {
                    entries.push((name.clone(), key.clone(), before, after));
                }
            }
        }
        SnapshotDiff { entries }
    }
}

impl SnapshotDiff {
    /// Whether the snapshots are equal.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl fmt::Display for SnapshotDiff {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (section, key, before, after) in &self.entries {
            match (before, after) {
                (None, Some(value)) => writeln!(out, "+ {section} {key}: {value}")?,
                (Some(value), None) => writeln!(out, "- {section} {key}: {value}")?,
                (Some(old), Some(new)) if old.contains('\n') || new.contains('\n') => {
                    writeln!(out, "~ {section} {key}:")?;
                    for line in old.lines().filter(|line| !new.lines().any(|other| other == *line)) {
                        writeln!(out, "    - {line}")?;
                    }
                    for line in new.lines().filter(|line| !old.lines().any(|other| other == *line)) {
                        writeln!(out, "    + {line}")?;
                    }
                }
                (Some(old), Some(new)) => writeln!(out, "~ {section} {key}: {old} -> {new}")?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(entries: &[(&str, &str, &str)]) -> NodeSnapshot {
        let mut snapshot = NodeSnapshot::default();
        for (section, key, value) in entries {
            snapshot.sections.entry((*section).into()).or_default().insert((*key).into(), (*value).into());
        }
        snapshot
    }

    #[test]
    fn a_difference_names_entry_and_values() {
        let before =
            snapshot(&[("sysctl", "net.a", "0"), ("link", "eth0", "up"), ("nftables", "t", "one\ntwo")]);
        let after =
            snapshot(&[("sysctl", "net.a", "1"), ("file", "/etc/x", "f"), ("nftables", "t", "one\nthree")]);
        assert!(before.diff(&before).is_empty());
        assert_eq!(
            before.diff(&after).to_string(),
            "+ file /etc/x: f\n- link eth0: up\n~ nftables t:\n    - two\n    + three\n~ sysctl net.a: 0 -> 1\n"
        );
        assert_eq!(
            before
                .clone()
                .without(&["link", "sysctl", "nftables"])
                .diff(&after.without_times())
                .entries
                .len(),
            3
        );
    }
}
