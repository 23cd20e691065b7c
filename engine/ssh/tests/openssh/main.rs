//! Against real `sshd` processes on 127.0.0.1. They are part of the machine that runs the tests (Debian:
//! openssh-server, openssh-client); without them the tests fail.

#![allow(clippy::unwrap_used)]

mod config;
mod faults;
mod hosts;
mod keys;
mod server;
mod stream;
mod sudo;
