//! Telling neighbours of a link's new MAC address.

use std::path::PathBuf;

use crate::netlink::{NetlinkError, Socket};
use crate::rt::{self, LinkChange};

/// Changes a link in place; a new MAC address is told to its neighbours.
pub(crate) fn set_link(
    socket: &mut Socket,
    name: &str,
    index: u32,
    change: LinkChange,
) -> Result<(), NetlinkError> {
    let _tell = change.mac.and_then(|_| TellNeighbours::of(name));
    rt::set_link(socket, index, change)
}

/// While it lives the kernel tells the neighbours of a link when its MAC address changes, by gratuitous ARP and
/// unsolicited neighbour advertisements (`arp_notify`, `ndisc_notify`). They would find out by themselves, in ten
/// seconds or so of silence: pods whose gateway it is.
struct TellNeighbours(Vec<(PathBuf, String)>);

impl TellNeighbours {
    /// Of the caller's network namespace. `None` where nothing had to be set; a failure costs those seconds only.
    fn of(link: &str) -> Option<TellNeighbours> {
        let keys = ["ipv4/conf/LINK/arp_notify", "ipv6/conf/LINK/ndisc_notify"];
        let paths = keys.map(|key| PathBuf::from("/proc/sys/net").join(key.replace("LINK", link)));
        let set = |path: PathBuf| {
            let before = std::fs::read_to_string(&path).ok()?;
            (before.trim() == "0" && std::fs::write(&path, "1").is_ok()).then_some((path, before))
        };
        let set: Vec<(PathBuf, String)> = paths.into_iter().filter_map(set).collect();
        (!set.is_empty()).then_some(TellNeighbours(set))
    }
}

impl Drop for TellNeighbours {
    fn drop(&mut self) {
        for (path, before) in &self.0 {
            let _ = std::fs::write(path, before);
        }
    }
}
