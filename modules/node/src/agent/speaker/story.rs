//! What of a speaker's events is told outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_speaker::announce::EventKind;
use homelab_speaker::speaker::Event;

use crate::agent::sayings::What;

/// What became of addresses, as far as this node has a part in it.
#[derive(Debug, Default)]
pub(super) struct Story {
    node: String,
    /// Addresses that this node got, from whom if from anybody, and has not announced yet.
    from: BTreeMap<IpAddr, Option<String>>,
    /// Those that it is known to announce.
    announced: BTreeSet<IpAddr>,
}

impl Story {
    /// Of a node that announces these already: to go on with that is no news.
    pub(super) fn new(node: &str, announced: BTreeSet<IpAddr>) -> Story {
        Story { node: node.to_owned(), from: BTreeMap::new(), announced }
    }

    /// What there is to tell.
    pub(super) fn hear(&mut self, event: &Event) -> Option<(IpAddr, What)> {
        match event {
            Event::Moved { address, from, to } => {
                if to.as_ref() == Some(&self.node) {
                    self.from.insert(*address, from.clone());
                } else {
                    self.from.remove(address);
                    self.announced.remove(address);
                }
                None
            }
            // On one interface, and maybe on others soon.
            Event::Address(event) if event.kind == EventKind::Announced => {
                let before = self.from.remove(&event.address).flatten();
                let what = What::Announced { before, protocol: "layer2" };
                self.announced.insert(event.address).then_some((event.address, what))
            }
            Event::Address(event) => {
                let EventKind::Conflict(mac) = event.kind else { return None };
                self.announced.remove(&event.address);
                Some((event.address, What::Conflict(mac.to_string())))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use homelab_speaker::announce;
    use homelab_speaker::mac::Mac;

    use super::*;

    const FIRST: &str = "192.168.50.200";
    const SECOND: &str = "192.168.50.201";

    fn moved(address: &str, from: Option<&str>, to: Option<&str>) -> Event {
        let [from, to] = [from, to].map(|name| name.map(str::to_owned));
        Event::Moved { address: address.parse().unwrap(), from, to }
    }

    fn of(address: &str, interface: &str, kind: EventKind) -> Event {
        let (address, interface) = (address.parse().unwrap(), interface.to_owned());
        Event::Address(announce::Event { address, interface, kind })
    }

    fn announced(address: &str, before: Option<&str>) -> Option<(IpAddr, What)> {
        let before = before.map(str::to_owned);
        Some((address.parse().unwrap(), What::Announced { before, protocol: "layer2" }))
    }

    #[test]
    fn a_node_tells_what_it_begins_and_what_is_in_the_way() {
        let mut story = Story::new("node1", BTreeSet::from([SECOND.parse().unwrap()]));
        assert_eq!(story.hear(&moved(FIRST, Some("node2"), Some("node1"))), None);
        assert_eq!(story.hear(&of(FIRST, "lan", EventKind::Probing)), None);
        assert_eq!(story.hear(&of(FIRST, "lan", EventKind::Announced)), announced(FIRST, Some("node2")));
        assert_eq!(story.hear(&of(FIRST, "wlan", EventKind::Announced)), None, "once for all interfaces");
        // It was started again.
        assert_eq!(story.hear(&moved(SECOND, None, Some("node1"))), None);
        assert_eq!(story.hear(&of(SECOND, "lan", EventKind::Announced)), None);
        // Away and back.
        assert_eq!(story.hear(&moved(FIRST, Some("node1"), Some("node3"))), None);
        assert_eq!(story.hear(&of(FIRST, "lan", EventKind::Released)), None);
        assert_eq!(story.hear(&moved(FIRST, Some("node3"), Some("node1"))), None);
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let conflict = Some((FIRST.parse().unwrap(), What::Conflict(mac.to_string())));
        assert_eq!(story.hear(&of(FIRST, "lan", EventKind::Conflict(mac))), conflict);
        assert_eq!(story.hear(&of(FIRST, "lan", EventKind::ConflictOver)), None);
        assert_eq!(story.hear(&of(FIRST, "lan", EventKind::Announced)), announced(FIRST, Some("node3")));
    }
}
