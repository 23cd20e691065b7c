//! The real agent, from the Kubernetes API to the kernel, beside the real kube-proxy and what the kernel itself takes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use homelab_linux::netlink::Socket;
use homelab_model::ours::PROXY_TABLE;
use homelab_model::service::Service;
use homelab_model::{KubernetesSpec, NodeSpec};
use homelab_proxy::Elements;
use homelab_proxy::bytes::Bytes;
use homelab_proxy::element::{Element, Set};
use homelab_test_api::{Api, Resource};

use crate::kernel::{self, Table};
use crate::kube_proxy::{self, KubeProxy};
use crate::ours::{self, compiled};
use crate::process::Process;
use crate::start::command;
use crate::{Size, api, change, figure, in_netns, load, remark};

const ENDPOINTS: u32 = 3;
/// Changes of one endpoint, and those that kube-proxy makes: each takes seconds there.
const CHANGES: u32 = 200;
const KUBE_CHANGES: u32 = 10;
/// Between two changes: longer than one takes, so that they are not taken up together, and so short that some meet the
/// agent while it writes to disk.
const BETWEEN: Duration = Duration::from_millis(50);
/// How long something that rests is watched.
const REST: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_micros(100);
/// More take kube-proxy minutes.
const KUBE_MOST: u32 = 10_000;

/// What one agent did.
#[derive(Default)]
struct Figures {
    /// Until all was in the kernel, and CPU until it was calm; seconds.
    start: [f64; 2],
    /// Requests and KiB on loopback until then.
    asked: [f64; 2],
    /// MiB: at the peak of the start, after it, and after all changes.
    memory: [f64; 3],
    /// Milliseconds of CPU in a second of rest.
    rest: f64,
    /// Milliseconds of each change, and CPU of one on average.
    changes: [Vec<f64>; 2],
    /// As `start`, without an API.
    again: [f64; 2],
    again_peak: f64,
}

/// `services` Services, each with an EndpointSlice; `program` is the agent.
pub(crate) fn run(runs: usize, services: u32, program: &Path) {
    let size = Size { services, endpoints: ENDPOINTS };
    let services = ours::services(size);
    let expected = compiled(&services);
    let label = size.label();
    let all: Vec<Figures> = (0..runs).map(|_| in_netns(|| agent(program, &services, &expected))).collect();
    let [cold, again, asked, sent, changed, memory, rest] = [
        "start, from the API to the kernel",
        "start without an API, from the snapshot to the kernel",
        "requests until it is calm after the start",
        "loopback until then, both ways",
        "one endpoint replaced, from the API to the kernel",
        "memory",
        "CPU at rest, of each second",
    ]
    .map(|task| format!("{task}, {label}"));
    let say = |task: &str, who: &str, unit: &str, of: &dyn Fn(&Figures) -> f64| {
        figure(task, who, unit, &all.iter().map(of).collect::<Vec<_>>());
    };
    let flat = |which: usize| all.iter().flat_map(|one| &one.changes[which]).copied().collect::<Vec<_>>();
    say(&cold, "homelab", "s", &|one| one.start[0]);
    say(&cold, "homelab: CPU until it is calm", "s", &|one| one.start[1]);
    say(&again, "homelab", "s", &|one| one.again[0]);
    say(&again, "homelab: CPU until it is calm", "s", &|one| one.again[1]);
    say(&asked, "homelab", "", &|one| one.asked[0]);
    say(&sent, "homelab", "KiB", &|one| one.asked[1]);
    figure(&changed, "homelab", "ms", &flat(0));
    figure(&changed, "homelab: CPU", "ms", &flat(1));
    say(&memory, "homelab", "MiB", &|one| one.memory[1]);
    say(&memory, "homelab: after all changes", "MiB", &|one| one.memory[2]);
    say(&memory, "homelab: at its peak", "MiB", &|one| one.memory[0]);
    say(&memory, "homelab: at its peak, from the snapshot", "MiB", &|one| one.again_peak);
    say(&rest, "homelab", "ms", &|one| one.rest);
    let floor: Vec<f64> = (0..runs).map(|_| load::floor(&expected) / 1e3).collect();
    for task in [&cold, &again] {
        figure(task, "floor: one batch made before", "s", &floor);
    }
    let floor: Vec<f64> = in_netns(|| change::floor(&services)).iter().map(|cost| cost.wall).collect();
    figure(&changed, "floor: elements by netlink", "ms", &floor);
    remark(
        "homelab's agent makes links, addresses, files and all its rulesets at its start, too; the floor has its ruleset already",
    );
    match kube_proxy::find() {
        Err(why) => return remark(&why),
        Ok(_) if size.services > KUBE_MOST => {
            return remark(&format!(
                "kube-proxy not measured: more than {KUBE_MOST} services take it minutes"
            ));
        }
        Ok(kube) => {
            let one = in_netns(|| kube_proxy(&kube, &services));
            let who = format!("kube-proxy {}", kube_proxy::version(&kube));
            let say = |task: &str, what: &str, unit: &str, values: &[f64]| {
                figure(task, &format!("{who}{what}"), unit, values);
            };
            say(&cold, "", "s", &[one.start[0]]);
            say(&cold, ": CPU until it is calm", "s", &[one.start[1]]);
            say(&asked, "", "", &[one.asked[0]]);
            say(&sent, "", "KiB", &[one.asked[1]]);
            say(&changed, "", "ms", &one.changes[0]);
            say(&changed, ": CPU", "ms", &one.changes[1]);
            say(&memory, "", "MiB", &[one.memory[1]]);
            say(&memory, ": with its nft, at their peak", "MiB", &[one.memory[0]]);
            say(&rest, "", "ms", &[one.rest]);
        }
    }
    remark(
        "the API server is the tests' own, in the bench's process and in JSON, and in none of the CPU times; a change's time begins before the API has it",
    );
}

/// An agent that runs.
struct Agent {
    child: Child,
    started: Instant,
    /// What preparing it took, milliseconds.
    before: f64,
}

impl Agent {
    fn start(program: &Path, data: &Path, server: &str) -> Agent {
        let spec = NodeSpec {
            // Below a place that is covered on every machine.
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            kubernetes: Some(KubernetesSpec::new(vec![server.to_owned()], "node1")),
            ..ours::spec()
        };
        let mut command = command(program, data, &spec);
        let log = std::fs::File::create(data.join("log")).unwrap();
        let mut child = command.stdin(Stdio::piped()).stderr(log).spawn().unwrap();
        let ready = format!("/proc/{}/root/etc/homelab/node.json", child.id());
        wait("the agent can be started", || std::fs::metadata(&ready).is_ok_and(|file| file.len() > 0));
        // Whoever wrote it is waited for by the shell before it reads.
        sleep(Duration::from_millis(200));
        let before = Process(child.id()).cpu();
        let started = Instant::now();
        drop(child.stdin.take());
        // The shell's own part is in no figure.
        Agent { child, started, before }
    }

    fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Waits until all elements are in the kernel, then until it is calm: seconds until then, of CPU, and the peak's MiB.
    fn wait_started(&self, kernel: &mut Socket, expected: &Elements) -> [f64; 3] {
        let process = self.process();
        let (peak, took) = process.peak_with_children(|| {
            let took = wait_complete(kernel, expected, self.started);
            process.wait_calm();
            took
        });
        [took, (process.cpu() - self.before) / 1e3, peak]
    }

    /// Stops it as systemd does.
    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(program: &Path, services: &[Service], expected: &Elements) -> Figures {
    let shell = |line: &str| assert!(Command::new("sh").args(["-ec", line]).status().unwrap().success());
    shell(
        "ip link add eth0 type veth peer name other; ip addr add 192.168.50.11/24 dev eth0; ip link set other up; ip link set eth0 up",
    );
    let mut kernel = Socket::netfilter().unwrap();
    let data = tempfile::tempdir().unwrap();
    let api = api::serve(services);
    let server = format!("http://{}", api.address());
    let mut figures = Figures::default();
    let agent = Agent::start(program, data.path(), &server);
    let process = agent.process();
    let [took, cpu, peak] = agent.wait_started(&mut kernel, expected);
    figures.start = [took, cpu];
    figures.asked = asked(&api);
    figures.memory = [peak, process.memory(), 0.0];
    figures.rest = rest(process);
    let before = process.cpu();
    for round in 0..CHANGES {
        figures.changes[0].push(replace(&api, services, round, &mut kernel));
        sleep(BETWEEN);
    }
    process.wait_calm();
    figures.changes[1].push((process.cpu() - before) / f64::from(CHANGES));
    figures.memory[2] = process.memory();
    // What it knew is what it serves, without an API, on a machine that has just booted.
    for round in 0..CHANGES {
        let service = &services[place(round, services)];
        api.update(&Resource::ENDPOINT_SLICES, api::slice(service)).unwrap();
    }
    wait_complete(&mut kernel, expected, Instant::now());
    process.wait_calm();
    agent.stop();
    drop(api);
    shell(&format!("nft delete table {PROXY_TABLE}"));
    let agent = Agent::start(program, data.path(), &server);
    let [took, cpu, peak] = agent.wait_started(&mut kernel, expected);
    figures.again = [took, cpu];
    figures.again_peak = peak;
    figures
}

fn kube_proxy(program: &Path, services: &[Service]) -> Figures {
    let mut figures = Figures::default();
    let mut kube = KubeProxy::start(program, services);
    let process = kube.process();
    let (peak, took) = process.peak_with_children(|| {
        let took = kube.wait_started(services);
        process.wait_calm();
        took
    });
    figures.start = [took / 1e3, process.cpu() / 1e3];
    figures.asked = asked(kube.api());
    figures.memory = [peak, process.memory(), 0.0];
    figures.rest = rest(process);
    for round in 0..KUBE_CHANGES {
        let mut after = services[place(round, services)].clone();
        ours::replace_endpoint(&mut after, round);
        let before = process.cpu();
        let endpoint = after.endpoints[1].address;
        figures.changes[0].push(kube.change(&after, endpoint));
        process.wait_calm();
        figures.changes[1].push(process.cpu() - before);
    }
    figures
}

/// Any service but the same again.
fn place(round: u32, services: &[Service]) -> usize {
    (round * 7919 + 13) as usize % services.len()
}

/// Gives a service another endpoint in the API; milliseconds until the kernel has it.
fn replace(api: &Api, services: &[Service], round: u32, kernel: &mut Socket) -> f64 {
    let mut after = services[place(round, services)].clone();
    ours::replace_endpoint(&mut after, round);
    let new = after.endpoints[1].address;
    let is = |element: &&Element| matches!(element, Element::Endpoint { to, .. } if to.ip() == new);
    let element = *compiled(std::slice::from_ref(&after)).values().flatten().find(is).unwrap();
    let slice = api::slice(&after);
    let start = Instant::now();
    api.update(&Resource::ENDPOINT_SLICES, slice).unwrap();
    wait("the kernel has the endpoint", || has(kernel, &element));
    start.elapsed().as_secs_f64() * 1e3
}

/// Milliseconds of CPU in a second.
fn rest(process: Process) -> f64 {
    let before = process.cpu();
    sleep(REST);
    (process.cpu() - before) / REST.as_secs_f64()
}

/// Requests, and KiB on the caller's loopback, both so far.
fn asked(api: &Api) -> [f64; 2] {
    let requests: usize = api.asked().values().sum();
    let counters = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = counters.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    // What one end sends is what the other receives.
    let received: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    [requests as f64, received / 1024.0]
}

fn wait(what: &str, mut happens: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        sleep(PAUSE);
    }
}

fn table() -> Table<'static> {
    // Of both families: NFPROTO_INET.
    (1, PROXY_TABLE.split_once(' ').unwrap().1)
}

/// Whether the kernel's map leads there.
fn has(kernel: &mut Socket, element: &Element) -> bool {
    let Bytes { key, data, .. } = Bytes::from(element);
    let found = kernel::at(kernel, table(), &element.set().name(element.is_ipv4()), &key);
    found.is_some_and(|values| data.is_none_or(|data| values.contains(&data)))
}

/// Waits until the sets hold all that is expected; seconds since `started`.
fn wait_complete(kernel: &mut Socket, expected: &Elements, started: Instant) -> f64 {
    // Counting takes long and in the kernel's way: first some that came early, late and in between.
    let samples = [0, 1, 2, 3].map(|part| expected.values().nth((expected.len() - 1) * part / 3).unwrap());
    loop {
        wait("services are in the kernel", || samples.into_iter().flatten().all(|one| has(kernel, one)));
        let took = started.elapsed().as_secs_f64();
        let complete = Set::all().into_iter().all(|set| {
            let all = expected.values().flatten().filter(|one| one.set() == set && one.is_ipv4());
            let wanted = all.count();
            wanted == 0 || kernel::count(kernel, table(), &set.name(true)) == wanted
        });
        if complete {
            return took;
        }
        assert!(started.elapsed() < PATIENCE, "not in time: all services are in the kernel");
    }
}
