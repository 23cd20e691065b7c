//! Where the containers are that services name, by what their nodes say.
//!
//! For each container the last word of its own node counts; without one what was known before the agent was started, unless the
//! laptop has found something else since; else what the laptop found. So in which order configurations and words arrive is no
//! difference, and an agent that starts again goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use homelab_model::{ContainerName, ContainerWord, KnownContainer, KnownContainers, ServiceContainer, found};

/// Time since some moment before the agent's start.
pub type Time = Duration;

/// How long a node is out of the membership before its containers count as lost: an agent that died is started again by systemd
/// after a second, and its containers have been there all the time.
pub const LOST_AFTER: Duration = Duration::from_millis(1500);

/// What is heard of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It is a member.
    Up(String),
    /// It is dead, or out of reach.
    Down(String),
    /// It has left in order: its machine stops.
    Left(String),
    /// All that it has to say of its containers.
    Said(String, Vec<ContainerWord>),
}

/// What a node says of its containers, by container and interface.
type Words = BTreeMap<(String, String), Vec<IpAddr>>;

/// What this node knows. See the module.
#[derive(Debug, Clone, Default)]
pub struct Follow {
    /// Where the laptop found each.
    told: BTreeMap<ContainerName, Vec<IpAddr>>,
    /// What nodes have said since the start.
    words: BTreeMap<String, Words>,
    /// What was known last.
    kept: BTreeMap<ContainerName, KnownContainer>,
    /// Nodes that are no members, since when.
    silent: BTreeMap<String, Time>,
    down: BTreeSet<String>,
}

impl Follow {
    /// Goes on from what an earlier agent knew.
    pub fn new(kept: KnownContainers) -> Follow {
        let down = kept.down.clone();
        let kept = kept.containers.into_iter().map(|known| (known.name.clone(), known)).collect();
        Follow { kept, down, ..Follow::default() }
    }

    /// Takes another configuration.
    pub fn configure(&mut self, records: &[ServiceContainer]) {
        self.told = found(records);
        self.renew();
    }

    /// Nobody tells of other nodes from now on: none of them is known to be down.
    pub fn alone(&mut self) {
        self.silent.clear();
        self.down.clear();
    }

    /// The containers of a node that services name.
    pub fn named_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a ContainerName> {
        self.told.keys().filter(move |name| name.node == node)
    }

    /// Takes over what is heard.
    pub fn hear(&mut self, news: News, now: Time) {
        match news {
            News::Up(node) => drop(self.silent.remove(&node)),
            News::Down(node) => {
                if !self.down.contains(&node) {
                    self.silent.entry(node).or_insert(now);
                }
            }
            News::Left(node) => {
                self.silent.remove(&node);
                self.down.insert(node);
            }
            News::Said(node, words) => {
                self.silent.remove(&node);
                // One that was lost may come back without its containers: its own word counts, not that it is back.
                self.down.remove(&node);
                let word = |word: ContainerWord| ((word.container, word.interface), word.addresses);
                self.words.insert(node, words.into_iter().map(word).collect());
            }
        }
        self.renew();
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        let lost: Vec<String> = self
            .silent
            .iter()
            .filter(|(_, since)| **since + LOST_AFTER <= now)
            .map(|(node, _)| node.clone())
            .collect();
        for node in lost {
            self.silent.remove(&node);
            self.down.insert(node);
        }
    }

    /// When [`Follow::tick`] is due; None: never.
    pub fn next_deadline(&self) -> Option<Time> {
        self.silent.values().min().map(|since| *since + LOST_AFTER)
    }

    /// What is known: to be kept on disk, and what services are made of.
    pub fn known(&self) -> KnownContainers {
        let named: BTreeSet<&String> = self.told.keys().map(|name| &name.node).collect();
        KnownContainers {
            containers: self.kept.values().cloned().collect(),
            down: self.down.iter().filter(|node| named.contains(node)).cloned().collect(),
        }
    }

    fn renew(&mut self) {
        let mut before = std::mem::take(&mut self.kept);
        for (name, told) in &self.told {
            let word = self.words.get(&name.node);
            let word = word.and_then(|words| words.get(&(name.container.clone(), name.interface.clone())));
            let found = |addresses: &Vec<IpAddr>, said| KnownContainer {
                name: name.clone(),
                told: told.clone(),
                addresses: addresses.clone(),
                said,
            };
            let known = match (word, before.remove(name)) {
                (Some(addresses), _) => found(addresses, true),
                (None, Some(known)) if known.told == *told => known,
                _ => found(told, false),
            };
            self.kept.insert(name.clone(), known);
        }
    }
}

#[cfg(test)]
mod tests {
    use homelab_model::service::{Endpoint, Service};
    use homelab_model::{Absence, without_containers};
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 244, 0, last])
    }

    fn record(service: &str, node: u8, container: &str, addresses: &[u8]) -> ServiceContainer {
        let node = format!("node{node}");
        let endpoint = Endpoint {
            address: IpAddr::from([0, 0, 0, 0]),
            node: Some(node.clone()),
            zone: None,
            ready: true,
            serving: true,
            terminating: false,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
            ports: BTreeMap::from([(String::new(), 80)]).into(),
        };
        ServiceContainer {
            service: format!("default/{service}"),
            name: ContainerName { node, container: container.to_owned(), interface: "eth0".to_owned() },
            endpoint,
            addresses: addresses.iter().map(|last| ip(*last)).collect(),
        }
    }

    fn word(container: &str, addresses: &[u8]) -> ContainerWord {
        ContainerWord {
            container: container.to_owned(),
            interface: "eth0".to_owned(),
            addresses: addresses.iter().map(|last| ip(*last)).collect(),
        }
    }

    fn said(node: u8, words: &[ContainerWord]) -> News {
        News::Said(format!("node{node}"), words.to_vec())
    }

    fn service(name: &str, records: &[ServiceContainer]) -> Service {
        let own = records.iter().filter(|record| record.service == format!("default/{name}"));
        let endpoints: Vec<Endpoint> = own.flat_map(|r| r.addresses.iter().map(|a| r.at(*a))).collect();
        let mut service: Service = serde_json::from_value(serde_json::json!({
            "namespace": "default", "name": name, "ports": [{"port": 80}],
        }))
        .expect("a service");
        service.endpoints = endpoints;
        service
    }

    /// Addresses of the only service, with whether they take new connections.
    fn endpoints(follow: &Follow, service: &Service, records: &[ServiceContainer]) -> Vec<(IpAddr, bool)> {
        let followed = follow.known().follow(std::slice::from_ref(service), records).remove(0);
        followed.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.ready)).collect()
    }

    /// Why the only container is absent that is.
    fn absence(follow: &Follow, records: &[ServiceContainer]) -> Option<Absence> {
        follow.known().absent(records).map(|(_, why)| why).next()
    }

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn what_a_node_says_of_its_containers_counts_from_then_on() {
        let records = [record("web", 1, "a", &[2]), record("web", 2, "b", &[3])];
        let web = service("web", &records);
        let mut follow = Follow::default();
        follow.configure(&records);
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true), (ip(3), true)]);
        follow.hear(said(2, &[word("b", &[9])]), at(0));
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true), (ip(9), true)]);
        follow.hear(said(2, &[word("b", &[])]), at(0));
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true)]);
        assert_eq!(absence(&follow, &records), Some(Absence::NotRunning));
        // A node that was not told yet that somebody asks for the container has no word on it.
        follow.hear(said(2, &[]), at(0));
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true)]);
        // Started again: what was known counts, until the laptop finds something else or the node speaks.
        let mut again = Follow::new(follow.known());
        again.configure(&records);
        assert_eq!(endpoints(&again, &web, &records), [(ip(2), true)]);
        let found = [records[0].clone(), record("web", 2, "b", &[7])];
        again.configure(&found);
        assert_eq!(endpoints(&again, &service("web", &found), &found), [(ip(2), true), (ip(7), true)]);
        again.hear(said(2, &[word("b", &[8])]), at(0));
        assert_eq!(endpoints(&again, &service("web", &found), &found), [(ip(2), true), (ip(8), true)]);
    }

    #[test]
    fn a_node_that_is_lost_serves_nobody_unless_nobody_else_is_left() {
        let records = [record("web", 1, "a", &[2]), record("web", 2, "b", &[3])];
        let web = service("web", &records);
        let mut follow = Follow::default();
        follow.configure(&records);
        // An agent that is started again is no loss.
        follow.hear(News::Down("node2".into()), at(1));
        follow.tick(at(1));
        assert_eq!(follow.next_deadline(), Some(at(1) + LOST_AFTER));
        follow.hear(News::Up("node2".into()), at(1));
        follow.tick(at(9));
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true), (ip(3), true)]);
        follow.hear(News::Down("node2".into()), at(10));
        follow.tick(at(10) + LOST_AFTER);
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true), (ip(3), false)]);
        assert_eq!(absence(&follow, &records), Some(Absence::NodeDown));
        // It is a member again, and has not said yet which of its containers are back; nor has an agent that is started
        // meanwhile heard of it.
        follow.hear(News::Up("node2".into()), at(20));
        assert_eq!(endpoints(&follow, &web, &records), [(ip(2), true), (ip(3), false)]);
        let mut again = Follow::new(follow.known());
        again.configure(&records);
        assert_eq!(endpoints(&again, &web, &records), [(ip(2), true), (ip(3), false)]);
        // Nobody else is left.
        again.hear(said(1, &[word("a", &[])]), at(20));
        assert_eq!(endpoints(&again, &web, &records), [(ip(3), true)]);
        again.hear(said(2, &[word("b", &[5])]), at(21));
        assert_eq!(endpoints(&again, &web, &records), [(ip(5), true)]);
        again.hear(News::Left("node2".into()), at(22));
        again.hear(said(1, &[word("a", &[6])]), at(22));
        assert_eq!(endpoints(&again, &web, &records), [(ip(6), true), (ip(5), false)]);
        again.alone();
        assert_eq!(endpoints(&again, &web, &records), [(ip(6), true), (ip(5), true)]);
    }

    #[test]
    fn what_is_written_by_hand_stays() {
        let records = [record("web", 1, "a", &[2])];
        let mut web = service("web", &records);
        let by_hand = Endpoint { address: ip(50), node: None, ..records[0].at(ip(50)) };
        web.endpoints.insert(0, by_hand.clone());
        let own: Vec<&ServiceContainer> = records.iter().collect();
        assert_eq!(without_containers(&web, &own).endpoints, std::slice::from_ref(&by_hand));
        let mut follow = Follow::default();
        follow.configure(&records);
        // A container that gets an address that is there already makes it no second endpoint.
        follow.hear(said(1, &[word("a", &[50])]), at(0));
        let followed = follow.known().follow(std::slice::from_ref(&web), &records);
        assert_eq!(followed[0].endpoints, [by_hand]);
    }

    /// What happens to an agent.
    #[derive(Debug, Clone)]
    enum Event {
        Configure(Vec<u8>),
        Say(u8, Vec<Option<u8>>),
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            proptest::collection::vec(1..200u8, 3).prop_map(Event::Configure),
            (0..3u8, proptest::collection::vec(proptest::option::of(1..200u8), 1))
                .prop_map(|(node, words)| Event::Say(node, words)),
            Just(Event::Restart),
        ]
    }

    fn three(found: &[u8]) -> Vec<ServiceContainer> {
        (0..3).map(|node| record("web", node, "c", &found[usize::from(node)..=usize::from(node)])).collect()
    }

    proptest! {
        /// Whatever came before and in whichever order: once all nodes have spoken, all know the same.
        #[test]
        fn in_the_end_all_know_what_the_nodes_say(
            events in proptest::collection::vec(event(), 0..20),
            found in proptest::collection::vec(1..200u8, 3),
            words in proptest::collection::vec(proptest::option::of(1..200u8), 3),
            order in Just([0, 1, 2, 3]).prop_shuffle(),
        ) {
            let say = |follow: &mut Follow, node: u8, word_of: Option<u8>| {
                let addresses: Vec<u8> = word_of.into_iter().collect();
                follow.hear(said(node, &[word("c", &addresses)]), at(0));
            };
            let mut follow = Follow::default();
            let mut told = Vec::new();
            for event in events {
                match event {
                    Event::Configure(found) => {
                        told = three(&found);
                        follow.configure(&told);
                    }
                    Event::Say(node, words) => say(&mut follow, node, words[0]),
                    Event::Restart => {
                        let before = follow.known();
                        follow = Follow::new(before.clone());
                        follow.configure(&told);
                        prop_assert_eq!(follow.known(), before);
                    }
                }
            }
            for step in order {
                match step {
                    3 => follow.configure(&three(&found)),
                    node => say(&mut follow, node, words[usize::from(node)]),
                }
            }
            let known = follow.known();
            let addresses: Vec<Vec<IpAddr>> = known.containers.into_iter().map(|k| k.addresses).collect();
            let expected: Vec<Vec<IpAddr>> = words.iter().map(|w| w.iter().map(|l| ip(*l)).collect()).collect();
            prop_assert_eq!(addresses, expected);
        }
    }
}
