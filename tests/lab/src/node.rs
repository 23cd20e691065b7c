//! One node: its names and numbers, turning it on and off, waiting for it.

use crate::command::wait_until;
use crate::disk::{Disk, Identity};
use crate::process::init_below;
use crate::{Error, Lab, Result, cgroup, lan, paths, supervisor};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most nodes a lab can have: the client and the pool come behind them.
pub(crate) const MOST: usize = 80;

/// The number in a node's name.
pub(crate) fn number(node: &str) -> Result<u8> {
    let number = node.strip_prefix("node").and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=MOST).contains(&usize::from(*number)))
        .ok_or_else(|| Error::Usage(format!("`{node}` is no node: node1 to node{MOST}")))
}

/// Hardware address of a node's `eth0`, the same at every boot.
pub(crate) fn mac(node: &str) -> Result<String> {
    Ok(format!("02:00:00:00:50:{:02x}", 10 + number(node)?))
}

/// There while the node shall stay off.
pub(crate) fn off_flag(node_dir: &Path) -> PathBuf {
    node_dir.join("off")
}

/// There while the node's cable is cut.
pub(crate) fn partition_flag(node_dir: &Path) -> PathBuf {
    node_dir.join("partitioned")
}

/// Holds the impairment while a relay is in the node's cable.
pub(crate) fn impair_file(node_dir: &Path) -> PathBuf {
    node_dir.join("impair.json")
}

/// Whether the node's own cable ends directly in the switch.
pub(crate) fn attached(node_dir: &Path) -> bool {
    !partition_flag(node_dir).exists() && !impair_file(node_dir).exists()
}

/// Configuration of systemd-networkd, as a user of a home server writes it.
fn network(node: &str) -> Result<String> {
    let host = 10 + number(node)?;
    Ok(format!(
        "[Match]
Name=eth0

[Network]
DHCP=no
IPv6AcceptRA=no
LLMNR=no
Gateway=192.168.50.1
Gateway=fd00:50::1

[Address]
Address=192.168.50.{host}/24

[Address]
Address=fd00:50::{host}/64
DuplicateAddressDetection=none
"
    ))
}

impl Lab {
    /// IPv4 address of a node, `client`, `router` (its LAN side) or `wan`.
    pub fn address(&self, host: &str) -> Result<Ipv4Addr> {
        Ok(match host {
            "router" => Ipv4Addr::new(192, 168, 50, 1),
            "client" => Ipv4Addr::new(192, 168, 50, 100),
            "wan" => Ipv4Addr::new(192, 0, 2, 2),
            node => Ipv4Addr::new(192, 168, 50, 10 + number(node)?),
        })
    }

    /// IPv6 address of a node, `client`, `router` (its LAN side) or `wan`.
    pub fn address6(&self, host: &str) -> Result<Ipv6Addr> {
        let text = match host {
            "router" => "fd00:50::1".into(),
            "client" => "fd00:50::100".into(),
            "wan" => "2001:db8:2::2".into(),
            node => format!("fd00:50::{}", 10 + number(node)?),
        };
        text.parse().map_err(|_| Error::Usage(format!("`{text}` is no address")))
    }

    /// Turns a node on, with the disk it had, and waits for its sshd.
    pub fn start(&self, node: &str) -> Result<()> {
        self.power_on(node)?;
        self.wait_ready(node)
    }

    /// Takes the power from nodes, all at once. Their disks stay.
    pub fn power_cut(&self, nodes: &[&str]) -> Result<()> {
        for node in nodes {
            paths::write(&off_flag(&self.dir_of(node)?), "")?;
        }
        for node in nodes {
            // First all, then wait: they lose power together.
            cgroup::kill(&self.name, node);
        }
        for node in nodes {
            self.wait_off(node)?;
        }
        Ok(())
    }

    /// Has the node shut down and start again by its own init; waits for its sshd.
    pub fn reboot(&self, node: &str) -> Result<()> {
        let before = self.boots(node)?;
        // The shutdown may take this very command with it: what counts is the new boot.
        let asked = self.exec(node, &["systemctl", "reboot"])?;
        let limit = Duration::from_secs(60);
        if !wait_until(limit, || self.boots(node).is_ok_and(|boots| boots > before)) {
            let detail = format!("\n{}{}{}", asked.stdout, asked.stderr, self.console_tail(node));
            return Err(Error::Timeout { what: format!("{node}: reboot"), seconds: limit.as_secs(), detail });
        }
        self.wait_ready(node)
    }

    /// Gives nodes back the disk, keys and network of their first boot, and starts them; all nodes if none is
    /// named. Host keys stay the same.
    pub fn reset(&self, nodes: &[&str]) -> Result<()> {
        let all: Vec<&str> = self.nodes.iter().map(String::as_str).collect();
        let nodes = if nodes.is_empty() { all.as_slice() } else { nodes };
        for node in nodes {
            self.heal(node)?;
            self.unimpair(node)?;
        }
        self.power_cut(nodes)?;
        for node in nodes {
            self.disk(node)?.destroy()?;
            self.power_on(node)?;
        }
        for node in nodes {
            self.wait_ready(node)?;
        }
        Ok(())
    }

    /// Waits until the node's init has nothing more to start; returns what it says then (`running`, `degraded`).
    pub fn wait_settled(&self, node: &str) -> Result<String> {
        Ok(self.exec(node, &["systemctl", "is-system-running", "--wait"])?.text().to_owned())
    }

    /// How often the node booted since it was last turned on.
    pub fn boots(&self, node: &str) -> Result<u32> {
        let state = supervisor::read(&self.dir_of(node)?);
        state.map(|state| state.boots).ok_or_else(|| Error::Usage(format!("{node} is off")))
    }

    /// Process id, on this machine, of the node's process 1.
    pub fn leader(&self, node: &str) -> Result<i32> {
        let state = supervisor::read(&self.dir_of(node)?).and_then(|state| state.nspawn);
        state.and_then(init_below).ok_or_else(|| Error::Usage(format!("{node} is off")))
    }

    /// Root directory of a node as this machine sees it, also while the node is off.
    pub fn root_of(&self, node: &str) -> Result<PathBuf> {
        Ok(self.disk(node)?.root())
    }

    /// Gives the node new host keys, as a reinstalled machine has them. Nobody's `known_hosts` is told.
    pub fn change_host_keys(&self, node: &str) -> Result<()> {
        self.sh(node, "rm /etc/ssh/ssh_host_* && ssh-keygen -q -A && systemctl restart ssh")?.ok().map(drop)
    }

    /// Starts the node's processes; does not wait for them.
    pub(crate) fn power_on(&self, node: &str) -> Result<()> {
        let dir = self.dir_of(node)?;
        if supervisor::read(&dir).is_some() {
            return Err(Error::Usage(format!("{node} is on already")));
        }
        paths::remove(&off_flag(&dir))?;
        let disk = Disk::of(&dir);
        if !disk.exists() {
            let identity = Identity {
                name: node,
                host_keys: &dir.join("hostkeys"),
                authorized: &self.public_key()?,
                files: &[("etc/systemd/network/10-eth0.network", network(node)?)],
            };
            disk.create(&self.image, &identity)?;
        }
        supervisor::start(&self.name, node, &dir)
    }

    /// Waits until the node has both addresses and its sshd answers on them. Asked from within the node's network
    /// namespace, so a cut cable does not matter.
    pub(crate) fn wait_ready(&self, node: &str) -> Result<()> {
        let addresses = [IpAddr::V4(self.address(node)?), IpAddr::V6(self.address6(node)?)];
        // Nodes boot at once: 30 of them on two cores need more than one.
        let limit = Duration::from_secs(30.max(4 * self.nodes().len() as u64));
        let space = lan::space(&self.name, node);
        let ready = wait_until(limit, || {
            // The namespace is new at every boot: enter it anew for every try.
            lan::within(&space, || addresses.iter().all(|address| ssh_banner(*address))).unwrap_or(false)
        });
        if ready {
            return Ok(());
        }
        let detail = self.console_tail(node);
        Err(Error::Timeout { what: format!("{node}: sshd"), seconds: limit.as_secs(), detail })
    }

    pub(crate) fn wait_off(&self, node: &str) -> Result<()> {
        let dir = self.dir_of(node)?;
        let limit = Duration::from_secs(20);
        let off = wait_until(limit, || {
            let off = supervisor::read(&dir).is_none();
            if !off {
                // Again: in the middle of a reboot there was nothing to kill, and is now.
                cgroup::kill(&self.name, node);
            }
            off
        });
        if off {
            return Ok(());
        }
        let detail = self.console_tail(node);
        Err(Error::Timeout { what: format!("{node}: power off"), seconds: limit.as_secs(), detail })
    }

    /// Directory of a node of this lab.
    pub(crate) fn dir_of(&self, node: &str) -> Result<PathBuf> {
        if self.nodes.iter().any(|name| name == node) {
            return Ok(paths::node_dir(&self.dir, node));
        }
        Err(Error::Usage(format!("lab {} has no {node}, it has {}", self.name, self.nodes.join(", "))))
    }

    pub(crate) fn disk(&self, node: &str) -> Result<Disk> {
        Ok(Disk::of(&self.dir_of(node)?))
    }

    /// Last lines of what the node and its supervisor said, for error messages.
    fn console_tail(&self, node: &str) -> String {
        let dir = paths::node_dir(&self.dir, node);
        let mut tail = String::new();
        for file in ["supervisor.log", "console.log"] {
            let text = std::fs::read(dir.join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(15)..] {
                tail.push_str("\n  ");
                tail.push_str(line);
            }
        }
        tail
    }
}

fn ssh_banner(address: IpAddr) -> bool {
    let limit = Duration::from_millis(500);
    let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(address, 22), limit) else {
        return false;
    };
    let mut start = [0; 4];
    stream.set_read_timeout(Some(limit)).is_ok() && stream.read_exact(&mut start).is_ok() && &start == b"SSH-"
}
