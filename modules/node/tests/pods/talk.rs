//! Servers that say who they are and who asks, and clients, in any network namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use homelab_linux::pod::in_netns;

use super::Pod;

/// Long enough for a loaded machine; only what never answers takes it whole.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not be answered.
const SILENCE: Duration = Duration::from_millis(400);

/// Runs in a pod, or in the calling thread's namespace.
fn inside<T: Send>(place: Option<&Pod>, work: impl FnOnce() -> T + Send) -> T {
    match place {
        None => work(),
        Some(pod) => in_netns(&pod.path(), work).expect("namespace"),
    }
}

/// A server of TCP and UDP on a port of all addresses of a namespace. Ends with the value.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// In a pod, or in the calling thread's namespace.
    pub(crate) fn start(place: Option<&Pod>, name: &str, port: u16) -> Server {
        let any = SocketAddr::new("::".parse().expect("address"), port);
        let (tcp, udp) =
            inside(place, || (TcpListener::bind(any).expect("listen"), UdpSocket::bind(any).expect("bind")));
        let stop = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let answer = move |from: SocketAddr| format!("{name} {}", from.ip().to_canonical());
        let to_datagrams = answer.clone();
        tcp.set_nonblocking(true).expect("socket");
        let streams = move || {
            while !stopped.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, from)) => drop(stream.write_all(answer(from).as_bytes())),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        };
        udp.set_read_timeout(Some(Duration::from_millis(20))).expect("socket");
        let stopped = Arc::clone(&stop);
        let datagrams = move || {
            let mut buffer = [0; 100];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(to_datagrams(from).as_bytes(), from);
                }
            }
        };
        Server { stop, threads: vec![std::thread::spawn(streams), std::thread::spawn(datagrams)] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a server says to a client of TCP: its name, and the address of who asks as it sees it. None: nobody is there.
pub(crate) fn tcp(place: Option<&Pod>, to: &str, answered: bool) -> Option<String> {
    let to: SocketAddr = to.parse().expect("address");
    inside(place, || {
        let mut stream = TcpStream::connect_timeout(&to, if answered { PATIENCE } else { SILENCE }).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("socket");
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    })
}

/// A client of UDP that keeps its port.
pub(crate) struct Client(UdpSocket);

impl Client {
    pub(crate) fn new(place: Option<&Pod>, to: &str) -> Client {
        let to: SocketAddr = to.parse().expect("address");
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("address");
        Client(inside(place, || {
            let socket = UdpSocket::bind((any, 0)).expect("bind");
            socket.connect(to).expect("connect");
            socket
        }))
    }

    /// What a server says.
    pub(crate) fn ask(&self, answered: bool) -> Option<String> {
        let tries = if answered { 50 } else { 2 };
        // On a loaded machine the last question was asked twice, and its second answer is still there.
        self.0.set_nonblocking(true).expect("socket");
        while !matches!(self.0.recv(&mut [0; 100]), Err(error) if error.kind() == ErrorKind::WouldBlock) {}
        self.0.set_nonblocking(false).expect("socket");
        self.0.set_read_timeout(Some(SILENCE / 2)).expect("socket");
        for _ in 0..tries {
            let mut buffer = [0; 100];
            // A port that nobody listens on is an error of the next call.
            let _ = self.0.send(b"who");
            match self.0.recv(&mut buffer) {
                Ok(length) => return Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
                Err(_) if answered => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => {}
            }
        }
        None
    }
}
