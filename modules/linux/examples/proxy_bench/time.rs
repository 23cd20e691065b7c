//! Clocks.

use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// What something took, milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall: f64,
    /// User and system time of this process and of children that it waited for.
    pub(crate) cpu: f64,
}

fn cpu() -> f64 {
    let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    let children = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let children = children.user_time().num_microseconds() + children.system_time().num_microseconds();
    own.tv_sec() as f64 * 1e3 + own.tv_nsec() as f64 / 1e6 + children as f64 / 1e3
}

pub(crate) fn cost<T>(work: impl FnOnce() -> T) -> (Cost, T) {
    let (before, start) = (cpu(), Instant::now());
    let result = work();
    let wall = start.elapsed().as_secs_f64() * 1e3;
    (Cost { wall, cpu: cpu() - before }, result)
}
