//! The hosts of the LAN that are no nodes: client, wan and router.
//!
//! Client and wan use this machine's file system with another `/etc/passwd` and `/etc/hosts` upon it, because ssh
//! takes a user's home directory from there and not from `$HOME`: so it reads the lab's `~/.ssh` and not the
//! user's own. The router runs the image's sshd on a disk of its own.

use crate::disk::{Disk, Identity};
use crate::lan::{space, within};
use crate::process::{Process, init_below};
use crate::{Error, Lab, Result, paths};
use std::fs::OpenOptions;
use std::io::BufRead as _;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Holds the namespaces of a host for as long as the lab is up.
const HOLD: &str = r#"set -e
hostname "$1"
mount --bind "$2/passwd" /etc/passwd
mount --bind "$2/hosts" /etc/hosts
echo ready
exec sleep infinity >/dev/null
"#;

impl Lab {
    /// Starts the processes that hold the namespaces of client and wan.
    pub(crate) fn start_holders(&mut self) -> Result<()> {
        for host in ["client", "wan"] {
            let dir = self.dir.to_string_lossy().into_owned();
            let args = ["--mount", "--uts", "--propagation=slave", "sh", "-c", HOLD, "sh", host, &dir];
            let mut child = self.spawn_in(host, &args)?;
            let mut said = String::new();
            if let Some(pipe) = child.stdout.take() {
                std::io::BufReader::new(pipe).read_line(&mut said).map_err(Error::system("read"))?;
            }
            if said.trim() != "ready" {
                let log = std::fs::read_to_string(self.dir.join("holders.log")).unwrap_or_default();
                return Err(Error::Usage(format!("{host} did not start: {log}")));
            }
            self.adopt(host, child);
        }
        Ok(())
    }

    /// Runs `unshare ARGS` in a host's network namespace.
    fn spawn_in(&self, host: &str, args: &[&str]) -> Result<Child> {
        let path = self.dir.join("holders.log");
        let log =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
        Command::new("nsenter")
            .arg(format!("--net={}", paths::netns(&space(&self.name, host)).display()))
            .args(["--", "unshare"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Start { command: "unshare".into(), source })
    }

    fn adopt(&mut self, host: &str, mut child: Child) {
        if let Some(process) = Process::of(child.id()) {
            self.holders.insert(host.into(), process);
        }
        std::thread::spawn(move || child.wait());
    }
}

/// Starts the router's sshd and waits for it.
pub(crate) fn start(lab: &mut Lab) -> Result<()> {
    let dir = lab.dir.join("router");
    let disk = Disk::of(&dir);
    let identity = Identity {
        name: "router",
        host_keys: &crate::home::host_key_dir(&lab.dir, "router"),
        authorized: &lab.public_key()?,
        files: &[],
    };
    disk.create(&lab.image, &identity)?;
    let root = disk.root().to_string_lossy().into_owned();
    let script = include_str!("../files/router.sh");
    let args = [
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        "--propagation=slave",
        "sh",
        "-c",
        script,
        "sh",
        &root,
    ];
    let mut child = lab.spawn_in("router", &args)?;
    drop(child.stdout.take());
    lab.adopt("router", child);
    let up = crate::command::wait_until(Duration::from_secs(10), || {
        within(&space(&lab.name, "router"), || TcpStream::connect("127.0.0.1:22").is_ok()).unwrap_or(false)
    });
    if up {
        return Ok(());
    }
    let detail = std::fs::read_to_string(lab.dir.join("holders.log")).unwrap_or_default();
    Err(Error::Timeout { what: "router: sshd".into(), seconds: 10, detail })
}

/// Process, on this machine, that has the namespaces of client, wan or router.
pub(crate) fn holder(lab: &Lab, host: &str) -> Option<i32> {
    let process = lab.holders.get(host)?;
    if host == "router" { init_below(*process) } else { process.alive().then_some(process.pid) }
}
