//! ADD, DEL and GC against kernel and store.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use homelab_cni::ipam::{self, Entry, Holder};
use homelab_cni::{
    AddResult, Attachment, Bandwidth, Base, CniError, Code, Network, PodAddress, Previous, Rate, Sandbox,
    Wiring, Wishes, bridge_sysctls, gateway_net, holder_by_link,
};
use homelab_linux::pod::{Bridge, Netns, PodError, PodRoute, PodSocket, Veth, write_sysctl};
use homelab_linux::{Bucket, LinkInfo, VethEnd};
use homelab_model::{PodMarks, stable_mac};
use ipnet::IpNet;

use super::bridge;
use super::guard::{self, Guard};
use super::hostport::{Claimed, Claims};
use super::lost;
use super::store::{self, Reserved, Store, Wanted};

/// How often to look at a bridge that is just being made, a millisecond apart.
const BRIDGE_TRIES: usize = 1000;

pub(super) fn kernel(error: PodError) -> CniError {
    if error.is_transient() {
        return CniError::with(Code::TryAgain, "the kernel is short of something; try again", error);
    }
    CniError::with(Code::Kernel, "the kernel refused a request", error)
}

/// ADD: from nothing to an attached pod, or back to nothing.
pub(crate) fn add(
    base: &Base,
    network: &Network,
    attachment: &Attachment,
    sandbox: &Sandbox,
    (wishes, previous): (&Wishes, &Previous),
) -> Result<String, CniError> {
    let netns = open(sandbox)?;
    let mut host = PodSocket::open().map_err(kernel)?;
    let bridge = ensure_bridge(&mut host, base, network)?;
    let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
    let store = Store::of(base)?;
    let by_cri = wishes.sandbox.as_ref() == Some(&attachment.container);
    let runtime = if by_cri { store::runtime() } else { None };
    let wanted = Wanted { network, owner: &owner, attachment, wishes, runtime };
    let living = || lost::living(&base.data_dir, network, &base.name);
    let reserved = store.lock()?.reserve(&wanted, || left(&base.data_dir, &mut host), living)?;
    let mtu = network.mtu.unwrap_or(bridge.mtu);
    let wiring = Wiring::new(base, network, attachment, &reserved.entry, wishes.mac)
        .for_runtime(attachment, wanted.runtime);
    let holder = (owner.as_str(), &reserved.entry.addresses[..]);
    let mut ports = match Claims::claim(base, network, attachment, wishes.pod.as_deref(), holder, &mut host) {
        Ok(ports) => ports,
        Err(error) => {
            // The error that counts is the first.
            let _ = store.remove(&reserved.entry);
            return Err(error);
        }
    };
    let mut guard = match Guard::of(&wiring.host, &wiring.marks) {
        Ok(guard) => guard,
        Err(error) => {
            undo(ports, &mut host);
            let _ = store.remove(&reserved.entry);
            return Err(error);
        }
    };
    let wired = match wire(&mut host, &bridge, &netns, &wiring, (mtu, network.bandwidth)) {
        Ok(made) => guard
            .as_mut()
            .map_or(Ok(()), Guard::close)
            .and_then(|()| ports.as_mut().map_or(Ok(()), |ports| ports.open(&mut host)))
            .map(|()| made),
        Err(Failed::Taken(error)) => {
            undo(ports, &mut host);
            return Err(taken(&mut host, &store, &reserved, &wiring, error));
        }
        Err(Failed::Made(error)) => Err(kernel(error)),
    };
    let made = match wired {
        Ok(made) => made,
        Err(error) => {
            undo(ports, &mut host);
            let _ = host.delete_link(&wiring.host);
            if let Some(own) = &wiring.marks.own {
                let _ = guard::remove(&wiring.host, Some(own));
            }
            let _ = store.remove(&reserved.entry);
            return Err(error);
        }
    };
    // Who had the address before may have asked for another MAC address. If this fails, the pod's first packet says it.
    let _ = host.forget_neighbours(bridge.index, &reserved.entry.addresses);
    let made = wiring.addresses.iter().zip(made).filter(|(_, made)| *made);
    let routed: Vec<PodAddress> = made.map(|(pod, _)| *pod).collect();
    let result = AddResult {
        version: base.version,
        network,
        bridge_mac: bridge.mac,
        bridge_mtu: bridge.mtu,
        wiring: &wiring,
        mtu,
        sandbox: &sandbox.path,
        routed: &routed,
        previous,
    };
    Ok(result.to_json())
}

pub(super) fn open(sandbox: &Sandbox) -> Result<Netns, CniError> {
    let wrong = |error| CniError::with(Code::Environment, "CNI_NETNS cannot be used", error);
    let netns = Netns::open(&sandbox.path).map_err(wrong)?;
    if !sandbox.may_be_own && netns.is_own().map_err(wrong)? {
        return Err(CniError::with(
            Code::NetworkNamespace,
            "CNI_NETNS is the plugin's own network namespace",
            sandbox.path.display(),
        ));
    }
    Ok(netns)
}

/// The bridge, ours and made if missing (the agent may be down, or not that far), with the gateways of the pods.
fn ensure_bridge(host: &mut PodSocket, base: &Base, network: &Network) -> Result<LinkInfo, CniError> {
    let mac = mac_of(base, network);
    for left in (0..BRIDGE_TRIES).rev() {
        match host.link(&network.bridge).map_err(kernel)? {
            None => {
                bridge::nothing_in_the_way(host, &network.ranges)?;
                make_bridge(host, base, network)?;
            }
            // It gets its alias last: another process is just making it. Or was killed then, if it has our MAC address.
            Some(link) if link.kind == "bridge" && link.alias.is_empty() => {
                let ours = homelab_linux::parse_mac(&link.mac) == Some(mac);
                if left == 1 && ours && link.master.is_none() {
                    make_bridge(host, base, network)?;
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Some(link) => {
                let mut link = bridge::own(host, link)?;
                if homelab_linux::parse_mac(&link.mac) != Some(mac) {
                    let sysctls = bridge_sysctls(&network.bridge);
                    link = host.take_over_bridge(&as_bridge(network, mac, &sysctls, &[])).map_err(kernel)?;
                }
                bridge::give_gateways(host, link.index, network)?;
                return Ok(link);
            }
        }
    }
    let link = host.link(&network.bridge).map_err(kernel)?.unwrap_or_default();
    bridge::own(host, link)
}

fn make_bridge(host: &mut PodSocket, base: &Base, network: &Network) -> Result<(), CniError> {
    let addresses: Vec<IpNet> = network.ranges.iter().filter_map(|range| gateway_net(*range)).collect();
    let sysctls = bridge_sysctls(&network.bridge);
    let mut pods = host.links().map_err(kernel)?;
    pods.retain(|link| {
        link.master.is_none() && holder_by_link(&base.name, &link.name, &link.alias).is_some()
    });
    let bridge = Bridge { pods: &pods, ..as_bridge(network, mac_of(base, network), &sysctls, &addresses) };
    host.create_bridge(&bridge).map(|_| ()).map_err(kernel)
}

fn mac_of(base: &Base, network: &Network) -> [u8; 6] {
    let mac = network.bridge_mac.or_else(|| homelab_linux::parse_mac(&stable_mac(&["homelab", &base.name])));
    mac.unwrap_or_default()
}

fn as_bridge<'a>(
    network: &'a Network,
    mac: [u8; 6],
    sysctls: &'a [(String, &'static str)],
    addresses: &'a [IpNet],
) -> Bridge<'a> {
    Bridge { name: &network.bridge, mac, mtu: network.mtu.unwrap_or(1500), sysctls, addresses, pods: &[] }
}

/// Names of the node's links. An entry whose link is gone is free: its pod's address went with it.
pub(super) fn links(host: &mut PodSocket) -> Result<BTreeSet<String>, CniError> {
    Ok(host.links().map_err(kernel)?.into_iter().map(|link| link.name).collect())
}

/// [`links`], and no port leads to a pod whose link is not among them: its address is about to be free.
fn left(data_dir: &Path, host: &mut PodSocket) -> Result<BTreeSet<String>, CniError> {
    let links = links(host)?;
    Claims::of(data_dir)?.sync()?;
    Ok(links)
}

fn undo(ports: Option<Claimed>, host: &mut PodSocket) {
    if let Some(ports) = ports {
        ports.undo(host);
    }
}

enum Failed {
    /// A name was taken and nothing was made.
    Taken(PodError),
    /// Something may have been made.
    Made(PodError),
}

fn wire(
    host: &mut PodSocket,
    bridge: &LinkInfo,
    netns: &Netns,
    wiring: &Wiring,
    (mtu, bandwidth): (u32, Bandwidth),
) -> Result<Vec<bool>, Failed> {
    let veth = Veth {
        host: VethEnd { name: &wiring.host, mac: Some(wiring.host_mac) },
        pod: VethEnd { name: &wiring.ifname, mac: Some(wiring.mac) },
        mtu,
        bridge: bridge.index,
        alias: &wiring.alias,
        hairpin: true,
        isolated: wiring.marks.isolated,
    };
    host.create_veth(netns, &veth)
        .map_err(|error| if error.is_taken() { Failed::Taken(error) } else { Failed::Made(error) })?;
    if let Some(rate) = bandwidth.ingress {
        host.limit(&wiring.host, &bucket(rate)).map_err(Failed::Made)?;
    }
    let made = configure(netns, wiring, bandwidth.egress).map_err(Failed::Made)?;
    // The first packet of a pod must not be lost: ARP tries again only after a second.
    host.settle(&wiring.host).map_err(Failed::Made)?;
    if !bridge.operational {
        // Its first port.
        host.settle(&bridge.name).map_err(Failed::Made)?;
    }
    Ok(made)
}

fn bucket(rate: Rate) -> Bucket {
    Bucket { rate: rate.bytes_per_second, burst: rate.burst, limit: rate.queue() }
}

/// Everything inside the pod; says of each address whether its default route was made. The process stays there; `host` is a
/// socket of the node's namespace.
fn configure(netns: &Netns, wiring: &Wiring, egress: Option<Rate>) -> Result<Vec<bool>, PodError> {
    netns.enter()?;
    let escaped = wiring.ifname.replace('.', "/");
    // No other pod may configure this one by router advertisements (CVE-2020-10749), with or without IPv6 of ours.
    write_sysctl(&format!("net.ipv6.conf.{escaped}.accept_ra"), "0")?;
    if wiring.addresses.iter().any(|pod| pod.address.addr().is_ipv6()) {
        // The store has no duplicates; the link-local address is usable at once, too.
        write_sysctl(&format!("net.ipv6.conf.{escaped}.accept_dad"), "0")?;
    }
    let addresses: Vec<IpNet> = wiring.addresses.iter().map(|pod| pod.address).collect();
    let routes: Vec<PodRoute> = wiring
        .addresses
        .iter()
        .filter_map(|pod| {
            let everything = if pod.address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let destination = everything.parse().ok()?;
            Some(PodRoute { destination, via: Some(pod.gateway), onlink: false, metric: 0 })
        })
        .collect();
    let mut pod = PodSocket::open()?;
    if let Some(rate) = egress {
        pod.limit(&wiring.ifname, &bucket(rate))?;
    }
    let made = pod.configure(&wiring.ifname, &addresses, &routes)?;
    pod.settle(&wiring.ifname)?;
    Ok(made)
}

/// A name was taken: by this very attachment, or in the pod by someone else.
fn taken(
    host: &mut PodSocket,
    store: &Store,
    reserved: &Reserved,
    wiring: &Wiring,
    error: PodError,
) -> CniError {
    if host.link(&wiring.host).ok().flatten().is_some() {
        // The entry belongs to the link that is there.
        return CniError::with(
            Code::Attached,
            format!("interface {} of this container is attached already; DEL comes first", wiring.ifname),
            error,
        );
    }
    let _ = store.remove(&reserved.entry);
    let message = format!("the container has an interface {} of other origin", wiring.ifname);
    CniError::with(Code::Attached, message, error)
}

/// DEL: to nothing, whatever is there. The address is freed last, when no pod has it and no port leads to it any more.
pub(crate) fn del(base: &Base, attachment: &Attachment, guarded: bool) -> Result<(), CniError> {
    let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
    let ports = Claims::of(&base.data_dir)?.release(&owner);
    let attached = detach(&mut PodSocket::open().map_err(kernel)?, &owner, guarded)?;
    ports?;
    let held = Store::of(base)?.release(&owner)?;
    if attached && !held {
        // The store was lost, and with it the note of its ports.
        return Claims::purge(&owner);
    }
    Ok(())
}

/// Deletes a pod's link, and what guarded it; says whether it was there. Where it is gone, `guarded` says whether to look for
/// that.
fn detach(host: &mut PodSocket, owner: &str, guarded: bool) -> Result<bool, CniError> {
    let link = host.take_link(owner).map_err(kernel)?;
    match link.as_ref().map(|link| PodMarks::of_alias(&link.alias).own) {
        Some(Some(own)) => guard::remove(owner, Some(&own))?,
        None if guarded => guard::remove(owner, None)?,
        _ => {}
    }
    Ok(link.is_some())
}

/// GC: takes away every attachment of the network that the runtime does not name. Goes on after an error.
pub(crate) fn gc(base: &Base, valid: &[Attachment]) -> Result<(), CniError> {
    let keep: BTreeSet<String> =
        valid.iter().map(|a| ipam::owner(&base.name, &a.container, &a.ifname)).collect();
    let store = Store::of(base)?;
    let gone = store.entries()?.into_iter().filter(|entry| !keep.contains(&entry.owner));
    let detached = detach_all(&base.data_dir, gone.map(|entry| (&store, entry)).collect()).1;
    detached.and(lost::detach_unreserved(&base.data_dir, &base.name, &keep))
}

/// Takes attachments away, as DEL does; says how many. Goes on after an error.
fn detach_all(data_dir: &Path, gone: Vec<(&Store, Entry)>) -> (usize, Result<(), CniError>) {
    if gone.is_empty() {
        return (0, Ok(()));
    }
    let opened = PodSocket::open().map_err(kernel).and_then(|host| Ok((host, Claims::of(data_dir)?)));
    let (mut host, claims) = match opened {
        Ok(opened) => opened,
        Err(error) => return (0, Err(error)),
    };
    let (mut freed, mut first) = (0, Ok(()));
    for (store, entry) in gone {
        let ports = claims.release(&entry.owner);
        // A DEL that was killed may have left what guarded a link that is gone.
        let removed = detach(&mut host, &entry.owner, true);
        let removed = ports.and(removed).and_then(|_| store.remove(&entry));
        freed += usize::from(removed.is_ok());
        first = first.and(removed);
    }
    (freed, first)
}

/// A pod sandbox that has a reservation: its container id, and the mark of the runtime that made it.
pub(crate) type Sandboxed = (String, String);

/// The pod sandboxes that have reservations, in all networks.
pub(crate) fn sandboxes(data_dir: &Path) -> Result<BTreeSet<Sandboxed>, CniError> {
    let mut found = BTreeSet::new();
    for store in Store::of_every_boot(data_dir)? {
        let holders = store.holders()?.into_iter().map(|(_, holder)| holder);
        found.extend(holders.filter_map(|holder| Some((holder.container, holder.runtime?))));
    }
    Ok(found)
}

/// Takes away all attachments of pod sandboxes, in all networks; says how many.
pub(crate) fn forget(data_dir: &Path, sandboxes: &BTreeSet<Sandboxed>) -> (usize, Result<(), CniError>) {
    let stores = match Store::of_every_boot(data_dir) {
        Ok(stores) => stores,
        Err(error) => return (0, Err(error)),
    };
    let dead = |holder: Holder| {
        holder.runtime.is_some_and(|runtime| sandboxes.contains(&(holder.container, runtime)))
    };
    let mut gone = Vec::new();
    for store in &stores {
        let holders = store.holders().unwrap_or_default().into_iter();
        gone.extend(holders.filter(|(_, holder)| dead(holder.clone())).map(|(entry, _)| (store, entry)));
    }
    detach_all(data_dir, gone)
}

/// Frees entries whose links are gone, in all networks and of all boots.
pub(crate) fn sweep(data_dir: &Path) -> Result<usize, CniError> {
    let mut freed = 0;
    for store in Store::of_every_boot(data_dir)? {
        freed += store.sweep(|| left(data_dir, &mut PodSocket::open().map_err(kernel)?))?;
    }
    Ok(freed)
}
