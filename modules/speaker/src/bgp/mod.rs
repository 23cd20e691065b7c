//! Load-balancer addresses by BGP: what a node tells which router.

mod routes;

pub use routes::{Attributes, Can, Route, peers_of, routes};
