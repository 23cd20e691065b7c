//! Load-balancer addresses as the nodes see them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_model::{LbReport, LbStanding, LbWhere, ours};

use crate::Cluster;

/// Addresses and their owners.
pub type Owners = BTreeMap<IpAddr, String>;

/// Longer than a node needs to start, to hear of the others, and to probe its addresses.
const LONG: Duration = Duration::from_secs(60);

impl Cluster {
    /// How a node sees things; None: its agent announces nothing, or does not run.
    pub fn lb(&self, node: &str) -> Option<LbReport> {
        let output = self.lab.sh(node, &format!("cat {}", ours::LB_REPORT)).ok()?;
        serde_json::from_str(&output.stdout).ok()
    }

    /// Waits until `nodes` are members to each other, agree on the owner of every address, and all owners announce.
    /// Gives the owners.
    #[track_caller]
    pub fn lb_settled(&self, nodes: &[&str]) -> Owners {
        self.lb_until(nodes, "they agree", |_| true)
    }

    /// The same, and the owners are as they should be.
    #[track_caller]
    pub fn lb_until(&self, nodes: &[&str], what: &str, met: impl Fn(&Owners) -> bool) -> Owners {
        let start = Instant::now();
        loop {
            let reports: Vec<Option<LbReport>> = nodes.iter().map(|node| self.lb(node)).collect();
            if let Some(owners) = settled(nodes, &reports).filter(&met) {
                return owners;
            }
            assert!(start.elapsed() < LONG, "{nodes:?}: {what}: {reports:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn settled(nodes: &[&str], reports: &[Option<LbReport>]) -> Option<Owners> {
    let mut all: Option<Owners> = None;
    let mut announced = Owners::new();
    for (node, report) in nodes.iter().zip(reports) {
        let report = report.as_ref().filter(|report| report.settled)?;
        let lives = |name: &str| {
            report
                .members
                .iter()
                .any(|m| m.name == name && matches!(m.standing, LbStanding::Alive | LbStanding::Itself))
        };
        if !nodes.iter().all(|name| lives(name)) {
            return None;
        }
        let owners: Option<Owners> =
            report.addresses.iter().map(|a| Some((a.address, a.owner.clone()?))).collect();
        let owners = owners?;
        if all.as_ref().is_some_and(|others| *others != owners) {
            return None;
        }
        for address in report.addresses.iter().filter(|a| a.state() == LbWhere::Announced) {
            announced.insert(address.address, (*node).to_owned());
        }
        all = Some(owners);
    }
    all.filter(|owners| *owners == announced)
}
