//! Links and what hangs on them: reading all that is ours, and making and deleting single objects.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use homelab_model::{Address, Change, Fdb, Link, LinkKind, Neighbour, NodeObject, Route, Spec, ours};
use ipnet::IpNet;
use nix::errno::Errno;

use crate::error::{Error, netlink};
use crate::netlink::{Ethtool, NetlinkError, Socket};
use crate::rt::{self, LinkInfo, RouteFilter, RouteInfo};

mod change;
mod link;

/// Tables of the kernel at a moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) links: Vec<LinkInfo>,
    /// Index of the link, address.
    pub(crate) addresses: Vec<(u32, IpNet)>,
    /// Routes of the main table: all, or only ours.
    pub(crate) routes: Vec<RouteInfo>,
}

/// The kernel's network state in one network namespace.
#[derive(Debug)]
pub(crate) struct Kernel {
    socket: Socket,
    ethtool: Option<Ethtool>,
    /// Index of a link by name, and whether it is ours. Valid until a link changes.
    indices: HashMap<String, (u32, bool)>,
    /// Destination and metric of our routes. Valid until an address or a link changes.
    routes: Option<BTreeSet<(IpNet, u32)>>,
    /// What must wait for a later change.
    pending: Vec<Pending>,
    /// Links without our mark that the changes at hand know as ours.
    claims: Vec<Link>,
}

/// An object that the kernel does not take yet.
#[derive(Debug)]
struct Pending {
    spec: Spec,
    /// Why, if a change asks for it; None if the kernel took it away with something else.
    asked: Option<Error>,
}

/// Whether an error says that what should go is gone.
fn is_gone(error: &NetlinkError) -> bool {
    [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL].iter().any(|&code| error.is(code))
}

pub(crate) fn is_link_local(address: &IpNet) -> bool {
    matches!(address.addr(), IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80)
}

impl Kernel {
    pub(crate) fn open() -> Result<Kernel, Error> {
        let socket = netlink("opening a netlink socket", Socket::route())?;
        let (indices, pending, claims) = Default::default();
        Ok(Kernel { socket, ethtool: None, indices, routes: None, pending, claims })
    }

    /// Reads links, addresses and routes; of routes only ours unless `all_routes`.
    pub(crate) fn snapshot(&mut self, all_routes: bool) -> Result<Snapshot, Error> {
        let protocol = (!all_routes).then_some(ours::ROUTE_PROTOCOL);
        Ok(Snapshot {
            links: netlink("reading links", rt::links(&mut self.socket))?,
            addresses: netlink("reading addresses", rt::addresses(&mut self.socket, None))?,
            routes: netlink(
                "reading routes",
                rt::routes(&mut self.socket, RouteFilter { protocol, ..RouteFilter::default() }),
            )?,
        })
    }

    /// What of a snapshot is ours, with the neighbours and forwarding entries of our links. Links under one of
    /// `names` that have not our mark are among them: who knows what was recorded can tell whose they are.
    pub(crate) fn objects(
        &mut self,
        snapshot: &Snapshot,
        names: &BTreeSet<&str>,
    ) -> Result<Vec<Spec>, Error> {
        let mut found = Vec::new();
        let ours = |l: &&LinkInfo| l.alias == ours::LINK_ALIAS || names.contains(l.name.as_str());
        for link in snapshot.links.iter().filter(ours) {
            found.push(Spec::Link(self.link(link)?));
            let own =
                snapshot.addresses.iter().filter(|(index, a)| *index == link.index && !is_link_local(a));
            found
                .extend(own.map(|&(_, address)| Spec::Address(Address { link: link.name.clone(), address })));
            if link.vxlan.is_some() {
                found.extend(self.entries(link.index, &link.name)?);
            }
        }
        found.extend(our_routes(snapshot));
        Ok(found)
    }

    fn link(&mut self, info: &LinkInfo) -> Result<Link, Error> {
        let kind = match (&info.vxlan, info.stp) {
            (Some(vxlan), _) => LinkKind::Vxlan {
                vni: vxlan.vni,
                port: vxlan.port,
                // A link without one listens on every address.
                local: vxlan.local.unwrap_or(IpAddr::from([0, 0, 0, 0])),
                learning: vxlan.learning,
                checksum_offload: self.checksum_offload(info)?,
            },
            (None, Some(stp)) => LinkKind::Bridge { stp },
            (None, None) => LinkKind::Other { r#type: info.kind.clone() },
        };
        Ok(Link {
            name: info.name.clone(),
            mac: info.mac.clone(),
            mtu: info.mtu,
            up: info.up,
            alias: info.alias.clone(),
            kind,
        })
    }

    fn ethtool(&mut self) -> Result<&mut Ethtool, NetlinkError> {
        let ethtool = match self.ethtool.take() {
            Some(open) => open,
            None => Ethtool::open()?,
        };
        Ok(self.ethtool.insert(ethtool))
    }

    fn checksum_offload(&mut self, link: &LinkInfo) -> Result<bool, Error> {
        match self.ethtool().and_then(|ethtool| ethtool.checksum_offload(link.index)) {
            Ok(on) => Ok(on),
            // Kernels before 5.8 cannot be asked: it is on unless someone switched it off.
            Err(error) if is_gone(&error) || error.is(Errno::EOPNOTSUPP) => Ok(true),
            Err(error) => netlink(format_args!("reading features of {}", link.name), Err(error)),
        }
    }

    /// Permanent neighbours and forwarding entries of a VXLAN link.
    fn entries(&mut self, index: u32, name: &str) -> Result<Vec<Spec>, Error> {
        let gone = |result: Result<Vec<rt::NeighbourInfo>, NetlinkError>| match result {
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            other => netlink(format_args!("reading neighbours of {name}"), other),
        };
        let link = || name.to_owned();
        let neighbours = gone(rt::neighbours(&mut self.socket, index))?;
        let fdb = gone(rt::fdb(&mut self.socket, index))?;
        // The kernel may not have heeded the filter.
        let permanent = |e: &rt::NeighbourInfo| e.permanent && e.index == index;
        let neighbours = neighbours.into_iter().filter(permanent).filter_map(|e| {
            Some(Spec::Neighbour(Neighbour { link: link(), address: e.address?, mac: e.mac }))
        });
        let fdb = fdb.into_iter().filter(|e| permanent(e) && !e.special).filter_map(|e| {
            // Entries of the kernel's own have no address.
            Some(Spec::Fdb(Fdb { link: link(), mac: e.mac, remote: e.address? }))
        });
        Ok(neighbours.chain(fdb).collect())
    }

    /// Forgets what may have changed since it was read, and learns which links `changes` speak of as ours although
    /// they lost their mark.
    pub(crate) fn begin(&mut self, changes: &[Change<NodeObject>]) {
        self.indices.clear();
        self.routes = None;
        // What a series that failed lost on the way comes back with its undo.
        self.pending.retain(|p| p.asked.is_none());
        self.claims = changes.iter().filter_map(claim).cloned().collect();
    }

    /// Whether a link is ours: by its mark, or because it still is what the changes at hand claim.
    fn is_ours(&self, info: &LinkInfo) -> bool {
        let same_type = |kind: &LinkKind| match kind {
            LinkKind::Vxlan { .. } => info.vxlan.is_some(),
            LinkKind::Bridge { .. } => info.stp.is_some(),
            LinkKind::Other { r#type } => *r#type == info.kind,
        };
        let claimed = |c: &Link| c.name == info.name && c.mac == info.mac && same_type(&c.kind);
        info.alias == ours::LINK_ALIAS || self.claims.iter().any(claimed)
    }

    fn by_name(&mut self, name: &str) -> Result<Option<LinkInfo>, Error> {
        netlink(format_args!("reading link {name}"), rt::link_by_name(&mut self.socket, name))
    }

    /// Index of a link, and whether it is ours.
    fn index(&mut self, name: &str) -> Result<Option<(u32, bool)>, Error> {
        if let Some(&known) = self.indices.get(name) {
            return Ok(Some(known));
        }
        let found = self.by_name(name)?.map(|link| (link.index, self.is_ours(&link)));
        if let Some(known) = found {
            self.indices.insert(name.to_owned(), known);
        }
        Ok(found)
    }

    /// Fails unless the link is ours.
    pub(crate) fn must_be_ours(&mut self, link: &str) -> Result<(), Error> {
        self.our_index(link).map(|_| ())
    }

    fn any_index(&mut self, name: &str) -> Result<u32, Error> {
        match self.index(name)? {
            Some((index, _)) => Ok(index),
            None => Err(Error::Invalid(format!("there is no link {name}"))),
        }
    }

    /// Index of a link of ours.
    fn our_index(&mut self, name: &str) -> Result<u32, Error> {
        match self.index(name)? {
            Some((index, true)) => Ok(index),
            Some(_) => Err(foreign_link(name)),
            None => Err(Error::Invalid(format!("there is no link {name}"))),
        }
    }
}

fn foreign_link(name: &str) -> Error {
    Error::Foreign(format!("the link {name} has another owner (its alias is not {})", ours::LINK_ALIAS))
}

/// The link that an object of the kernel belongs to.
fn link_of(spec: &Spec) -> Option<&str> {
    match spec {
        Spec::Address(o) => Some(&o.link),
        Spec::Neighbour(o) => Some(&o.link),
        Spec::Fdb(o) => Some(&o.link),
        Spec::Route(o) => o.link.as_deref(),
        _ => None,
    }
}

/// The link that a change speaks of as ours although it lost its mark, or is to lose it. It must still have the MAC
/// address and type of the marked side: any other link under that name is a stranger's.
fn claim(change: &Change<NodeObject>) -> Option<&Link> {
    fn link(object: Option<&NodeObject>) -> Option<&Link> {
        match &object?.spec {
            Spec::Link(link) => Some(link),
            _ => None,
        }
    }
    let marked = |link: &&Link| link.alias == ours::LINK_ALIAS;
    match (link(change.before()), link(change.after())) {
        (Some(before), Some(after)) if marked(&before) != marked(&after) => {
            [before, after].into_iter().find(marked)
        }
        (Some(only), None) | (None, Some(only)) => Some(only).filter(|l| !marked(l)),
        _ => None,
    }
}

/// Routes with our protocol number.
fn our_routes(snapshot: &Snapshot) -> Vec<Spec> {
    let names: HashMap<u32, &str> = snapshot.links.iter().map(|l| (l.index, l.name.as_str())).collect();
    let own = snapshot.routes.iter().filter(|r| r.protocol == ours::ROUTE_PROTOCOL);
    own.map(|r| Spec::Route(route(r, &names))).collect()
}

fn route(route: &RouteInfo, names: &HashMap<u32, &str>) -> Route {
    let link = route.link.map(|index| names.get(&index).copied().unwrap_or("?").to_owned());
    Route {
        destination: route.destination,
        metric: route.metric,
        via: route.via,
        link,
        onlink: route.onlink,
        source: route.source,
        r#type: route.kind.to_owned(),
    }
}
