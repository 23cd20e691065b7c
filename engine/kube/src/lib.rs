//! Connections to a Kubernetes API server: the laptop's by a kubeconfig, an agent's by its own credential.

mod agent;
mod link;
mod watch;

pub use agent::{Heard, watch};
pub use link::{Link, LinkError, Patience};
pub use watch::{Told, WatchError};
