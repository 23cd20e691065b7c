//! Elements in the kernel.

use homelab_cni::hostport::{Claim, Element, SETS, owner_of};
use homelab_cni::{CniError, Code};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element as Raw, ElementError, dump};
use homelab_linux::pod::{PodSocket, write_sysctl};
use homelab_model::ours;
use nix::errno::Errno;

use super::flows::end_flows;
use super::kernel;

pub(super) fn table() -> &'static str {
    ours::HOSTPORT_TABLE.split_once(' ').map_or(ours::HOSTPORT_TABLE, |(_, name)| name)
}

pub(super) fn element_of(set: &'static str, raw: &Raw) -> Element {
    Element { set, key: raw.key.clone(), data: raw.data.clone() }
}

pub(super) fn raw(element: &Element, comment: &str) -> Raw {
    let Element { key, data, .. } = element.clone();
    Raw { key, data, comment: comment.to_owned(), ..Raw::default() }
}

pub(super) fn add(socket: &mut Socket, claim: &Claim) -> Result<(), ElementError> {
    let comment = claim.comment();
    let mut batch = Batch::new(table());
    for element in claim.elements() {
        batch.add(element.set, &raw(&element, &comment))?;
    }
    batch.commit(socket)
}

/// What is in the table. A set that is not there holds nothing.
pub(super) fn held(socket: &mut Socket) -> Result<Vec<(&'static str, Raw)>, CniError> {
    let mut held = Vec::new();
    for set in SETS.into_iter().flatten() {
        match dump(socket, table(), set) {
            Err(ElementError::NoSuchSet { .. }) => {}
            found => held.extend(found.map_err(kernel)?.into_iter().map(|raw| (set, raw))),
        }
    }
    Ok(held)
}

/// Elements that stand for no claim but have one of our keys: gone, unless their pod is there.
pub(super) fn displace(claim: &Claim, socket: &mut Socket, host: &mut PodSocket) -> Result<(), CniError> {
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

/// Takes the elements of a claim out of the kernel, and ends what flows by them.
pub(super) fn withdraw(claim: &Claim, socket: &mut Socket, host: &mut PodSocket) -> Result<(), CniError> {
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

/// Takes the elements out that name an owner.
pub(super) fn purge(socket: &mut Socket, owner: &str) -> Result<(), CniError> {
    for (set, raw) in held(socket)? {
        if owner_of(&raw.comment) == owner {
            delete_one(socket, set, &raw)?;
        }
    }
    Ok(())
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
pub(super) fn let_loopback_out(bridge: &str) -> Result<(), CniError> {
    let escaped = bridge.replace('.', "/");
    write_sysctl(&format!("net.ipv4.conf.{escaped}.route_localnet"), "1").map_err(kernel)
}
