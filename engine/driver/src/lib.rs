//! gather -> plan -> apply -> verify over a [`Transport`]; knows no SSH.

mod transport;

pub use transport::{Session, Target, Transport, TransportError};
