//! The other end of a session, with a connection that can be cut.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use homelab_model::{Holder, NodeObject, Scope, diff};
use homelab_protocol::{Fault, FrameError, Hello, PROTOCOL, Request, Response, Transaction, read_frame};

use super::World;
use crate::serve::{Input, session};

/// Seconds until an unconfirmed transaction is taken back.
pub(crate) const TIMEOUT: u64 = 60;

/// What happens next on the laptop: it sees the responses so far.
type Then<'a> = Box<dyn FnOnce(&[Response]) + 'a>;

/// A step of a session.
pub(crate) enum Step<'a> {
    Send(Request),
    Then(Then<'a>),
    /// Nothing is said for as long as the node has patience.
    Silence,
    /// Something that no node of today understands.
    Garbled,
}

/// One connection: what the node reads, and where it writes.
pub(crate) struct Connection<'a> {
    world: World,
    number: usize,
    steps: VecDeque<Step<'a>>,
    heard: Rc<RefCell<Vec<Response>>>,
}

impl<'a> Connection<'a> {
    fn open(world: &World, steps: Vec<Step<'a>>) -> Connection<'a> {
        let mut state = world.0.borrow_mut();
        state.connections += 1;
        let number = state.connections - 1;
        drop(state);
        Connection { world: world.clone(), number, steps: steps.into(), heard: Rc::default() }
    }

    fn cut(&self) -> bool {
        self.number < self.world.0.borrow().cut_below
    }
}

impl Input for Connection<'_> {
    fn next(&mut self, patience: Option<Duration>) -> Result<Option<Request>, FrameError> {
        loop {
            if self.cut() {
                return Err(FrameError::Closed);
            }
            if self.world.0.borrow().partition {
                // Silence, until TCP gives up.
                let Some(patience) = patience else { return Err(FrameError::Closed) };
                self.world.0.borrow_mut().time += patience.as_millis() as u64;
                return Ok(None);
            }
            match self.steps.pop_front() {
                Some(Step::Send(request)) => return Ok(Some(request)),
                Some(Step::Then(then)) => then(&self.heard.borrow()),
                Some(Step::Silence) => {
                    let patience = patience.expect("silence is noticed");
                    self.world.0.borrow_mut().time += patience.as_millis() as u64;
                    return Ok(None);
                }
                Some(Step::Garbled) => {
                    let error = serde_json::from_str::<Request>(r#"{"request": "teleport"}"#);
                    return Err(FrameError::Decode(error.expect_err("no request")));
                }
                None => return Err(FrameError::Closed),
            }
        }
    }
}

/// Where the node writes its responses.
struct Wire {
    world: World,
    number: usize,
    heard: Rc<RefCell<Vec<Response>>>,
    bytes: Vec<u8>,
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.world.0.borrow();
        if self.number < state.cut_below {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !state.partition {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Ok(response) = read_frame(&mut &self.bytes[..]) {
            self.heard.borrow_mut().push(response);
            self.bytes.clear();
        }
        Ok(())
    }
}

/// Runs a session of a process of its own to its end, or to its process's. Gives what the laptop heard.
pub(crate) fn talk(world: &World, steps: Vec<Step<'_>>) -> Vec<Response> {
    let mut connection = Connection::open(world, steps);
    let heard = connection.heard.clone();
    let number = connection.number;
    if world.0.borrow().partition || world.0.borrow().laptop_dead {
        return Vec::new();
    }
    let mut wire = Wire { world: world.clone(), number, heard: heard.clone(), bytes: Vec::new() };
    let _ = world.survive(|| {
        let _ = session(&mut world.process(), &mut connection, &mut wire);
    });
    let heard = heard.borrow();
    heard.clone()
}

pub(crate) fn send<'a>(request: Request) -> Step<'a> {
    Step::Send(request)
}

pub(crate) fn hello<'a>() -> Step<'a> {
    send(Request::Hello(Hello { protocol: PROTOCOL, version: "0".into(), sha256: String::new() }))
}

pub(crate) fn holder(command: &str) -> Holder {
    Holder { who: "me@laptop".into(), pid: 7, command: command.into(), since: 1 }
}

pub(crate) fn lock<'a>() -> Step<'a> {
    send(Request::Lock { holder: holder("apply"), wait_ms: 0 })
}

/// A transaction from what is there to `desired`.
pub(crate) fn transaction(world: &World, id: &str, desired: &[NodeObject]) -> Transaction {
    Transaction {
        id: id.into(),
        by: holder("apply"),
        changes: diff(&world.observed(), desired),
        scope: Scope::default(),
        farewell: false,
        timeout: TIMEOUT,
        secrets: Default::default(),
    }
}

/// How an apply ended, as far as the laptop knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// The changes stay.
    Confirmed,
    /// The node said that it is as before.
    Undone,
    /// Nothing was begun.
    Refused(Fault),
    /// The node did not say.
    Unknown,
}

/// A whole apply as the laptop does it: begin, run, and confirm over a second connection while the first is open.
pub(crate) fn apply(world: &World, transaction: &Transaction) -> Known {
    let known = RefCell::new(None);
    let steps = vec![
        hello(),
        lock(),
        send(Request::Begin(Box::new(transaction.clone()))),
        send(Request::Run),
        Step::Then(Box::new(|heard: &[Response]| {
            world.agent();
            if matches!(heard.last(), Some(Response::Applied(_))) {
                *known.borrow_mut() = Some(confirm(world, transaction));
            }
        })),
        send(Request::Bye),
    ];
    let heard = talk(world, steps);
    if let Some(known) = known.take() {
        return known;
    }
    // What follows a failure only fails because of it.
    let failed = heard.iter().find(|r| matches!(r, Response::Failed(_)));
    match failed.or(heard.last()) {
        Some(Response::Failed(failure)) if failure.fault != Fault::Error => Known::Refused(failure.fault),
        Some(Response::Failed(failure)) if failure.undone => Known::Undone,
        Some(Response::Applied(_)) => confirm(world, transaction),
        // The connection went first: try to have it taken back at once.
        _ => roll_back(world, &transaction.id),
    }
}

fn confirm(world: &World, transaction: &Transaction) -> Known {
    let id = &transaction.id;
    for _ in 0..3 {
        let heard = talk(world, vec![hello(), send(Request::Confirm { id: id.clone() }), send(Request::Bye)]);
        match heard.last() {
            Some(Response::Confirmed) => return Known::Confirmed,
            Some(Response::Failed(failure)) if failure.fault == Fault::NoTransaction => {
                return after_all(world, transaction);
            }
            Some(Response::Failed(_)) => return roll_back(world, id),
            _ => {}
        }
    }
    Known::Unknown
}

/// A node that has forgotten everything has kept its word.
fn after_all(world: &World, transaction: &Transaction) -> Known {
    let heard = talk(world, vec![hello(), send(Request::Observe { scope: Scope::default() })]);
    match heard.last() {
        Some(Response::Observed(seen)) if transaction.farewell && seen.objects.is_empty() => Known::Confirmed,
        Some(Response::Observed(_)) => Known::Undone,
        _ => Known::Unknown,
    }
}

/// Asks for the transaction to be taken back.
pub(crate) fn roll_back(world: &World, id: &str) -> Known {
    let request = Request::Rollback { id: id.into(), reason: "the connection was lost".into() };
    let heard = talk(world, vec![hello(), send(request), send(Request::Bye)]);
    match heard.last() {
        Some(Response::RolledBack { left }) if left.is_empty() => Known::Undone,
        _ => Known::Unknown,
    }
}
