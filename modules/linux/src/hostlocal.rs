//! The store of the reference IPAM plugin host-local, which flannel, k3s and podman's CNI networks use: a file per address
//! in a directory per network, `<address>` with the container's id, `\r\n` and the name of its interface. It is read only.
//!
//! Nobody frees what is left there after a crash or a reboot (k8s#108121), so a file alone means little. Its container is
//! taken to be there while the node has the link that libcni's record of the ADD names; where there is no such record,
//! while the node has any link named as the plugin `bridge` names its.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use homelab_model::HeldAddress;
use ipnet::IpNet;
use serde_json::Value;

use crate::root::Root;

/// Directories of stores: host-local's own, and the one that is lost at a reboot, as some distributions set it.
const STORES: [&str; 2] = ["/var/lib/cni/networks", "/run/cni-ipam-state"];
/// Where libcni notes the results of ADDs: `<network>-<container>-<interface>`.
const RESULTS: &str = "/var/lib/cni/results";
/// Beginning of the names that the plugin `bridge` gives the node's ends.
const VETH: &str = "veth";

/// An address in a store; whose it is has not been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The address.
    pub address: IpAddr,
    network: String,
    path: PathBuf,
}

/// What is in the stores, of the addresses in `ranges`. Costs little where there are none.
pub fn stored(root: &Root, ranges: &[IpNet]) -> Vec<Stored> {
    let mut found = Vec::new();
    for network in STORES.iter().filter_map(|store| fs::read_dir(root.path(store)).ok()).flatten().flatten() {
        let Ok(files) = fs::read_dir(network.path()) else { continue };
        let name = network.file_name().to_string_lossy().into_owned();
        found.extend(files.flatten().filter_map(|file| {
            // Others (`lock`, `last_reserved_ip.0`) are no addresses.
            let address: IpAddr = file.file_name().to_str()?.parse().ok()?;
            let wanted = ranges.iter().any(|range| range.contains(&address));
            wanted.then(|| Stored { address, network: name.clone(), path: file.path() })
        }));
    }
    found.sort_by_key(|stored| stored.address);
    found
}

impl Stored {
    /// Who holds the address; None if the container is gone. `links` are the names of the node's links.
    pub fn holder(&self, root: &Root, links: &BTreeSet<String>) -> Option<HeldAddress> {
        let text = fs::read_to_string(&self.path).ok()?;
        let mut lines = text.lines().map(str::trim);
        let container = lines.next().filter(|id| !id.is_empty())?.to_owned();
        // A name from a file is no path.
        let plain = |text: &&str| !text.is_empty() && !text.contains('/');
        let interface = lines.next().filter(plain).unwrap_or("eth0");
        let record = Some(container.as_str()).filter(plain).and_then(|id| {
            let path = format!("{RESULTS}/{}-{id}-{interface}", self.network);
            serde_json::from_slice::<Value>(&fs::read(root.path(&path)).ok()?).ok()
        });
        let alive = match record.as_ref().map(ends).filter(|ends| !ends.is_empty()) {
            Some(ends) => ends.iter().any(|end| links.contains(*end)),
            None => links.iter().any(|link| link.starts_with(VETH)),
        };
        alive.then(|| HeldAddress { network: self.network.clone(), container, address: self.address })
    }
}

/// The node's ends of pairs in libcni's record of an ADD: interfaces in no sandbox, the bridge left out.
fn ends(record: &Value) -> Vec<&str> {
    let interfaces = record["result"]["interfaces"].as_array();
    let outside = |i: &&Value| i["sandbox"].as_str().unwrap_or_default().is_empty();
    interfaces
        .into_iter()
        .flatten()
        .filter(outside)
        .filter_map(|interface| interface["name"].as_str())
        .filter(|name| name.starts_with(VETH))
        .collect()
}

/// All addresses that host-local holds for containers that are there.
pub(crate) fn held(root: &Root, links: &BTreeSet<String>) -> Vec<HeldAddress> {
    let everything: Vec<IpNet> =
        ["0.0.0.0/0", "::/0"].iter().filter_map(|range| range.parse().ok()).collect();
    stored(root, &everything).iter().filter_map(|stored| stored.holder(root, links)).collect()
}

/// The ranges that flannel gave the node: `FLANNEL_SUBNET=10.244.3.1/24`, `FLANNEL_IPV6_SUBNET=...`.
pub(crate) fn flannel_subnets(root: &Root) -> Vec<IpNet> {
    let text = fs::read_to_string(root.path("/run/flannel/subnet.env")).unwrap_or_default();
    let subnet = |line: &str| {
        let (key, value) = line.split_once('=')?;
        ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].contains(&key.trim()).then(|| value.trim().parse().ok())?
    };
    text.lines().filter_map(subnet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipam_leak_addresses_of_containers_that_are_gone_are_free() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let write = |path: &str, text: &str| root.write(path, text);
        let links = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(held(&root, &links(&["veth1"])), []);
        assert_eq!(flannel_subnets(&root), []);
        write("/var/lib/cni/networks/cbr0/10.244.3.7", "alive\r\neth0");
        write("/var/lib/cni/networks/cbr0/10.244.3.8", "gone\r\neth0");
        write("/var/lib/cni/networks/cbr0/10.244.3.9", "old-format");
        write("/var/lib/cni/networks/cbr0/10.244.3.10", "../../etc/passwd\r\n../eth0");
        write("/var/lib/cni/networks/cbr0/10.244.3.11", "");
        write("/var/lib/cni/networks/cbr0/last_reserved_ip.0", "10.244.3.11");
        write("/var/lib/cni/networks/cbr0/lock", "");
        write("/run/cni-ipam-state/other/fd00::5", "six\r\nnet1\r\n");
        let record = |veth: &str| {
            format!(
                "{{\"kind\":\"cniCacheV1\",\"result\":{{\"interfaces\":[{{\"name\":\"cni0\"}},\
                 {{\"name\":\"{veth}\"}},{{\"name\":\"eth0\",\"sandbox\":\"/var/run/netns/x\"}}]}}}}"
            )
        };
        write("/var/lib/cni/results/cbr0-alive-eth0", &record("veth1"));
        write("/var/lib/cni/results/cbr0-gone-eth0", &record("veth2"));
        write("/var/lib/cni/results/other-six-net1", &record("veth3"));
        let addresses = |found: Vec<HeldAddress>| {
            found.iter().map(|held| format!("{} {}", held.address, held.container)).collect::<Vec<_>>()
        };
        // Of two there is no record: they count while any such link is there.
        assert_eq!(
            addresses(held(&root, &links(&["eth0", "veth1"]))),
            ["10.244.3.7 alive", "10.244.3.9 old-format", "10.244.3.10 ../../etc/passwd"]
        );
        assert_eq!(addresses(held(&root, &links(&["eth0", "hl1"]))), [""; 0]);
        assert_eq!(addresses(held(&root, &links(&["veth3"]))).len(), 3);
        let of = |range: &str| stored(&root, &[range.parse().unwrap()]).len();
        assert_eq!((of("10.244.3.0/24"), of("10.244.3.8/31"), of("fd00::/64")), (5, 2, 1));
        write(
            "/run/flannel/subnet.env",
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\n\
             FLANNEL_IPV6_SUBNET=fd00:3::1/64\n",
        );
        let nets: Vec<String> = flannel_subnets(&root).iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.244.3.1/24", "fd00:3::1/64"]);
    }
}
