//! Services in the kernel: the elements of the proxy's sets, and the connections that they made.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use homelab_model::service::Protocol;
use homelab_model::{Change, NodeObject, ServiceElements, Spec, ours};
use homelab_proxy::bytes::Bytes;
use homelab_proxy::delta::{Delta, delta, differing};
use homelab_proxy::element::{Element, Frontend, Set};
use homelab_proxy::stale::{self, Connection, Remembered};
use homelab_proxy::{Elements, service_objects};
use nix::errno::Errno;

use crate::conntrack::{self, Family, Flow};
use crate::error::{Error, netlink};
use crate::netlink::{Socket, nft_generation, nft_table};
use crate::nft::elements::{Batch, Element as Raw, ElementError, count, dump, has_all};

/// How often a state that changes while it is read is read again, and a change that meets another one is tried again.
const TRIES: usize = 5;
/// A set of so many elements is asked for each of them before it is read: from here on that is cheaper.
const LARGE: usize = 65_536;

/// What the sets of the proxy's table hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// By service; under an empty name those that say of no service that they are its.
    pub elements: Elements,
    /// Elements that nothing of ours would make, with their sets.
    pub strays: Vec<(String, Raw)>,
}

/// What a [`Proxy::sync`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synced {
    /// Elements that were added.
    pub added: usize,
    /// Elements that were deleted.
    pub deleted: usize,
    /// Connections of datagram protocols that were ended.
    pub ended: usize,
    /// Clients that no longer stay with an endpoint that is gone.
    pub released: usize,
    /// Transactions that all this took.
    pub transactions: u32,
}

/// Which part of the connections to look at after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// Those that the change may have made wrong.
    OfChange,
    /// All: an earlier process may have ended between a change and this.
    All,
}

/// The proxy's sets in the kernel, with what is known of them.
#[derive(Debug, Default)]
pub(crate) struct Proxy {
    /// At this generation of the rulesets.
    known: Option<(u32, Held)>,
}

fn failed(error: ElementError) -> Error {
    Error::Services(Box::new(error))
}

fn raw(service: &str, element: &Element) -> Raw {
    let Bytes { key, key_end, data } = Bytes::from(element);
    Raw { key, key_end, data, comment: service.to_owned(), expires: None }
}

/// All sets that services fill, with their families.
fn filled() -> impl Iterator<Item = (Set, bool)> {
    let sets = Set::all().into_iter().filter(|set| *set != Set::Affinity);
    sets.flat_map(|set| [(set, true), (set, false)])
}

fn table() -> &'static str {
    nft_table(ours::PROXY_TABLE).1
}

/// Whether a set holds just these elements, for all that the kernel says without a reading of all of them.
fn is_just<'a>(
    socket: &mut Socket,
    set: &str,
    elements: impl Iterator<Item = (&'a String, &'a Element)> + Clone,
) -> Result<bool, ElementError> {
    Ok(count(socket, table(), set)? == Some(elements.clone().count())
        && has_all(socket, table(), set, elements.map(|(service, element)| raw(service, element)))?)
}

/// Reads all elements. A set that is not there holds none. Of a large set that holds what is `expected` it is enough to
/// see that it does.
fn read(socket: &mut Socket, expected: &Elements) -> Result<Held, Error> {
    let mut held = Held::default();
    let mut sizes: HashMap<(Set, bool), usize> = HashMap::new();
    for element in expected.values().flatten() {
        *sizes.entry((element.set(), element.is_ipv4())).or_default() += 1;
    }
    for (set, v4) in filled() {
        let name = set.name(v4);
        let is_of = move |element: &&Element| element.set() == set && element.is_ipv4() == v4;
        let wanted = expected.iter().flat_map(|(service, elements)| {
            elements.iter().filter(is_of).map(move |element| (service, element))
        });
        let is_large = sizes.get(&(set, v4)).is_some_and(|size| *size >= LARGE);
        if is_large && is_just(socket, &name, wanted.clone()).map_err(failed)? {
            for (service, element) in wanted {
                held.elements.entry(service.clone()).or_default().push(*element);
            }
            continue;
        }
        let found = match dump(socket, table(), &name) {
            Err(ElementError::NoSuchSet { .. }) => continue,
            found => found.map_err(failed)?,
        };
        for Raw { key, key_end, data, comment, expires } in found {
            let bytes = Bytes { key, key_end, data };
            match bytes.element(set, v4) {
                Some(element) => held.elements.entry(comment).or_default().push(element),
                None => {
                    let Bytes { key, key_end, data } = bytes;
                    held.strays.push((name.clone(), Raw { key, key_end, data, comment, expires }));
                }
            }
        }
    }
    held.elements.values_mut().for_each(|elements| elements.sort_unstable());
    held.strays.sort();
    Ok(held)
}

impl Proxy {
    /// What the sets hold. Reads them only if any ruleset has changed since they were last known.
    pub(crate) fn held(&mut self, socket: &mut Socket) -> Result<&Held, Error> {
        self.held_as(socket, &Elements::new())
    }

    /// The same, at less cost where it is what is `expected`.
    fn held_as(&mut self, socket: &mut Socket, expected: &Elements) -> Result<&Held, Error> {
        for left in (0..TRIES).rev() {
            let now = generation(socket)?;
            if self.known.as_ref().is_some_and(|(known, _)| *known == now) {
                break;
            }
            self.known = None;
            let held = read(socket, expected)?;
            // What changes all the time is better read as it was a moment ago than not at all.
            if left == 0 || generation(socket)? == now {
                self.known = Some((now, held));
                break;
            }
        }
        Ok(&self.known.get_or_insert_default().1)
    }

    /// The generation of the rulesets at which the sets are known.
    pub(crate) fn generation(&self) -> Option<u32> {
        self.known.as_ref().map(|(generation, _)| *generation)
    }

    /// This process made so many transactions that left the sets of services alone. Others' make the number of the
    /// generation higher than that, and the sets are read again.
    pub(crate) fn count(&mut self, transactions: u32) {
        if let Some((known, _)) = &mut self.known {
            *known = known.wrapping_add(transactions);
        }
    }

    /// Somebody else may have changed the sets.
    pub(crate) fn forget(&mut self) {
        self.known = None;
    }

    /// Makes the sets hold `target` and nothing else, in one transaction, and ends what that leaves stale.
    pub(crate) fn sync(
        &mut self,
        socket: &mut Socket,
        target: &Elements,
        connections: Connections,
    ) -> Result<Synced, Error> {
        let mut done = Done::default();
        for left in (0..TRIES).rev() {
            let held = self.held_as(socket, target)?;
            let (before, after) = differing(&held.elements, target);
            if before.is_empty() && after.is_empty() && held.strays.is_empty() {
                break;
            }
            let strays = held.strays.clone();
            if let Some(synced) = self.change(socket, &before, &after, &strays, left > 0)? {
                done = Done { synced, before, after };
                break;
            }
        }
        match connections {
            Connections::All => self.end(socket, done.synced, &done.before, target, true),
            Connections::OfChange => self.end(socket, done.synced, &done.before, &done.after, false),
        }
    }

    /// The same for the services of `changed` alone; one without elements is gone. Costs nothing for others: they are
    /// taken to be as they were last seen.
    pub(crate) fn sync_changed(&mut self, socket: &mut Socket, changed: &Elements) -> Result<Synced, Error> {
        for left in (0..TRIES).rev() {
            if self.known.is_none() {
                self.held_as(socket, changed)?;
            }
            let held = self.known.as_ref().map(|(_, held)| &held.elements);
            let known = |name: &String| Some((name.clone(), held?.get(name)?.clone()));
            let (before, after) = differing(&changed.keys().filter_map(known).collect(), changed);
            if before.is_empty() && after.is_empty() {
                return Ok(Synced::default());
            }
            if let Some(synced) = self.change(socket, &before, &after, &[], left > 0)? {
                return self.end(socket, synced, &before, &after, false);
            }
        }
        Ok(Synced::default())
    }

    /// One transaction that makes `after` of `before`, some of what is known to be there. None if somebody else changed
    /// it meanwhile, which is an error unless it can be tried `again`.
    fn change(
        &mut self,
        socket: &mut Socket,
        before: &Elements,
        after: &Elements,
        strays: &[(String, Raw)],
        again: bool,
    ) -> Result<Option<Synced>, Error> {
        let change = delta(before, after);
        let (deleted, added) = (change.delete.len() + strays.len(), change.add.len());
        let batch = batch(&change, strays).map_err(failed)?;
        // Unless it is told to have been done, nothing is known of what came of it.
        let known = self.known.take();
        match batch.commit(socket) {
            Ok(()) => {
                self.known = known.map(|(generation, mut held)| {
                    before.keys().for_each(|name| drop(held.elements.remove(name)));
                    held.elements
                        .extend(after.iter().map(|(name, elements)| (name.clone(), elements.clone())));
                    if !strays.is_empty() {
                        held.strays.clear();
                    }
                    // Each transaction counts one; if there were others the sets are read again.
                    (generation.wrapping_add(1), held)
                });
                Ok(Some(Synced { added, deleted, transactions: 1, ..Synced::default() }))
            }
            Err(error) if again && is_race(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Ends what a change from `before` to `after` leaves stale: with `all` these are states, else the differing parts
    /// of two states.
    fn end(
        &mut self,
        socket: &mut Socket,
        synced: Synced,
        before: &Elements,
        after: &Elements,
        all: bool,
    ) -> Result<Synced, Error> {
        if !all && before.is_empty() && after.is_empty() {
            return Ok(synced);
        }
        let ended = end_stale(socket, before, after)?;
        let (released, transactions) = release(socket, before, after, all)?;
        self.count(transactions);
        Ok(Synced { ended, released, transactions: synced.transactions + transactions, ..synced })
    }
}

/// A change that was made.
#[derive(Default)]
struct Done {
    synced: Synced,
    before: Elements,
    after: Elements,
}

fn generation(socket: &mut Socket) -> Result<u32, Error> {
    Ok(netlink("reading nftables", nft_generation(socket))?.unwrap_or_default())
}

fn is_race(error: &ElementError) -> bool {
    matches!(error, ElementError::Refused { code: Errno::ENOENT | Errno::EEXIST | Errno::EBUSY, .. })
}

fn batch(change: &Delta<'_>, strays: &[(String, Raw)]) -> Result<Batch, ElementError> {
    let mut batch = Batch::new(table());
    for (set, stray) in strays {
        batch.delete(set, stray)?;
    }
    // One set after the other: a message holds elements of one set.
    let by_set = |elements: &[(&str, Element)]| {
        let mut sorted: Vec<(Set, bool, String, Element)> =
            elements.iter().map(|(name, e)| (e.set(), e.is_ipv4(), (*name).to_owned(), *e)).collect();
        sorted.sort_unstable();
        sorted
    };
    for (set, v4, service, element) in by_set(&change.delete) {
        batch.delete(&set.name(v4), &raw(&service, &element))?;
    }
    for (set, v4, service, element) in by_set(&change.add) {
        batch.add(&set.name(v4), &raw(&service, &element))?;
    }
    Ok(batch)
}

/// A flow as the proxy sees it.
pub(crate) fn connection(flow: &Flow, protocol: Protocol) -> Connection {
    let to = flow.original.destination;
    Connection {
        client: flow.original.source,
        to: Frontend { address: to.ip(), protocol, port: to.port() },
        endpoint: flow.reply.source,
    }
}

/// The clients that session affinity remembers.
pub(crate) fn remembered(socket: &mut Socket) -> Result<Vec<Remembered>, Error> {
    let mut clients = Vec::new();
    for v4 in [true, false] {
        let entries = match dump(socket, table(), &Set::Affinity.name(v4)) {
            Err(ElementError::NoSuchSet { .. }) => continue,
            entries => entries.map_err(failed)?,
        };
        clients.extend(
            entries
                .into_iter()
                .filter_map(|Raw { key, data, .. }| Bytes { key, key_end: None, data }.remembered(v4)),
        );
    }
    Ok(clients)
}

/// Ends connections of datagram protocols that go on to where they should not.
fn end_stale(socket: &mut Socket, before: &Elements, after: &Elements) -> Result<usize, Error> {
    let used = |protocol: Protocol| {
        let elements = before.values().chain(after.values()).flatten();
        elements.filter_map(Element::frontend).any(|frontend| frontend.protocol == protocol)
    };
    let mut ended = 0;
    for protocol in [Protocol::Udp, Protocol::Sctp].into_iter().filter(|p| used(*p)) {
        for family in [Family::V4, Family::V6] {
            let flows = conntrack::dump(socket, family, protocol.number());
            let flows = netlink("reading connections", flows)?;
            let connections: Vec<Connection> = flows.iter().map(|flow| connection(flow, protocol)).collect();
            let stale: HashSet<(SocketAddr, SocketAddr)> = stale::stale(&connections, before, after)
                .into_iter()
                .map(|c| (c.client, SocketAddr::new(c.to.address, c.to.port)))
                .collect();
            for flow in flows.iter().filter(|f| stale.contains(&(f.original.source, f.original.destination)))
            {
                let deleted = conntrack::delete(socket, &flow.original, flow.zone, flow.id);
                ended += usize::from(netlink("ending a connection", deleted)?);
            }
        }
    }
    Ok(ended)
}

/// Lets clients go that stay with an endpoint which their service no longer has. Says how many, and in how many
/// transactions.
fn release(
    socket: &mut Socket,
    before: &Elements,
    after: &Elements,
    all: bool,
) -> Result<(usize, u32), Error> {
    let sticky = |elements: &Elements| elements.values().flatten().any(|e| matches!(e, Element::Sticky(_)));
    if !all && !sticky(before) && !sticky(after) {
        return Ok((0, 0));
    }
    // Clients of what has not changed stay.
    let of_both = before.values().chain(after.values()).flatten();
    let changed: HashSet<_> = of_both.filter_map(Element::frontend).collect();
    let (mut released, mut transactions) = (0, 0);
    for v4 in [true, false] {
        let set = Set::Affinity.name(v4);
        // An entry that expires meanwhile spoils a transaction: what is left is read again.
        for left in (0..TRIES).rev() {
            let entries = match dump(socket, table(), &set) {
                Err(ElementError::NoSuchSet { .. }) => break,
                entries => entries.map_err(failed)?,
            };
            let mut batch = Batch::new(table());
            let mut clients = Vec::new();
            for entry in &entries {
                let Raw { key, data, .. } = entry.clone();
                match (Bytes { key, key_end: None, data }).remembered(v4) {
                    Some(client) if all || changed.contains(&client.frontend) => {
                        clients.push((client, entry))
                    }
                    Some(_) => {}
                    None => batch.delete(&set, entry).map_err(failed)?,
                }
            }
            let known: Vec<_> = clients.iter().map(|(client, _)| *client).collect();
            let forgotten: HashSet<_> = stale::forgotten(&known, after).into_iter().collect();
            for (_, entry) in clients.iter().filter(|(client, _)| forgotten.contains(client)) {
                batch.delete(&set, entry).map_err(failed)?;
            }
            let count = batch.len();
            match batch.commit(socket) {
                Err(error) if left > 0 && is_race(&error) => {}
                Err(error) => return Err(failed(error)),
                Ok(()) => {
                    released += count;
                    transactions += u32::from(count > 0);
                    break;
                }
            }
        }
    }
    Ok((released, transactions))
}

/// Beginning of a key in a line of an element that nothing of ours would make.
const HEX: char = '#';

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn stray_line(set: &str, stray: &Raw) -> String {
    let part = |sign: &str, bytes: &Option<Vec<u8>>| {
        bytes.as_ref().map_or(String::new(), |bytes| format!("{sign}{}", hex(bytes)))
    };
    format!("{set} {HEX}{}{}{}", hex(&stray.key), part("-", &stray.key_end), part(":", &stray.data))
}

impl Held {
    /// As objects.
    pub fn objects(&self) -> Vec<Spec> {
        let mut objects: BTreeMap<String, ServiceElements> = BTreeMap::new();
        for spec in service_objects(&self.elements) {
            if let Spec::Service(service) = spec {
                objects.insert(service.name.clone(), service);
            }
        }
        for (set, stray) in &self.strays {
            let name = stray.comment.clone();
            let empty = || ServiceElements { name: name.clone(), elements: Vec::new() };
            objects.entry(name.clone()).or_insert_with(empty).elements.push(stray_line(set, stray));
        }
        objects.into_values().map(Spec::Service).collect()
    }
}

/// What the sets should hold when `changes` are made to what they hold.
///
/// # Errors
/// An object says something that is no element. Elements that nothing of ours would make cannot be made again.
pub(crate) fn target(held: &Held, changes: &[&Change<NodeObject>]) -> Result<Elements, Error> {
    let mut target = held.elements.clone();
    for change in changes {
        if let Some(Spec::Service(before)) = change.before().map(|o| &o.spec) {
            target.remove(&before.name);
        }
        if let Some(Spec::Service(after)) = change.after().map(|o| &o.spec) {
            let known = after.elements.iter().filter(|line| !line.contains(HEX));
            let read = known.map(|line| {
                Element::from_line(line).ok_or_else(|| {
                    Error::Invalid(format!("service {}: {line:?} is no element of a set", after.name))
                })
            });
            let mut elements: Vec<Element> = read.collect::<Result<_, _>>()?;
            elements.sort_unstable();
            target.insert(after.name.clone(), elements);
        }
    }
    Ok(target)
}

/// Whether a change is one of a service.
pub(crate) fn is_service(change: &Change<NodeObject>) -> bool {
    let object = change.after().or(change.before());
    object.is_some_and(|o| matches!(o.spec, Spec::Service(_)))
}
