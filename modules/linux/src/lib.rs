//! The only crate with effects on a Linux node.
//!
//! [`Node`] is the real backend of the object model: it reads everything of homelab's on a machine and carries out
//! changes. [`netlink::Events`] says when to look again. [`pod`] is what the CNI plugin needs, and nothing more.

mod apply;
mod asides;
mod clock;
pub mod conntrack;
mod cordon;
mod error;
mod facts;
pub mod fault;
mod files;
mod frr;
pub mod hostlocal;
mod inspect;
mod kernel;
pub mod l2;
mod lock;
pub mod netlink;
pub mod nft;
mod node;
mod notify;
mod package;
pub mod pod;
mod probe;
mod process;
mod rivals;
mod root;
mod rt;
mod ruleset;
mod runtimes;
mod services;
mod sysctl;
pub mod transaction;
mod unit;
pub mod vtysh;
mod wait;

pub use asides::read_secret;
pub use clock::{boot_id, boottime_ms, unix_seconds};
pub use cordon::{agent_runs, cordoned, lb_report, set_cordoned, tell_agent};
pub use error::{ApplyError, Error};
pub use files::{digest_of_self, file_digest};
pub use lock::{
    Lock, SessionLock, displace, kill_apply, lock, lock_apply, progress_age, session_holder, session_lock,
    touch_progress,
};
pub use node::{Kinds, Node, without_strangers};
pub use package::install_package;
pub use probe::probe;
pub use root::Root;
pub use rt::{Bucket, LinkInfo, VethEnd, VxlanInfo, mac_text, parse_mac};
pub use runtimes::cri_sockets;
pub use services::{Connections, Held, Synced};
pub use unit::machine_stops;
pub use wait::wait;
