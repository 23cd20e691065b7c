//! Tests on three real nodes: what the files in `tests/` share.
//!
//! Every file is one program with one lab. [`run`] gives each scenario freshly reset nodes and a [`Cluster`] to work
//! with; a scenario that fails does not keep the others from running, and the lab goes down at the end.
mod cluster;
mod file;
mod harness;
mod plan;
mod pods;
mod probe;

pub use cluster::Cluster;
pub use file::ClusterFile;
pub use harness::{Scenario, run};
pub use plan::{Change, Plan, PlanNode};
pub use pods::Pod;
pub use probe::{Answer, Check, Place, Server};

/// The flag by which `apply` is allowed to make changes that cut connections.
pub const DISRUPTIVE: &str = "--allow-disruptive";

/// Prints a line that people read: a measured value.
pub fn measured(text: impl std::fmt::Display) {
    eprintln!("  {text}");
}
