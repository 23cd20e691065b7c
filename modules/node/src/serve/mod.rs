//! The engine's remote end: frames on stdin and stdout, one session per process.

mod cordon;
mod input;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use homelab_model::{Holder, NodeObject, NodeSpec, Scope, ours, secret_summary};
use homelab_protocol::{
    Applied, Failure, Fault, FrameError, Hello, LOCK_PATIENCE, PROTOCOL, Request, Response, Transaction,
    write_frame,
};

pub(crate) use input::Input;

use crate::host::{Guard, Host, Locking};
use crate::transaction;

pub(crate) fn main(temporary: Option<&Path>) -> ExitCode {
    if let Some(directory) = temporary {
        // The process lives on without its file. A copy that cannot be removed is no reason to fail.
        let _ = std::fs::remove_dir_all(directory);
    }
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(io::stderr(), "homelab-node serve: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    survive_hangups()?;
    let mut host = crate::machine::Machine::open()?;
    let mut input = input::Stdin::start().map_err(|e| e.to_string())?;
    session(&mut host, &mut input, &mut io::stdout().lock()).map_err(|e| e.to_string())
}

/// A connection that is cut must not end a change in the middle: without a laptop stdin ends, and that is soon enough.
/// The handler does nothing and stays for good; programs started from here do not inherit it.
fn survive_hangups() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("signals: {e}"))?;
    let _context = runtime.enter();
    let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    hangup.map(drop).map_err(|e| format!("signals: {e}"))
}

/// Answers requests until the laptop says goodbye or hangs up.
pub(crate) fn session<H: Host>(
    host: &mut H,
    input: &mut impl Input,
    writer: &mut impl Write,
) -> Result<(), FrameError> {
    let mut session = Session { host, greeted: false, lock: None, begun: None };
    loop {
        let patience = session.lock.as_ref().map(|_| Duration::from_secs(LOCK_PATIENCE));
        let response = match input.next(patience) {
            Ok(Some(Request::Bye)) | Err(FrameError::Closed) => return Ok(()),
            Ok(Some(Request::Beat)) => continue,
            Ok(Some(request)) => session.answer(request, writer),
            Ok(None) => {
                // The laptop is gone, whatever the connection says. What it began is the timer's business.
                session.lock = None;
                continue;
            }
            // A newer laptop may ask for what this binary does not know: say so instead of hanging up.
            Err(FrameError::Decode(error)) => error_of(format!("a request this node does not know: {error}")),
            Err(error) => return Err(error),
        };
        write_frame(writer, &response)?;
    }
}

struct Session<'a, H> {
    host: &'a mut H,
    greeted: bool,
    /// The node's lock, while this session has it.
    lock: Option<Guard>,
    /// The transaction that this session began, and where it looks.
    begun: Option<(String, Scope)>,
}

fn error_of(message: String) -> Response {
    refused(Fault::Error, message)
}

fn refused(fault: Fault, message: String) -> Response {
    Response::Failed(Failure { fault, object: String::new(), message, undone: true, left: Vec::new() })
}

impl<H: Host> Session<'_, H> {
    fn answer(&mut self, request: Request, writer: &mut impl Write) -> Response {
        let failed = |failure: Box<Failure>| Response::Failed(*failure);
        match request {
            Request::Hello(_) => {
                self.greeted = true;
                match self.host.binary_sha256() {
                    Ok(sha256) => Response::Hello(Hello {
                        protocol: PROTOCOL,
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        sha256,
                    }),
                    Err(message) => error_of(message),
                }
            }
            _ if !self.greeted => error_of("the first request must be a greeting".to_owned()),
            Request::Observe { scope } => {
                self.observe(&scope).map_or_else(error_of, |observed| Response::Observed(Box::new(observed)))
            }
            Request::Lock { holder, wait_ms } => self.take_lock(&holder, wait_ms),
            Request::Unlock => {
                // One's own is nobody's loss.
                if self.lock.take().is_some() {
                    return Response::Unlocked { holder: None };
                }
                self.host.displace().map_or_else(error_of, |holder| Response::Unlocked { holder })
            }
            Request::Install { .. } if self.lock.is_none() => not_locked(),
            Request::Install { package } => {
                self.host.install(&package).map_or_else(error_of, |()| Response::Installed)
            }
            Request::Begin(transaction) => self.begin(*transaction),
            Request::Run => self.run(writer),
            Request::Confirm { id } => {
                transaction::confirm(self.host, &id).map_or_else(failed, |()| Response::Confirmed)
            }
            Request::Hold { id, seconds } => {
                transaction::hold(self.host, &id, seconds).map_or_else(failed, |()| Response::Confirmed)
            }
            Request::Rollback { id, reason } => transaction::roll_back_open(self.host, &id, &reason)
                .map_or_else(failed, |left| Response::RolledBack { left }),
            Request::Previous => transaction::previous(self.host)
                .map_or_else(failed, |previous| Response::Previous(previous.map(Box::new))),
            Request::Probe { targets } => {
                self.host.probe(&targets).map_or_else(error_of, |reached| Response::Reached { reached })
            }
            Request::Secret { path } if secret_summary(&path, "").is_none() => {
                error_of(format!("{path} is no secret of homelab's"))
            }
            Request::Secret { path } => self.host.read_secret(&path).map_or_else(error_of, Response::Secret),
            Request::Services => {
                self.host.services().map_or_else(error_of, |services| Response::Services { services })
            }
            Request::Trace(packet) if packet.source.is_ipv4() != packet.destination.is_ipv4() => {
                error_of(format!("{} and {} are of different families", packet.source, packet.destination))
            }
            Request::Trace(packet) => {
                self.host.trace(&packet).map_or_else(error_of, |traced| Response::Traced(Box::new(traced)))
            }
            Request::LoadBalancers => self
                .host
                .load_balancers()
                .map_or_else(error_of, |node| Response::LoadBalancers(Box::new(node))),
            Request::Scan { ranges } => {
                self.host.scan(&ranges).map_or_else(error_of, |found| Response::Scanned { found })
            }
            Request::Cordon { on, by } => {
                cordon::set(self.host, on, &by).map_or_else(error_of, |(changed, node)| Response::Cordoned {
                    changed,
                    node: Box::new(node),
                })
            }
            // Handled where requests are read: they have no response.
            Request::Beat | Request::Bye => error_of("out of turn".to_owned()),
        }
    }

    fn observe(&mut self, scope: &Scope) -> Result<homelab_model::Observed, String> {
        let mut observed = self.host.observe(scope)?;
        observed.history = transaction::history(self.host);
        if self.lock.is_none() {
            observed.history.holder = self.host.session_holder();
        }
        Ok(observed)
    }

    fn take_lock(&mut self, holder: &Holder, wait_ms: u64) -> Response {
        if self.lock.is_some() {
            return Response::Locked { waited: false };
        }
        match self.host.session_lock(holder, Duration::from_millis(wait_ms)) {
            Ok(Locking::Held { guard, waited }) => {
                self.lock = Some(guard);
                Response::Locked { waited }
            }
            Ok(Locking::Busy(other)) => Response::Busy(other),
            Err(message) => error_of(message),
        }
    }

    fn begin(&mut self, transaction: Transaction) -> Response {
        if self.lock.is_none() {
            return not_locked();
        }
        match transaction::begin(self.host, &transaction) {
            Ok(()) => {
                self.host.secrets(&transaction.secrets);
                self.begun = Some((transaction.id, transaction.scope));
                Response::Armed
            }
            Err(failure) => Response::Failed(*failure),
        }
    }

    /// Carries out the changes; whatever happens to the connection meanwhile, they are finished or undone.
    fn run(&mut self, writer: &mut impl Write) -> Response {
        if self.lock.is_none() {
            return not_locked();
        }
        let Some((id, scope)) = self.begun.take() else {
            return refused(Fault::NoTransaction, "this session has begun no transaction".to_owned());
        };
        // The laptop may be gone: then nobody reads this, and the work goes on.
        let mut progress = |done| {
            let _ = write_frame(writer, &Response::Progress { done });
        };
        if let Err(failure) = transaction::run(self.host, &id, &mut progress) {
            return Response::Failed(*failure);
        }
        match self.observe(&scope) {
            Ok(observed) => Response::Applied(Box::new(Applied { observed })),
            // Made, and not taken back yet: that is the laptop's to say, or the timer's.
            Err(message) => Response::Failed(Failure {
                fault: Fault::Error,
                object: String::new(),
                message,
                undone: false,
                left: Vec::new(),
            }),
        }
    }
}

/// There is no record of what this node is to be.
pub(crate) fn untold() -> String {
    format!("there is no {} that can be read: run homelab apply", ours::NODE_SPEC)
}

/// The proxy's rules that are not as `spec` has them: what is traced then may not be what happens.
pub(crate) fn altered_rules(spec: &NodeSpec, observed: &[NodeObject]) -> Vec<String> {
    let differs = |object: &NodeObject| !observed.iter().any(|o| o.spec == object.spec);
    let wanted = homelab_proxy::foundation(spec);
    let altered: Vec<String> =
        wanted.iter().filter(|o| differs(o)).map(|o| o.spec.key().to_string()).collect();
    if altered.is_empty() {
        return Vec::new();
    }
    vec![format!("not as homelab makes it, so this may not be what happens: {}", altered.join(", "))]
}

fn not_locked() -> Response {
    refused(Fault::NotLocked, "this session does not hold the node's lock any more".to_owned())
}

#[cfg(test)]
mod tests;
