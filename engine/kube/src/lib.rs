//! Connections to a Kubernetes API server: the laptop's by a kubeconfig, an agent's by its own credential.

mod agent;
mod link;
mod token;
mod watch;

pub use agent::{Heard, watch};
pub use link::{Link, LinkError, Patience};
pub use token::{RenewError, renewed};
pub use watch::{Told, WatchError};
