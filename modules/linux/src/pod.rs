//! What the CNI plugin needs of the kernel: few operations, few system calls.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use thiserror::Error;

use crate::netlink::{Message, NetlinkError, Socket};
use crate::notify;
use crate::rt::{self, Bucket, LinkChange, LinkInfo, NewRoute, RouteFilter, VethEnd};

/// Why an operation for a pod failed.
#[derive(Debug, Error)]
pub enum PodError {
    /// The network namespace cannot be used.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Its path.
        path: String,
        /// The system's words.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was tried, e.g. `address 10.244.1.2/24`.
        doing: String,
        /// The kernel's words.
        source: NetlinkError,
    },
    /// A sysctl cannot be written.
    #[error("sysctl {key}: {source}")]
    Sysctl {
        /// Its key.
        key: String,
        /// The system's words.
        source: io::Error,
    },
    /// A link is not there.
    #[error("no link {0}")]
    NoLink(String),
}

/// Gives an error the words of what was tried.
fn doing<T>(what: impl FnOnce() -> String, result: Result<T, NetlinkError>) -> Result<T, PodError> {
    result.map_err(|source| PodError::Netlink { doing: what(), source })
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    path: String,
    file: File,
}

impl Netns {
    /// Opens the namespace at `path`, e.g. `/var/run/netns/x` or `/proc/1/ns/net`.
    pub fn open(path: &Path) -> Result<Netns, PodError> {
        let text = path.display().to_string();
        match namespace(path) {
            Ok(file) => Ok(Netns { path: text, file }),
            Err(source) => Err(PodError::Namespace { path: text, source }),
        }
    }

    /// Moves the calling thread into the namespace for good: its later sockets, and `/proc/sys/net` as it sees it.
    pub fn enter(&self) -> Result<(), PodError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| PodError::Namespace { path: self.path.clone(), source: e.into() })
    }

    /// Whether it is the calling thread's own.
    pub fn is_own(&self) -> Result<bool, PodError> {
        let error = |source: io::Error| PodError::Namespace { path: self.path.clone(), source };
        let own = std::fs::metadata("/proc/thread-self/ns/net").map_err(error)?;
        let other = self.file.metadata().map_err(error)?;
        Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
    }

    /// Runs `work` on a thread inside the namespace, with `/proc/sys/net` and new sockets of the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, PodError> {
        let error = |source: io::Error| PodError::Namespace { path: self.path.clone(), source };
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| error(e.into()))?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|_| Err(error(io::Error::other("the thread inside it failed"))))
        })
    }

    /// An rtnetlink socket of the namespace, for use on any thread.
    pub fn socket(&self) -> Result<PodSocket, PodError> {
        self.run(PodSocket::open)?
    }
}

/// A file that is a network namespace. What it is is asked before it is opened: a pipe would wait for a writer, and a
/// device begin something.
fn namespace(path: &Path) -> io::Result<File> {
    let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if statfs(path)?.filesystem_type() != NSFS_MAGIC {
        return wrong("no namespace");
    }
    let file = File::open(path)?;
    // The kernel's name of it, like `net:[4026531840]`; where it is mounted somewhere, that path.
    let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let name = name.as_os_str().as_encoded_bytes();
    if !name.starts_with(b"/") && !name.starts_with(b"net:") {
        return wrong("no network namespace, but of another kind");
    }
    Ok(file)
}

/// Runs `work` on a thread inside the network namespace at `path`.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, PodError> {
    Netns::open(path)?.run(work)
}

/// A veth pair to make.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// The end on the node: up, a port of the bridge.
    pub host: VethEnd<'a>,
    /// The end in the pod: still down.
    pub pod: VethEnd<'a>,
    /// MTU of both, bytes.
    pub mtu: u32,
    /// Index of the bridge.
    pub bridge: u32,
    /// `IFLA_IFALIAS` of the node's end. Never exactly [`homelab_model::ours::LINK_ALIAS`]: that marks links that
    /// are node objects.
    pub alias: &'a str,
    /// Whether the bridge sends frames back out of this port.
    pub hairpin: bool,
    /// Whether it exchanges no frames with other isolated ports.
    pub isolated: bool,
}

/// A bridge to make.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    /// Name.
    pub name: &'a str,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU, bytes.
    pub mtu: u32,
    /// Its sysctls.
    pub sysctls: &'a [(String, &'static str)],
    /// Its addresses.
    pub addresses: &'a [IpNet],
    /// The node's ends of running pods that become its ports again: the bridge before it was deleted.
    pub pods: &'a [LinkInfo],
}

/// Writes a sysctl of the caller's network namespace, key as in sysctl.d(5) (dots, and slashes for dots in a link's
/// name). Where the kernel has no such key, as without IPv6, nothing is done.
pub fn write_sysctl(key: &str, value: &str) -> Result<(), PodError> {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = "/proc/sys/".chars().chain(key.chars().map(swap)).collect();
    match std::fs::write(&path, value) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(PodError::Sysctl { key: key.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// A route inside a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodRoute {
    /// Destination.
    pub destination: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Whether the next hop is on the link although no address says so.
    pub onlink: bool,
    /// Metric, 0 for none.
    pub metric: u32,
}

/// An rtnetlink socket with the operations of a CNI plugin. It works in the namespace in which it was opened.
#[derive(Debug)]
pub struct PodSocket {
    socket: Socket,
}

impl PodError {
    /// Whether the kernel refused because a name is taken.
    pub fn is_taken(&self) -> bool {
        matches!(self, PodError::Netlink { source, .. } if source.is(Errno::EEXIST))
    }

    /// Whether the kernel refused because something is short that will be there again.
    pub fn is_transient(&self) -> bool {
        const SHORT: [Errno; 5] = [Errno::ENOMEM, Errno::ENOBUFS, Errno::EAGAIN, Errno::EBUSY, Errno::EINTR];
        matches!(self, PodError::Netlink { source, .. } if SHORT.iter().any(|code| source.is(*code)))
    }
}

impl PodSocket {
    /// Opens a socket in the caller's network namespace.
    pub fn open() -> Result<PodSocket, PodError> {
        let socket = doing(|| "socket".to_owned(), Socket::route())?;
        Ok(PodSocket { socket })
    }

    /// The link with this name.
    pub fn link(&mut self, name: &str) -> Result<Option<LinkInfo>, PodError> {
        doing(|| format!("link {name}"), rt::link_by_name(&mut self.socket, name))
    }

    fn index(&mut self, name: &str) -> Result<u32, PodError> {
        self.link(name)?.map(|l| l.index).ok_or_else(|| PodError::NoLink(name.to_owned()))
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<LinkInfo>, PodError> {
        doing(|| "links".to_owned(), rt::links(&mut self.socket))
    }

    /// The ports of the bridge `name`; none if there is no such bridge.
    pub fn ports(&mut self, name: &str) -> Result<Vec<LinkInfo>, PodError> {
        let links = self.links()?;
        let bridge = links.iter().find(|l| l.name == name).map(|l| l.index);
        Ok(links.into_iter().filter(|l| bridge.is_some() && l.master == bridge).collect())
    }

    /// Makes a veth pair with the pod's end inside `netns`. Fails with `EEXIST` if either name is taken; then
    /// nothing was made.
    pub fn create_veth(&mut self, netns: &Netns, veth: &Veth<'_>) -> Result<(), PodError> {
        let what = || format!("veth {} to {} in {}", veth.host.name, veth.pod.name, netns.path);
        let create = rt::veth_message(veth.host, veth.pod, netns.file.as_fd(), veth.mtu, Some(veth.bridge));
        doing(what, self.socket.request(create))?;
        // Neither the alias nor a port's flags can be given while the pair is made.
        let finish = rt::port_message(veth.host.name, veth.alias, veth.hairpin, veth.isolated);
        let finished = doing(what, self.socket.request(finish));
        if finished.is_err() {
            // The pair was made a moment ago by us.
            let _ = self.delete_link(veth.host.name);
        }
        finished
    }

    /// Makes a bridge of ours, up, with its sysctls (key and value as in sysctl.d(5)) and addresses; last its alias, which
    /// says that it is complete. One that another process makes meanwhile, or that a killed one left, is no error. For the
    /// caller's own namespace only.
    pub fn create_bridge(&mut self, bridge: &Bridge<'_>) -> Result<LinkInfo, PodError> {
        let what = || format!("bridge {}", bridge.name);
        let new = rt::NewLink {
            name: bridge.name,
            mac: bridge.mac,
            mtu: bridge.mtu,
            alias: "",
            kind: rt::NewKind::Bridge { stp: false },
        };
        match rt::create_link(&mut self.socket, &new) {
            Err(error) if error.is(Errno::EEXIST) => {
                if let Some(complete) = self.link(bridge.name)?.filter(|link| !link.alias.is_empty()) {
                    return Ok(complete);
                }
                doing(what, rt::finish_link(&mut self.socket, &new))?;
            }
            other => doing(what, other)?,
        }
        let link = self.link(bridge.name)?.ok_or_else(|| PodError::NoLink(bridge.name.to_owned()))?;
        for (key, value) in bridge.sysctls {
            write_sysctl(key, value)?;
        }
        // Up first: an IPv6 address that is there earlier works only when the kernel's link watch has come by, up to
        // a second after the first port.
        let mut messages =
            vec![rt::set_message(link.index, LinkChange { up: Some(true), ..LinkChange::default() })];
        messages.extend(bridge.addresses.iter().map(|address| rt::add_address_message(link.index, *address)));
        for result in doing(what, self.socket.batch(messages))? {
            doing(what, result)?;
        }
        for pod in bridge.pods {
            match rt::take_pod_back(&mut self.socket, pod, link.index) {
                // It ends right now.
                Err(error) if error.is(Errno::ENODEV) => {}
                other => doing(|| format!("taking {} back", pod.name), other)?,
            }
        }
        doing(what, rt::set_alias(&mut self.socket, link.index, homelab_model::ours::LINK_ALIAS))?;
        Ok(link)
    }

    /// Makes a bridge of ours that somebody else made (it was renamed, with its pods) what [`PodSocket::create_bridge`]
    /// makes, but for addresses; its ports are told of the MAC address. A bridge that was given none has its smallest
    /// port's, and would change it with the next pod under those that know it (`br_stp_recalculate_bridge_id`).
    pub fn take_over_bridge(&mut self, bridge: &Bridge<'_>) -> Result<LinkInfo, PodError> {
        let what = || format!("bridge {}", bridge.name);
        let link = self.link(bridge.name)?.ok_or_else(|| PodError::NoLink(bridge.name.to_owned()))?;
        for (key, value) in bridge.sysctls {
            write_sysctl(key, value)?;
        }
        let change = LinkChange { mac: Some(bridge.mac), ..LinkChange::default() };
        doing(what, notify::set_link(&mut self.socket, bridge.name, link.index, change))?;
        self.link(bridge.name)?.ok_or_else(|| PodError::NoLink(bridge.name.to_owned()))
    }

    /// Deletes a link if it is still there; another one that has its name by now stays.
    pub fn delete(&mut self, link: &LinkInfo) -> Result<(), PodError> {
        match rt::delete_link(&mut self.socket, link.index) {
            Err(error) if error.is(Errno::ENODEV) => Ok(()),
            other => doing(|| format!("link {}", link.name), other),
        }
    }

    /// Deletes the link `name` (a veth takes its other end with it). Whether there was one.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, PodError> {
        Ok(self.take_link(name)?.is_some())
    }

    /// The same; what it was.
    pub fn take_link(&mut self, name: &str) -> Result<Option<LinkInfo>, PodError> {
        let Some(link) = self.link(name)? else { return Ok(None) };
        match rt::delete_link(&mut self.socket, link.index) {
            Ok(()) => Ok(Some(link)),
            Err(error) if error.is(Errno::ENODEV) => Ok(None),
            Err(error) => doing(|| format!("link {name}"), Err(error)),
        }
    }

    /// Sets up the inside of a pod in one go: `lo` and `link` up, addresses, routes. A route that is there already
    /// stays: of several networks of one pod the first has the default route. Says of each route whether it was made.
    pub fn configure(
        &mut self,
        link: &str,
        addresses: &[IpNet],
        routes: &[PodRoute],
    ) -> Result<Vec<bool>, PodError> {
        const LOOPBACK: u32 = 1;
        let index = self.index(link)?;
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let mut messages: Vec<Message> = vec![rt::set_message(LOOPBACK, up), rt::set_message(index, up)];
        let mut what = vec!["link lo".to_owned(), format!("link {link}")];
        for &address in addresses {
            messages.push(rt::add_address_message(index, address));
            what.push(format!("address {address}"));
        }
        for route in routes {
            let new = NewRoute {
                destination: route.destination,
                metric: route.metric,
                via: route.via,
                link: Some(index),
                onlink: route.onlink,
                source: None,
                kind: "unicast",
                // RTPROT_BOOT, as `ip route add` does.
                protocol: 3,
            };
            let text = format!("route {}", route.destination);
            messages.push(doing(|| text.clone(), rt::add_route_message(&new, false))?);
            what.push(text);
        }
        let results = doing(|| format!("link {link}"), self.socket.batch(messages))?;
        let mut made = Vec::new();
        for (result, what) in results.into_iter().zip(what) {
            made.push(result.is_ok());
            match result {
                Err(error) if error.is(Errno::EEXIST) => {}
                other => doing(|| what, other)?,
            }
        }
        Ok(made.split_off(made.len() - routes.len()))
    }

    /// Forgets who had `addresses` on the link with this index. Not to know it is no error.
    pub fn forget_neighbours(&mut self, link: u32, addresses: &[IpAddr]) -> Result<(), PodError> {
        let messages = addresses.iter().map(|address| rt::delete_neighbour_message(link, *address)).collect();
        doing(|| "neighbours".to_owned(), self.socket.batch(messages)).map(drop)
    }

    /// Waits until the link `name` carries packets, at most some 20 ms: a bridge's port forwards, and the end of a
    /// pair that came up first sends, only when the kernel's link watch has seen its carrier. Asking for the link
    /// makes it look (since Linux 6.8); else it comes by soon.
    pub fn settle(&mut self, name: &str) -> Result<(), PodError> {
        for _ in 0..100 {
            match self.link(name)? {
                Some(link) if link.up && !link.operational => {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Addresses of the link `name`, the kernel's own link-local ones too.
    pub fn addresses(&mut self, name: &str) -> Result<Vec<IpNet>, PodError> {
        let index = self.index(name)?;
        let found = doing(|| format!("addresses of {name}"), rt::addresses(&mut self.socket, Some(index)))?;
        Ok(found.into_iter().map(|(_, address)| address).collect())
    }

    /// Addresses of the link with this index.
    pub fn addresses_at(&mut self, index: u32) -> Result<Vec<IpNet>, PodError> {
        let found = doing(|| "addresses".to_owned(), rt::addresses(&mut self.socket, Some(index)))?;
        Ok(found.into_iter().map(|(_, address)| address).collect())
    }

    /// Addresses of the other end of a veth pair, wherever that is; nothing, if it is gone.
    pub fn addresses_of_other(&mut self, link: &LinkInfo) -> Result<Vec<IpNet>, PodError> {
        let Some(index) = link.other else { return Ok(Vec::new()) };
        match link.other_netns {
            None => self.addresses_at(index),
            Some(netns) => doing(
                || format!("addresses of the other end of {}", link.name),
                rt::addresses_elsewhere(&mut self.socket, netns, index),
            ),
        }
    }

    /// Gives the link with this index addresses.
    pub fn add_addresses(&mut self, index: u32, addresses: &[IpNet]) -> Result<(), PodError> {
        let messages = addresses.iter().map(|address| rt::add_address_message(index, *address)).collect();
        for (result, address) in
            doing(|| "addresses".to_owned(), self.socket.batch(messages))?.into_iter().zip(addresses)
        {
            doing(|| format!("address {address}"), result)?;
        }
        Ok(())
    }

    /// Lets what leaves the link `name` go no faster than a bucket fills.
    pub fn limit(&mut self, name: &str, bucket: &Bucket) -> Result<(), PodError> {
        let index = self.index(name)?;
        doing(|| format!("rate of {name}"), rt::set_bucket(&mut self.socket, index, bucket))
    }

    /// How fast what leaves the link `name` may go, bytes per second; None if there is no limit.
    pub fn limit_of(&mut self, name: &str) -> Result<Option<u64>, PodError> {
        let index = self.index(name)?;
        doing(|| format!("rate of {name}"), rt::bucket_rate(&mut self.socket, index))
    }

    /// All addresses of the namespace.
    pub fn all_addresses(&mut self) -> Result<Vec<IpAddr>, PodError> {
        Ok(self.linked_addresses()?.into_iter().map(|(_, address)| address.addr()).collect())
    }

    /// All addresses of the namespace, each with the index of its link.
    pub fn linked_addresses(&mut self) -> Result<Vec<(u32, IpNet)>, PodError> {
        doing(|| "addresses".to_owned(), rt::addresses(&mut self.socket, None))
    }

    /// Destination and next hop of the routes through the link `name`, of all tables: `sbr` moves them to one of its own.
    pub fn routes(&mut self, name: &str) -> Result<Vec<(IpNet, Option<IpAddr>)>, PodError> {
        let filter = RouteFilter { link: Some(self.index(name)?), protocol: None, any_table: true };
        let found = doing(|| format!("routes of {name}"), rt::routes(&mut self.socket, filter))?;
        Ok(found.into_iter().map(|r| (r.destination, r.via)).collect())
    }
}
