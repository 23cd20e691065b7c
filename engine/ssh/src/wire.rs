//! The socket below a session: TCP, or a ProxyCommand.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use homelab_driver::TransportError;
use socket2::{Domain, Protocol, Type};

use crate::config::Settings;
use crate::link::{Below, Limit, Socket, words};

/// A TCP connection to the host of `settings`.
pub(crate) fn tcp(settings: &Settings, limit: &Limit) -> Result<Socket, TransportError> {
    let addresses = resolve(settings, limit)?;
    let mut last = None;
    for (index, address) in addresses.iter().enumerate() {
        // A dead first address must leave time for the others.
        let share = limit.left() / u32::try_from(addresses.len() - index).unwrap_or(1);
        if share.is_zero() {
            break;
        }
        let connected = open(settings, *address)
            .and_then(|socket| socket.connect_timeout(&(*address).into(), share).map(|()| socket));
        match connected {
            Ok(socket) => return Ok(Socket::Tcp(TcpStream::from(socket))),
            Err(e) => last = Some(e),
        }
    }
    let endpoint = settings.endpoint();
    match last {
        Some(e) if e.kind() != io::ErrorKind::TimedOut => {
            Err(TransportError::Connect { endpoint, reason: words(&e) })
        }
        _ => Err(TransportError::Timeout { endpoint, limit: limit.length, stage: "connecting" }),
    }
}

fn open(settings: &Settings, address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // libssh2 sends many small packets.
    socket.set_tcp_nodelay(true)?;
    if let Some(bind) = &settings.bind_address {
        let from: IpAddr =
            bind.parse().map_err(|_| io::Error::other(format!("BindAddress {bind} is no address")))?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    Ok(socket)
}

fn resolve(settings: &Settings, limit: &Limit) -> Result<Vec<SocketAddr>, TransportError> {
    let host = settings.host.clone();
    let port = settings.port;
    let failed =
        |reason: &str| TransportError::Resolve { host: settings.host.clone(), reason: reason.to_owned() };
    let mut addresses = if let Ok(address) = host.parse::<IpAddr>() {
        vec![SocketAddr::new(address, port)]
    } else {
        // The resolver has no timeout of its own to set; a thread that is too late ends by itself.
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            let _ = send.send(found);
        });
        match receive.recv_timeout(limit.left()) {
            Ok(Ok(found)) => found,
            Ok(Err(e)) => {
                let text = e.to_string();
                return Err(failed(text.trim_start_matches("failed to lookup address information: ")));
            }
            Err(_) => return Err(failed("the resolver did not answer in time")),
        }
    };
    if let Some(ipv4) = settings.ipv4 {
        addresses.retain(|a| a.is_ipv4() == ipv4);
    }
    if addresses.is_empty() {
        return Err(failed("it has no address of the family that AddressFamily asks for"));
    }
    Ok(addresses)
}

/// A ProxyCommand whose stdin and stdout are the connection. Its last words on stderr explain a failure.
pub(crate) fn proxy_command(command: &str, settings: &Settings) -> Result<(Socket, Below), TransportError> {
    let failed = |e: io::Error| TransportError::Connect {
        endpoint: settings.endpoint(),
        reason: format!("ProxyCommand {command:?}: {}", words(&e)),
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let output = theirs.try_clone().map_err(failed)?;
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("exec {command}"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(OwnedFd::from(output)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut below = Below::default();
    if let Some(mut stderr) = child.stderr.take() {
        let reason = below.reason.clone();
        below.reader = Some(thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                if let Ok(mut reason) = reason.lock() {
                    reason.push_str(&String::from_utf8_lossy(&buffer[..n]));
                    let excess = reason.len().saturating_sub(4096);
                    let cut = (excess..=reason.len()).find(|i| reason.is_char_boundary(*i)).unwrap_or(0);
                    reason.drain(..cut);
                }
            }
        }));
    }
    below.command = Some(child);
    Ok((Socket::Unix(ours), below))
}
