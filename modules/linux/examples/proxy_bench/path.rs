//! New TCP connections through a node: client, node and server in a network namespace each, one such lane a ruleset.
//! The lanes are measured in turn, in another order each round, so that what else the machine does hits all alike.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread::spawn;
use std::time::{Duration, Instant};

use homelab_model::service::Service;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::{Pid, gettid};

use crate::kube_proxy::{self, KubeProxy};
use crate::ours::{self, Ours};
use crate::{figure, peer, remark};

const MANY: u32 = 30_000;
/// The real kube-proxy takes minutes for more.
const KUBE_MANY: u32 = 10_000;
const ROUNDS: usize = 101;
/// Connections of one way in one round.
const BLOCK: u32 = 500;
/// Endpoints of a service, and of one that has many.
const ENDPOINTS: u8 = 3;
const MANY_ENDPOINTS: u8 = 64;

/// One of the server's addresses.
fn server(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 131, 0, 2 + number).into()
}

/// A network namespace: a thread in it that does what it is told, and is never ended.
struct Netns {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: Pid,
}

impl Netns {
    fn new() -> Netns {
        let (work, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (say, hear) = mpsc::channel();
        spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            say.send(gettid()).unwrap();
            todo.iter().for_each(|work| work());
        });
        Netns { work, thread: hear.recv().unwrap() }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, hear) = mpsc::channel();
        self.work.send(Box::new(move || say.send(work()).unwrap())).unwrap();
        hear.recv().expect("a thread in a namespace ended")
    }

    fn shell(&self, script: String) {
        self.run(move || {
            let status = Command::new("sh").args(["-ec", &script]).status().unwrap();
            assert!(status.success(), "{script}");
        });
    }

    fn file(&self) -> File {
        File::open(format!("/proc/self/task/{}/ns/net", self.thread)).unwrap()
    }
}

/// A client, a node and a server.
struct Lane {
    client: Netns,
    node: Netns,
    _server: Netns,
}

impl Lane {
    fn new() -> Lane {
        let (client, node, server) = (Netns::new(), Netns::new(), Netns::new());
        let to = |link: &str, other: &Netns, net: u8| {
            format!(
                "ip link add {link} type veth peer name eth0 netns {}; ip addr add 10.{net}.0.1/24 dev {link}; ip link set {link} up; ",
                other.thread
            )
        };
        node.shell(format!(
            "ip link set lo up; {}{}echo 1 > /proc/sys/net/ipv4/ip_forward",
            to("c", &client, 130),
            to("s", &server, 131)
        ));
        let end = |net: u8, hosts: u8| {
            let add = |host: u8| format!("ip addr add 10.{net}.0.{host}/24 dev eth0; ");
            let adds: String = (2..2 + hosts).map(add).collect();
            format!("ip link set lo up; {adds}ip link set eth0 up; ip route add default via 10.{net}.0.1")
        };
        client.shell(end(130, 1));
        server.shell(end(131, MANY_ENDPOINTS));
        server.run(|| {
            let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
            spawn(move || {
                pin(1);
                listener.incoming().for_each(drop);
            });
        });
        Lane { client, node, _server: server }
    }

    /// Connections that were reset are forgotten soon, or there were more of them each round.
    fn forget_soon(&self) {
        self.node.shell("echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close".to_owned());
    }
}

/// Keeps the caller on one processor, where there are two.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    // With one processor there is nothing to choose.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

fn services(count: u32, endpoints: u8) -> Vec<Service> {
    (0..count).map(|number| ours::service_at(number, (0..endpoints).map(server))).collect()
}

fn ours_lane(count: u32, endpoints: u8) -> Lane {
    let lane = Lane::new();
    lane.node.run(move || {
        let mut node = Ours::new();
        node.load_ruleset();
        node.sync(&ours::compiled(&services(count, endpoints)));
    });
    lane.forget_soon();
    lane
}

/// None if it cannot be loaded in time.
fn peer_lane(count: u32, endpoints: u8) -> Option<Lane> {
    let lane = Lane::new();
    let loaded = lane.node.run(move || peer::load(&services(count, endpoints)));
    lane.forget_soon();
    if let Err(why) = &loaded {
        remark(&format!("connections, {count} services: chain per service: {why}"));
    }
    loaded.is_ok().then_some(lane)
}

/// The rules that the real kube-proxy leaves. None where there is no kube-proxy.
fn kube_lane(count: u32) -> Option<Lane> {
    let program = kube_proxy::find().map_err(|why| remark(&why)).ok()?;
    let lane = Lane::new();
    lane.node.run(move || {
        let services = services(count, ENDPOINTS);
        KubeProxy::start(&program, &services).wait_started(&services);
    });
    lane.forget_soon();
    Some(lane)
}

/// Where the connections of a way go.
enum To {
    /// One address.
    One(SocketAddr),
    /// Addresses of so many services, in turn, far from each other.
    Services(u32),
}

/// What is compared.
struct Way {
    who: String,
    client: File,
    to: To,
    next: u32,
    rates: Vec<f64>,
    halves: Vec<f64>,
    tails: Vec<f64>,
}

impl Way {
    fn new(who: &str, lane: &Lane, to: To) -> Way {
        let client = lane.client.file();
        Way {
            who: who.to_owned(),
            client,
            to,
            next: 0,
            rates: Vec::new(),
            halves: Vec::new(),
            tails: Vec::new(),
        }
    }

    /// One block of connections: their times in microseconds, and how many there were in a second.
    fn block(&mut self) -> (Vec<f64>, f64) {
        setns(&self.client, CloneFlags::CLONE_NEWNET).unwrap();
        let mut times = Vec::new();
        let start = Instant::now();
        for _ in 0..BLOCK {
            let to = match self.to {
                To::One(to) => to,
                To::Services(count) => {
                    self.next = (self.next + 7919) % count;
                    SocketAddr::new(ours::vip(self.next), 80)
                }
            };
            let began = Instant::now();
            let stream = TcpStream::connect(to).unwrap_or_else(|e| panic!("{}: {to}: {e}", self.who));
            times.push(began.elapsed().as_secs_f64() * 1e6);
            // Closed by a reset, so that no address is used up.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let rate = f64::from(BLOCK) / start.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        (times, rate)
    }

    fn measure(&mut self) {
        let (times, rate) = self.block();
        self.rates.push(rate);
        self.halves.push(times[times.len() / 2]);
        self.tails.push(times[times.len() * 99 / 100]);
    }
}

pub(crate) fn run() {
    let ours = |count| ours_lane(count, ENDPOINTS);
    let peer = |count| peer_lane(count, ENDPOINTS);
    let (one, again, many, wide) = (ours(1), ours(1), ours(MANY), ours_lane(1, MANY_ENDPOINTS));
    let (bare, peer_one) = (Lane::new(), peer(1).expect("one service"));
    let peer_wide = peer_lane(1, MANY_ENDPOINTS).expect("one service");
    let peer_many = [10_000, 5_000, 1_000].into_iter().find_map(|count| Some((count, peer(count)?)));
    let vip = || To::One(SocketAddr::new(ours::vip(0), 80));
    let direct = || To::One(SocketAddr::new(server(0), 8080));
    let mut ways = vec![
        Way::new("homelab", &one, vip()),
        Way::new("homelab, the same again: noise", &again, vip()),
        Way::new(&format!("homelab, {MANY} services"), &many, vip()),
        Way::new(&format!("homelab, {MANY} services, all of them in turn"), &many, To::Services(MANY)),
        Way::new("direct, 1 service beside", &one, direct()),
        Way::new(&format!("direct, {MANY} services beside"), &many, direct()),
        Way::new(&format!("homelab, 1 service of {MANY_ENDPOINTS} endpoints"), &wide, vip()),
        Way::new("chain per service", &peer_one, vip()),
        Way::new(&format!("chain per service, 1 service of {MANY_ENDPOINTS} endpoints"), &peer_wide, vip()),
    ];
    if let Some((count, lane)) = &peer_many {
        ways.push(Way::new(&format!("chain per service, {count} services"), lane, vip()));
        let who = format!("chain per service, {count} services, all of them in turn");
        ways.push(Way::new(&who, lane, To::Services(*count)));
    }
    let kube_one = kube_lane(1);
    let kube_many = kube_one.as_ref().and_then(|_| kube_lane(KUBE_MANY));
    if let Some(lane) = &kube_one {
        ways.push(Way::new("kube-proxy", lane, vip()));
    }
    if let Some(lane) = &kube_many {
        ways.push(Way::new(&format!("kube-proxy, {KUBE_MANY} services"), lane, vip()));
        let who = format!("kube-proxy, {KUBE_MANY} services, all of them in turn");
        ways.push(Way::new(&who, lane, To::Services(KUBE_MANY)));
    }
    ways.push(Way::new("floor: direct, no rules", &bare, direct()));
    // On a thread of its own, because it goes from namespace to namespace.
    let ways = spawn(move || {
        pin(0);
        ways.iter_mut().for_each(|way| drop(way.block()));
        let mut random = 1_u64;
        for _ in 0..ROUNDS {
            let mut order: Vec<usize> = (0..ways.len()).collect();
            for place in (1..order.len()).rev() {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                order.swap(place, (random >> 33) as usize % (place + 1));
            }
            order.into_iter().for_each(|way| ways[way].measure());
        }
        ways
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    type Values = fn(&Way) -> &[f64];
    let kinds: [(&str, &str, Values); 3] = [
        ("new connections, one after the other", "1/s", |way| &way.rates),
        ("connect, median of a block", "us", |way| &way.halves),
        ("connect, 99th percentile of a block", "us", |way| &way.tails),
    ];
    for (task, unit, values) in kinds {
        ways.iter().for_each(|way| figure(task, &way.who, unit, values(way)));
    }
    let (base, others) = ways.split_first().unwrap();
    for way in others {
        let (low, middle, high) = ratio(&way.halves, &base.halves);
        remark(&format!(
            "connect, median, {} against homelab with 1 service, round by round: {:+.1} % (95 % sure: {:+.1} to {:+.1})",
            way.who, middle, low, high
        ));
    }
}

/// The median of the differences of two series, per cent, and the bounds in which it is with 95 % certainty.
fn ratio(values: &[f64], base: &[f64]) -> (f64, f64, f64) {
    let mut ratios: Vec<f64> =
        values.iter().zip(base).map(|(value, base)| (value / base - 1.0) * 100.0).collect();
    ratios.sort_by(f64::total_cmp);
    // The binomial interval of a median.
    let half = (ratios.len() as f64).sqrt() * 0.98;
    let middle = ratios.len() as f64 / 2.0;
    let at = |place: f64| ratios[(place.max(0.0) as usize).min(ratios.len() - 1)];
    (at(middle - half), at(middle), at(middle + half))
}
