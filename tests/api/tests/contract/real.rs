//! The real API server: etcd and kube-apiserver on loopback, all their files in a directory of their own.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Client, Side};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A slow machine needs a while.
const START: Duration = Duration::from_secs(180);
/// Who may do everything, for as long as the server runs.
pub(crate) const TOKEN: &str = "contract-tests";

/// KUBEBUILDER_ASSETS, if both programs are there.
pub(crate) fn find() -> Option<PathBuf> {
    let assets = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?);
    ["etcd", "kube-apiserver"].iter().all(|program| assets.join(program).is_file()).then_some(assets)
}

/// Both programs; they end with it.
pub(crate) struct Server {
    /// Name and version, for test names.
    pub(crate) version: String,
    /// Whether watches may begin with what is newest: etcd must then say how far it is, rightly since 3.5.13
    /// (Kubernetes' DefaultFeatureSupportChecker).
    pub(crate) newest: bool,
    /// URL.
    pub(crate) base: String,
    etcd: String,
    programs: Vec<Child>,
    directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(assets: &Path) -> Result<Server> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("tokens"), format!("{TOKEN},tests,1,system:masters\n"))?;
        let made = Command::new("openssl")
            .args(["genrsa", "-out", &at("sa.key"), "2048"])
            .stderr(Stdio::null())
            .status()?;
        if !made.success() {
            return Err("openssl makes no key".into());
        }
        let [client, peer, secure] = free_ports()?.map(|port| port.to_string());
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let [etcd, api] = ["etcd", "kube-apiserver"].map(|program| says(&assets.join(program)));
        let (etcd, api) = (etcd?, api?);
        // `etcd Version: 3.5.13` and more lines; `Kubernetes v1.36.0`.
        let numbers = etcd.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or_default();
        let numbers: Vec<u32> = numbers.split('.').map(|number| number.parse().unwrap_or(0)).collect();
        let newest = numbers >= vec![3, 5, 13];
        let version = format!("kube-apiserver {}", api.split_whitespace().last().unwrap_or_default());
        let base = format!("https://127.0.0.1:{secure}");
        let log = |name: &str| File::create(at(name)).map(Stdio::from);
        let etcd = Command::new(assets.join("etcd"))
            .args(["--data-dir", &at("etcd"), "--unsafe-no-fsync"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log("etcd.log")?)
            .spawn()?;
        let mut server =
            Server { version, newest, base, etcd: client.clone(), programs: vec![etcd], directory };
        let directory = server.directory.path().to_owned();
        let at = |name: &str| directory.join(name).display().to_string();
        let api = Command::new(assets.join("kube-apiserver"))
            .args(["--etcd-servers", &client, "--cert-dir", &at("certificates")])
            .args(["--bind-address", "127.0.0.1", "--secure-port", &secure])
            .args(["--token-auth-file", &at("tokens"), "--authorization-mode", "RBAC"])
            .args(["--service-account-issuer", "https://tests.invalid"])
            .args(["--service-account-key-file", &at("sa.key")])
            .args(["--service-account-signing-key-file", &at("sa.key")])
            .args(["--service-cluster-ip-range", "10.96.0.0/16"])
            .args(["--disable-admission-plugins", "ServiceAccount"])
            // Without a cache it forgets with etcd.
            .args(["--watch-cache-sizes", "leases.coordination.k8s.io#0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at("api.log")).map(Stdio::from)?)
            .spawn()?;
        server.programs.push(api);
        server.wait(&directory)?;
        Ok(server)
    }

    /// What its certificate is checked with: it makes an authority for itself, PEM.
    #[allow(dead_code, reason = "not for these contracts, but for those of our own client")]
    pub(crate) fn authority(&self) -> std::io::Result<String> {
        std::fs::read_to_string(self.certificate())
    }

    pub(crate) fn client(&self) -> Client<'_> {
        // Its certificate is made anew at each start, by itself.
        let arguments = ["--insecure", "--header", &format!("Authorization: Bearer {TOKEN}")];
        let arguments = arguments.map(str::to_owned).to_vec();
        Client { base: self.base.clone(), arguments, side: Side::Etcd(&self.etcd) }
    }

    /// Where its certificate is, which it has made and signed itself.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificates/apiserver.crt")
    }

    fn wait(&mut self, directory: &Path) -> Result<()> {
        let start = Instant::now();
        loop {
            // The namespace comes some time after the server says that it is ready.
            let ready = self
                .client()
                .curl("/api/v1/namespaces/default")
                .args(["--fail", "--max-time", "5"])
                .output()?;
            if ready.status.success() {
                return Ok(());
            }
            let ended = self.programs.iter_mut().find_map(|program| program.try_wait().ok().flatten());
            if ended.is_some() || start.elapsed() > START {
                let log = |name| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
                let said = log("etcd.log") + &log("api.log");
                let lines: Vec<&str> = said.lines().collect();
                let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
                return Err(format!("not ready after {:?}, {ended:?}:\n{last}", start.elapsed()).into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The API server first, or it would look for etcd.
        for program in self.programs.iter_mut().rev() {
            if let Ok(pid) = i32::try_from(program.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = program.wait();
        }
    }
}

/// What a program says of its version.
fn says(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Ports that were free a moment ago: both programs want numbers.
fn free_ports() -> Result<[u16; 3]> {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.as_ref().map_err(|error| error.to_string())?.local_addr()?.port();
    }
    Ok(ports)
}
