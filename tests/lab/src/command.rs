//! Running programs and keeping what they said.

use crate::{Error, Result};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a program ended and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + signal number if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Whether the exit code is zero.
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// The output if the program succeeded, else an error that shows all it wrote.
    pub fn ok(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        let output = format!("{}{}", self.stdout, self.stderr);
        Err(Error::Failed { command: self.command, code: self.code, output })
    }

    /// Standard output without white space at both ends.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

/// Exit code in the manner of a shell.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The command line of `command`, shortened: a script given as an argument would fill the screen.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        let first = arg.lines().next().unwrap_or_default();
        words.push(if arg.contains('\n') { format!("'{first} ...'") } else { arg.into_owned() });
    }
    words.join(" ")
}

/// Runs `command` without input; a failure to start is an error, a non-zero exit code is not.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let text = line(command);
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|source| Error::Start { command: text.clone(), source })?;
    Ok(Output {
        command: text,
        code: exit_code(done.status),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    })
}

/// Runs `command` with `input` on its stdin.
pub(crate) fn output_with_input(command: &mut Command, input: &str) -> Result<Output> {
    let text = line(command);
    let start = |source| Error::Start { command: text.clone(), source };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    let stdin = child.stdin.take();
    // Its own thread: a program that writes before it has read all would block us both.
    let done = std::thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output()
    })
    .map_err(start)?;
    Ok(Output {
        code: exit_code(done.status),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        command: text,
    })
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<Output> {
    output(Command::new(program).args(args))?.ok()
}

/// Asks every 5 ms until `done` says yes or `limit` is over.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
