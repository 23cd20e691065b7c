//! The node's end of a session.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use homelab_model::{Scanned, ours, sha256_hex};
use homelab_protocol::{
    Applied, Failure, Fault as Kind, Hello, PROTOCOL, Request, Response, Secret, read_frame, write_frame,
};

use super::{Lan, Machine, PROGRAM, Trick};

/// What the script's line `name=` says.
fn setting<'a>(command: &'a str, name: &str) -> &'a str {
    command.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

pub(super) fn shell(
    lan: &Lan,
    machine: &Mutex<Machine>,
    token: u64,
    command: &str,
    mut stream: UnixStream,
) -> std::io::Result<()> {
    let fault = machine.lock().unwrap().fault.clone();
    let want = sha256_hex(PROGRAM);
    assert!(command.contains(&format!("x86_64) echo {want};;")));
    stream.write_all(&fault.noise)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let forced = setting(command, "forced") == "1";
    let mut digest = want.clone();
    if machine.lock().unwrap().installed(&want) && !forced {
        stream.write_all(b"\nhomelab-serve x86_64 installed\n")?;
        if fault.tampered {
            digest = "0".repeat(64);
        }
    } else {
        let mut skipped = vec![0; setting(command, "skip").parse().unwrap()];
        reader.read_exact(&mut skipped)?;
        stream.write_all(b"\nhomelab-need x86_64\n")?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((sum, size)) = line.trim().split_once(' ') else { return Ok(()) };
        assert_eq!(sum, want);
        let mut packed = vec![0; size.parse().unwrap()];
        reader.read_exact(&mut packed)?;
        let mut program = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut program)?;
        assert_eq!(program, PROGRAM);
        machine.lock().unwrap().uploads += 1;
        stream.write_all(b"\nhomelab-serve x86_64 temporary\n")?;
    }
    if let Some(garbage) = fault.garbage {
        return stream.write_all(&garbage);
    }
    Serve { lan, machine, token, digest, stream }.run(&mut reader)
}

struct Serve<'a> {
    lan: &'a Lan,
    machine: &'a Mutex<Machine>,
    token: u64,
    digest: String,
    stream: UnixStream,
}

impl Serve<'_> {
    fn send(&mut self, response: &Response) -> std::io::Result<()> {
        write_frame(&mut self.stream, response).map_err(std::io::Error::other)
    }

    fn run(mut self, reader: &mut impl Read) -> std::io::Result<()> {
        loop {
            let request: Request = read_frame(reader).map_err(std::io::Error::other)?;
            {
                let mut node = self.machine.lock().unwrap();
                node.tick();
                if node.killed.contains(&self.token) {
                    return Ok(());
                }
                let name = format!("{request:?}");
                let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                node.log.push((self.token, name.to_owned()));
                let trick = node.fault.evil.and_then(|evil| (evil.0)(&request));
                drop(node);
                match trick {
                    None => {}
                    Some(Trick::Lie(response)) => {
                        let (deaf, _) = UnixStream::pair().unwrap();
                        let stream = std::mem::replace(&mut self.stream, deaf);
                        // Nobody hears of it.
                        let _ = self.answer(request);
                        self.stream = stream;
                        self.send(&response)?;
                        continue;
                    }
                    Some(trick) => {
                        if !self.trick(trick)? {
                            return Ok(());
                        }
                        continue;
                    }
                }
            }
            if !self.answer(request)? {
                return Ok(());
            }
        }
    }

    /// Whether the session goes on.
    fn trick(&mut self, trick: Trick) -> std::io::Result<bool> {
        match trick {
            Trick::Say(responses) => {
                for response in responses {
                    self.send(&response)?;
                }
            }
            Trick::Forever(response) => loop {
                self.send(&response)?;
            },
            Trick::Bytes(bytes) => {
                self.stream.write_all(&bytes)?;
                return Ok(false);
            }
            Trick::Drip => {
                self.stream.write_all(&[0, 255, 255, 255])?;
                loop {
                    std::thread::sleep(Duration::from_millis(20));
                    self.stream.write_all(b" ")?;
                }
            }
            Trick::Silence => {}
            Trick::HangUp | Trick::Lie(_) => return Ok(false),
        }
        Ok(true)
    }

    fn answer(&mut self, request: Request) -> std::io::Result<bool> {
        let machine = self.machine;
        let mut node = machine.lock().unwrap();
        let answer = match request {
            Request::Hello(hello) => {
                let protocol = node.fault.protocol.unwrap_or(PROTOCOL);
                let answer = Hello { protocol, version: "0.0.9".into(), sha256: self.digest.clone() };
                drop(node);
                self.send(&Response::Hello(answer))?;
                return Ok(protocol == hello.protocol);
            }
            Request::Observe { scope } => Response::Observed(Box::new(node.observe(&scope, self.token))),
            Request::Lock { holder, wait_ms } => {
                let end = Instant::now() + Duration::from_millis(wait_ms);
                let mut waited = false;
                while node.lock.as_ref().is_some_and(|(owner, _)| *owner != self.token)
                    && Instant::now() < end
                {
                    waited = true;
                    drop(node);
                    std::thread::sleep(Duration::from_millis(2));
                    node = machine.lock().unwrap();
                }
                match &node.lock {
                    Some((owner, other)) if *owner != self.token => Response::Busy(other.clone()),
                    _ => {
                        node.lock = Some((self.token, holder));
                        Response::Locked { waited }
                    }
                }
            }
            Request::Unlock => {
                let holder = node.lock.take().map(|(owner, holder)| {
                    node.killed.insert(owner);
                    holder
                });
                Response::Unlocked { holder }
            }
            Request::Beat => return Ok(true),
            Request::Begin(transaction) => {
                if std::mem::take(&mut node.fault.drop_once) {
                    return Ok(false);
                }
                node.begin(*transaction, self.token)
            }
            Request::Run => {
                drop(node);
                let answer = self.carry_out();
                if let Response::Applied(_) = &answer {
                    let mut node = machine.lock().unwrap();
                    if let Some(time) = node.fault.lost_after_run.take() {
                        node.fault.down_until = Some(Instant::now() + time);
                        return Ok(false);
                    }
                }
                self.send(&answer)?;
                return Ok(true);
            }
            Request::Confirm { id } => {
                let answer = node.confirm(&id);
                if node.fault.lost_confirmations > 0 {
                    node.fault.lost_confirmations -= 1;
                    return Ok(false);
                }
                answer
            }
            Request::Hold { id, seconds } => node.hold(&id, seconds),
            Request::Rollback { id, reason } => node.take_back(&id, &reason),
            Request::Previous => Response::Previous(node.previous.clone().map(Box::new)),
            Request::Probe { targets } => {
                let own = node.tunnel().map(|(place, _)| place);
                let (address, walls) = (node.address, node.walls.clone());
                drop(node);
                let reached =
                    targets.iter().map(|target| self.reaches(own, address, &walls, *target)).collect();
                self.send(&Response::Reached { reached })?;
                return Ok(true);
            }
            Request::Secret { path } => {
                let summary = node.secret_summary(&path);
                match summary.and_then(|s| node.texts.get(&s).map(|text| (s.clone(), text.clone()))) {
                    Some((summary, text)) => Response::Secret(Secret { summary, text }),
                    None => failed("there is no such secret"),
                }
            }
            Request::Install { package } => node.install(&package),
            Request::Services => Response::Services { services: node.services.clone() },
            Request::Trace(packet) => match node.traces.get(&packet.destination) {
                Some(traced) => Response::Traced(Box::new(traced.clone())),
                None => failed("nobody said what becomes of that packet"),
            },
            Request::Scan { ranges } => {
                let inside =
                    |one: &&Scanned| ranges.iter().any(|r| r.first <= one.address && one.address <= r.last);
                Response::Scanned { found: node.neighbours.iter().filter(inside).cloned().collect() }
            }
            Request::LoadBalancers => Response::LoadBalancers(Box::new(node.balancers.clone())),
            Request::Cordon { on, by } => {
                let address = node.address;
                drop(node);
                let changed = self.lan.cordon(address, on, &by);
                let after = machine.lock().unwrap().balancers.clone();
                self.send(&Response::Cordoned { changed, node: Box::new(after) })?;
                return Ok(true);
            }
            Request::Bye => return Ok(false),
        };
        drop(node);
        self.send(&answer)?;
        Ok(true)
    }

    /// Makes the changes of the open transaction; a laptop that no longer listens changes nothing about that.
    fn carry_out(&mut self) -> Response {
        let machine = self.machine;
        let (id, scope, total, slow) = {
            let mut node = machine.lock().unwrap();
            let Some(open) = node.open.clone() else { return none() };
            if node.lock.as_ref().is_none_or(|(owner, _)| *owner != self.token) {
                return none();
            }
            let transaction = open.transaction;
            if node.worker.replace(transaction.id.clone()).is_some() {
                node.collisions += 1;
            }
            (transaction.id, transaction.scope, transaction.changes.len(), node.fault.slow)
        };
        for done in 0..total {
            std::thread::sleep(slow);
            let result = {
                let mut node = machine.lock().unwrap();
                if node.worker.as_ref() != Some(&id) {
                    node.collisions += 1;
                }
                let result = node.advance(done);
                if result.is_err() {
                    node.worker = None;
                }
                result
            };
            if let Err(failure) = result {
                return Response::Failed(failure);
            }
            let _ = self.send(&Response::Progress { done: done + 1 });
        }
        let mut node = machine.lock().unwrap();
        node.worker = None;
        node.applied();
        Response::Applied(Box::new(Applied { observed: node.observe(&scope, self.token) }))
    }

    /// Whether the tunnel leads to `target`: both ends in the same network, and no wall between them.
    fn reaches(
        &self,
        own: Option<(u32, u16)>,
        address: IpAddr,
        walls: &std::collections::BTreeSet<IpAddr>,
        target: IpAddr,
    ) -> bool {
        let others: Vec<_> = self.lan.machines.lock().unwrap().values().cloned().collect();
        others.iter().any(|other| {
            // One machine at a time: two that probe each other must not wait for each other.
            let other = other.lock().unwrap();
            let there =
                other.tunnel().is_some_and(|(place, held)| Some(place) == own && held.contains(&target));
            there && !walls.contains(&other.address) && !other.walls.contains(&address)
        })
    }
}

fn failed(message: &str) -> Response {
    let message = message.to_owned();
    let (object, left) = (String::new(), Vec::new());
    Response::Failed(Failure { fault: Kind::Error, object, message, undone: false, left })
}

fn none() -> Response {
    let Response::Failed(failure) = failed("there is no transaction") else { unreachable!() };
    Response::Failed(Failure { fault: Kind::NoTransaction, ..failure })
}
