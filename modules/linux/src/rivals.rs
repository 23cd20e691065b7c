//! Other service proxies, and other programs for load-balancer addresses, on the node. Starts no process: chains come by
//! netlink, the rest from `/proc`.

use std::collections::BTreeSet;
use std::fs;

use homelab_model::{Balancer, Rival};

use crate::kernel::Snapshot;
use crate::root::Root;

/// All of them, those that were found among chains too. Sorted.
pub(crate) fn rivals(
    root: &Root,
    snapshot: &Snapshot,
    mut found: BTreeSet<Rival>,
) -> (Vec<Rival>, Vec<Balancer>) {
    let (kube_proxy, balancers) = processes(root);
    if kube_proxy {
        found.insert(Rival::Process);
    }
    if snapshot.links.iter().any(|link| link.name == "kube-ipvs0") {
        found.insert(Rival::Ipvs);
    }
    found.extend(["ip", "ip6"].into_iter().filter(|family| legacy(root, family)).map(|family| {
        let family = family.to_owned();
        Rival::IptablesLegacy { family }
    }));
    (found.into_iter().collect(), balancers.into_iter().collect())
}

/// Whether a process `kube-proxy` runs, and which programs for load-balancer addresses, in whichever container.
fn processes(root: &Root) -> (bool, BTreeSet<Balancer>) {
    let (mut kube_proxy, mut balancers) = (false, BTreeSet::new());
    let Ok(entries) = fs::read_dir(root.proc("")) else { return (kube_proxy, balancers) };
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    for entry in entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_process)) {
        let Ok(name) = fs::read(entry.path().join("comm")) else { continue };
        // Names are anybody's; what the programs are told by their manifests is not.
        let told = |words: &[&str]| {
            let all = fs::read(entry.path().join("environ")).unwrap_or_default();
            let has = |word: &&str| all.split(|byte| *byte == 0).any(|v| v.starts_with(word.as_bytes()));
            words.iter().all(has)
        };
        match name.trim_ascii_end() {
            b"kube-proxy" => kube_proxy = true,
            b"speaker" if told(&["METALLB_"]) => {
                balancers.insert(Balancer::MetalLb);
            }
            b"entry" if told(&["SRC_PORT=", "DEST_PROTO=", "DEST_IP"]) => {
                balancers.insert(Balancer::ServiceLb);
            }
            b"kube-vip" if told(&["svc_enable=true"]) => {
                balancers.insert(Balancer::KubeVip);
            }
            b"lbnodeagent" => {
                balancers.insert(Balancer::PureLb);
            }
            _ => {}
        }
    }
    (kube_proxy, balancers)
}

/// Whether iptables-legacy has a table `nat` here, and the kernel what kube-proxy's rules in it are made of: comments,
/// and the mark for masquerading. Docker's have neither.
fn legacy(root: &Root, family: &str) -> bool {
    let lists = |what: &str, word: &str| {
        let text = fs::read_to_string(root.proc(&format!("net/{family}_tables_{what}"))).unwrap_or_default();
        text.lines().any(|line| line == word)
    };
    lists("names", "nat") && lists("matches", "comment") && lists("targets", "MARK")
}
