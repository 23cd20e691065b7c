//! What a transaction needs of the disk and of systemd: its journal, and the units that undo it.
//!
//! The functions that make or remove files here also write the records of directories that homelab made: hold
//! [`crate::lock`] while you call them, for the agent writes those records too.

mod arm;
mod store;

pub use arm::{arm, can_arm, disarm, rearm};
pub use store::{
    Shelf, free_reserve, has_state, is_open, is_reserved, read_journal, read_record, remove_record,
    remove_transaction, reserve, write_journal, write_record,
};
