//! The CNI plugin without its effects: objects, requests, addresses, results (CNI specification 1.1.0).
//!
//! A runtime calls the plugin as a process: parameters in the environment, configuration on standard input, the
//! result on standard output. [`Request::parse`] turns the first two into a typed request and refuses hostile
//! names; [`ipam`] decides about addresses over the names in the store; [`Wiring`] is everything that ADD makes
//! in the kernel, as data; [`AddResult`] is the answer in the shape of the requested version. `homelab-node`
//! carries it out.
//!
//! ```text
//! pod netns                     node
//! eth0 (02:68:..., 10.244.1.7/24) --- hl0123456789abc [hairpin] --- homelab0 10.244.1.1/24
//!   default via 10.244.1.1              alias homelab-pod:<container>/eth0
//! ```

mod bandwidth;
mod config;
mod error;
mod guard;
pub mod hostport;
pub mod ipam;
mod names;
mod objects;
mod previous;
mod request;
mod result;
mod wiring;
mod wishes;

pub use bandwidth::{Bandwidth, Rate};
pub use config::{Base, Network, Version};
pub use error::{CniError, Code};
pub use guard::{GUARD_SETS, guard_elements, guarded_port};
pub use objects::{LIST_VERSION, bridge_mac, bridge_sysctls, gateway_net, objects};
pub use previous::{PrevResult, Previous};
pub use request::{Attachment, Request, Sandbox, error_version};
pub use result::{AddResult, version_json};
pub use wiring::{PodAddress, Wiring, alias, holder_by_link, mac_text};
pub use wishes::Wishes;
