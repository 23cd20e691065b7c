//! Wire types and framing between laptop and node, version 2.
//!
//! One SSH exec runs `homelab-node serve`; both sides exchange frames over its stdin and stdout. A frame is a
//! four-byte big-endian length and that many bytes of JSON. The laptop speaks first with [`Request::Hello`].
//! A peer that speaks another version answers with its own number and both sides stop.

mod frame;
mod message;

pub use frame::{FrameError, MAX_FRAME, read_frame, write_frame};
pub use message::{
    Applied, Failure, Fault, Hello, LOCK_PATIENCE, PROTOCOL, Request, Response, Secret, Transaction,
};
