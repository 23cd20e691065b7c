//! Three (or more) real systemd nodes on one machine, on a LAN of their own.
//!
//! Nothing outside the lab is touched: every link, address and rule lives in a network namespace that the lab
//! made, and nodes cannot write the machine's own sysctls. A node is a `systemd-nspawn` container that boots
//! systemd and runs sshd; its root is an overlay on a cached Debian image, its network namespace is new at every
//! boot, so a reboot loses the kernel's state as it does on a real machine.
//!
//! ```text
//!                     192.0.2.0/24, 2001:db8:2::/64
//!   wan (.2) ----------------------- (.1) router
//!                                         | 192.168.50.1, fd00:50::1
//!   br0 ----+----------+----------+-------+------+
//!        node1       node2      node3          client
//!        .11 ::11    .12 ::12   .13 ::13       .100 ::100      192.168.50.0/24, fd00:50::/64
//! ```
//!
//! Host part of a node's addresses is 10 + its number, written in decimal digits in both families
//! (`node3` is `192.168.50.13` and `fd00:50::13`). The client is "the laptop": `homelab` runs there.
//!
//! ```no_run
//! # fn main() -> homelab_lab::Result<()> {
//! use homelab_lab::{LabGuard, LabOptions};
//! let lab = LabGuard::up(LabOptions::unique("doc"))?; // taken down on drop, also when a test panics
//! lab.exec("node1", &["ip", "address"])?.ok()?;
//! lab.ssh("debian@node2", &["sudo", "true"])?.ok()?;
//! let before = lab.snapshot("node1")?;
//! lab.reboot("node1")?;
//! println!("{}", before.diff(&lab.snapshot("node1")?));
//! # Ok(())
//! # }
//! ```

mod access;
mod bgp;
mod bgp_config;
mod bgp_read;
mod cgroup;
mod command;
mod disk;
mod error;
mod fault;
mod guard;
mod home;
pub mod host;
mod image;
mod image_files;
mod lab;
mod lan;
mod launch;
mod node;
mod oci;
mod paths;
mod process;
mod router;
mod snapshot;
mod snapshot_collect;
mod supervisor;

pub use bgp::{BgpNeighbor, BgpPath, BgpPaths, BgpProgram, BgpRouter, BgpSessions};
pub use command::Output;
pub use error::{Error, Result};
pub use fault::Impairment;
pub use guard::LabGuard;
pub use lab::{Lab, LabOptions, LabStatus, NodeState, NodeStatus};
pub use snapshot::{NodeSnapshot, SnapshotDiff};
pub use supervisor::supervisor_main;
