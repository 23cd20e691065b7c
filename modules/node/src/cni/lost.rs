//! Attachments whose reservations are lost: the store was deleted, or a part of it. A pod's link says whose it is and by which
//! runtime, the kernel which addresses the pod has: from these a reservation is made anew. A link without a reservation is
//! never one of an ADD that is under way, since that reserves first.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use homelab_cni::holder_by_link;
use homelab_cni::ipam::{Entry, Holder};
use homelab_cni::{CniError, Network};
use homelab_linux::LinkInfo;
use homelab_linux::pod::PodSocket;
use homelab_model::{PodMarks, ours};

use super::attach::kernel;
use super::guard;
use super::hostport::Claims;
use super::store::{Store, network_names};

/// The node's ends of pods.
fn pods(host: &mut PodSocket) -> Result<Vec<LinkInfo>, CniError> {
    let mut links = host.links().map_err(kernel)?;
    links.retain(|link| link.kind == "veth" && link.alias.starts_with(ours::POD_ALIAS));
    Ok(links)
}

/// What the kernel has on the pod's end, IPv4 first, without link-local addresses.
fn addresses(host: &mut PodSocket, link: &LinkInfo) -> Result<Vec<IpAddr>, CniError> {
    let found = host.addresses_of_other(link).map_err(kernel)?;
    let mut addresses: Vec<IpAddr> = found.into_iter().map(|net| net.addr()).collect();
    addresses.retain(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// Reservations of all pods that have addresses of a network's ranges, whatever list they came by: where no reservation is, and
/// so no pod should be. Their ports are noted, too.
pub(super) fn living(
    data_dir: &Path,
    network: &Network,
    name: &str,
) -> Result<Vec<(Entry, Holder)>, CniError> {
    let mut host = PodSocket::open().map_err(kernel)?;
    let mut living = Vec::new();
    for link in pods(&mut host)? {
        let mut addresses = addresses(&mut host, &link)?;
        addresses.retain(|address| network.ranges.iter().any(|range| range.contains(address)));
        if addresses.is_empty() {
            continue;
        }
        // Of another list, or cut: its addresses are held by nobody of a name.
        let holder = holder_by_link(name, &link.name, &link.alias).unwrap_or_else(|| Holder {
            container: link.name.clone(),
            interface: "?".to_owned(),
            pod: None,
            runtime: None,
        });
        living.push((Entry { owner: link.name, addresses }, holder));
    }
    if !living.is_empty() {
        Claims::of(data_dir)?.adopt(&mut host)?;
    }
    Ok(living)
}

/// Takes away the attachments of a network that have links and no reservations, but for those of `keep`. Goes on after an
/// error.
pub(super) fn detach_unreserved(
    data_dir: &Path,
    name: &str,
    keep: &BTreeSet<String>,
) -> Result<(), CniError> {
    let mut host = PodSocket::open().map_err(kernel)?;
    // Before the reservations: see above.
    let mut links = pods(&mut host)?;
    links
        .retain(|link| !keep.contains(&link.name) && holder_by_link(name, &link.name, &link.alias).is_some());
    if links.is_empty() {
        return Ok(());
    }
    let reserved = reserved(data_dir)?;
    let unreserved = links.iter().filter(|link| !reserved.contains(&link.name));
    let mut first = Ok(());
    for link in unreserved {
        let detached = detach(&mut host, data_dir, link);
        first = first.and(detached);
    }
    first
}

/// Owners of all reservations.
fn reserved(data_dir: &Path) -> Result<BTreeSet<String>, CniError> {
    let mut owners = BTreeSet::new();
    for store in Store::of_every_boot(data_dir)? {
        owners.extend(store.entries()?.into_iter().map(|entry| entry.owner));
    }
    Ok(owners)
}

/// As DEL does, by the link alone.
fn detach(host: &mut PodSocket, data_dir: &Path, link: &LinkInfo) -> Result<(), CniError> {
    let ports = Claims::of(data_dir)?.release(&link.name).and_then(|_| Claims::purge(&link.name));
    host.delete(link).map_err(kernel)?;
    if let Some(own) = PodMarks::of_alias(&link.alias).own {
        guard::remove(&link.name, Some(&own))?;
    }
    ports
}

/// What [`recover`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Pods that have a reservation again.
    pub(crate) reserved: usize,
    /// Links that are no pod's any more.
    pub(crate) deleted: usize,
    /// Links of pods whose addresses are reserved for others.
    pub(crate) doubled: Vec<String>,
}

/// Gives every pod that lost its reservation one, in the networks of the store and in that of the cluster; deletes links
/// whose other end is back in the node's namespace, without an address: what a runtime left of a pod. A pod of which its
/// runtime knows nothing goes later as others do, since the link says which runtime that is.
pub(crate) fn recover(
    data_dir: &Path,
    cluster: impl FnOnce() -> Option<String>,
) -> Result<Recovered, CniError> {
    let mut host = PodSocket::open().map_err(kernel)?;
    let mut links = pods(&mut host)?;
    let mut recovered = Recovered::default();
    if !links.is_empty() {
        let reserved = reserved(data_dir)?;
        links.retain(|link| !reserved.contains(&link.name));
    }
    if links.is_empty() {
        return Ok(recovered);
    }
    let networks: BTreeSet<String> = network_names(data_dir)?.into_iter().chain(cluster()).collect();
    for name in networks {
        let mut lost = Vec::new();
        for link in &links {
            let Some(holder) = holder_by_link(&name, &link.name, &link.alias) else { continue };
            let addresses = addresses(&mut host, link)?;
            if !addresses.is_empty() {
                lost.push((Entry { owner: link.name.clone(), addresses }, holder));
            } else if link.other.is_some() && link.other_netns.is_none() {
                detach(&mut host, data_dir, link)?;
                recovered.deleted += 1;
            }
        }
        if lost.is_empty() {
            continue;
        }
        let doubled = Store::named(data_dir, &name)?.lock()?.restore(&lost)?;
        recovered.reserved += lost.len() - doubled.len();
        recovered.doubled.extend(doubled);
    }
    if recovered.reserved > 0 {
        Claims::of(data_dir)?.adopt(&mut host)?;
    }
    Ok(recovered)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests")]
mod tests {
    use std::fs;
    use std::process::Command;

    use homelab_cni::{Attachment, ipam};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn run(command: &str) -> String {
        let output = Command::new("sh").args(["-ec", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A node in a namespace of its own, with pods in others that live as long as their processes.
    struct Stage {
        data: tempfile::TempDir,
        pods: Vec<std::process::Child>,
    }

    impl Stage {
        /// Runs `work` on a thread inside.
        fn with(work: impl FnOnce(&mut Stage) + Send) {
            std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        unshare(CloneFlags::CLONE_NEWNET).unwrap();
                        let mut stage = Stage { data: tempfile::tempdir().unwrap(), pods: Vec::new() };
                        work(&mut stage);
                        for mut pod in stage.pods {
                            pod.kill().unwrap();
                            pod.wait().unwrap();
                        }
                    })
                    .join()
                    .unwrap();
            });
        }

        /// What ADD makes of a pod in the kernel: its link, with `runtime`'s mark and addresses. Where `id` is `own`, in the
        /// node's namespace.
        fn pod(&mut self, id: &str, runtime: Option<&str>, addresses: &[&str]) -> String {
            let link = ipam::owner("home", id, "eth0");
            let marks = PodMarks { runtime: runtime.map(str::to_owned), ..PodMarks::default() };
            let attachment = Attachment { container: id.to_owned(), ifname: "eth0".to_owned() };
            let alias = homelab_cni::alias(&attachment, &marks);
            let (inside, netns) = if id.starts_with("own") {
                (String::new(), String::new())
            } else {
                let pod = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap();
                let pid = pod.id();
                self.pods.push(pod);
                let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
                while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other == own) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                (format!("nsenter -t {pid} -n "), format!("netns {pid}"))
            };
            let end = if inside.is_empty() { format!("p{}", self.links().len()) } else { "eth0".to_owned() };
            run(&format!("ip link add {link} type veth peer name {end} {netns}"));
            run(&format!("ip link set {link} alias '{alias}' up && {inside} ip link set {end} up"));
            for address in addresses {
                run(&format!("{inside} ip address add {address} dev {end}"));
            }
            link
        }

        fn links(&self) -> Vec<String> {
            pods(&mut PodSocket::open().unwrap()).unwrap().into_iter().map(|link| link.name).collect()
        }

        fn recover(&self) -> Recovered {
            recover(self.data.path(), || Some("home".to_owned())).unwrap()
        }

        fn holders(&self) -> Vec<(Entry, Holder)> {
            let mut holders = Store::named(self.data.path(), "home").unwrap().holders().unwrap();
            holders.sort_by(|a, b| a.1.container.cmp(&b.1.container));
            holders
        }
    }

    #[test]
    fn running_pods_without_reservations_get_them_back_with_their_runtime() {
        Stage::with(|stage| {
            assert_eq!(stage.recover(), Recovered::default());
            let one = stage.pod("one", Some("0a1b2c3d"), &["10.9.0.2/24", "fd09::2/64"]);
            // As with CNI_NETNS_OVERRIDE: an attachment of the node itself.
            let own = stage.pod("own", None, &["10.9.0.3/24"]);
            // Nothing says what these are: an ADD that was killed; a stranger's network.
            let half = stage.pod("half", None, &[]);
            run("ip link add x type veth peer name y && ip link set x alias homelab-pod:x/eth0");
            assert_eq!(stage.recover(), Recovered { reserved: 2, ..Recovered::default() });
            let holders = stage.holders();
            let text: Vec<String> = holders
                .iter()
                .map(|(entry, holder)| format!("{} {}", entry.name(), holder.target()))
                .collect();
            assert_eq!(
                text,
                [format!("{one},10.9.0.2,fd09::2 one/eth0//0a1b2c3d"), format!("{own},10.9.0.3 own/eth0")]
            );
            assert!(stage.links().contains(&half));
            assert_eq!(stage.recover(), Recovered::default());
            // A part is lost, and by now another has the address.
            fs::remove_file(Store::named(stage.data.path(), "home").unwrap().path_of(&holders[0].0)).unwrap();
            let two = stage.pod("two", None, &["10.9.0.2/24"]);
            let found = stage.recover();
            assert_eq!((found.reserved, found.doubled.len()), (1, 1), "{found:?}");
            assert!([&one, &two].contains(&&found.doubled[0]));
            assert_eq!(stage.links().len(), 5);
        });
    }

    #[test]
    fn a_link_whose_other_end_came_back_to_the_node_is_deleted() {
        Stage::with(|stage| {
            let left = stage.pod("own", None, &[]);
            let one = stage.pod("one", None, &["10.9.0.2/24"]);
            let found = stage.recover();
            assert_eq!((found.deleted, found.reserved), (1, 1), "{found:?}");
            assert_eq!(stage.links(), [one]);
            assert!(!stage.holders().iter().any(|(entry, _)| entry.owner == left));
        });
    }
}
