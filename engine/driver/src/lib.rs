//! gather -> plan -> apply -> verify over a [`Transport`]; knows no SSH and no terminal.
//!
//! [`Engine::prepare`] opens one session per node, all at once, looks at every node, resolves the file with what
//! the nodes remember ([`resolve()`]) and makes the [`Plan`]. [`Engine::apply`] carries out exactly that plan over
//! the same sessions.

mod apply;
mod binaries;
mod connection;
mod engine;
mod error;
mod observer;
mod offload;
mod parallel;
mod plan;
mod recall;
mod resolve;
mod transport;

pub use apply::{Farewell, NodeReport, Outcome, Report};
pub use binaries::{BinariesError, BinaryEntry, MANIFEST, MANIFEST_FORMAT, Manifest, NodeBinaries};
pub use connection::{Places, script};
pub use engine::{Engine, Goal, Options, Prepared};
pub use error::{NodeError, PlanError};
pub use observer::{Event, Observer, Silent};
pub use offload::offload_fault;
pub use plan::{MODULES, Plan, PlannedNode};
pub use recall::{Departed, recall};
pub use resolve::{Resolution, first_scope, resolve};
pub use transport::{Session, Target, Transport, TransportError};
