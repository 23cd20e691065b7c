//! Running programs on the hosts of the lab.

use crate::command::{output, output_with_input};
use crate::{Error, Lab, Output, Result, lan, oci, paths, router};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Lab {
    /// A command that runs, on the given host, the program and arguments that are added to it.
    ///
    /// On a node and on the router it is inside all namespaces of that host, with its file system and a clean
    /// environment. On `client` and `wan` it sees this machine's file system and the lab's network, home directory
    /// and names; `lan` is the switch, with nothing but the network of its own.
    pub fn command_in(&self, host: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        let target = |command: &mut Command, pid: i32| {
            command.arg(format!("--target={pid}"));
        };
        match host {
            "lan" => {
                command.arg(format!("--net={}", paths::netns(&lan::space(&self.name, "lan")).display()));
            }
            "client" | "wan" => {
                target(&mut command, self.holder(host)?);
                command.args(["--mount", "--uts", "--net"]);
                if let Ok(dir) = std::env::current_dir() {
                    command.arg(format!("--wdns={}", dir.display()));
                }
                command.env("HOME", self.home());
                // The user's own agent and configuration are none of the lab's business.
                for name in
                    ["SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"]
                {
                    command.env_remove(name);
                }
            }
            "router" => {
                target(&mut command, self.holder(host)?);
                command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]);
                clean_environment(&mut command);
            }
            node => {
                target(&mut command, self.leader(node)?);
                command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
                clean_environment(&mut command);
            }
        }
        command.arg("--");
        Ok(command)
    }

    fn holder(&self, host: &str) -> Result<i32> {
        router::holder(self, host).ok_or_else(|| Error::Usage(format!("{host} of lab {} is gone", self.name)))
    }

    /// Runs a program on a host; see [`Lab::command_in`].
    pub fn exec(&self, host: &str, args: &[&str]) -> Result<Output> {
        output(self.command_in(host)?.args(args))
    }

    /// Runs a shell script on a host.
    pub fn sh(&self, host: &str, script: &str) -> Result<Output> {
        output(self.command_in(host)?.args(["sh", "-c", script]))
    }

    /// Runs a program on a host with `input` on its stdin.
    pub fn exec_with_input(&self, host: &str, args: &[&str], input: &str) -> Result<Output> {
        output_with_input(self.command_in(host)?.args(args), input)
    }

    /// An `ssh` from the client to `node1`, `debian@node1`, `router` and so on; the remote command is to be added.
    pub fn ssh_command(&self, target: &str) -> Result<Command> {
        let mut command = self.command_in("client")?;
        command.args(["ssh", "-o", "BatchMode=yes", target, "--"]);
        Ok(command)
    }

    /// Runs a command by ssh from the client; as always with ssh, a shell on the other side splits it into words.
    pub fn ssh(&self, target: &str, args: &[&str]) -> Result<Output> {
        output(self.ssh_command(target)?.args(args))
    }

    /// The `homelab` program (`$HOMELAB_BIN`, else the one built beside us) on the client, with the generated
    /// `homelab.yaml` unless the arguments name another.
    pub fn homelab_command(&self, args: &[&str]) -> Result<Command> {
        let binary = match std::env::var_os("HOMELAB_BIN") {
            Some(path) => PathBuf::from(path),
            None => paths::beside_us("homelab").ok_or_else(|| {
                Error::Usage("no homelab beside this program: cargo build --bin homelab".into())
            })?,
        };
        let mut command = self.command_in("client")?;
        command.arg(binary);
        let own = args.iter().take_while(|arg| **arg != "--").any(|arg| {
            *arg == "--file"
                || arg.starts_with("--file=")
                || (arg.starts_with("-f") && !arg.starts_with("--"))
        });
        if !own {
            command.arg("-f").arg(self.config_path());
        }
        command.args(args);
        Ok(command)
    }

    /// Runs [`Lab::homelab_command`] to its end.
    pub fn homelab(&self, args: &[&str]) -> Result<Output> {
        output(&mut self.homelab_command(args)?)
    }

    /// Runs `work` on a thread inside the network namespace of a host, so its sockets are that host's.
    pub fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        lan::within(&lan::space(&self.name, host), work)
    }

    /// Opens a TCP connection from a host.
    pub fn connect(&self, host: &str, to: SocketAddr, limit: Duration) -> Result<std::io::Result<TcpStream>> {
        self.within(host, || TcpStream::connect_timeout(&to, limit))
    }

    /// Path of a host's network namespace, for `ip -n` and the like. A node's is another at every boot.
    pub fn netns_path(&self, host: &str) -> PathBuf {
        paths::netns(&lan::space(&self.name, host))
    }

    /// Starts containerd on a node, for good, and imports the lab's images; returns the name of the one to run, a
    /// busybox that by itself serves HTTP on port 8080.
    pub fn containerd(&self, node: &str) -> Result<&'static str> {
        let script = "set -e
systemctl enable --quiet --now containerd
for try in $(seq 200); do ctr version >/dev/null 2>&1 && break; sleep 0.05; done
ctr --namespace k8s.io images import /opt/images/lab.tar
ctr images import /opt/images/lab.tar
";
        self.sh(node, script)?.ok()?;
        Ok(oci::IMAGE)
    }
}

fn clean_environment(command: &mut Command) {
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
}
