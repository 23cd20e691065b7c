//! Connections to a Kubernetes API server: the laptop's by a kubeconfig, an agent's by its own credential.

mod duty;

pub use duty::{Duty, DutyError, Round, network_is_there};
