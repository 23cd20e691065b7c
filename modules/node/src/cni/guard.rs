//! Spoof protection in the kernel: the elements of a pod's port, as [`homelab_cni::guard_elements`] has them. What they
//! should be stands in the alias of the pod's link; nothing is on the disk.

use std::collections::BTreeSet;

use homelab_cni::hostport::Element;
use homelab_cni::{CniError, Code, GUARD_SETS, guard_elements, guarded_port};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element as Raw, ElementError, dump};
use homelab_linux::pod::PodSocket;
use homelab_model::{OwnAddresses, PodMarks, ours};
use nix::errno::Errno;

use super::hostport::{TABLE_PAUSE, TABLE_TRIES};

fn kernel<E: std::fmt::Display>(error: E) -> CniError {
    CniError::with(Code::Kernel, "the kernel refused spoof protection", error)
}

fn raw(element: &Element) -> Raw {
    Raw { key: element.key.clone(), ..Raw::default() }
}

/// The guard of a pod whose ADD is under way.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    port: &'a str,
    own: &'a OwnAddresses,
    /// Of the node's namespace, which this process leaves while it sets up the pod.
    socket: Socket,
}

impl<'a> Guard<'a> {
    /// None where the pod may send by any address.
    pub(super) fn of(port: &'a str, marks: &'a PodMarks) -> Result<Option<Guard<'a>>, CniError> {
        let Some(own) = &marks.own else { return Ok(None) };
        Ok(Some(Guard { port, own, socket: Socket::netfilter().map_err(kernel)? }))
    }

    /// Lets the pod send by its own addresses only. A pod that only seems to be guarded is worse than none.
    pub(super) fn close(&mut self) -> Result<(), CniError> {
        for left in (0..TABLE_TRIES).rev() {
            let mut batch = Batch::new(ours::BRIDGE_TABLE);
            for element in guard_elements(self.port, self.own) {
                batch.add(element.set, &raw(&element)).map_err(kernel)?;
            }
            match batch.commit(&mut self.socket) {
                Ok(()) => return Ok(()),
                Err(ElementError::NoSuchSet { .. }) if left > 0 => std::thread::sleep(TABLE_PAUSE),
                Err(ElementError::NoSuchSet { .. }) => break,
                Err(error) => return Err(kernel(error)),
            }
        }
        Err(CniError::with(
            Code::TryAgain,
            format!("no pod can be guarded: table {} is missing", ours::BRIDGE_TABLE),
            format!("the agent ({}) makes it", ours::UNIT),
        ))
    }
}

/// Takes the elements of a port away: all that there are where its addresses are not known any more.
pub(super) fn remove(port: &str, own: Option<&OwnAddresses>) -> Result<(), CniError> {
    let mut socket = Socket::netfilter().map_err(kernel)?;
    let elements = match own {
        Some(own) => guard_elements(port, own),
        None => held(&mut socket)?.into_iter().filter(|e| guarded_port(&e.key) == port).collect(),
    };
    delete(&mut socket, &elements)
}

fn delete(socket: &mut Socket, elements: &[Element]) -> Result<(), CniError> {
    let commit = |socket: &mut Socket, elements: &[Element]| {
        let mut batch = Batch::new(ours::BRIDGE_TABLE);
        elements.iter().try_for_each(|element| batch.delete(element.set, &raw(element)))?;
        if batch.is_empty() { Ok(()) } else { batch.commit(socket) }
    };
    let absent = |result| match result {
        Err(ElementError::NoSuchSet { .. } | ElementError::Refused { code: Errno::ENOENT, .. }) => Ok(()),
        other => other.map_err(kernel),
    };
    match commit(socket, elements) {
        // Some are gone already: the others one by one.
        Err(ElementError::Refused { code: Errno::ENOENT, .. }) => {
            elements.iter().try_for_each(|one| absent(commit(socket, std::slice::from_ref(one))))
        }
        other => absent(other),
    }
}

/// What is in the table. A set that is not there holds nothing.
fn held(socket: &mut Socket) -> Result<Vec<Element>, CniError> {
    let mut held = Vec::new();
    for set in GUARD_SETS {
        match dump(socket, ours::BRIDGE_TABLE, set) {
            Err(ElementError::NoSuchSet { .. }) => {}
            found => {
                let of_set = |raw: Raw| Element { set, key: raw.key, data: None };
                held.extend(found.map_err(kernel)?.into_iter().map(of_set));
            }
        }
    }
    Ok(held)
}

/// The first element of a port that is missing, in words: CHECK.
pub(super) fn missing(port: &str, own: &OwnAddresses) -> Result<Option<String>, CniError> {
    let held = held(&mut Socket::netfilter().map_err(kernel)?)?;
    let missing = guard_elements(port, own).into_iter().find(|element| !held.contains(element));
    Ok(missing.map(|element| format!("an element of set {} in table {}", element.set, ours::BRIDGE_TABLE)))
}

/// Makes the kernel hold the elements of all pods that are guarded, and no others: the agent does, after a flush and now
/// and then. Says how many it added and deleted.
pub(crate) fn sync() -> Result<(usize, usize), CniError> {
    let mut socket = Socket::netfilter().map_err(kernel)?;
    // Before the links: an element is younger than its link. What a DEL takes meanwhile comes back here and goes the
    // next time.
    let held: BTreeSet<Element> = held(&mut socket)?.into_iter().collect();
    let links = PodSocket::open().and_then(|mut host| host.links()).map_err(kernel)?;
    let pods = links.iter().filter(|link| link.alias.starts_with(ours::POD_ALIAS));
    let guarded = pods.filter_map(|link| Some((link.name.as_str(), PodMarks::of_alias(&link.alias).own?)));
    let wanted: BTreeSet<Element> = guarded.flat_map(|(port, own)| guard_elements(port, &own)).collect();
    let stale: Vec<Element> = held.difference(&wanted).cloned().collect();
    delete(&mut socket, &stale)?;
    let mut batch = Batch::new(ours::BRIDGE_TABLE);
    for element in wanted.difference(&held) {
        batch.add(element.set, &raw(element)).map_err(kernel)?;
    }
    let added = batch.len();
    if added == 0 {
        return Ok((0, stale.len()));
    }
    match batch.commit(&mut socket) {
        // The table is about to come, and this is called again then.
        Err(ElementError::NoSuchSet { .. }) => Ok((0, stale.len())),
        other => other.map_err(kernel).map(|()| (added, stale.len())),
    }
}
