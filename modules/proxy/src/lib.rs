//! Services as a fixed nftables ruleset: no chain and no rule ever depends on how many services or endpoints there
//! are. Everything about services is elements of sets and maps ([`element`]), computed for one node by [`compile`].
//!
//! ```text
//! packet to an address, protocol and port                                      (filter, -110)  source ranges: drop
//!   in frontends?  -> sticky client? -> its endpoint                           (nat, -100)
//!                  -> external policy Local, from a pod or this node? -> pool Internal, else pool Main
//!                     a pool: endpoints[frontend . (N<<16 + random mod N)], for each rung N of the ladder
//! after the choice: remember the client, ct state new only                     (filter, -90)
//! not translated:  no endpoints -> reject; no local ones -> drop;              (filter input, forward, output)
//!                  other port of a cluster address -> reject; free service address -> drop
//! leaving:         itself; external and policy Cluster; cluster address and no pod;  (nat postrouting) masquerade
//!                  external, policy Local and from this node
//! ```
//!
//! No packet mark and no connection mark is used: the last step knows by the connection's original destination what
//! the first one decided, so nobody else's marks are in the way, nor ours in theirs.
//!
//! No element holds a verdict with a jump: adding one would make the kernel walk all chains and all elements again
//! (`nft_table_validate`, net/netfilter/nf_tables_api.c), and a change would cost the more the more services there are.

pub mod bytes;
pub mod choose;
mod compile;
mod compiled;
pub mod delta;
pub mod element;
pub mod evaluate;
pub mod follow;
mod health;
pub mod ladder;
mod objects;
pub mod report;
pub mod rules;
pub mod stale;
pub mod text;

pub use compile::{Conflict, Elements, NodeView, compile};
pub use compiled::{Compiled, Source, Sourced};
pub use health::{HealthCheck, health_checks};
pub use objects::{as_told, foundation, ruleset, service_objects, services, view};
