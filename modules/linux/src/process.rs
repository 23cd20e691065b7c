//! Commands that run while we do something else.

use std::io;
use std::process::{Child, Command, Output, Stdio};

/// A running command. It is ended and reaped when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Running(Option<Child>);

impl Running {
    /// Starts it in the caller's network namespace, without input and with messages in English.
    pub(crate) fn start(command: &mut Command) -> io::Result<Running> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
        command.spawn().map(|child| Running(Some(child)))
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> io::Result<Output> {
        match self.0.take() {
            Some(child) => child.wait_with_output(),
            None => Err(io::Error::other("it has ended already")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
