//! What goes wrong in a real network, on demand.

use crate::command::{line, wait_until};
use crate::process::Process;
use crate::{Error, Lab, Result, cgroup, lan, node, paths};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a bad cable does to packets, in each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Impairment {
    /// Milliseconds every packet is held back.
    pub delay_ms: f64,
    /// The delay varies evenly by this much to both sides; packets overtake one another.
    pub jitter_ms: f64,
    /// Per cent of the packets that vanish.
    pub loss_percent: f64,
    /// Megabits per second; 0 sets no limit.
    pub rate_mbit: f64,
}

impl Lab {
    /// Stops all processes of a node where they are. Its kernel still answers ARP and ping; add a
    /// [`Lab::partition`] for a host that is dead.
    pub fn freeze(&self, node: &str) -> Result<()> {
        self.leader(node)?;
        cgroup::freeze(&self.name, node, true)
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: &str) -> Result<()> {
        self.leader(node)?;
        cgroup::freeze(&self.name, node, false)
    }

    /// Fills the node's disk to the last block: nothing more can be written, names can still be changed and files
    /// removed. `/run` has a disk of its own. Lasts over power cuts.
    pub fn fill_disk(&self, node: &str) -> Result<()> {
        self.disk(node)?.fill()
    }

    /// Ends a [`Lab::fill_disk`].
    pub fn free_disk(&self, node: &str) -> Result<()> {
        self.disk(node)?.free()
    }

    /// Cuts the node off in the switch. The node still sees a carrier, as behind a switch that failed further on;
    /// see [`Lab::link_flap`] for a cable that is pulled.
    pub fn partition(&self, node: &str) -> Result<()> {
        let dir = self.dir_of(node)?;
        paths::write(&node::partition_flag(&dir), "")?;
        self.set_port(node, "nomaster")
    }

    /// Ends a [`Lab::partition`].
    pub fn heal(&self, node: &str) -> Result<()> {
        let flag = node::partition_flag(&self.dir_of(node)?);
        if !flag.exists() {
            return Ok(());
        }
        paths::remove(&flag)?;
        self.set_port(node, "master br0")
    }

    /// Drops all packets between two nodes in the switch; both still reach all others.
    pub fn block(&self, a: &str, b: &str) -> Result<()> {
        let (a, b) = (node::mac(a)?, node::mac(b)?);
        // Ports have other names while a relay is in between, hardware addresses stay. Broadcasts are not stopped.
        self.switch_rules(&format!(
            "add table bridge lab
add set bridge lab blocked {{ type ether_addr . ether_addr; }}
add chain bridge lab forward {{ type filter hook forward priority 0; }}
flush chain bridge lab forward
add rule bridge lab forward ether saddr . ether daddr @blocked drop
add element bridge lab blocked {{ {a} . {b}, {b} . {a} }}
"
        ))
    }

    /// Ends every [`Lab::block`].
    pub fn unblock_all(&self) -> Result<()> {
        self.switch_rules("add table bridge lab\ndelete table bridge lab\n")
    }

    /// Pulls the node's cable for the given time; the node sees its carrier go and come back.
    pub fn link_flap(&self, node: &str, time: Duration) -> Result<()> {
        self.dir_of(node)?;
        let lan = lan::space(&self.name, "lan");
        lan::ip_batch(&lan, &format!("link set {node} down\n"))?;
        std::thread::sleep(time);
        lan::ip_batch(&lan, &format!("link set {node} up\n"))
    }

    /// Makes the node's cable a bad one, until [`Lab::unimpair`]; lasts over reboots of the node.
    pub fn impair(&self, node: &str, how: Impairment) -> Result<()> {
        let dir = self.dir_of(node)?;
        self.unimpair(node)?;
        paths::write_json(&node::impair_file(&dir), &how)?;
        let port = if node::partition_flag(&dir).exists() { "nomaster" } else { "master br0" };
        let lan = lan::space(&self.name, "lan");
        lan::ip_batch(
            &lan,
            &format!(
                "link add {node}-o type veth peer name {node}-i\nlink set {node}-o {port} up\nlink set {node}-i up\n"
            ),
        )?;
        // A node that is off has no cable; its supervisor will lay it as impair.json says.
        let _ = lan::ip_batch(&lan, &format!("link set {node} nomaster\n"));
        let script = self.dir.join("relay.py");
        paths::write(&script, include_str!("../files/relay.py"))?;
        let path = dir.join("relay.log");
        let log = File::create(&path).map_err(Error::file("open", &path))?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", paths::netns(&lan).display()))
            .args(["--", "python3"])
            .arg(&script)
            .args([node, &format!("{node}-i")])
            .args(
                [how.delay_ms, how.jitter_ms, how.loss_percent, how.rate_mbit].map(|value| value.to_string()),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(Error::file("open", &path))?)
            .stderr(log)
            .process_group(0);
        let text = line(&command);
        let mut child = command.spawn().map_err(|source| Error::Start { command: text, source })?;
        if let Some(process) = Process::of(child.id()) {
            paths::write_json(&dir.join("relay.pid.json"), &process)?;
        }
        std::thread::spawn(move || child.wait());
        // Off, the node has no cable to attach to yet.
        let said = || std::fs::read_to_string(&path).unwrap_or_default();
        if self.leader(node).is_err() || wait_until(Duration::from_secs(5), || said().contains("ready")) {
            return Ok(());
        }
        Err(Error::Timeout { what: format!("{node}: relay"), seconds: 5, detail: format!("\n{}", said()) })
    }

    /// Makes the node's cable a good one again.
    pub fn unimpair(&self, node: &str) -> Result<()> {
        let dir = self.dir_of(node)?;
        if !node::impair_file(&dir).exists() {
            return Ok(());
        }
        let pid = dir.join("relay.pid.json");
        if let Some(relay) = paths::read_json::<Process>(&pid) {
            relay.kill();
        }
        paths::remove(&pid)?;
        paths::remove(&node::impair_file(&dir))?;
        lan::ip_batch(&lan::space(&self.name, "lan"), &format!("link delete {node}-o\n"))?;
        if !node::partition_flag(&dir).exists() {
            self.set_port(node, "master br0")?;
        }
        Ok(())
    }

    /// Changes the port of the switch that leads to the node; a node that is off may have none.
    fn set_port(&self, node: &str, how: &str) -> Result<()> {
        let dir = self.dir_of(node)?;
        let impaired = node::impair_file(&dir).exists();
        let port = if impaired { format!("{node}-o") } else { node.to_owned() };
        let done = lan::ip_batch(&lan::space(&self.name, "lan"), &format!("link set {port} {how}\n"));
        if !impaired && self.leader(node).is_err() { Ok(()) } else { done }
    }

    fn switch_rules(&self, rules: &str) -> Result<()> {
        let mut command = self.command_in("lan")?;
        crate::command::output_with_input(command.args(["nft", "-f", "-"]), rules)?.ok().map(drop)
    }
}
