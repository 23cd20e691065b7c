//! Connections to a Kubernetes API server: the laptop's by a kubeconfig, an agent's by its own credential.

mod admin;
mod agent;
mod link;
mod watch;

pub use admin::{Access, Admin, Credential, TOKEN_LIFE, token_request};
pub use agent::{Heard, watch};
pub use link::{Link, LinkError, Patience};
pub use watch::{Told, WatchError};
