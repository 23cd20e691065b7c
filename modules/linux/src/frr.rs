//! FRR on the node, ours or another's. Starts no process.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use homelab_model::{FrrFact, ours};

use crate::package;
use crate::root::Root;

/// Directory of the package's daemons.
const DAEMONS: &str = "/usr/lib/frr";
/// Where the package's own bgpd has its configuration: all daemons' in one file, or one by one.
const CONFIGURATIONS: [&str; 2] = ["/etc/frr/frr.conf", "/etc/frr/bgpd.conf"];

/// FRR, if it is installed.
pub(crate) fn frr(root: &Root) -> Option<FrrFact> {
    let has = |daemon: &str| root.path(DAEMONS).join(daemon).exists();
    if !has("bgpd") {
        return None;
    }
    let others = others(root);
    let bgpd = others.contains("bgpd");
    let texts = CONFIGURATIONS.iter().filter(|_| bgpd);
    let neighbors: BTreeSet<IpAddr> = texts
        .filter_map(|path| fs::read_to_string(root.path(path)).ok())
        .flat_map(|text| neighbors(&text))
        .collect();
    Some(FrrFact {
        version: package::version(root, ours::FRR_PACKAGE),
        ours: package::observe(root, ours::FRR_PACKAGE).is_some(),
        bfd: has("bfdd") && has("zebra"),
        bgpd,
        bfdd: others.contains("bfdd"),
        neighbors: neighbors.into_iter().collect(),
    })
}

/// Which of our daemons run under another name than ours, too.
fn others(root: &Root) -> BTreeSet<&'static str> {
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let entries = fs::read_dir(root.proc("")).into_iter().flatten().flatten();
    let processes = entries.filter(|e| e.file_name().to_str().is_some_and(is_process));
    let daemon = |entry: fs::DirEntry| {
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let comm = read("comm");
        let name = ["bgpd", "bfdd"].into_iter().find(|name| comm.trim_ascii_end() == name.as_bytes())?;
        (!is_ours(&read("cmdline"))).then_some(name)
    };
    processes.filter_map(daemon).collect()
}

/// Whether a command line has our name among its arguments.
fn is_ours(cmdline: &[u8]) -> bool {
    let words: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| {
        (pair[0] == b"-N" || pair[0] == b"--pathspace") && pair[1] == ours::FRR_PATHSPACE.as_bytes()
    })
}

/// Addresses that a configuration names as neighbours.
fn neighbors(text: &str) -> Vec<IpAddr> {
    let neighbor = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "neighbor").then(|| words.next()?.parse().ok())?
    };
    text.lines().filter_map(neighbor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anothers_bgpd_is_told_from_ours() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path()).with_proc(directory.path().join("proc"));
        assert_eq!(frr(&root), None);
        fs::create_dir_all(root.path(DAEMONS)).unwrap();
        for daemon in ["bgpd", "bfdd", "zebra"] {
            fs::write(root.path(DAEMONS).join(daemon), "").unwrap();
        }
        fs::create_dir_all(root.path("/etc/frr")).unwrap();
        let text = "router bgp 65000\n neighbor 192.0.2.7 remote-as 1\n neighbor 2001:db8::1 remote-as 2\n\
                    neighbor 192.0.2.7 password x\n neighbor group peer-group\n";
        fs::write(root.path("/etc/frr/frr.conf"), text).unwrap();
        let process = |pid: u32, cmdline: &[u8]| {
            let directory = root.proc(&pid.to_string());
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("comm"), "bgpd\n").unwrap();
            fs::write(directory.join("cmdline"), cmdline).unwrap();
        };
        process(7, b"/usr/lib/frr/bgpd\0-N\0homelab\0-p\x000\0");
        let fact = frr(&root).unwrap();
        assert_eq!(fact, FrrFact { bfd: true, ..FrrFact::default() });
        process(8, b"/usr/lib/frr/bgpd\0-d\0-A\x00127.0.0.1\0");
        let fact = frr(&root).unwrap();
        let neighbors: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert!(fact.bgpd && !fact.bfdd && !fact.ours && fact.neighbors == neighbors, "{fact:?}");
    }
}
