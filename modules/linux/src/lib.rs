//! The only crate with effects on a Linux node.
//!
//! [`Node`] is the real backend of the object model: it reads everything of homelab's on a machine and carries out
//! changes. [`netlink::Events`] says when to look again. [`pod`] is what the CNI plugin needs, and nothing more.

mod apply;
mod error;
mod facts;
mod files;
mod kernel;
mod lock;
pub mod netlink;
pub mod nft;
mod node;
pub mod pod;
mod process;
mod root;
mod rt;
mod runtimes;
mod sysctl;
mod unit;

pub use error::{ApplyError, Error};
pub use files::{digest_of_self, file_digest};
pub use lock::{Lock, lock, lock_apply};
pub use node::{Kinds, Node, without_strangers};
pub use root::Root;
pub use rt::{LinkInfo, VethEnd, VxlanInfo, mac_text, parse_mac};
