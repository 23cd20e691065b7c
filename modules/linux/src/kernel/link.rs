//! Links: making them, altering them in place, and keeping what the kernel takes away on such occasions.

use std::collections::BTreeMap;

use homelab_model::{Address, Key, Link, LinkKind, Spec, ours};
use ipnet::IpNet;

use super::change::{mac, tolerate_gone};
use super::{Kernel, Pending, foreign_link, is_link_local, our_routes};
use crate::error::{Error, netlink};
use crate::notify;
use crate::rt::{self, LinkChange, NewKind, NewLink, VxlanInfo};

impl Kernel {
    pub(super) fn ensure_link(&mut self, link: &Link) -> Result<(), Error> {
        let current = self.by_name(&link.name)?;
        self.indices.remove(&link.name);
        self.routes = None;
        match current {
            None => self.create_link(link),
            Some(info) if !self.is_ours(&info) => Err(foreign_link(&link.name)),
            Some(info) => {
                let now = self.link(&info)?;
                if alters_in_place(&now.kind, &link.kind) {
                    return self.keeping_children(info.index, &link.name, None, |kernel| {
                        kernel.alter_link(info.index, &now, link)
                    });
                }
                let deleted = rt::delete_link(&mut self.socket, info.index);
                netlink("deleting the old one", tolerate_gone(deleted))?;
                self.create_link(link)
            }
        }
    }

    fn create_link(&mut self, link: &Link) -> Result<(), Error> {
        let kind = match &link.kind {
            LinkKind::Vxlan { vni, port, local, learning, .. } => NewKind::Vxlan(VxlanInfo {
                vni: *vni,
                port: *port,
                local: (!local.is_unspecified()).then_some(*local),
                learning: *learning,
            }),
            LinkKind::Bridge { stp } => NewKind::Bridge { stp: *stp },
            LinkKind::Other { r#type } => {
                return Err(Error::Invalid(format!("homelab makes no links of type {:?}", r#type)));
            }
        };
        let new = NewLink { name: &link.name, mac: mac(&link.mac)?, mtu: link.mtu, alias: &link.alias, kind };
        netlink("making it", rt::create_link(&mut self.socket, &new))?;
        let finished = self.finish_link(link);
        if let (Err(_), Ok(Some(info))) = (&finished, self.by_name(&link.name)) {
            // It was made a moment ago by us.
            let _ = rt::delete_link(&mut self.socket, info.index);
        }
        finished
    }

    fn finish_link(&mut self, link: &Link) -> Result<(), Error> {
        let info =
            self.by_name(&link.name)?.ok_or_else(|| Error::Invalid("it vanished at once".to_owned()))?;
        let now = self.link(&info)?;
        self.alter_link(info.index, &now, link)?;
        if link.name == ours::BRIDGE { self.take_pods_back(info.index) } else { Ok(()) }
    }

    /// Makes the node's ends of running pods ports of the bridge again: a bridge that was deleted left them alone.
    fn take_pods_back(&mut self, bridge: u32) -> Result<(), Error> {
        let links = netlink("reading links", rt::links(&mut self.socket))?;
        for pod in links.iter().filter(|l| l.master.is_none() && l.alias.starts_with(ours::POD_ALIAS)) {
            let taken = rt::take_pod_back(&mut self.socket, pod, bridge);
            // A pod that ends right now is no reason to leave the others alone.
            netlink(format!("taking {} back", pod.name), tolerate_gone(taken))?;
        }
        Ok(())
    }

    /// Deletes the node's ends of all pods, and with them the pods' ends.
    pub(crate) fn delete_pods(&mut self) -> Result<(), Error> {
        let links = netlink("reading links", rt::links(&mut self.socket))?;
        for pod in links.iter().filter(|l| l.alias.starts_with(ours::POD_ALIAS)) {
            let deleted = rt::delete_link(&mut self.socket, pod.index);
            netlink(format!("deleting {}", pod.name), tolerate_gone(deleted))?;
        }
        Ok(())
    }

    /// Alters what differs.
    fn alter_link(&mut self, index: u32, now: &Link, link: &Link) -> Result<(), Error> {
        let mut change = LinkChange::default();
        if now.mac != link.mac {
            change.mac = Some(mac(&link.mac)?);
        }
        if now.mtu != link.mtu {
            change.mtu = Some(link.mtu);
        }
        if let (LinkKind::Bridge { stp: a }, LinkKind::Bridge { stp: b }) = (&now.kind, &link.kind)
            && a != b
        {
            change.stp = Some(*b);
        }
        if let (LinkKind::Vxlan { checksum_offload: a, .. }, LinkKind::Vxlan { checksum_offload: b, .. }) =
            (&now.kind, &link.kind)
            && a != b
        {
            let set = self.ethtool().and_then(|ethtool| ethtool.set_checksum_offload(index, *b));
            netlink("setting its checksum offload", set)?;
        }
        if now.alias != link.alias {
            netlink("marking it", rt::set_alias(&mut self.socket, index, &link.alias))?;
        }
        if now.up != link.up {
            change.up = Some(link.up);
        }
        if change != LinkChange::default() {
            netlink("altering it", notify::set_link(&mut self.socket, &now.name, index, change))?;
        }
        if change.stp == Some(false) {
            netlink("altering its delay", rt::no_forward_delay(&mut self.socket, index))?;
        }
        Ok(())
    }

    /// Does `work` on a link and puts back what the kernel takes away with it: neighbours when the MAC address
    /// changes, IPv4 routes when the last address goes, IPv6 addresses when the link goes down or its MTU is small,
    /// other addresses of the same subnet, and the source address of IPv6 routes. `except` is what shall go.
    pub(super) fn keeping_children(
        &mut self,
        index: u32,
        name: &str,
        except: Option<&Key>,
        work: impl FnOnce(&mut Kernel) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.children(index, name)?;
        work(self)?;
        self.routes = None;
        let after = self.children(index, name)?;
        let lost =
            before.into_iter().filter(|(key, spec)| after.get(key) != Some(spec) && Some(key) != except);
        let lost: Vec<Spec> = lost.map(|(_, spec)| spec).collect();
        self.restore(lost);
        Ok(())
    }

    /// What is ours and hangs on a link, and all our routes: their source address may be on another link than they.
    fn children(&mut self, index: u32, name: &str) -> Result<BTreeMap<Key, Spec>, Error> {
        let snapshot = self.snapshot(false)?;
        let own = |&&(i, a): &&(u32, IpNet)| i == index && !is_link_local(&a);
        let addresses = snapshot.addresses.iter().filter(own);
        let mut found: Vec<Spec> = addresses
            .map(|&(_, address)| Spec::Address(Address { link: name.to_owned(), address }))
            .collect();
        found.extend(our_routes(&snapshot));
        found.extend(self.entries(index, name)?);
        Ok(found.into_iter().map(|spec| (spec.key(), spec)).collect())
    }

    /// Makes objects again that the kernel took away. What it refuses now (a route before its source address) is
    /// tried again after the next change of a link or an address; what it refuses to the end, the next observation
    /// shows.
    pub(super) fn restore(&mut self, lost: Vec<Spec>) {
        let mut waiting = std::mem::take(&mut self.pending);
        // What was asked for meanwhile counts, not what was there before.
        let asked: Vec<Key> = waiting.iter().map(|p| p.spec.key()).collect();
        let lost = lost.into_iter().filter(|spec| !asked.contains(&spec.key()));
        waiting.extend(lost.map(|spec| Pending { spec, asked: None }));
        waiting.sort_by_key(|p| p.spec.key());
        for entry in waiting {
            if let Err(error) = self.ensure_now(&entry.spec) {
                tracing::debug!(object = %entry.spec.key(), %error, "cannot be put back yet");
                self.pending.push(Pending { asked: entry.asked.map(|_| error), ..entry });
            }
        }
    }
}

/// Whether a link of the first kind can become one of the second.
fn alters_in_place(now: &LinkKind, wanted: &LinkKind) -> bool {
    match (now, wanted) {
        (
            LinkKind::Vxlan { vni, port, local, learning, .. },
            LinkKind::Vxlan { vni: v, port: p, local: l, learning: n, .. },
        ) => (vni, port, local, learning) == (v, p, l, n),
        (LinkKind::Bridge { .. }, LinkKind::Bridge { .. }) => true,
        _ => false,
    }
}
