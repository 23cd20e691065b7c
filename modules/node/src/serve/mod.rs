//! The engine's remote end: frames on stdin and stdout, one session per process.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use homelab_model::{Change, NodeObject, Scope, Spec, diff};
use homelab_protocol::{
    Applied, Failure, FrameError, Hello, PROTOCOL, Request, Response, read_frame, write_frame,
};

use crate::host::{ApplyFailure, Host};

pub(crate) fn main(temporary: Option<&Path>) -> ExitCode {
    if let Some(directory) = temporary {
        // The process lives on without its file. A copy that cannot be removed is no reason to fail.
        let _ = std::fs::remove_dir_all(directory);
    }
    let mut host = match crate::host::Machine::open() {
        Ok(host) => host,
        Err(message) => {
            let _ = writeln!(io::stderr(), "homelab-node serve: {message}");
            return ExitCode::FAILURE;
        }
    };
    match session(&mut host, &mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "homelab-node serve: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers requests until the laptop says goodbye or hangs up.
pub(crate) fn session<H: Host>(
    host: &mut H,
    reader: &mut impl Read,
    writer: &mut impl Write,
) -> Result<(), FrameError> {
    let mut greeted = false;
    loop {
        let request = match read_frame(reader) {
            Ok(request) => request,
            Err(FrameError::Closed) => return Ok(()),
            // A newer laptop may ask for what this binary does not know: say so instead of hanging up.
            Err(FrameError::Decode(error)) => {
                write_frame(writer, &failure("", format!("a request this node does not know: {error}")))?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let response = match request {
            Request::Hello(_) => {
                greeted = true;
                match host.binary_sha256() {
                    Ok(sha256) => Response::Hello(Hello {
                        protocol: PROTOCOL,
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        sha256,
                    }),
                    Err(message) => failure("", message),
                }
            }
            Request::Bye => return Ok(()),
            _ if !greeted => failure("", "the first request must be a greeting".to_owned()),
            Request::Observe { scope } => match host.observe(&scope) {
                Ok(observed) => Response::Observed(Box::new(observed)),
                Err(message) => failure("", message),
            },
            Request::Apply { changes, scope, farewell, by: _ } => {
                apply(host, writer, &changes, &scope, farewell)
            }
        };
        write_frame(writer, &response)?;
    }
}

fn failure(object: &str, message: String) -> Response {
    Response::Failed(Failure { object: object.to_owned(), message, undone: true, left: Vec::new() })
}

/// Carries out `changes`; whatever happens to the connection meanwhile, they are finished or undone.
fn apply<H: Host>(
    host: &mut H,
    writer: &mut impl Write,
    changes: &[Change<NodeObject>],
    scope: &Scope,
    farewell: bool,
) -> Response {
    let _alone = match host.lock_apply() {
        Ok(guard) => guard,
        Err(message) => return failure("", message),
    };
    let before = match host.observe(scope) {
        Ok(observed) => observed.objects,
        Err(message) => return failure("", message),
    };
    // The laptop may be gone: then nobody reads this, and the work goes on.
    let mut progress = |done| {
        let _ = write_frame(writer, &Response::Progress { done });
    };
    if let Err(error) = in_segments(host, changes, &mut progress) {
        let left = undo(host, scope, &before);
        return Response::Failed(Failure {
            object: error.object,
            message: error.message,
            undone: left.is_empty(),
            left,
        });
    }
    if let Err(message) = if farewell { host.farewell() } else { host.settle() } {
        return Response::Failed(Failure { object: String::new(), message, undone: false, left: Vec::new() });
    }
    match host.observe(scope) {
        Ok(observed) => Response::Applied(Box::new(Applied { observed })),
        Err(message) => failure("", message),
    }
}

/// Applies `changes` with the agent locked out, except while units are changed: the agent that starts then may
/// need the lock before systemd counts it as started.
fn in_segments<H: Host>(
    host: &mut H,
    changes: &[Change<NodeObject>],
    progress: &mut dyn FnMut(usize),
) -> Result<(), ApplyFailure> {
    let mut done = 0;
    for segment in changes.chunk_by(|a, b| is_unit(a) == is_unit(b)) {
        let guard = if is_unit(&segment[0]) {
            None
        } else {
            Some(host.lock().map_err(|message| ApplyFailure { object: String::new(), message })?)
        };
        host.apply(segment, &mut |n| progress(done + n))?;
        drop(guard);
        done += segment.len();
    }
    Ok(())
}

fn is_unit(change: &Change<NodeObject>) -> bool {
    change.after().or(change.before()).is_some_and(|o| matches!(o.spec, Spec::Unit(_)))
}

/// Leads the node back to `before`. Gives what could not be restored.
fn undo<H: Host>(host: &mut H, scope: &Scope, before: &[NodeObject]) -> Vec<String> {
    let mut left = Vec::new();
    let now = match host.observe(scope) {
        Ok(observed) => observed.objects,
        Err(message) => return vec![message],
    };
    for change in diff(&now, before) {
        // One by one: what cannot be restored must not keep the rest from being restored.
        if let Err(error) = in_segments(host, std::slice::from_ref(&change), &mut |_| {}) {
            left.push(format!("{}: {}", change.key(), error.message));
        }
    }
    match host.observe(scope) {
        Ok(observed) => {
            for change in diff(&observed.objects, before) {
                let name = change.key().to_string();
                if !left.iter().any(|l| l.starts_with(&name)) {
                    left.push(name);
                }
            }
        }
        Err(message) => left.push(message),
    }
    left
}

#[cfg(test)]
mod tests;
