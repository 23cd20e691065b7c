//! Load-balancer addresses on the LAN: which node has which, and what it says on the wire.
//!
//! Nothing here has a socket or a clock: frames and datagrams come in, frames and datagrams go out, and time is an
//! argument.

mod addresses;
pub mod announce;
pub mod arp;
pub mod bgp;
pub mod candidates;
pub mod election;
pub mod frame;
pub mod mac;
pub mod membership;
pub mod ndp;
pub mod speaker;
pub mod state;
