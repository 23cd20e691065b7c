//! The laptop's files: home directory with ssh key and configuration, `homelab.yaml`, host keys.

use crate::command::run;
use crate::{Error, Lab, Result, paths};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directory with the ssh host keys of a node or the router.
pub(crate) fn host_key_dir(lab_dir: &Path, host: &str) -> PathBuf {
    if host == "router" {
        lab_dir.join("router/hostkeys")
    } else {
        paths::node_dir(lab_dir, host).join("hostkeys")
    }
}

/// Makes the home directory and the user's key.
pub(crate) fn create(lab_dir: &Path) -> Result<()> {
    let ssh = lab_dir.join("home/.ssh");
    paths::make_dir(&ssh)?;
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o700))
        .map_err(Error::file("set the mode of", &ssh))?;
    keygen("ed25519", &ssh.join("id_ed25519"), "lab")
}

fn keygen(kind: &str, path: &Path, comment: &str) -> Result<()> {
    let path = path.to_string_lossy();
    // 2048 bits: nobody attacks the lab, and longer ones take a second each.
    let bits: &[&str] = if kind == "rsa" { &["-b", "2048"] } else { &[] };
    let args = [&["-q", "-t", kind, "-N", "", "-C", comment, "-f", &path], bits].concat();
    run("ssh-keygen", &args).map(drop)
}

/// Makes a set of host keys for each of the hosts, side by side.
pub(crate) fn make_host_keys(lab_dir: &Path, hosts: &[String]) -> Result<()> {
    std::thread::scope(|scope| {
        let jobs: Vec<_> = hosts
            .iter()
            .map(|host| {
                scope.spawn(move || {
                    let dir = host_key_dir(lab_dir, host);
                    paths::make_dir(&dir)?;
                    ["ed25519", "ecdsa", "rsa"]
                        .iter()
                        .try_for_each(|kind| keygen(kind, &dir.join(format!("ssh_host_{kind}_key")), host))
                })
            })
            .collect();
        jobs.into_iter().try_for_each(|job| match job.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

impl Lab {
    /// Home directory of the client's user.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// The user's private key, accepted for `root`, `debian` and `pw` on all nodes and for `root` on the router.
    pub fn key_path(&self) -> PathBuf {
        self.home().join(".ssh/id_ed25519")
    }

    /// The user's `known_hosts`, which has all host keys of nodes and router by name and address.
    pub fn known_hosts_path(&self) -> PathBuf {
        self.home().join(".ssh/known_hosts")
    }

    /// The user's ssh configuration.
    pub fn ssh_config_path(&self) -> PathBuf {
        self.home().join(".ssh/config")
    }

    /// The generated `homelab.yaml`.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("homelab.yaml")
    }

    /// Password of the user `pw` for sudo; `debian` needs none.
    pub fn sudo_password(&self) -> &'static str {
        crate::image_files::SUDO_PASSWORD
    }

    pub(crate) fn public_key(&self) -> Result<String> {
        let path = self.key_path().with_extension("pub");
        std::fs::read_to_string(&path).map_err(Error::file("read", &path))
    }

    /// Writes all files of the client's user that depend on the nodes.
    pub(crate) fn write_home(&self) -> Result<()> {
        let home = self.home();
        paths::write(&self.dir.join("passwd"), passwd(&home)?)?;
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
        let mut known = String::new();
        let mut config = String::new();
        let mut yaml = format!("name: {}\nnodes:\n", self.name);
        for node in &self.nodes {
            let (v4, v6) = (self.address(node)?, self.address6(node)?);
            let _ = write!(hosts, "{v4} {node}\n{v6} {node}\n");
            let _ = write!(config, "Host {node}\n  HostName {v4}\n  User root\n\n");
            let _ = write!(yaml, "  - name: {node}\n    address: {v4}\n");
            known += &self.known(node, &format!("{node},{v4},{v6}"))?;
        }
        yaml += "loadBalancer:\n  pools:\n    - name: default\n      addresses: [192.168.50.200-192.168.50.220]\n";
        yaml += "ssh:\n  user: root\n";
        known += &self.known("router", "router,192.168.50.1,fd00:50::1,192.0.2.1,2001:db8:2::1")?;
        config += "Host router\n  HostName 192.168.50.1\n  User root\n\n";
        // The router from outside, the jump host towards the nodes.
        config += "Host gateway\n  HostName 192.0.2.1\n  User root\n\n";
        let _ = write!(
            config,
            "Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  \
             StrictHostKeyChecking yes\n  ConnectTimeout 10\n",
            self.key_path().display(),
            self.known_hosts_path().display()
        );
        paths::write(&self.dir.join("hosts"), hosts)?;
        paths::write(&self.known_hosts_path(), known)?;
        paths::write(&self.ssh_config_path(), config)?;
        paths::write(&self.config_path(), yaml)
    }

    /// Lines of `known_hosts` for one host.
    fn known(&self, host: &str, names: &str) -> Result<String> {
        let dir = host_key_dir(&self.dir, host);
        let mut lines = String::new();
        for kind in ["ed25519", "ecdsa", "rsa"] {
            let path = dir.join(format!("ssh_host_{kind}_key.pub"));
            let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
            let key: Vec<&str> = text.split_whitespace().take(2).collect();
            let _ = writeln!(lines, "{names} {}", key.join(" "));
        }
        Ok(lines)
    }
}

/// This machine's `/etc/passwd` with root at home in the lab.
fn passwd(home: &Path) -> Result<String> {
    let text = std::fs::read_to_string("/etc/passwd").map_err(Error::file("read", "/etc/passwd"))?;
    let home = home.to_string_lossy();
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let ["root", _, _, _, _, dir, ..] = fields.as_mut_slice() {
            *dir = &home;
        }
        fields.join(":") + "\n"
    };
    Ok(text.lines().map(line).collect())
}
