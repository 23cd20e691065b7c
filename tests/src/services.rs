//! Who answers at a service's address, and whom it saw.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use homelab_model::service::Service;
use serde_json::Value;

use crate::{Answer, Check, Cluster, Place, Pod, Server};

/// Where all servers of pods listen.
pub const SERVER: u16 = 7000;

/// Where a service's packets go.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Who may answer: all of them have to.
    pub names: &'a [&'a str],
    /// By which protocols.
    pub kinds: &'a [&'static str],
}

impl<'a> To<'a> {
    /// By TCP and UDP.
    pub fn new(address: impl Into<IpAddr>, port: u16, names: &'a [&'a str]) -> To<'a> {
        To { address: address.into(), port, names, kinds: &["tcp", "udp"] }
    }

    /// By other protocols.
    #[must_use]
    pub fn by(self, kinds: &'a [&'static str]) -> To<'a> {
        To { kinds, ..self }
    }

    /// A try to reach it.
    pub fn check(&self, kind: &'static str) -> Check {
        Check::new(kind, &Server { name: String::new(), address: self.address }).port(self.port)
    }
}

impl Cluster {
    /// Asks a place often enough that every endpoint has had its chance; gives what answered.
    pub fn ask(&self, from: &Place, kind: &'static str, to: &To<'_>) -> Vec<Answer> {
        self.probe(from, &vec![to.check(kind); 12])
    }

    /// Asks once; gives who answered.
    #[track_caller]
    pub fn ask_once(&self, from: &Place, kind: &'static str, to: &To<'_>) -> String {
        let answer = self.probe(from, &[to.check(kind)]).remove(0);
        assert_eq!(answer.error, "", "{} -> {}:{} {kind}", from.name, to.address, to.port);
        answer.name
    }

    /// All endpoints of the service answer, and nobody else; each sees one of `sources`.
    #[track_caller]
    pub fn assert_served(&self, from: &Place, to: &To<'_>, sources: impl Fn(&str) -> Vec<IpAddr>) {
        for &kind in to.kinds {
            let what = format!("{} -> {}:{} {kind}", from.name, to.address, to.port);
            let mut seen = BTreeSet::new();
            // By chance one of three is left out in one of a hundred tries.
            for _ in 0..5 {
                for answer in self.ask(from, kind, to) {
                    assert_eq!(answer.error, "", "{what}");
                    assert!(to.names.contains(&answer.name.as_str()), "{what}: {answer:?}");
                    let peer: IpAddr = answer.peer.parse().expect("an address");
                    assert!(sources(&answer.name).contains(&peer), "{what}: {answer:?}");
                    seen.insert(answer.name);
                }
                if seen.len() == to.names.len() {
                    break;
                }
            }
            assert_eq!(seen.len(), to.names.len(), "{what}: {seen:?} of {:?}", to.names);
        }
    }

    /// Only the endpoints answer, whoever of the lab they see: a node, one of `pods`, or the client.
    #[track_caller]
    pub fn assert_answers(
        &self,
        from: &Place,
        to: &To<'_>,
        nodes: &BTreeMap<String, Vec<IpAddr>>,
        pods: &[Pod],
    ) {
        let mut anybody: Vec<IpAddr> = nodes.values().flatten().copied().collect();
        anybody.extend(pods.iter().flat_map(|pod| pod.addresses.clone()));
        anybody.extend(self.on_lan("client"));
        self.assert_served(from, to, |_| anybody.clone());
    }

    /// Nobody answers: `refused` or `timed out`.
    #[track_caller]
    pub fn assert_fails(&self, from: &Place, to: &To<'_>, how: &str) {
        // Together: what is dropped is waited for.
        let checks: Vec<Check> = to.kinds.iter().map(|kind| to.check(kind).fails()).collect();
        for (check, mut answer) in checks.iter().zip(self.probe(from, &checks)) {
            let kind = check.kind;
            // The kernel sends few ICMP errors to one host in a second.
            for _ in 0..8 {
                if kind != "tcp" && how == "refused" && answer.error == "timed out" {
                    std::thread::sleep(Duration::from_secs(1));
                    answer = self.probe(from, std::slice::from_ref(check)).remove(0);
                }
            }
            // A node's own datagrams are refused, or dropped, where they are sent: both are an error there.
            let there = from.netns.is_none() && kind != "tcp" && answer.error.contains("not permitted");
            assert!(
                there || answer.error.contains(how),
                "{} -> {}:{} {kind}: {answer:?}",
                from.name,
                to.address,
                to.port
            );
        }
    }

    /// The services as the nodes were told them.
    #[track_caller]
    pub fn told(&self) -> Vec<Service> {
        self.spec("node1").services
    }

    /// A service's cluster addresses.
    #[track_caller]
    pub fn cluster_ips(&self, name: &str) -> Vec<IpAddr> {
        self.told().into_iter().find(|s| s.name == name).expect("the service").cluster_ips
    }

    /// Addresses that a node's masquerade can have towards a pod: the bridge's, the tunnel's, its own.
    #[track_caller]
    pub fn addresses_of(&self, node: &str) -> Vec<IpAddr> {
        let text = self.sh(node, "ip -json address show");
        let links: Value = serde_json::from_str(&text).expect("JSON");
        let all = links
            .as_array()
            .expect("links")
            .iter()
            .flat_map(|l| l["addr_info"].as_array().cloned().unwrap_or_default());
        all.filter_map(|a| a["local"].as_str()?.parse().ok()).collect()
    }

    /// A host's addresses on the LAN: IPv4, IPv6.
    #[track_caller]
    pub fn on_lan(&self, host: &str) -> [IpAddr; 2] {
        let v4 = self.lab.address(host).expect("address");
        [v4.into(), self.lab.address6(host).expect("address").into()]
    }

    /// Has the client send packets for an address of the LAN that nobody announces to a node.
    #[track_caller]
    pub fn via(&self, address: &str, node: &str) {
        let node = self.lab.address(node).expect("address");
        self.sh("client", &format!("ip route replace {address} via {node}"));
    }
}
