//! The book of addresses: which Service has which, in one object of the API.
//!
//! A Service's status is an object of its own, so two controllers that do not know of each other (one was held up while its
//! Lease ran out) could give one address to two Services, each by a write that nothing hinders. The ledger is one object:
//! an address is written there first, by a write that fails if somebody else wrote since, and into the status only then.
//! With the address stands the version of the Service that it was claimed for; the status is written on exactly that
//! version. An entry goes only when the Service is known to be past that version and without the address, or gone: a write
//! that is still under way for it then fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Name of the ConfigMap in homelab's namespace.
pub const LEDGER: &str = "homelab-addresses";

/// All entries, as last read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// `metadata.resourceVersion`; None: there is no such object yet.
    pub version: Option<String>,
    /// By full name of the Service.
    pub entries: BTreeMap<String, Entry>,
    /// Keys whose values cannot be read: somebody else wrote them. They are removed.
    pub strange: BTreeSet<String>,
}

/// The addresses of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `metadata.uid` of the Service.
    pub uid: String,
    /// The version of the Service that they were last claimed for.
    pub version: u64,
    /// Those that it has, is to have, or had until a moment ago.
    pub addresses: BTreeSet<IpAddr>,
}

impl Ledger {
    /// Reads the `data` of the ConfigMap.
    pub fn read<'a>(
        version: Option<String>,
        data: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Ledger {
        let mut ledger = Ledger { version, ..Ledger::default() };
        for (key, value) in data {
            match (key.split_once('.'), entry(value)) {
                (Some((namespace, name)), Some(entry)) => {
                    ledger.entries.insert(format!("{namespace}/{name}"), entry);
                }
                _ => {
                    ledger.strange.insert(key.clone());
                }
            }
        }
        ledger
    }

    /// What changes in `data` on the way to other entries; None: the key goes.
    pub(super) fn changes(&self, to: &BTreeMap<String, Entry>) -> BTreeMap<String, Option<String>> {
        let gone = self.entries.keys().filter(|name| !to.contains_key(*name));
        let mut changes: BTreeMap<String, Option<String>> = gone.map(|name| (key(name), None)).collect();
        changes.extend(self.strange.iter().map(|key| (key.clone(), None)));
        let other = to.iter().filter(|(name, entry)| self.entries.get(*name) != Some(entry));
        changes.extend(other.map(|(name, entry)| (key(name), Some(entry.text()))));
        changes
    }
}

impl Entry {
    /// `UID VERSION ADDRESS…`
    pub(super) fn text(&self) -> String {
        let mut text = format!("{} {}", self.uid, self.version);
        for ip in &self.addresses {
            text.push(' ');
            text.push_str(&ip.to_string());
        }
        text
    }
}

fn entry(text: &str) -> Option<Entry> {
    let mut words = text.split_whitespace();
    let (uid, version) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    let addresses = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Entry { uid, version, addresses })
}

/// The key of a Service: neither namespaces nor Services have dots in their names.
fn key(name: &str) -> String {
    name.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_removed() {
        let addresses = ["192.168.50.200", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
        let web = Entry { uid: "u-1".into(), version: 17, addresses };
        let to = BTreeMap::from([("default/web".to_owned(), web)]);
        let changes = Ledger::default().changes(&to);
        let text = "u-1 17 192.168.50.200 fd00::1";
        assert_eq!(changes, BTreeMap::from([("default.web".to_owned(), Some(text.to_owned()))]));
        let data: BTreeMap<String, String> =
            [("default.web", text), ("note", "mine"), ("default.bad", "u-2 x")]
                .map(|(k, v)| (k.into(), v.into()))
                .into();
        let ledger = Ledger::read(Some("5".into()), &data);
        assert_eq!(ledger.entries, to);
        let gone = ["default.bad", "note"].map(|key| (key.to_owned(), None));
        assert_eq!(ledger.changes(&to), BTreeMap::from(gone.clone()));
        let all = ledger.changes(&BTreeMap::new());
        assert_eq!(all.into_keys().collect::<Vec<_>>(), ["default.bad", "default.web", "note"]);
    }
}
