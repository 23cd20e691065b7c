//! Load-balancer addresses by BGP: what a node tells which router.

mod commands;
mod config;
mod routes;
mod sessions;

pub use commands::commands;
pub use config::{Config, Wanted, config};
pub use routes::{Attributes, Can, Route, peers_of, routes, unfit};
pub use sessions::sessions;
