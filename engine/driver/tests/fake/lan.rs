//! The LAN: opens sessions to machines, counts messages, and loses laptops.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use homelab_driver::{Session, Target, Transport, TransportError};

use super::serve::shell;
use super::{Machine, wait_until};

/// The machines of a LAN, and the laptop's way to them.
#[derive(Clone)]
pub(crate) struct Lan {
    pub(crate) machines: Arc<Mutex<BTreeMap<IpAddr, Arc<Mutex<Machine>>>>>,
    /// Messages that the laptop may send before it dies.
    pub(crate) breath: Arc<AtomicI64>,
    /// The laptop is dead.
    pub(crate) dead: Arc<AtomicBool>,
    /// What happens with the message that is one too many.
    pub(crate) cut: Cut,
}

/// What happens with the message that is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The laptop dies before it is sent.
    Death,
    /// Its session ends before it is sent.
    Before,
    /// Its session ends after it was sent.
    After,
}

impl Default for Lan {
    fn default() -> Lan {
        let breath = Arc::new(AtomicI64::new(i64::MAX));
        Lan { machines: Arc::default(), breath, dead: Arc::default(), cut: Cut::Death }
    }
}

impl Lan {
    pub(crate) fn of(machines: impl IntoIterator<Item = Machine>) -> Lan {
        let lan = Lan::default();
        for machine in machines {
            lan.add(machine);
        }
        lan
    }

    pub(crate) fn three() -> Lan {
        Lan::of((1..=3).map(|i| Machine::new(&format!("node{i}"), &format!("192.168.50.1{i}"))))
    }

    /// Copies of the machines as they are now.
    pub(crate) fn copy(&self) -> Lan {
        let machines: Vec<_> = self.machines.lock().unwrap().values().cloned().collect();
        Lan::of(machines.iter().map(|m| m.lock().unwrap().clone()))
    }

    /// Waits until no transaction is open.
    pub(crate) fn closed(&self) {
        let open = || {
            let machines: Vec<_> = self.machines.lock().unwrap().values().cloned().collect();
            machines.iter().any(|m| {
                let mut machine = m.lock().unwrap();
                machine.tick();
                machine.open.is_some()
            })
        };
        wait_until("no transaction is open", Duration::from_secs(5), || !open());
    }

    /// The same machines, reached by another laptop.
    pub(crate) fn another_laptop(&self) -> Lan {
        Lan { machines: Arc::clone(&self.machines), ..Lan::default() }
    }

    /// Waits until no node is locked: a session that was ended takes a moment to notice.
    pub(crate) fn unlocked(&self) {
        let locked = || {
            let machines: Vec<_> = self.machines.lock().unwrap().values().cloned().collect();
            machines.iter().any(|m| m.lock().unwrap().lock.is_some())
        };
        wait_until("no lock is left", Duration::from_secs(5), || !locked());
    }

    pub(crate) fn add(&self, machine: Machine) {
        self.machines.lock().unwrap().insert(machine.address, Arc::new(Mutex::new(machine)));
    }

    pub(crate) fn with<R>(&self, address: &str, work: impl FnOnce(&mut Machine) -> R) -> R {
        let machine = self.machines.lock().unwrap()[&address.parse::<IpAddr>().unwrap()].clone();
        let mut machine = machine.lock().unwrap();
        machine.tick();
        work(&mut machine)
    }
}

struct Pipe {
    stream: UnixStream,
    cut: Cut,
    breath: Arc<AtomicI64>,
    dead: Arc<AtomicBool>,
    sent: u64,
    received: u64,
}

impl Pipe {
    fn alive(&self) -> std::io::Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            let _ = self.stream.shutdown(Shutdown::Both);
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.alive()?;
        let n = self.stream.read(buffer)?;
        self.received += n as u64;
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.alive()?;
        let left = self.breath.fetch_sub(1, Ordering::SeqCst);
        match self.cut {
            Cut::Death if left <= 0 => {
                self.dead.store(true, Ordering::SeqCst);
                return self.alive().map(|()| 0);
            }
            Cut::Before if left == 0 => {
                let _ = self.stream.shutdown(Shutdown::Both);
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            _ => {}
        }
        self.stream.write_all(bytes)?;
        if self.cut == Cut::After && left == 0 {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        self.sent += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

impl Session for Pipe {
    fn stderr(&mut self) -> String {
        String::new()
    }

    fn finish(&mut self) -> Option<i32> {
        let _ = self.stream.shutdown(Shutdown::Write);
        Some(0)
    }

    fn patience(&mut self, idle: Duration) {
        // The machine's own timeouts are short here, and a dead laptop reads no more.
        let _ = self.stream.set_read_timeout(Some(idle.max(Duration::from_millis(1))));
    }

    fn traffic(&self) -> (u64, u64) {
        (self.sent, self.received)
    }
}

impl Transport for Lan {
    fn open(&self, target: &Target, command: &str) -> Result<Box<dyn Session>, TransportError> {
        let refused = || TransportError::Connect {
            endpoint: format!("{}:22", target.address),
            reason: "no route to host".into(),
        };
        if self.dead.load(Ordering::SeqCst) {
            return Err(refused());
        }
        let machine = self.machines.lock().unwrap().get(&target.address).cloned().ok_or_else(refused)?;
        let token = {
            let mut machine = machine.lock().unwrap();
            machine.tick();
            if machine.fault.down || machine.fault.down_until.is_some_and(|until| Instant::now() < until) {
                return Err(refused());
            }
            machine.sessions += 1;
            machine.sessions
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (command, lan) = (command.to_owned(), self.clone());
        std::thread::spawn(move || {
            // A laptop that hangs up is no failure of the node.
            let _ = shell(&lan, &machine, token, &command, theirs);
            let mut machine = machine.lock().unwrap();
            machine.lock.take_if(|(owner, _)| *owner == token);
        });
        Ok(Box::new(Pipe {
            stream: ours,
            cut: self.cut,
            breath: Arc::clone(&self.breath),
            dead: Arc::clone(&self.dead),
            sent: 0,
            received: 0,
        }))
    }
}
