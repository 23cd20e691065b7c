//! The state machine against the fake machine.

mod kill_anywhere;
mod laws;
mod scenarios;
mod waiting;
