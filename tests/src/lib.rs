//! Tests on three real nodes: what the files in `tests/` share.
//!
//! Every file is one program with one lab. [`run`] gives each scenario freshly reset nodes and a [`Cluster`] to work
//! with; a scenario that fails does not keep the others from running, and the lab goes down at the end.
//! [`run_on_stage`] has scenarios share nodes and pods.
mod background;
mod clients;
mod cluster;
mod cri;
mod faults;
mod file;
mod flow;
mod gaps;
mod harness;
mod kubernetes;
mod lan;
mod lb;
mod plan;
mod pods;
mod probe;
mod random;
mod script;
mod services;
mod spy;

pub use background::Background;
pub use clients::{Asked, Clients};
pub use cluster::Cluster;
pub use cri::{Cri, sandbox};
pub use faults::{Fault, JOURNAL, Stopped};
pub use file::ClusterFile;
pub use flow::{Flow, Loss};
pub use gaps::{Gap, Gaps, Heard};
pub use harness::{Act, Scenario, run, run_on_stage};
pub use kubernetes::{API_PORT, Kube, SERVICE_NAME, SERVICES, SLICES, Saved, until};
pub use lan::{Claims, Flood, Record, Resolver, Sender};
pub use lb::Owners;
pub use plan::{Change, Plan, PlanNode};
pub use pods::Pod;
pub use probe::{Answer, Check, Place, Server};
pub use random::Random;
pub use services::{SERVER, To};
pub use spy::spy_while;

/// The flag by which `apply` is allowed to make changes that cut connections.
pub const DISRUPTIVE: &str = "--allow-disruptive";

pub use homelab_cri::PortMapping;
pub use nix::sys::signal::Signal;

/// Prints a line that people read: a measured value.
pub fn measured(text: impl std::fmt::Display) {
    eprintln!("  {text}");
}
