//! An sshd of our own, and what a test needs around it.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use homelab_ssh::{Prompt, Session, SshOptions, SshTransport, Target, Transport, TransportError};
use tempfile::TempDir;

/// An sshd and the files of one client.
pub(crate) struct Sshd {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    child: Child,
}

impl Sshd {
    /// An sshd with an ed25519 host key that the client knows, and an ed25519 key `id` that may log in.
    pub(crate) fn start() -> Sshd {
        let sshd = Sshd::with("", &["ed25519"]);
        sshd.know("ed25519");
        sshd.authorize("id", &["-t", "ed25519"]);
        sshd
    }

    /// An sshd with these host keys, which nobody knows and nobody may log in to yet, whose sessions have `env`
    /// (`NAME=value ...`) and no login scripts but those that a test puts into its directory.
    pub(crate) fn with(env: &str, host_keys: &[&str]) -> Sshd {
        let dir = tempfile::tempdir().unwrap();
        for kind in host_keys {
            keygen(dir.path(), &format!("host_{kind}"), &["-t", kind]);
        }
        fs::write(dir.path().join("authorized_keys"), "").unwrap();
        fs::create_dir_all("/run/sshd").expect("sshd wants /run/sshd");
        let port = free_port();
        let path = dir.path().display();
        let mut text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nAuthorizedKeysFile {path}/authorized_keys\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             MaxStartups 100\nLogLevel VERBOSE\nPermitUserRC no\nSetEnv HOME={path} {env}\n"
        );
        for kind in host_keys {
            text += &format!("HostKey {path}/host_{kind}\n");
        }
        fs::write(dir.path().join("sshd_config"), text).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need /usr/sbin/sshd (Debian: openssh-server)");
        let mut sshd = Sshd { dir, port, child };
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(sshd.child.try_wait().unwrap().is_none(), "sshd ended: {}", sshd.log());
            assert!(start.elapsed() < Duration::from_secs(10), "sshd does not listen: {}", sshd.log());
            thread::sleep(Duration::from_millis(5));
        }
        sshd.configure("");
        sshd
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Writes the client's ssh_config: `config`, then what keeps the machine's own files out of the test.
    pub(crate) fn configure(&self, config: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "{config}\nHost *\n  Port {}\n  User {}\n  UserKnownHostsFile {dir}/known_hosts\n  \
             GlobalKnownHostsFile {dir}/global_known_hosts\n  IdentityFile {dir}/id\n  IdentityAgent none\n",
            self.port,
            user()
        );
        fs::write(self.path("ssh_config"), text).unwrap();
    }

    /// Makes a key and lets it log in.
    pub(crate) fn authorize(&self, name: &str, args: &[&str]) {
        keygen(self.dir.path(), name, args);
        self.authorize_public(&fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap());
    }

    pub(crate) fn authorize_public(&self, line: &str) {
        let mut text = fs::read_to_string(self.path("authorized_keys")).unwrap();
        text += line;
        fs::write(self.path("authorized_keys"), text).unwrap();
    }

    /// `type base64` of a host key.
    pub(crate) fn host_key(&self, kind: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("host_{kind}.pub"))).unwrap();
        text.split(' ').take(2).collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    /// The host's name in known_hosts.
    pub(crate) fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    pub(crate) fn know(&self, kind: &str) {
        self.write_known(&format!("{} {}\n", self.name(), self.host_key(kind)));
    }

    pub(crate) fn write_known(&self, text: &str) {
        fs::write(self.path("known_hosts"), text).unwrap();
    }

    pub(crate) fn known(&self) -> String {
        fs::read_to_string(self.path("known_hosts")).unwrap_or_default()
    }

    /// What `ssh-keygen -lf` says.
    pub(crate) fn fingerprint(&self, kind: &str) -> String {
        let output = Command::new("ssh-keygen")
            .arg("-lf")
            .arg(self.path(&format!("host_{kind}.pub")))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
    }

    pub(crate) fn options(&self) -> SshOptions {
        SshOptions {
            ssh_config_file: Some(self.path("ssh_config")),
            connect_timeout: Some(Duration::from_secs(10)),
            idle_timeout: Duration::from_secs(20),
            ..SshOptions::default()
        }
    }

    pub(crate) fn transport(&self) -> SshTransport {
        SshTransport::new(self.options())
    }

    pub(crate) fn open(&self, command: &str) -> Result<Box<dyn Session>, TransportError> {
        self.transport().open(&target(), command)
    }

    /// Opens, and expects to be let in.
    pub(crate) fn run(&self, command: &str) -> String {
        match self.open(command) {
            Ok(mut session) => text(&mut *session),
            Err(e) => panic!("{e}\n{}", self.log()),
        }
    }

    pub(crate) fn error(&self) -> TransportError {
        error(self.open("true"))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn target() -> Target {
    Target { name: "node1".to_owned(), address: IpAddr::V4(Ipv4Addr::LOCALHOST), ssh: Default::default() }
}

pub(crate) fn error(result: Result<Box<dyn Session>, TransportError>) -> TransportError {
    match result {
        Ok(_) => panic!("a session where an error was due"),
        Err(e) => e,
    }
}

/// All of stdout.
pub(crate) fn text(session: &mut dyn Session) -> String {
    let mut text = String::new();
    session.read_to_string(&mut text).unwrap();
    text
}

pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// `ssh-keygen` with an empty passphrase unless `args` give one.
pub(crate) fn keygen(dir: &Path, name: &str, args: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    command.arg("-q").arg("-f").arg(dir.join(name)).args(args);
    if !args.contains(&"-N") {
        command.args(["-N", ""]);
    }
    if args.contains(&"rsa") {
        command.args(["-b", "2048"]);
    }
    let output = command.stdin(Stdio::null()).output().expect("ssh-keygen");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A user who gives these answers in turn, then none.
#[derive(Clone, Default)]
pub(crate) struct User {
    answers: Arc<Mutex<Vec<String>>>,
    questions: Arc<Mutex<Vec<String>>>,
}

impl User {
    pub(crate) fn says(answers: &[&str]) -> User {
        let answers = answers.iter().rev().map(|s| (*s).to_owned()).collect();
        User { answers: Arc::new(Mutex::new(answers)), ..User::default() }
    }

    pub(crate) fn questions(&self) -> Vec<String> {
        self.questions.lock().unwrap().clone()
    }
}

impl Prompt for User {
    fn secret(&self, text: &str) -> Option<String> {
        self.questions.lock().unwrap().push(text.to_owned());
        self.answers.lock().unwrap().pop()
    }
}

/// An ssh-agent.
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    child: Child,
}

impl Agent {
    pub(crate) fn start(dir: &Path) -> Agent {
        let socket = dir.join("agent");
        let mut child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ssh-agent");
        let start = Instant::now();
        while !socket.exists() {
            if start.elapsed() > Duration::from_secs(10) {
                let _ = child.kill();
                let mut said = String::new();
                let _ = child.stderr.take().map(|mut e| e.read_to_string(&mut said));
                panic!("ssh-agent does not listen: {said}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Agent { socket, child }
    }

    pub(crate) fn add(&self, key: &Path) {
        let output =
            Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
