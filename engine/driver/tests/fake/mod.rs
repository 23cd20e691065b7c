//! In-process nodes: threads that speak the real protocol over socket pairs, with a map of objects for a kernel.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homelab_driver::{
    BinaryEntry, Engine, Goal, MANIFEST, MANIFEST_FORMAT, Manifest, NodeBinaries, Options, Plan, Report,
    Session, Silent, Target, Transport, TransportError,
};
use homelab_model::{
    AddressFact, Change, Cluster, CniRuntime, Content, Facts, Key, LinkFact, LoadBalancer, Mtu, Network,
    Node, NodeObject, NodeSpec, Object, Observed, Scope, Spec, SshSettings, Vxlan, ours, sha256_hex,
};
use homelab_protocol::{Applied, Failure, Hello, PROTOCOL, Request, Response, read_frame, write_frame};

/// Content of the node "binary" of these tests.
pub(crate) const PROGRAM: &[u8] = b"#!/bin/sh\nprintf 'it runs: %s %s' \"$1\" \"$2\"\n";

/// How a node misbehaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault {
    /// Nobody answers.
    pub(crate) down: bool,
    /// The change with this number fails, and what was done is undone.
    pub(crate) fail_at: Option<usize>,
    /// What the login shell prints first.
    pub(crate) noise: Vec<u8>,
    /// Bytes instead of frames.
    pub(crate) garbage: Option<Vec<u8>>,
    /// Another protocol version.
    pub(crate) protocol: Option<u32>,
    /// The installed binary reports this digest.
    pub(crate) tampered: bool,
    /// Changes are reported as made, and are not.
    pub(crate) lazy: bool,
    /// Sessions end before the first apply is answered; only the first one does.
    pub(crate) drop_once: bool,
}

/// A machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) hostname: String,
    pub(crate) address: IpAddr,
    pub(crate) mtu: u32,
    pub(crate) kernel: String,
    pub(crate) objects: BTreeMap<Key, NodeObject>,
    /// Kernel parameters of the machine itself.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Their values before homelab.
    pub(crate) originals: BTreeMap<String, String>,
    pub(crate) fault: Fault,
    pub(crate) runtimes: Vec<CniRuntime>,
    /// Uploads of the binary.
    pub(crate) uploads: usize,
    /// Sessions opened.
    pub(crate) sessions: usize,
}

impl Machine {
    pub(crate) fn new(hostname: &str, address: &str) -> Machine {
        Machine {
            hostname: hostname.to_owned(),
            address: address.parse().unwrap(),
            mtu: 1500,
            kernel: "6.1.0".to_owned(),
            objects: BTreeMap::new(),
            sysctls: BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "0".to_owned())]),
            originals: BTreeMap::new(),
            fault: Fault::default(),
            runtimes: Vec::new(),
            uploads: 0,
            sessions: 0,
        }
    }

    pub(crate) fn spec(&self) -> Option<NodeSpec> {
        match &self.objects.get(&Key::File(ours::NODE_SPEC.to_owned()))?.spec {
            Spec::File(f) => match &f.content {
                Content::Text(text) => serde_json::from_str(text).ok(),
                Content::Opaque(_) | Content::Secret(_) => None,
            },
            _ => None,
        }
    }

    fn installed(&self, digest: &str) -> bool {
        self.objects.contains_key(&Key::Binary(ours::binary_path(digest)))
    }

    fn observe(&self, scope: &Scope) -> Observed {
        // Files are found only where somebody said to look; the kernel's objects carry a mark of ours.
        let found = |key: &Key| match key {
            Key::Symlink(_) | Key::File(_) | Key::Unit(_) => scope.keys.iter().any(|(k, _)| k == key),
            _ => true,
        };
        let mut objects: Vec<NodeObject> =
            self.objects.iter().filter(|(key, _)| found(key)).map(|(_, o)| o.clone()).collect();
        // Parameters of the machine itself are ours only once we have changed them.
        for name in self.originals.keys() {
            let value = self.sysctls[name].clone();
            let spec = homelab_model::Sysctl { key: name.clone(), link: None, value };
            objects.push(NodeObject { module: homelab_model::Module::Vtep, spec: Spec::Sysctl(spec) });
        }
        let link =
            |name: &str, mtu: u32| LinkFact { name: name.to_owned(), mtu, up: true, ..LinkFact::default() };
        let mut links = vec![link("lo", 65536), link("eth0", self.mtu)];
        for object in self.objects.values() {
            if let Spec::Link(l) = &object.spec {
                links.push(LinkFact { alias: l.alias.clone(), ..link(&l.name, l.mtu) });
            }
        }
        let held = ipnet::IpNet::new(self.address, 24).unwrap();
        Observed {
            facts: Facts {
                hostname: self.hostname.clone(),
                arch: "x86_64".into(),
                kernel: self.kernel.clone(),
                boot_id: self.hostname.clone(),
                systemd: Some("252".into()),
                nft: Some("1.0.6".into()),
                links,
                addresses: vec![AddressFact { link: "eth0".into(), address: held }],
                runtimes: self.runtimes.clone(),
                ..Facts::default()
            },
            objects,
            spec: self.spec(),
            ..Observed::default()
        }
    }

    fn change(&mut self, change: &Change<NodeObject>) {
        if let Key::Sysctl(name) = change.key() {
            match change.after().map(|o| &o.spec) {
                Some(Spec::Sysctl(s)) => {
                    let old = self.sysctls.insert(name.clone(), s.value.clone()).unwrap_or_default();
                    self.originals.entry(name).or_insert(old);
                }
                _ => {
                    if let Some(original) = self.originals.remove(&name) {
                        self.sysctls.insert(name, original);
                    }
                }
            }
            return;
        }
        match change.after() {
            Some(after) => drop(self.objects.insert(after.key(), after.clone())),
            None => drop(self.objects.remove(&change.key())),
        }
    }
}

/// The machines of a LAN.
#[derive(Clone, Default)]
pub(crate) struct Lan {
    pub(crate) machines: Arc<Mutex<BTreeMap<IpAddr, Arc<Mutex<Machine>>>>>,
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

    pub(crate) fn add(&self, machine: Machine) {
        self.machines.lock().unwrap().insert(machine.address, Arc::new(Mutex::new(machine)));
    }

    pub(crate) fn with<R>(&self, address: &str, work: impl FnOnce(&mut Machine) -> R) -> R {
        let machine = self.machines.lock().unwrap()[&address.parse::<IpAddr>().unwrap()].clone();
        let mut machine = machine.lock().unwrap();
        work(&mut machine)
    }
}

struct Pipe {
    stream: UnixStream,
    sent: u64,
    received: u64,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.stream.read(buffer)?;
        self.received += n as u64;
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.stream.write(bytes)?;
        self.sent += n as u64;
        Ok(n)
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

    fn traffic(&self) -> (u64, u64) {
        (self.sent, self.received)
    }
}

impl Transport for Lan {
    fn open(&self, target: &Target, command: &str) -> Result<Box<dyn Session>, TransportError> {
        let machine = self.machines.lock().unwrap().get(&target.address).cloned();
        let refused = || TransportError::Connect {
            endpoint: format!("{}:22", target.address),
            reason: "no route to host".into(),
        };
        let machine = machine.ok_or_else(refused)?;
        if machine.lock().unwrap().fault.down {
            return Err(refused());
        }
        machine.lock().unwrap().sessions += 1;
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let command = command.to_owned();
        std::thread::spawn(move || {
            // A laptop that hangs up is no failure of the node.
            let _ = shell(&machine, &command, theirs);
        });
        Ok(Box::new(Pipe { stream: ours, sent: 0, received: 0 }))
    }
}

/// What the script's line `name=` says.
fn setting<'a>(command: &'a str, name: &str) -> &'a str {
    command.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

fn shell(machine: &Mutex<Machine>, command: &str, mut stream: UnixStream) -> std::io::Result<()> {
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
        let (sum, size) = line.trim().split_once(' ').unwrap();
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
    serve(machine, &digest, &mut reader, &mut stream)
}

fn serve(
    machine: &Mutex<Machine>,
    digest: &str,
    reader: &mut impl Read,
    stream: &mut UnixStream,
) -> std::io::Result<()> {
    let send = |stream: &mut UnixStream, response: &Response| {
        write_frame(stream, response).map_err(std::io::Error::other)
    };
    loop {
        let request: Request = read_frame(reader).map_err(std::io::Error::other)?;
        let mut node = machine.lock().unwrap();
        match request {
            Request::Hello(hello) => {
                let protocol = node.fault.protocol.unwrap_or(PROTOCOL);
                let answer = Hello { protocol, version: "0.0.9".into(), sha256: digest.to_owned() };
                send(stream, &Response::Hello(answer))?;
                if protocol != hello.protocol {
                    return Ok(());
                }
            }
            Request::Observe { scope } => {
                send(stream, &Response::Observed(Box::new(node.observe(&scope))))?;
            }
            Request::Apply { changes, scope, .. } => {
                if std::mem::take(&mut node.fault.drop_once) {
                    return Ok(());
                }
                let before = node.clone();
                let mut failure = None;
                for (done, change) in changes.iter().enumerate() {
                    if node.fault.fail_at == Some(done) {
                        *node = before.clone();
                        failure = Some(Failure {
                            object: change.key().to_string(),
                            message: "out of luck".into(),
                            undone: true,
                            left: Vec::new(),
                        });
                        break;
                    }
                    if !node.fault.lazy {
                        node.change(change);
                    }
                    send(stream, &Response::Progress { done: done + 1 })?;
                }
                let answer = match failure {
                    Some(failure) => Response::Failed(failure),
                    None => Response::Applied(Box::new(Applied { observed: node.observe(&scope) })),
                };
                send(stream, &answer)?;
            }
            Request::Bye => return Ok(()),
        }
    }
}

/// A cluster of these names and addresses.
pub(crate) fn cluster(nodes: &[(&str, &str)]) -> Cluster {
    Cluster {
        name: "home".into(),
        nodes: nodes
            .iter()
            .map(|(name, address)| Node {
                name: (*name).into(),
                address: address.parse().unwrap(),
                address6: None,
                ssh: SshSettings::default(),
                pod_cidrs: Vec::new(),
                interface: None,
                role: None,
            })
            .collect(),
        network: Network {
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            node_prefixes: vec![24],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            vxlan: Vxlan {
                vni: 1,
                port: 8472,
                mtu: Mtu::Auto,
                device: "homelab.1".into(),
                checksum_offload: None,
            },
        },
        load_balancer: LoadBalancer::default(),
        services: Vec::new(),
    }
}

pub(crate) const THREE: [(&str, &str); 3] =
    [("node1", "192.168.50.11"), ("node2", "192.168.50.12"), ("node3", "192.168.50.13")];

/// Writes a directory of node binaries with [`PROGRAM`] for this architecture.
pub(crate) fn binaries(directory: &Path, arch: &str) -> NodeBinaries {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(PROGRAM).unwrap();
    let file = format!("homelab-node-{arch}.gz");
    std::fs::write(directory.join(&file), packed.finish().unwrap()).unwrap();
    let entry = BinaryEntry { sha256: sha256_hex(PROGRAM), size: PROGRAM.len() as u64, file };
    let manifest =
        Manifest { format_version: MANIFEST_FORMAT, binaries: BTreeMap::from([(arch.to_owned(), entry)]) };
    std::fs::write(directory.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
    NodeBinaries::load(directory).unwrap()
}

/// A laptop on the LAN.
pub(crate) struct Laptop {
    pub(crate) lan: Lan,
    pub(crate) binaries: NodeBinaries,
    pub(crate) cancel: AtomicBool,
    _directory: tempfile::TempDir,
}

impl Laptop {
    pub(crate) fn new(lan: Lan) -> Laptop {
        let directory = tempfile::tempdir().unwrap();
        let binaries = binaries(directory.path(), "x86_64");
        Laptop { lan, binaries, cancel: AtomicBool::new(false), _directory: directory }
    }

    pub(crate) fn engine(&self) -> Engine<'_> {
        let options = Options { settle: Duration::ZERO, pause: Duration::ZERO, ..Options::default() };
        Engine {
            transport: &self.lan,
            binaries: &self.binaries,
            observer: &Silent,
            cancel: &self.cancel,
            options,
        }
    }

    pub(crate) fn plan(&self, cluster: &Cluster) -> Plan {
        self.engine().prepare(cluster, Goal::Desired, &[]).unwrap().plan
    }

    pub(crate) fn apply(&self, cluster: &Cluster) -> Report {
        let engine = self.engine();
        engine.apply(engine.prepare(cluster, Goal::Desired, &[]).unwrap())
    }

    pub(crate) fn destroy(&self, cluster: &Cluster) -> Report {
        let engine = self.engine();
        engine.apply(engine.prepare(cluster, Goal::Destroyed, &[]).unwrap())
    }
}
