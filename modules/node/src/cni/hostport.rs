//! Ports of the node that lead to pods: claims on the disk, elements in the kernel.
//!
//! `<dataDir>/.hostports/<boot id>/<owner>` is a [`Claim`] each, for all networks: the node has its ports only once. A
//! directory per boot, as in the IPAM store and for the same reason. `<dataDir>/.hostports/lock` orders who looks for
//! conflicts and who changes elements; [`ports`](super::ports) says whether there is anything to look for. An ADD holds a lock on its claim until it is done: till then its claim is valid
//! without a link, and its elements are its own business. A claim without either is what a vanished pod left.
//!
//! Order: a claim is written before the pod is made, its elements come last; DEL takes the elements first. So an
//! address is never free while a port leads to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use homelab_cni::hostport::{Claim, Element, SETS, owner_of};
use homelab_cni::{Attachment, Base, CniError, Code, Network};
use homelab_linux::conntrack::{self, Family, Flow};
use homelab_linux::netlink::{NetlinkError, Socket};
use homelab_linux::nft::elements::{Batch, Element as Raw, ElementError, dump};
use homelab_linux::pod::{PodError, PodSocket, write_sysctl};
use homelab_model::ours;
use homelab_model::service::Protocol;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::ports::{Counts, places};
use super::store::{boot, directories, gone, removed};

/// How often to look for a table that the agent is just bringing back, [`TABLE_PAUSE`] apart.
pub(super) const TABLE_TRIES: usize = 50;
pub(super) const TABLE_PAUSE: Duration = Duration::from_millis(20);

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CniError {
    move |error| CniError::with(Code::Io, format!("host ports {}", path.display()), error)
}

fn kernel<E: std::fmt::Display>(error: E) -> CniError {
    CniError::with(Code::Kernel, "the kernel refused host ports", error)
}

fn table() -> &'static str {
    ours::HOSTPORT_TABLE.split_once(' ').map_or(ours::HOSTPORT_TABLE, |(_, name)| name)
}

/// All claims of a node.
#[derive(Debug)]
pub(crate) struct Claims {
    root: PathBuf,
    boot: PathBuf,
}

/// The only process that looks for conflicts and changes elements.
#[derive(Debug)]
struct Locked<'a> {
    claims: &'a Claims,
    _lock: File,
}

/// A claim on the disk.
struct Found {
    path: PathBuf,
    /// None: it is damaged.
    claim: Option<Claim>,
    file: File,
}

/// A claim whose ADD is under way.
#[derive(Debug)]
pub(crate) struct Claimed {
    claims: Claims,
    claim: Claim,
    path: PathBuf,
    /// Of the node's namespace, which this process leaves while it sets up the pod.
    socket: Socket,
    _adding: File,
}

/// What [`Claims::sync`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Synced {
    /// Elements that were missing.
    pub(crate) added: usize,
    /// Elements that belong to nobody.
    pub(crate) deleted: usize,
    /// Claims of pods that are gone.
    pub(crate) freed: usize,
}

impl Claims {
    /// The claims below a data directory. Makes nothing on the disk.
    pub(crate) fn of(data_dir: &Path) -> Result<Claims, CniError> {
        let root = data_dir.join(".hostports");
        let boot = root.join(boot()?);
        Ok(Claims { root, boot })
    }

    fn lock(&self) -> Result<Locked<'_>, CniError> {
        let path = self.root.join("lock");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(&self.root).map_err(failed(&self.root))?;
                open()
            }
            other => other,
        }
        .map_err(failed(&path))?;
        file.lock().map_err(failed(&path))?;
        Ok(Locked { claims: self, _lock: file })
    }

    /// Claims ports for an attachment that holds `addresses`; refuses what others hold. None if it wants none.
    pub(crate) fn claim(
        base: &Base,
        network: &Network,
        attachment: &Attachment,
        pod: Option<&str>,
        (owner, addresses): (&str, &[std::net::IpAddr]),
        host: &mut PodSocket,
    ) -> Result<Option<Claimed>, CniError> {
        let claims = Claims::of(&base.data_dir)?;
        let claim = Claim {
            owner: owner.to_owned(),
            network: base.name.clone(),
            container: attachment.container.clone(),
            pod: pod.map(str::to_owned),
            bridge: network.bridge.clone(),
            addresses: addresses.to_vec(),
            ports: network.port_mappings.clone(),
        };
        if host.link(owner).map_err(kernel)?.is_some() {
            // It is attached already, as ADD is about to find out: its ports are not this call's.
            return Ok(None);
        }
        // What a killed ADD of the same attachment left.
        claims.release(owner)?;
        if claim.ports.is_empty() {
            return Ok(None);
        }
        let locked = claims.lock()?;
        let counts = locked.counts()?;
        let places = places(&claim);
        if counts.any(&places).map_err(failed(&claims.root))? {
            let others = locked.without_conflict(&claim, host)?;
            counts.correct(&places, &others).map_err(failed(&claims.root))?;
        }
        let socket = Socket::netfilter().map_err(kernel)?;
        if claim.serves_loopback() {
            let_loopback_out(&claim.bridge)?;
        }
        counts.raise(&places).map_err(failed(&claims.root))?;
        let (path, adding) = match locked.write(&claim) {
            Ok(written) => written,
            Err(error) => {
                // A count that is too large does no harm.
                let _ = counts.lower(&places);
                return Err(error);
            }
        };
        drop(locked);
        Ok(Some(Claimed { claims, claim, path, socket, _adding: adding }))
    }

    /// Gives up all ports of an attachment: DEL. Costs one look where it has none. To close the socket that it gives
    /// waits until the kernel has freed the elements (`nft_rcv_nl_event`), as to delete a link waits: who does both closes
    /// it last, and waits once.
    pub(crate) fn release(&self, owner: &str) -> Result<Option<Socket>, CniError> {
        let path = self.boot.join(owner);
        if open(&path)?.is_none() {
            return Ok(None);
        }
        let locked = self.lock()?;
        // Another may have removed it meanwhile, and its ports may be somebody else's.
        match open(&path)? {
            Some(file) => locked.remove(&read(path.clone(), file)),
            None => Ok(None),
        }
    }

    /// The claim of an attachment: CHECK.
    pub(crate) fn get(&self, owner: &str) -> Result<Option<Claim>, CniError> {
        let path = self.boot.join(owner);
        let Some(file) = open(&path)? else { return Ok(None) };
        let damaged = || {
            let message = "the note of this container's ports is damaged; a new container gets a new one";
            CniError::with(Code::Mismatch, message, path.display())
        };
        read(path.clone(), file).claim.ok_or_else(damaged).map(Some)
    }

    /// Whether all elements of a claim are in the kernel: CHECK. Else the first that is not, in words.
    pub(crate) fn missing(claim: &Claim) -> Result<Option<String>, CniError> {
        let mut socket = Socket::netfilter().map_err(kernel)?;
        let held = held(&mut socket)?;
        let there: BTreeSet<Element> = held.iter().map(|(set, raw)| element_of(set, raw)).collect();
        let missing = claim.elements().into_iter().find(|element| !there.contains(element));
        Ok(missing
            .map(|element| format!("an element of set {} in table {}", element.set, ours::HOSTPORT_TABLE)))
    }

    /// Makes the kernel hold the elements of all claims of pods that are there, and frees those of pods that are gone:
    /// the agent does, after a flush and now and then.
    pub(crate) fn sync(&self) -> Result<Synced, CniError> {
        let mut synced = Synced::default();
        if !self.root.exists() {
            return Ok(synced);
        }
        let mut host = PodSocket::open().map_err(kernel)?;
        let mut socket = Socket::netfilter().map_err(kernel)?;
        let locked = self.lock()?;
        let mut busy = BTreeSet::new();
        let mut live = Vec::new();
        for found in locked.all()? {
            if found.file.try_lock().is_err() {
                busy.insert(found.owner().to_owned());
            } else if locked.drop_dead(&found, &mut host)? {
                synced.freed += 1;
            } else {
                live.extend(found.claim);
            }
        }
        let held = held(&mut socket)?;
        let mut batch = Batch::new(table());
        let mut wanted = BTreeSet::new();
        for claim in &live {
            if claim.serves_loopback() {
                let_loopback_out(&claim.bridge)?;
            }
            wanted.extend(claim.elements());
        }
        let there: BTreeSet<Element> = held.iter().map(|(set, raw)| element_of(set, raw)).collect();
        for (set, raw) in held.iter().filter(|(set, raw)| !wanted.contains(&element_of(set, raw))) {
            let owner = owner_of(&raw.comment);
            // Of a network with another data directory.
            let mut foreign = || Ok(!owner.is_empty() && !owned(&live, owner) && host.link(owner)?.is_some());
            if busy.contains(owner) || foreign().map_err(kernel::<PodError>)? {
                continue;
            }
            batch.delete(set, raw).map_err(kernel)?;
            synced.deleted += 1;
        }
        for claim in &live {
            for element in claim.elements().iter().filter(|element| !there.contains(element)) {
                batch.add(element.set, &raw(element, &claim.comment())).map_err(kernel)?;
                synced.added += 1;
            }
        }
        if batch.is_empty() {
            return Ok(synced);
        }
        match batch.commit(&mut socket) {
            // The table is about to come, and this is called again then.
            Err(ElementError::NoSuchSet { .. }) => Ok(Synced { added: 0, deleted: 0, ..synced }),
            Err(error) => Err(kernel(error)),
            Ok(()) => {
                for claim in &live {
                    end_flows(claim, &mut socket, &mut host, true)?;
                }
                Ok(synced)
            }
        }
    }
}

fn owned(live: &[Claim], owner: &str) -> bool {
    live.iter().any(|claim| claim.owner == owner)
}

/// Opens a claim, if it is there. A pipe in its place is not waited for.
fn open(path: &Path) -> Result<Option<File>, CniError> {
    let flags = OFlag::O_NONBLOCK.bits();
    match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(failed(path)),
    }
}

fn read(path: PathBuf, mut file: File) -> Found {
    let mut bytes = Vec::new();
    let claim: Option<Claim> =
        file.read_to_end(&mut bytes).ok().and_then(|_| serde_json::from_slice(&bytes).ok());
    let mut found = Found { path, claim, file };
    // A copy of another's would take the other's ports with it.
    found.claim = found.claim.take().filter(|claim| claim.owner == found.owner());
    found
}

impl Found {
    /// Whose it is: the name of the link on the node.
    fn owner(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Locked<'_> {
    /// All claims, of every boot: those of earlier ones have no links, and the agent of a node that is a container may
    /// see another boot's name than the runtime beside it.
    fn all(&self) -> Result<Vec<Found>, CniError> {
        let mut all = Vec::new();
        for boot in directories(&self.claims.root)? {
            for entry in fs::read_dir(&boot).map_err(failed(&boot))? {
                let path = entry.map_err(failed(&boot))?.path();
                all.extend(open(&path)?.map(|file| read(path, file)));
            }
        }
        Ok(all)
    }

    /// Which ports have claims.
    fn counts(&self) -> Result<Counts, CniError> {
        let path = self.claims.root.join("ports");
        let counts = Counts::open(&path, || {
            self.all()
                .map_err(io::Error::other)
                .map(|all| all.into_iter().filter_map(|found| found.claim).collect())
        });
        counts.map_err(failed(&path))
    }

    /// The claims of others; an error if one of a pod that is there holds a port that `claim` wants.
    fn without_conflict(&self, claim: &Claim, host: &mut PodSocket) -> Result<Vec<Claim>, CniError> {
        let mut others = Vec::new();
        for found in self.all()? {
            match found.claim.as_ref().and_then(|other| claim.conflict(other)) {
                Some(conflict) if !self.drop_dead(&found, host)? => return Err(conflict),
                Some(_) => {}
                None => others.extend(found.claim),
            }
        }
        Ok(others)
    }

    fn write(&self, claim: &Claim) -> Result<(PathBuf, File), CniError> {
        let boot = &self.claims.boot;
        let path = boot.join(&claim.owner);
        let create = || File::options().write(true).create(true).truncate(true).open(&path);
        let mut file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The first of a boot: those of earlier ones are void.
                for old in fs::read_dir(&self.claims.root).map_err(failed(&self.claims.root))?.flatten() {
                    if old.file_type().is_ok_and(|kind| kind.is_dir()) {
                        gone(fs::remove_dir_all(old.path())).map_err(failed(&old.path()))?;
                    }
                }
                fs::create_dir_all(boot).map_err(failed(boot))?;
                create()
            }
            other => other,
        }
        .map_err(failed(&path))?;
        let text = serde_json::to_vec(claim).unwrap_or_default();
        let written = file.lock_shared().and_then(|()| file.write_all(&text));
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(failed(&path)(error));
        }
        Ok((path, file))
    }

    /// Removes a claim whose pod is gone and whose ADD has ended; says whether it did.
    fn drop_dead(&self, found: &Found, host: &mut PodSocket) -> Result<bool, CniError> {
        if found.file.try_lock().is_err() || host.link(found.owner()).map_err(kernel)?.is_some() {
            return Ok(false);
        }
        self.remove(found)?;
        Ok(true)
    }

    /// Takes a claim's elements and then itself; the socket by which it did.
    fn remove(&self, found: &Found) -> Result<Option<Socket>, CniError> {
        let mut socket = Socket::netfilter().map_err(kernel)?;
        match &found.claim {
            Some(claim) => {
                let mut host = PodSocket::open().map_err(kernel)?;
                withdraw(claim, &mut socket, &mut host)?;
            }
            // Its elements say whose they are.
            None => {
                for (set, raw) in held(&mut socket)? {
                    if owner_of(&raw.comment) == found.owner() {
                        delete_one(&mut socket, set, &raw)?;
                    }
                }
            }
        }
        self.erase(&found.path, found.claim.as_ref())?;
        Ok(Some(socket))
    }

    /// Removes a claim that has no elements any more.
    fn erase(&self, path: &Path, claim: Option<&Claim>) -> Result<(), CniError> {
        // Before, so that a file that is made only now has this claim, too.
        let counts = self.counts();
        removed(path).map_err(failed(path))?;
        if let (Ok(counts), Some(claim)) = (counts, claim) {
            // A count that is too large does no harm.
            let _ = counts.lower(&places(claim));
        }
        Ok(())
    }
}

impl Claimed {
    /// Opens the ports, when the pod is there.
    pub(crate) fn open(&mut self, host: &mut PodSocket) -> Result<(), CniError> {
        for left in (0..TABLE_TRIES).rev() {
            match add(&mut self.socket, &self.claim) {
                Ok(()) => return end_flows(&self.claim, &mut self.socket, host, true),
                Err(ElementError::NoSuchSet { .. }) if left > 0 => std::thread::sleep(TABLE_PAUSE),
                Err(ElementError::NoSuchSet { .. }) => break,
                Err(ElementError::Refused { code: Errno::EEXIST | Errno::EBUSY, .. }) if left > 0 => {
                    let _locked = self.claims.lock()?;
                    displace(&self.claim, &mut self.socket, host)?;
                }
                Err(error) => return Err(kernel(error)),
            }
        }
        Err(CniError::with(
            Code::TryAgain,
            format!("no port of the node can be opened: table {} is missing", ours::HOSTPORT_TABLE),
            format!("the agent ({}) makes it", ours::UNIT),
        ))
    }

    /// Takes everything back: ADD failed.
    pub(crate) fn undo(mut self, host: &mut PodSocket) {
        // The error that counts is the one that led here; what is left is found by the agent.
        if let Ok(locked) = self.claims.lock()
            && withdraw(&self.claim, &mut self.socket, host).is_ok()
        {
            let _ = locked.erase(&self.path, Some(&self.claim));
        }
    }
}

/// Elements that stand for no claim but have one of our keys: gone, unless their pod is there.
fn displace(claim: &Claim, socket: &mut Socket, host: &mut PodSocket) -> Result<(), CniError> {
    let mine = claim.elements();
    for (set, raw) in held(socket)? {
        if !mine.iter().any(|e| e.set == set && e.key == raw.key && e.data != raw.data) {
            continue;
        }
        let owner = owner_of(&raw.comment);
        if owner != claim.owner && host.link(owner).map_err(kernel)?.is_some() {
            let holder = raw.comment.split(' ').next_back().unwrap_or_default();
            return Err(CniError::new(Code::PortTaken, format!("a port of this node is taken by {holder}")));
        }
        delete_one(socket, set, &raw)?;
    }
    Ok(())
}

fn element_of(set: &'static str, raw: &Raw) -> Element {
    Element { set, key: raw.key.clone(), data: raw.data.clone() }
}

fn raw(element: &Element, comment: &str) -> Raw {
    let Element { key, data, .. } = element.clone();
    Raw { key, data, comment: comment.to_owned(), ..Raw::default() }
}

fn add(socket: &mut Socket, claim: &Claim) -> Result<(), ElementError> {
    let comment = claim.comment();
    let mut batch = Batch::new(table());
    for element in claim.elements() {
        batch.add(element.set, &raw(&element, &comment))?;
    }
    batch.commit(socket)
}

/// What is in the table. A set that is not there holds nothing.
fn held(socket: &mut Socket) -> Result<Vec<(&'static str, Raw)>, CniError> {
    let mut held = Vec::new();
    for set in SETS.into_iter().flatten() {
        match dump(socket, table(), set) {
            Err(ElementError::NoSuchSet { .. }) => {}
            found => held.extend(found.map_err(kernel)?.into_iter().map(|raw| (set, raw))),
        }
    }
    Ok(held)
}

/// Takes the elements of a claim out of the kernel, and ends what flows by them.
fn withdraw(claim: &Claim, socket: &mut Socket, host: &mut PodSocket) -> Result<(), CniError> {
    let mut batch = Batch::new(table());
    let elements = claim.elements();
    for element in &elements {
        batch.delete(element.set, &raw(element, "")).map_err(kernel)?;
    }
    match batch.commit(socket) {
        Ok(()) | Err(ElementError::NoSuchSet { .. }) => {}
        // Some are gone already: the others one by one.
        Err(ElementError::Refused { code: Errno::ENOENT, .. }) => {
            for element in &elements {
                delete_one(socket, element.set, &raw(element, ""))?;
            }
        }
        Err(error) => return Err(kernel(error)),
    }
    end_flows(claim, socket, host, false)
}

fn delete_one(socket: &mut Socket, set: &str, element: &Raw) -> Result<(), CniError> {
    let mut batch = Batch::new(table());
    batch.delete(set, element).map_err(kernel)?;
    match batch.commit(socket) {
        Ok(()) | Err(ElementError::NoSuchSet { .. } | ElementError::Refused { code: Errno::ENOENT, .. }) => {
            Ok(())
        }
        Err(error) => Err(kernel(error)),
    }
}

/// Lets packets from 127.0.0.1 out to the bridge. The table's chain `guard` lets none from pods in.
fn let_loopback_out(bridge: &str) -> Result<(), CniError> {
    let escaped = bridge.replace('.', "/");
    write_sysctl(&format!("net.ipv4.conf.{escaped}.route_localnet"), "1").map_err(kernel)
}

/// Ends flows of datagram protocols that would go on past new ports, or by ports that are gone (k8s#59368).
fn end_flows(claim: &Claim, socket: &mut Socket, host: &mut PodSocket, opened: bool) -> Result<(), CniError> {
    if !claim.has_datagrams() {
        return Ok(());
    }
    let local = if opened { host.all_addresses().map_err(kernel)? } else { Vec::new() };
    let is_local = |address: std::net::IpAddr| address.is_loopback() || local.contains(&address);
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        if !claim.ports.iter().any(|port| port.protocol == protocol) {
            continue;
        }
        for (family, v4) in [(Family::V4, true), (Family::V6, false)] {
            if !claim.addresses.iter().any(|address| address.is_ipv4() == v4) {
                continue;
            }
            let flows = match conntrack::dump(socket, family, protocol.number()) {
                // No connection was ever tracked in this namespace.
                Err(NetlinkError::Refused { code: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => continue,
                flows => flows.map_err(kernel)?,
            };
            let stale = |flow: &Flow| {
                let (original, answers) = (flow.original.destination, flow.reply.source);
                if opened {
                    claim.diverts(protocol.number(), original, answers, is_local)
                } else {
                    claim.carries(protocol.number(), original, answers)
                }
            };
            for flow in flows.iter().filter(|flow| stale(flow)) {
                conntrack::delete(socket, &flow.original, flow.zone, flow.id).map_err(kernel)?;
            }
        }
    }
    Ok(())
}
