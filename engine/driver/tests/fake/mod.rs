//! In-process nodes: threads that speak the real protocol over socket pairs, with a map of objects for a kernel.

#![allow(dead_code, unused_imports)] // Each test crate uses a part of it.

mod api;
mod balancers;
mod lan;
mod machine;
mod serve;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use homelab_driver::{
    BinaryEntry, Engine, Goal, MANIFEST, MANIFEST_FORMAT, Manifest, NodeBinaries, Observer, Options, Plan,
    Prepared, Report, Silent,
};
use homelab_model::{
    AgentSettings, Cluster, LoadBalancer, Mtu, Network, Node, PodOptions, SshSettings, Vxlan, sha256_hex,
};

pub(crate) use api::{Api, token};
pub(crate) use balancers::says;
pub(crate) use lan::{Cut, Lan};
pub(crate) use machine::{Evil, Machine, State, Trick};

/// Content of the node "binary" of these tests.
pub(crate) const PROGRAM: &[u8] = b"#!/bin/sh\nprintf 'it runs: %s %s' \"$1\" \"$2\"\n";

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
                zone: None,
                labels: Default::default(),
            })
            .collect(),
        network: Network {
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            node_prefixes: vec![24],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            node_port_range: Network::NODE_PORTS,
            node_port_addresses: Vec::new(),
            masquerade_all: false,
            pods: PodOptions::default(),
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
        manifests: Vec::new(),
        agent: AgentSettings::default(),
        kubernetes: None,
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

/// 32 bytes that no two calls share.
pub(crate) fn random() -> [u8; 32] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    bytes
}

/// A laptop on the LAN.
pub(crate) struct Laptop {
    pub(crate) lan: Lan,
    pub(crate) binaries: NodeBinaries,
    pub(crate) cancel: AtomicBool,
    pub(crate) options: Options,
    pub(crate) api: Option<Api>,
    _directory: tempfile::TempDir,
}

impl Laptop {
    pub(crate) fn new(lan: Lan) -> Laptop {
        let directory = tempfile::tempdir().unwrap();
        let binaries = binaries(directory.path(), "x86_64");
        let options = Options {
            settle: Duration::ZERO,
            pause: Duration::ZERO,
            by: "me@laptop".into(),
            pid: 7,
            now: 5060,
            confirm_timeout: Duration::from_secs(20),
            ..Options::default()
        };
        Laptop { lan, binaries, cancel: AtomicBool::new(false), options, api: None, _directory: directory }
    }

    pub(crate) fn engine(&self) -> Engine<'_> {
        self.watched(&Silent)
    }

    pub(crate) fn watched<'a>(&'a self, observer: &'a dyn Observer) -> Engine<'a> {
        Engine {
            transport: &self.lan,
            binaries: &self.binaries,
            kubernetes: self.api.as_ref().map(|api| api as &dyn homelab_driver::Kubernetes),
            observer,
            cancel: &self.cancel,
            random: &random,
            options: self.options.clone(),
        }
    }

    pub(crate) fn plan(&self, cluster: &Cluster) -> Plan {
        self.prepare(cluster, Goal::Desired).plan
    }

    pub(crate) fn prepare(&self, cluster: &Cluster, goal: Goal) -> Prepared {
        self.engine().prepare(cluster, goal, &[]).unwrap()
    }

    /// Brings the nodes to `goal`.
    pub(crate) fn reach(&self, cluster: &Cluster, goal: Goal) -> Report {
        let engine = self.engine();
        engine.apply(engine.prepare_apply(cluster, goal, &[]).unwrap()).unwrap()
    }

    pub(crate) fn apply(&self, cluster: &Cluster) -> Report {
        self.reach(cluster, Goal::Desired)
    }

    pub(crate) fn destroy(&self, cluster: &Cluster) -> Report {
        self.reach(cluster, Goal::Destroyed)
    }
}

/// The tunnel in another network: all nodes must change at once.
pub(crate) fn moved(home: &Cluster) -> Cluster {
    let mut moved = home.clone();
    moved.network.vxlan.vni = 77;
    // As in a file that does not name it.
    moved.network.vxlan.device = "homelab.77".to_owned();
    moved
}

/// A change that pods do not notice.
pub(crate) fn calm(home: &Cluster) -> Cluster {
    let mut calm = home.clone();
    calm.network.service_cidrs = vec!["10.112.0.0/12".parse().unwrap()];
    calm
}

/// Waits for what another thread does; a test that would hang fails instead.
pub(crate) fn wait_until(what: &str, limit: Duration, happened: impl Fn() -> bool) {
    let end = Instant::now() + limit;
    while !happened() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
