use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use homelab_ssh::{Session, SshOptions, SshTransport, Transport, TransportError};

use crate::server::{Sshd, error, free_port, target, text};

/// A TCP proxy in front of an sshd that can fall silent or hang up.
struct Wire {
    port: u16,
    silent: Arc<AtomicBool>,
    /// Bytes towards the client until the wire falls silent by itself.
    budget: Arc<AtomicU64>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(port: u16) -> Wire {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let wire = Wire {
            port: listener.local_addr().unwrap().port(),
            silent: Arc::default(),
            budget: Arc::new(AtomicU64::new(u64::MAX)),
            streams: Arc::default(),
        };
        let (silent, budget, streams) = (wire.silent.clone(), wire.budget.clone(), wire.streams.clone());
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                for s in [&client, &server] {
                    s.set_nodelay(true).unwrap();
                    streams.lock().unwrap().push(s.try_clone().unwrap());
                }
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (quiet, unlimited) = (silent.clone(), Arc::new(AtomicU64::new(u64::MAX)));
                thread::spawn(move || copy(client, server, &quiet, &unlimited));
                let (quiet, budget) = (silent.clone(), budget.clone());
                thread::spawn(move || copy(ends.1, ends.0, &quiet, &budget));
            }
        });
        wire
    }

    fn cut(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    fn hang_up(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool, budget: &AtomicU64) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let left = budget.load(Ordering::SeqCst);
        // Silent: the bytes are swallowed, the connection stays, as with a cable that was pulled.
        if silent.load(Ordering::SeqCst) || left == 0 {
            continue;
        }
        let n = n.min(usize::try_from(left).unwrap_or(usize::MAX));
        if left != u64::MAX {
            budget.fetch_sub(n as u64, Ordering::SeqCst);
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// An sshd behind a wire, and a client with little patience.
fn wired(change: impl FnOnce(&mut SshOptions)) -> (Sshd, Wire, SshTransport) {
    let sshd = Sshd::start();
    let wire = Wire::to(sshd.port);
    sshd.configure(&format!("HostKeyAlias node\nPort {}\n", wire.port));
    sshd.write_known(&format!("node {}\n", sshd.host_key("ed25519")));
    let mut options = sshd.options();
    options.idle_timeout = Duration::from_secs(2);
    options.connect_timeout = Some(Duration::from_secs(2));
    change(&mut options);
    let transport = SshTransport::new(options);
    (sshd, wire, transport)
}

/// Runs `work` and insists on an end within `limit`, with some grace for a machine that is busy with other things.
fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < limit + Duration::from_secs(10), "took {:?}", start.elapsed());
    result
}

fn read_error(session: &mut dyn Session) -> io::Error {
    let mut buffer = [0; 1 << 16];
    loop {
        match session.read(&mut buffer) {
            Ok(0) => panic!("an end where an error was due"),
            Ok(_) => {}
            Err(e) => return e,
        }
    }
}

#[test]
fn a_node_that_accepts_and_says_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (sshd, _wire, _) = wired(|_| {});
    sshd.configure("");
    let mut target = target();
    target.ssh.port = Some(listener.local_addr().unwrap().port());
    let mut options = sshd.options();
    options.connect_timeout = Some(Duration::from_millis(700));
    let transport = SshTransport::new(options);
    match within(Duration::from_secs(2), || error(transport.open(&target, "true"))) {
        TransportError::Timeout { stage, limit, endpoint } => {
            assert_eq!((stage, limit), ("the SSH handshake", Duration::from_millis(700)));
            assert!(endpoint.starts_with("127.0.0.1:"));
        }
        other => panic!("{other}"),
    }
    // The user's ConnectTimeout holds where the caller has none.
    sshd.configure("ConnectTimeout 1\n");
    let transport = SshTransport::new(SshOptions { connect_timeout: None, ..sshd.options() });
    match within(Duration::from_secs(3), || error(transport.open(&target, "true"))) {
        TransportError::Timeout { limit, .. } => assert_eq!(limit, Duration::from_secs(1)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_node_that_falls_silent_while_connecting() {
    // After every so many bytes of the connection: handshake, authentication, start of the command.
    let (sshd, _wire, _) = wired(|_| {});
    let threads: Vec<_> = (0..24)
        .map(|n| {
            let wire = Wire::to(sshd.port);
            wire.budget.store(10 + n * 110, Ordering::SeqCst);
            let transport = SshTransport::new(SshOptions {
                connect_timeout: Some(Duration::from_secs(3)),
                ..sshd.options()
            });
            let mut target = target();
            target.ssh.port = Some(wire.port);
            thread::spawn(move || {
                within(Duration::from_secs(10), || transport.open(&target, "echo in")).err().map(
                    |e| match e {
                        TransportError::Timeout { stage, .. } => stage,
                        other => panic!("after {} bytes: {other}", 10 + n * 110),
                    },
                )
            })
        })
        .collect();
    let stages: BTreeSet<_> = threads.into_iter().filter_map(|t| t.join().unwrap()).collect();
    assert_eq!(stages, BTreeSet::from(["the SSH handshake", "authenticating", "starting the command"]));
}

#[test]
fn nobody_listens() {
    let sshd = Sshd::start();
    let mut target = target();
    target.ssh.port = Some(free_port());
    match error(sshd.transport().open(&target, "true")) {
        TransportError::Connect { reason, .. } => assert_eq!(reason, "Connection refused"),
        other => panic!("{other}"),
    }
}

#[test]
fn something_else_listens() {
    let sshd = Sshd::start();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut target = target();
    target.ssh.port = Some(listener.local_addr().unwrap().port());
    for words in
        ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-x\r\ngarbage that is no packet at all........"]
    {
        let server = listener.try_clone().unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            stream.write_all(words.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        match within(Duration::from_secs(5), || error(sshd.transport().open(&target, "true"))) {
            TransportError::Handshake { reason, .. } => assert!(!reason.is_empty()),
            other => panic!("{other}"),
        }
        thread.join().unwrap();
    }
}

#[test]
fn no_such_name() {
    let sshd = Sshd::start();
    let mut target = target();
    target.ssh.host = Some("no-such-host.invalid".to_owned());
    match error(sshd.transport().open(&target, "true")) {
        TransportError::Resolve { host, reason } => {
            assert!(host == "no-such-host.invalid" && !reason.is_empty());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn cut_while_reading() {
    let (_sshd, wire, transport) = wired(|_| {});
    let mut session = transport.open(&target(), "echo first; sleep 60").unwrap();
    let mut buffer = [0; 6];
    session.read_exact(&mut buffer).unwrap();
    wire.cut();
    let e = within(Duration::from_secs(4), || read_error(&mut *session));
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    assert_eq!(e.to_string(), format!("nothing came from 127.0.0.1:{} for 2s", wire.port));
    // The error stays, and the end does not hang.
    assert_eq!(read_error(&mut *session).kind(), io::ErrorKind::TimedOut);
    within(Duration::from_secs(1), || assert_eq!(session.finish(), None));
    within(Duration::from_secs(1), || drop(session));
}

#[test]
fn cut_while_writing() {
    let (_sshd, wire, transport) = wired(|_| {});
    let mut session = transport.open(&target(), "cat >/dev/null").unwrap();
    session.write_all(b"something").unwrap();
    session.flush().unwrap();
    wire.cut();
    let data = vec![0; 1 << 20];
    let e =
        within(Duration::from_secs(10), || (0..1000).find_map(|_| session.write_all(&data).err()).unwrap());
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    within(Duration::from_secs(1), || assert_eq!(session.finish(), None));
}

#[test]
fn cut_before_the_end() {
    let (_sshd, wire, transport) = wired(|_| {});
    let mut session = transport.open(&target(), "cat").unwrap();
    wire.cut();
    within(Duration::from_secs(4), || assert_eq!(session.finish(), None));
    // Dropped with everything still open.
    let (_sshd, wire, transport) = wired(|_| {});
    let mut session = transport.open(&target(), "cat").unwrap();
    session.write_all(&[0; 100_000]).unwrap();
    wire.cut();
    within(Duration::from_secs(1), || drop(session));
}

#[test]
fn hung_up() {
    let (_sshd, wire, transport) = wired(|_| {});
    let mut session = transport.open(&target(), "echo first; sleep 60").unwrap();
    let mut buffer = [0; 6];
    session.read_exact(&mut buffer).unwrap();
    wire.hang_up();
    let e = within(Duration::from_secs(1), || read_error(&mut *session));
    assert_eq!(e.kind(), io::ErrorKind::ConnectionAborted);
    let text = e.to_string();
    assert_eq!(text, format!("the connection to 127.0.0.1:{} was lost: closed by the other side", wire.port));
    within(Duration::from_secs(1), || assert_eq!(session.finish(), None));
    let (_sshd, wire, transport) = wired(|_| {});
    let mut session = transport.open(&target(), "cat").unwrap();
    wire.hang_up();
    let data = vec![0; 1 << 20];
    let e =
        within(Duration::from_secs(2), || (0..1000).find_map(|_| session.write_all(&data).err()).unwrap());
    assert_eq!(e.kind(), io::ErrorKind::ConnectionAborted);
}

#[test]
fn keepalives_find_a_dead_peer_long_before_the_idle_timeout() {
    let (_sshd, wire, transport) = wired(|o| {
        o.idle_timeout = Duration::from_secs(600);
        o.keepalive = Some(Duration::from_secs(2));
    });
    let mut session = transport.open(&target(), "sleep 60").unwrap();
    wire.cut();
    let e = within(Duration::from_secs(12), || read_error(&mut *session));
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    assert!(e.to_string().contains("has not answered for"), "{e}");
}

#[test]
fn keepalives_leave_a_quiet_command_alone() {
    let (_sshd, _wire, transport) = wired(|o| {
        o.idle_timeout = Duration::from_secs(600);
        o.keepalive = Some(Duration::from_secs(2));
    });
    let mut session = transport.open(&target(), "sleep 9; echo late").unwrap();
    assert_eq!(text(&mut *session), "late\n");
    assert_eq!(session.finish(), Some(0));
}

#[test]
fn silence_counts_only_while_somebody_listens() {
    let (_sshd, wire, transport) = wired(|o| {
        o.idle_timeout = Duration::from_secs(600);
        o.keepalive = Some(Duration::from_secs(2));
    });
    let mut session = transport.open(&target(), "while read word; do sleep 1; echo $word; done").unwrap();
    let mut line = [0; 4];
    // Longer than a peer that is listened to may be silent: the user reads a plan, another node's lock is waited for.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(8200));
        session.write_all(b"one\n").unwrap();
        session.flush().unwrap();
        session.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"one\n");
    }
    // A peer that has gone meanwhile is still found.
    wire.cut();
    std::thread::sleep(Duration::from_millis(8200));
    let e = within(Duration::from_secs(12), || read_error(&mut *session));
    assert!(e.to_string().contains("has not answered for"), "{e}");
}

#[test]
fn total_time() {
    let (_sshd, _wire, transport) = wired(|o| o.total_timeout = Some(Duration::from_secs(2)));
    let mut session = transport.open(&target(), "while :; do echo tick; sleep 0.1; done").unwrap();
    let e = within(Duration::from_secs(4), || read_error(&mut *session));
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    assert!(e.to_string().contains("has used up its time"), "{e}");
}

#[test]
fn cut_behind_a_jump_host() {
    let (node, wire, _) = wired(|_| {});
    let jump = Sshd::start();
    jump.authorize_public(&std::fs::read_to_string(node.path("id.pub")).unwrap());
    let known = format!("node {}\njump {}\n", node.host_key("ed25519"), jump.host_key("ed25519"));
    node.write_known(&known);
    node.configure(&format!(
        "Host hop\n  HostName 127.0.0.1\n  HostKeyAlias jump\n  Port {}\nHost 127.0.0.1\n  HostKeyAlias node\n  \
         ProxyJump hop\n  Port {}\n",
        jump.port, wire.port
    ));
    let transport = SshTransport::new(SshOptions { idle_timeout: Duration::from_secs(2), ..node.options() });
    let mut session = transport.open(&target(), "sleep 60").unwrap();
    wire.cut();
    let e = within(Duration::from_secs(4), || read_error(&mut *session));
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    within(Duration::from_secs(1), || drop(session));
    // Hung up behind the jump host: the node's end is known at once.
    wire.silent.store(false, Ordering::SeqCst);
    let mut session = transport.open(&target(), "sleep 60").unwrap();
    wire.hang_up();
    let e = within(Duration::from_secs(1), || read_error(&mut *session));
    assert_eq!(e.kind(), io::ErrorKind::ConnectionAborted);
    assert!(e.to_string().contains("jump host 127.0.0.1:"), "{e}");
}

#[test]
fn sessions_leave_no_connection_behind() {
    let (sshd, _wire, transport) = wired(|_| {});
    for _ in 0..3 {
        let mut session = transport.open(&target(), "true").unwrap();
        assert_eq!(session.finish(), Some(0));
    }
    drop(transport.open(&target(), "sleep 60").unwrap());
    let start = Instant::now();
    while sshd.log().matches("Received disconnect").count() < 4 {
        assert!(start.elapsed() < Duration::from_secs(30), "{}", sshd.log());
        thread::sleep(Duration::from_millis(20));
    }
}
