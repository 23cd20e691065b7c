//! A change of the node that is undone unless the laptop confirms it: the state machine.
//!
//! Undo is by state: the journal holds what the node was like before the first change, and an undo leads there from
//! whatever it finds. So it can be interrupted anywhere and run again, by the timer, at boot or by the next apply.
//!
//! Nothing here reads a clock or has an effect but through [`Host`].

mod begin;
mod expire;
mod finish;
mod history;
mod journal;
mod run;
mod undo;

use std::time::Duration;

use homelab_model::{Change, Key, NodeObject, Spec};
use homelab_protocol::{Failure, Fault};

pub(crate) use begin::begin;
pub(crate) use expire::{Ended, expire, recover};
pub(crate) use finish::{confirm, hold, previous};
pub(crate) use history::history;
pub(crate) use run::run;
pub(crate) use undo::roll_back_open;

use crate::host::{Guard, Host};

/// How long a request waits for another apply or undo.
const APPLY_WAIT: Duration = Duration::from_secs(20);

/// A request is refused or has failed.
type Refusal = Box<Failure>;

fn refuse(fault: Fault, message: impl Into<String>) -> Refusal {
    Box::new(Failure {
        fault,
        object: String::new(),
        message: message.into(),
        undone: true,
        left: Vec::new(),
    })
}

fn error(message: impl Into<String>) -> Refusal {
    refuse(Fault::Error, message)
}

/// The lock that orders applies and their undo. Its holder is at work from now on.
fn lock_apply<H: Host>(host: &mut H) -> Result<Guard, Refusal> {
    match host.lock_apply(APPLY_WAIT).map_err(error)? {
        Some(guard) => {
            host.touch_progress();
            Ok(guard)
        }
        None => Err(error("another apply or its undo is at work here")),
    }
}

/// Whether a change is made by programs that may need the agent, or take long: without the lock that keeps it out.
fn is_unlocked(change: &Change<NodeObject>) -> bool {
    matches!(change.key(), Key::Unit(_) | Key::Package(_))
}

pub(crate) fn is_nft(change: &Change<NodeObject>) -> bool {
    matches!(change.key(), Key::NftTable(_) | Key::NftChain(..))
}

/// Whether the object outlives a reboot; what does not is the agent's to make again.
fn is_durable(object: &NodeObject) -> bool {
    matches!(
        object.spec,
        Spec::Binary(_) | Spec::Symlink(_) | Spec::File(_) | Spec::Package(_) | Spec::Unit(_)
    )
}

#[cfg(test)]
mod tests;
