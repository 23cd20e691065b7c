//! What the machines' agents say of load-balancer addresses, and a simple election among them.

use std::net::IpAddr;

use homelab_model::{
    Holder, LbAddress, LbInterface, LbMember, LbNode, LbReport, LbStanding, LbState, LbUnfit,
};

use super::{Lan, THREE};

/// The node's clock, milliseconds since 1970.
const NOW: u64 = 1_764_098_400_000;

fn mac(name: &str) -> String {
    format!("02:00:00:00:00:0{}", name.trim_start_matches("node"))
}

/// What `node` says where these addresses have these owners.
pub(crate) fn says(node: &str, owners: &[(&str, &str)]) -> LbNode {
    let members = THREE.map(|(name, _)| LbMember {
        name: name.into(),
        standing: if name == node { LbStanding::Itself } else { LbStanding::Alive },
        since_unix_ms: (name != node).then_some(NOW - 600_000),
        ready: true,
        cordoned: false,
        interfaces: vec![("eth0".into(), mac(name))],
    });
    let address = |(address, owner): &(&str, &str)| LbAddress {
        address: address.parse().unwrap(),
        services: vec!["default/web".into()],
        pool: Some("home".into()),
        owner: Some((*owner).to_owned()),
        since_unix_ms: Some(NOW - 90_000),
        moves: 0,
        conflict: None,
        interfaces: if *owner == node { vec![announced(node)] } else { Vec::new() },
        unfit: Vec::new(),
    };
    let report = LbReport {
        bgp: None,
        node: node.into(),
        time_unix_ms: NOW,
        settled: true,
        members: members.to_vec(),
        addresses: owners.iter().map(address).collect(),
    };
    LbNode { time_unix_ms: NOW, cordoned: None, told: true, agent: true, report: Some(report) }
}

fn announced(node: &str) -> LbInterface {
    LbInterface {
        name: "eth0".into(),
        mac: Some(mac(node)),
        state: LbState::Announced,
        since_unix_ms: NOW - 90_000,
        answered: 0,
        announcements: 6,
        claims: 0,
    }
}

impl Lan {
    /// All machines say that these addresses have these owners.
    pub(crate) fn announce(&self, owners: &[(&str, &str)]) {
        for (name, address) in THREE {
            self.with(address, |m| m.balancers = says(name, owners));
        }
    }

    /// A machine is cordoned, or no longer: whether that is new. The agents hear of it and elect anew.
    pub(super) fn cordon(&self, address: IpAddr, on: bool, by: &Holder) -> bool {
        let machines: Vec<_> = self.machines.lock().unwrap().values().cloned().collect();
        let find = |a: IpAddr| machines.iter().find(|m| m.lock().unwrap().address == a).cloned();
        let machine = find(address).unwrap();
        let name = machine.lock().unwrap().hostname.clone();
        let changed = machine.lock().unwrap().balancers.cordoned.is_some() != on;
        if changed {
            machine.lock().unwrap().balancers.cordoned = on.then(|| by.clone());
        }
        for machine in &machines {
            let mut machine = machine.lock().unwrap();
            if let Some(report) = &mut machine.balancers.report {
                elect(report, &name, on);
            }
        }
        changed
    }
}

fn elect(report: &mut LbReport, node: &str, on: bool) {
    for member in report.members.iter_mut().filter(|member| member.name == node) {
        member.cordoned = on;
    }
    let next = report.members.iter().find(|member| !member.cordoned).map(|member| member.name.clone());
    for address in &mut report.addresses {
        let moves = match &address.owner {
            Some(owner) => on && owner == node,
            None => !on,
        };
        if moves {
            address.owner = next.clone();
            address.moves += 1;
            address.since_unix_ms = next.as_ref().map(|_| NOW);
            let own = next.as_deref() == Some(report.node.as_str());
            address.interfaces = if own { vec![announced(&report.node)] } else { Vec::new() };
        }
        address.unfit = report
            .members
            .iter()
            .filter(|member| member.cordoned)
            .map(|member| (member.name.clone(), LbUnfit::Cordoned))
            .collect();
    }
}
