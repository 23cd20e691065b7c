//! Making and deleting single objects. Both may be done twice.

use ipnet::IpNet;
use nix::errno::Errno;

use homelab_model::{Key, Route, Spec, ours};

use super::{Kernel, Pending, is_gone, link_of};
use crate::error::{Error, netlink};
use crate::netlink::NetlinkError;
use crate::rt::{self, NewRoute, RouteFilter};

/// What IPv6 routes without a metric show.
const IPV6_METRIC: u32 = 1024;

pub(super) fn tolerate_gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

pub(super) fn mac(text: &str) -> Result<[u8; 6], Error> {
    rt::parse_mac(text).ok_or_else(|| Error::Invalid(format!("{text:?} is no MAC address")))
}

fn route_key(destination: IpNet, metric: u32) -> (IpNet, u32) {
    if metric == 0 && destination.addr().is_ipv6() {
        (destination, IPV6_METRIC)
    } else {
        (destination, metric)
    }
}

/// Whether a route's error may be gone when links are up and addresses are there.
fn may_come_later(error: &Error) -> bool {
    let Error::Netlink { source, .. } = error else { return false };
    [Errno::ENETDOWN, Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EINVAL].iter().any(|&c| source.is(c))
}

impl Kernel {
    /// Makes the object, or brings what has its name to what it should be. False if it is none of the kernel's.
    ///
    /// A route may come before the address or the link that it needs: undo makes things in another order than they
    /// were made first. It waits, see [`Kernel::finish`].
    pub(crate) fn ensure(&mut self, spec: &Spec) -> Result<bool, Error> {
        let key = spec.key();
        self.pending.retain(|p| p.spec.key() != key);
        match (self.ensure_now(spec), spec) {
            (Err(error), Spec::Route(_)) if may_come_later(&error) => {
                self.pending.push(Pending { spec: spec.clone(), asked: Some(error) });
                Ok(true)
            }
            (Ok(_), Spec::Link(_) | Spec::Address(_)) => {
                self.restore(Vec::new());
                Ok(true)
            }
            (result, _) => result,
        }
    }

    /// The end of a series of changes: what still waits is an error.
    pub(crate) fn finish(&mut self) -> Result<(), Box<(Key, Error)>> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.restore(Vec::new());
        let left = std::mem::take(&mut self.pending);
        match left.into_iter().find_map(|p| Some(Box::new((p.spec.key(), p.asked?)))) {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    pub(super) fn ensure_now(&mut self, spec: &Spec) -> Result<bool, Error> {
        match spec {
            Spec::Link(link) => self.ensure_link(link)?,
            Spec::Address(o) => {
                let index = self.our_index(&o.link)?;
                netlink("adding it", rt::add_address(&mut self.socket, index, o.address))?;
            }
            Spec::Neighbour(o) => {
                let index = self.our_index(&o.link)?;
                netlink("adding it", rt::add_neighbour(&mut self.socket, index, o.address, mac(&o.mac)?))?;
            }
            Spec::Fdb(o) => {
                let index = self.our_index(&o.link)?;
                netlink("adding it", rt::add_fdb(&mut self.socket, index, mac(&o.mac)?, o.remote))?;
            }
            Spec::Route(route) => self.ensure_route(route)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Deletes the object if it is there and ours. False if it is none of the kernel's.
    pub(crate) fn delete(&mut self, spec: &Spec) -> Result<bool, Error> {
        let key = spec.key();
        self.pending.retain(|p| p.spec.key() != key);
        match spec {
            Spec::Link(o) => {
                if let Some((index, true)) = self.index(&o.name)? {
                    let deleted = rt::delete_link(&mut self.socket, index);
                    netlink("deleting it", tolerate_gone(deleted))?;
                }
                self.indices.remove(&o.name);
                self.routes = None;
                self.pending.retain(|p| link_of(&p.spec) != Some(o.name.as_str()));
            }
            Spec::Address(o) => {
                if let Some((index, true)) = self.index(&o.link)? {
                    self.keeping_children(index, &o.link, Some(&key), |kernel| {
                        let deleted = rt::delete_address(&mut kernel.socket, index, o.address);
                        netlink("deleting it", tolerate_gone(deleted))
                    })?;
                }
            }
            Spec::Neighbour(o) => {
                if let Some((index, true)) = self.index(&o.link)? {
                    let deleted = rt::delete_neighbour(&mut self.socket, index, o.address);
                    netlink("deleting it", tolerate_gone(deleted))?;
                }
            }
            Spec::Fdb(o) => {
                if let Some((index, true)) = self.index(&o.link)? {
                    let deleted = rt::delete_fdb(&mut self.socket, index, mac(&o.mac)?, o.remote);
                    netlink("deleting it", tolerate_gone(deleted))?;
                }
            }
            Spec::Route(o) => self.delete_route(o)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the main table has a route of ours with this destination and metric.
    fn has_route(&mut self, key: (IpNet, u32)) -> Result<bool, Error> {
        if self.routes.is_none() {
            let filter = RouteFilter { protocol: Some(ours::ROUTE_PROTOCOL), ..RouteFilter::default() };
            let found = netlink("reading routes", rt::routes(&mut self.socket, filter))?;
            let own = found.iter().filter(|r| r.protocol == ours::ROUTE_PROTOCOL);
            self.routes = Some(own.map(|r| (r.destination, r.metric)).collect());
        }
        Ok(self.routes.as_ref().is_some_and(|routes| routes.contains(&key)))
    }

    /// Whether all routes with this destination and metric lead over `link`: one of our links, so somebody altered
    /// what was ours.
    fn only_by(&mut self, link: Option<u32>, key: (IpNet, u32)) -> Result<bool, Error> {
        let filter = RouteFilter::default();
        let found = netlink("reading routes", rt::routes(&mut self.socket, filter))?;
        let mut same = found.iter().filter(|r| route_key(r.destination, r.metric) == key);
        Ok(link.is_some() && same.all(|r| r.link == link))
    }

    fn ensure_route(&mut self, route: &Route) -> Result<(), Error> {
        let link = route.link.as_deref().map(|name| self.any_index(name)).transpose()?;
        let new = NewRoute {
            destination: route.destination,
            metric: route.metric,
            via: route.via,
            link,
            onlink: route.onlink,
            source: route.source,
            kind: &route.r#type,
            protocol: ours::ROUTE_PROTOCOL,
        };
        let key = route_key(route.destination, route.metric);
        let mut replace = self.has_route(key)?;
        let mut added = rt::add_route(&mut self.socket, &new, replace);
        if matches!(&added, Err(error) if error.is(Errno::EEXIST)) {
            // Ours since a moment ago, ours but for the mark, or somebody else's.
            self.routes = None;
            replace = self.has_route(key)? || self.only_by(link, key)?;
            if !replace {
                return Err(Error::Foreign(format!(
                    "a route to {} that homelab did not make is in the way",
                    route.destination
                )));
            }
            added = rt::add_route(&mut self.socket, &new, replace);
        }
        netlink("adding it", added)?;
        if let Some(routes) = &mut self.routes {
            routes.insert(key);
        }
        Ok(())
    }

    fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let key = route_key(route.destination, route.metric);
        // Without a metric the kernel would take the route of any metric.
        if !self.has_route(key)? {
            return Ok(());
        }
        let deleted = rt::delete_route(&mut self.socket, key.0, key.1, ours::ROUTE_PROTOCOL);
        netlink("deleting it", tolerate_gone(deleted))?;
        if let Some(routes) = &mut self.routes {
            routes.remove(&key);
        }
        Ok(())
    }
}
