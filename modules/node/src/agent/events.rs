//! What has happened, and which kinds of objects to look at because of it.

use std::sync::{Arc, Mutex};

use homelab_linux::Kinds;
use homelab_linux::netlink::{Events, Happened};
use homelab_model::Spec;
use tokio::sync::mpsc;

pub(super) const FILES: Kinds = Kinds { sysctls: true, files: true, ..Kinds::NONE };
pub(super) const SERVICES: Kinds = Kinds { services: true, ..Kinds::NONE };
/// Units are the laptop's business.
pub(super) const EVERYTHING: Kinds = Kinds { units: false, ..Kinds::ALL };

pub(super) fn union(a: Kinds, b: Kinds) -> Kinds {
    Kinds {
        links: a.links || b.links,
        nft: a.nft || b.nft,
        services: a.services || b.services,
        sysctls: a.sysctls || b.sysctls,
        files: a.files || b.files,
        units: a.units || b.units,
    }
}

pub(super) fn kinds_of_events(happened: Happened) -> Kinds {
    if happened.overflow {
        return Kinds { services: true, ..Kinds::KERNEL };
    }
    let links = happened.links || happened.addresses || happened.routes || happened.neighbours;
    // A link that was made anew has the kernel's own parameters.
    // A set that is made anew is empty.
    let services = happened.services || happened.nft;
    Kinds { links, nft: happened.nft, services, sysctls: links || happened.sysctls, ..Kinds::NONE }
}

pub(super) fn among(kinds: Kinds, spec: &Spec) -> bool {
    match spec {
        Spec::Binary(_) | Spec::Symlink(_) | Spec::File(_) => kinds.files,
        Spec::Sysctl(_) => kinds.sysctls,
        Spec::Link(_) | Spec::Address(_) | Spec::Neighbour(_) | Spec::Fdb(_) | Spec::Route(_) => kinds.links,
        Spec::NftTable(_) | Spec::NftChain(_) => kinds.nft,
        Spec::Service(_) => kinds.services,
        Spec::Unit(_) | Spec::Package(_) => kinds.units,
    }
}

/// What events are about.
#[derive(Default)]
pub(super) struct Watched {
    /// Indices of our links: neighbours of other links come and go all the time and are none of our business.
    pub(super) links: Vec<u32>,
    /// The port whose changes of services are the agent's own.
    pub(super) own: u32,
}

/// Passes events on from a thread of their own.
pub(super) fn listen(
    watched: Arc<Mutex<Watched>>,
) -> Result<mpsc::Receiver<std::io::Result<Happened>>, String> {
    let mut events = Events::open().map_err(|e| format!("netlink events: {e}"))?;
    let (sender, receiver) = mpsc::channel(4);
    let work = move || {
        loop {
            let happened = events.wait().and_then(|()| {
                if let Ok(watched) = watched.lock() {
                    events.watch_neighbours_of(watched.links.iter().copied());
                    events.ignore_services_of(watched.own);
                }
                events.drain()
            });
            let ends = happened.is_err();
            let tells = happened.as_ref().map_or(true, Happened::any);
            if tells && (sender.blocking_send(happened).is_err() || ends) {
                return;
            }
        }
    };
    std::thread::Builder::new().name("events".to_owned()).spawn(work).map_err(|e| e.to_string())?;
    Ok(receiver)
}
