//! The real kube-proxy, and the tests' own API server that it takes services from.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use homelab_linux::netlink::{Message, Socket};
use homelab_model::service::Service;
use homelab_test_api::{Api, Resource};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::api::{self, object, slice, slice_name};
use crate::kernel::{self, dump, elements, inner, values};
use crate::process::Process;

/// What has not happened by then is an error.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(1);
/// `NFT_MSG_GETRULE` (`linux/netfilter/nf_tables.h`).
const GET_RULE: u16 = (10 << 8) | 7;
/// That for IPv4.
const TABLE: kernel::Table<'_> = (2, "kube-proxy");
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
        let api = api::serve(services);
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

    /// The server that it takes services from.
    pub(crate) fn api(&self) -> &Api {
        &self.api
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
        let count = kernel::count(&mut self.socket, TABLE, SERVICES);
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

/// Whether the address and port of a service lead anywhere.
fn has_address(kernel: &mut Socket, service: &Service) -> bool {
    let IpAddr::V4(vip) = service.cluster_ips[0] else { panic!("the bench's services are of IPv4") };
    let [high, low] = service.ports[0].port.to_be_bytes();
    let key = [&vip.octets()[..], &[6, 0, 0, 0, high, low, 0, 0]].concat();
    kernel::at(kernel, TABLE, SERVICES, &key).is_some()
}

/// Whether a service leads to an endpoint: the rule in the service's chain looks up an anonymous map that has it.
fn has_endpoint(kernel: &mut Socket, service: &Service, endpoint: IpAddr) -> bool {
    let IpAddr::V4(endpoint) = endpoint else { panic!("the bench's endpoints are of IPv4") };
    let name = format!("{}/tcp/", service.full_name());
    let mut message = Message::new(GET_RULE, 0, &[TABLE.0, 0, 0, 0]);
    message.text(1, TABLE.1).text(2, &format!("service-{}-{name}", hash(&name)));
    let lookups = |body: &[u8]| -> Vec<String> {
        let expressions = inner(body, 4, 4).flat_map(|all| inner(all, 0, 1));
        let names = expressions.flat_map(|one| inner(one, 0, 2)).flat_map(|data| inner(data, 0, 1));
        let names = names.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        names.filter(|name| name.starts_with("__map")).collect()
    };
    let maps = dump(kernel, message, lookups);
    maps.iter().any(|map| {
        let all = dump(kernel, elements(TABLE, map), values);
        all.iter().any(|value| value.starts_with(&endpoint.octets()))
    })
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
