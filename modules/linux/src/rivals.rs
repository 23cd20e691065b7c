//! Other service proxies on the node. Starts no process: chains come by netlink, the rest from `/proc`.

use std::collections::BTreeSet;
use std::fs;

use homelab_model::Rival;

use crate::kernel::Snapshot;
use crate::root::Root;

/// All of them, those that were found among chains too. Sorted.
pub(crate) fn rivals(root: &Root, snapshot: &Snapshot, mut found: BTreeSet<Rival>) -> Vec<Rival> {
    if runs(root) {
        found.insert(Rival::Process);
    }
    if snapshot.links.iter().any(|link| link.name == "kube-ipvs0") {
        found.insert(Rival::Ipvs);
    }
    found.extend(["ip", "ip6"].into_iter().filter(|family| legacy(root, family)).map(|family| {
        let family = family.to_owned();
        Rival::IptablesLegacy { family }
    }));
    found.into_iter().collect()
}

/// Whether a process `kube-proxy` runs, in whichever container.
fn runs(root: &Root) -> bool {
    let Ok(entries) = fs::read_dir(root.proc("")) else { return false };
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let mut processes = entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_process));
    processes.any(|entry| fs::read(entry.path().join("comm")).is_ok_and(|comm| comm == b"kube-proxy\n"))
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
