//! The real kube-proxy, and the tests' own API server that it takes services from.

use std::fs::File;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use homelab_linux::netlink::{Attributes, Message, NetlinkError, Socket};
use homelab_model::service::Service;
use homelab_test_api::{Api, Resource};
use nix::errno::Errno;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::process::Process;

/// What has not happened by then is an error.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(1);
/// `NFT_MSG_GETRULE` and `NFT_MSG_GETSETELEM` (`linux/netfilter/nf_tables.h`).
const GET_RULE: u16 = (10 << 8) | 7;
const GET_ELEMENT: u16 = (10 << 8) | 13;
/// Family of tables for IPv4.
const IPV4: u8 = 2;
const TABLE: &str = "kube-proxy";
const SERVICES: &str = "service-ips";

/// The program in PATH or KUBEBUILDER_ASSETS; else why there is none.
pub(crate) fn find() -> Result<PathBuf, String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    std::env::split_paths(&paths)
        .chain(assets)
        .map(|directory| directory.join("kube-proxy"))
        .find(|path| path.is_file())
        .ok_or_else(|| "kube-proxy not measured: it is neither in PATH nor in KUBEBUILDER_ASSETS".to_owned())
}

/// What the program says of its version, e.g. `v1.36.0`.
pub(crate) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.split_whitespace().last().unwrap_or_default().to_owned()
}

/// A running kube-proxy in the network namespace where it was started; it ends with this, and its rules stay.
pub(crate) struct KubeProxy {
    api: Api,
    child: Child,
    socket: Socket,
    directory: tempfile::TempDir,
    started: Instant,
}

impl KubeProxy {
    /// Starts it with these services in the API from the beginning. Conntrack settings stay as they are, and loopback
    /// is all that it listens on.
    pub(crate) fn start(program: &Path, services: &[Service]) -> KubeProxy {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success(), "loopback");
        let api = Api::with(TcpListener::bind("127.0.0.1:0").unwrap(), &[]).unwrap();
        let node = json!({
            "metadata": { "name": "node1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.50.11" }] },
        });
        api.create(&Resource::NODES, node).unwrap();
        for service in services {
            api.create(&Resource::SERVICES, object(service)).unwrap();
            api.create(&Resource::ENDPOINT_SLICES, slice(service)).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let cluster = json!({ "server": format!("http://{}", api.address()) });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{ "name": "bench", "cluster": cluster }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "" } }],
        });
        std::fs::write(at("kubeconfig"), kubeconfig.to_string()).unwrap();
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "hostnameOverride": "node1",
            "clientConnection": {
                "kubeconfig": at("kubeconfig"),
                "contentType": "application/json", "acceptContentTypes": "application/json",
            },
            "clusterCIDR": "10.128.0.0/10", "detectLocalMode": "ClusterCIDR",
            "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
        });
        std::fs::write(at("config"), config.to_string()).unwrap();
        let log = File::create(at("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(at("config")).stdout(log.try_clone().unwrap()).stderr(log);
        let started = Instant::now();
        let child = command.spawn().expect("kube-proxy");
        KubeProxy { api, child, socket: Socket::netfilter().unwrap(), directory, started }
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Waits until all of `services` are in the kernel; how long after the start that was, milliseconds.
    pub(crate) fn wait_started(&mut self, services: &[Service]) -> f64 {
        // All come in one transaction.
        let last = services.last().unwrap().clone();
        self.wait(|kernel| has_address(kernel, &last));
        let took = self.started.elapsed().as_secs_f64() * 1e3;
        let list = |body: &[u8]| inner(body, 4, 3).map(|list| inner(list, 0, 1).count()).collect();
        let count: usize = dump(&mut self.socket, elements(SERVICES), list).into_iter().sum();
        assert_eq!(count, services.len(), "services in the kernel");
        took
    }

    /// Gives a service the endpoints that it has in `after`. Milliseconds until `endpoint` is one of them.
    pub(crate) fn change(&mut self, after: &Service, endpoint: IpAddr) -> f64 {
        let start = Instant::now();
        self.api.update(&Resource::ENDPOINT_SLICES, slice(after)).unwrap();
        self.wait(|kernel| has_endpoint(kernel, after, endpoint));
        start.elapsed().as_secs_f64() * 1e3
    }

    /// Adds a service and then its endpoints. Milliseconds until it leads to them.
    pub(crate) fn add(&mut self, new: &Service) -> f64 {
        let start = Instant::now();
        self.api.create(&Resource::SERVICES, object(new)).unwrap();
        self.api.create(&Resource::ENDPOINT_SLICES, slice(new)).unwrap();
        let endpoint = new.endpoints[0].address;
        self.wait(|kernel| has_endpoint(kernel, new, endpoint) && has_address(kernel, new));
        start.elapsed().as_secs_f64() * 1e3
    }

    /// Removes a service with its endpoints. Milliseconds until its address leads nowhere.
    pub(crate) fn remove(&mut self, old: &Service) -> f64 {
        let start = Instant::now();
        self.api.delete(&Resource::SERVICES, Some("default"), &old.name).unwrap();
        self.api.delete(&Resource::ENDPOINT_SLICES, Some("default"), &slice_name(old)).unwrap();
        self.wait(|kernel| !has_address(kernel, old));
        start.elapsed().as_secs_f64() * 1e3
    }

    fn wait(&mut self, mut done: impl FnMut(&mut Socket) -> bool) {
        let start = Instant::now();
        while !done(&mut self.socket) {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
                panic!("kube-proxy: not after {:?}, {ended:?}:\n{log}", start.elapsed());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // nft, if it runs, ends by itself.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The `v1` Service.
fn object(service: &Service) -> Value {
    let vip = service.cluster_ips[0];
    json!({
        "metadata": { "name": service.name, "namespace": service.namespace },
        "spec": {
            "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{ "port": service.ports[0].port, "protocol": "TCP", "targetPort": 8080 }],
        },
    })
}

fn slice_name(service: &Service) -> String {
    format!("{}-4x7kq", service.name)
}

/// The `discovery.k8s.io/v1` EndpointSlice.
fn slice(service: &Service) -> Value {
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "addresses": [endpoint.address], "nodeName": endpoint.node,
            "conditions": { "ready": true, "serving": true, "terminating": false },
        })
    });
    json!({
        "metadata": {
            "name": slice_name(service), "namespace": service.namespace,
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
    })
}

/// A question for elements of a set.
fn elements(set: &str) -> Message {
    let mut message = Message::new(GET_ELEMENT, 0, &[IPV4, 0, 0, 0]);
    message.text(1, TABLE).text(2, set);
    message
}

/// Whether the address and port of a service lead anywhere.
fn has_address(kernel: &mut Socket, service: &Service) -> bool {
    let IpAddr::V4(vip) = service.cluster_ips[0] else { panic!("the bench's services are of IPv4") };
    let [high, low] = service.ports[0].port.to_be_bytes();
    let key = [&vip.octets()[..], &[6, 0, 0, 0, high, low, 0, 0]].concat();
    let mut message = elements(SERVICES);
    message.nest(3, |list| {
        list.nest(1, |element| {
            element.nest(1, |data| {
                data.bytes(1, &key);
            });
        });
    });
    match kernel.query(message) {
        Ok(_) => true,
        Err(error) if error.is(Errno::ENOENT) => false,
        Err(error) => panic!("asking for a service of kube-proxy: {error}"),
    }
}

/// Whether a service leads to an endpoint: the rule in the service's chain looks up an anonymous map that has it.
fn has_endpoint(kernel: &mut Socket, service: &Service, endpoint: IpAddr) -> bool {
    let IpAddr::V4(endpoint) = endpoint else { panic!("the bench's endpoints are of IPv4") };
    let name = format!("{}/tcp/", service.full_name());
    let mut message = Message::new(GET_RULE, 0, &[IPV4, 0, 0, 0]);
    message.text(1, TABLE).text(2, &format!("service-{}-{name}", hash(&name)));
    let lookups = |body: &[u8]| -> Vec<String> {
        let expressions = inner(body, 4, 4).flat_map(|all| inner(all, 0, 1));
        let names = expressions.flat_map(|one| inner(one, 0, 2)).flat_map(|data| inner(data, 0, 1));
        let names = names.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        names.filter(|name| name.starts_with("__map")).collect()
    };
    let maps = dump(kernel, message, lookups);
    maps.iter().any(|map| {
        let values = |body: &[u8]| -> Vec<Vec<u8>> {
            let elements = inner(body, 4, 3).flat_map(|list| inner(list, 0, 1));
            elements
                .flat_map(|one| inner(one, 0, 2))
                .flat_map(|data| inner(data, 0, 1))
                .map(<[u8]>::to_vec)
                .collect()
        };
        dump(kernel, elements(map), values).iter().any(|value| value.starts_with(&endpoint.octets()))
    })
}

/// The attributes of one kind after a header of `skip` bytes.
fn inner(bytes: &[u8], skip: usize, kind: u16) -> impl Iterator<Item = &[u8]> {
    Attributes::after(bytes, skip).filter(move |(found, _)| *found == kind).map(|(_, value)| value)
}

/// What `read` finds in all messages of a dump; nothing where there is nothing to dump, or too much changes meanwhile.
fn dump<T>(kernel: &mut Socket, message: Message, mut read: impl FnMut(&[u8]) -> Vec<T>) -> Vec<T> {
    match kernel.dump(message, |body| Some(read(body))) {
        Ok(all) => all.into_iter().flatten().collect(),
        Err(NetlinkError::Interrupted) => Vec::new(),
        Err(error) if error.is(Errno::ENOENT) => Vec::new(),
        Err(error) => panic!("reading kube-proxy's rules: {error}"),
    }
}

/// The first eight letters of a name's SHA-256 in base 32 (kube-proxy's `hashAndTruncate`).
fn hash(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let number = digest.iter().take(5).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    let letter = |place: u32| {
        let value = u8::try_from((number >> (35 - 5 * place)) & 31).unwrap();
        char::from(if value < 26 { b'A' + value } else { b'2' + value - 26 })
    };
    (0..8).map(letter).collect()
}
