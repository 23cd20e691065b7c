//! Clusters for tests of who announces what.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::IpAddr;

use homelab_model::service::Service;
use homelab_model::{
    L2Advertisement, LABEL_HOSTNAME, Labels, LbUnfit, PreferredNode, Selector, SpeakerNode, SpeakerSpec,
};
use homelab_speaker::candidates::{Candidate, candidates};
use homelab_speaker::election::{Owned, elect};
use homelab_speaker::mac::Mac;
use homelab_speaker::state::{Interface, MemberState, Members};
use serde_json::{Value, json};

/// Nodes node1, node2, .. with eth0 in 192.168.50.0/24 and fd00:50::/64 and eth1 in 192.168.60.0/24, and a pool `l2-test` of
/// 192.168.50.200 to .250 and fd00:50::f:0 to ::f:ffff.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    pub(crate) speaker: SpeakerSpec,
    pub(crate) members: Members,
    pub(crate) services: Vec<Service>,
}

/// MAC address of an interface: nodes count from 1.
pub(crate) fn mac(node: u8, interface: u8) -> Mac {
    Mac([2, 0, 0, 0, interface, node])
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn selector(pairs: &[(&str, &str)]) -> Selector {
    Selector { match_labels: labels(pairs), ..Selector::default() }
}

pub(crate) fn node(name: &str) -> Selector {
    selector(&[(LABEL_HOSTNAME, name)])
}

pub(crate) fn prefer(weight: u8, preference: Selector) -> PreferredNode {
    PreferredNode { weight, preference }
}

/// An advertisement of all pools to all.
pub(crate) fn all() -> L2Advertisement {
    L2Advertisement { name: "all".to_owned(), ..L2Advertisement::default() }
}

/// A LoadBalancer service `default/NAME` with what `more` says.
pub(crate) fn service(name: &str, addresses: &[&str], more: Value) -> Service {
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let mut all = json!({
        "namespace": "default", "name": name, "type": "LoadBalancer", "loadBalancer": ingress,
        "ports": [{ "port": 80 }],
    });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

/// An endpoint for [`service`].
pub(crate) fn endpoint(address: &str, node: &str, more: Value) -> Value {
    let mut all = json!({ "address": address, "node": node, "ports": { "": 8080 } });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

pub(crate) fn pool(name: &str, ranges: &[(&str, &str)]) -> homelab_model::Pool {
    let ranges: Vec<Value> =
        ranges.iter().map(|(first, last)| json!({ "first": first, "last": last })).collect();
    let pool = json!({ "name": name, "addresses": ranges, "autoAssign": true, "avoidBuggyIps": false });
    serde_json::from_value(pool).unwrap()
}

impl Cluster {
    pub(crate) fn of(nodes: u8) -> Cluster {
        let mut cluster = Cluster::default();
        let ranges = [("192.168.50.200", "192.168.50.250"), ("fd00:50::f:0", "fd00:50::f:ffff")];
        cluster.speaker.pools.push(pool("l2-test", &ranges));
        cluster.speaker.advertisements.push(all());
        for number in 1..=nodes {
            let name = format!("node{number}");
            cluster.speaker.nodes.push(SpeakerNode {
                name: name.clone(),
                address: ip(&format!("192.168.50.{number}")),
                labels: labels(&[(LABEL_HOSTNAME, &name)]),
            });
            let interface = |index: u8, networks: &[String]| Interface {
                name: format!("eth{index}"),
                mac: mac(number, index),
                networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            };
            let lan = [format!("192.168.50.{number}/24"), format!("fd00:50::{number:x}/64")];
            let state = MemberState {
                ready: true,
                interfaces: vec![interface(0, &lan), interface(1, &[format!("192.168.60.{number}/24")])],
                ..MemberState::default()
            };
            cluster.members.insert(name, state);
        }
        cluster
    }

    pub(crate) fn with(mut self, service: Service) -> Cluster {
        self.services.push(service);
        self
    }

    /// Replaces the advertisements.
    pub(crate) fn advertise(&mut self, advertisements: Vec<L2Advertisement>) -> &mut Cluster {
        self.speaker.advertisements = advertisements;
        self
    }

    pub(crate) fn label(&mut self, node: &str, key: &str, value: Option<&str>) -> &mut Cluster {
        let node = self.speaker.nodes.iter_mut().find(|n| n.name == node).unwrap();
        match value {
            Some(value) => node.labels.insert(key.to_owned(), value.to_owned()),
            None => node.labels.remove(key),
        };
        self
    }

    pub(crate) fn member(&mut self, node: &str) -> &mut MemberState {
        self.members.get_mut(node).unwrap()
    }

    pub(crate) fn candidate(&self, address: &str) -> Candidate {
        let all = candidates(&self.services, &self.speaker);
        all.into_iter().find(|candidate| candidate.address == ip(address)).unwrap()
    }

    pub(crate) fn owned(&self, address: &str) -> Owned {
        elect(&[self.candidate(address)], &self.members).remove(0)
    }

    pub(crate) fn owner(&self, address: &str) -> Option<String> {
        self.owned(address).owner
    }

    /// LbUnfit each of the nodes may not announce an address.
    pub(crate) fn why(&self, address: &str) -> Vec<(String, LbUnfit)> {
        self.candidate(address).placement.excluded.clone()
    }

    /// Names of all nodes but these, in order.
    pub(crate) fn others(&self, but: &[&str]) -> Vec<String> {
        self.speaker.nodes.iter().map(|n| n.name.clone()).filter(|n| !but.contains(&n.as_str())).collect()
    }
}
