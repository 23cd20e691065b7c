//! Commands that run while we do something else.

use std::io;
use std::process::{Child, Command, Output, Stdio};

/// What a command that failed says; how it ended if it says nothing.
pub(crate) fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() { format!("it said nothing and ended with {}", output.status) } else { said }
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_complaint_is_never_empty() {
        let complaint_of = |script: &str| {
            let running = Running::start(Command::new("sh").args(["-c", script])).unwrap();
            complaint(&running.finish().unwrap())
        };
        assert_eq!(complaint_of("echo ' no such thing ' >&2; exit 1"), "no such thing");
        assert_eq!(complaint_of("echo >&2; exit 3"), "it said nothing and ended with exit status: 3");
        assert!(complaint_of("kill -TERM $$").contains("signal: 15"));
    }
}
