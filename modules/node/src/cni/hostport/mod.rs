//! Ports of the node that lead to pods: claims on the disk, elements in the kernel.
//!
//! `<dataDir>/.hostports/<boot id>/<owner>` is a [`Claim`] each, for all networks: the node has its ports only once. A
//! directory per boot, as in the IPAM store and for the same reason. `<dataDir>/.hostports/lock` orders who looks for
//! conflicts and who changes elements; [`ports`](super::ports) says whether there is anything to look for. An ADD holds a
//! lock on its claim until it is done: till then its claim is valid without a link, and its elements are its own business.
//! A claim without either is what a vanished pod left.
//!
//! Order: a claim is written before the pod is made, its elements come last; DEL takes the elements first. So an
//! address is never free while a port leads to it.

mod elements;
mod flows;
mod notes;
mod sync;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use homelab_cni::hostport::{Claim, Element};
use homelab_cni::{Attachment, Base, CniError, Code, Network};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::ElementError;
use homelab_linux::pod::PodSocket;
use homelab_model::ours;
use nix::errno::Errno;

use super::ports::places;
use super::store::boot;
use elements::{add, displace, element_of, held, let_loopback_out, withdraw};
use flows::end_flows;
use notes::{open, read};

/// How often to look for a table that the agent is just bringing back, [`TABLE_PAUSE`] apart.
pub(super) const TABLE_TRIES: usize = 50;
pub(super) const TABLE_PAUSE: Duration = Duration::from_millis(20);

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CniError {
    move |error| CniError::with(Code::Io, format!("host ports {}", path.display()), error)
}

fn kernel<E: std::fmt::Display>(error: E) -> CniError {
    CniError::with(Code::Kernel, "the kernel refused host ports", error)
}

/// All claims of a node.
#[derive(Debug)]
pub(crate) struct Claims {
    root: PathBuf,
    boot: PathBuf,
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

impl Claims {
    /// The claims below a data directory. Makes nothing on the disk.
    pub(crate) fn of(data_dir: &Path) -> Result<Claims, CniError> {
        let root = data_dir.join(".hostports");
        let boot = root.join(boot()?);
        Ok(Claims { root, boot })
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

    /// Takes the elements of an attachment that had a link and no reservation: its claim may have been lost as well.
    pub(crate) fn purge(owner: &str) -> Result<(), CniError> {
        elements::purge(&mut Socket::netfilter().map_err(kernel)?, owner)
    }

    /// Notes what is in the kernel of pods whose notes are lost.
    pub(crate) fn adopt(&self, host: &mut PodSocket) -> Result<(), CniError> {
        let mut socket = Socket::netfilter().map_err(kernel)?;
        if held(&mut socket)?.is_empty() {
            return Ok(());
        }
        self.lock()?.adopt(&mut socket, host)
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
