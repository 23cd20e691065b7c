//! The commands against kernel and store.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use homelab_cni::ipam::{self, Entry};
use homelab_cni::{
    AddResult, Attachment, Bandwidth, Base, CniError, Code, Network, PrevResult, Rate, Sandbox, Wiring,
    alias, bridge_sysctls, gateway_net,
};
use homelab_linux::pod::{Bridge, Netns, PodError, PodRoute, PodSocket, Veth, write_sysctl};
use homelab_linux::{Bucket, LinkInfo, VethEnd, mac_text};
use homelab_model::{ours, stable_mac};
use ipnet::IpNet;

use super::hostport::{Claimed, Claims};
use super::store::{Reserved, Store};

/// How often to look at a bridge that is just being made, a millisecond apart.
const BRIDGE_TRIES: usize = 50;

fn kernel(error: PodError) -> CniError {
    CniError::with(Code::Kernel, "the kernel refused a request", error)
}

/// ADD: from nothing to an attached pod, or back to nothing.
pub(crate) fn add(
    base: &Base,
    network: &Network,
    attachment: &Attachment,
    sandbox: &Sandbox,
    pod: Option<&str>,
) -> Result<String, CniError> {
    let netns = open(sandbox)?;
    let mut host = PodSocket::open().map_err(kernel)?;
    let bridge = ensure_bridge(&mut host, base, network)?;
    let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
    let store = Store::of(base)?;
    let reserved = store
        .lock()?
        .reserve(&network.ranges, &owner, (attachment, pod), || left(&base.data_dir, &mut host))?;
    let mtu = network.mtu.unwrap_or(bridge.mtu);
    let wiring = Wiring::new(base, network, attachment, &reserved.entry);
    let holder = (owner.as_str(), &reserved.entry.addresses[..]);
    let mut ports = match Claims::claim(base, network, attachment, pod, holder, &mut host) {
        Ok(ports) => ports,
        Err(error) => {
            // The error that counts is the first.
            let _ = store.remove(&reserved.entry);
            return Err(error);
        }
    };
    let wired = match wire(&mut host, &bridge, &netns, &wiring, (mtu, network.bandwidth)) {
        Ok(()) => ports.as_mut().map_or(Ok(()), |ports| ports.open(&mut host)),
        Err(Failed::Taken(error)) => {
            undo(ports, &mut host);
            return Err(taken(&mut host, &store, &reserved, &wiring, error));
        }
        Err(Failed::Made(error)) => Err(kernel(error)),
    };
    if let Err(error) = wired {
        undo(ports, &mut host);
        let _ = host.delete_link(&wiring.host);
        let _ = store.remove(&reserved.entry);
        return Err(error);
    }
    let result = AddResult {
        version: base.version,
        network,
        bridge_mac: bridge.mac,
        bridge_mtu: bridge.mtu,
        wiring: &wiring,
        mtu,
        sandbox: &sandbox.path,
    };
    Ok(result.to_json())
}

fn open(sandbox: &Sandbox) -> Result<Netns, CniError> {
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

/// The bridge, ours and made if missing (the agent may be down, or not that far).
fn ensure_bridge(host: &mut PodSocket, base: &Base, network: &Network) -> Result<LinkInfo, CniError> {
    for _ in 0..BRIDGE_TRIES {
        match host.link(&network.bridge).map_err(kernel)? {
            None => {
                make_bridge(host, base, network)?;
            }
            // The kernel takes no alias while it makes a link: another process is just making it.
            Some(link) if link.kind == "bridge" && link.alias.is_empty() => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Some(link) => return own_bridge(link),
        }
    }
    own_bridge(host.link(&network.bridge).map_err(kernel)?.unwrap_or_default())
}

fn make_bridge(host: &mut PodSocket, base: &Base, network: &Network) -> Result<(), CniError> {
    let mac = network.bridge_mac.or_else(|| homelab_linux::parse_mac(&stable_mac(&["homelab", &base.name])));
    let addresses: Vec<IpNet> = network.ranges.iter().filter_map(|range| gateway_net(*range)).collect();
    let bridge = Bridge {
        name: &network.bridge,
        mac: mac.unwrap_or_default(),
        mtu: network.mtu.unwrap_or(1500),
        sysctls: &bridge_sysctls(&network.bridge),
        addresses: &addresses,
    };
    host.create_bridge(&bridge).map(|_| ()).map_err(kernel)
}

fn own_bridge(link: LinkInfo) -> Result<LinkInfo, CniError> {
    if link.kind == "bridge" && link.alias == ours::LINK_ALIAS {
        return Ok(link);
    }
    let kind = if link.kind.is_empty() { "hardware" } else { &link.kind };
    Err(CniError::with(
        Code::ForeignLink,
        format!("link {} is in the way: homelab did not make it", link.name),
        format!("{kind}, alias {:?}", link.alias),
    ))
}

/// Names of the node's links. An entry whose link is gone is free: its pod's address went with it.
fn links(host: &mut PodSocket) -> Result<BTreeSet<String>, CniError> {
    Ok(host.links().map_err(kernel)?.into_iter().map(|link| link.name).collect())
}

fn undo(ports: Option<Claimed>, host: &mut PodSocket) {
    if let Some(ports) = ports {
        ports.undo(host);
    }
}

/// [`links`], and no port leads to a pod whose link is not among them: its address is about to be free.
fn left(data_dir: &Path, host: &mut PodSocket) -> Result<BTreeSet<String>, CniError> {
    let links = links(host)?;
    Claims::of(data_dir)?.sync()?;
    Ok(links)
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
) -> Result<(), Failed> {
    let veth = Veth {
        host: VethEnd { name: &wiring.host, mac: Some(wiring.host_mac) },
        pod: VethEnd { name: &wiring.ifname, mac: Some(wiring.mac) },
        mtu,
        bridge: bridge.index,
        alias: &wiring.alias,
        hairpin: true,
        isolated: false,
    };
    host.create_veth(netns, &veth)
        .map_err(|error| if error.is_taken() { Failed::Taken(error) } else { Failed::Made(error) })?;
    if let Some(rate) = bandwidth.ingress {
        host.limit(&wiring.host, &bucket(rate)).map_err(Failed::Made)?;
    }
    configure(netns, wiring, bandwidth.egress).map_err(Failed::Made)?;
    // The first packet of a pod must not be lost: ARP tries again only after a second.
    host.settle(&wiring.host).map_err(Failed::Made)?;
    if !bridge.operational {
        // Its first port.
        host.settle(&bridge.name).map_err(Failed::Made)?;
    }
    Ok(())
}

fn bucket(rate: Rate) -> Bucket {
    Bucket { rate: rate.bytes_per_second, burst: rate.burst, limit: rate.queue() }
}

/// Everything inside the pod. The process stays there; `host` is a socket of the node's namespace.
fn configure(netns: &Netns, wiring: &Wiring, egress: Option<Rate>) -> Result<(), PodError> {
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
    pod.configure(&wiring.ifname, &addresses, &routes)?;
    pod.settle(&wiring.ifname)
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
pub(crate) fn del(base: &Base, attachment: &Attachment) -> Result<(), CniError> {
    let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
    let ports = Claims::of(&base.data_dir)?.release(&owner);
    PodSocket::open().and_then(|mut host| host.delete_link(&owner)).map_err(kernel)?;
    ports?;
    Store::of(base)?.release(&owner)
}

/// CHECK: what ADD made is there, on both sides and in the store.
pub(crate) fn check(
    base: &Base,
    network: &Network,
    attachment: &Attachment,
    sandbox: &Sandbox,
    prev: &PrevResult,
) -> Result<(), CniError> {
    let mismatch = |message: String| Err(CniError::new(Code::Mismatch, message));
    let netns = open(sandbox)?;
    let owner = ipam::owner(&base.name, &attachment.container, &attachment.ifname);
    let entry = Store::of(base)?.entries()?.into_iter().find(|entry| entry.owner == owner);
    let Some(entry) = entry else {
        return Err(CniError::with(
            Code::UnknownContainer,
            format!("nothing is reserved for interface {} of this container", attachment.ifname),
            &attachment.container,
        ));
    };
    let mut host = PodSocket::open().map_err(kernel)?;
    let Some(bridge) = host.link(&network.bridge).map_err(kernel)? else {
        return mismatch(format!("bridge {} is missing", network.bridge));
    };
    let bridge = own_bridge(bridge)?;
    let wiring = Wiring::new(base, network, attachment, &entry);
    let Some(port) = host.link(&wiring.host).map_err(kernel)? else {
        return mismatch(format!("link {} on the node is missing", wiring.host));
    };
    for (right, what) in [
        (port.alias == alias(attachment), "has another alias"),
        (port.master == Some(bridge.index), "is no port of the bridge"),
        (port.hairpin, "does not send back (hairpin)"),
        (port.up, "is down"),
    ] {
        if !right {
            return mismatch(format!("link {} {what}", wiring.host));
        }
    }
    for address in &prev.addresses {
        if !entry.addresses.contains(&address.addr()) {
            return mismatch(format!("{address} is not reserved for this container"));
        }
    }
    check_ports(base, network, &owner)?;
    check_rate(&mut host, &wiring.host, network.bandwidth.ingress)?;
    netns.enter().map_err(kernel)?;
    check_pod(&wiring, port.mtu, prev)?;
    check_rate(&mut PodSocket::open().map_err(kernel)?, &wiring.ifname, network.bandwidth.egress)
}

/// A link has the limit that the runtime asked for. Where it asks for none, another plugin of the chain may have set one.
fn check_rate(socket: &mut PodSocket, link: &str, rate: Option<Rate>) -> Result<(), CniError> {
    let Some(rate) = rate else { return Ok(()) };
    match socket.limit_of(link).map_err(kernel)? {
        Some(held) if held == rate.bytes_per_second => Ok(()),
        held => Err(CniError::with(
            Code::Mismatch,
            format!("link {link} is not limited to {} bytes per second", rate.bytes_per_second),
            held.map_or("no limit".to_owned(), |held| format!("but to {held}")),
        )),
    }
}

/// The node's ports that lead to the pod: those that the runtime names, and all of them in the kernel.
fn check_ports(base: &Base, network: &Network, owner: &str) -> Result<(), CniError> {
    let mismatch = |message: String| Err(CniError::new(Code::Mismatch, message));
    let claim = Claims::of(&base.data_dir)?.get(owner)?;
    let held = claim.as_ref().map(|claim| &claim.ports[..]).unwrap_or_default();
    if let Some(port) = network.port_mappings.iter().find(|port| !held.contains(port)) {
        return mismatch(format!(
            "{} port {} of the node is not the pod's",
            port.protocol.as_str(),
            port.host_port
        ));
    }
    match claim.map_or(Ok(None), |claim| Claims::missing(&claim))? {
        Some(what) => mismatch(format!("a port of the node leads nowhere: {what} is missing")),
        None => Ok(()),
    }
}

/// The pod's side. Its MTU must be that of the node's end, not the configured one: a pod keeps the MTU with which it
/// was started.
fn check_pod(wiring: &Wiring, mtu: u32, prev: &PrevResult) -> Result<(), CniError> {
    let mismatch = |what: String| {
        Err(CniError::new(Code::Mismatch, format!("interface {} of the container {what}", wiring.ifname)))
    };
    let mut pod = PodSocket::open().map_err(kernel)?;
    let Some(link) = pod.link(&wiring.ifname).map_err(kernel)? else {
        return mismatch("is missing".to_owned());
    };
    if !prev.mac.is_empty() && link.mac != prev.mac || link.mac != mac_text(&wiring.mac) {
        return mismatch(format!("has MAC address {}", link.mac));
    }
    if !link.up || link.mtu != mtu {
        return mismatch(format!("is {} and has MTU {}", if link.up { "up" } else { "down" }, link.mtu));
    }
    let held = pod.addresses(&wiring.ifname).map_err(kernel)?;
    let own = wiring.addresses.iter().map(|pod| pod.address);
    for address in own.chain(prev.addresses.iter().copied()) {
        if !held.contains(&address) {
            return mismatch(format!("has no address {address}"));
        }
    }
    let routes = pod.routes(&wiring.ifname).map_err(kernel)?;
    let defaults: Vec<_> =
        routes.iter().filter(|(to, _)| to.prefix_len() == 0).map(|(_, via)| *via).collect();
    for gateway in &prev.gateways {
        // Routes over other interfaces belong to other plugins of the chain.
        let ours = wiring.addresses.iter().any(|pod| pod.gateway == *gateway);
        if ours && !defaults.contains(&Some(*gateway)) {
            return mismatch(format!("has no default route via {gateway}"));
        }
    }
    Ok(())
}

/// STATUS: could an ADD succeed?
pub(crate) fn status(base: &Base, network: &Network) -> Result<(), CniError> {
    let unavailable =
        |error: CniError| CniError::with(Code::Unavailable, "no pod can be attached now", error);
    let mut host = PodSocket::open().map_err(kernel)?;
    if let Some(link) = host.link(&network.bridge).map_err(kernel)? {
        own_bridge(link).map_err(unavailable)?;
    }
    let entries = Store::of(base)?.entries()?;
    // Entries whose pods are gone do not count: ADD would free them.
    let links = links(&mut host)?;
    let held: Vec<Entry> = entries.into_iter().filter(|entry| links.contains(&entry.owner)).collect();
    match ipam::reserve(&network.ranges, &held, None, "") {
        Some(_) => Ok(()),
        None => Err(unavailable(ipam::exhausted(&network.ranges, held.len()))),
    }
}

/// GC: takes away every attachment of the network that the runtime does not name. Goes on after an error.
pub(crate) fn gc(base: &Base, valid: &[Attachment]) -> Result<(), CniError> {
    let keep: BTreeSet<String> =
        valid.iter().map(|a| ipam::owner(&base.name, &a.container, &a.ifname)).collect();
    let store = Store::of(base)?;
    let mut host = PodSocket::open().map_err(kernel)?;
    let claims = Claims::of(&base.data_dir)?;
    let mut first = Ok(());
    for entry in store.entries()?.iter().filter(|entry| !keep.contains(&entry.owner)) {
        let ports = claims.release(&entry.owner);
        let removed = host.delete_link(&entry.owner).map_err(kernel);
        let removed = ports.and(removed).and_then(|_| store.remove(entry));
        first = first.and(removed);
    }
    first
}

/// Frees entries whose links are gone, in all networks.
pub(crate) fn sweep(data_dir: &Path) -> Result<usize, CniError> {
    let mut freed = 0;
    for store in Store::all(data_dir)? {
        freed += store.sweep(|| left(data_dir, &mut PodSocket::open().map_err(kernel)?))?;
    }
    Ok(freed)
}
