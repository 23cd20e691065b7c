//! gather -> plan -> lock -> apply -> verify -> confirm over a [`Transport`]; knows no SSH and no terminal.
//!
//! [`Engine::prepare_apply`] opens one session per node, all at once, looks at every node, resolves the file with what
//! the nodes remember ([`resolve()`]) and makes the [`Plan`]. [`Engine::apply`] carries out exactly that plan over
//! the same sessions. Every node undoes its changes by itself unless it hears over a fresh session that all is well.

mod ask;
mod balancers;
mod bgp;
mod binaries;
mod connection;
mod engine;
mod error;
mod farewell;
mod history;
mod keys;
mod kubernetes;
mod lb;
mod lock;
mod observer;
mod offload;
mod open;
mod options;
mod packages;
mod parallel;
mod passwords;
mod plan;
mod previous;
mod reach;
mod recall;
mod recover;
mod report;
mod resolve;
mod rivals;
mod rollout;
mod rotate;
mod services;
mod speaker;
mod transact;
mod transport;

pub use balancers::Cordoned;
pub use binaries::{BinariesError, BinaryEntry, MANIFEST, MANIFEST_FORMAT, Manifest, NodeBinaries};
pub use connection::{Places, script};
pub use engine::{Engine, Goal, Prepared};
pub use homelab_protocol::{Failure, Fault};

pub use error::{ApplyError, NodeError, PlanError, RotateError};
pub use keys::NEW_KEYS;
pub use kubernetes::{Kubernetes, KubernetesOutcome, PlannedKubernetes};
pub use lb::{LbNodeRow, LbPicture, LbRow, LbSessionRow};
pub use lock::LockOutcome;
pub use observer::{Event, Observer, Silent};
pub use offload::offload_fault;
pub use open::{ByNode, ConfirmOutcome, RollbackOutcome};
pub use options::{Batch, Options};
pub use plan::{MODULES, Plan, PlannedNode};
pub use recall::{Departed, recall};
pub use report::{Farewell, NodeReport, Outcome, Report};
pub use resolve::{Resolution, first_scope, resolve};
pub use rotate::{Rotation, RotationStep};
pub use transport::{Session, Target, Transport, TransportError};
