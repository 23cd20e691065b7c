//! The programs behind the API, and their files.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use homelab_lab::Lab;
use homelab_test_api::{Api, Resource, Setup, State};

use super::API_PORT;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The host in whose network namespace it runs: a machine of the LAN that is no node.
pub(super) const HOST: &str = "router";
/// Who may do everything.
pub(super) const TOKEN: &str = "lab-admin";

/// One of MetalLB's kinds.
const fn metallb(version: &'static str, plural: &'static str, kind: &'static str) -> Resource {
    Resource { group: "metallb.io", version, plural, kind, ..Resource::CONFIG_MAPS }
}

/// What is there of MetalLB in the tests' own server; at the real one it takes the CRDs.
const METALLB: [Resource; 2] = [
    metallb("v1beta1", "ipaddresspools", "IPAddressPool"),
    metallb("v1beta1", "l2advertisements", "L2Advertisement"),
];

/// What an API server knew at some time.
pub enum Saved {
    /// Of the tests' own server.
    Ours(State),
    /// A copy of etcd's directory.
    Real(PathBuf),
}

enum Program {
    Ours { running: Option<Api>, state: Option<State> },
    Real { assets: PathBuf, running: Vec<Child> },
}

/// The API server of a lab.
pub(super) struct Server {
    name: String,
    /// Directory of all its files.
    dir: PathBuf,
    program: Program,
}

impl Server {
    /// Makes its certificates; nothing runs yet.
    pub(super) fn new(lab: &Lab) -> Result<Server> {
        let dir = lab.dir().join("kubernetes");
        // A stage before this one may have left its own.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let assets = assets
            .filter(|assets| ["etcd", "kube-apiserver"].iter().all(|program| assets.join(program).is_file()));
        let (name, program) = match assets {
            Some(assets) => {
                let said = Command::new(assets.join("kube-apiserver")).arg("--version").output()?.stdout;
                let version = String::from_utf8(said)?;
                let version = version.split_whitespace().last().unwrap_or_default();
                (format!("kube-apiserver {version}"), Program::Real { assets, running: Vec::new() })
            }
            None => ("the tests' own".to_owned(), Program::Ours { running: None, state: None }),
        };
        let server = Server { name, dir, program };
        server.certificates(&lab.address(HOST)?.to_string())?;
        Ok(server)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_real(&self) -> bool {
        matches!(self.program, Program::Real { .. })
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn openssl(&self, line: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(&self.dir).stdin(Stdio::null());
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("openssl {line}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    fn certificates(&self, address: &str) -> Result<()> {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        self.openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=lab-ca -days 30"))?;
        self.openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=kube-apiserver"))?;
        let names =
            "DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:kubernetes,DNS:localhost,IP:10.96.0.1";
        let more = format!("subjectAltName=IP:{address},IP:127.0.0.1,{names}\nextendedKeyUsage=serverAuth\n");
        std::fs::write(self.at("extensions"), more)?;
        self.openssl(
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out server.crt -extfile extensions",
        )?;
        self.openssl("genrsa -out sa.key 2048")?;
        std::fs::write(self.at("tokens"), format!("{TOKEN},admin,1,system:masters\n"))?;
        Ok(())
    }

    pub(super) fn start(&mut self, lab: &Lab) -> Result<()> {
        let address = lab.address(HOST)?.to_string();
        if self.is_real() {
            return self.start_real(lab, &address);
        }
        let (certificates, key) = (
            std::fs::read_to_string(self.at("server.crt"))?,
            std::fs::read_to_string(self.at("server.key"))?,
        );
        let Program::Ours { running, state } = &mut self.program else { return Ok(()) };
        let listener = lab.within(HOST, || listen(&address))??;
        let setup = Setup {
            more: &METALLB,
            tls: Some((&certificates, &key)),
            admin: Some(TOKEN),
            state: state.take(),
        };
        *running = Some(Api::set_up(listener, setup)?);
        Ok(())
    }

    fn start_real(&mut self, lab: &Lab, address: &str) -> Result<()> {
        let netns = format!("--net={}", lab.netns_path(HOST).display());
        let at = |name: &str| self.dir.join(name).display().to_string();
        let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
        let etcd = [
            ["--data-dir", &at("etcd")],
            ["--listen-client-urls", client],
            ["--advertise-client-urls", client],
            ["--listen-peer-urls", peer],
            ["--initial-advertise-peer-urls", peer],
            ["--initial-cluster", &format!("default={peer}")],
            ["--unsafe-no-fsync=true", "--log-level=warn"],
        ];
        let port = API_PORT.to_string();
        let api = [
            ["--etcd-servers", client],
            ["--advertise-address", address],
            ["--bind-address", "0.0.0.0"],
            ["--secure-port", &port],
            ["--tls-cert-file", &at("server.crt")],
            ["--tls-private-key-file", &at("server.key")],
            ["--client-ca-file", &at("ca.crt")],
            ["--token-auth-file", &at("tokens")],
            ["--authorization-mode", "Node,RBAC"],
            ["--enable-admission-plugins", "NodeRestriction"],
            ["--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP"],
            ["--service-account-issuer", "https://kubernetes.default.svc"],
            ["--service-account-key-file", &at("sa.key")],
            ["--service-account-signing-key-file", &at("sa.key")],
            ["--service-cluster-ip-range", "10.96.0.0/12"],
            ["--cert-dir", &at("certificates")],
        ];
        let Program::Real { assets, running } = &mut self.program else { return Ok(()) };
        for (name, arguments) in [("etcd", etcd.concat()), ("kube-apiserver", api.concat())] {
            let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
            let mut command = Command::new("nsenter");
            command.args([&netns, "--"]).arg(assets.join(name)).args(arguments);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
            running.push(child);
        }
        Ok(())
    }

    /// Ends it at once, with whatever is under way.
    pub(super) fn kill(&mut self) {
        match &mut self.program {
            Program::Ours { running, state } => {
                if let Some(api) = running.take() {
                    *state = Some(api.state());
                }
            }
            // The API server first, or it would look for etcd.
            Program::Real { running, .. } => {
                for mut child in running.drain(..).rev() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }

    /// What it knows; it does not run.
    pub(super) fn save(&self) -> Result<Saved> {
        match &self.program {
            Program::Ours { state, .. } => Ok(Saved::Ours(state.clone().ok_or("it never ran")?)),
            Program::Real { .. } => {
                let copy = self.at("etcd-saved");
                copy_all(&self.at("etcd"), &copy)?;
                Ok(Saved::Real(copy))
            }
        }
    }

    pub(super) fn restore(&mut self, saved: &Saved) -> Result<()> {
        let etcd = self.at("etcd");
        match (&mut self.program, saved) {
            (Program::Ours { state, .. }, Saved::Ours(kept)) => *state = Some(kept.clone()),
            (Program::Real { .. }, Saved::Real(copy)) => copy_all(copy, &etcd)?,
            _ => return Err("it is another server's".into()),
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The port as soon as it can be had: connections of an earlier server may still hold it.
fn listen(address: &str) -> std::io::Result<TcpListener> {
    let address: SocketAddr = format!("{address}:{API_PORT}").parse().map_err(std::io::Error::other)?;
    let start = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(_) if start.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(50))
            }
            result => return result,
        }
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let _ = std::fs::remove_dir_all(to);
    let done = Command::new("cp").arg("--archive").args([from, to]).status()?;
    if done.success() { Ok(()) } else { Err(format!("{} is not copied", from.display()).into()) }
}
