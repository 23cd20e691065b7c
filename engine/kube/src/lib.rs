//! Connections to a Kubernetes API server: the laptop's by a kubeconfig, an agent's by its own credential.

mod admin;
mod agent;
mod duty;
mod link;
mod metallb;
mod released;
mod token;
mod voice;
mod watch;

pub use admin::{Access, Admin, Credential, TOKEN_LIFE};
pub use k8s_openapi::api::core::v1::Node;

pub use agent::{Heard, watch};
pub use duty::{Duty, DutyError, Round, annotate, network_is_there};
pub use link::{Link, LinkError, Patience};
pub use metallb::{MetalLb, metallb};
pub use token::{RenewError, renewed};
pub use voice::Voice;
pub use watch::{Told, WatchError};
