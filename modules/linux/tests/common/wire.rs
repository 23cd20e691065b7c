//! Clients, a node and endpoints in network namespaces, and real sockets between them.
//!
//! All sockets of a test are held by its one thread: nothing waits for a server.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::{OtherNetns, in_netns_of, run};

/// Longer than anything here takes: what it ends is a failure.
const LONG: Duration = Duration::from_secs(10);
/// Port of all endpoints.
pub(crate) const PORT: u16 = 8080;

/// The two ends of a node that is the caller's network namespace.
pub(crate) struct Wire {
    pub(crate) clients: OtherNetns,
    pub(crate) endpoints: OtherNetns,
}

/// Address of a client by its number (up to 200): a pod of this node.
pub(crate) fn client(v4: bool, number: u8) -> IpAddr {
    let text = if v4 { format!("10.244.0.{number}") } else { format!("fd00:10:244::{number}") };
    text.parse().unwrap()
}

/// Address and port of an endpoint by its number: a pod of another node.
pub(crate) fn endpoint(v4: bool, number: u8) -> SocketAddr {
    let text = if v4 { format!("10.244.1.{number}") } else { format!("fd00:10:244:1::{number}") };
    SocketAddr::new(text.parse().unwrap(), PORT)
}

/// What this node masquerades with on its way to endpoints.
pub(crate) fn masquerade(v4: bool) -> IpAddr {
    endpoint(v4, 1).ip()
}

impl Wire {
    /// Makes the caller's network namespace a node with the addresses of [`super::proxy::view`].
    pub(crate) fn new(clients: &[u8], endpoints: &[u8]) -> Wire {
        let wire = Wire { clients: OtherNetns::new(), endpoints: OtherNetns::new() };
        let quiet = "echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up";
        run(quiet);
        run("ip addr add 192.168.50.11/32 dev lo; ip addr add fd00:50::11/128 dev lo nodad");
        for (subnet, dev, other, numbers) in
            [(0, "pods", &wire.clients, clients), (1, "away", &wire.endpoints, endpoints)]
        {
            let task = other.path.to_string_lossy().replace("/ns/net", "");
            let thread = task.rsplit('/').next().unwrap();
            in_netns_of(other, || run(quiet));
            run(&format!("ip link add {dev} type veth peer name {dev} netns {thread}; ip link set {dev} up"));
            let (six, length) = (format!("fd00:10:244:{subnet}::"), 64);
            run(&format!(
                "ip addr add 10.244.{subnet}.1/24 dev {dev}; ip addr add {six}1/{length} dev {dev} nodad"
            ));
            in_netns_of(other, || {
                run(&format!("ip link set {dev} up"));
                for number in numbers {
                    run(&format!("ip addr add 10.244.{subnet}.{number}/24 dev {dev}"));
                    run(&format!("ip addr add {six}{number}/{length} dev {dev} nodad"));
                }
                run(&format!("ip route add default via 10.244.{subnet}.1; ip route add default via {six}1"));
            });
        }
        // As a node has one: what is not translated is to be forwarded, not unroutable.
        let beyond = endpoints[0];
        run(&format!(
            "ip route add default via 10.244.1.{beyond}; ip route add default via fd00:10:244:1::{beyond}"
        ));
        run("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        wire
    }

    /// A socket of a client, bound to its address.
    fn socket(&self, kind: Type, from: SocketAddr) -> Socket {
        in_netns_of(&self.clients, || {
            let socket = Socket::new(Domain::for_address(from), kind, None).unwrap();
            socket.bind(&from.into()).unwrap();
            socket
        })
    }

    /// A UDP socket of a client that sends to `to` alone, and hears of errors.
    pub(crate) fn udp(&self, from: IpAddr, to: SocketAddr) -> UdpSocket {
        let socket: UdpSocket = self.socket(Type::DGRAM, SocketAddr::new(from, 0)).into();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }
}

/// Does it again until it gives something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Endpoints that take TCP connections.
pub(crate) struct Listeners(BTreeMap<SocketAddr, TcpListener>);

/// A connection with both its ends.
pub(crate) struct Line {
    client: TcpStream,
    server: TcpStream,
    pub(crate) endpoint: SocketAddr,
    /// The client's address as the endpoint sees it.
    pub(crate) source: IpAddr,
    /// The client's own address and port.
    pub(crate) from: SocketAddr,
}

impl Listeners {
    pub(crate) fn new(wire: &Wire, at: &[SocketAddr]) -> Listeners {
        let listen = |at: &SocketAddr| {
            let listener = TcpListener::bind(at).unwrap();
            listener.set_nonblocking(true).unwrap();
            (*at, listener)
        };
        Listeners(in_netns_of(&wire.endpoints, || at.iter().map(listen).collect()))
    }

    /// Connects and accepts.
    pub(crate) fn connect(&self, wire: &Wire, from: IpAddr, to: SocketAddr) -> Line {
        let socket = wire.socket(Type::STREAM, SocketAddr::new(from, 0));
        socket.connect_timeout(&to.into(), LONG).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
        let accept = || self.0.iter().find_map(|(at, listener)| Some((*at, listener.accept().ok()?)));
        let (endpoint, (server, peer)) = until(&format!("nobody accepts {from} to {to}"), accept);
        let client: TcpStream = socket.into();
        for end in [&client, &server] {
            end.set_nonblocking(false).unwrap();
            end.set_read_timeout(Some(LONG)).unwrap();
        }
        assert_eq!(client.peer_addr().unwrap(), to);
        let from = client.local_addr().unwrap();
        Line { client, server, endpoint, source: peer.ip(), from }
    }
}

impl Line {
    /// Sends a number there and another one back.
    pub(crate) fn exchange(&mut self, number: u32) {
        let mut heard = [0; 4];
        self.client.write_all(&number.to_be_bytes()).unwrap();
        self.server.read_exact(&mut heard).unwrap_or_else(|e| panic!("{} at {number}: {e}", self.endpoint));
        assert_eq!(u32::from_be_bytes(heard), number);
        self.server.write_all(&(!number).to_be_bytes()).unwrap();
        self.client.read_exact(&mut heard).unwrap_or_else(|e| panic!("{} at {number}: {e}", self.from));
        assert_eq!(u32::from_be_bytes(heard), !number);
    }
}

/// Endpoints that answer UDP.
pub(crate) struct Answerers(BTreeMap<SocketAddr, UdpSocket>);

/// What became of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// This endpoint got it, from this address, and the client got the answer.
    By(SocketAddr, IpAddr),
    /// The client was told that nobody answers.
    Refused,
}

impl Answerers {
    pub(crate) fn new(wire: &Wire, at: &[SocketAddr]) -> Answerers {
        let bind = |at: &SocketAddr| {
            let socket = UdpSocket::bind(at).unwrap();
            socket.set_nonblocking(true).unwrap();
            (*at, socket)
        };
        Answerers(in_netns_of(&wire.endpoints, || at.iter().map(bind).collect()))
    }

    /// Sends one datagram and waits for what becomes of it.
    pub(crate) fn ask(&self, client: &UdpSocket) -> Heard {
        let mut buffer = [0; 16];
        client.send(b"ping").unwrap();
        until(&format!("nothing came of a datagram of {client:?}"), || {
            for (at, socket) in &self.0 {
                let Ok((4, from)) = socket.recv_from(&mut buffer) else { continue };
                socket.send_to(b"pong", from).unwrap();
                until(&format!("no answer of {at} came to {client:?}"), || client.recv(&mut buffer).ok());
                return Some(Heard::By(*at, from.ip()));
            }
            let refused = client.recv(&mut buffer).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
            refused.then_some(Heard::Refused)
        })
    }

    /// The endpoint that gets one datagram.
    pub(crate) fn endpoint_of(&self, client: &UdpSocket) -> SocketAddr {
        match self.ask(client) {
            Heard::By(endpoint, _) => endpoint,
            Heard::Refused => panic!("{client:?} is refused"),
        }
    }
}
